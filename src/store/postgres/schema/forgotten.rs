//! Keys of idempotency go with their jobs.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.
//!
//! Before, a key could outlive its job, and nothing bounded the number of such rows. The trigger
//! removes them whatever program deletes the jobs, and must use the index, also if the server has
//! made its plan while the table was short. It passes over rows that are locked: another daemon is
//! giving them to later jobs, and waiting for several of them could close a circle.

/// The SQL of the step.
pub const TABLES: &str = "
    DELETE FROM idempotency WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id = idempotency.job);

    CREATE INDEX idempotency_of_jobs ON idempotency (job);

    CREATE FUNCTION forget_jobs() RETURNS TRIGGER LANGUAGE plpgsql
    SET enable_seqscan = off AS $$
    BEGIN
        DELETE FROM idempotency WHERE (key_id, key) IN (
            SELECT key_id, key FROM idempotency WHERE job IN (SELECT id FROM old_jobs)
            FOR UPDATE SKIP LOCKED);
        RETURN NULL;
    END $$;

    CREATE TRIGGER jobs_forgotten AFTER DELETE ON jobs REFERENCING OLD TABLE AS old_jobs
        FOR EACH STATEMENT EXECUTE FUNCTION forget_jobs()";
