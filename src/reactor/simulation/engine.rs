//! An engine that generates when the dice decide, and sometimes too late.
//!
//! It keeps the border's rules as strictly as possible: without credit it merges its output into
//! one pending piece, and when that piece is full it waits, for ever if necessary. So credit that
//! is granted too freely floods the daemon, and forgotten credit stops the world; the simulation
//! detects both.

use std::sync::{Arc, Mutex};

use super::Dice;
use crate::engine::{
    Defaults, Deliver, Done, Engine, Event, FailReason, Failed, FinishReason, Gauges, Job,
    ModelInfo, Refused, Served, State, Timings, Usage,
};
use crate::error::ErrorCode;
use crate::offload::JobKey;

/// Every program here consists of this line, repeated as the dice decide.
pub const LINE: &str = "print(1)\n";

/// A program is in a fence; otherwise nothing would flow before its end is known.
const OPENING: &str = "```python\n";

/// How much an engine generates.
#[derive(Clone, Copy, Debug)]
pub struct Verbosity {
    pub program_lines_least: u64,
    pub program_lines_most: u64,
    pub token_lines_most: u64,
    /// It fails in one of this many steps.
    pub fails_one_in: u64,
}

/// Programs as small as the usual output, a few lines at a time.
pub const TERSE: Verbosity = Verbosity {
    program_lines_least: 1,
    program_lines_most: 40,
    token_lines_most: 8,
    fails_one_in: 100,
};

/// Programs that are larger than all buffers on their way.
pub const CHATTY: Verbosity = Verbosity {
    program_lines_least: 1,
    program_lines_most: 25_000,
    token_lines_most: 100,
    fails_one_in: 1_000,
};

/// Bytes of the pending piece at which a job waits for credit.
const PENDING_BYTES_FULL: usize = 1_000;

/// Bytes of the largest token event.
pub const EVENT_BYTES_MOST: usize =
    OPENING.len() + PENDING_BYTES_FULL + CHATTY.token_lines_most as usize * LINE.len();

/// Jobs wait here until [`SimulatedEngine::step`] does something for one of them.
pub struct SimulatedEngine {
    deliver: Arc<dyn Deliver>,
    verbosity: Verbosity,
    desk: Mutex<Desk>,
}

#[derive(Default)]
struct Desk {
    running: Vec<Running>,
    admitted: u64,
    ended: u64,
    /// Keys of jobs that have ended: an event for one of them must be dropped.
    past: Vec<JobKey>,
}

struct Running {
    job: Job,
    /// Lines still to be generated; unknown until the dice have been thrown.
    lines_left: Option<u64>,
    /// Text that could not be sent for lack of credit.
    pending: String,
    /// It got credit, so its response is a stream. All others get their text at the end.
    streams: bool,
}

impl SimulatedEngine {
    pub fn new(deliver: Arc<dyn Deliver>, verbosity: Verbosity) -> SimulatedEngine {
        SimulatedEngine {
            deliver,
            verbosity,
            desk: Mutex::default(),
        }
    }

    /// Returns the number of jobs that still owe their terminal event.
    pub fn running(&self) -> usize {
        self.desk.lock().unwrap().running.len()
    }

    /// Returns the keys of the running jobs that were not cancelled.
    pub fn wanted(&self) -> Vec<JobKey> {
        let desk = self.desk.lock().unwrap();
        let wanted = desk.running.iter().map(|running| &running.job);
        wanted
            .filter(|job| job.ticket.cancelled().is_none())
            .map(|job| job.key)
            .collect()
    }

    /// Returns the numbers of admitted and of ended jobs.
    pub fn totals(&self) -> (u64, u64) {
        let desk = self.desk.lock().unwrap();
        (desk.admitted, desk.ended)
    }

