//! Samples the process's use of resources for `/metrics`, and returns free memory to the kernel.
//!
//! Owns the time of the last sample and the memory held after the last return. Reading `/proc` and
//! returning memory may take milliseconds, which the supervisor can afford but a reactor cannot.
//!
//! Mutation that a test catches: `is_due` without comparing with `before`
//! (`memory_goes_back_once_a_burst_is_over`).

use std::time::Instant;

use super::metrics::UsageCollector;
use crate::limits::supervisor as limits;
use crate::os::memory;
use crate::os::process::Usage;
use crate::telemetry::metrics::Metrics;

pub struct Household {
    sampled_at: Option<Instant>,
    listed_at: Option<Instant>,
    usage: Usage,
    published: UsageCollector,
    returns: Returns,
}

/// Decides when to return free memory.
#[derive(Debug, Default)]
struct Returns {
    last: Option<Instant>,
    /// Anonymous memory after the last return, or the least since.
    floor: u64,
    /// Anonymous memory at the previous check.
    before: u64,
}

impl Household {
    pub fn new(metrics: &Metrics) -> Household {
        let published = UsageCollector::default();
        metrics.register_collector(Box::new(published.clone()));
        Household {
            sampled_at: None,
            listed_at: None,
            usage: Usage::default(),
            published,
            returns: Returns::default(),
        }
    }

    /// Must be called at each tick of the supervisor.
    pub fn look(&mut self, now: Instant) {
        let is_early = |at: Option<Instant>, interval| {
            at.is_some_and(|at| now.saturating_duration_since(at) < interval)
        };
        if is_early(self.sampled_at, limits::TICK) {
            return;
        }
        self.sampled_at = Some(now);
        let may_list = !is_early(self.listed_at, limits::DESCRIPTORS_LISTED_INTERVAL);
        if may_list {
            self.listed_at = Some(now);
        }
        let known = self.usage.open_descriptors;
        self.usage = Usage::now(may_list);
        self.usage.open_descriptors = self.usage.open_descriptors.or(known);
        self.published.set(self.usage);
        let anonymous = self.usage.anonymous_bytes.unwrap_or(0);
        if self.returns.is_due(anonymous, now) {
            memory::trim();
            let left = Usage::now(false).anonymous_bytes.unwrap_or(0);
            self.returns.handle_return(left, now);
            let freed = anonymous.saturating_sub(left) >> 20;
            log::debug!("returned {freed} MiB of free memory to the kernel");
        }
    }
}

impl Returns {
    /// Returns whether enough memory has come together since the last return and has stopped
    /// growing: while it grows, it is in use.
    fn is_due(&mut self, anonymous: u64, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.before, anonymous);
        self.floor = match self.floor {
            0 => anonymous,
            floor => floor.min(anonymous),
        };
        let is_rested = self.last.is_none_or(|last| {
            now.saturating_duration_since(last) >= limits::MEMORY_RETURN_INTERVAL
        });
        is_rested
            && anonymous <= before
            && anonymous >= self.floor + limits::MEMORY_RETURN_BYTES_MIN
    }

    fn handle_return(&mut self, left: u64, now: Instant) {
        self.last = Some(now);
        self.floor = left;
        self.before = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_goes_back_once_a_burst_is_over() {
        let start = Instant::now();
        let at = |seconds: u32| start + seconds * limits::TICK;
        let mut returns = Returns::default();
        assert!(!returns.is_due(13 * MIB, at(0)));
        assert!(!returns.is_due(100 * MIB, at(1)), "it grows");
        assert!(!returns.is_due(300 * MIB, at(2)), "it grows");
        assert!(returns.is_due(290 * MIB, at(3)));
        returns.handle_return(20 * MIB, at(3));
        assert!(!returns.is_due(21 * MIB, at(20)));
        // A return that freed nothing is not repeated again and again.
        assert!(!returns.is_due(80 * MIB, at(21)));
        assert!(returns.is_due(80 * MIB, at(22)));
        returns.handle_return(80 * MIB, at(22));
        assert!((23..100).all(|second| !returns.is_due(80 * MIB, at(second))));
    }
}
