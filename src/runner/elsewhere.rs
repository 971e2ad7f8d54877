//! Looks at jobs that are followed here and run elsewhere: another daemon changes them.
//!
//! Owns what each of them had when it was last looked at. Pure: its caller asks the store. As many
//! jobs may be followed as there are connections, so a look takes a bounded number of them, in the
//! order of their ids, and the next one goes on behind the last.
//!
//! Mutations that the tests catch: a look that begins at the first job each time; one without a
//! bound; `forget` that keeps jobs which are not followed any more, or drops those of later looks.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::jobs::{EventId, JobId};
use crate::limits::jobs as limits;

use super::followers::Followers;

/// See the file's head.
#[derive(Debug, Default)]
pub struct Elsewhere {
    /// The last events; `None`: the job is gone.
    seen: BTreeMap<JobId, Option<EventId>>,
    /// The last job of the last look. `None`: the next look begins with the first.
    after: Option<JobId>,
}

impl Elsewhere {
    /// Returns the next jobs to look at, less those that run here.
    pub fn next(&mut self, followers: &Followers, runs_here: impl Fn(JobId) -> bool) -> Vec<JobId> {
        let mut ids = followers.jobs_after(self.after, limits::LOOKED_JOBS_MAX);
        let is_whole = ids.len() == limits::LOOKED_JOBS_MAX;
        let last = ids.last().copied().filter(|_| is_whole);
        ids.retain(|id| !runs_here(*id));
        self.forget(last, &ids);
        self.after = last;
        ids
    }

    /// Notes what the store has. Returns whether that is new.
    pub fn note(&mut self, id: JobId, last: Option<EventId>) -> bool {
        self.seen.insert(id, last) != Some(last)
    }

    /// Forgets the jobs up to `last` that are not among these.
    fn forget(&mut self, last: Option<JobId>, ids: &[JobId]) {
        let begin = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        let end = last.map_or(Bound::Unbounded, Bound::Included);
        let seen = self.seen.range((begin, end)).map(|(id, _)| *id);
        let gone: Vec<JobId> = seen.filter(|id| ids.binary_search(id).is_err()).collect();
        for id in gone {
            self.seen.remove(&id);
        }
    }

    #[cfg(test)]
    pub fn seen(&self) -> usize {
        self.seen.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::offload::JobKey;
    use crate::runner::Follower;
    use crate::runner::journal::Journal;

    const MOST: usize = limits::LOOKED_JOBS_MAX;

    fn id(number: usize) -> JobId {
        JobId::new(number as u64, [0; 10])
    }

    fn follow(followers: &Arc<Followers>, number: usize) -> Follower {
        let key: JobKey = Journal::key(0);
        followers.register(id(number), number as u64, key).unwrap()
    }

    #[test]
    fn looks_take_turns_over_all_jobs_that_are_followed() {
        let followers = Arc::new(Followers::default());
        let count = 2 * MOST + 1;
        let mut kept: Vec<Follower> = (0..count).map(|one| follow(&followers, one)).collect();
        let mut elsewhere = Elsewhere::default();
        let mut look = |runs_here: usize| {
            let ids = elsewhere.next(&followers, |one| one == id(runs_here));
            for id in &ids {
                elsewhere.note(*id, None);
            }
            (ids, elsewhere.seen())
        };
        let ids = |range: std::ops::Range<usize>| range.map(id).collect::<Vec<_>>();
        assert_eq!(look(count), (ids(0..MOST), MOST));
        assert_eq!(look(count), (ids(MOST..2 * MOST), 2 * MOST));
        assert_eq!(look(count), (ids(2 * MOST..count), count));
        // Job 0 runs here now, and the last one is not followed any more.
        kept.pop();
        assert_eq!(look(0), (ids(1..MOST), count - 1));
        assert_eq!(look(0), (ids(MOST..2 * MOST), count - 1));
        assert_eq!(look(0), (ids(0..0), count - 2));
        kept.clear();
        assert_eq!(look(0), (ids(0..0), 0));
    }

    #[test]
    fn what_was_seen_before_is_not_new() {
        let mut elsewhere = Elsewhere::default();
        let event = |sequence| {
            Some(EventId {
                attempt: 1,
                sequence,
            })
        };
        assert!(elsewhere.note(id(1), None));
        assert!(!elsewhere.note(id(1), None));
        assert!(elsewhere.note(id(1), event(1)) && elsewhere.note(id(1), event(2)));
        assert!(!elsewhere.note(id(1), event(2)));
    }
}
