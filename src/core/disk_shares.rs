//! How the budget of the state folder is divided. Pure.
//!
//! The folder has one budget, `store.max_size`, and five kinds of files:
//!
//! ```text
//!   |<---------------------------- budget ---------------------------->|
//!   | log | other | own words |   prefixes    |         database       |
//!     1/8   1 MiB   1/16, at    as configured,  the rest: jobs at most
//!                   most 64 MiB at most half    half of it, entries of
//!                                               the cache a quarter, and
//!                                               all other rows
//! ```
//!
//! Records of generations have no share of their own: they use what the others leave, and give way.
//! Without a database in the folder the prefixes may have all but the shares of the own words and
//! of the others.
//!
//! # Invariants
//!
//!  1. The shares add up to the budget.
//!  2. The records give way before the database's share is used up: there is room for a transaction
//!     beyond [`DiskShares::records_yield_at`].
//!  3. Jobs and entries together leave a quarter of the database.
//!
//! Mutations that the tests below catch: a share that is rounded up, prefixes or own words that
//! are not taken off the database, a log of its own beside the budget, a log without room for its
//! index, a least budget that is one off.

use crate::limits::store as limits;

/// See the file's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskShares {
    /// The database's file. 0 without one.
    pub database: u64,
    /// Its write-ahead log, and the index of that.
    pub log: u64,
    /// Those of the tenants.
    pub prefixes: u64,
    /// The computed states of the daemon's own words, which are kept without `cache.prefixes`.
    pub own_words: u64,
    /// The key of the first start, and small files beside the prefixes.
    pub other: u64,
}

impl DiskShares {
    /// Divides a budget. More prefixes than there may be count as the most.
    pub fn of(budget: u64, prefixes: u64, has_database: bool) -> DiskShares {
        let other = limits::OTHER_FILES_BYTES.min(budget);
        let prefixes = prefixes.min(prefixes_max(budget, has_database));
        let log = match has_database {
            true => budget / limits::LOG_SIZE_DIVISOR,
            false => 0,
        };
        let own_words = own_words(budget);
        let rest = budget.saturating_sub(log + other + own_words + prefixes);
        DiskShares {
            database: if has_database { rest } else { 0 },
            log,
            prefixes,
            own_words,
            other: if has_database { other } else { other + rest },
        }
    }

    pub fn sum(&self) -> u64 {
        self.database + self.log + self.prefixes + self.own_words + self.other
    }

    /// The log's file alone. The index has 8 bytes for each page, in steps of 32 KiB.
    pub fn log_file(&self) -> u64 {
        let index = (self.log / limits::LOG_INDEX_DIVISOR).max(limits::LOG_INDEX_BYTES_MIN);
        self.log.saturating_sub(index)
    }

    /// The most that one transaction writes: the log has room for two.
    pub fn transaction(&self) -> u64 {
        self.log_file() / 2
    }

    /// Above this size of the database's data, records are removed.
    pub fn records_yield_at(&self) -> u64 {
        self.database.saturating_sub(self.transaction())
    }

    /// The most that jobs may have.
    pub fn jobs(&self) -> u64 {
        self.database / limits::JOBS_SIZE_DIVISOR
    }

    /// The most that entries of the cache may have.
    pub fn entries(&self) -> u64 {
        self.database / limits::ENTRIES_SIZE_DIVISOR
    }
}

/// Bytes of the two kinds of computed states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixBytes {
    /// Of the tenants' prefixes.
    pub prefixes: u64,
    pub own_words: u64,
}

/// Returns the share of own words.
fn own_words(budget: u64) -> u64 {
    (budget / limits::OWN_WORDS_SIZE_DIVISOR).min(limits::OWN_WORDS_BYTES_MAX)
}

/// Returns the most that prefixes may have of a budget.
pub fn prefixes_max(budget: u64, has_database: bool) -> u64 {
    match has_database {
        true => budget / limits::PREFIXES_SIZE_DIVISOR,
        false => budget.saturating_sub(limits::OTHER_FILES_BYTES + own_words(budget)),
    }
}

