//! The places in the engine's queue, and who may take one.
//!
//! Owns the counts of the jobs that were admitted and have no sequence yet, by tenant. All reactors
//! take places and the engine's thread gives them back, so the counts are behind one lock. It is
//! held for a few additions, whatever the number of tenants and jobs.
//!
//! Each class has its own places, as many as the bound: background jobs wait until live ones leave
//! them a sequence, and would hold the places of those. A tenant that has filled the places of live
//! jobs must not keep the others out:
//!
//! ```text
//!   below the bound                 every job gets a place
//!   at the bound                    a live job gets one if its tenant, with it, still has fewer
//!                                   waiting than the tenant that has most; the engine's thread
//!                                   then makes room at the cost of that tenant
//!   bound + QUEUE_SLACK_JOBS        no live job gets a place until there is room
//! ```
//!
//! Tenants count by their jobs, not by their weights: a place costs memory, and no time.
//!
//! Invariants:
//!  1. `live` and `background` are the sums of all tenants' jobs. There are at most as many live
//!     jobs as the bound and the slack, and as many background jobs as the bound.
//!  2. `longest` is the highest number of live jobs that a tenant has.
//!  3. A tenant without a waiting job has no entry, so the table never grows beyond the queue.
//!
//! Mutations that the tests below catch: a newcomer counted without itself
//! (`tenant_never_takes_a_place_from_one_that_has_no_more`), `longest` that never sinks
//! (`counts_are_those_of_a_simple_model`), no slack
//! (`full_queue_takes_the_job_of_a_tenant_that_has_few`), an entry that stays at zero
//! (`counts_are_those_of_a_simple_model`), places or estimates of live jobs that count background
//! jobs (`background_jobs_hold_no_place_of_live_ones`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::Class;
use crate::limits::engine as limits;

/// Shared by all that take or give back a place.
#[derive(Debug, Default)]
pub struct Places {
    bound: u32,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    live: u32,
    background: u32,
    tenants: HashMap<u64, Waiting>,
    /// How many tenants have this many live jobs; the index is that number.
    with_live: Vec<u32>,
    longest: u32,
    /// The weights of all tenants with a waiting job together.
    weights: u64,
    /// The same of those with a live one.
    live_weights: u64,
}

/// The waiting jobs of one tenant.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    live: u32,
    background: u32,
    weight: u16,
}

/// One job's place, which is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    tenant: u64,
    class: Class,
}

/// The queue as one tenant sees it: for a live job, the live jobs alone, because no other goes
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// Waiting jobs of all tenants.
    pub total: u32,
    /// Waiting jobs of this tenant.
    pub own: u32,
    pub weight: u16,
    /// The weights of this tenant and of all others with a waiting job together.
    pub weights: u64,
}

impl Places {
    pub fn new(bound: u32) -> Places {
        Places {
            bound,
            counts: Mutex::default(),
        }
    }

    /// Returns how many jobs wait at most.
    pub fn most(bound: u32) -> u32 {
        Places::most_live(bound).saturating_add(bound)
    }

    fn most_live(bound: u32) -> u32 {
        bound.saturating_add(limits::QUEUE_SLACK_JOBS)
    }

    /// Takes a place for a job, if its tenant may have one.
    pub fn try_take(self: &Arc<Places>, tenant: u64, class: Class, weight: u16) -> Option<Place> {
        let mut counts = self.counts();
        let may_press_in = counts.live < Places::most_live(self.bound)
            && counts.live_of(tenant) + 1 < counts.longest;
        let has_room = match class {
            Class::Live => counts.live < self.bound || may_press_in,
            Class::Background => counts.background < self.bound,
        };
        if !has_room {
            return None;
        }
        counts.add(tenant, class, weight);
        Some(Place {
            places: Arc::clone(self),
            tenant,
            class,
        })
    }

    /// Returns how many jobs wait.
    pub fn total(&self) -> u32 {
        self.counts().total()
    }

    /// Returns how many live jobs wait above the bound and must make room.
    pub fn excess(&self) -> u32 {
        self.counts().live.saturating_sub(self.bound)
    }

    /// Returns whether no tenant has more live jobs waiting.
    pub fn is_longest(&self, tenant: u64) -> bool {
        let counts = self.counts();
        counts.live_of(tenant) == counts.longest
    }

