//! The table of requests that the cache has served, by key and day.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.

/// The SQL of the step. Programs of the step before do not know the table when they erase a key, so
/// a trigger removes its rows.
pub const TABLES: &str = "
    CREATE TABLE usage_hits (
        key_id TEXT NOT NULL,
        day    BIGINT NOT NULL,
        hits   BIGINT NOT NULL,
        PRIMARY KEY (key_id, day)
    );

    CREATE FUNCTION remove_hits_of_key() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM usage_hits WHERE key_id = old.id;
        RETURN NULL;
    END $$;

    CREATE TRIGGER hits_of_key_deleted AFTER DELETE ON keys
        FOR EACH ROW EXECUTE FUNCTION remove_hits_of_key()";
