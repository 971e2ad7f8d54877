//! The runner's thread: claims jobs, hands them to the engine, saves what they write.
//!
//! ```text
//!              claim                  submit                 save, in batches
//!    store ──────────────> runner ──────────────> engine        │
//!      ^  jobs               ^  └─── events ────────┘           │
//!      └─────────────────────┴──────────────────────────────────┘
//!                                          then: followers are woken
//! ```
//!
//! Owns the running attempts. It waits for notes and for its own next duty, and never for the
//! store: a claim, a save and a sweep are tasks whose results come back as notes, one of each kind
//! under way at most. All attempts are saved together, so the store commits once for all of them.
//!
//! A store that fails costs nothing but time: parts are given back and saved again, with pauses
//! that grow, and one that was committed without a reply is recognised. Meanwhile the engine waits
//! for credit, and a lease may run out; the fence in [`Life`](crate::jobs::Life) then decides which
//! run counts.
//!
//! Invariants:
//!  1. At most `jobs.concurrency` attempts run here, and those of called jobs ([`Calls`]).
//!  2. One claim, one save, one sweep and one look are under way at most.
//!  3. The thread ends soon after a drain, whether or not the store works.
//!
//! Mutation that `reactor/simulation/jobs.rs` catches: `work` without `heed_clock`.
//!
//! Mutations that the tests in `tests/jobs.rs` catch: `drain` that does not park; `handle_saved`
//! that wakes no follower; a fenced attempt that goes on; no backoff while the model loads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::config::Config;
use crate::core::{Moment, UnixMillis};
use crate::engine::{Engine, Event, ModelInfo, State};
use crate::jobs::{Fenced, JobId, JobRecord};
use crate::keys::KeyRing;
use crate::leases::Leases;
use crate::limits::jobs as limits;
use crate::store::Requests;
use crate::telemetry::id::Ids;
use crate::telemetry::random::SplitMix64;

use super::attempt::{Attempt, Origin};
use super::backoff::Backoff;
use super::callbacks::Callbacks;
use super::calls::{Called, Calls};
use super::changes::{Next, Write};
use super::claiming::Claiming;
use super::clock_steps::ClockSteps;
use super::elsewhere::Elsewhere;
use super::followers::Followers;
use super::journal::{Journal, Note};
use super::metrics::RunnerSeries;
use super::start::{self, Terms};
use super::tasks::{Done, RunnerTask, TENANT, Work};

/// Everything that the runner uses.
pub struct Parts {
    pub engine: Arc<dyn Engine>,
    pub requests: Arc<Requests>,
    pub followers: Arc<Followers>,
    pub journal: Journal,
    /// Is asked to look for callbacks when jobs end.
    pub callbacks: Callbacks,
    pub series: Arc<RunnerSeries>,
    /// Replaced as a whole by a reload, or when keys change.
    pub config: Arc<Config>,
    pub keys: Arc<KeyRing>,
    pub leases: Leases,
    pub wall_clock: fn() -> UnixMillis,
    /// Seeds the ids of generations; from the kernel outside of tests.
    pub seed: u64,
}

/// The state of the thread. Its duties and notes are given the time: the simulation has its own.
pub struct Thread {
    parts: Parts,
    ids: Ids,
    model: Option<ModelInfo>,
    /// By serial number.
    attempts: HashMap<u32, Attempt>,
    serial: u32,
    /// The jobs whose clients wait.
    calls: Calls,
    /// The claim that is under way.
    claiming: Option<Claiming>,
    is_saving: bool,
    is_sweeping: bool,
    is_looking: bool,
    claim_at: Moment,
    save_at: Moment,
    sweep_at: Moment,
    look_at: Moment,
    clock_steps: ClockSteps,
    /// Of the engine's refusals that concern all jobs.
    engine_backoff: Backoff,
    /// Of the store's failures.
    store_backoff: Backoff,
    elsewhere: Elsewhere,
    /// Since a drain began, when the thread ends at the latest.
    ends_at: Option<Moment>,
}

