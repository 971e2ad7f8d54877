//! The thread that has callbacks of ended jobs sent.
//!
//! ```text
//!             claim                  submit
//!    store ──────────> this thread ──────────> Fetcher ──> a reactor ──> receiver
//!      ^                 ^    │                                │
//!      └──── save ───────┼────┘                                │
//!                        └────────────── result ───────────────┘
//! ```
//!
//! Owns the attempts under way. It waits for notes and for its own next duty, and never for the
//! store or a receiver: neither a request nor a job waits for it. The store decides what is due and
//! which result counts (see [`Callback`]); the outbound client resolves, checks each address,
//! connects and reads.
//!
//! Redirects are not followed: a receiver could name an address that the URL may not have.
//!
//! Invariants:
//!  1. At most `CALLBACK_REQUESTS_MAX` attempts are under way, and of one key at most
//!     `CALLBACK_REQUESTS_PER_KEY_MAX`. An attempt counts until its result is saved.
//!  2. One claim and one save are under way at most.
//!  3. An attempt ends before its lease: its fetch has half the time, the save the rest.
//!
//! Mutations that the tests in `tests/callbacks.rs` catch: a policy of `AddressPolicy::Any`; a
//! status of 410 or 302 that counts as another one; a `Retry-After` that is not read; a claim whose
//! lease does not end; `look` without a note. Those that the tests beside this file catch: attempts
//! under way that a claim does not know; a claim during a drain, or one that begins its attempts
//! then; a lease shorter than its attempt; secrets that are not looked at; in `outcome_of` the end
//! of the daemon or a forbidden address taken for a failure, a reason without a bound.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use crate::config::Config;
use crate::core::{Moment, UnixMillis, UnixSeconds};
use crate::http::http1::response_reader::ResponseBounds;
use crate::http::origin::Origin;
use crate::http::{Fields, Method};
use crate::jobs::{Callback, CallbackTerms, JobId, JobRecord, Outcome, signatures};
use crate::keys::tenant_of;
use crate::limits::jobs as limits;
use crate::offload::fetch::{
    Fetch, FetchError, FetchId, FetchSink, Fetcher, Request, Response, Timeouts,
};
use crate::os::process::give_way;
use crate::store::Requests;
use crate::telemetry::random::SplitMix64;

use super::backoff::Backoff;
use super::callback_claim::{CallbackWork, Claim, Claimed, Found, Settled};
use super::callback_places::{SlowKeys, Waiting, leaving, next_leaving};
use super::metrics::{CallbackOutcome, CallbackSeries};
use super::tasks::{Done, RunnerTask, TENANT};

/// Everything that the thread uses.
pub struct CallbackParts {
    pub fetcher: Fetcher,
    pub requests: Arc<Requests>,
    pub series: Arc<CallbackSeries>,
    /// Replaced as a whole by a reload.
    pub config: Arc<Config>,
    /// Writes what is sent about a job.
    pub body: fn(&JobRecord) -> Vec<u8>,
    pub wall_clock: fn() -> UnixMillis,
    /// For the pauses; from the kernel outside of tests.
    pub seed: u64,
}

/// A message to the thread.
pub enum CallbackNote {
    /// There may be callbacks that are due.
    Look,
    /// The store has dealt with a task.
    Done(Done<CallbackWork>),
    /// The result of an attempt, by its serial number.
    Fetched(u64, Result<Response, FetchError>),
    /// A new configuration is in force.
    Apply(Arc<Config>),
    /// Claim no more.
    Drain,
}

/// The sending end. The channel has no bound, but each note follows a task of the store or an
/// attempt, which have one.
#[derive(Clone)]
pub struct Callbacks(Sender<CallbackNote>);

impl Callbacks {
    pub fn new() -> (Callbacks, Receiver<CallbackNote>) {
        let (sender, receiver) = unbounded();
        (Callbacks(sender), receiver)
    }

    /// Reports that jobs have ended.
    pub fn look(&self) {
        self.note(CallbackNote::Look);
    }

    /// Without the thread nothing happens: it has ended.
    pub fn note(&self, note: CallbackNote) {
        let _ = self.0.send(note);
    }
}

/// The running thread.
pub struct CallbackCaller {
    callbacks: Callbacks,
    thread: Option<JoinHandle<()>>,
}

impl CallbackCaller {
    pub fn start(parts: CallbackParts) -> io::Result<CallbackCaller> {
        let (callbacks, notes) = Callbacks::new();
        let own = callbacks.clone();
        let thread = std::thread::Builder::new()
            .name("callbacks".to_owned())
            .spawn(move || {
                give_way();
                Caller::new(parts, own, Moment::now()).run(&notes);
            })?;
        Ok(CallbackCaller {
            callbacks,
            thread: Some(thread),
        })
    }

