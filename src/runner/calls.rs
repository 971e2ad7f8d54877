//! Jobs whose clients wait: each is claimed by its name, in a place of its own.
//!
//! A generation with an `Idempotency-Key` is a job, and its client waits as for any other response.
//! In the line of all jobs it would begin when one of `jobs.concurrency` places is free, which may
//! be held for minutes by the jobs of any key, and behind all earlier jobs of its own key. So the
//! daemon that accepts such a job calls it: the runner claims it at once, and the engine's queue of
//! live requests decides when it computes. A job that is not called, because its daemon has ended
//! or its key has too many, waits in the line.
//!
//! Owns the jobs that are to be claimed and the counts of places. Pure: the runner's thread asks
//! for the next ones, and returns the places. Tenants have shares of the places ([`Shares`]): each
//! is held for as long as a generation takes.
//!
//! Mutations that the tests catch: `add` without a bound, or without that of a tenant; `take` that
//! asks for no place, or that stops at the first tenant without one; `put_back` or
//! `settle` that keeps the places.

use std::collections::VecDeque;

use crate::jobs::{JobId, JobRecord};
use crate::limits::jobs as limits;
use crate::offload::shares::Shares;

/// A job whose client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Called {
    pub id: JobId,
    pub tenant: u64,
}

/// See the file's head.
#[derive(Debug)]
pub struct Calls {
    waiting: VecDeque<Called>,
    places: Shares,
}

impl Calls {
    /// `own` is a tenant that no client is, so the place that is kept for it stays free.
    pub fn new(own: u64) -> Calls {
        Calls {
            waiting: VecDeque::new(),
            places: Shares::new(limits::CALLED_ATTEMPTS_MAX + 1, own),
        }
    }

    /// Notes a job to be claimed. Beyond the bounds it waits in the line of all jobs.
    pub fn add(&mut self, called: Called) {
        let own = self.waiting.iter();
        let own = own.filter(|other| other.tenant == called.tenant).count();
        if self.waiting.len() < limits::CALLED_JOBS_MAX && own < limits::CALLED_JOBS_PER_KEY_MAX {
            self.waiting.push_back(called);
        }
    }

    /// Returns whether a job may be claimed now.
    pub fn may_take(&self) -> bool {
        let mut waiting = self.waiting.iter();
        waiting.any(|called| self.places.admits(called.tenant))
    }

    /// Takes the jobs that may be claimed now, each with a place.
    pub fn take(&mut self) -> Vec<Called> {
        let mut taken = Vec::new();
        self.waiting.retain(|called| {
            let is_admitted = self.places.admits(called.tenant);
            if is_admitted {
                self.places.take(called.tenant);
                taken.push(*called);
            }
            !is_admitted
        });
        taken
    }

    /// Returns the jobs of a claim that has failed, with their places. They are the next ones.
    pub fn put_back(&mut self, called: &[Called]) {
        for called in called.iter().rev() {
            self.places.give_back(called.tenant);
            self.waiting.push_front(*called);
        }
    }

    /// Returns the places of jobs that a claim has not found waiting: another daemon has them, or
    /// they have ended.
    pub fn settle(&mut self, called: &[Called], claimed: &[JobRecord]) {
        let is_unclaimed = |called: &&Called| claimed.iter().all(|job| job.id != called.id);
        for called in called.iter().filter(is_unclaimed) {
            self.places.give_back(called.tenant);
        }
    }

    /// Returns the place of an attempt that has ended, if its job was called.
    pub fn end(&mut self, called_by: Option<u64>) {
        if let Some(tenant) = called_by {
            self.places.give_back(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u64 = u64::MAX;

    fn called(number: u64, tenant: u64) -> Called {
        Called {
            id: JobId::new(number, [0; 10]),
            tenant,
        }
    }

    fn add(calls: &mut Calls, tenant: u64, count: usize) {
        (0..count as u64).for_each(|number| calls.add(called(number, tenant)));
    }

    #[test]
    fn a_tenant_with_many_calls_leaves_places_for_others() {
        let mut calls = Calls::new(OWN);
        add(&mut calls, 1, limits::CALLED_JOBS_PER_KEY_MAX);
        assert_eq!(calls.take().len(), limits::CALLED_ATTEMPTS_MAX / 2);
        assert!(!calls.may_take() && calls.take().is_empty());
        for tenant in 2..6 {
            add(&mut calls, tenant, 1);
            assert!(calls.may_take());
            assert_eq!(calls.take(), [called(0, tenant)], "behind those that wait");
        }
        (1..6).for_each(|tenant| calls.end(Some(tenant)));
        assert!(calls.may_take());
    }

    #[test]
    fn the_jobs_of_a_claim_that_failed_are_the_next_ones() {
        let mut calls = Calls::new(OWN);
        add(&mut calls, 1, 3);
        let taken = calls.take();
        calls.add(called(9, 1));
        calls.put_back(&taken);
        assert_eq!(calls.take(), [0, 1, 2, 9].map(|number| called(number, 1)));
    }

    #[test]
    fn calls_are_bounded_for_each_tenant_and_in_total() {
        let mut calls = Calls::new(OWN);
        for tenant in 0..1_000 {
            add(&mut calls, tenant, limits::CALLED_JOBS_PER_KEY_MAX + 1);
        }
        assert_eq!(calls.waiting.len(), limits::CALLED_JOBS_MAX);
        let first = calls.waiting.iter().filter(|called| called.tenant == 0);
        assert_eq!(first.count(), limits::CALLED_JOBS_PER_KEY_MAX);
    }
}
