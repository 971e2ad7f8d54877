//! The life of a job: its states, and which of them follow each other.
//!
//! ```text
//!            claim                finish
//!   Queued ──────────> Running ───────────> Completed, Failed
//!    │  ^                │  │
//!    │  └── release ─────┘  │ take_back, if it was lost too often
//!    │      take_back       └─────────────> Failed
//!    │
//!    ├── expire ──────────────────────────> Expired
//!    └── cancel, also while it runs ──────> Cancelled
//! ```
//!
//! A daemon that claims a job holds a lease on it until `lease_until`, and renews it while the job
//! runs. A daemon that was killed cannot give its lease back: once that has run out, any daemon may
//! take the job back. So a job may run more than once, but only one run can end it.
//!
//! **The fence.** Each claim counts one attempt, and every change by a run names the attempt that
//! it belongs to. A run that was stopped or cut off for longer than its lease finds another number,
//! or another state, and is refused ([`Fenced`]). No clock is involved in that: a lease that is
//! believed for too long costs a second run and never a second result.
//!
//! The store reads a life, applies one of these functions and writes it back, all in one
//! transaction. Pure; `now` is in milliseconds since 1970.
//!
//! # Invariants
//!
//!  1. A finished job does not change.
//!  2. `attempt` never falls. Together with `sequence` it names each event, and these names grow.
//!  3. Only the run of the present attempt writes events and ends the job.
//!
//! Mutations that the property test catches: `holds` that ignores the attempt or the state;
//! `claim` without a new attempt; `cancel` of a finished job; a sequence that is not raised.

use super::event::{EventId, EventKind};

/// The states. Their words are what clients and the store see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    Queued,
    Running,
    Completed,
    Failed,
    Cancelled,
    Expired,
}

impl State {
    pub const ALL: [State; 6] = [
        State::Queued,
        State::Running,
        State::Completed,
        State::Failed,
        State::Cancelled,
        State::Expired,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Completed => "completed",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
            State::Expired => "expired",
        }
    }

    pub fn parse(word: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.as_str() == word)
    }

    pub const fn is_finished(self) -> bool {
        !matches!(self, State::Queued | State::Running)
    }

    /// Returns the kind of the last event of a finished job.
    pub const fn last_event(self) -> Option<EventKind> {
        match self {
            State::Queued | State::Running => None,
            State::Completed => Some(EventKind::Done),
            State::Failed => Some(EventKind::Error),
            State::Cancelled => Some(EventKind::Cancelled),
            State::Expired => Some(EventKind::Expired),
        }
    }
}

/// See the file's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub state: State,
    /// The number of claims so far.
    pub attempt: u32,
    /// The number of the last event of this attempt.
    pub sequence: u32,
    /// How many leases have run out.
    pub lost: u32,
    /// The end of the lease; 0 if the job does not run.
    pub lease_until: u64,
}

/// A run whose job does not belong to it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced;

/// The beginning of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    pub id: EventId,
    pub kind: EventKind,
}

/// The state of a job that was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenBack {
    Queued,
    /// It was lost too often. The event is its last one.
    Failed(EventId),
}

impl Life {
    /// A job that was just accepted.
    pub const NEW: Life = Life {
        state: State::Queued,
        attempt: 0,
        sequence: 0,
        lost: 0,
        lease_until: 0,
    };

    /// Returns the id of the last event.
    pub const fn last_event(&self) -> EventId {
        EventId {
            attempt: self.attempt,
            sequence: self.sequence,
        }
    }

    /// Begins an attempt. `None`: the job does not wait.
    pub fn claim(&mut self, lease_until: u64) -> Option<Opening> {
        if self.state != State::Queued {
            return None;
        }
        let attempt = self.attempt.checked_add(1)?;
        *self = Life {
            state: State::Running,
            attempt,
            sequence: 0,
            lease_until,
            ..*self
        };
        let kind = match attempt {
            1 => EventKind::Started,
            _ => EventKind::Reset,
        };
        let id = self.last_event();
        Some(Opening { id, kind })
    }

