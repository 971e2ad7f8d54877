//! Redis, as a part: its thread, and the way to it for the parts after it.

use std::sync::Arc;

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::console::exit;
use crate::leases::Leases;
use crate::redis::{Link, Settings};
use crate::service::Limiter;

pub struct Redis {
    /// `None` without Redis, and once its thread has ended.
    link: Option<Link>,
}

impl Part for Redis {
    fn start(birth: &mut Birth) -> Result<Redis, Failure> {
        let credentials = birth.sources.credentials_dir();
        let settings = Settings::of(&birth.config.cache_shared, credentials)
            .map_err(|message| Failure::new(exit::CONFIG, message))?;
        let Some(settings) = settings else {
            return Ok(Redis { link: None });
        };
        let (link, handle) = Link::start(settings.clone(), birth.metrics.series())
            .map_err(|error| Failure::os("the thread of Redis", &error))?;
        birth.limiter = Arc::new(Limiter::new(Leases::new(handle.clone())));
        birth.redis = Some((settings, handle));
        Ok(Redis { link: Some(link) })
    }

    fn join(&mut self) -> bool {
        self.link = None;
        true
    }
}