    /// Sends one job a token or its end.
    pub fn step(&self, dice: &mut Dice) {
        let mut desk = self.desk.lock().unwrap();
        let mut events = Vec::new();
        if !desk.past.is_empty() && dice.one_in(10) {
            let stale = desk.past[dice.below(desk.past.len() as u64) as usize];
            let text = "too late".into();
            events.push((stale, Event::Token { text }));
        }
        if !desk.running.is_empty() {
            let index = dice.below(desk.running.len() as u64) as usize;
            events.extend(desk.advance(index, &self.verbosity, dice));
        }
        drop(desk);
        self.deliver.deliver(&mut events);
    }
}

impl Desk {
    fn advance(
        &mut self,
        index: usize,
        verbosity: &Verbosity,
        dice: &mut Dice,
    ) -> Option<(JobKey, Event)> {
        let running = &mut self.running[index];
        let key = running.job.key;
        if let Some(reason) = running.job.ticket.cancelled() {
            let reason = FailReason::Cancelled(reason);
            return Some((key, self.end(index, |text| failed(reason, text))));
        }
        if dice.one_in(verbosity.fails_one_in) {
            let reason = FailReason::Error(ErrorCode::EngineFailed);
            return Some((key, self.end(index, |text| failed(reason, text))));
        }
        running.generate(verbosity, dice);
        if running.is_complete() && dice.one_in(2) {
            return Some((key, self.end(index, done)));
        }
        if running.pending.is_empty() || !running.job.ticket.take_credit() {
            return None;
        }
        running.streams = true;
        let text = std::mem::take(&mut running.pending);
        Some((key, Event::Token { text }))
    }

    fn end(&mut self, index: usize, event: impl FnOnce(String) -> Event) -> Event {
        let Running { job, pending, .. } = self.running.swap_remove(index);
        self.ended += 1;
        self.past.push(job.key);
        event(pending)
    }
}

impl Running {
    fn generate(&mut self, verbosity: &Verbosity, dice: &mut Dice) {
        let lines_left = self.lines_left.get_or_insert_with(|| {
            self.pending.push_str(OPENING);
            let (least, most) = (verbosity.program_lines_least, verbosity.program_lines_most);
            least + dice.below(most - least + 1)
        });
        if self.streams && self.pending.len() >= PENDING_BYTES_FULL {
            return;
        }
        let lines = (*lines_left).min(1 + dice.below(verbosity.token_lines_most));
        *lines_left -= lines;
        self.pending.push_str(&LINE.repeat(lines as usize));
    }

    /// Returns whether nothing is left to generate, and a stream's last piece does not wait for
    /// credit.
    fn is_complete(&self) -> bool {
        let waits = self.streams && self.pending.len() >= PENDING_BYTES_FULL;
        self.lines_left == Some(0) && !waits
    }
}

fn done(text: String) -> Event {
    Event::Done(Box::new(Done {
        text,
        finish_reason: FinishReason::Stop,
        usage: Usage::default(),
        timings: Timings::default(),
        served: Served::default(),
    }))
}

fn failed(reason: FailReason, text: String) -> Event {
    Event::Failed(Box::new(Failed {
        reason,
        message: "the dice fell badly".into(),
        text,
        usage: Usage::default(),
        timings: Timings::default(),
    }))
}

impl Engine for SimulatedEngine {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        let mut desk = self.desk.lock().unwrap();
        desk.admitted += 1;
        desk.running.push(Running {
            job,
            lines_left: None,
            pending: String::new(),
            streams: false,
        });
        Ok(())
    }

    fn state(&self) -> State {
        State::Ready
    }

    fn model(&self) -> Option<ModelInfo> {
        Some(ModelInfo {
            id: "dice".into(),
            engine: "echo",
            description: "simulated".into(),
            context_length: 4096,
            fingerprint: [0; 32],
            created: 0,
            defaults: Defaults::default(),
        })
    }

    fn gauges(&self) -> Gauges {
        Gauges::default()
    }

    fn drain(&self) {}
}
