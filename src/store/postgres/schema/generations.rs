//! The tables of generation records and of usage.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.

/// The SQL of the step. Ids are compared by their bytes, whatever the language of the database, so
/// that they are in the order of their times. A prompt and a text are bytes, because a text of
/// PostgreSQL cannot hold U+0000.
pub const TABLES: &str = "
    CREATE TABLE generations (
        number            BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id                TEXT COLLATE \"C\" NOT NULL UNIQUE,
        key_id            TEXT NOT NULL,
        created_at        BIGINT NOT NULL,
        status            TEXT NOT NULL,
        model             TEXT,
        language          TEXT,
        finish_reason     TEXT,
        error             TEXT,
        cached            TEXT NOT NULL,
        request_id        TEXT NOT NULL,
        prompt_tokens     BIGINT NOT NULL,
        cached_tokens     BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        queue_ms          BIGINT NOT NULL,
        prefill_ms        BIGINT NOT NULL,
        decode_ms         BIGINT NOT NULL,
        latency_ms        BIGINT NOT NULL,
        digest            BYTEA NOT NULL,
        prompt            BYTEA,
        text              BYTEA
    );

    CREATE INDEX generations_of_keys ON generations (key_id, created_at, id);
    CREATE INDEX generations_of_keys_by_status ON generations (key_id, status, created_at, id);

    CREATE TABLE usage (
        key_id            TEXT NOT NULL,
        day               BIGINT NOT NULL,
        generations       BIGINT NOT NULL,
        unfinished        BIGINT NOT NULL,
        prompt_tokens     BIGINT NOT NULL,
        cached_tokens     BIGINT NOT NULL,
        completion_tokens BIGINT NOT NULL,
        PRIMARY KEY (key_id, day)
    )";
