//! The table of cache entries.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.
//!
//! Unlike SQLite, it has no totals by tenant: each entry would change its tenant's row, and so hold
//! back all other daemons until its transaction ends. The bound sums an index instead.

/// The SQL of the step.
pub const TABLES: &str = "
    CREATE TABLE cache_entries (
        digest     BYTEA PRIMARY KEY CHECK (length(digest) = 32),
        tenant     BIGINT NOT NULL,
        created_at BIGINT NOT NULL,
        expires_at BIGINT NOT NULL,
        used_at    BIGINT NOT NULL,
        hits       BIGINT NOT NULL,
        bytes      BIGINT NOT NULL,
        value      BYTEA NOT NULL
    );

    CREATE INDEX cache_entries_by_end ON cache_entries (expires_at);
    CREATE INDEX cache_entries_by_hits ON cache_entries (hits, digest);
    CREATE INDEX cache_entries_of_tenants ON cache_entries (tenant, used_at, digest)
        INCLUDE (bytes)";
