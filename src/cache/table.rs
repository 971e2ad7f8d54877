//! One shard of the flights and entries: which request waits for what.
//!
//! Owns the flights, the entries, and the replays: followers whose flight has ended, or that came
//! when the result was there already, and that read too slowly to have got all of it. Pure: time is
//! an argument, and the owner delivers the events of the outbox.
//!
//! ```text
//!              find ──> an entry: played at once, or Replay
//!   a request ─┤
//!              ├ join ─> an open flight of an equal request
//!              └ begin ─> a new flight ── push ... finish ──> entry; slow streams: Replay
//!                                             └─ fail, refused: all followers fail
//! ```
//!
//! Look-up, joining and finishing happen under one lock, so an equal request finds either the
//! flight or its entry, and never computes in between.
//!
//! # The order of a follower's events
//!
//! Several threads make events of one follower: that of the engine, that of a reactor whose client
//! has returned credit, that of a level behind memory. The lock decides which piece of the text is
//! the next one, but events are delivered without it, and a thread that was second could deliver
//! first: the client would read a scrambled text. So each event goes through the outbox, under the
//! lock, and one thread at a time delivers what is there. Another one leaves its events to it.
//!
//! Invariants:
//!  1. A follower is in one flight or is one replay, and leaves with exactly one terminal event.
//!  2. A flight that may be joined is open under its digest; at most one is. A flight whose last
//!     follower has left is not open.
//!  3. Replays of a flight share its text and its account. A replay that waits for credit has found
//!     none, so the next grant is reported.
//!  4. The events of a follower are delivered in the order in which the outbox has got them. While
//!     a thread delivers, no other one does, and it looks again at its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::entry::{Entry, jittered};
use super::flight::{Flight, Follower, Seat, failed, failed_for};
use super::forgotten::Forgotten;
use super::key::Digest;
use super::lru::{Item, Lru};
use crate::core::buffered::Share;
use crate::core::{Key, Moment};
use crate::engine::{Class, Done, Event, FailReason, Failed, Job, Refused, Verdict};
use crate::error::ErrorCode;
use crate::limits::cache as limits;
use crate::offload::{CancelReason, JobKey};

/// Stands for a reactor in the keys of flights' jobs.
pub const FLIGHTS: u16 = JobKey::FLIGHTS;

/// See the file's head.
#[derive(Debug)]
pub struct Table {
    /// Its own number, which the keys of its flights carry.
    shard: u32,
    /// Names the next flight.
    next: u64,
    flights: HashMap<u64, Flight>,
    /// The flights that may be joined.
    open: HashMap<Digest, u64>,
    seats: HashMap<JobKey, (u64, Seat)>,
    replays: HashMap<JobKey, Replay>,
    /// Events that are to be delivered.
    outbox: Vec<(JobKey, Event)>,
    /// Whether a thread delivers what has left the outbox.
    is_delivering: bool,
    pub entries: Lru<Digest, Arc<Entry>>,
}

/// A follower of an entry.
#[derive(Debug)]
struct Replay {
    follower: Follower,
    pinned: Arc<Pinned>,
}

/// An entry that a replay still reads, even if the cache has dropped it.
#[derive(Debug)]
pub struct Pinned {
    pub entry: Arc<Entry>,
    /// Its memory, which a slow client makes the daemon hold: given back by the drop.
    pub _share: Share,
}

/// The state of a request after it has left.
#[derive(Debug)]
pub enum Left {
    /// It is not here.
    Unknown,
    /// Its terminal event is posted.
    Gone,
    /// It stays for the terminal event of this job, which must end now.
    Last(JobKey),
    /// It stays for the terminal event of this job, whose deadline has passed as well.
    Overdue(JobKey),
    /// It had left before.
    Stays,
}

/// Where the credit of a follower has led.
#[derive(Debug, PartialEq, Eq)]
pub enum Credited {
    /// It is not here.
    Unknown,
    /// It has been sent what there is.
    Served,
    /// The same, and the engine must look for the credit of this job again.
    Resumed(JobKey),
}

