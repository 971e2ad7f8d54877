//! One attempt to run a job: from its claim to the end that is saved.
//!
//! ```text
//!   Running ── Done, Failed, drain ──> ended: the last part waits to be saved ──> gone
//!      │                                                                          ^
//!      └─────────────── fenced, or cancelled by its client ───────────────────────┘
//! ```
//!
//! Owns the text of the attempt, and the part of the program that is not saved yet. Pure: events
//! and the time go in, parts to save come out.
//!
//! Invariants:
//!  1. A part that was taken is either saved or given back, before another one is taken.
//!  2. A part that was given back is the next one again, unchanged except for its lease: the store
//!     may have it already, and could not recognise it together with newer text.
//!  3. After its end nothing is added to an attempt.
//!
//! Mutations that the tests catch: `give_back` that puts its text in front of the newer one, or
//! forgets it; a part that is repeated with its earlier lease; `release_credit` that does not count
//! it; an end that is taken before the text; `hold` without `release`; in `handle_done` and
//! `handle_failed` any line left out; `take_part` that leaves `renew_at`; `handle_deadline` of an
//! attempt that has ended; `stop` without its ticket; a part that was taken before the clock was
//! set and makes the lease good.

use std::sync::Arc;
use std::time::Duration;

use crate::core::Moment;
use crate::engine::code::Extractor;
use crate::engine::{Done, Event, FailReason, Failed, GenerationId, Usage};
use crate::error::ErrorCode;
use crate::jobs::{Completion, Ending, Failure, JobId};
use crate::keys::Holder;
use crate::leases::Reservation;
use crate::limits::jobs as limits;
use crate::offload::{CancelReason, Ticket};

use super::callbacks::Callbacks;
use super::changes::{Next, Write};
use super::recording::Recording;

/// See the file's head.
pub struct Attempt {
    pub id: JobId,
    pub number: u32,
    origin: Option<Origin>,
    ticket: Arc<Ticket>,
    /// Everything that the model has written.
    text: String,
    /// Finds the program in it; `None` once that is complete.
    extractor: Option<Extractor>,
    /// The part of the program that no save has.
    unsaved: String,
    /// The part whose save has failed, as far as is known here.
    given_back: Option<Write>,
    /// The number of the last event that is certainly saved. The claim has written the first, 0.
    saved: u32,
    /// Credit of events that were taken while too much was unsaved.
    held_credit: u32,
    charge: Option<Charge>,
    /// `None`: records are off, or it was sent.
    pub recording: Option<Recording>,
    /// Whether the end of its job is to be reported to a server of the client's.
    pub has_callback: bool,
    /// The tenant whose place it holds, if its job was called.
    pub called_by: Option<u64>,
    begun: Moment,
    lease: Lease,
    /// When its lease must be renewed.
    renew_at: Moment,
    /// When the engine must be reminded of the deadline; `NEVER` once that was done.
    deadline: Moment,
    /// `None` while it runs.
    end: Option<Next>,
    is_saving: bool,
}

/// Whether the store has the lease that an attempt needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    Held,
    /// The wall clock was set, or the store has failed: its end may be anywhere.
    Doubtful,
    /// It was doubtful, and a new one is being saved.
    Renewing,
}

/// The generation that an attempt makes.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub id: GenerationId,
    pub language: Option<&'static str>,
    pub deadline: Moment,
}

/// The tokens that were taken from a key for an attempt.
pub struct Charge {
    pub holder: Arc<Holder>,
    pub reservation: Reservation,
}

impl Charge {
    pub fn reconcile(self, used: u32, now: Moment) {
        self.reservation.reconcile(&self.holder, used, now);
    }
}

impl Attempt {
    pub fn new(
        id: JobId,
        number: u32,
        origin: Origin,
        ticket: Arc<Ticket>,
        charge: Option<Charge>,
        now: Moment,
        renew_at: Moment,
    ) -> Attempt {
        Attempt {
            id,
            number,
            extractor: Some(Extractor::new(origin.language)),
            origin: Some(origin),
            ticket,
            text: String::new(),
            unsaved: String::new(),
            given_back: None,
            saved: 0,
            held_credit: 0,
            charge,
            recording: None,
            has_callback: false,
            called_by: None,
            begun: now,
            lease: Lease::Held,
            renew_at,
            deadline: origin.deadline,
            end: None,
            is_saving: false,
        }
    }

