//! The tables of generation records and of usage.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.

/// The SQL of the step. `created_at` is the time in `id`, so that both are in one order; it has a
/// column for the bounds of a time. Rows are removed in the order in which they were added, which
/// needs no index beside the table itself.
pub const TABLES: &str = "
    CREATE TABLE generations (
        number            INTEGER PRIMARY KEY,
        id                TEXT NOT NULL UNIQUE,
        key_id            TEXT NOT NULL,
        created_at        INTEGER NOT NULL,
        status            TEXT NOT NULL,
        model             TEXT,
        language          TEXT,
        finish_reason     TEXT,
        error             TEXT,
        cached            TEXT NOT NULL,
        request_id        TEXT NOT NULL,
        prompt_tokens     INTEGER NOT NULL,
        cached_tokens     INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        queue_ms          INTEGER NOT NULL,
        prefill_ms        INTEGER NOT NULL,
        decode_ms         INTEGER NOT NULL,
        latency_ms        INTEGER NOT NULL,
        digest            BLOB NOT NULL,
        prompt            TEXT,
        text              TEXT
    ) STRICT;

    CREATE INDEX generations_of_keys ON generations (key_id, created_at, id);
    CREATE INDEX generations_of_keys_by_status ON generations (key_id, status, created_at, id);

    CREATE TABLE usage (
        key_id            TEXT NOT NULL,
        day               INTEGER NOT NULL,
        generations       INTEGER NOT NULL,
        unfinished        INTEGER NOT NULL,
        prompt_tokens     INTEGER NOT NULL,
        cached_tokens     INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        PRIMARY KEY (key_id, day)
    ) STRICT, WITHOUT ROWID";
