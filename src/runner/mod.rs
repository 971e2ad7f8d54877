//! Runs durable jobs: claims them in the store, hands them to the engine, saves what they write.
//!
//! In reading order:
//!
//! * [`changes`]: changes of several jobs that are saved together;
//! * [`change`]: each kind of change in the store, as one unit of work;
//! * [`tasks`]: the runner's own tasks for the store's thread;
//! * [`journal`]: the way of notes and of the engine's events to the runner;
//! * [`followers`]: the clients that wait for a job's events;
//! * [`elsewhere`]: the jobs that they follow and another daemon runs;
//! * [`calls`]: the jobs whose clients wait for the result;
//! * [`claiming`]: what happens to jobs while their claim is under way;
//! * [`start`]: from a claimed job to a job of the engine;
//! * [`recording`]: the record of a job's generation;
//! * [`clock_steps`]: steps of the wall clock, by which leases are;
//! * [`backoff`]: the pause after a failure of the store or of the engine;
//! * [`attempt`]: one attempt, from its claim to its saved end;
//! * [`thread`]: the runner's own thread;
//! * [`callback_places`]: how many callbacks may be under way, [`callback_claim`]: which are sent
//!   next, and [`callbacks`]: the thread that has them sent;
//! * [`metrics`].
//!
//! A request sees two things of it ([`Access`]): the [`Journal`], for a note that a job was
//! accepted or cancelled, and the [`Followers`].

pub mod attempt;
pub mod backoff;
pub mod callback_claim;
pub mod callback_places;
pub mod callbacks;
pub mod calls;
pub mod change;
pub mod changes;
pub mod claiming;
pub mod clock_steps;
pub mod elsewhere;
pub mod followers;
pub mod journal;
pub mod metrics;
pub mod recording;
pub mod start;
pub mod tasks;
pub mod thread;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;

use crate::core::Moment;
use crate::os::process::give_way;

pub use callbacks::{CallbackCaller, CallbackParts, Callbacks};
pub use followers::{Crowded, Follower, Followers, Wake};
pub use journal::{Destinations, Journal, Note};
pub use metrics::{CallbackSeries, RunnerSeries};
pub use thread::{Parts, Thread};

/// The runner, as requests see it. The default is for a service without one.
#[derive(Clone, Default)]
pub struct Access {
    pub journal: Journal,
    pub followers: Arc<Followers>,
}

/// The running thread.
pub struct Runner {
    journal: Journal,
    thread: Option<JoinHandle<()>>,
}

impl Runner {
    pub fn start(parts: Parts, notes: Receiver<Note>) -> io::Result<Runner> {
        let journal = parts.journal.clone();
        let thread = std::thread::Builder::new()
            .name("jobs".to_owned())
            .spawn(move || {
                give_way();
                Thread::new(parts, Moment::now()).run(&notes);
            })?;
        Ok(Runner {
            journal,
            thread: Some(thread),
        })
    }

    /// Takes no more jobs, and gives back those that run.
    pub fn drain(&self) {
        self.journal.note(Note::Drain);
    }

    /// Waits for the end of the thread. `false`: it has panicked.
    pub fn join(&mut self) -> bool {
        self.drain();
        self.thread
            .take()
            .is_none_or(|thread| thread.join().is_ok())
    }
}
