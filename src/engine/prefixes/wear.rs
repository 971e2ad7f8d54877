//! The bound on the bytes that are written in the long run: a disk wears out by them.
//!
//! Owns a bucket for all tenants together, and one of half its size for each tenant that has
//! written lately: one that sends a new long prompt every second leaves half of all writes to the
//! others. Pure. The writes of a daemon that ends are not counted: they are few, and an operator's
//! doing.
//!
//! Mutations that tests catch: no bucket for all, none for a tenant, or the whole of it for one
//! (below); `wish` that does not ask (`stranger_with_many_prompts_...`).

use std::collections::HashMap;

use crate::core::Moment;
use crate::core::bucket::{Bucket, Rate};
use crate::limits::prefixes as limits;

/// A bucket counts in these.
const UNIT_BYTES: u64 = 1024;

#[derive(Debug)]
pub struct Wear {
    all: Rate,
    /// Of each tenant.
    own: Rate,
    bucket: Bucket,
    tenants: HashMap<u64, Bucket>,
}

impl Wear {
    /// Up to `burst` bytes may be written at once, and `per_minute` for ever.
    pub fn new(burst: u64, per_minute: u64) -> Wear {
        let rate = |parts: u64| {
            let units = |bytes: u64| (bytes / parts).div_ceil(UNIT_BYTES) as u32;
            Rate {
                per_minute: units(per_minute),
                burst: units(burst),
            }
        };
        Wear {
            all: rate(1),
            own: rate(2),
            bucket: Bucket::default(),
            tenants: HashMap::new(),
        }
    }

    /// Returns whether a tenant may write these bytes now.
    pub fn allows(&self, tenant: u64, bytes: usize, now: Moment) -> bool {
        let has = |bucket: &Bucket, rate: Rate| {
            bucket.level(rate, now).remaining >= units(bytes).min(rate.burst)
        };
        let own = self.tenants.get(&tenant);
        has(&self.bucket, self.all) && own.is_none_or(|own| has(own, self.own))
    }

    /// Counts bytes that a tenant is going to write.
    pub fn take(&mut self, tenant: u64, bytes: usize, now: Moment) {
        if self.tenants.len() >= limits::WRITING_KEYS_MAX {
            let own = self.own;
            let has_written = |bucket: &Bucket| bucket.level(own, now).remaining < own.burst;
            self.tenants.retain(|_, bucket| has_written(bucket));
        }
        // One that finds no place writes what is left of the bucket for all.
        let has_place = self.tenants.len() < limits::WRITING_KEYS_MAX;
        if has_place || self.tenants.contains_key(&tenant) {
            let bucket = self.tenants.entry(tenant).or_default();
            bucket.reconcile(self.own, 0, units(bytes).min(self.own.burst), now);
        }
        // `allows` was asked with an estimate, so this may be more than there is: a debt.
        self.bucket
            .reconcile(self.all, 0, units(bytes).min(self.all.burst), now);
    }
}

impl Default for Wear {
    fn default() -> Wear {
        let burst = limits::WRITTEN_BURST_BYTES;
        Wear::new(burst, limits::WRITTEN_BYTES_PER_MINUTE)
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from((bytes as u64).div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MIB: usize = 1 << 20;

    /// Returns how many writes of a mebibyte a tenant may make.
    fn writes(wear: &mut Wear, tenant: u64, now: Moment) -> usize {
        let mut writes = 0;
        while wear.allows(tenant, MIB, now) {
            wear.take(tenant, MIB, now);
            writes += 1;
        }
        writes
    }

    #[test]
    fn one_tenant_writes_half_and_all_write_no_more_than_the_rate() {
        let mut wear = Wear::new(16 << 20, 60 << 20);
        let start = Moment::from_micros(1_000_000);
        assert_eq!(writes(&mut wear, 1, start), 8);
        assert_eq!(writes(&mut wear, 2, start), 8);
        assert_eq!(writes(&mut wear, 3, start), 0);
        let later = start + Duration::from_secs(4);
        assert_eq!(
            writes(&mut wear, 1, later),
            2,
            "half of a mebibyte per second"
        );
        assert_eq!(writes(&mut wear, 3, later), 2);
        assert_eq!(writes(&mut wear, 4, later), 0);
        // A quiet hour earns no more than the burst.
        let hour = start + Duration::from_secs(3_600);
        let all: usize = (10..20).map(|tenant| writes(&mut wear, tenant, hour)).sum();
        assert_eq!(all, 16);
    }

    #[test]
    fn copy_that_is_larger_than_the_burst_takes_all_of_it() {
        let mut wear = Wear::new(4 << 20, 60 << 20);
        let now = Moment::from_micros(1_000_000);
        assert!(wear.allows(1, 9 * MIB, now));
        wear.take(1, 9 * MIB, now);
        assert!(!wear.allows(1, 1, now) && !wear.allows(2, 1, now));
    }

    /// Mutation: tenants that are never forgotten.
    #[test]
    fn tenants_that_write_no_more_are_forgotten() {
        let mut wear = Wear::default();
        let mut now = Moment::from_micros(1_000_000);
        for tenant in 0..2 * limits::WRITING_KEYS_MAX as u64 {
            now = now + Duration::from_secs(1);
            wear.take(tenant, 1, now);
        }
        assert!(wear.tenants.len() <= limits::WRITING_KEYS_MAX);
        assert!(
            wear.tenants
                .contains_key(&(2 * limits::WRITING_KEYS_MAX as u64 - 1))
        );
    }
}
