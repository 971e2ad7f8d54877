//! One running generation, and all the requests that get its result: a flight and its followers.
//!
//! Owns the text that has been generated so far, and for each follower the number of its bytes that
//! it has been sent. Pure: the owner of the flight submits the job, finds the flight of an event,
//! and delivers what is appended to its list.
//!
//! ```text
//!   engine ── Token ──> text: "fn main() {\n    println!("
//!                             |          |               |
//!   followers:                slow       slower          all others, with credit
//! ```
//!
//! A follower that reads slowly has less credit and a smaller offset; it holds no text of its own
//! and delays no other one. A follower that wants the result in one piece gets it at the end.
//!
//! The job itself has credit as long as one of its followers has: each event of the engine returns
//! its credit when a stream takes a piece. While none does, the engine merges tokens and then
//! pauses, as it does for a client of its own. A job that a follower wants in one piece waits for
//! no client, from then on.
//!
//! The flight's deadline is the latest of its followers' deadlines. Its ticket carries it to the
//! engine, so it grows while the job runs, until the engine has found it to be past. A follower
//! whose own deadline is earlier leaves then, alone.
//!
//! Invariants:
//!  1. The job runs while at least one follower waits. When the last one leaves, the job is
//!     cancelled, and that follower stays for the job's terminal event: its place among its key's
//!     concurrent requests is taken until the engine has really stopped.
//!  2. Each follower is in one of the two lists, at the index that the owner's table has for it.
//!  3. No offset is beyond the text, and each is at the boundary of a character.
//!  4. A turn of [`Flight::handle_token`] sends a bounded number of events and bytes, however many
//!     followers there are; the next turn goes on where this one stopped.
//!  5. While credit is held back from the job, each follower is a stream that lacks text and has
//!     found no credit, so its next grant is reported.

use std::sync::Arc;

use super::key::Digest;
use crate::core::Moment;
use crate::core::buffered::Share;
use crate::engine::{
    Class, Event, FailReason, Failed, GenerationId, Job, Origin, Served, Timings, Usage, Verdict,
};
use crate::error::ErrorCode;
use crate::limits::cache as limits;
use crate::offload::{CancelReason, JobKey, Ticket};

/// A request that waits for a result that it does not compute itself.
#[derive(Debug)]
pub struct Follower {
    pub key: JobKey,
    pub ticket: Arc<Ticket>,
    pub verdict: Verdict,
    /// How many bytes of the text it has been sent.
    pub offset: usize,
    /// Whether it has been sent the source of the text.
    knows_source: bool,
    /// It has left, and waits for the job's terminal event alone.
    pub left: Option<CancelReason>,
}

impl Follower {
    pub fn new(job: &Job, verdict: Verdict) -> Follower {
        Follower {
            key: job.key,
            ticket: Arc::clone(&job.ticket),
            verdict,
            offset: 0,
            knows_source: false,
            left: None,
        }
    }

    pub fn is_streamed(&self) -> bool {
        self.ticket.is_streamed()
    }

    /// Appends the next pieces of the text, at most `pieces` and as far as there is credit. Returns
    /// their bytes.
    pub fn serve(
        &mut self,
        text: &str,
        served: Served,
        pieces: usize,
        events: &mut Vec<(JobKey, Event)>,
    ) -> usize {
        let before = self.offset;
        for _ in 0..pieces {
            // In this order: only a lack of credit that holds up a piece must be noted.
            if self.offset == text.len() || !self.ticket.take_credit() {
                break;
            }
            if !self.knows_source {
                self.knows_source = true;
                events.push((self.key, Event::Served(Box::new(served))));
            }
            let piece = piece(&text[self.offset..]);
            self.offset += piece.len();
            let text = piece.to_owned();
            events.push((self.key, Event::Token { text }));
        }
        self.offset - before
    }
}

/// Returns the beginning of a text: whole characters, and a bounded number of bytes.
pub fn piece(text: &str) -> &str {
    if text.len() <= limits::PIECE_BYTES_MAX {
        return text;
    }
    let end = (0..=limits::PIECE_BYTES_MAX)
        .rev()
        .find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(text.len())]
}

/// A follower's place in its flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    Whole(usize),
    Stream(usize),
}

