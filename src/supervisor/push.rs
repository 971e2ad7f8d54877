//! Metrics pushed to an OpenTelemetry collector, as a part: one thread, which reads the registry
//! once per interval, and hands batches to the way of requests to other servers.
//!
//! Owns the thread, its clock and the log lines about the pushes. What is pushed and when a failed
//! push is tried again is decided in [`otlp`](crate::telemetry::otlp). Never waits for a reactor,
//! and no reactor ever waits for it.
//!
//! Born after the reactors, so it is the first part to drain: the last push begins while the
//! reactors, which carry it, still run. A drain waits `PUSH_DRAIN_TIMEOUT` for it at most; the
//! numbers of requests that end during a drain follow as long as reactors run.
//!
//! Mutations that `tests/otlp.rs` catches: `drain` without its wait, a fate that is not counted, a
//! token or a header that is not sent, a body without `content-encoding`.

mod collector;
mod numbers;
mod pusher;
mod troubles;

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::console::exit;
use crate::core::Moment;
use crate::limits::telemetry as limits;
use crate::os::process::give_way;
use crate::telemetry::otlp::delivery::Delivery;
use crate::telemetry::random::random_seed;

use collector::Target;
use numbers::{Owned, Registry};
use pusher::{Note, Pusher};
use troubles::Troubles;

pub struct Push {
    /// `None` without a collector.
    running: Option<(Sender<Note>, JoinHandle<()>)>,
}

impl Part for Push {
    fn start(birth: &mut Birth) -> Result<Push, Failure> {
        let settings = &birth.config.metrics_push;
        if settings.url.is_empty() {
            return Ok(Push { running: None });
        }
        let invalid = |message| Failure::new(exit::CONFIG, message);
        let target = Target::of(settings, birth.sources.credentials_dir().as_deref());
        let target = target.map_err(invalid)?;
        let (Some(fetcher), Some(engine), Some(responses)) = (
            birth.fetcher.clone(),
            birth.engine.clone(),
            birth.responses.clone(),
        ) else {
            let message = "the pushes are born before the reactors";
            return Err(Failure::new(exit::SOFTWARE, message));
        };
        let (sender, notes) = unbounded();
        let owned = Owned {
            engine,
            responses,
            buffered: birth.buffered.clone(),
            workers: birth.workers.clone(),
            requests: birth.requests.clone(),
        };
        let engine = birth.config.engine.kind.as_str();
        let pusher = Pusher {
            series: birth.metrics.series(),
            numbers: Registry::new(&birth.metrics, owned, engine),
            delivery: Delivery::new(settings.spool, random_seed()),
            interval: settings.interval,
            next_at: Moment::now() + settings.interval,
            last: None,
            troubles: Troubles::default(),
            target,
            fetcher,
            own: sender.clone(),
        };
        let thread = thread::Builder::new()
            .name("push".to_owned())
            .stack_size(limits::PUSH_STACK_BYTES)
            .spawn(move || {
                give_way();
                pusher.run(&notes);
            })
            .map_err(|error| Failure::os("starting a thread", &error))?;
        Ok(Push {
            running: Some((sender, thread)),
        })
    }

    fn drain(&mut self, patience: Duration) {
        let Some((notes, _)) = &self.running else {
            return;
        };
        let (done, end) = bounded(0);
        if notes.send(Note::Last(done)).is_ok() {
            // Nothing is ever sent: it ends with the drop of the sender, or with its time.
            let _ = end.recv_timeout(patience.min(limits::PUSH_DRAIN_TIMEOUT));
        }
    }

    fn join(&mut self) -> bool {
        let Some((notes, thread)) = self.running.take() else {
            return true;
        };
        // A thread that has ended needs no message.
        let _ = notes.send(Note::End);
        thread.join().is_ok()
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        // A start that has failed after this part.
        self.join();
    }
}