    pub fn callbacks(&self) -> Callbacks {
        self.callbacks.clone()
    }

    /// Claims no more. The thread ends once the attempts under way have ended.
    pub fn drain(&self) {
        self.callbacks.note(CallbackNote::Drain);
    }

    /// Waits for the end of the thread. `false`: it has panicked.
    pub fn join(&mut self) -> bool {
        self.drain();
        self.thread
            .take()
            .is_none_or(|thread| thread.join().is_ok())
    }
}

/// The state of the thread.
struct Caller {
    parts: CallbackParts,
    own: Callbacks,
    random: SplitMix64,
    /// By serial number.
    under_way: HashMap<u64, UnderWay>,
    serial: u64,
    slow: SlowKeys,
    /// The key that the last claim ended with.
    after: String,
    is_claiming: bool,
    is_saving: bool,
    claim_at: Moment,
    save_at: Moment,
    /// Of the store's failures; zero while it works.
    backoff: Backoff,
    /// Since a drain began, when the thread ends at the latest.
    ends_at: Option<Moment>,
}

/// One attempt.
struct UnderWay {
    job: JobId,
    key_id: String,
    callback: Callback,
    expires_at: u64,
    begun: Moment,
    /// `None`: no request was sent, or it was cancelled.
    fetch: Option<FetchId>,
    /// It was cancelled because it had to leave its place.
    is_leaving: bool,
    /// Whether `callback` is the result, which is to be saved.
    is_settled: bool,
}

impl Caller {
    fn new(parts: CallbackParts, own: Callbacks, now: Moment) -> Caller {
        Caller {
            random: SplitMix64::new(parts.seed, TENANT),
            parts,
            own,
            under_way: HashMap::new(),
            serial: 0,
            slow: SlowKeys::default(),
            after: String::new(),
            is_claiming: false,
            is_saving: false,
            claim_at: now,
            save_at: now,
            backoff: Backoff::default(),
            ends_at: None,
        }
    }