/// See the file's head.
#[derive(Debug)]
pub struct Flight {
    pub digest: Digest,
    pub tenant: u64,
    pub class: Class,
    /// Of the job; no request has it.
    pub ticket: Arc<Ticket>,
    /// The first follower's generation, and when it was submitted.
    pub id: GenerationId,
    pub submitted: Moment,
    /// The latest of the followers' deadlines.
    pub deadline: Moment,
    pub text: String,
    /// The memory of `text`.
    pub share: Share,
    /// The job of the follower with the latest deadline, while the engine may still refuse the
    /// first one's because its own deadline is too early.
    pub spare: Option<Box<Job>>,
    /// The first follower's job, while the shared level is asked.
    pub asking: Option<Box<Job>>,
    /// Whether the engine has admitted the job.
    pub is_launched: bool,
    wholes: Vec<Follower>,
    streams: Vec<Follower>,
    /// Where the next turn of `serve` begins.
    cursor: usize,
    /// Events of the job whose credit it has not got back.
    held_credit: u32,
    /// Whether the job waits for its followers: all of them have been streams.
    is_paced: bool,
}

impl Flight {
    /// Begins a flight with its first follower.
    pub fn new(digest: Digest, job: &Job, share: Share) -> Flight {
        let is_paced = job.ticket.is_streamed();
        let ticket = Ticket::new(match is_paced {
            true => limits::FLIGHT_CREDIT_EVENTS,
            false => limits::FLIGHT_WHOLE_EVENTS,
        });
        Flight {
            digest,
            tenant: job.tenant,
            class: job.class,
            ticket: Arc::new(ticket),
            id: job.id,
            submitted: job.submitted,
            deadline: job.deadline,
            text: String::new(),
            share,
            spare: None,
            asking: None,
            is_launched: false,
            wholes: Vec::new(),
            streams: Vec::new(),
            cursor: 0,
            held_credit: 0,
            is_paced,
        }
    }

    /// Returns how many followers there are.
    pub fn followers(&self) -> usize {
        self.wholes.len() + self.streams.len()
    }

    /// Returns whether another follower may come: the job's time has not ended. Extends it.
    pub fn extend(&mut self, deadline: Moment) -> bool {
        let may = self.ticket.extend(deadline);
        if may {
            self.deadline = self.deadline.max(deadline);
        }
        may
    }

    /// Returns the follower's seat.
    pub fn add(&mut self, follower: Follower) -> Seat {
        if follower.is_streamed() {
            self.streams.push(follower);
            Seat::Stream(self.streams.len() - 1)
        } else {
            self.wholes.push(follower);
            Seat::Whole(self.wholes.len() - 1)
        }
    }

    /// Adds a follower that comes while the job runs, and sends it what there is. Returns its seat,
    /// and whether the engine must look for the job's credit again.
    pub fn join(&mut self, follower: Follower, events: &mut Vec<(JobKey, Event)>) -> (Seat, bool) {
        let seat = self.add(follower);
        let is_credited = match seat {
            Seat::Stream(_) => self.catch_up(seat, events),
            Seat::Whole(_) => self.wait_for_none(),
        };
        (seat, is_credited)
    }

    pub fn follower_mut(&mut self, seat: Seat) -> &mut Follower {
        match seat {
            Seat::Whole(index) => &mut self.wholes[index],
            Seat::Stream(index) => &mut self.streams[index],
        }
    }

    /// Removes a follower. Another one may get its seat; its key is returned.
    pub fn remove(&mut self, seat: Seat) -> (Follower, Option<JobKey>) {
        let (list, index) = match seat {
            Seat::Whole(index) => (&mut self.wholes, index),
            Seat::Stream(index) => (&mut self.streams, index),
        };
        let follower = list.swap_remove(index);
        (follower, list.get(index).map(|moved| moved.key))
    }

    /// Returns all followers, who leave: first those with a stream.
    pub fn take_all(&mut self) -> impl Iterator<Item = Follower> + use<> {
        let streams = std::mem::take(&mut self.streams);
        streams.into_iter().chain(std::mem::take(&mut self.wholes))
    }

    /// Appends generated text.
    pub fn push(&mut self, text: &str) {
        let before = self.text.capacity();
        self.text.push_str(text);
        if self.text.capacity() != before {
            self.share.set(self.text.capacity());
        }
    }

    /// Handles a token event of the job: sends each stream what it lacks, as far as its credit and
    /// this turn's budget allow.
    pub fn handle_token(&mut self, text: &str, events: &mut Vec<(JobKey, Event)>) {
        self.push(text);
        self.held_credit += u32::from(self.is_paced);
        if self.serve(events) {
            // The engine is the caller, and looks for credit again.
            let _ = self.return_credit();
        }
    }

