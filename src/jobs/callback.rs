//! The callback of a job: a request that reports its end to a server of the client's.
//!
//! ```text
//!   job ends ──> Pending ── claim, send ──> settle ──> Delivered (2xx)
//!                   ^                          │ ├───> Failed (410, a forbidden address, too many
//!                   └── later, with a pause ───┘        attempts, or the job is deleted first)
//! ```
//!
//! The store has a row for each callback from the moment that its job has ended, in the same
//! transaction. A daemon that sends one claims it first: the attempt is counted and put off until
//! the attempt must be over. So a daemon that is killed costs that time and no callback; the
//! receiver may get it twice, with the same id. The number of the attempt is the fence: a result
//! that comes later than another claim is not saved.
//!
//! Pure; times are in milliseconds since 1970.
//!
//! Mutations that the tests catch: `settle` without a bound on attempts, or on the time; one whose
//! attempts end with a daemon's; a pause that ignores `Retry-After`, or follows it without a bound;
//! one without jitter.

/// The states. Their words are what clients and the store see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackState {
    Pending,
    Delivered,
    Failed,
}

impl CallbackState {
    pub const ALL: [CallbackState; 3] = [
        CallbackState::Pending,
        CallbackState::Delivered,
        CallbackState::Failed,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            CallbackState::Pending => "pending",
            CallbackState::Delivered => "delivered",
            CallbackState::Failed => "failed",
        }
    }

    pub fn parse(word: &str) -> Option<CallbackState> {
        let mut states = CallbackState::ALL.into_iter();
        states.find(|state| state.as_str() == word)
    }
}

/// See the file's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    pub state: CallbackState,
    /// Attempts that have begun.
    pub attempts: u32,
    /// When the next attempt is due.
    pub next_at: u64,
    /// Why the last attempt has failed.
    pub error: Option<String>,
}

/// The bounds of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct CallbackTerms {
    pub attempts_max: u32,
    /// The pause after the first attempt. It doubles each time.
    pub pause_ms: u64,
    pub pause_ms_max: u64,
}

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// Another attempt may succeed.
    Failed {
        why: String,
        /// The receiver asks for this pause.
        retry_after_ms: Option<u64>,
    },
    /// No other attempt would succeed.
    Refused {
        why: String,
    },
    /// The daemon has ended it.
    CutOff,
}

impl Callback {
    /// Returns when the next attempt is due, or the present one must be over. `None`: none is left.
    pub fn next_attempt_at(&self) -> Option<u64> {
        (self.state == CallbackState::Pending).then_some(self.next_at)
    }

    /// Begins an attempt.
    #[must_use]
    pub fn claim(&self, lease_until: u64) -> Callback {
        Callback {
            attempts: self.attempts.saturating_add(1),
            next_at: lease_until,
            ..self.clone()
        }
    }

    /// Ends an attempt. `expires_at` is when the job is deleted, and `draw` a random number.
    ///
    /// An attempt that a daemon's end has cut off counts, because its number is the fence, but it
    /// is never the last one: a drain would lose what a kill leaves pending. If daemons end during
    /// each attempt, as they may for a receiver that never responds, the end of the job is the
    /// bound.
    #[must_use]
    pub fn settle(
        self,
        outcome: Outcome,
        terms: &CallbackTerms,
        now: u64,
        expires_at: u64,
        draw: u64,
    ) -> Callback {
        let end = |state, error| Callback {
            state,
            error,
            next_at: now,
            ..self.clone()
        };
        let is_cut_off = outcome == Outcome::CutOff;
        let (why, pause) = match outcome {
            Outcome::Delivered => return end(CallbackState::Delivered, None),
            Outcome::Refused { why } => return end(CallbackState::Failed, Some(why)),
            Outcome::CutOff => ("the daemon ended during the attempt".to_owned(), 0),
            Outcome::Failed {
                why,
                retry_after_ms,
            } => (why, terms.pause(self.attempts, retry_after_ms, draw)),
        };
        let next_at = now.saturating_add(pause);
        let is_spent = self.attempts >= terms.attempts_max && !is_cut_off;
        let state = match is_spent || next_at >= expires_at {
            true => CallbackState::Failed,
            false => CallbackState::Pending,
        };
        Callback {
            next_at,
            ..end(state, Some(why))
        }
    }
}

