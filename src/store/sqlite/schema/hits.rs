//! The table of requests that the cache has served, by key and day.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.

/// The SQL of the step. Not a column of `usage`, because programs of the step before insert rows
/// there without naming the columns. They do not know this table when they erase a key, so a
/// trigger removes its rows.
pub const TABLES: &str = "
    CREATE TABLE usage_hits (
        key_id TEXT NOT NULL,
        day    INTEGER NOT NULL,
        hits   INTEGER NOT NULL,
        PRIMARY KEY (key_id, day)
    ) STRICT, WITHOUT ROWID;

    CREATE TRIGGER hits_of_key_deleted AFTER DELETE ON keys BEGIN
        DELETE FROM usage_hits WHERE key_id = old.id;
    END";
