//! The bus between daemons, as a part: notices of changed keys have them read at once.

use std::sync::Arc;

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::bus::gossip::{Gossip, GossipSettings};
#[cfg(feature = "kafka")]
use crate::bus::kafka::{self, KafkaSettings};
use crate::bus::receiver::Receiver;
use crate::bus::{Invalidation, Notice, OnNotice, redis};
use crate::config::BusKind;
use crate::console::exit;

pub struct Bus {
    /// `None` without a bus.
    way: Option<Arc<dyn Invalidation>>,
    thread: Thread,
}

/// The thread that receives notices: its drop ends it.
enum Thread {
    None,
    Receiver { _thread: Receiver },
    Gossip { _thread: Gossip },
}

impl Bus {
    /// Returns whether notices of other daemons arrive; `None` without a bus.
    pub fn is_connected(&self) -> Option<bool> {
        self.way.as_ref().map(|way| way.is_connected())
    }
}

impl Part for Bus {
    fn start(birth: &mut Birth) -> Result<Bus, Failure> {
        let mut bus = Bus {
            way: None,
            thread: Thread::None,
        };
        let Some(looks) = birth.looks.clone() else {
            return Ok(bus);
        };
        let purger = birth.purger.clone();
        let purge = move |key: Option<&str>| {
            if let Some(purger) = purger.get() {
                purger.handle_notice(key);
            }
        };
        let on_notice: OnNotice = Box::new(move |notice: Notice| match notice {
            Notice::Key(_) | Notice::All => looks.ask(),
            Notice::Tenant(id) => {
                looks.ask();
                purge(Some(&id));
            }
            Notice::Entries => purge(None),
            // Entries of the shared level are removed there.
            Notice::Entry(_) => {}
        });
        let series = birth.metrics.series();
        let failed = |error| Failure::os("the bus", &error);
        match (birth.config.bus.kind, birth.redis.clone()) {
            (BusKind::Redis, None) => {}
            (BusKind::Redis, Some((settings, handle))) => {
                let started = redis::start(settings, handle, series, on_notice);
                let (thread, way) = started.map_err(failed)?;
                bus.thread = Thread::Receiver { _thread: thread };
                bus.way = Some(Arc::new(way));
            }
            (BusKind::Gossip, _) => {
                let credentials = birth.sources.credentials_dir();
                let settings = GossipSettings::of(&birth.config.bus, credentials.as_deref())
                    .map_err(|message| Failure::new(exit::CONFIG, message))?;
                if let Some(settings) = settings {
                    let started = Gossip::start(settings, series, on_notice);
                    let (thread, way) = started.map_err(failed)?;
                    bus.thread = Thread::Gossip { _thread: thread };
                    bus.way = Some(Arc::new(way));
                }
            }
            #[cfg(feature = "kafka")]
            (BusKind::Kafka, _) => {
                if let Some(settings) = KafkaSettings::of(&birth.config.bus) {
                    let started = kafka::start(settings, series, on_notice);
                    let (thread, way) = started.map_err(failed)?;
                    bus.thread = Thread::Receiver { _thread: thread };
                    bus.way = Some(Arc::new(way));
                }
            }
            // The rules of the configuration refuse it.
            #[cfg(not(feature = "kafka"))]
            (BusKind::Kafka, _) => {}
        }
        birth.bus.clone_from(&bus.way);
        Ok(bus)
    }

    fn join(&mut self) -> bool {
        self.thread = Thread::None;
        true
    }
}
