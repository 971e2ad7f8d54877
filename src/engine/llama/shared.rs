//! The state that the engine's thread shares with its callers.
//!
//! Owns two states, counts and the numbers of the last step. The lock must never be held during a
//! step or a call into llama.cpp, because reactors take it, too.
//!
//! The states are independent, because an engine may be drained while it loads its model:
//!
//! ```text
//!   Life, which only advances:     Running -> Draining -> Ending -> Over
//!   the model, set by the thread:  loading (0 to 100 %) <-> ready;  failed for good
//! ```

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::backend::Prepare;
use super::heartbeat::Heartbeat;
use super::places::Places;
use super::speed::Speed;
use crate::core::Moment;
use crate::engine::{Gauges, ModelInfo, State};

/// How far the engine's life has gone. A later state includes the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Life {
    Running,
    /// No job is taken any more; those that were taken are finished.
    Draining,
    /// The engine's owner is gone: the thread must end at once.
    Ending,
    /// The thread takes no more messages.
    Over,
}

/// The value of [`Shared::loaded`] while the model can be used; a percentage is at most 100.
const READY: u8 = u8::MAX;

#[derive(Debug, Default)]
pub struct Shared {
    /// The places of the jobs that were submitted and have no sequence yet.
    pub places: Arc<Places>,
    /// Jobs that are being prepared; [`super::intake`] explains the order of reads and writes.
    pub under_way: AtomicU32,
    /// Prepares prompts for the engine that serves; `None` while none does.
    preparer: Mutex<Option<Arc<dyn Prepare>>>,
    wakes: Wakes,
    life: AtomicU8,
    /// The percentage of the model that is loaded, or [`READY`].
    loaded: AtomicU8,
    failure: OnceLock<String>,
    pub model: OnceLock<ModelInfo>,
    pub heartbeat: Arc<Heartbeat>,
    /// How often the engine was restarted after a panic.
    restarts: AtomicU64,
    stall_timeout: Duration,
    published: Mutex<Published>,
}

/// An order to the thread, if it waits for a job, to look at the state again. One order
/// stands for any number of them.
#[derive(Debug)]
struct Wakes(Sender<()>, Receiver<()>);

impl Default for Wakes {
    fn default() -> Wakes {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        Wakes(sender, receiver)
    }
}

/// The numbers after a step.
#[derive(Debug, Default)]
pub struct Published {
    pub gauges: Gauges,
    pub speed: Speed,
    /// For each sequence: the tenant whose text it holds, and the tokens of that text.
    pub held: Vec<(u64, usize)>,
}

impl Shared {
    /// At most about `queue` jobs may wait for a sequence.
    pub fn new(queue: u32, stall_timeout: Duration) -> Shared {
        Shared {
            places: Arc::new(Places::new(queue)),
            stall_timeout,
            ..Shared::default()
        }
    }

    pub fn life(&self) -> Life {
        // Sequentially consistent: see `drop_jobs_if_over`.
        match self.life.load(Ordering::SeqCst) {
            0 => Life::Running,
            1 => Life::Draining,
            2 => Life::Ending,
            _ => Life::Over,
        }
    }

    /// Advances the life to `to`; returns whether it had not got there before.
    pub fn advance(&self, to: Life) -> bool {
        self.life.fetch_max(to as u8, Ordering::SeqCst) < to as u8
    }

    /// Returns whether a model that is still being fetched or loaded would be used.
    pub fn is_wanted(&self) -> bool {
        self.life() == Life::Running
    }

    /// Makes the thread look at the state, if it waits for a job.
    pub fn wake(&self) {
        // A full channel holds an order that the thread has not taken yet.
        let _ = self.wakes.0.try_send(());
    }

    /// Returns a function that does the same, for another thread.
    pub fn waker(&self) -> Box<dyn Fn() + Send> {
        let sender = self.wakes.0.clone();
        Box::new(move || {
            let _ = sender.try_send(());
        })
    }

    pub fn wakes(&self) -> &Receiver<()> {
        &self.wakes.1
    }

