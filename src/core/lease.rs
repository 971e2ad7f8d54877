//! A bucket that several daemons share, without any of them waiting for another.
//!
//! Owns what this daemon has taken and the common count has not been told yet. Pure: the common
//! count is somewhere else, and its reply is an argument.
//!
//! Each daemon has a bucket of its own, which mirrors the common one. A request is taken from the
//! mirror at once, and reported afterwards; the reply corrects the mirror. A *lease* is what a
//! daemon may take before the common count has heard of it: at its end the next request is refused
//! until the count replies. One report per bucket is under way at a time, with all that was taken
//! since the one before.
//!
//! Invariants:
//!  1. What was taken and not confirmed is at most a lease, or one request that is larger than a
//!     lease.
//!  2. A report of units that were taken and whose reply is missing is made again. It may then be
//!     counted twice, never not at all. One of units that were given back is not made again: it is
//!     counted once or not at all.
//!  3. So all daemons together never take more than the bucket grants and a lease for each of
//!     them.
//!  4. The mirror is never fuller after the common count was lost than this daemon has left it.
//!
//! Mutations that the tests below catch: `settle` that leaves the mirror as it is, a lost report
//! that counts as made, `take` without the lease's bound (`together_daemons_...`), a lost report
//! that gives units back again (`units_are_given_back_...`), a mirror that forgets what was taken
//! while the report was under way (`what_is_taken_meanwhile_...`) or while the count was lost
//! (`what_was_taken_alone_...`), a report of what was refused (`only_what_was_taken_...`).

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use super::Moment;
use super::bucket::{Bucket, Exceeded, Level, Rate};
use crate::limits::core as limits;

/// One shared bucket, from the side of one daemon.
#[derive(Debug, Default)]
pub struct Lease {
    mirror: Bucket,
    /// Units that were taken, less those that were given back, and not confirmed yet.
    unconfirmed: AtomicI64,
    is_reporting: AtomicBool,
    /// Whether the common count lacks units because it was lost when they were taken.
    took_alone: AtomicBool,
}

/// Units to report to the common count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Report(pub i64);

impl Lease {
    /// Takes units out of this daemon's bucket alone: there is no common count, or it is lost.
    pub fn take(&self, rate: Rate, units: u32, now: Moment) -> Result<Level, Exceeded> {
        let taken = self.mirror.take(rate, units, now);
        // Relaxed: a report that ends at the same time may miss it, and the next one does not.
        self.took_alone.store(true, Ordering::Relaxed);
        taken
    }

    /// Like [`Bucket::reconcile`], for this daemon alone.
    pub fn reconcile(&self, rate: Rate, reserved: u32, used: u32, now: Moment) {
        self.mirror.reconcile(rate, reserved, used, now);
    }

    /// Takes units of which the common count will be told: see [`Lease::report`].
    pub fn take_shared(
        &self,
        rate: Rate,
        units: u32,
        most: u32,
        now: Moment,
    ) -> Result<Level, Exceeded> {
        let units = units.min(rate.burst);
        let (wanted, most) = (i64::from(units), i64::from(most));
        let fits = |taken: i64| (taken <= 0 || taken + wanted <= most).then_some(taken + wanted);
        // See `report`.
        let (ordering, unconfirmed) = (Ordering::SeqCst, &self.unconfirmed);
        if unconfirmed.fetch_update(ordering, ordering, fits).is_err() {
            return Err(Exceeded {
                level: self.mirror.level(rate, now),
                retry_after: limits::LEASE_RETRY,
            });
        }
        let taken = self.mirror.take(rate, units, now);
        if taken.is_err() {
            unconfirmed.fetch_sub(wanted, ordering);
        }
        taken
    }

    /// Like [`Lease::reconcile`], with a common count.
    pub fn reconcile_shared(&self, rate: Rate, reserved: u32, used: u32, now: Moment) {
        self.mirror.reconcile(rate, reserved, used, now);
        let change = i64::from(used) - i64::from(reserved.min(rate.burst));
        self.unconfirmed.fetch_add(change, Ordering::SeqCst);
    }

