//! The tables of durable jobs.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.

/// The SQL of the step.
pub const TABLES: &str = "
    CREATE TABLE jobs (
        id           BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
        key_id       TEXT NOT NULL,
        state        TEXT NOT NULL,
        attempt      INTEGER NOT NULL DEFAULT 0,
        sequence     INTEGER NOT NULL DEFAULT 0,
        lost         INTEGER NOT NULL DEFAULT 0,
        lease_until  INTEGER NOT NULL DEFAULT 0,
        created_at   INTEGER NOT NULL,
        started_at   INTEGER,
        finished_at  INTEGER,
        expires_at   INTEGER NOT NULL,
        bytes        INTEGER NOT NULL,
        callback_url TEXT,
        ending       TEXT,
        request      TEXT NOT NULL
    ) STRICT;

    CREATE INDEX jobs_of_keys ON jobs (key_id, id);
    CREATE INDEX jobs_of_keys_by_state ON jobs (key_id, state, id);
    CREATE INDEX jobs_by_end ON jobs (state, expires_at);
    CREATE INDEX leases_of_jobs ON jobs (lease_until) WHERE state = 'running';

    CREATE TABLE job_events (
        job      BLOB NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        attempt  INTEGER NOT NULL,
        sequence INTEGER NOT NULL,
        kind     TEXT NOT NULL,
        text     TEXT NOT NULL,
        PRIMARY KEY (job, attempt, sequence)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE job_totals (
        key_id     TEXT PRIMARY KEY,
        queued     INTEGER NOT NULL DEFAULT 0,
        running    INTEGER NOT NULL DEFAULT 0,
        jobs       INTEGER NOT NULL DEFAULT 0,
        bytes      INTEGER NOT NULL DEFAULT 0,
        turn       INTEGER NOT NULL DEFAULT 0,
        not_before INTEGER NOT NULL DEFAULT 0
    ) STRICT, WITHOUT ROWID;

    CREATE INDEX turns_of_keys ON job_totals (running, turn) WHERE queued > 0 AND key_id <> '*';

    CREATE TRIGGER job_inserted AFTER INSERT ON jobs BEGIN
        INSERT OR IGNORE INTO job_totals (key_id) VALUES (new.key_id), ('*');
        UPDATE job_totals SET jobs = jobs + 1, bytes = bytes + new.bytes,
            queued = queued + (new.state = 'queued'), running = running + (new.state = 'running')
        WHERE key_id IN (new.key_id, '*');
    END;
    CREATE TRIGGER job_updated AFTER UPDATE OF state, bytes ON jobs BEGIN
        UPDATE job_totals SET bytes = bytes + new.bytes - old.bytes,
            queued = queued + (new.state = 'queued') - (old.state = 'queued'),
            running = running + (new.state = 'running') - (old.state = 'running')
        WHERE key_id IN (new.key_id, '*');
    END;
    CREATE TRIGGER job_deleted AFTER DELETE ON jobs BEGIN
        UPDATE job_totals SET jobs = jobs - 1, bytes = bytes - old.bytes,
            queued = queued - (old.state = 'queued'), running = running - (old.state = 'running')
        WHERE key_id IN (old.key_id, '*');
        DELETE FROM job_totals WHERE key_id = old.key_id AND jobs = 0;
    END;

    CREATE TABLE idempotency (
        key_id     TEXT NOT NULL,
        key        TEXT NOT NULL,
        digest     BLOB NOT NULL CHECK (length(digest) = 32),
        job        BLOB NOT NULL CHECK (length(job) = 16),
        expires_at INTEGER NOT NULL,
        PRIMARY KEY (key_id, key)
    ) STRICT, WITHOUT ROWID;

    CREATE INDEX idempotency_by_end ON idempotency (expires_at)";