/// A flight that has ended with a result.
#[derive(Debug)]
pub struct Finished {
    pub digest: Digest,
    pub tenant: u64,
    pub entry: Arc<Entry>,
    /// `false`: a purge came while it was computed.
    pub is_kept: bool,
    /// They get the rest with the terminal event.
    pub followers: Vec<Follower>,
    /// They have become replays, and may have credit.
    pub lagging: Vec<JobKey>,
    /// Dropped by the caller, after the lock.
    pub removed: Vec<(Digest, Arc<Entry>)>,
}

/// The next step of a refused flight.
#[derive(Debug)]
pub enum Next {
    /// Submit this follower's job, whose deadline is later.
    Retry(Box<Job>),
    /// It fails for all of these.
    Over(Vec<Follower>),
}

impl Table {
    pub fn new(shard: u32, max_bytes: usize) -> Table {
        Table {
            shard,
            next: 0,
            flights: HashMap::new(),
            open: HashMap::new(),
            seats: HashMap::new(),
            replays: HashMap::new(),
            outbox: Vec::new(),
            is_delivering: false,
            entries: Lru::new(max_bytes),
        }
    }

    /// Returns the name of a flight's job, by which its events find the shard and the flight.
    fn key_of(&self, flight: u64) -> JobKey {
        JobKey {
            reactor: FLIGHTS,
            connection: Key::from_u64(flight),
            request: self.shard,
        }
    }

    // ---- a request comes ----

    pub fn find(&mut self, digest: &Digest, now: Moment) -> Option<Arc<Entry>> {
        self.entries.get(digest, now).cloned()
    }

    /// Lets a request follow the open flight of an equal one. Without one, the job comes back.
    /// Returns the flight's job if the engine must look for its credit again.
    ///
    /// A request with a client does not follow a background job: it would wait behind all others.
    pub fn join(&mut self, digest: &Digest, job: Box<Job>) -> Result<Option<JobKey>, Box<Job>> {
        let open = self.open.get(digest).copied();
        let Some((id, flight)) = open.and_then(|id| Some((id, self.flights.get_mut(&id)?))) else {
            return Err(job);
        };
        let is_behind = flight.class == Class::Background && job.class == Class::Live;
        let latest = flight.deadline;
        if is_behind || !flight.extend(job.deadline) {
            return Err(job);
        }
        let follower = Follower::new(&job, Verdict::Joined);
        let (seat, is_credited) = flight.join(follower, &mut self.outbox);
        self.seats.insert(job.key, (id, seat));
        if !flight.is_launched && job.deadline > latest {
            flight.spare = Some(job);
        }
        Ok(is_credited.then(|| self.key_of(id)))
    }

    /// Begins a flight with its first request. Returns the name of the flight's job.
    pub fn begin(&mut self, digest: Digest, job: &Job, share: Share) -> JobKey {
        let mut flight = Flight::new(digest, job, share);
        let id = self.next;
        self.next += 1;
        let seat = flight.add(Follower::new(job, Verdict::Miss));
        self.seats.insert(job.key, (id, seat));
        self.open.insert(digest, id);
        self.flights.insert(id, flight);
        self.key_of(id)
    }

    /// Returns the flight of a job.
    pub fn flight(&mut self, key: JobKey) -> Option<&mut Flight> {
        self.flights.get_mut(&key.connection.to_u64())
    }

    /// Records that the engine has admitted a flight's job, which may have ended meanwhile.
    pub fn handle_launched(&mut self, key: JobKey) {
        if let Some(flight) = self.flight(key) {
            flight.is_launched = true;
            flight.spare = None;
        }
    }

