//! The API keys, as a part: opens the store, watches it, and sends its rings to the reactors.
//!
//! Owns the thread that watches the store. The key of the first start is created here;
//! [`show_bootstrap_key`] shows it once everything else has started.

use std::sync::Arc;

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::console::{exit, note};
use crate::core::UnixSeconds;
use crate::keys::KeyRing;
use crate::reactor::message::Message;
use crate::store::{Bootstrap, DATABASE_FILE, Keys as _, SqliteStore, StoreError, StoreWatcher};

pub struct Keys {
    /// `None` once its thread has ended.
    watcher: Option<StoreWatcher>,
}

impl Keys {
    /// Makes the watcher open and read the store again.
    pub fn refresh(&self) {
        if let Some(watcher) = &self.watcher {
            watcher.refresh();
        }
    }
}

impl Part for Keys {
    fn start(birth: &mut Birth) -> Result<Keys, Failure> {
        let state_dir = &birth.config.state_dir;
        let mut store = SqliteStore::open_in(state_dir).map_err(|error| unusable(&error))?;
        birth.bootstrap = store
            .bootstrap(state_dir, UnixSeconds::now().as_u64())
            .map_err(|error| unusable(&error))?;
        let path = state_dir.join(DATABASE_FILE);
        let reopen = move || SqliteStore::open_existing(&path).map(|store| Box::new(store) as _);
        let mailboxes = birth.spawner.as_ref().map(|spawner| spawner.mailboxes());
        let mailboxes = mailboxes.unwrap_or_default();
        let on_change = move |keys: Arc<KeyRing>| {
            log::info!("loaded {} API keys", keys.len());
            for mailbox in &mailboxes {
                mailbox.post(Message::Keys(keys.clone()));
            }
        };
        let started = StoreWatcher::start(Box::new(store), reopen, on_change);
        let (watcher, ring) = started.map_err(|error| unusable(&error))?;
        birth.keys = ring;
        Ok(Keys {
            watcher: Some(watcher),
        })
    }

    fn join(&mut self) -> bool {
        // Dropping the watcher ends its thread and waits for it.
        self.watcher = None;
        true
    }
}

fn unusable(error: &StoreError) -> Failure {
    Failure::new(
        exit::of_store(error),
        format!("cannot open the key store: {error}; choose another folder with --state-dir"),
    )
}

/// Shows the key itself, this once, if a person reads the output. Elsewhere it would stay in a
/// journal for ever, so only its file is named.
pub fn show_bootstrap_key(bootstrap: &Bootstrap, person_reads: bool) {
    let path = bootstrap.path.display();
    if !person_reads {
        return log::info!("first start: created a key with every scope; it is kept in {path}");
    }
    log::logger().flush();
    note(format_args!(
        "\nThis is the first start. Here is a key with every scope, shown only now:\n\n    \
         {}\n\nIt is kept in {path} (mode 0600). Create others with `autoglmd key create`.\n",
        bootstrap.secret.reveal(),
    ));
}
