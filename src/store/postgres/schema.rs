//! The schema of the database: its history, and which programs can work with it.
//!
//! Owns the steps from one version to the next, and the two numbers that programs compare, whose
//! meaning is that of [SQLite's schema]. Must never change or remove a step that was released:
//! append.
//!
//! [SQLite's schema]: crate::store::sqlite

mod callbacks;
mod counts;
mod entries;
mod forgotten;
mod generations;
mod hits;
mod jobs;

use super::session::Session;
use crate::store::error::StoreError;

/// One step of the schema's history.
#[derive(Clone, Copy)]
pub struct Step {
    pub sql: &'static str,
    /// The lowest version of a program that can work with the database from this step on.
    pub min_reader: usize,
}

/// The history.
///
/// Why a change takes a lock before its number: a transaction that took its number first could be
/// committed after a later one, and a reader that has seen the later one would never see it. The
/// lock is held up to the commit, so numbers become visible in their order. A sequence leaves gaps
/// where a transaction was rolled back; nothing counts on their absence. 10,000 is
/// `limits::store::HISTORY_ENTRIES`, and 1633775723 the bytes `agkc`.
pub const STEPS: &[Step] = &[
    Step {
        sql: "
    CREATE TABLE keys (
        id                  TEXT PRIMARY KEY,
        name                TEXT NOT NULL,
        scopes              TEXT NOT NULL,
        created_at          BIGINT NOT NULL,
        expires_at          BIGINT,
        revoked_at          BIGINT,
        requests_per_minute BIGINT,
        tokens_per_minute   BIGINT,
        concurrency         BIGINT,
        weight              BIGINT NOT NULL DEFAULT 1 CHECK (weight >= 1),
        allowed_models      TEXT,
        webhook_secret      TEXT,
        owner               TEXT
    );

    CREATE TABLE secrets (
        hash        BYTEA PRIMARY KEY CHECK (length(hash) = 32),
        key_id      TEXT NOT NULL REFERENCES keys (id),
        created_at  BIGINT NOT NULL,
        valid_until BIGINT
    );

    CREATE UNIQUE INDEX current_secrets ON secrets (key_id) WHERE valid_until IS NULL;
    CREATE INDEX secrets_of_keys ON secrets (key_id);

    CREATE TABLE key_changes (
        number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        key_id TEXT NOT NULL,
        token  BIGINT NOT NULL DEFAULT floor(random() * 9007199254740992)::bigint
    );

    INSERT INTO key_changes (key_id) VALUES ('');

    CREATE FUNCTION note_key_changes(ids TEXT[]) RETURNS VOID LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(1633775723);
        INSERT INTO key_changes (key_id) SELECT DISTINCT unnest(ids);
    END $$;

    CREATE FUNCTION bound_history() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        DELETE FROM key_changes
            WHERE number <= (SELECT max(number) FROM key_changes) - 10000;
        RETURN NULL;
    END $$;

    CREATE FUNCTION note_key() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM note_key_changes(CASE TG_OP
            WHEN 'UPDATE' THEN ARRAY[old.id, new.id] ELSE ARRAY[old.id] END);
        RETURN NULL;
    END $$;

    CREATE FUNCTION note_secret() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM note_key_changes(CASE TG_OP
            WHEN 'INSERT' THEN ARRAY[new.key_id]
            WHEN 'UPDATE' THEN ARRAY[old.key_id, new.key_id]
            ELSE ARRAY[old.key_id] END);
        RETURN NULL;
    END $$;

    CREATE TRIGGER history_is_bounded AFTER INSERT ON key_changes
        FOR EACH STATEMENT EXECUTE FUNCTION bound_history();
    CREATE TRIGGER key_changed AFTER UPDATE OR DELETE ON keys
        FOR EACH ROW EXECUTE FUNCTION note_key();
    CREATE TRIGGER secret_changed AFTER INSERT OR UPDATE OR DELETE ON secrets
        FOR EACH ROW EXECUTE FUNCTION note_secret()",
        min_reader: 1,
    },
    Step {
        sql: jobs::TABLES,
        min_reader: 1,
    },
    Step {
        sql: generations::TABLES,
        min_reader: 1,
    },
    Step {
        sql: entries::TABLES,
        min_reader: 1,
    },
    Step {
        sql: callbacks::TABLES,
        min_reader: 1,
    },
    Step {
        sql: hits::TABLES,
        min_reader: 1,
    },
    Step {
        sql: counts::TABLES,
        min_reader: 1,
    },
    Step {
        sql: forgotten::TABLES,
        min_reader: 1,
    },
];

impl Step {
    /// Makes `version` out of the one before. All of it is in the caller's transaction.
    pub fn apply(&self, session: &Session, version: usize) -> Result<(), StoreError> {
        session.batch(self.sql)?;
        session.batch(
            "CREATE TABLE IF NOT EXISTS schema (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
        )?;
        for (name, value) in [("version", version), ("min_reader", self.min_reader)] {
            session.execute(
                "INSERT INTO schema (name, value) VALUES ($1, $2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                &[&name, &(value as i64)],
            )?;
        }
        Ok(())
    }
}

/// The two numbers of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// 0: the database is empty.
    pub version: usize,
    pub min_reader: usize,
}

impl Schema {
    pub fn read(session: &Session) -> Result<Schema, StoreError> {
        // Not `to_regclass`: it asks a cache, which learns of the tables of others only when a
        // table is opened, and waiting for the advisory lock opens none.
        let sql = "SELECT EXISTS (SELECT 1 FROM pg_class WHERE relname = 'schema'
                                  AND relkind = 'r' AND pg_table_is_visible(oid))";
        if !session.value::<bool>(sql, &[])? {
            return Ok(Schema {
                version: 0,
                min_reader: 0,
            });
        }
        let sql = "SELECT (SELECT value FROM schema WHERE name = 'version'),
                          (SELECT value FROM schema WHERE name = 'min_reader')";
        let numbers = session.query(sql, &[], |row| {
            Ok(Schema {
                version: row.try_get(0).map(number)?,
                min_reader: row.try_get(1).map(number)?,
            })
        })?;
        Ok(numbers[0])
    }
}

/// No number of ours is negative; converted to the largest number it is refused.
fn number(stored: i64) -> usize {
    usize::try_from(stored).unwrap_or(usize::MAX)
}
