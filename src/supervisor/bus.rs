//! The bus between daemons, as a part: notices of changed keys have them read at once.

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::bus::redis::{RedisBus, Subscriber};
use crate::bus::{Invalidation as _, Notice};

pub struct Bus {
    /// `None` without a bus, and once its thread has ended.
    running: Option<(Subscriber, RedisBus)>,
}

impl Bus {
    /// Returns whether notices of other daemons arrive; `None` without a bus.
    pub fn is_connected(&self) -> Option<bool> {
        self.running.as_ref().map(|(_, bus)| bus.is_connected())
    }
}

impl Part for Bus {
    fn start(birth: &mut Birth) -> Result<Bus, Failure> {
        let (Some((settings, handle)), Some(looks)) = (birth.redis.clone(), birth.looks.clone())
        else {
            return Ok(Bus { running: None });
        };
        let on_notice = move |notice: Notice| match notice {
            Notice::Key(_) | Notice::Tenant(_) | Notice::All => looks.ask(),
            // Entries of the shared level are removed there.
            Notice::Entry(_) => {}
        };
        let series = birth.metrics.series();
        let running = Subscriber::start(settings, handle, series, Box::new(on_notice))
            .map_err(|error| Failure::os("the thread of the bus", &error))?;
        Ok(Bus {
            running: Some(running),
        })
    }

    fn join(&mut self) -> bool {
        self.running = None;
        true
    }
}