    /// Begins a report, unless one is under way or there is nothing to report. It must end with
    /// [`Lease::settle`], [`Lease::withdraw`] or [`Lease::give_up`].
    pub fn report(&self) -> Option<Report> {
        // A thread that ends a report looks for more units, and one that takes units looks for a
        // report under way. In any weaker order both could miss what the other has just done, and
        // the units would wait for the key's next request.
        const ORDER: Ordering = Ordering::SeqCst;
        while self.unconfirmed.load(ORDER) != 0 && !self.is_reporting.swap(true, ORDER) {
            match self.unconfirmed.load(ORDER) {
                0 => self.is_reporting.store(false, ORDER),
                units => return Some(Report(units)),
            }
        }
        None
    }

    /// Ends a report that was counted: the common bucket will be full in `ahead`.
    pub fn settle(&self, rate: Rate, report: Report, ahead: Duration, now: Moment) {
        let before = self.unconfirmed.fetch_sub(report.0, Ordering::SeqCst);
        // The common count does not have the units yet that were taken meanwhile.
        let units = before - report.0;
        if self.took_alone.swap(false, Ordering::Relaxed) {
            let missing = self.mirror.postpone(rate, ahead, units, now);
            self.unconfirmed
                .fetch_add(i64::from(missing), Ordering::SeqCst);
        } else {
            self.mirror.set(rate, ahead, units, now);
        }
        self.is_reporting.store(false, Ordering::SeqCst);
    }

    /// Ends a report that was not sent. It will be made again.
    pub fn withdraw(&self) {
        self.is_reporting.store(false, Ordering::SeqCst);
    }

    /// Ends a report of which nothing was heard: it may have been counted. Units that were taken
    /// will be reported again, and those that were given back will not: they would be given back
    /// once more each time.
    pub fn give_up(&self, report: Report) {
        self.unconfirmed
            .fetch_sub(report.0.min(0), Ordering::SeqCst);
        self.is_reporting.store(false, Ordering::SeqCst);
    }
}