    /// Returns whether the thread has nothing left to wait for: it drains, and all jobs that were
    /// submitted have come. Must be called before a look into the channel.
    pub fn is_last_job_sent(&self) -> bool {
        self.life() >= Life::Draining && self.under_way.load(Ordering::SeqCst) == 0
    }

    /// Returns the preparer of prompts, if the engine serves.
    pub fn preparer(&self) -> Option<Arc<dyn Prepare>> {
        self.lock_preparer().clone()
    }

    fn lock_preparer(&self) -> MutexGuard<'_, Option<Arc<dyn Prepare>>> {
        // One pointer: a holder's panic cannot leave it half written.
        self.preparer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the progress of loading, in percent.
    pub fn set_percent(&self, percent: u8) {
        self.loaded.store(percent.min(100), Ordering::Release);
    }

    /// Records that the model can be used, and prepares prompts.
    pub fn begin_serving(&self, preparer: Arc<dyn Prepare>) {
        *self.lock_preparer() = Some(preparer);
        self.loaded.store(READY, Ordering::Release);
    }

    pub fn state(&self, now: Moment) -> State {
        if let Some(message) = self.failure.get() {
            return State::Failed(message.clone());
        }
        let silence = self.heartbeat.silence(now);
        match self.loaded.load(Ordering::Acquire) {
            READY if silence >= self.stall_timeout => State::Stalled {
                seconds: silence.as_secs(),
            },
            READY => State::Ready,
            percent => State::Loading { percent },
        }
    }

    pub fn gauges(&self, now: Moment) -> Gauges {
        Gauges {
            // Jobs that are being prepared and jobs in the channel wait, too.
            queue_depth: self.places.total(),
            beats: self.heartbeat.beats(),
            silence: self.heartbeat.silence(now),
            restarts: self.restarts.load(Ordering::Relaxed),
            ..self.published().gauges
        }
    }

    pub fn published(&self) -> MutexGuard<'_, Published> {
        // Numbers that are copied whole: a holder's panic cannot leave them half written.
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the engine has panicked: no job is taken until the model is loaded again.
    pub fn end_serving(&self) {
        // The model is freed with its last user, which may be a job that is being prepared.
        *self.lock_preparer() = None;
        self.set_percent(0);
    }

    /// Counts a restart, and forgets what was measured on the model that is gone.
    pub fn begin_restart(&self) {
        // A load that fails leaves its progress behind.
        self.set_percent(0);
        self.heartbeat.rest();
        self.restarts.fetch_add(1, Ordering::Relaxed);
        let mut published = self.published();
        published.speed = Speed::default();
        published.held.clear();
        published.gauges = published.gauges.totals();
    }

    pub fn fail(&self, message: String) {
        // The supervisor logs all lines of a message.
        let cause = message.lines().next().unwrap_or_default();
        log::error!("the engine stopped: {cause}");
        self.heartbeat.rest();
        // The first failure is the cause.
        let _ = self.failure.set(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutation that this test catches: `store` for `fetch_max`, which takes an engine that has
    /// ended back to draining.
    #[test]
    fn life_only_advances() {
        let shared = Shared::default();
        assert!(shared.is_wanted());
        assert!(shared.advance(Life::Draining));
        assert!(!shared.advance(Life::Draining));
        assert!(shared.advance(Life::Over));
        assert!(!shared.advance(Life::Ending));
        assert_eq!(shared.life(), Life::Over);
    }

    /// Mutation that this test catches: a percentage that is not bounded may be taken for ready.
    #[test]
    fn progress_is_never_taken_for_ready() {
        let shared = Shared::new(1, Duration::from_secs(1));
        shared.set_percent(u8::MAX);
        assert_eq!(shared.state(Moment::now()), State::Loading { percent: 100 });
        shared.loaded.store(READY, Ordering::Release);
        assert_eq!(shared.state(Moment::now()), State::Ready);
        shared.end_serving();
        assert_eq!(shared.state(Moment::now()), State::Loading { percent: 0 });
    }
}