    /// Handles a flight's job that the engine has refused. `first` is the request whose job it was;
    /// it leaves, and is returned unless it had left before.
    pub fn handle_refused(
        &mut self,
        key: JobKey,
        first: JobKey,
        refused: &Refused,
    ) -> (Option<Follower>, Next) {
        let seat = self.seats.remove(&first);
        let Some(flight) = self.flights.get_mut(&key.connection.to_u64()) else {
            return (None, Next::Over(Vec::new()));
        };
        let gone = seat.map(|(id, seat)| {
            let (gone, moved) = flight.remove(seat);
            if let Some(moved) = moved {
                self.seats.insert(moved, (id, seat));
            }
            gone
        });
        let is_for_deadline = matches!(refused, Refused::DeadlineUnmeetable { .. });
        let spare = flight.spare.take().filter(|_| is_for_deadline);
        // It may have left again.
        let next = match spare.filter(|job| self.seats.contains_key(&job.key)) {
            Some(job) => Next::Retry(job),
            None => Next::Over(self.close(key).map_or_else(Vec::new, |(_, all)| all)),
        };
        (gone, next)
    }

    // ---- the job's events ----

    /// Handles generated text.
    pub fn push(&mut self, key: JobKey, text: &str) {
        if let Some(flight) = self.flights.get_mut(&key.connection.to_u64()) {
            flight.handle_token(text, &mut self.outbox);
        }
    }

    /// Handles the complete result of a flight: it becomes an entry.
    pub fn finish(
        &mut self,
        key: JobKey,
        done: &Done,
        ttl: Duration,
        now: Moment,
        forgotten: &Forgotten,
    ) -> Option<Finished> {
        let (mut flight, all) = self.close(key)?;
        flight.push(&done.text);
        let text = std::mem::take(&mut flight.text);
        let entry = entry_of(&flight, text, done, now);
        // Its tenant may be gone by now.
        let is_kept = !forgotten.covers(flight.tenant, flight.submitted);
        Some(self.end(flight, all, entry, is_kept.then_some(ttl), now))
    }

    /// Returns the entry that [`Table::finish`] would keep, with its digest and tenant.
    pub fn preview(
        &mut self,
        key: JobKey,
        done: &Done,
        now: Moment,
        forgotten: &Forgotten,
    ) -> Option<(Digest, u64, Entry)> {
        let flight = self.flight(key)?;
        if forgotten.covers(flight.tenant, flight.submitted) {
            return None;
        }
        let text = format!("{}{}", flight.text, done.text);
        let entry = entry_of(flight, text, done, now);
        Some((flight.digest, flight.tenant, entry))
    }

    /// Ends a flight whose result was found behind this daemon's memory.
    pub fn finish_found(
        &mut self,
        key: JobKey,
        entry: Entry,
        verdict: Verdict,
        ttl: Duration,
        now: Moment,
    ) -> Option<Finished> {
        let (mut flight, mut all) = self.close(key)?;
        flight.share.set(entry.text.len());
        for follower in &mut all {
            if follower.verdict == Verdict::Miss {
                follower.verdict = verdict;
            }
        }
        Some(self.end(flight, all, entry, Some(ttl), now))
    }

    /// Without a `ttl` the entry is not kept.
    fn end(
        &mut self,
        flight: Flight,
        all: Vec<Follower>,
        entry: Entry,
        ttl: Option<Duration>,
        now: Moment,
    ) -> Finished {
        let entry = Arc::new(entry);
        let mut removed = Vec::new();
        if let Some(ttl) = ttl {
            self.store(flight.digest, flight.tenant, &entry, ttl, now, &mut removed);
        }
        let pinned = Arc::new(Pinned {
            entry: Arc::clone(&entry),
            _share: flight.share,
        });
        let (mut followers, mut lagging) = (Vec::new(), Vec::new());
        for follower in all {
            let rest = entry.text.len() - follower.offset;
            let is_short = rest <= limits::PIECE_BYTES_MAX || !follower.is_streamed();
            if is_short || follower.left.is_some() {
                followers.push(follower);
            } else {
                lagging.push(follower.key);
                self.insert_replay(follower, Arc::clone(&pinned));
            }
        }
        Finished {
            digest: flight.digest,
            tenant: flight.tenant,
            entry,
            is_kept: ttl.is_some(),
            followers,
            lagging,
            removed,
        }
    }