/// The common count's arithmetic, of which `src/leases/count.lua` is the copy that Redis runs:
/// times in microseconds, `full_at` and `now` of the count's own clock.
#[cfg(test)]
fn count(full_at: u64, now: u64, units: i64, rate: Rate) -> u64 {
    let unit = 60_000_000.0 / f64::from(rate.per_minute);
    let base = if units > 0 { full_at.max(now) } else { full_at };
    let most = now as f64 + unit * f64::from(rate.burst) * f64::from(limits::LEASE_DEBT_FACTOR_MAX);
    (base as f64 + units as f64 * unit)
        .min(most)
        .max(0.0)
        .ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(micros: u64) -> Moment {
        Moment::from_micros(micros)
    }

    #[test]
    fn a_lease_ends_until_the_count_replies() {
        let (lease, rate) = (Lease::default(), Rate::new(600, 60));
        for _ in 0..10 {
            assert!(lease.take_shared(rate, 1, 10, at(0)).is_ok());
        }
        let refused = lease.take_shared(rate, 1, 10, at(0)).unwrap_err();
        assert_eq!(refused.retry_after, limits::LEASE_RETRY);
        assert_eq!(refused.level.remaining, 50);
        let report = lease.report().unwrap();
        assert_eq!(report, Report(10));
        assert_eq!(lease.report(), None, "one is under way");
        // Others have taken 30 before.
        lease.settle(rate, report, Duration::from_secs(4), at(0));
        assert_eq!(lease.take_shared(rate, 1, 10, at(0)).unwrap().remaining, 19);
        let again = lease.report().unwrap();
        lease.give_up(again);
        assert_eq!(lease.report(), Some(again), "made again");
    }

    #[test]
    fn what_is_taken_meanwhile_stays_taken() {
        let (lease, rate) = (Lease::default(), Rate::new(600, 60));
        let _ = lease.take_shared(rate, 5, 30, at(0)).unwrap();
        let report = lease.report().unwrap();
        let _ = lease.take_shared(rate, 7, 30, at(0)).unwrap();
        lease.settle(rate, report, Duration::from_millis(500), at(0));
        assert_eq!(lease.take_shared(rate, 1, 30, at(0)).unwrap().remaining, 47);
    }

    #[test]
    fn a_request_larger_than_a_lease_passes_alone() {
        let (lease, rate) = (Lease::default(), Rate::new(1_000, 1_000));
        assert!(lease.take_shared(rate, 500, 100, at(0)).is_ok());
        assert!(lease.take_shared(rate, 1, 100, at(0)).is_err());
        lease.reconcile_shared(rate, 500, 20, at(0));
        assert_eq!(lease.report(), Some(Report(20)));
    }

    /// Mutations: units that were refused and stay unconfirmed; units beyond the burst that are
    /// reported, or given back, though they were never taken; a mirror that is not reconciled.
    #[test]
    fn only_what_was_taken_is_reported() {
        let (lease, rate) = (Lease::default(), Rate::new(60, 2));
        assert!(lease.take_shared(rate, 2, 100, at(0)).is_ok());
        assert!(
            lease.take_shared(rate, 1, 100, at(0)).is_err(),
            "the mirror is empty"
        );
        assert_eq!(lease.report(), Some(Report(2)));

        let (lease, rate) = (Lease::default(), Rate::new(60, 5));
        assert!(
            lease.take_shared(rate, 50, 100, at(0)).is_ok(),
            "all that it holds"
        );
        assert_eq!(lease.report(), Some(Report(5)));
        lease.withdraw();
        lease.reconcile_shared(rate, 50, 3, at(0));
        assert_eq!(lease.report(), Some(Report(3)));
        lease.withdraw();
        assert_eq!(lease.take_shared(rate, 1, 100, at(0)).unwrap().remaining, 1);
    }

    /// Mutation: a lost report of units that were given back, which is made again.
    #[test]
    fn units_are_given_back_once_or_not_at_all() {
        let (lease, rate) = (Lease::default(), Rate::new(60, 60));
        let mut full_at = 0;
        assert!(lease.take_shared(rate, 50, 60, at(0)).is_ok());
        let taken = lease.report().unwrap();
        // Another daemon has taken 10.
        full_at = count(full_at, 0, taken.0 + 10, rate);
        lease.settle(rate, taken, Duration::from_micros(full_at), at(0));
        lease.reconcile_shared(rate, 50, 5, at(0));
        let given_back = lease.report().unwrap();
        full_at = count(full_at, 0, given_back.0, rate);
        lease.give_up(given_back);
        assert_eq!(full_at, 15_000_000);
        assert_eq!(lease.report(), None, "it was counted");
        // One that was not sent is made again.
        lease.reconcile_shared(rate, 5, 3, at(0));
        assert_eq!(lease.report(), Some(Report(-2)));
        lease.withdraw();
        assert_eq!(lease.report(), Some(Report(-2)));
    }

    /// Mutations: `settle` that sets the mirror all the same, or that does not report the rest.
    #[test]
    fn what_was_taken_alone_stays_taken() {
        let (lease, rate) = (Lease::default(), Rate::new(60, 60));
        for _ in 0..60 {
            assert!(lease.take(rate, 1, at(0)).is_ok());
        }
        let second = at(1_000_000);
        assert!(lease.take_shared(rate, 1, 10, second).is_ok(), "earned");
        let report = lease.report().unwrap();
        lease.settle(rate, report, Duration::from_secs(1), second);
        assert!(lease.take_shared(rate, 1, 100, second).is_err());
        assert_eq!(lease.report(), Some(Report(59)), "the count lacks them");
        // Only once.
        lease.settle(rate, Report(59), Duration::from_secs(60), second);
        assert_eq!(lease.report(), None);
        lease.settle(rate, Report(0), Duration::from_secs(10), second);
        assert_eq!(
            lease.take_shared(rate, 1, 100, second).unwrap().remaining,
            49
        );
    }

    /// One event of a run: a daemon, and what happens to it.
    #[derive(Clone, Debug)]
    enum Event {
        Wait(u64),
        Take(usize, u32),
        /// The last units that were taken turn out to be fewer.
        Reconcile(usize),
        Report(usize),
        /// The count gets the oldest report that is under way to it.
        Count(usize),
        /// The report is lost on its way, or its reply is.
        Lose(usize),
        Settle(usize),
    }

    fn events(daemons: usize) -> impl Strategy<Value = Vec<Event>> {
        let one = prop_oneof![
            (0_u64..200_000).prop_map(Event::Wait),
            (0..daemons, 1_u32..4).prop_map(|(daemon, units)| Event::Take(daemon, units)),
            (0..daemons, 1_u32..4).prop_map(|(daemon, units)| Event::Take(daemon, units)),
            (0..daemons).prop_map(Event::Reconcile),
            (0..daemons).prop_map(Event::Report),
            (0..daemons).prop_map(Event::Count),
            (0..daemons).prop_map(Event::Settle),
            (0..daemons).prop_map(Event::Lose),
        ];
        prop::collection::vec(one, 1..400)
    }

    /// A report on its way: to the count, or back with its reply.
    enum Way {
        Sent(Report),
        Counted(Report, Duration),
    }

    proptest! {
        /// Any interleaving, any loss: never more than the bucket grants and a lease each.
        #[test]
        fn together_daemons_never_take_more_than_the_limit_and_a_lease_each(
            per_minute in prop::sample::select(vec![60_u32, 600, 6_000]),
            burst in 1_u32..50,
            most in 1_u32..20,
            events in events(4),
        ) {
            let rate = Rate::new(per_minute, burst);
            let daemons: Vec<Lease> = (0..4).map(|_| Lease::default()).collect();
            let mut ways: Vec<Option<Way>> = (0..4).map(|_| None).collect();
            let mut reserved = vec![Vec::new(); 4];
            let (mut now, mut full_at, mut taken) = (1_000_000_u64, 0_u64, 0_u64);
            for event in events {
                match event {
                    Event::Wait(micros) => now += micros,
                    Event::Take(daemon, units) => {
                        let got = daemons[daemon].take_shared(rate, units, most, at(now));
                        if got.is_ok() {
                            taken += u64::from(units.min(rate.burst));
                            reserved[daemon].push(units.min(rate.burst));
                        }
                    }
                    Event::Reconcile(daemon) => {
                        if let Some(units) = reserved[daemon].pop() {
                            daemons[daemon].reconcile_shared(rate, units, units / 2, at(now));
                            taken -= u64::from(units - units / 2);
                        }
                    }
                    Event::Report(daemon) => {
                        if let Some(report) = daemons[daemon].report() {
                            prop_assert!(ways[daemon].is_none());
                            ways[daemon] = Some(Way::Sent(report));
                        }
                    }
                    Event::Count(daemon) => {
                        if let Some(Way::Sent(report)) = ways[daemon] {
                            full_at = count(full_at, now, report.0, rate);
                            let ahead = Duration::from_micros(full_at.saturating_sub(now));
                            ways[daemon] = Some(Way::Counted(report, ahead));
                        }
                    }
                    Event::Lose(daemon) => {
                        if let Some(Way::Sent(report) | Way::Counted(report, _)) =
                            ways[daemon].take()
                        {
                            daemons[daemon].give_up(report);
                        }
                    }
                    Event::Settle(daemon) => {
                        if let Some(Way::Counted(report, ahead)) = &ways[daemon] {
                            daemons[daemon].settle(rate, *report, *ahead, at(now));
                            ways[daemon] = None;
                        }
                    }
                }
                let earned = (now - 1_000_000) * u64::from(per_minute) / 60_000_000 + 1;
                // A request of up to three units may be larger than a lease.
                let leases = 4 * u64::from(most.max(3));
                prop_assert!(
                    taken <= u64::from(rate.burst) + earned + leases,
                    "{taken} taken, {} and {earned} granted, leases of {leases}", rate.burst
                );
            }
        }
    }
}