    fn run(mut self, notes: &Receiver<CallbackNote>) {
        loop {
            let now = Moment::now();
            self.save(now);
            self.make_way(now);
            self.claim(now);
            if self.is_over(now) {
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

    fn handle_note(&mut self, note: CallbackNote, now: Moment) {
        match note {
            CallbackNote::Look => self.claim_soon(now),
            CallbackNote::Done(done) => self.handle_done(done, now),
            CallbackNote::Fetched(serial, result) => self.handle_fetched(serial, result, now),
            CallbackNote::Apply(config) => self.parts.config = config,
            CallbackNote::Drain if self.ends_at.is_none() => {
                let patience = self.parts.config.jobs.callback_timeout + limits::PARK_PATIENCE;
                self.ends_at = Some(now + patience);
            }
            CallbackNote::Drain => {}
        }
    }

    fn is_over(&self, now: Moment) -> bool {
        let is_empty = self.under_way.is_empty() && !self.is_claiming && !self.is_saving;
        self.ends_at.is_some_and(|end| is_empty || now >= end)
    }

    fn next_duty(&self) -> Moment {
        let claim_at = match self.may_claim() {
            true => self.claim_at,
            false => Moment::NEVER,
        };
        let save_at = match self.may_save() {
            true => self.save_at,
            false => Moment::NEVER,
        };
        claim_at
            .min(save_at)
            .min(next_leaving(waiting(&self.under_way)))
            .min(self.ends_at.unwrap_or(Moment::NEVER))
    }

    // ---- claims ----

    fn may_claim(&self) -> bool {
        !self.is_claiming && self.ends_at.is_none() && self.room() > 0
    }

    fn room(&self) -> u32 {
        limits::CALLBACK_REQUESTS_MAX.saturating_sub(self.under_way.len() as u32)
    }

    fn claim_soon(&mut self, now: Moment) {
        self.claim_at = self.claim_at.min(self.backoff.after(now));
    }

    fn claim(&mut self, now: Moment) {
        if !self.may_claim() || now < self.claim_at {
            return;
        }
        self.is_claiming = true;
        self.claim_at = now + limits::CALLBACK_LOOK_INTERVAL;
        let mut busy = HashMap::new();
        for one in self.under_way.values() {
            *busy.entry(one.key_id.clone()).or_default() += 1;
        }
        let now_ms = self.now_ms();
        let lease = 2 * milliseconds(self.parts.config.jobs.callback_timeout);
        self.submit(CallbackWork::Claim(Claim {
            room: self.room(),
            busy,
            slow: self.slow.clone(),
            after: self.after.clone(),
            now: now_ms,
            lease_until: now_ms.saturating_add(lease),
            body: self.parts.body,
            found: Found::default(),
        }));
    }

    fn handle_claimed(&mut self, found: Found, now: Moment) {
        // Keys behind the last one, and the next ones of these keys, may be due as well.
        if !found.after.is_empty() || !found.claimed.is_empty() {
            self.claim_soon(now);
        }
        self.after = found.after;
        for claimed in found.claimed {
            self.begin(claimed, now);
        }
        self.count();
    }

    fn begin(&mut self, claimed: Claimed, now: Moment) {
        let serial = self.serial;
        self.serial += 1;
        self.under_way.insert(
            serial,
            UnderWay {
                job: claimed.job,
                key_id: claimed.key_id.clone(),
                callback: claimed.callback.clone(),
                expires_at: claimed.expires_at,
                begun: now,
                fetch: None,
                is_leaving: false,
                is_settled: false,
            },
        );
        if self.ends_at.is_some() {
            return self.settle(serial, Outcome::CutOff, now);
        }
        let refused = match self.fetch(serial, claimed) {
            Ok(fetch) => match self.parts.fetcher.submit(fetch) {
                Ok(id) => {
                    if let Some(one) = self.under_way.get_mut(&serial) {
                        one.fetch = Some(id);
                    }
                    return;
                }
                // It is not sent, and its sink not called.
                Err(_) => failed("too many requests of the daemon wait".to_owned()),
            },
            Err(why) => Outcome::Refused {
                why: why.to_owned(),
            },
        };
        self.settle(serial, refused, now);
    }

    fn fetch(&self, serial: u64, claimed: Claimed) -> Result<Fetch, &'static str> {
        if claimed.secrets.is_empty() {
            return Err("its key is revoked, or has no webhook secret any more");
        }
        let parsed = Origin::parse(&claimed.url);
        let (origin, target) = parsed.map_err(|_| "its URL cannot be read")?;
        let jobs = &self.parts.config.jobs;
        let id = claimed.job.to_string();
        let seconds = self.now_ms() / 1_000;
        let signatures = signatures(&claimed.secrets, &id, seconds, &claimed.body);
        let mut fields = Fields::new();
        fields.push("content-type", "application/json");
        fields.push(
            "user-agent",
            concat!("autoglmd/", env!("CARGO_PKG_VERSION")),
        );
        fields.push("webhook-id", &id);
        fields.push_number("webhook-timestamp", seconds);
        fields.push("webhook-signature", &signatures);
        Ok(Fetch {
            tenant: tenant_of(&claimed.key_id),
            origin,
            request: Request {
                method: Method::Post,
                target,
                fields,
                body: claimed.body.into(),
                // A receiver knows it by its id.
                is_idempotent: true,
            },
            timeouts: Timeouts {
                connect: jobs.callback_timeout,
                first_byte: jobs.callback_timeout,
                whole: jobs.callback_timeout,
            },
            bounds: ResponseBounds {
                head_bytes: limits::CALLBACK_HEAD_BYTES_MAX,
                body_bytes: limits::CALLBACK_BODY_BYTES_MAX,
                status_is_enough: true,
            },
            policy: jobs.callback_networks.policy(),
            sink: Box::new(Sink {
                serial,
                callbacks: self.own.clone(),
            }),
        })
    }

    // ---- places ----

    /// Ends attempts whose places are for short stays.
    fn make_way(&mut self, now: Moment) {
        self.slow.note_waiting(waiting(&self.under_way), now);
        while let Some(serial) = leaving(waiting(&self.under_way), now)
            && let Some(one) = self.under_way.get_mut(&serial)
            && let Some(id) = one.fetch.take()
        {
            one.is_leaving = true;
            self.parts.fetcher.cancel(id);
        }
    }

    // ---- results ----

    fn handle_fetched(&mut self, serial: u64, result: Result<Response, FetchError>, now: Moment) {
        let Some(one) = self.under_way.get(&serial) else {
            debug_assert!(false, "a result of no attempt");
            return;
        };
        self.slow.note(&one.key_id, now.since(one.begun));
        let outcome = match result {
            Err(FetchError::Cancelled) if one.is_leaving => failed(format!(
                "no response within {} s, and other callbacks waited for its place",
                limits::CALLBACK_QUICK_TIME.as_secs()
            )),
            result => outcome_of(result, self.now()),
        };
        self.settle(serial, outcome, now);
    }

    fn settle(&mut self, serial: u64, outcome: Outcome, now: Moment) {
        let jobs = &self.parts.config.jobs;
        let terms = CallbackTerms {
            attempts_max: jobs.callback_attempts,
            pause_ms: milliseconds(jobs.callback_pause),
            pause_ms_max: milliseconds(limits::CALLBACK_PAUSE_MAX),
        };
        let (now_ms, draw) = (self.now_ms(), self.random.draw());
        let Some(one) = self.under_way.get_mut(&serial) else {
            debug_assert!(false, "a result of no attempt");
            return;
        };
        let label = CallbackOutcome::of(&outcome);
        self.parts.series.attempts.get(label).inc();
        self.parts.series.durations.observe(now.since(one.begun));
        let callback = one.callback.clone();
        one.callback = callback.settle(outcome, &terms, now_ms, one.expires_at, draw);
        one.is_settled = true;
    }

    fn may_save(&self) -> bool {
        !self.is_saving && self.under_way.values().any(|one| one.is_settled)
    }

    fn save(&mut self, now: Moment) {
        if !self.may_save() || now < self.save_at {
            return;
        }
        let settled = self.under_way.iter().filter(|(_, one)| one.is_settled);
        let settled = settled.map(|(serial, one)| {
            let settled = Settled {
                job: one.job,
                callback: one.callback.clone(),
            };
            (*serial, settled)
        });
        let settled = settled.collect();
        self.is_saving = true;
        self.submit(CallbackWork::Save { settled });
    }

    fn submit(&mut self, work: CallbackWork) {
        let own = self.own.clone();
        let task = RunnerTask::new(work, move |done| own.note(CallbackNote::Done(done)));
        // A task that is refused is dropped, and reports that.
        let _ = self.parts.requests.submit(TENANT, Box::new(task));
    }

    fn handle_done(&mut self, done: Done<CallbackWork>, now: Moment) {
        self.note_health(done.failure.as_deref(), now);
        let has_failed = done.failure.is_some();
        match done.work {
            CallbackWork::Claim(claim) => {
                self.is_claiming = false;
                if !has_failed {
                    self.handle_claimed(claim.found, now);
                }
            }
            CallbackWork::Save { settled } => {
                self.is_saving = false;
                if !has_failed {
                    for (serial, _) in settled {
                        self.under_way.remove(&serial);
                    }
                    self.count();
                    self.claim_soon(now);
                }
            }
        }
    }

    fn note_health(&mut self, failure: Option<&str>, now: Moment) {
        let times = &mut [&mut self.claim_at, &mut self.save_at];
        self.backoff.note_store(failure, "callbacks", times, now);
    }

    fn count(&self) {
        self.parts.series.under_way.set(self.under_way.len() as i64);
    }

    fn now_ms(&self) -> u64 {
        (self.parts.wall_clock)().as_u64()
    }

    fn now(&self) -> UnixSeconds {
        (self.parts.wall_clock)().as_seconds()
    }
}

/// Returns the attempts that wait for their receivers.
fn waiting(under_way: &HashMap<u64, UnderWay>) -> impl Iterator<Item = Waiting<'_>> {
    let waiting = under_way.iter();
    let waiting = waiting.filter(|(_, one)| one.fetch.is_some() && !one.is_settled);
    waiting.map(|(serial, one)| Waiting {
        serial: *serial,
        key_id: &one.key_id,
        begun: one.begun,
    })
}

/// Passes on the result of an attempt.
struct Sink {
    serial: u64,
    callbacks: Callbacks,
}

impl FetchSink for Sink {
    fn finish(self: Box<Self>, result: Result<Response, FetchError>) {
        self.callbacks
            .note(CallbackNote::Fetched(self.serial, result));
    }
}

fn outcome_of(result: Result<Response, FetchError>, now: UnixSeconds) -> Outcome {
    let response = match result {
        Ok(response) => response,
        Err(FetchError::Forbidden) => {
            return Outcome::Refused {
                why: FetchError::Forbidden.to_string(),
            };
        }
        Err(FetchError::Ended | FetchError::Cancelled) => return Outcome::CutOff,
        Err(error) => return failed(error.to_string()),
    };
    let status = response.status;
    match status {
        200..=299 => Outcome::Delivered,
        410 => Outcome::Refused {
            why: "the receiver responded with 410".to_owned(),
        },
        301 | 302 | 303 | 307 | 308 => failed(format!(
            "the receiver responded with {status}; redirects are not followed"
        )),
        _ => Outcome::Failed {
            why: format!("the receiver responded with {status}"),
            retry_after_ms: response.retry_after(now).map(milliseconds),
        },
    }
}

fn failed(why: String) -> Outcome {
    Outcome::Failed {
        why: why
            .chars()
            .take(limits::CALLBACK_REASON_CHARACTERS_MAX)
            .collect(),
        retry_after_ms: None,
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
