//! The tables of durable jobs.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.
//!
//! Unlike SQLite's, `job_totals` has no row for all keys together, and turns come from a sequence:
//! each change of a job would change that row, and so hold back those of all other daemons until
//! its transaction ends. An event's text is bytes, because a text of PostgreSQL cannot hold U+0000.

/// The SQL of the step.
pub const TABLES: &str = "
    CREATE TABLE jobs (
        id           BYTEA PRIMARY KEY CHECK (length(id) = 16),
        key_id       TEXT NOT NULL,
        state        TEXT NOT NULL,
        attempt      BIGINT NOT NULL DEFAULT 0,
        sequence     BIGINT NOT NULL DEFAULT 0,
        lost         BIGINT NOT NULL DEFAULT 0,
        lease_until  BIGINT NOT NULL DEFAULT 0,
        created_at   BIGINT NOT NULL,
        started_at   BIGINT,
        finished_at  BIGINT,
        expires_at   BIGINT NOT NULL,
        bytes        BIGINT NOT NULL,
        callback_url TEXT,
        ending       TEXT,
        request      TEXT NOT NULL
    );

    CREATE INDEX jobs_of_keys ON jobs (key_id, id);
    CREATE INDEX jobs_of_keys_by_state ON jobs (key_id, state, id);
    CREATE INDEX jobs_by_end ON jobs (state, expires_at);
    CREATE INDEX leases_of_jobs ON jobs (lease_until) WHERE state = 'running';

    CREATE TABLE job_events (
        job      BYTEA NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        attempt  BIGINT NOT NULL,
        sequence BIGINT NOT NULL,
        kind     TEXT NOT NULL,
        text     BYTEA NOT NULL,
        PRIMARY KEY (job, attempt, sequence)
    );

    CREATE SEQUENCE job_turns;

    CREATE TABLE job_totals (
        key_id     TEXT PRIMARY KEY,
        queued     BIGINT NOT NULL DEFAULT 0,
        running    BIGINT NOT NULL DEFAULT 0,
        jobs       BIGINT NOT NULL DEFAULT 0,
        bytes      BIGINT NOT NULL DEFAULT 0,
        turn       BIGINT NOT NULL DEFAULT 0,
        not_before BIGINT NOT NULL DEFAULT 0
    );

    CREATE INDEX turns_of_keys ON job_totals (running, turn, key_id) WHERE queued > 0;

    CREATE FUNCTION count_job() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            INSERT INTO job_totals AS t (key_id, queued, running, jobs, bytes) VALUES (
                new.key_id, (new.state = 'queued')::int, (new.state = 'running')::int, 1, new.bytes)
            ON CONFLICT (key_id) DO UPDATE SET queued = t.queued + excluded.queued,
                running = t.running + excluded.running, jobs = t.jobs + 1,
                bytes = t.bytes + excluded.bytes;
        ELSIF TG_OP = 'UPDATE' THEN
            UPDATE job_totals SET bytes = bytes + new.bytes - old.bytes,
                queued = queued + (new.state = 'queued')::int - (old.state = 'queued')::int,
                running = running + (new.state = 'running')::int - (old.state = 'running')::int
            WHERE key_id = new.key_id;
        ELSE
            UPDATE job_totals SET jobs = jobs - 1, bytes = bytes - old.bytes,
                queued = queued - (old.state = 'queued')::int,
                running = running - (old.state = 'running')::int
            WHERE key_id = old.key_id;
            DELETE FROM job_totals WHERE key_id = old.key_id AND jobs = 0;
        END IF;
        RETURN NULL;
    END $$;

    CREATE TRIGGER job_counted AFTER INSERT OR DELETE ON jobs
        FOR EACH ROW EXECUTE FUNCTION count_job();
    CREATE TRIGGER job_changed AFTER UPDATE ON jobs
        FOR EACH ROW WHEN (old.state <> new.state OR old.bytes <> new.bytes)
        EXECUTE FUNCTION count_job();

    CREATE TABLE idempotency (
        key_id     TEXT NOT NULL,
        key        TEXT NOT NULL,
        digest     BYTEA NOT NULL CHECK (length(digest) = 32),
        job        BYTEA NOT NULL CHECK (length(job) = 16),
        expires_at BIGINT NOT NULL,
        PRIMARY KEY (key_id, key)
    );

    CREATE INDEX idempotency_by_end ON idempotency (expires_at)";
