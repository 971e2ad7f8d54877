//! The runner of durable jobs, as a part.
//!
//! Born after the engine, which computes them, and after the store's thread. A drain gives running
//! jobs back to the store at once: they run again after the next start, or on another daemon. A
//! callback under way is ended with its reactor, and sent again after the next start.

use std::sync::Arc;
use std::time::Duration;

use super::failure::Failure;
use super::part::{Birth, Part, Settings};
use crate::console::exit;
use crate::core::UnixMillis;
use crate::reactor::message::Mailboxes;
use crate::runner::callbacks::CallbackNote;
use crate::runner::{CallbackCaller, CallbackParts, Followers, Journal, Note, Parts, Runner};
use crate::service::callback_body;
use crate::telemetry::random::random_seed;

pub struct Jobs {
    runner: Runner,
    caller: CallbackCaller,
    journal: Journal,
}

impl Part for Jobs {
    fn start(birth: &mut Birth) -> Result<Jobs, Failure> {
        let (Some(notes), Some(engine)) = (birth.notes.take(), birth.engine.clone()) else {
            return Err(Failure::new(
                exit::SOFTWARE,
                "the runner of jobs is born before the engine",
            ));
        };
        let mailboxes = birth.spawner.as_ref().map(|spawner| spawner.mailboxes());
        let wake = Arc::new(Mailboxes(mailboxes.unwrap_or_default()));
        birth.jobs.followers = Arc::new(Followers::new(wake));
        let Some(fetcher) = birth.fetcher.clone() else {
            return Err(Failure::new(
                exit::SOFTWARE,
                "callbacks are born before the way of requests to other servers",
            ));
        };
        let caller = CallbackCaller::start(CallbackParts {
            fetcher,
            requests: birth.requests.clone(),
            series: birth.metrics.series(),
            config: birth.config.clone(),
            body: callback_body,
            wall_clock: UnixMillis::now,
            seed: random_seed(),
        });
        let caller = caller.map_err(|error| Failure::os("starting a thread", &error))?;
        let parts = Parts {
            callbacks: caller.callbacks(),
            engine,
            requests: birth.requests.clone(),
            followers: birth.jobs.followers.clone(),
            journal: birth.jobs.journal.clone(),
            series: birth.metrics.series(),
            config: birth.config.clone(),
            keys: birth.keys.clone(),
            leases: birth.limiter.leases.clone(),
            wall_clock: UnixMillis::now,
            seed: random_seed(),
        };
        let runner = Runner::start(parts, notes);
        let runner = runner.map_err(|error| Failure::os("starting a thread", &error))?;
        Ok(Jobs {
            runner,
            caller,
            journal: birth.jobs.journal.clone(),
        })
    }

    fn apply(&mut self, settings: &Settings) {
        let config = &settings.config;
        self.journal.note(Note::Apply(config.clone()));
        let callbacks = self.caller.callbacks();
        callbacks.note(CallbackNote::Apply(config.clone()));
    }

    fn drain(&mut self, _: Duration) {
        self.runner.drain();
        self.caller.drain();
    }

    fn join(&mut self) -> bool {
        let is_good = self.runner.join();
        self.caller.join() & is_good
    }
}
