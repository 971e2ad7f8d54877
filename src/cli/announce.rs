//! Notifies running daemons of a change that a command has made, over their bus.
//!
//! Must never fail a command: without the notice the daemons read the change within a second.

use crate::bus::{self, Notice};
use crate::config::{self, Sources};
use crate::console::note;
use crate::redis::Settings;

/// Publishes the notices, if the configuration names a bus.
pub fn announce(notices: &[Notice], sources: &Sources) {
    // A configuration with errors is reported where it is used.
    let Ok(loaded) = config::load(sources) else {
        return;
    };
    let settings = Settings::of(&loaded.config.cache_shared, sources.credentials_dir());
    let sent = match settings {
        Ok(None) => return,
        Ok(Some(settings)) => bus::redis::publish(settings, notices).map_err(|e| e.to_string()),
        Err(message) => Err(message),
    };
    if let Err(message) = sent {
        note(format_args!(
            "no daemon was notified ({message}); each reads the change within a second"
        ));
    }
}
