//! The clients that follow jobs: who is to be woken when a job has new events.
//!
//! Owns the list. A follower keeps its own place in the job's history and reads from the store what
//! comes after it, so nothing is kept here for a slow one. It is woken by a message to its reactor,
//! once until it has looked; no follower ever polls.
//!
//! Invariants:
//!  1. A follower is in the list from its registration until its [`Follower`] is dropped.
//!  2. Between two looks a follower gets at most one message.
//!
//! Mutations that the tests catch: `wake` that ignores `is_woken`; `drop` that removes all
//! followers of a job; a bound that is not checked.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::jobs::JobId;
use crate::limits::jobs as limits;
use crate::offload::JobKey;

/// The way to the mailboxes of the reactors.
pub trait Wake: Send + Sync {
    /// Reports that the job has new events which this request follows.
    fn wake(&self, key: JobKey);
}

/// See the file's head.
pub struct Followers {
    wake: Arc<dyn Wake>,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    by_job: BTreeMap<JobId, Vec<Arc<Entry>>>,
    by_tenant: HashMap<u64, usize>,
}

#[derive(Debug)]
struct Entry {
    key: JobKey,
    is_woken: AtomicBool,
}

/// A bound that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowded {
    Job,
    Tenant,
}

/// A place in the list. Dropping it leaves the list.
pub struct Follower {
    followers: Arc<Followers>,
    job: JobId,
    tenant: u64,
    entry: Arc<Entry>,
}

/// Wakes no request.
struct Silence;

impl Wake for Silence {
    fn wake(&self, _: JobKey) {}
}

impl Default for Followers {
    fn default() -> Followers {
        Followers::new(Arc::new(Silence))
    }
}

impl Followers {
    pub fn new(wake: Arc<dyn Wake>) -> Followers {
        Followers {
            wake,
            list: Mutex::default(),
        }
    }

    /// Adds a request that follows a job. It must register before its first look, so that no event
    /// falls between the two.
    pub fn register(
        self: &Arc<Self>,
        job: JobId,
        tenant: u64,
        key: JobKey,
    ) -> Result<Follower, Crowded> {
        let mut list = self.lock();
        let of_job = list.by_job.get(&job).map_or(0, Vec::len);
        if of_job >= limits::FOLLOWING_REQUESTS_PER_JOB_MAX {
            return Err(Crowded::Job);
        }
        let of_tenant = list.by_tenant.get(&tenant).copied().unwrap_or(0);
        if of_tenant >= limits::FOLLOWING_REQUESTS_PER_KEY_MAX {
            return Err(Crowded::Tenant);
        }
        let entry = Arc::new(Entry {
            key,
            is_woken: AtomicBool::new(false),
        });
        list.by_job.entry(job).or_default().push(entry.clone());
        *list.by_tenant.entry(tenant).or_default() += 1;
        Ok(Follower {
            followers: Arc::clone(self),
            job,
            tenant,
            entry,
        })
    }

    /// Wakes the followers of a job.
    pub fn wake(&self, job: JobId) {
        let woken: Vec<_> = match self.lock().by_job.get(&job) {
            Some(entries) => entries.clone(),
            None => return,
        };
        for entry in woken {
            // The store was written before; the reader's swap in `look` orders its read after it.
            if !entry.is_woken.swap(true, Ordering::AcqRel) {
                self.wake.wake(entry.key);
            }
        }
    }

    /// Returns the first `most` followed jobs behind this one, in the order of their ids.
    pub fn jobs_after(&self, after: Option<JobId>, most: usize) -> Vec<JobId> {
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let list = self.lock();
        let jobs = list.by_job.range((begin, Bound::Unbounded));
        jobs.take(most).map(|(id, _)| *id).collect()
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        // Nothing panics half-way through a change.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// Must be called before each reading of the job's history: later events wake it again.
    pub fn look(&self) {
        self.entry.is_woken.swap(false, Ordering::AcqRel);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut list = self.followers.lock();
        if let Some(entries) = list.by_job.get_mut(&self.job) {
            entries.retain(|entry| !Arc::ptr_eq(entry, &self.entry));
            if entries.is_empty() {
                list.by_job.remove(&self.job);
            }
        }
        if let Some(count) = list.by_tenant.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                list.by_tenant.remove(&self.tenant);
            }
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("job", &self.job).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Key;

    #[derive(Default)]
    struct Bells(Mutex<Vec<u32>>);

    impl Wake for Bells {
        fn wake(&self, key: JobKey) {
            self.0.lock().unwrap().push(key.request);
        }
    }

    fn key(request: u32) -> JobKey {
        JobKey {
            reactor: 0,
            connection: Key::new(1, 1),
            request,
        }
    }

    fn id(number: u8) -> JobId {
        JobId::from_bytes([number; 16])
    }

    #[test]
    fn a_follower_is_woken_once_until_it_looks_and_not_after_it_left() {
        let bells = Arc::new(Bells::default());
        let followers = Arc::new(Followers::new(bells.clone()));
        let take = || std::mem::take(&mut *bells.0.lock().unwrap());
        let one = followers.register(id(1), 7, key(1)).unwrap();
        let two = followers.register(id(1), 7, key(2)).unwrap();
        let _other = followers.register(id(2), 8, key(3)).unwrap();
        followers.wake(id(1));
        followers.wake(id(1));
        assert_eq!(take(), [1, 2]);
        one.look();
        followers.wake(id(1));
        assert_eq!(take(), [1]);
        drop(one);
        two.look();
        followers.wake(id(1));
        assert_eq!(take(), [2]);
        drop(two);
        assert_eq!(followers.jobs_after(None, 9), [id(2)]);
        followers.wake(id(1));
        assert!(take().is_empty());
    }

    #[test]
    fn followers_of_a_job_and_of_a_key_are_bounded() {
        let followers = Arc::new(Followers::new(Arc::new(Bells::default())));
        let mut all = Vec::new();
        for number in 0..limits::FOLLOWING_REQUESTS_PER_KEY_MAX {
            let job = id((number / limits::FOLLOWING_REQUESTS_PER_JOB_MAX) as u8);
            all.push(followers.register(job, 7, key(0)).unwrap());
        }
        let of_key = followers.register(id(200), 7, key(0));
        assert_eq!(of_key.unwrap_err(), Crowded::Tenant);
        let of_job = followers.register(id(0), 8, key(0));
        assert_eq!(of_job.unwrap_err(), Crowded::Job);
        all.pop();
        assert!(followers.register(id(200), 7, key(0)).is_ok());
    }
}
