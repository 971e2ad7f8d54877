//! The table of callbacks, and the second secret of a key.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.

/// The SQL of the step. The trigger adds a callback whatever program ends the job.
pub const TABLES: &str = "
    ALTER TABLE keys ADD COLUMN old_webhook_secret TEXT;
    ALTER TABLE keys ADD COLUMN old_webhook_secret_until INTEGER;

    CREATE TABLE callbacks (
        job      BLOB PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
        key_id   TEXT NOT NULL,
        state    TEXT NOT NULL DEFAULT 'pending',
        attempts INTEGER NOT NULL DEFAULT 0,
        next_at  INTEGER NOT NULL,
        error    TEXT
    ) STRICT, WITHOUT ROWID;

    CREATE INDEX callbacks_of_keys ON callbacks (key_id, next_at) WHERE state = 'pending';

    CREATE TRIGGER job_ended AFTER UPDATE OF finished_at ON jobs
    WHEN old.finished_at IS NULL AND new.finished_at IS NOT NULL AND new.callback_url IS NOT NULL
    BEGIN
        INSERT OR IGNORE INTO callbacks (job, key_id, next_at)
        VALUES (new.id, new.key_id, new.finished_at);
    END";