    /// An attempt that has ended before the engine got it.
    pub fn ended(id: JobId, number: u32, end: Next, now: Moment) -> Attempt {
        Attempt {
            id,
            number,
            extractor: None,
            origin: None,
            ticket: Arc::new(Ticket::new(0)),
            text: String::new(),
            unsaved: String::new(),
            given_back: None,
            saved: 0,
            held_credit: 0,
            charge: None,
            recording: None,
            has_callback: false,
            called_by: None,
            begun: now,
            lease: Lease::Held,
            renew_at: Moment::NEVER,
            deadline: Moment::NEVER,
            end: Some(end),
            is_saving: false,
        }
    }

    // ---- events ----

    /// Handles an event of the engine. `model` is the loaded model's name. Returns whether the
    /// engine must look for credit that it had found none of.
    #[must_use]
    pub fn handle_event(&mut self, event: Event, model: Option<&str>, now: Moment) -> bool {
        if self.end.is_some() {
            return false;
        }
        match event {
            Event::Token { text } => {
                self.push(&text);
                self.held_credit += 1;
                return self.release_credit();
            }
            Event::Served(_) => {}
            Event::Done(done) => self.handle_done(*done, model, now),
            Event::Failed(failed) => self.handle_failed(*failed, now),
        }
        false
    }

    fn handle_done(&mut self, done: Done, model: Option<&str>, now: Moment) {
        self.push(&done.text);
        self.end_text();
        if let Some(recording) = &mut self.recording {
            recording.handle_done(&done, &self.text, now);
        }
        // A result that was computed for another request is free.
        let used = match done.served.verdict.is_cached() {
            true => 0,
            false => tokens(&done.usage),
        };
        self.settle(used, now);
        let reused = done.served.origin;
        let own = self.origin.map(|origin| origin.id);
        let id = reused.map(|earlier| earlier.id).or(own);
        let latency = reused.map_or(now.since(self.begun), |earlier| earlier.latency);
        let language = self.origin.and_then(|origin| origin.language);
        let completion = Completion {
            id: id.map_or_else(String::new, |id| id.to_string()),
            language: language.map(str::to_owned),
            cached: reused.is_some(),
            text: std::mem::take(&mut self.text),
            model: model.map(str::to_owned),
            finish_reason: done.finish_reason.as_str().to_owned(),
            prompt_tokens: done.usage.prompt_tokens,
            cached_tokens: done.usage.cached_tokens,
            completion_tokens: done.usage.completion_tokens,
            latency_ms: milliseconds(latency),
        };
        self.end = Some(Next::End(Box::new(Ending::Completed(completion))));
    }

    fn handle_failed(&mut self, failed: Failed, now: Moment) {
        self.settle(tokens(&failed.usage), now);
        self.end = Some(match failed.reason {
            FailReason::Error(ErrorCode::EngineFailed) => Next::Lose,
            FailReason::Error(code) => {
                self.push(&failed.text);
                self.end_text();
                if let Some(recording) = &mut self.recording {
                    recording.handle_failed(&failed, code, &self.text, now);
                }
                failure(code, failed.message)
            }
            FailReason::Cancelled(_) | FailReason::CrowdedOut { .. } | FailReason::Refused(_) => {
                Next::Wait { postponed: None }
            }
        });
    }

    /// Ends the attempt because the daemon ends: the job waits for another one.
    pub fn park(&mut self) {
        if self.end.is_none() {
            self.ticket.cancel(CancelReason::Drain);
            self.end = Some(Next::Wait { postponed: None });
        }
    }

    /// Stops the engine: nothing of this attempt counts any more.
    pub fn stop(&mut self) {
        self.ticket.cancel(CancelReason::Disconnect);
    }

    /// Returns when [`Attempt::handle_deadline`] must be called.
    pub fn deadline(&self) -> Moment {
        self.deadline
    }