/// Returns the least budget in which prefixes may have this much.
pub fn budget_for_prefixes(prefixes: u64, has_database: bool) -> u64 {
    if has_database {
        return prefixes.saturating_mul(limits::PREFIXES_SIZE_DIVISOR);
    }
    let without_words = prefixes.saturating_add(limits::OTHER_FILES_BYTES);
    // Of a budget of 16 parts, 15 are left; of the next byte, all of it.
    let words = (without_words - 1) / (limits::OWN_WORDS_SIZE_DIVISOR - 1);
    without_words.saturating_add(words.min(limits::OWN_WORDS_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::config::{CACHE_PREFIXES_BYTES, STORE_BYTES};
    use crate::limits::jobs::KEY_BYTES_DIVISOR;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_add_up_and_leave_room_for_each(
            budget in STORE_BYTES,
            prefixes in CACHE_PREFIXES_BYTES,
            has_database: bool,
        ) {
            let shares = DiskShares::of(budget, prefixes, has_database);
            prop_assert_eq!(shares.sum(), budget);
            prop_assert_eq!(shares.prefixes, prefixes.min(prefixes_max(budget, has_database)));
            prop_assert!(shares.other >= limits::OTHER_FILES_BYTES);
            prop_assert!(limits::LOG_SIZE_DIVISOR * shares.log <= budget);
            let least = budget_for_prefixes(prefixes, has_database);
            prop_assert!(prefixes_max(least, has_database) >= prefixes);
            prop_assert!(prefixes == 0 || prefixes_max(least - 1, has_database) < prefixes);
            if !has_database {
                prop_assert_eq!((shares.database, shares.log), (0, 0));
                return Ok(());
            }
            prop_assert!(shares.database >= budget / 4, "{shares:?}");
            prop_assert!(2 * shares.transaction() <= shares.log_file());
            prop_assert!(shares.log_file() < shares.log);
            prop_assert!(shares.records_yield_at() + shares.transaction() == shares.database);
            prop_assert!(shares.jobs() + shares.entries() <= shares.database / 4 * 3 + 3);
            // All jobs of one key fit into the log, so the largest of them does.
            prop_assert!(shares.jobs() / KEY_BYTES_DIVISOR <= shares.log_file());
        }
    }

    /// In steps of a byte, around each multiple of the divisor.
    #[test]
    fn the_least_budget_for_prefixes_is_the_least() {
        for prefixes in 1..100 {
            for has_database in [false, true] {
                let least = budget_for_prefixes(prefixes, has_database);
                assert!(prefixes_max(least, has_database) >= prefixes, "{prefixes}");
                assert!(
                    prefixes_max(least - 1, has_database) < prefixes,
                    "{prefixes}"
                );
            }
        }
    }

    #[test]
    fn the_log_has_room_for_its_index() {
        // Of a share of 2 MiB the index takes the least it can, and of 128 MiB its part.
        for (budget, index) in [(16 << 20, 32 << 10), (1 << 30, 512 << 10)] {
            let shares = DiskShares::of(budget, 0, true);
            assert_eq!(shares.log - shares.log_file(), index);
        }
    }

    #[test]
    fn the_defaults_leave_most_of_the_budget_to_records() {
        let shares = DiskShares::of(1 << 30, 0, true);
        let expected = DiskShares {
            database: 831 << 20,
            log: 128 << 20,
            prefixes: 0,
            own_words: 64 << 20,
            other: 1 << 20,
        };
        assert_eq!(shares, expected);
        assert_eq!(prefixes_max(1 << 30, true), 512 << 20);
        assert_eq!(prefixes_max(1 << 30, false), 959 << 20);
        let small = DiskShares::of(16 << 20, 8 << 20, true);
        assert_eq!((small.own_words, small.database), (1 << 20, 4 << 20));
        assert_eq!(DiskShares::of(1 << 50, 0, true).own_words, 64 << 20);
        assert_eq!(DiskShares::of(0, 1, true).sum(), 0);
    }
}