impl CallbackTerms {
    /// Returns the pause after this many attempts: random between the half and the whole of a time
    /// that doubles, so that callbacks which failed together do not come back together. A receiver
    /// may make it longer, but not longer than any pause is.
    fn pause(&self, attempts: u32, retry_after_ms: Option<u64>, draw: u64) -> u64 {
        let doublings = attempts.saturating_sub(1).min(32);
        let whole = self.pause_ms.saturating_mul(1 << doublings);
        let whole = whole.min(self.pause_ms_max);
        let half = whole / 2;
        let pause = half + draw % (whole - half + 1);
        pause.max(retry_after_ms.unwrap_or(0).min(self.pause_ms_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TERMS: CallbackTerms = CallbackTerms {
        attempts_max: 5,
        pause_ms: 1_000,
        pause_ms_max: 6_000,
    };

    const NEW: Callback = Callback {
        state: CallbackState::Pending,
        attempts: 0,
        next_at: 0,
        error: None,
    };

    fn failed(retry_after_ms: Option<u64>) -> Outcome {
        Outcome::Failed {
            why: "why".to_owned(),
            retry_after_ms,
        }
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_attempts_end() {
        let mut callback = NEW;
        for (draw, pause) in [(0, 500), (0, 1_000), (0, 2_000), (0, 3_000)] {
            callback = callback.claim(u64::MAX);
            callback = callback.settle(failed(None), &TERMS, 10, u64::MAX, draw);
            assert_eq!(callback.state, CallbackState::Pending);
            assert_eq!(
                callback.next_at,
                10 + pause,
                "attempt {}",
                callback.attempts
            );
        }
        callback = callback.claim(u64::MAX);
        callback = callback.settle(failed(None), &TERMS, 10, u64::MAX, 0);
        assert_eq!(callback.state, CallbackState::Failed);
        assert_eq!(
            (callback.attempts, callback.error.as_deref()),
            (5, Some("why"))
        );
    }

    #[test]
    fn a_receiver_may_ask_for_a_longer_pause_within_the_bound() {
        for (asked, pause) in [(0, 500), (2_500, 2_500), (1_000_000, 6_000)] {
            let callback = NEW
                .claim(9)
                .settle(failed(Some(asked)), &TERMS, 10, u64::MAX, 0);
            assert_eq!(callback.next_at, 10 + pause);
        }
    }

    #[test]
    fn the_end_of_the_job_ends_its_callback_and_so_does_a_refusal() {
        let late = NEW.claim(9).settle(failed(None), &TERMS, 10, 500, 0);
        assert_eq!(late.state, CallbackState::Failed);
        let gone = Outcome::Refused {
            why: "gone".to_owned(),
        };
        let refused = NEW.claim(9).settle(gone, &TERMS, 10, u64::MAX, 0);
        assert_eq!(refused.state, CallbackState::Failed);
        let cut = NEW
            .claim(9)
            .settle(Outcome::CutOff, &TERMS, 10, u64::MAX, 7);
        assert_eq!((cut.state, cut.next_at), (CallbackState::Pending, 10));
        let delivered = cut.claim(99).settle(Outcome::Delivered, &TERMS, 11, 0, 0);
        assert_eq!(
            (delivered.state, delivered.attempts, delivered.error),
            (CallbackState::Delivered, 2, None)
        );
    }

    /// Mutations: `is_spent` for each outcome, or for none; an attempt that is not counted; one
    /// without the bound of the job's end.
    #[test]
    fn the_end_of_a_daemon_takes_no_last_attempt() {
        let mut callback = Callback {
            attempts: TERMS.attempts_max - 1,
            ..NEW
        };
        for attempts in [TERMS.attempts_max, TERMS.attempts_max + 1] {
            let begun = callback.claim(9);
            callback = begun.settle(Outcome::CutOff, &TERMS, 10, 11, 0);
            let found = (callback.state, callback.attempts, callback.next_at);
            assert_eq!(found, (CallbackState::Pending, attempts, 10));
        }
        let begun = callback.claim(9);
        let late = begun.clone().settle(Outcome::CutOff, &TERMS, 10, 10, 0);
        assert_eq!(late.state, CallbackState::Failed, "its job is deleted");
        let spent = begun.settle(failed(None), &TERMS, 10, u64::MAX, 0);
        assert_eq!(spent.state, CallbackState::Failed, "none is left");
    }

    proptest! {
        #[test]
        fn a_pause_is_between_the_half_and_the_whole(attempts in 1_u32..=u32::MAX, draw: u64) {
            let pause = TERMS.pause(attempts, None, draw);
            let whole = TERMS.pause_ms_max.min(1_000 << (attempts - 1).min(20));
            prop_assert!((whole / 2..=whole).contains(&pause));
        }
    }

    #[test]
    fn pauses_differ() {
        assert_ne!(TERMS.pause(1, None, 1), TERMS.pause(1, None, 2));
    }

    #[test]
    fn states_have_words() {
        for state in CallbackState::ALL {
            assert_eq!(CallbackState::parse(state.as_str()), Some(state));
        }
        assert_eq!(CallbackState::parse("done"), None);
    }
}