impl Thread {
    pub fn new(parts: Parts, now: Moment) -> Thread {
        Thread {
            clock_steps: ClockSteps::new((parts.wall_clock)(), now),
            ids: Ids::new(SplitMix64::new(parts.seed, TENANT)),
            parts,
            model: None,
            attempts: HashMap::new(),
            serial: 0,
            calls: Calls::new(TENANT),
            claiming: None,
            is_saving: false,
            is_sweeping: false,
            is_looking: false,
            claim_at: now,
            save_at: now,
            sweep_at: now,
            look_at: now,
            engine_backoff: Backoff::default(),
            store_backoff: Backoff::default(),
            elsewhere: Elsewhere::default(),
            ends_at: None,
        }
    }

    /// Runs until a drain has ended, or no one can send notes any more.
    pub fn run(mut self, notes: &Receiver<Note>) {
        loop {
            let now = Moment::now();
            if !self.work(now) {
                return;
            }
            match notes.recv_timeout(self.next_duty().since(now)) {
                Ok(note) => self.handle_note(note, Moment::now()),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Moment::now();
            let more = notes.try_iter().take(limits::NOTE_ITEMS_PER_TURN_MAX);
            more.for_each(|note| self.handle_note(note, now));
        }
    }

    pub fn handle_note(&mut self, note: Note, now: Moment) {
        match note {
            Note::Events(events) => {
                for (serial, event) in events {
                    self.handle_event(serial, event, now);
                }
            }
            Note::Accepted(called) => {
                called.into_iter().for_each(|called| self.calls.add(called));
                self.claim_at = self.claim_at.min(self.backed_off(now));
            }
            Note::Cancelled(id) => self.handle_cancelled(id),
            Note::Done(done) => self.handle_done(done, now),
            Note::Keys(keys) => self.parts.keys = keys,
            Note::Apply(config) => self.parts.config = config,
            Note::Drain => self.drain(now),
        }
    }

    fn handle_event(&mut self, serial: u32, event: Event, now: Moment) {
        // Of an attempt that was fenced or cancelled there may be late events.
        if let Some(attempt) = self.attempts.get_mut(&serial) {
            let model = self.model.as_ref().map(|model| &*model.id);
            if attempt.handle_event(event, model, now) {
                self.parts.engine.handle_credit(Journal::key(serial));
            }
        }
    }

    fn handle_cancelled(&mut self, id: JobId) {
        if let Some(claiming) = &mut self.claiming {
            claiming.note_cancelled(id);
        }
        let Parts {
            engine, requests, ..
        } = &self.parts;
        self.attempts.retain(|serial, attempt| {
            let stays = attempt.id != id;
            if !stays {
                attempt.stop();
                self.calls.end(attempt.called_by);
                engine.cancel(Journal::key(*serial));
                if let Some(recording) = attempt.recording.take() {
                    recording.send(requests);
                }
            }
            stays
        });
        self.parts.followers.wake(id);
        self.parts.callbacks.look();
    }

    fn drain(&mut self, now: Moment) {
        for (serial, attempt) in &mut self.attempts {
            attempt.park();
            self.parts.engine.cancel(Journal::key(*serial));
        }
        self.ends_at = Some(now + limits::PARK_PATIENCE);
    }

    fn is_over(&self, now: Moment) -> bool {
        let is_empty = self.attempts.is_empty() && self.claiming.is_none() && !self.is_saving;
        self.ends_at.is_some_and(|end| is_empty || now >= end)
    }

    // ---- duties ----

    /// Does everything that is due. `false`: a drain has ended.
    pub fn work(&mut self, now: Moment) -> bool {
        self.heed_clock(now);
        // Before the sweep: a process that was stopped renews its leases before it looks for those
        // that have run out.
        self.save(now);
        self.remind(now);
        self.sweep(now);
        self.claim(now);
        self.look(now);
        !self.is_over(now)
    }

    /// Renews all leases after a step of the wall clock. They are times of day, because they are in
    /// the store for other daemons. By the new time this daemon's own may all have run out, and its
    /// next sweep would take the jobs from under its own attempts; or they would last too long.
    fn heed_clock(&mut self, now: Moment) {
        let Some(step_ms) = self.clock_steps.look((self.parts.wall_clock)(), now) else {
            return;
        };
        let seconds = step_ms / 1_000;
        log::warn!("the time of day has jumped by {seconds} s; renewing the leases of jobs");
        self.attempts.values_mut().for_each(Attempt::doubt_lease);
        self.claiming.iter_mut().for_each(Claiming::doubt_leases);
    }

    fn next_duty(&self) -> Moment {
        let never = Moment::NEVER;
        let when = |is_due: bool, at: Moment| if is_due { at } else { never };
        let has_room = self.room() > 0 || self.calls.may_take();
        let may_claim = self.claiming.is_none() && self.ends_at.is_none() && has_room;
        [
            self.next_save(),
            self.attempts
                .values()
                .map(Attempt::deadline)
                .min()
                .unwrap_or(never),
            when(self.may_sweep(), self.sweep_at),
            when(may_claim, self.claim_at),
            when(!self.is_looking, self.look_at),
            self.ends_at.unwrap_or(never),
        ]
        .into_iter()
        .min()
        .unwrap_or(never)
    }

    /// Returns when something is to be saved: an end at once, output with the next batch, a lease
    /// in time. While the store fails, all of it waits for the pause's end.
    fn next_save(&self) -> Moment {
        if self.is_saving {
            return Moment::NEVER;
        }
        let attempts = self.attempts.values();
        let next = attempts
            .map(|attempt| attempt.next_save(self.save_at))
            .min();
        let next = next.unwrap_or(Moment::NEVER);
        match self.store_backoff.is_failing() {
            false => next,
            true => next.max(self.save_at),
        }
    }

    /// Saves what is new, what has ended, and leases that are to be renewed.
    fn save(&mut self, now: Moment) {
        if now < self.next_save() {
            return;
        }
        let lease = self.parts.config.jobs.lease;
        let (now_ms, renew_at) = (self.now_ms(), now + lease / 3);
        let lease_until = now_ms.saturating_add(lease.as_millis() as u64);
        let due = self.attempts.iter_mut();
        let due = due.filter(|(_, attempt)| attempt.next_save(now) <= now);
        let part = |(serial, attempt): (&u32, &mut Attempt)| {
            (*serial, attempt.take_part(lease_until, renew_at))
        };
        let parts: Vec<(u32, Write)> = due.map(part).collect();
        self.save_at = now + limits::SAVE_INTERVAL;
        self.is_saving = true;
        self.submit(Work::Save {
            parts,
            now: now_ms,
            keep_ms: self.keep_ms(),
            saved: Vec::new(),
        });
    }

    /// Reports to the engine that the time of its jobs has passed.
    fn remind(&mut self, now: Moment) {
        for (serial, attempt) in &mut self.attempts {
            if attempt.handle_deadline(now) {
                self.parts.engine.handle_deadline(Journal::key(*serial));
            }
        }
    }

    /// A lease that is doubtful belongs to an attempt that runs here.
    fn may_sweep(&self) -> bool {
        let claiming = self.claiming.as_ref();
        !self.is_sweeping
            && claiming.is_none_or(|claiming| !claiming.is_doubtful)
            && self.attempts.values().all(Attempt::holds_lease)
    }

    fn sweep(&mut self, now: Moment) {
        if !self.may_sweep() || now < self.sweep_at {
            return;
        }
        self.is_sweeping = true;
        self.sweep_at = now + limits::SWEEP_INTERVAL;
        self.submit(Work::Sweep {
            now: self.now_ms(),
            keep_ms: self.keep_ms(),
            changed: Vec::new(),
            has_more: false,
            totals: Default::default(),
        });
    }

    fn claim(&mut self, now: Moment) {
        let room = self.room();
        if self.claiming.is_some() || now < self.claim_at || self.ends_at.is_some() {
            return;
        }
        if room == 0 && !self.calls.may_take() {
            return;
        }
        self.claim_at = now + limits::CLAIM_INTERVAL;
        // Nothing is claimed that the engine would refuse.
        if !self.parts.config.jobs.enabled || self.parts.engine.state() != State::Ready {
            return;
        }
        self.claiming = Some(Claiming::default());
        let now_ms = self.now_ms();
        let lease = self.parts.config.jobs.lease.as_millis() as u64;
        let called = self.calls.take();
        self.submit(Work::Claim {
            called,
            room,
            now: now_ms,
            lease_until: now_ms.saturating_add(lease),
            claimed: Vec::new(),
        });
    }

    /// Looks at jobs that are followed here and do not run here: another daemon changes them.
    fn look(&mut self, now: Moment) {
        if self.is_looking || now < self.look_at {
            return;
        }
        self.look_at = now + limits::LOOK_INTERVAL;
        let runs_here = |id| self.attempts.values().any(|attempt| attempt.id == id);
        let ids = self.elsewhere.next(&self.parts.followers, runs_here);
        if ids.is_empty() {
            return;
        }
        self.is_looking = true;
        self.submit(Work::Look {
            ids,
            seen: Vec::new(),
        });
    }

    fn submit(&mut self, work: Work) {
        let journal = self.parts.journal.clone();
        let task = RunnerTask::new(work, move |done| journal.note(Note::Done(done)));
        // A task that is refused is dropped, and reports that.
        let _ = self.parts.requests.submit(TENANT, Box::new(task));
    }

    // ---- results ----

    fn handle_done(&mut self, done: Done, now: Moment) {
        self.note_health(done.failure.as_deref(), now);
        let has_failed = done.failure.is_some();
        match done.work {
            Work::Claim {
                called, claimed, ..
            } => {
                let claiming = self.claiming.take().unwrap_or_default();
                match has_failed {
                    true => self.calls.put_back(&called),
                    false => self.handle_claimed(&called, claimed, &claiming, now),
                }
            }
            Work::Save { parts, saved, .. } => {
                self.is_saving = false;
                match has_failed {
                    true => self.give_back(parts),
                    false => self.handle_saved(&parts, &saved, now),
                }
            }
            Work::Sweep {
                changed,
                has_more,
                totals,
                ..
            } => {
                self.is_sweeping = false;
                if !has_failed {
                    self.parts.series.set_totals(&totals);
                    changed.iter().for_each(|id| self.parts.followers.wake(*id));
                    if !changed.is_empty() {
                        self.parts.callbacks.look();
                    }
                    if has_more {
                        self.sweep_at = now;
                    }
                }
            }
            Work::Look { seen, .. } => {
                self.is_looking = false;
                for (id, last) in seen {
                    if self.elsewhere.note(id, last) {
                        self.parts.followers.wake(id);
                    }
                }
            }
        }
    }

    fn note_health(&mut self, failure: Option<&str>, now: Moment) {
        let times = &mut [
            &mut self.claim_at,
            &mut self.save_at,
            &mut self.sweep_at,
            &mut self.look_at,
        ];
        self.store_backoff
            .note_store(failure, "durable jobs", times, now);
    }

    fn handle_claimed(
        &mut self,
        called: &[Called],
        mut claimed: Vec<JobRecord>,
        claiming: &Claiming,
        now: Moment,
    ) {
        if !claimed.is_empty() {
            // There may be more, and a key's next job may only now be the oldest.
            self.claim_at = self.backed_off(now);
        }
        claimed.retain(|record| !claiming.has_cancelled(record.id));
        self.calls.settle(called, &claimed);
        for record in claimed {
            self.parts.followers.wake(record.id);
            let mut attempt = match self.ends_at {
                None => self.start(&record, now),
                Some(_) => {
                    let wait = Next::Wait { postponed: None };
                    Attempt::ended(record.id, record.life.attempt, wait, now)
                }
            };
            attempt.has_callback = record.callback_url.is_some();
            let caller = called.iter().find(|called| called.id == record.id);
            attempt.called_by = caller.map(|called| called.tenant);
            if claiming.is_doubtful {
                attempt.doubt_lease();
            }
            self.attempts.insert(self.serial, attempt);
            self.serial = self.serial.wrapping_add(1);
        }
    }

    /// Hands a job to the engine. Its attempt gets the present serial number.
    fn start(&mut self, record: &JobRecord, now: Moment) -> Attempt {
        if self.model.is_none() {
            self.model = self.parts.engine.model();
        }
        let number = record.life.attempt;
        let now_ms = self.now_ms();
        let terms = Terms {
            config: &self.parts.config,
            keys: &self.parts.keys,
            leases: &self.parts.leases,
            model: self.model.as_ref(),
            now,
            now_ms,
        };
        let id = self.ids.make((self.parts.wall_clock)());
        let ready = match start::prepare(record, self.serial, id, &terms) {
            Ok(ready) => ready,
            Err(end) => return Attempt::ended(record.id, number, end, now),
        };
        if number == 1 {
            let waited = now_ms.saturating_sub(record.created_at);
            self.parts
                .series
                .observe_wait(Duration::from_millis(waited));
        }
        let ticket = Arc::clone(&ready.job.ticket);
        let deadline = ready.job.deadline;
        if let Err(why) = self.parts.engine.submit(ready.job) {
            if let Some(charge) = ready.charge {
                charge.reconcile(0, now);
            }
            let (end, concerns_all) = start::refused(why, now_ms);
            if concerns_all {
                self.engine_backoff.fail(now);
                self.claim_at = self.engine_backoff.after(now);
            }
            return Attempt::ended(record.id, number, end, now);
        }
        self.engine_backoff.succeed();
        let renew_at = now + self.parts.config.jobs.lease / 3;
        let (language, charge) = (ready.language, ready.charge);
        let origin = Origin {
            id,
            language,
            deadline,
        };
        let mut attempt = Attempt::new(record.id, number, origin, ticket, charge, now, renew_at);
        attempt.recording = ready.recording;
        attempt
    }

    fn give_back(&mut self, parts: Vec<(u32, Write)>) {
        for (serial, part) in parts {
            if let Some(attempt) = self.attempts.get_mut(&serial) {
                attempt.give_back(part);
            }
        }
    }

    fn handle_saved(&mut self, parts: &[(u32, Write)], saved: &[Result<(), Fenced>], now: Moment) {
        for ((serial, part), saved) in parts.iter().zip(saved) {
            let Some(attempt) = self.attempts.get_mut(serial) else {
                continue;
            };
            let key = Journal::key(*serial);
            if attempt.handle_saved(part) {
                self.parts.engine.handle_credit(key);
            }
            if saved.is_err() {
                attempt.stop();
                self.parts.engine.cancel(key);
            }
            if saved.is_err() || !matches!(part.next, Next::Run { .. }) {
                if saved.is_ok() {
                    self.parts.series.count_end(&part.next, attempt.age(now));
                    if let Some(recording) = attempt.recording.take()
                        && matches!(part.next, Next::End(_))
                    {
                        recording.send(&self.parts.requests);
                    }
                }
                attempt.report_end(&self.parts.callbacks);
                self.calls.end(attempt.called_by);
                self.attempts.remove(serial);
                self.claim_at = self.claim_at.min(self.backed_off(now));
            }
            self.parts.followers.wake(part.id);
        }
    }

    // ---- helpers ----

    /// Returns how many more attempts may run here, beside those of called jobs.
    fn room(&self) -> usize {
        let most = self.parts.config.jobs.concurrency as usize;
        let attempts = self.attempts.values();
        let others = attempts.filter(|attempt| attempt.called_by.is_none());
        most.saturating_sub(others.count())
    }

    fn now_ms(&self) -> u64 {
        (self.parts.wall_clock)().as_u64()
    }

    fn keep_ms(&self) -> u64 {
        self.parts.config.jobs.keep.as_millis() as u64
    }

    /// Returns now, or the end of a pause that an earlier failure has caused.
    fn backed_off(&self, now: Moment) -> Moment {
        self.engine_backoff.after(self.store_backoff.after(now))
    }
}

#[cfg(test)]
mod tests;