    /// Returns what waits beside a job of this tenant and class. Without a `weight` it is that of
    /// the tenant's waiting jobs.
    pub fn outlook(&self, tenant: u64, class: Class, weight: Option<u16>) -> Outlook {
        let counts = self.counts();
        let waiting = counts.tenants.get(&tenant).copied().unwrap_or_default();
        let weight = weight.unwrap_or(waiting.weight);
        let (total, own, others) = match class {
            Class::Live => {
                let others = counts.live_weights - waiting.live_weight();
                (counts.live, waiting.live, others)
            }
            Class::Background => {
                let others = counts.weights - u64::from(waiting.weight);
                (counts.total(), waiting.jobs(), others)
            }
        };
        Outlook {
            total,
            own,
            weight,
            weights: others + u64::from(weight),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing between two counts can panic, so a poisoned lock has whole counts, too.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlook {
    /// Returns after how many jobs of all tenants the last of `own` jobs has its turn: the engine
    /// serves tenants by weight, and a tenant that has no job left makes room for the others.
    pub fn jobs_until(&self, own: u32) -> u32 {
        let share = u64::from(self.weight.max(1));
        let turns = u64::from(own) * self.weights.max(share) / share;
        let all = u64::from(self.total) + u64::from(own.saturating_sub(self.own));
        turns.min(all) as u32
    }
}

impl Counts {
    fn total(&self) -> u32 {
        self.live + self.background
    }

    fn live_of(&self, tenant: u64) -> u32 {
        self.tenants.get(&tenant).map_or(0, |waiting| waiting.live)
    }

    fn add(&mut self, tenant: u64, class: Class, weight: u16) {
        let waiting = self.tenants.entry(tenant).or_default();
        let before = *waiting;
        // The key's weight may have changed since its last job.
        waiting.weight = weight;
        match class {
            Class::Background => waiting.background += 1,
            Class::Live => waiting.live += 1,
        }
        let after = *waiting;
        self.change(before, after);
    }

    fn remove(&mut self, tenant: u64, class: Class) {
        // A place was counted when it was taken.
        let Some(waiting) = self.tenants.get_mut(&tenant) else {
            return;
        };
        let before = *waiting;
        match class {
            Class::Background => waiting.background -= 1,
            Class::Live => waiting.live -= 1,
        }
        let mut after = *waiting;
        if after.jobs() == 0 {
            after = Waiting::default();
            self.tenants.remove(&tenant);
        }
        self.change(before, after);
    }

    /// Brings the sums up to date with a change of one tenant.
    fn change(&mut self, before: Waiting, after: Waiting) {
        self.background = self.background + after.background - before.background;
        self.live = self.live + after.live - before.live;
        self.weights = self.weights + u64::from(after.weight) - u64::from(before.weight);
        self.live_weights = self.live_weights + after.live_weight() - before.live_weight();
        if before.live != after.live {
            self.change_live(before.live, after.live);
        }
    }

    /// Notes that a tenant's live jobs have changed by one.
    fn change_live(&mut self, from: u32, to: u32) {
        let needed = from.max(to) as usize + 1;
        if self.with_live.len() < needed {
            self.with_live.resize(needed, 0);
        }
        if from > 0 {
            self.with_live[from as usize] -= 1;
        }
        if to > 0 {
            self.with_live[to as usize] += 1;
        }
        if to > self.longest || (from == self.longest && self.with_live[from as usize] == 0) {
            self.longest = to;
        }
    }
}

impl Waiting {
    fn jobs(self) -> u32 {
        self.live + self.background
    }

    /// Returns its weight among tenants with live jobs.
    fn live_weight(self) -> u64 {
        match self.live {
            0 => 0,
            _ => u64::from(self.weight),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.counts().remove(self.tenant, self.class);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUND: u32 = 4;

    fn places() -> Arc<Places> {
        Arc::new(Places::new(BOUND))
    }

    fn outlook(places: &Places, tenant: u64, weight: u16) -> Outlook {
        places.outlook(tenant, Class::Live, Some(weight))
    }

    fn take(places: &Arc<Places>, tenant: u64, jobs: u32) -> Vec<Place> {
        let taken = (0..jobs).map(|_| places.try_take(tenant, Class::Live, 1));
        taken.map(|place| place.expect("there is room")).collect()
    }

    #[test]
    fn full_queue_takes_the_job_of_a_tenant_that_has_few() {
        let places = places();
        let flood = take(&places, 1, BOUND);
        assert!(
            places.try_take(1, Class::Live, 1).is_none(),
            "its own flood"
        );
        let other = take(&places, 2, 2);
        assert_eq!(
            places.total(),
            BOUND + 2,
            "the engine's thread makes room for two"
        );
        drop(flood);
        assert_eq!(places.total(), 2);
        drop(other);
        assert_eq!(places.total(), 0);
    }

    #[test]
    fn tenant_never_takes_a_place_from_one_that_has_no_more() {
        let places = places();
        let one_each: Vec<_> = (1..5).flat_map(|tenant| take(&places, tenant, 1)).collect();
        // Its one job would only take the place of the one job of another.
        assert!(places.try_take(5, Class::Live, 1).is_none());
        drop(one_each);
        let _two_each = [take(&places, 1, 2), take(&places, 2, 2)];
        assert!(places.try_take(1, Class::Live, 1).is_none());
        assert!(
            places.try_take(5, Class::Live, 1).is_some(),
            "one is less than two"
        );
    }

    #[test]
    fn background_jobs_hold_no_place_of_live_ones() {
        let places = places();
        let background = |tenant| places.try_take(tenant, Class::Background, 1);
        let stored: Vec<_> = (0..BOUND).map(|_| background(2)).collect();
        assert!(stored.iter().all(Option::is_some));
        assert!(
            background(3).is_none(),
            "it is kept on disk, and can wait there"
        );
        assert_eq!(outlook(&places, 2, 1).jobs_until(1), 1, "it goes first");
        let live = take(&places, 1, BOUND);
        assert_eq!((places.total(), places.excess()), (2 * BOUND, 0));
        // Beside one other tenant with live jobs, whatever waits in the background.
        assert_eq!(outlook(&places, 3, 1).jobs_until(1), 2);
        let all = places.outlook(2, Class::Background, None);
        assert_eq!((all.own, all.total), (BOUND, 2 * BOUND));
        let _other = take(&places, 3, 1);
        assert_eq!(places.excess(), 1);
        drop((stored, live));
        assert_eq!(places.total(), 1);
    }

    #[test]
    fn slack_is_bounded_whoever_asks() {
        let places = Arc::new(Places::new(2));
        let _flood = take(&places, 0, 2);
        let newcomers = 1..u64::from(limits::QUEUE_SLACK_JOBS) + 10;
        let taken = newcomers.map(|tenant| places.try_take(tenant, Class::Live, 1));
        let taken: Vec<_> = taken.flatten().collect();
        assert_eq!(taken.len(), limits::QUEUE_SLACK_JOBS as usize);
        assert_eq!(places.total(), Places::most_live(2));
    }

    #[test]
    fn wait_is_counted_in_the_tenants_own_queue_and_share() {
        let places = places();
        let _flood = take(&places, 1, BOUND);
        // Beside one other tenant of the same weight, every second job is its own.
        let second = outlook(&places, 2, 1);
        assert_eq!((second.own, second.total), (0, BOUND));
        assert_eq!(second.jobs_until(1), 2);
        // With three times the weight it gets three of four.
        assert_eq!(outlook(&places, 2, 3).jobs_until(1), 1);
        assert_eq!(outlook(&places, 2, 3).jobs_until(3), 4);
        // Alone, all jobs are its own; and none waits for more than there are.
        assert_eq!(outlook(&places, 1, 1).jobs_until(BOUND), BOUND);
        assert_eq!(outlook(&places, 2, 1).jobs_until(100), 100 + BOUND);
        // Without a weight: that of its waiting jobs.
        let _own = places.try_take(2, Class::Live, 3);
        assert_eq!(places.outlook(2, Class::Live, None).weight, 3);
    }

    /// Tenants, whether they take or give back a place, for a live job or another, their weights.
    fn moves() -> impl Strategy<Value = Vec<(u64, bool, bool, u16)>> {
        let one = (0_u64..4, any::<bool>(), any::<bool>(), 1_u16..4);
        prop::collection::vec(one, 0..200)
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_simple_model(
            moves in moves()
        ) {
            let places = Arc::new(Places::new(8));
            let mut held: Vec<Place> = Vec::new();
            for (tenant, takes, is_live, weight) in moves {
                let class = if is_live { Class::Live } else { Class::Background };
                match takes {
                    true => held.extend(places.try_take(tenant, class, weight)),
                    false => {
                        let oldest = held.iter().position(|place| place.tenant == tenant);
                        oldest.map(|index| held.remove(index));
                    }
                }
                let live = |tenant| {
                    let own = held.iter().filter(|place| place.tenant == tenant);
                    own.filter(|place| place.class == Class::Live).count() as u32
                };
                let tenants: std::collections::HashSet<u64> =
                    held.iter().map(|place| place.tenant).collect();
                let counts = places.counts();
                prop_assert_eq!(counts.total() as usize, held.len());
                prop_assert_eq!(counts.live, (0..4).map(live).sum::<u32>());
                prop_assert_eq!(counts.longest, (0..4).map(live).max().unwrap_or(0));
                prop_assert_eq!(counts.tenants.len(), tenants.len());
                let weights = counts.tenants.values().map(|waiting| u64::from(waiting.weight));
                prop_assert_eq!(counts.weights, weights.sum::<u64>());
                let weights = counts.tenants.values().filter(|waiting| waiting.live > 0);
                let weights = weights.map(|waiting| u64::from(waiting.weight));
                prop_assert_eq!(counts.live_weights, weights.sum::<u64>());
            }
            held.clear();
            let counts = places.counts();
            prop_assert_eq!((counts.weights, counts.live_weights), (0, 0));
        }
    }
}