    /// Returns whether the engine must be told that the time of its job has passed.
    #[must_use]
    pub fn handle_deadline(&mut self, now: Moment) -> bool {
        let has_passed = now >= self.deadline;
        if has_passed {
            self.deadline = Moment::NEVER;
        }
        has_passed && self.end.is_none()
    }

    // ---- saving ----

    /// Returns when a part of it is to be saved: its end and a doubtful lease at once, output at
    /// `batch_at`, otherwise when its lease must be renewed.
    pub fn next_save(&self, batch_at: Moment) -> Moment {
        match (self.is_saving, &self.end) {
            (true, _) => Moment::NEVER,
            (false, Some(_)) => Moment::ZERO,
            (false, None) if self.lease == Lease::Doubtful => Moment::ZERO,
            (false, None) if !self.unsaved.is_empty() => batch_at.min(self.renew_at),
            (false, None) => self.renew_at,
        }
    }

    /// Returns the time since it began.
    pub fn age(&self, now: Moment) -> Duration {
        now.since(self.begun)
    }

    /// The wall clock was set: by it, the lease may have run out, or last for hours.
    pub fn doubt_lease(&mut self) {
        self.lease = Lease::Doubtful;
    }

    pub fn holds_lease(&self) -> bool {
        self.lease == Lease::Held
    }

    /// Takes the next part to save. Its lease then lasts until `lease_until`, and is to be renewed
    /// at `renew_at`.
    pub fn take_part(&mut self, lease_until: u64, renew_at: Moment) -> Write {
        debug_assert!(!self.is_saving, "invariant 1");
        self.is_saving = true;
        self.renew_at = renew_at;
        if self.lease == Lease::Doubtful {
            self.lease = Lease::Renewing;
        }
        let run = Next::Run { lease_until };
        if let Some(mut part) = self.given_back.take() {
            if matches!(part.next, Next::Run { .. }) {
                part.next = run;
            }
            return part;
        }
        Write {
            id: self.id,
            attempt: self.number,
            after: self.saved,
            text: std::mem::take(&mut self.unsaved),
            next: self.end.clone().unwrap_or(run),
        }
    }

    /// The part was saved. Returns whether the engine must look for credit that it had found none
    /// of.
    #[must_use]
    pub fn handle_saved(&mut self, part: &Write) -> bool {
        self.is_saving = false;
        self.saved = part.behind_text();
        // One that was saved before the clock was set stays doubtful.
        if self.lease == Lease::Renewing {
            self.lease = Lease::Held;
        }
        self.release_credit()
    }

    /// The part was not saved, or only the reply was lost. It is saved again before any other.
    pub fn give_back(&mut self, part: Write) {
        self.is_saving = false;
        self.lease = Lease::Doubtful;
        self.given_back = Some(part);
    }

    /// Has the callback of its job sent, if there is one. A look costs a task of the store.
    pub fn report_end(&self, callbacks: &Callbacks) {
        if self.has_callback {
            callbacks.look();
        }
    }

    // ---- helpers ----

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        if let Some(extractor) = &mut self.extractor {
            extractor.push(text, &mut self.unsaved);
        }
    }

    fn end_text(&mut self) {
        if let Some(extractor) = self.extractor.take() {
            self.unsaved.push_str(&extractor.finish());
        }
    }

    fn release_credit(&mut self) -> bool {
        let given_back = self.given_back.as_ref().map_or(0, |part| part.text.len());
        let has_room = self.unsaved.len() + given_back < limits::UNSAVED_BYTES_MAX;
        has_room && self.ticket.grant(std::mem::take(&mut self.held_credit))
    }

    fn settle(&mut self, used: u32, now: Moment) {
        if let Some(charge) = self.charge.take() {
            charge.reconcile(used, now);
        }
    }
}

/// Returns the end of a job that has failed.
pub fn failure(code: ErrorCode, message: impl Into<String>) -> Next {
    Next::End(Box::new(Ending::Failed(Failure {
        code: code.as_str().to_owned(),
        message: message.into(),
    })))
}

