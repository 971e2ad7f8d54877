//! The engine's thread: loads the model, takes jobs in, lets the scheduler step.
//!
//! Owns the order of these steps and the handling of panics. Generic over the [`Backend`], so that
//! panics and hangs are tested without a model.
//!
//! ```text
//!   obtain ──> load ──> serve ──> over: drained, or its owner is gone
//!                ^        └ panic ──> pause, twice as long each time ──> load
//!                └ too many panics, or no model ──> failed: the supervisor ends the process
//! ```
//!
//! Invariants:
//!  1. A panic fails the jobs that were admitted to the scheduler, because one of them may be its
//!     cause, and no others. Jobs in the channel are left to the next engine.
//!  2. The totals of the gauges never decrease.
//!  3. A step with a job in the scheduler finds the heartbeat at work.
//!  4. No caller sees `Ready` after a job has failed by a panic, until the model is loaded again.
//!  5. A job in the channel gets its terminal event even if the thread ends before it takes the
//!     job: a bounded channel keeps its contents when its receiver goes.
//!
//! Mutations that the tests below catch: `Restarts::next` that always allows
//! (`engine_that_panics_again_and_again_...`), a restart that forgets totals or is not counted
//! (`panic_fails_its_job_...`), `load_and_serve` without `end_serving`
//! (`client_of_a_failed_job_never_...`), `serve` without its beat before a step
//! (`hang_is_seen_...`), `serve` without `make_room`, or with one that spares no tenant
//! (`full_queue_makes_room_for_a_tenant_that_has_few`), `Over` without its drop, or `submit`
//! without `drop_jobs_if_over` (`job_left_in_the_channel_...`).

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, never, select};

use super::backend::Backend;
use super::fault::Fault;
use super::intake::{Arrival, drop_jobs_if_over};
use super::scheduler::Scheduler;
use super::shared::{Life, Shared};
use super::{Obtain, Obtained, Settings};
use crate::core::Moment;
use crate::engine::prefixes::{Archive, Disk, Origin, OwnState, OwnWords};
use crate::engine::{Class, Deliver};
use crate::limits::engine as limits;
use crate::offload::CancelReason;

/// Reports the thread's end, however it ends.
pub struct Over<'a> {
    shared: &'a Shared,
    receiver: &'a Receiver<Box<Arrival>>,
}

impl<'a> Over<'a> {
    pub fn new(shared: &'a Shared, receiver: &'a Receiver<Box<Arrival>>) -> Over<'a> {
        Over { shared, receiver }
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.shared.advance(Life::Over);
        drop_jobs_if_over(self.shared, self.receiver);
    }
}

/// The state of the thread; it lives as long as the thread does.
pub struct Thread<'a, B: Backend> {
    pub settings: &'a Settings,
    pub load: &'a dyn Fn(&Obtained) -> Result<B, String>,
    pub receiver: &'a Receiver<Box<Arrival>>,
    pub deliver: Arc<dyn Deliver>,
    pub shared: &'a Shared,
    pub fault: Fault,
}