    /// Replaces the lease of a run. The new one may end earlier: a lease from before the clock was
    /// set back would outlive its daemon by as much.
    pub fn renew(&mut self, attempt: u32, lease_until: u64) -> Result<(), Fenced> {
        self.check(attempt)?;
        self.lease_until = lease_until;
        Ok(())
    }

    /// Returns the lease: the job waits again.
    pub fn release(&mut self, attempt: u32) -> Result<(), Fenced> {
        self.check(attempt)?;
        self.leave(State::Queued);
        Ok(())
    }

    /// Returns the id of a run's next event.
    pub fn push_event(&mut self, attempt: u32) -> Result<EventId, Fenced> {
        self.check(attempt)?;
        Ok(self.next_event())
    }

    /// Ends a run, and the job with it. `end` is `Completed` or `Failed`. Returns the id of the
    /// last event.
    pub fn finish(&mut self, attempt: u32, end: State) -> Result<EventId, Fenced> {
        debug_assert!(matches!(end, State::Completed | State::Failed));
        self.check(attempt)?;
        self.leave(end);
        Ok(self.next_event())
    }

    /// Takes a running job from a daemon whose lease has run out. `None`: it has not.
    pub fn take_back(&mut self, now: u64, lost_max: u32) -> Option<TakenBack> {
        if self.state != State::Running || now < self.lease_until {
            return None;
        }
        Some(self.lose(lost_max))
    }

    /// Ends a run that came to no result through no fault of the job. The caller has checked that
    /// it [`holds`](Life::holds) the job.
    pub fn lose(&mut self, lost_max: u32) -> TakenBack {
        debug_assert_eq!(self.state, State::Running);
        self.lost = self.lost.saturating_add(1);
        if self.lost < lost_max {
            self.leave(State::Queued);
            return TakenBack::Queued;
        }
        self.leave(State::Failed);
        TakenBack::Failed(self.next_event())
    }

    /// Cancels a job that is not finished. Returns the id of its last event.
    pub fn cancel(&mut self) -> Option<EventId> {
        if self.state.is_finished() {
            return None;
        }
        self.leave(State::Cancelled);
        Some(self.next_event())
    }

    /// Ends a job that has waited for too long. Returns the id of its last event.
    pub fn expire(&mut self) -> Option<EventId> {
        if self.state != State::Queued {
            return None;
        }
        self.leave(State::Expired);
        Some(self.next_event())
    }

    /// Returns whether the job runs, and this attempt is its present one.
    pub fn holds(&self, attempt: u32) -> bool {
        self.state == State::Running && self.attempt == attempt
    }

    fn check(&self, attempt: u32) -> Result<(), Fenced> {
        if self.holds(attempt) {
            Ok(())
        } else {
            Err(Fenced)
        }
    }

    fn leave(&mut self, state: State) {
        self.state = state;
        self.lease_until = 0;
    }

    fn next_event(&mut self) -> EventId {
        self.sequence = self.sequence.saturating_add(1);
        self.last_event()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: u64 = 10;
    const LOST_MAX: u32 = 3;

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Claim,
        /// By the run of one of the latest attempts.
        Renew(u32),
        Write(u32),
        Release(u32),
        Finish(u32, State),
        TakeBack,
        Cancel,
        Expire,
    }

    fn step() -> impl Strategy<Value = Step> {
        let late = 0_u32..3;
        prop_oneof![
            3 => (1..LEASE + 3).prop_map(Step::Wait),
            6 => Just(Step::Claim),
            3 => late.clone().prop_map(Step::Renew),
            8 => late.clone().prop_map(Step::Write),
            3 => late.clone().prop_map(Step::Release),
            1 => (late, prop_oneof![Just(State::Completed), Just(State::Failed)])
                .prop_map(|(late, end)| Step::Finish(late, end)),
            4 => Just(Step::TakeBack),
            1 => Just(Step::Cancel),
            1 => Just(Step::Expire),
        ]
    }

    /// Everything that a reader of the store would have seen.
    #[derive(Default)]
    struct Seen {
        events: Vec<EventId>,
        ends: u32,
    }

