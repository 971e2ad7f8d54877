//! Batches that wait for the collector, in order, within a bound in bytes.
//!
//! Invariants:
//!  1. The batches' bytes are at most the bound, unless the only batch is the one on its way.
//!  2. The oldest batch is dropped first, but never the one on its way: its result is still due.
//!  3. Every batch that came in leaves once: taken out, or counted as dropped.
//!
//! Mutations that the tests below catch: the newest dropped first, a dropped batch not counted, a
//! batch on its way dropped.

use std::collections::VecDeque;

use bytes::Bytes;

use super::snapshot::Batch;

#[derive(Debug)]
pub struct Spool {
    batches: VecDeque<Batch>,
    bytes: usize,
    bytes_most: usize,
    /// Whether the first batch is on its way.
    is_first_sent: bool,
}

impl Spool {
    pub fn new(bytes_most: usize) -> Spool {
        Spool {
            batches: VecDeque::new(),
            bytes: 0,
            bytes_most,
            is_first_sent: false,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns whether a batch is on its way.
    pub fn is_sending(&self) -> bool {
        self.is_first_sent
    }

    /// Adds the newest batch. Returns the points of those that were dropped for it.
    pub fn add(&mut self, batch: Batch) -> u64 {
        self.bytes += batch.bytes.len();
        self.batches.push_back(batch);
        let mut dropped = 0;
        while self.bytes > self.bytes_most {
            let oldest = usize::from(self.is_first_sent);
            let Some(batch) = self.batches.remove(oldest) else {
                break;
            };
            self.bytes -= batch.bytes.len();
            dropped += batch.points;
        }
        dropped
    }

    /// Returns the oldest batch, to be sent. It stays until [`Spool::remove_sent`], or goes back to
    /// the others by [`Spool::keep_sent`].
    pub fn send(&mut self) -> Option<Bytes> {
        let first = self.batches.front().filter(|_| !self.is_first_sent)?;
        self.is_first_sent = true;
        Some(first.bytes.clone())
    }

    /// The batch on its way has its final result. Returns its points.
    pub fn remove_sent(&mut self) -> u64 {
        if !std::mem::take(&mut self.is_first_sent) {
            return 0;
        }
        let Some(batch) = self.batches.pop_front() else {
            return 0;
        };
        self.bytes -= batch.bytes.len();
        batch.points
    }

    /// The batch on its way must be sent again.
    pub fn keep_sent(&mut self) {
        self.is_first_sent = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(number: u64, length: usize) -> Batch {
        Batch {
            bytes: vec![number as u8; length].into(),
            points: 1 << number,
        }
    }

    #[test]
    fn the_oldest_goes_first_and_the_one_on_its_way_stays() {
        let mut spool = Spool::new(30);
        for number in 0..3 {
            assert_eq!(spool.add(batch(number, 10)), 0);
        }
        assert_eq!(spool.add(batch(3, 10)), 1 << 0);
        assert_eq!(spool.send().unwrap()[0], 1);
        assert!(spool.send().is_none(), "one at a time");
        assert_eq!(spool.add(batch(4, 10)), 1 << 2);
        spool.keep_sent();
        assert_eq!(spool.send().unwrap()[0], 1);
        assert_eq!(spool.remove_sent(), 1 << 1);
        assert_eq!(spool.remove_sent(), 0, "no batch is on its way");
        assert_eq!(spool.send().unwrap()[0], 3);
        assert_eq!(spool.bytes(), 20);
    }

    #[test]
    fn a_batch_beyond_the_bound_is_dropped_itself() {
        let mut spool = Spool::new(5);
        assert_eq!(spool.add(batch(1, 6)), 2);
        assert!(spool.is_empty());
        assert_eq!(spool.bytes(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(usize),
        Send,
        Remove,
        Keep,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0_usize..12).prop_map(Step::Add),
            2 => Just(Step::Send),
            1 => Just(Step::Remove),
            1 => Just(Step::Keep),
        ]
    }

    proptest! {
        #[test]
        fn every_batch_leaves_once_and_the_bytes_stay_within_the_bound(
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let mut spool = Spool::new(30);
            let (mut added, mut gone) = (0, 0);
            for step in steps {
                match step {
                    Step::Add(length) => {
                        added += 1;
                        gone += spool.add(Batch { bytes: vec![0; length].into(), points: 1 });
                    }
                    Step::Send => {
                        let is_sent = spool.is_first_sent;
                        prop_assert_eq!(spool.send().is_some(), !is_sent && !spool.is_empty());
                    }
                    Step::Remove => gone += spool.remove_sent(),
                    Step::Keep => spool.keep_sent(),
                }
                let bytes: usize = spool.batches.iter().map(|batch| batch.bytes.len()).sum();
                prop_assert_eq!(spool.bytes(), bytes);
                prop_assert!(bytes <= 30);
                prop_assert_eq!(added - gone, spool.batches.len() as u64);
            }
        }
    }
}
