//! Notifies running daemons of a change that a command has made, over their bus.
//!
//! Must never fail a command: without the notice the daemons read the change within a second.

use crate::bus::gossip::GossipSettings;
use crate::bus::{self, Notice};
use crate::config::{self, BusKind, Sources};
use crate::console::note;
use crate::redis::Settings;

/// Publishes the notices, if the configuration names a bus.
pub fn announce(notices: &[Notice], sources: &Sources) {
    // A configuration with errors is reported where it is used.
    let Ok(loaded) = config::load(sources) else {
        return;
    };
    let (config, credentials) = (&loaded.config, sources.credentials_dir());
    let sent = match config.bus.kind {
        BusKind::Redis => Settings::of(&config.cache_shared, credentials).and_then(|settings| {
            let sent = settings.map(|settings| bus::redis::publish(settings, notices));
            sent.transpose().map_err(|error| error.to_string())
        }),
        BusKind::Gossip => {
            GossipSettings::of(&config.bus, credentials.as_deref()).and_then(|settings| {
                let sent = settings.map(|settings| bus::gossip::publish(&settings, notices));
                sent.transpose().map_err(|error| error.to_string())
            })
        }
        #[cfg(feature = "kafka")]
        BusKind::Kafka => {
            let settings = bus::kafka::KafkaSettings::of(&config.bus);
            let sent = settings.map(|settings| bus::kafka::publish(&settings, notices));
            sent.transpose().map_err(|error| error.to_string())
        }
        // The rules of the configuration refuse it.
        #[cfg(not(feature = "kafka"))]
        BusKind::Kafka => Ok(None),
    };
    if let Err(message) = sent {
        note(format_args!(
            "no daemon was notified ({message}); each reads the change within a second"
        ));
    }
}
