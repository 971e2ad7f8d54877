//! How much memory all connections together may hold: `limits.max_buffered`, or a part of the
//! memory that the machine and its control groups allow.
//!
//! Mutation that the test below catches: `max_body` is ignored
//! (`the_bound_follows_memory_and_bodies`).

use crate::config::Config;
use crate::limits::supervisor as limits;
use crate::os::room;

/// Returns the bound of the account of buffered memory.
pub fn bound(config: &Config) -> usize {
    match config.limits.max_buffered {
        0 => default_bound(room::allowed_memory(), config.limits.max_body),
        bytes => bytes,
    }
}

fn default_bound(memory: Option<u64>, max_body: usize) -> usize {
    let part = memory.unwrap_or(0) / limits::BUFFERED_MEMORY_DIVISOR;
    let part = usize::try_from(part).unwrap_or(usize::MAX);
    let bound = part.clamp(limits::BUFFERED_BYTES_MIN, limits::BUFFERED_BYTES_MAX);
    bound.max(max_body.saturating_mul(limits::BUFFERED_BODIES_FACTOR_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_follows_memory_and_bodies() {
        const MIB: usize = 1 << 20;
        let of_gib = |gib: u64| default_bound(Some(gib << 30), MIB);
        assert_eq!(of_gib(64), 48 * MIB);
        assert_eq!(of_gib(2), 32 * MIB);
        assert_eq!(of_gib(0), 16 * MIB);
        assert_eq!(default_bound(None, MIB), 16 * MIB);
        assert_eq!(default_bound(Some(1 << 40), 100 * MIB), 400 * MIB);
        let mut config = Config::default();
        assert!(bound(&config) >= 16 * MIB);
        config.limits.max_buffered = 5 * MIB;
        assert_eq!(bound(&config), 5 * MIB);
    }
}