    /// Stores an entry that no request has asked for, if there is room for it and none like it.
    pub fn preload(
        &mut self,
        digest: Digest,
        tenant: u64,
        entry: Entry,
        ttl: Duration,
        now: Moment,
    ) -> bool {
        let own = entry.bytes() + Lru::<Digest, Arc<Entry>>::ENTRY_BYTES + limits::TENANT_BYTES;
        let has_room = self.entries.bytes() + own <= self.entries.max_bytes();
        if !has_room || self.entries.get(&digest, now).is_some() {
            return false;
        }
        self.store(digest, tenant, &Arc::new(entry), ttl, now, &mut Vec::new());
        true
    }

    /// Stores an entry, unless it would fill the shard alone.
    pub fn store(
        &mut self,
        digest: Digest,
        tenant: u64,
        entry: &Arc<Entry>,
        ttl: Duration,
        now: Moment,
        removed: &mut Vec<(Digest, Arc<Entry>)>,
    ) {
        let item = Item {
            tenant,
            value: Arc::clone(entry),
            bytes: entry.bytes(),
            expires: entry.completed + jittered(ttl, &digest).saturating_sub(entry.age_before),
        };
        // What does not fit is dropped here, and lives on with its followers.
        let _ = self.entries.insert(digest, item, now, removed);
    }

    /// Ends a flight. Returns it with its followers, who are in no table any more.
    pub fn close(&mut self, key: JobKey) -> Option<(Flight, Vec<Follower>)> {
        let id = key.connection.to_u64();
        let mut flight = self.flights.remove(&id)?;
        self.close_to_others(&flight.digest, id);
        let followers: Vec<_> = flight.take_all().collect();
        for follower in &followers {
            self.seats.remove(&follower.key);
        }
        Some((flight, followers))
    }

    fn close_to_others(&mut self, digest: &Digest, id: u64) {
        if self.open.get(digest) == Some(&id) {
            self.open.remove(digest);
        }
    }

    // ---- replays ----

    pub fn insert_replay(&mut self, follower: Follower, pinned: Arc<Pinned>) {
        let replay = Replay { follower, pinned };
        self.replays.insert(replay.follower.key, replay);
    }

    // ---- a follower's client ----

    /// Sends a follower what its credit allows.
    pub fn serve(&mut self, key: JobKey, now: Moment) -> Credited {
        let events = &mut self.outbox;
        if let Some(&(id, seat)) = self.seats.get(&key) {
            let flight = self.flights.get_mut(&id);
            return match flight.is_some_and(|flight| flight.catch_up(seat, events)) {
                true => Credited::Resumed(self.key_of(id)),
                false => Credited::Served,
            };
        }
        let Some(Replay { follower, pinned }) = self.replays.get_mut(&key) else {
            return Credited::Unknown;
        };
        let entry = &pinned.entry;
        let served = entry.served(follower.verdict, now);
        follower.serve(&entry.text, served, usize::MAX, events);
        if entry.text.len() - follower.offset <= limits::PIECE_BYTES_MAX {
            events.push((key, entry.done(follower.offset, served)));
            self.replays.remove(&key);
        }
        Credited::Served
    }