    fn apply(life: &mut Life, step: &Step, now: &mut u64, seen: &mut Seen) {
        let before = *life;
        let run = |late: u32| before.attempt.wrapping_sub(late);
        let is_stale = |late: u32| before.state != State::Running || late != 0;
        let mut stale = None;
        let event = match *step {
            Step::Wait(time) => {
                *now += time;
                None
            }
            Step::Claim => life.claim(*now + LEASE).map(|opening| opening.id),
            Step::Renew(late) => {
                stale = Some((is_stale(late), life.renew(run(late), *now + LEASE).is_err()));
                None
            }
            Step::Write(late) => {
                let written = life.push_event(run(late));
                stale = Some((is_stale(late), written.is_err()));
                written.ok()
            }
            Step::Release(late) => {
                stale = Some((is_stale(late), life.release(run(late)).is_err()));
                None
            }
            Step::Finish(late, end) => {
                let finished = life.finish(run(late), end);
                stale = Some((is_stale(late), finished.is_err()));
                finished.ok()
            }
            Step::TakeBack => match life.take_back(*now, LOST_MAX) {
                Some(TakenBack::Failed(id)) => Some(id),
                _ => None,
            },
            Step::Cancel => life.cancel(),
            Step::Expire => life.expire(),
        };
        if let Some((expected, refused)) = stale {
            assert_eq!(refused, expected, "{step:?} of {before:?}");
        }
        seen.ends += u32::from(!before.state.is_finished() && life.state.is_finished());
        seen.events.extend(event);
        if before.state.is_finished() {
            assert_eq!(*life, before, "{step:?} changes a finished job");
        }
        assert!(life.attempt >= before.attempt);
        assert_eq!(life.lease_until > 0, life.state == State::Running);
        if life.state.is_finished() != before.state.is_finished() {
            assert_eq!(event, Some(life.last_event()), "an end has an event");
        }
    }

    proptest! {
        #[test]
        fn only_the_present_attempt_changes_a_job_and_it_ends_once(
            steps in prop::collection::vec(step(), 1..80)
        ) {
            let (mut life, mut now, mut seen) = (Life::NEW, 1_000, Seen::default());
            for step in &steps {
                apply(&mut life, step, &mut now, &mut seen);
            }
            prop_assert!(seen.events.is_sorted_by(|one, next| one < next), "{:?}", seen.events);
            prop_assert_eq!(seen.ends, u32::from(life.state.is_finished()));
            prop_assert!(life.lost <= LOST_MAX);
        }
    }

    /// Mutation: `renew` that keeps the later end.
    #[test]
    fn a_lease_follows_a_clock_that_was_set_back() {
        let mut life = Life::NEW;
        life.claim(5_000).unwrap();
        life.renew(1, 1_000).unwrap();
        assert_eq!(life.take_back(999, LOST_MAX), None);
        assert_eq!(life.take_back(1_000, LOST_MAX), Some(TakenBack::Queued));
    }

    /// Mutations: `take_back` that does not count, or that ignores the lease.
    #[test]
    fn a_job_that_is_lost_too_often_fails() {
        let mut life = Life::NEW;
        for lost in 1..LOST_MAX {
            let opening = life.claim(10).unwrap();
            assert_eq!(
                opening.id,
                EventId {
                    attempt: lost,
                    sequence: 0
                }
            );
            assert_eq!(opening.kind == EventKind::Started, lost == 1);
            assert_eq!(
                life.take_back(9, LOST_MAX),
                None,
                "its lease has not run out"
            );
            assert_eq!(life.take_back(10, LOST_MAX), Some(TakenBack::Queued));
        }
        life.claim(10).unwrap();
        let last = EventId {
            attempt: LOST_MAX,
            sequence: 1,
        };
        assert_eq!(life.take_back(10, LOST_MAX), Some(TakenBack::Failed(last)));
        assert_eq!(life.claim(10), None);
    }

    #[test]
    fn states_have_words() {
        for state in State::ALL {
            assert_eq!(State::parse(state.as_str()), Some(state));
            assert_eq!(state.last_event().is_some(), state.is_finished());
        }
        assert_eq!(State::parse("Queued"), None);
    }
}
