//! Keys of idempotency go with their jobs.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.

/// The SQL of the step. Before, a key could outlive its job, and nothing bounded the number of such
/// rows. The trigger removes them whatever program deletes the job. It finds them by an index,
/// since the primary key begins with the API key.
pub const TABLES: &str = "
    DELETE FROM idempotency WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id = idempotency.job);

    CREATE INDEX idempotency_of_jobs ON idempotency (job);

    CREATE TRIGGER job_forgotten AFTER DELETE ON jobs BEGIN
        DELETE FROM idempotency WHERE job = old.id;
    END";
