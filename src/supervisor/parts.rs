//! The daemon's parts, in order of birth.
//!
//! Owns that order. Each part may depend on those above it, so the last one born drains and ends
//! first.
//!
//! To add a part: implement [`Part`], and add it to the struct, to [`Parts::start`] and to
//! [`Parts::list`].
//!
//! Mutation that the test below catches: `drain` without `rev`.

use std::time::Duration;

use super::bus::Bus;
use super::certificates::Certificates;
use super::engine::EnginePart;
use super::failure::Failure;
use super::jobs::Jobs;
use super::keys::Keys;
use super::listeners::Listeners;
use super::log::Log;
use super::outbound::OutboundThreads;
use super::part::{Birth, Part, Settings};
use super::push::Push;
use super::reactors::Reactors;
use super::redis::Redis;
use super::requests::StoreRequests;
use super::workers::WorkerThreads;

pub struct Parts {
    pub log: Log,
    pub certificates: Certificates,
    /// Before the keys: the key of the first start is shown only once, so an occupied port must be
    /// found before that key is created.
    pub listeners: Listeners,
    /// Before the keys, whose limits and notices it carries.
    pub redis: Redis,
    pub keys: Keys,
    pub bus: Bus,
    pub requests: StoreRequests,
    pub workers: WorkerThreads,
    pub outbound: OutboundThreads,
    pub engine: EnginePart,
    pub jobs: Jobs,
    pub reactors: Reactors,
    /// After the reactors, so that its last push begins before they drain.
    pub push: Push,
}

impl Parts {
    pub fn start(birth: &mut Birth) -> Result<Parts, Failure> {
        // Rust evaluates the fields in the order in which they are written here.
        Ok(Parts {
            log: Log::start(birth)?,
            certificates: Certificates::start(birth)?,
            listeners: Listeners::start(birth)?,
            redis: Redis::start(birth)?,
            keys: Keys::start(birth)?,
            bus: Bus::start(birth)?,
            requests: StoreRequests::start(birth)?,
            workers: WorkerThreads::start(birth)?,
            outbound: OutboundThreads::start(birth)?,
            engine: EnginePart::start(birth)?,
            jobs: Jobs::start(birth)?,
            reactors: Reactors::start(birth)?,
            push: Push::start(birth)?,
        })
    }

    fn list(&mut self) -> [&mut dyn Part; 13] {
        [
            &mut self.log,
            &mut self.certificates,
            &mut self.listeners,
            &mut self.redis,
            &mut self.keys,
            &mut self.bus,
            &mut self.requests,
            &mut self.workers,
            &mut self.outbound,
            &mut self.engine,
            &mut self.jobs,
            &mut self.reactors,
            &mut self.push,
        ]
    }

    /// Puts the settings in force, and then calls `report`. The log changes last: the report may be
    /// the last line of its old level.
    pub fn apply(&mut self, settings: &Settings, report: impl FnOnce()) {
        let [_, others @ ..] = self.list();
        apply(others, settings);
        self.reactors.wait_until_handled();
        report();
        self.log.apply(settings);
    }

    /// Begins the drain of all parts. Returns once every reactor drains.
    pub fn drain(&mut self, patience: Duration) {
        drain(self.list(), patience);
        self.reactors.wait_until_handled();
    }

    /// Waits for all parts; what one of them has to keep, it keeps until `is_over`. `false`:
    /// something went wrong in one of them.
    pub fn join(&mut self, is_over: &mut dyn FnMut() -> bool) -> bool {
        join(self.list(), is_over)
    }
}

fn apply<const N: usize>(parts: [&mut dyn Part; N], settings: &Settings) {
    parts.into_iter().for_each(|part| part.apply(settings));
}

fn drain<const N: usize>(parts: [&mut dyn Part; N], patience: Duration) {
    let last_first = parts.into_iter().rev();
    last_first.for_each(|part| part.drain(patience));
}

fn join<const N: usize>(parts: [&mut dyn Part; N], is_over: &mut dyn FnMut() -> bool) -> bool {
    let mut is_good = true;
    for part in parts.into_iter().rev() {
        part.keep(is_over);
        is_good &= part.join();
    }
    is_good
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    /// Writes down every call.
    struct Told {
        name: &'static str,
        ends_well: bool,
        diary: Rc<RefCell<Vec<String>>>,
    }

    impl Told {
        fn write(&self, what: &str) {
            self.diary
                .borrow_mut()
                .push(format!("{what} {}", self.name));
        }
    }

    impl Part for Told {
        fn start(_: &mut Birth) -> Result<Told, Failure> {
            unreachable!("the test makes its parts itself")
        }

        fn apply(&mut self, _: &Settings) {
            self.write("apply");
        }

        fn drain(&mut self, _: Duration) {
            self.write("drain");
        }

        fn keep(&mut self, _: &mut dyn FnMut() -> bool) {
            self.write("keep");
        }

        fn join(&mut self) -> bool {
            self.write("join");
            self.ends_well
        }
    }

    #[test]
    fn settings_come_in_order_of_birth_and_the_end_in_the_other() {
        let diary = Rc::new(RefCell::new(Vec::new()));
        let part = |name, ends_well| Told {
            name,
            ends_well,
            diary: diary.clone(),
        };
        let (mut first, mut last) = (part("log", true), part("reactors", false));
        let settings = Settings {
            config: Arc::default(),
            acceptor: None,
        };
        apply([&mut first, &mut last], &settings);
        drain([&mut first, &mut last], Duration::ZERO);
        let is_good = join([&mut first, &mut last], &mut || false);
        assert!(!is_good, "one of them ended badly");
        assert_eq!(
            *diary.borrow(),
            [
                "apply log",
                "apply reactors",
                "drain reactors",
                "drain log",
                "keep reactors",
                "join reactors",
                "keep log",
                "join log",
            ]
        );
    }
}
