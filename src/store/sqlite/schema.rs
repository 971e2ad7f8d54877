//! The schema of the database: its history, and which programs can work with it.
//!
//! Owns the steps from one version to the next, and the two numbers that programs compare. Must
//! never change or remove a step that was released: append.
//!
//! `version` is the number of steps that the database has seen. `min_reader` is the lowest version
//! of a program that can work with it, where a program's version is the number of steps it knows.
//! So daemons that share a database are upgraded one by one: the first new one applies its steps,
//! and the others continue as long as their version is at least `min_reader`. A step that only adds
//! columns with a default leaves `min_reader` as it was. A step must raise it if an older program
//! would write rows that a newer one misreads, or would grant more than a column allows.
//!
//! Both numbers are rows of `schema`. SQLite's `user_version` repeats `min_reader`, because
//! programs of version 1 know no such rows, and refuse a database whose `user_version` is above 1.
//!
//! Mutations that tests catch: `user_version` set to `version`
//! (`programs_of_the_first_version_...`), a step without its `min_reader` row
//! (`a_program_works_while_...`).

use rusqlite::Connection;

mod callbacks;
mod entries;
mod forgotten;
mod generations;
mod hits;
mod jobs;

/// One step of the schema's history.
#[derive(Clone, Copy)]
pub struct Step {
    pub sql: &'static str,
    /// The lowest version of a program that can work with the database from this step on.
    pub min_reader: usize,
}

/// The history.
pub const STEPS: &[Step] = &[
    Step {
        sql: "
    CREATE TABLE keys (
        id                  TEXT PRIMARY KEY,
        name                TEXT NOT NULL,
        scopes              TEXT NOT NULL,
        created_at          INTEGER NOT NULL,
        expires_at          INTEGER,
        revoked_at          INTEGER,
        requests_per_minute INTEGER,
        tokens_per_minute   INTEGER,
        concurrency         INTEGER
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE secrets (
        hash        BLOB PRIMARY KEY CHECK (length(hash) = 32),
        key_id      TEXT NOT NULL REFERENCES keys (id),
        created_at  INTEGER NOT NULL,
        valid_until INTEGER
    ) STRICT, WITHOUT ROWID;

    CREATE UNIQUE INDEX current_secrets ON secrets (key_id) WHERE valid_until IS NULL;
    CREATE INDEX secrets_of_keys ON secrets (key_id)",
        min_reader: 1,
    },
    // Programs of today use `weight` alone. The other columns are empty: the program that begins to
    // use `allowed_models` needs a step that raises `min_reader`, since an older daemon would let
    // the key use every model.
    Step {
        sql: "
    CREATE TABLE schema (
        name  TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    ALTER TABLE keys ADD COLUMN weight INTEGER NOT NULL DEFAULT 1 CHECK (weight >= 1);
    ALTER TABLE keys ADD COLUMN allowed_models TEXT;
    ALTER TABLE keys ADD COLUMN webhook_secret TEXT;
    ALTER TABLE keys ADD COLUMN owner TEXT",
        min_reader: 1,
    },
    // `changes` has the readers. A key without a secret is in no ring, so its insertion is not in
    // the history. The first row is there because a reader needs one to remember. 10,000 is
    // `limits::store::HISTORY_ENTRIES`.
    Step {
        sql: "
    CREATE TABLE key_changes (
        number INTEGER PRIMARY KEY,
        key_id TEXT NOT NULL,
        token  INTEGER NOT NULL DEFAULT (random())
    ) STRICT;

    INSERT INTO key_changes (key_id) VALUES ('');

    CREATE TRIGGER history_is_bounded AFTER INSERT ON key_changes BEGIN
        DELETE FROM key_changes WHERE number <= new.number - 10000;
    END;
    CREATE TRIGGER key_updated AFTER UPDATE ON keys BEGIN
        INSERT INTO key_changes (key_id) VALUES (old.id), (new.id);
    END;
    CREATE TRIGGER key_deleted AFTER DELETE ON keys BEGIN
        INSERT INTO key_changes (key_id) VALUES (old.id);
    END;
    CREATE TRIGGER secret_inserted AFTER INSERT ON secrets BEGIN
        INSERT INTO key_changes (key_id) VALUES (new.key_id);
    END;
    CREATE TRIGGER secret_updated AFTER UPDATE ON secrets BEGIN
        INSERT INTO key_changes (key_id) VALUES (old.key_id), (new.key_id);
    END;
    CREATE TRIGGER secret_deleted AFTER DELETE ON secrets BEGIN
        INSERT INTO key_changes (key_id) VALUES (old.key_id);
    END",
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
        sql: forgotten::TABLES,
        min_reader: 1,
    },
];

impl Step {
    /// Makes `version` out of the one before. All of it is in the caller's transaction.
    pub fn apply(&self, connection: &Connection, version: usize) -> rusqlite::Result<()> {
        connection.execute_batch(self.sql)?;
        if version >= FIRST_WITH_ROWS {
            for (name, value) in [("version", version), ("min_reader", self.min_reader)] {
                connection.execute(
                    "INSERT OR REPLACE INTO schema (name, value) VALUES (?1, ?2)",
                    (name, value as i64),
                )?;
            }
        }
        connection.pragma_update(None, "user_version", self.min_reader as i64)
    }
}

/// The version that brought the table `schema`.
const FIRST_WITH_ROWS: usize = 2;

/// The two numbers of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    /// 0: the database is new, or not complete yet.
    pub version: usize,
    pub min_reader: usize,
}

impl Schema {
    pub fn read(connection: &Connection) -> rusqlite::Result<Schema> {
        let user_version =
            connection.pragma_query_value(None, "user_version", |row| row.get(0).map(number))?;
        let has_rows: bool = connection.query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'schema')",
            (),
            |row| row.get(0),
        )?;
        if !has_rows {
            return Ok(Schema {
                version: user_version,
                min_reader: user_version,
            });
        }
        let value = |name: &str| {
            let sql = "SELECT value FROM schema WHERE name = ?1";
            connection.query_row(sql, [name], |row| row.get(0).map(number))
        };
        Ok(Schema {
            version: value("version")?,
            min_reader: value("min_reader")?,
        })
    }
}

/// No number of ours is negative; converted to the largest number it is refused.
pub(super) fn number(stored: i64) -> usize {
    usize::try_from(stored).unwrap_or(usize::MAX)
}