    /// Handles a deadline that has passed, or a ticket that was cancelled.
    pub fn leave(&mut self, key: JobKey, is_overdue: bool, now: Moment) -> Left {
        let reason_of = |follower: &Follower| match is_overdue {
            true => CancelReason::Deadline,
            false => follower
                .ticket
                .cancelled()
                .unwrap_or(CancelReason::Disconnect),
        };
        let Some(&(id, seat)) = self.seats.get(&key) else {
            let Some(Replay { mut follower, .. }) = self.replays.remove(&key) else {
                return Left::Unknown;
            };
            follower.left = Some(reason_of(&follower));
            self.post_end(&follower, String::new());
            return Left::Gone;
        };
        let job = self.key_of(id);
        let Some(flight) = self.flights.get_mut(&id) else {
            return Left::Unknown;
        };
        if flight.followers() > 1 {
            let (mut follower, moved) = flight.remove(seat);
            follower.left = Some(reason_of(&follower));
            // The client may get it as a part of the response.
            let rest = match is_overdue {
                true => flight.text[follower.offset..].to_owned(),
                false => String::new(),
            };
            self.seats.remove(&key);
            if let Some(moved) = moved {
                self.seats.insert(moved, (id, seat));
            }
            self.post_end(&follower, rest);
            return Left::Gone;
        }
        let digest = flight.digest;
        let is_job_overdue = is_overdue && flight.deadline <= now;
        let follower = flight.follower_mut(seat);
        let reason = reason_of(follower);
        let had_left = follower.left.replace(reason).is_some();
        let left = match flight.ticket.cancelled() {
            Some(_) => Left::Stays,
            // The engine has the same deadline, and reports what the job has cost.
            None if is_job_overdue && !had_left => Left::Overdue(job),
            None => {
                flight.ticket.cancel(reason);
                Left::Last(job)
            }
        };
        self.close_to_others(&digest, id);
        left
    }

    /// Posts the end of a follower that has left, with the text that it has not been sent.
    fn post_end(&mut self, follower: &Follower, text: String) {
        let failed = Failed {
            text,
            ..failed(FailReason::Error(ErrorCode::EngineFailed))
        };
        let end = failed_for(failed, follower.left);
        self.outbox.push((follower.key, end));
    }

    // ---- the way of events to the followers ----

    /// Adds events of followers, behind those that came before.
    pub fn post(&mut self, events: &mut Vec<(JobKey, Event)>) {
        self.outbox.append(events);
    }

    /// Moves the outbox to `events`. After `true`, the caller must deliver them without the lock
    /// and then call [`Table::end_delivery`]. After `false` there is nothing to do, or a thread
    /// that delivers does it.
    pub fn begin_delivery(&mut self, events: &mut Vec<(JobKey, Event)>) -> bool {
        let begins = !self.is_delivering && !self.outbox.is_empty();
        if begins {
            self.is_delivering = true;
            events.append(&mut self.outbox);
        }
        begins
    }

    /// Returns whether more has come meanwhile, which the caller must deliver as well.
    pub fn end_delivery(&mut self) -> bool {
        self.is_delivering = false;
        !self.outbox.is_empty()
    }

    // ---- for tests ----

    /// Returns the followers of a flight, in no order.
    #[cfg(test)]
    pub fn followers(&self, key: JobKey) -> Vec<JobKey> {
        let id = key.connection.to_u64();
        let mine = self.seats.iter().filter(|(_, (flight, _))| *flight == id);
        mine.map(|(key, _)| *key).collect()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        let tables = [
            self.flights.len(),
            self.open.len(),
            self.seats.len(),
            self.replays.len(),
            self.outbox.len(),
        ];
        tables == [0; 5] && !self.is_delivering
    }

    #[cfg(test)]
    pub fn check_invariants(&self) {
        for (id, flight) in &self.flights {
            let seat_of = |key| {
                let (flight, seat) = self.seats.get(&key)?;
                (flight == id).then_some(*seat)
            };
            flight.check_invariants(&seat_of);
            assert!(flight.followers() > 0, "a job that runs for no request");
        }
        let seated: usize = self.flights.values().map(Flight::followers).sum();
        assert_eq!(seated, self.seats.len());
        for (digest, id) in &self.open {
            assert_eq!(self.flights[id].digest, *digest);
            assert!(self.flights[id].ticket.cancelled().is_none());
        }
        for (key, replay) in &self.replays {
            assert!(!self.seats.contains_key(key));
            assert!(replay.follower.offset < replay.pinned.entry.text.len());
        }
    }
}

/// Returns the result of a flight. Its text is an argument: a finished flight gives it away.
fn entry_of(flight: &Flight, text: String, done: &Done, now: Moment) -> Entry {
    Entry {
        text: text.into_boxed_str(),
        finish_reason: done.finish_reason,
        usage: done.usage,
        origin: flight.origin(now),
        completed: now,
        age_before: Duration::ZERO,
    }
}