    /// Returns whether a stream has taken some or has all, or there are more than it looks at.
    fn serve(&mut self, events: &mut Vec<(JobKey, Event)>) -> bool {
        let (mut budget, streams) = (limits::TURN_BYTES_MAX, self.streams.len());
        let mut is_read = streams > limits::TURN_STREAMS_MAX;
        for _ in 0..streams.min(limits::TURN_STREAMS_MAX) {
            if budget == 0 {
                break;
            }
            self.cursor = (self.cursor + 1) % streams;
            let bytes = self.serve_one(Seat::Stream(self.cursor), 1, events);
            budget = budget.saturating_sub(bytes);
            is_read |= bytes > 0 || self.streams[self.cursor].offset == self.text.len();
        }
        is_read
    }

    /// Sends one follower all that it lacks, as far as it has credit. Returns whether the engine
    /// must look for the job's credit again.
    pub fn catch_up(&mut self, seat: Seat, events: &mut Vec<(JobKey, Event)>) -> bool {
        let bytes = self.serve_one(seat, usize::MAX, events);
        bytes > 0 && self.return_credit()
    }

    /// Lets the job run to its end whether or not its streams read. Returns whether the engine must
    /// look for its credit again.
    fn wait_for_none(&mut self) -> bool {
        let was_paced = std::mem::take(&mut self.is_paced);
        self.held_credit = 0;
        was_paced && self.ticket.grant(limits::FLIGHT_WHOLE_EVENTS)
    }

    /// Returns whether the engine has found no credit before.
    fn return_credit(&mut self) -> bool {
        let held = std::mem::take(&mut self.held_credit);
        self.is_paced && self.ticket.grant(held)
    }

    /// Sends one follower the pieces that it lacks. Returns their bytes.
    fn serve_one(&mut self, seat: Seat, pieces: usize, events: &mut Vec<(JobKey, Event)>) -> usize {
        let text = std::mem::take(&mut self.text);
        let origin = self.origin(Moment::ZERO);
        let follower = self.follower_mut(seat);
        let served = served(follower.verdict, origin);
        let bytes = match follower.left {
            Some(_) => 0,
            None => follower.serve(&text, served, pieces, events),
        };
        self.text = text;
        bytes
    }

    /// Returns the flight as a later response names it. The latency is known at the end.
    pub fn origin(&self, end: Moment) -> Origin {
        Origin {
            id: self.id,
            latency: end.since(self.submitted),
        }
    }

    /// Checks invariants 2, 3 and 5; `seat_of` is the owner's table.
    #[cfg(test)]
    pub fn check_invariants(&self, seat_of: &dyn Fn(JobKey) -> Option<Seat>) {
        let wholes = self.wholes.iter().enumerate();
        let wholes = wholes.map(|(index, follower)| (follower, Seat::Whole(index)));
        let streams = self.streams.iter().enumerate();
        let streams = streams.map(|(index, follower)| (follower, Seat::Stream(index)));
        for (follower, seat) in wholes.chain(streams) {
            assert_eq!(seat_of(follower.key), Some(seat));
            assert!(self.text.is_char_boundary(follower.offset));
            assert_eq!(follower.is_streamed(), matches!(seat, Seat::Stream(_)));
            assert!(follower.left.is_none() || self.followers() == 1);
            if self.held_credit > 0 && follower.left.is_none() {
                assert!(follower.offset < self.text.len(), "it could read on");
                assert_eq!(follower.ticket.credit(), 0, "it has credit");
            }
        }
    }
}

/// Returns the source of a running flight's text.
pub fn served(verdict: Verdict, origin: Origin) -> Served {
    Served {
        verdict,
        age: std::time::Duration::ZERO,
        is_reproducible: true,
        origin: verdict.is_cached().then_some(origin),
    }
}

/// Returns the failure of a job that has cost nothing.
pub fn failed(reason: FailReason) -> Failed {
    Failed {
        reason,
        message: String::new(),
        text: String::new(),
        usage: Usage::default(),
        timings: Timings::default(),
    }
}

/// Returns the failure of a follower. One that has left for a reason of its own gets that one.
pub fn failed_for(failed: Failed, left: Option<CancelReason>) -> Event {
    let (reason, message) = match left {
        None => (failed.reason, failed.message),
        Some(CancelReason::Deadline) => (
            FailReason::Error(ErrorCode::GenerationTimeout),
            "the request timed out; raise `timeout` or lower `max_tokens`".to_owned(),
        ),
        Some(reason) => {
            let message = "the request was cancelled".to_owned();
            (FailReason::Cancelled(reason), message)
        }
    };
    Event::Failed(Box::new(Failed {
        reason,
        message,
        ..failed
    }))
}