fn tokens(usage: &Usage) -> u32 {
    usage.prompt_tokens.saturating_add(usage.completion_tokens)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::UnixMillis;
    use crate::core::bucket::Rate;
    use crate::engine::{FinishReason, Served, Timings, Verdict};
    use crate::leases::{Draw, Leases, Unit};
    use crate::telemetry::id::Ids;
    use crate::telemetry::random::SplitMix64;

    fn attempt(credit: u32) -> Attempt {
        let ticket = Arc::new(Ticket::new(credit));
        let id = JobId::from_bytes([1; 16]);
        let origin = Origin {
            id: GenerationId::FIRST,
            language: Some("python"),
            deadline: Moment::from_micros(9_000_000),
        };
        Attempt::new(id, 1, origin, ticket, None, Moment::ZERO, Moment::NEVER)
    }

    const RATE: Rate = Rate {
        per_minute: 60,
        burst: 60,
    };

    /// Returns an attempt for which a key has reserved tokens, and the key.
    fn charged(units: u32, now: Moment) -> (Attempt, Arc<Holder>) {
        let holder = Holder::of("key_1");
        let draw = Draw {
            unit: Unit::Tokens,
            rate: RATE,
            units,
            percent: 100,
        };
        let (_, reservation) = Leases::default().reserve(&holder, draw, now).unwrap();
        let mut attempt = attempt(0);
        attempt.charge = Some(Charge {
            holder: Arc::clone(&holder),
            reservation,
        });
        (attempt, holder)
    }

    fn token(text: &str) -> Event {
        Event::Token {
            text: text.to_owned(),
        }
    }

    fn done(text: &str) -> Event {
        Event::Done(Box::new(Done {
            text: text.to_owned(),
            finish_reason: FinishReason::Stop,
            usage: Usage::default(),
            timings: Timings::default(),
            served: Served::default(),
        }))
    }

    fn failed(reason: FailReason) -> Event {
        Event::Failed(Box::new(Failed {
            reason,
            message: "why".to_owned(),
            text: String::new(),
            usage: Usage::default(),
            timings: Timings::default(),
        }))
    }

    fn take(attempt: &mut Attempt) -> Write {
        attempt.take_part(9, Moment::NEVER)
    }

    #[test]
    fn the_program_is_saved_once_and_in_order_although_a_save_fails() {
        let mut attempt = attempt(0);
        let now = Moment::from_micros(5_000);
        let mut saved = String::new();
        let _ = attempt.handle_event(token("Here:\n```python\na = 1\n"), None, now);
        let lost = take(&mut attempt);
        assert_eq!(attempt.next_save(now), Moment::NEVER, "it is being saved");
        let _ = attempt.handle_event(token("b = 2\n"), None, now);
        let lost_text = lost.text.clone();
        attempt.give_back(lost);
        assert_eq!(attempt.next_save(now), Moment::ZERO, "its lease is older");
        let part = attempt.take_part(10, Moment::NEVER);
        assert_eq!(
            (part.after, &part.text),
            (0, &lost_text),
            "and nothing else"
        );
        saved.push_str(&part.text);
        let _ = attempt.handle_event(done("c = 3\n```\nBye"), Some("tiny"), now);
        assert!(!attempt.handle_saved(&part));
        assert_eq!(
            part.next,
            Next::Run { lease_until: 10 },
            "it was taken before the end"
        );
        assert_eq!(attempt.next_save(now), Moment::ZERO);
        let last = take(&mut attempt);
        assert_eq!(last.after, 1);
        saved.push_str(&last.text);
        assert_eq!(saved.trim_end(), "a = 1\nb = 2\nc = 3");
        let _ = attempt.handle_saved(&last);
        let Next::End(ending) = last.next else {
            panic!("{:?}", last.next);
        };
        let Ending::Completed(completion) = *ending else {
            panic!("{ending:?}");
        };
        assert!(completion.text.ends_with("c = 3\n```\nBye"));
        assert_eq!(
            (completion.latency_ms, completion.model.as_deref()),
            (5, Some("tiny"))
        );
    }

    #[test]
    fn a_doubtful_lease_is_renewed_at_once_and_held_when_that_is_saved() {
        let now = Moment::from_micros(1);
        let mut attempt = attempt(0);
        assert!(attempt.holds_lease());
        assert_eq!(attempt.next_save(now), Moment::NEVER);
        let earlier = take(&mut attempt);
        attempt.doubt_lease();
        let _ = attempt.handle_saved(&earlier);
        assert!(!attempt.holds_lease(), "that part had the earlier time");
        for is_saved in [false, true] {
            assert_eq!(attempt.next_save(now), Moment::ZERO);
            let part = take(&mut attempt);
            assert!(!attempt.holds_lease());
            match is_saved {
                true => _ = attempt.handle_saved(&part),
                false => attempt.give_back(part),
            }
            assert_eq!(attempt.holds_lease(), is_saved);
        }
        assert_eq!(attempt.next_save(now), Moment::NEVER);
        assert_eq!(earlier.next, Next::Run { lease_until: 9 });
    }

    /// Mutation: `handle_done` that charges for every result.
    #[test]
    fn a_result_of_the_cache_costs_the_key_of_a_job_no_tokens() {
        for (verdict, is_free) in [(Verdict::Hit, true), (Verdict::Miss, false)] {
            let now = Moment::from_micros(1);
            let (mut attempt, holder) = charged(50, now);
            let mut event = done("x");
            if let Event::Done(done) = &mut event {
                done.usage.completion_tokens = 50;
                done.served.verdict = verdict;
            }
            let _ = attempt.handle_event(event, None, now);
            assert_eq!(holder.account.tokens.take(RATE, 60, now).is_ok(), is_free);
        }
    }

    #[test]
    fn the_result_has_all_that_the_engine_reports() {
        let earlier = crate::engine::Origin {
            id: Ids::new(SplitMix64::new(1, 1)).make(UnixMillis::new(5)),
            latency: Duration::from_millis(70),
        };
        for (origin, latency_ms) in [(None, 5), (Some(earlier), 70)] {
            let mut attempt = attempt(0);
            let mut event = done("text");
            if let Event::Done(done) = &mut event {
                done.usage = Usage {
                    prompt_tokens: 3,
                    cached_tokens: 2,
                    completion_tokens: 5,
                };
                done.served.origin = origin;
            }
            let now = Moment::from_micros(5_000);
            let _ = attempt.handle_event(event, Some("tiny"), now);
            let Next::End(ending) = take(&mut attempt).next else {
                panic!("it has not ended");
            };
            let id = origin.map_or(GenerationId::FIRST, |earlier| earlier.id);
            let expected = Completion {
                id: id.to_string(),
                language: Some("python".to_owned()),
                text: "text".to_owned(),
                model: Some("tiny".to_owned()),
                finish_reason: "stop".to_owned(),
                prompt_tokens: 3,
                cached_tokens: 2,
                completion_tokens: 5,
                cached: origin.is_some(),
                latency_ms,
            };
            assert_eq!(*ending, Ending::Completed(expected));
        }
    }

    /// The model stopped in the middle of a line, with its fence open.
    #[test]
    fn the_end_of_a_program_that_is_cut_off_is_saved_too() {
        let timeout = FailReason::Error(ErrorCode::GenerationTimeout);
        let mut late = failed(timeout);
        if let Event::Failed(failed) = &mut late {
            failed.text = "= 2".to_owned();
        }
        for end in [done("= 2"), late] {
            // Without a fence, no code is certain before the end.
            for begun in ["```python\na = 1\nb ", "a = 1\nb "] {
                let mut attempt = attempt(0);
                let _ = attempt.handle_event(token(begun), None, Moment::ZERO);
                let _ = attempt.handle_event(end.clone(), None, Moment::ZERO);
                assert_eq!(take(&mut attempt).text.trim_end(), "a = 1\nb = 2");
            }
        }
    }

    #[test]
    fn a_failure_costs_the_tokens_that_were_used() {
        let now = Moment::from_micros(1);
        let (mut attempt, holder) = charged(50, now);
        let mut event = failed(FailReason::Error(ErrorCode::EngineFailed));
        if let Event::Failed(failed) = &mut event {
            failed.usage.prompt_tokens = 20;
            failed.usage.completion_tokens = 10;
        }
        let _ = attempt.handle_event(event, None, now);
        let bucket = &holder.account.tokens;
        assert!(bucket.take(RATE, 31, now).is_err(), "30 were used");
        assert!(bucket.take(RATE, 30, now).is_ok());
    }

    #[test]
    fn an_attempt_is_saved_when_its_lease_must_be_renewed() {
        let [batch_at, renew_at, later] = [1, 2, 3].map(Moment::from_micros);
        let mut attempt = attempt(0);
        attempt.renew_at = renew_at;
        assert_eq!(attempt.next_save(batch_at), renew_at, "nothing is written");
        let _ = attempt.handle_event(token("```python\nx\n"), None, Moment::ZERO);
        assert_eq!(attempt.next_save(batch_at), batch_at);
        assert_eq!(attempt.next_save(later), renew_at, "before the batch");
        let part = attempt.take_part(9, later);
        let _ = attempt.handle_saved(&part);
        assert_eq!(attempt.next_save(batch_at), later);
    }

    #[test]
    fn an_attempt_that_is_stopped_or_has_ended_needs_no_engine() {
        let mut attempt = attempt(0);
        attempt.stop();
        let reason = attempt.ticket.cancelled();
        assert_eq!(reason, Some(CancelReason::Disconnect));
        let _ = attempt.handle_event(done("x"), None, Moment::ZERO);
        let late = Moment::from_micros(9_000_000);
        assert!(!attempt.handle_deadline(late), "it has ended");
        assert_eq!(attempt.deadline(), Moment::NEVER);
        attempt.park();
        let next = take(&mut attempt).next;
        assert!(matches!(next, Next::End(_)), "its result counts: {next:?}");
    }

    #[test]
    fn a_store_that_fails_stops_the_engine_by_its_credit() {
        let mut attempt = attempt(1);
        let ticket = Arc::clone(&attempt.ticket);
        assert!(ticket.take_credit());
        let text = format!("```python\n{}\n", "x".repeat(limits::UNSAVED_BYTES_MAX));
        let _ = attempt.handle_event(token(&text), None, Moment::ZERO);
        assert!(!ticket.take_credit(), "too much is unsaved");
        let part = take(&mut attempt);
        attempt.give_back(part);
        let _ = attempt.handle_event(token("x"), None, Moment::ZERO);
        assert!(!ticket.take_credit(), "it is unsaved again");
        let part = take(&mut attempt);
        assert!(attempt.handle_saved(&part), "the engine waits");
        assert!(ticket.take_credit());
        let _ = attempt.handle_event(token("y"), None, Moment::ZERO);
        assert!(ticket.take_credit(), "a little is not");
    }

    #[test]
    fn each_failure_ends_the_attempt_in_its_own_way() {
        let wait = Next::Wait { postponed: None };
        let timeout = FailReason::Error(ErrorCode::GenerationTimeout);
        let long = FailReason::Error(ErrorCode::ContextLengthExceeded);
        for (text, reason, expected) in [
            ("x", timeout, failure(ErrorCode::GenerationTimeout, "why")),
            ("", long, failure(ErrorCode::ContextLengthExceeded, "why")),
            ("", FailReason::Error(ErrorCode::EngineFailed), Next::Lose),
            (
                "x",
                FailReason::Cancelled(CancelReason::Drain),
                wait.clone(),
            ),
        ] {
            let mut attempt = attempt(0);
            if !text.is_empty() {
                let _ = attempt.handle_event(token(text), None, Moment::ZERO);
            }
            let _ = attempt.handle_event(failed(reason.clone()), None, Moment::ZERO);
            let _ = attempt.handle_event(done("late"), None, Moment::ZERO);
            assert_eq!(take(&mut attempt).next, expected, "{text} {reason:?}");
        }
        let mut late = attempt(0);
        assert!(!late.handle_deadline(Moment::from_micros(8_999_999)));
        assert!(late.handle_deadline(Moment::from_micros(9_000_000)));
        assert!(
            !late.handle_deadline(Moment::from_micros(9_000_001)),
            "once"
        );
        let mut parked = attempt(0);
        parked.park();
        assert_eq!(parked.ticket.cancelled(), Some(CancelReason::Drain));
        assert_eq!(take(&mut parked).next, wait);
    }
}
