//! The tables of cache entries.
//!
//! Owns one step of the schema's history, so it must never change: later changes are later steps.

/// The SQL of the step. `cache_totals` has what each tenant's entries take: triggers keep it, so
/// that the bound costs the number of tenants and not that of entries.
pub const TABLES: &str = "
    CREATE TABLE cache_entries (
        digest     BLOB PRIMARY KEY CHECK (length(digest) = 32),
        tenant     INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        used_at    INTEGER NOT NULL,
        hits       INTEGER NOT NULL,
        bytes      INTEGER NOT NULL,
        value      BLOB NOT NULL
    ) STRICT;

    CREATE INDEX cache_entries_by_end ON cache_entries (expires_at);
    CREATE INDEX cache_entries_by_hits ON cache_entries (hits, digest);
    CREATE INDEX cache_entries_of_tenants ON cache_entries (tenant, used_at, digest, bytes);

    CREATE TABLE cache_totals (
        tenant INTEGER PRIMARY KEY,
        bytes  INTEGER NOT NULL
    ) STRICT;

    CREATE INDEX cache_totals_by_bytes ON cache_totals (bytes);

    CREATE TRIGGER cache_entry_added AFTER INSERT ON cache_entries BEGIN
        INSERT INTO cache_totals VALUES (new.tenant, new.bytes)
        ON CONFLICT (tenant) DO UPDATE SET bytes = bytes + excluded.bytes;
    END;
    CREATE TRIGGER cache_entry_resized AFTER UPDATE OF bytes ON cache_entries BEGIN
        UPDATE cache_totals SET bytes = bytes + new.bytes - old.bytes WHERE tenant = new.tenant;
    END;
    CREATE TRIGGER cache_entry_removed AFTER DELETE ON cache_entries BEGIN
        UPDATE cache_totals SET bytes = bytes - old.bytes WHERE tenant = old.tenant;
        DELETE FROM cache_totals WHERE tenant = old.tenant AND bytes <= 0;
    END";
