//! The table of callbacks, and the second secret of a key.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.

/// The SQL of the step. The trigger adds a callback whatever program ends the job.
pub const TABLES: &str = "
    ALTER TABLE keys ADD COLUMN old_webhook_secret TEXT;
    ALTER TABLE keys ADD COLUMN old_webhook_secret_until BIGINT;

    CREATE TABLE callbacks (
        job      BYTEA PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
        key_id   TEXT NOT NULL,
        state    TEXT NOT NULL DEFAULT 'pending',
        attempts BIGINT NOT NULL DEFAULT 0,
        next_at  BIGINT NOT NULL,
        error    TEXT
    );

    CREATE INDEX callbacks_of_keys ON callbacks (key_id, next_at) WHERE state = 'pending';

    CREATE FUNCTION add_callback() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO callbacks (job, key_id, next_at)
        VALUES (new.id, new.key_id, new.finished_at) ON CONFLICT DO NOTHING;
        RETURN NULL;
    END $$;

    CREATE TRIGGER job_ended AFTER UPDATE ON jobs FOR EACH ROW
        WHEN (old.finished_at IS NULL AND new.finished_at IS NOT NULL
              AND new.callback_url IS NOT NULL)
        EXECUTE FUNCTION add_callback()";
