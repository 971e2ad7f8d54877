//! All rows of a store, for its export and its import: the tables, and the traits of both.
//!
//! A row is a JSON array with a value for each column. Bytes are in hex, and so are texts that a
//! database keeps as bytes. Must never name a database.
//!
//! Cache entries are not here: a cache is filled again. Counts that triggers keep are not either.

use crate::store::error::StoreError;

/// A table of which every row is exported.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [(&'static str, Kind)],
    /// The columns that its rows are in the order of.
    pub order: &'static str,
}

/// The kind of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Number,
    Text,
    Bytes,
    /// A text that may hold U+0000, which no text of PostgreSQL can.
    LongText,
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// Receives rows one by one, each as a JSON array.
pub type OnRow<'a> = &'a mut dyn FnMut(&'static Table, &str) -> Result<(), StoreError>;

/// The rows of an open store.
pub trait Transfer {
    /// Passes on all rows, as they were at one moment, in the order of [`TABLES`]. Holds a few of
    /// them at a time.
    fn export(&self, on_row: OnRow<'_>) -> Result<(), StoreError>;

    /// Adds a row, unless one that it would contradict is there. Returns whether it was added.
    fn import(&mut self, table: &'static Table, row: &[Value]) -> Result<bool, StoreError>;

    /// Returns whether a table has a row.
    fn has_rows(&self, table: &'static Table) -> Result<bool, StoreError>;
}

use Kind::{Bytes, LongText, Number, Text};

/// A table whose rows name rows of another one comes behind it.
pub static TABLES: &[Table] = &[
    Table {
        name: "keys",
        columns: &[
            ("id", Text),
            ("name", Text),
            ("scopes", Text),
            ("created_at", Number),
            ("expires_at", Number),
            ("revoked_at", Number),
            ("requests_per_minute", Number),
            ("tokens_per_minute", Number),
            ("concurrency", Number),
            ("weight", Number),
            ("allowed_models", Text),
            ("webhook_secret", Text),
            ("owner", Text),
            ("old_webhook_secret", Text),
            ("old_webhook_secret_until", Number),
        ],
        order: "id",
    },
    Table {
        name: "secrets",
        columns: &[
            ("hash", Bytes),
            ("key_id", Text),
            ("created_at", Number),
            ("valid_until", Number),
        ],
        order: "hash",
    },
    Table {
        name: "generations",
        columns: &[
            ("id", Text),
            ("key_id", Text),
            ("created_at", Number),
            ("status", Text),
            ("model", Text),
            ("language", Text),
            ("finish_reason", Text),
            ("error", Text),
            ("cached", Text),
            ("request_id", Text),
            ("prompt_tokens", Number),
            ("cached_tokens", Number),
            ("completion_tokens", Number),
            ("queue_ms", Number),
            ("prefill_ms", Number),
            ("decode_ms", Number),
            ("latency_ms", Number),
            ("digest", Bytes),
            ("prompt", LongText),
            ("text", LongText),
        ],
        // The order in which they were added, and in which the oldest go.
        order: "number",
    },
    Table {
        name: "usage",
        columns: &[
            ("key_id", Text),
            ("day", Number),
            ("generations", Number),
            ("unfinished", Number),
            ("prompt_tokens", Number),
            ("cached_tokens", Number),
            ("completion_tokens", Number),
        ],
        order: "day, key_id",
    },
    Table {
        name: "usage_hits",
        columns: &[("key_id", Text), ("day", Number), ("hits", Number)],
        order: "day, key_id",
    },
    Table {
        name: "jobs",
        columns: &[
            ("id", Bytes),
            ("key_id", Text),
            ("state", Text),
            ("attempt", Number),
            ("sequence", Number),
            ("lost", Number),
            ("lease_until", Number),
            ("created_at", Number),
            ("started_at", Number),
            ("finished_at", Number),
            ("expires_at", Number),
            ("bytes", Number),
            ("callback_url", Text),
            ("ending", Text),
            ("request", Text),
        ],
        order: "id",
    },
    Table {
        name: "job_events",
        columns: &[
            ("job", Bytes),
            ("attempt", Number),
            ("sequence", Number),
            ("kind", Text),
            ("text", LongText),
        ],
        order: "job, attempt, sequence",
    },
    Table {
        name: "callbacks",
        columns: &[
            ("job", Bytes),
            ("key_id", Text),
            ("state", Text),
            ("attempts", Number),
            ("next_at", Number),
            ("error", Text),
        ],
        order: "job",
    },
    Table {
        name: "idempotency",
        columns: &[
            ("key_id", Text),
            ("key", Text),
            ("digest", Bytes),
            ("job", Bytes),
            ("expires_at", Number),
        ],
        order: "key_id, key",
    },
];

impl Table {
    pub fn find(name: &str) -> Option<&'static Table> {
        TABLES.iter().find(|table| table.name == name)
    }

    /// Returns the names of the columns, with commas between them.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        names.join(", ")
    }
}
