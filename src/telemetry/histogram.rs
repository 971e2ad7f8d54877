//! A histogram of durations that costs two relaxed additions.
//!
//! Owns one atomic per bucket and one for the sum. Never locks, and never allocates after its
//! creation: the reactor observes several values per request and one per turn of the loop, while
//! another thread may be reading. (`prometheus-client`'s own histogram takes a mutex, which a
//! scrape holds while it clones the buckets.)
//!
//! Invariants:
//!  1. An observation is counted in exactly one bucket; the count is the buckets' sum, so count and
//!     `+Inf` agree in every scrape. Only the sum may lag behind by observations under way.
//!  2. A bucket's bound is inclusive (`le`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A cheap handle: clones share the same buckets.
#[derive(Clone, Debug)]
pub struct Histogram {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Ascending. Microseconds, because integers compare in a cycle and add without rounding.
    bounds_us: &'static [u64],
    /// One more than there are bounds: the last has none.
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

impl Histogram {
    /// `bounds_us`: the buckets' inclusive upper bounds in microseconds, ascending.
    pub fn new(bounds_us: &'static [u64]) -> Histogram {
        debug_assert!(bounds_us.is_sorted_by(|left, right| left < right));
        let buckets = (0..=bounds_us.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram {
            inner: Arc::new(Inner {
                bounds_us,
                buckets,
                sum_ns: AtomicU64::new(0),
            }),
        }
    }

    pub fn observe(&self, duration: Duration) {
        // 2^64 ns are 584 years.
        let nanoseconds = duration.as_nanos().min(u64::MAX as u128) as u64;
        let bounds_us = self.inner.bounds_us;
        // Rounded up: 10.5 us exceed a bound of 10 us.
        let microseconds = nanoseconds.div_ceil(1_000);
        let index = bounds_us.partition_point(|bound_us| *bound_us < microseconds);
        // Relaxed: the numbers guard nothing, and a scrape is only a sample.
        self.inner.buckets[index].fetch_add(1, Ordering::Relaxed);
        self.inner.sum_ns.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        let loads = self.inner.buckets.iter();
        loads.map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let inner = &*self.inner;
        let bounds = inner.bounds_us.iter();
        let bounds = bounds.map(|bound_us| *bound_us as f64 / 1e6);
        let counts = inner.buckets.iter();
        let buckets: Vec<(f64, u64)> = bounds
            .chain([f64::INFINITY])
            .zip(counts.map(|bucket| bucket.load(Ordering::Relaxed)))
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = inner.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[test]
    fn bounds_are_inclusive_and_buckets_cumulative() {
        let histogram = Histogram::new(&[10, 1_000]);
        histogram.observe(Duration::ZERO);
        histogram.observe(Duration::from_micros(10));
        histogram.observe(Duration::from_nanos(10_001));
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_secs(2));
        assert_eq!(histogram.count(), 5);

        let mut registry = Registry::default();
        registry.register("turn_seconds", "Turns", histogram);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "turn_seconds_bucket{le=\"0.00001\"} 2\n",
            "turn_seconds_bucket{le=\"0.001\"} 4\n",
            "turn_seconds_bucket{le=\"+Inf\"} 5\n",
            "turn_seconds_count 5\n",
            "turn_seconds_sum 2.001020001\n",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn a_duration_beyond_all_clocks_is_counted() {
        let histogram = Histogram::new(&[1]);
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.count(), 1);
    }
}
