//! The totals of jobs, counted when a transaction commits.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.
//!
//! Before, a trigger changed a row of `job_totals` with each change of a job. Every transaction
//! held the rows of its keys from then on, so all daemons waited for each other at the row of a
//! busy key, with jobs of several keys in any order; the server had to end one of two that waited
//! for each other.
//!
//! Now a statement's changes are noted in `job_changes`, a row for each key. A deferred trigger
//! counts those of its own transaction as a part of the commit: once for each key, in the order of
//! the keys. So a transaction waits for these rows only when it has nothing left to do, holds them
//! for the time of a commit, and never waits for one that waits for it. A program that knows
//! nothing of this changes jobs as before.
//!
//! `job_changes` is empty for every other transaction. Nothing of it has to survive a crash, so it
//! is not logged. It consists of removed rows most of the time; the functions that read it must use
//! its index, also if the server has made their plans while it was short.
//!
//! A trigger of that kind fires for each row, and its first firing counts all of them. So it fires
//! for the first row of each statement alone (`is_first`).
//!
//! `is_waiting` takes the place of `queued > 0` in an index: with that, each new job had to write
//! to all indexes of the row, because `queued` had changed.

/// The SQL of the step.
pub const TABLES: &str = "
    CREATE UNLOGGED TABLE job_changes (
        transaction XID8 NOT NULL DEFAULT pg_current_xact_id(),
        key_id      TEXT NOT NULL,
        queued      BIGINT NOT NULL DEFAULT 0,
        running     BIGINT NOT NULL DEFAULT 0,
        jobs        BIGINT NOT NULL DEFAULT 0,
        bytes       BIGINT NOT NULL DEFAULT 0,
        turn        BIGINT NOT NULL DEFAULT 0,
        not_before  BIGINT NOT NULL DEFAULT 0,
        is_first    BOOLEAN NOT NULL DEFAULT true
    );

    CREATE INDEX changes_of_transactions ON job_changes (transaction);

    CREATE FUNCTION note_new_jobs() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO job_changes (key_id, queued, running, jobs, bytes, is_first)
        SELECT key_id, count(*) FILTER (WHERE state = 'queued'),
            count(*) FILTER (WHERE state = 'running'), count(*), sum(bytes),
            row_number() OVER () = 1
        FROM new_jobs GROUP BY key_id;
        RETURN NULL;
    END $$;

    CREATE FUNCTION note_deleted_jobs() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO job_changes (key_id, queued, running, jobs, bytes, is_first)
        SELECT key_id, -count(*) FILTER (WHERE state = 'queued'),
            -count(*) FILTER (WHERE state = 'running'), -count(*), -sum(bytes),
            row_number() OVER () = 1
        FROM old_jobs GROUP BY key_id;
        RETURN NULL;
    END $$;

    CREATE FUNCTION note_changed_jobs() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO job_changes (key_id, queued, running, bytes, is_first)
        SELECT key_id, sum(queued), sum(running), sum(bytes), row_number() OVER () = 1 FROM (
            SELECT key_id, (state = 'queued')::int AS queued, (state = 'running')::int AS running,
                bytes FROM new_jobs
            UNION ALL
            SELECT key_id, -(state = 'queued')::int, -(state = 'running')::int, -bytes
                FROM old_jobs
        ) AS change
        GROUP BY key_id HAVING sum(queued) <> 0 OR sum(running) <> 0 OR sum(bytes) <> 0;
        RETURN NULL;
    END $$;

    CREATE FUNCTION own_job_changes() RETURNS TABLE (
        of_key TEXT, queued BIGINT, running BIGINT, bytes BIGINT
    ) LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $$
    BEGIN
        RETURN QUERY SELECT c.key_id, sum(c.queued)::bigint, sum(c.running)::bigint,
            sum(c.bytes)::bigint
        FROM job_changes c WHERE c.transaction = pg_current_xact_id_if_assigned()
        GROUP BY c.key_id;
    END $$;

    CREATE FUNCTION count_job_changes() RETURNS TRIGGER LANGUAGE plpgsql
    SET enable_seqscan = off AS $$
    DECLARE
        changed TEXT[];
    BEGIN
        WITH own AS (
            DELETE FROM job_changes WHERE transaction = pg_current_xact_id() RETURNING *
        ), counted AS (
            INSERT INTO job_totals AS t
                (key_id, queued, running, jobs, bytes, turn, not_before)
            SELECT key_id, sum(queued), sum(running), sum(jobs), sum(bytes), max(turn),
                max(not_before)
            FROM own GROUP BY key_id ORDER BY key_id
            ON CONFLICT (key_id) DO UPDATE SET queued = t.queued + excluded.queued,
                running = t.running + excluded.running, jobs = t.jobs + excluded.jobs,
                bytes = t.bytes + excluded.bytes, turn = greatest(t.turn, excluded.turn),
                not_before = greatest(t.not_before, excluded.not_before)
            RETURNING key_id, jobs
        )
        SELECT array_agg(key_id) INTO changed FROM counted WHERE jobs <= 0;
        IF changed IS NOT NULL THEN
            DELETE FROM job_totals WHERE key_id = ANY (changed) AND jobs <= 0;
        END IF;
        RETURN NULL;
    END $$;

    DROP TRIGGER job_counted ON jobs;
    DROP TRIGGER job_changed ON jobs;
    DROP FUNCTION count_job();

    CREATE TRIGGER jobs_inserted AFTER INSERT ON jobs REFERENCING NEW TABLE AS new_jobs
        FOR EACH STATEMENT EXECUTE FUNCTION note_new_jobs();
    CREATE TRIGGER jobs_deleted AFTER DELETE ON jobs REFERENCING OLD TABLE AS old_jobs
        FOR EACH STATEMENT EXECUTE FUNCTION note_deleted_jobs();
    CREATE TRIGGER jobs_changed AFTER UPDATE ON jobs
        REFERENCING OLD TABLE AS old_jobs NEW TABLE AS new_jobs
        FOR EACH STATEMENT EXECUTE FUNCTION note_changed_jobs();
    CREATE CONSTRAINT TRIGGER changes_are_counted AFTER INSERT ON job_changes
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (new.is_first)
        EXECUTE FUNCTION count_job_changes();

    ALTER TABLE job_totals ADD COLUMN is_waiting BOOLEAN NOT NULL
        GENERATED ALWAYS AS (queued > 0) STORED;
    ALTER TABLE job_totals SET (fillfactor = 50);
    DROP INDEX turns_of_keys;
    CREATE INDEX turns_of_keys ON job_totals (running, turn, key_id) WHERE is_waiting";