impl<B: Backend> Thread<'_, B> {
    /// Works until the engine is drained, has failed, or is no longer needed.
    pub fn run(mut self, obtain: Obtain) {
        let is_wanted = || self.shared.is_wanted();
        let model = match caught(|| obtain(&is_wanted)) {
            Ok(model) => model,
            Err(message) => return self.give_up(message),
        };
        let mut restarts = Restarts::default();
        loop {
            let mut is_serving = false;
            match caught(|| self.load_and_serve(&model, &mut is_serving)) {
                Ok(()) => return,
                // A file that cannot be loaded at the start cannot be loaded later.
                Err(message) if !is_serving && restarts.count == 0 => return self.give_up(message),
                Err(message) => {
                    let Some(pause) = restarts.next(Instant::now()) else {
                        let count = restarts.count;
                        return self.give_up(format!(
                            "{message} (giving up after {} failures)",
                            count + 1
                        ));
                    };
                    self.shared.begin_restart();
                    let pause_ms = pause.as_millis();
                    log::error!("the engine stopped: {message}; restarting it in {pause_ms} ms");
                    self.pause(pause);
                }
            }
            if !self.shared.is_wanted() {
                return;
            }
        }
    }

    fn give_up(&self, message: String) {
        if self.shared.is_wanted() {
            self.shared.fail(message);
        } else {
            log::info!("the daemon is stopping; model load cancelled");
        }
    }

    /// A panic drops the scheduler, and each of its jobs reports its own failure.
    fn load_and_serve(&mut self, model: &Obtained, is_serving: &mut bool) -> Result<(), String> {
        let backend = (self.load)(model)?;
        *is_serving = true;
        let preparer = backend.preparer();
        let origin = self.origin(&backend, model);
        let own_words = self.own_words(origin.as_ref());
        let archive = self.archive(origin);
        let mut scheduler = Scheduler::new(
            backend,
            self.settings.prompt_budget,
            self.settings.is_reproducible,
            self.deliver.clone(),
            self.shared.heartbeat.clone(),
        );
        if let Some(archive) = archive {
            scheduler.use_archive(archive);
        }
        if let Some((words, states)) = own_words {
            scheduler.use_own_words(words, states);
        }
        scheduler.resume(self.shared.published().gauges);
        self.publish(&scheduler);
        self.shared.begin_serving(preparer);
        let served = caught(|| {
            self.serve(&mut scheduler);
            self.shared.heartbeat.rest();
            scheduler.archive_all(&|| self.shared.life() >= Life::Ending);
            Ok(())
        });
        if served.is_err() {
            // Before the jobs report it: a client that learns of the failure and then asks for
            // readiness must not be sent to an engine that is about to load again.
            self.shared.end_serving();
        }
        served
    }

    /// Returns everything that computed states depend on; `None` if they must not be used again.
    fn origin(&self, backend: &B, model: &Obtained) -> Option<Origin> {
        if self.settings.is_reproducible || model.sha256.is_empty() {
            return None;
        }
        let gpu_layers = model.adjust(self.settings).gpu_layers;
        backend.origin(&model.sha256, gpu_layers)
    }

    /// Returns the daemon's own words that were computed before, and the way of others to the disk.
    fn own_words(&self, origin: Option<&Origin>) -> Option<(OwnWords, Vec<OwnState>)> {
        OwnWords::open(self.settings.own_words.as_ref()?, origin?)
    }

    /// Returns the archive of computed prefixes, if the settings ask for one. The engine works as
    /// well without it.
    fn archive(&self, origin: Option<Origin>) -> Option<Box<dyn Archive>> {
        let folder = self.settings.prefixes.clone()?;
        if self.settings.is_reproducible {
            log::warn!("cache.prefixes has no effect with engine.reproducible");
        }
        let origin = origin?;
        match Disk::start(folder, origin, self.shared.waker()) {
            Ok(disk) => Some(Box::new(disk)),
            Err(error) => {
                log::warn!("cache.prefixes: cannot start a thread: {error}");
                None
            }
        }
    }

    /// Takes jobs in and lets the scheduler step.
    fn serve(&mut self, scheduler: &mut Scheduler<B>) {
        let heartbeat = &self.shared.heartbeat;
        let admit = |scheduler: &mut Scheduler<B>, arrival: Box<Arrival>| {
            let Arrival { owed, prepared } = *arrival;
            scheduler.admit(owed, prepared);
        };
        while self.shared.life() < Life::Ending {
            if scheduler.is_idle() {
                heartbeat.rest();
                if self.shared.is_last_job_sent() && self.receiver.is_empty() {
                    return;
                }
                let rest = scheduler.rest_at().map(|at| after(at.since(Moment::now())));
                select! {
                    recv(rest.unwrap_or_else(never)) -> _ => {
                        scheduler.rest();
                        continue;
                    }
                    recv(self.receiver) -> arrival => {
                        // Not disconnected: the owner keeps a sender until this thread has ended.
                        arrival.into_iter().for_each(|arrival| admit(scheduler, arrival));
                    }
                    recv(self.shared.wakes()) -> _ => continue,
                }
            }
            if let Some(pause) = scheduler.pause() {
                select! {
                    recv(self.receiver) -> arrival => {
                        arrival.into_iter().for_each(|arrival| admit(scheduler, arrival));
                    }
                    recv(self.shared.wakes()) -> _ => {}
                    default(pause) => {}
                }
            }
            // All that have come, so that the scheduler can choose fairly between them.
            for arrival in self.receiver.try_iter().take(self.receiver.len()) {
                admit(scheduler, arrival);
            }
            self.make_room(scheduler);
            heartbeat.beat(Moment::now());
            if !scheduler.is_idle() {
                self.fault.strike();
            }
            scheduler.step();
            heartbeat.beat(Moment::now());
            self.publish(scheduler);
        }
        scheduler.cancel_all(CancelReason::Drain);
    }

    /// Refuses jobs of the tenant with the most of them while the queue is above its bound. If most
    /// of its jobs are still being prepared, it has to wait for them.
    fn make_room(&self, scheduler: &mut Scheduler<B>) {
        let places = &self.shared.places;
        let excess = places.excess();
        if excess > 0 {
            scheduler.make_room(excess, &|tenant| {
                let is_longest = places.is_longest(tenant);
                is_longest.then(|| self.shared.time_to_empty_queue(tenant, Class::Live))
            });
        }
    }

    fn publish(&self, scheduler: &Scheduler<B>) {
        let mut published = self.shared.published();
        published.gauges = scheduler.gauges();
        published.speed = *scheduler.speed();
        published.held.clear();
        published.held.extend(scheduler.held());
    }

    /// Waits before the next start, but stops when there is no reason to wait any more.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while self.shared.is_wanted() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(limits::RESTART_POLL_INTERVAL));
        }
    }
}

/// Counts how often the engine was restarted, and decides how long the next start waits.
#[derive(Debug, Default)]
struct Restarts {
    count: u32,
    last: Option<Instant>,
}

impl Restarts {
    /// Returns the pause before the next start; `None` if there were too many.
    fn next(&mut self, now: Instant) -> Option<Duration> {
        let is_old =
            |last: Instant| now.saturating_duration_since(last) >= limits::RESTARTS_FORGOTTEN_AFTER;
        if self.last.is_some_and(is_old) {
            self.count = 0;
        }
        self.last = Some(now);
        if self.count >= limits::RESTARTS_MAX {
            return None;
        }
        self.count += 1;
        Some(limits::RESTART_PAUSE * 2_u32.pow(self.count - 1))
    }
}

/// Runs `work`. A panic becomes an error, like the errors that it returns.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => Err(panic_message(&*panic)),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a bug: {}", text.unwrap_or("a panic without a message"))
}

#[cfg(test)]
mod tests;
