//! The API keys, as a part: opens the store, watches it, and sends its rings to the reactors.
//!
//! Owns the thread that watches the store. The key of the first start is created here;
//! [`show_bootstrap_key`] shows it once everything else has started.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use super::database;
use super::failure::Failure;
use super::part::{Birth, Part};
use crate::console::{exit, note};
use crate::core::UnixSeconds;
use crate::keys::KeyRing;
use crate::reactor::message::Message;
use crate::runner::Note;
use crate::store::{Bootstrap, StoreError, StoreWatcher};

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
        let place = database::place(&birth.config, &birth.sources);
        let place = place.map_err(|reason| Failure::new(exit::CONFIG, reason))?;
        prepare_folder(state_dir).map_err(|error| unusable(&error))?;
        let mut store = place.open().map_err(|error| unusable(&error))?;
        birth.bootstrap = store
            .bootstrap(state_dir, UnixSeconds::now().as_u64())
            .map_err(|error| unusable(&error))?;
        let reopened = place.clone();
        let reopen = move || reopened.open_existing();
        let mailboxes = birth.spawner.as_ref().map(|spawner| spawner.mailboxes());
        let mailboxes = mailboxes.unwrap_or_default();
        let journal = birth.jobs.journal.clone();
        let on_change = move |keys: Arc<KeyRing>| {
            log::info!("loaded {} API keys", keys.len());
            // The runner first: a reactor that has a new key may accept a job of it at once.
            journal.note(Note::Keys(keys.clone()));
            for mailbox in &mailboxes {
                mailbox.post(Message::Keys(keys.clone()));
            }
        };
        let started = StoreWatcher::start(store, reopen, on_change);
        let (watcher, ring) = started.map_err(|error| unusable(&error))?;
        birth.keys = ring;
        birth.looks = Some(watcher.looks());
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

/// The key of the first start has its file there, wherever the store is.
fn prepare_folder(state_dir: &Path) -> Result<(), StoreError> {
    let mut folder = DirBuilder::new();
    let created = folder.recursive(true).mode(0o700).create(state_dir);
    match created {
        // The store's own message is better.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        created => created.map_err(|error| StoreError::File(state_dir.to_owned(), error)),
    }
}

fn unusable(error: &StoreError) -> Failure {
    let way_out = error.way_out();
    let way_out = way_out.map_or(String::new(), |way_out| format!("; {way_out}"));
    let message = format!("cannot open the key store: {error}{way_out}");
    Failure::new(exit::of_store(error), message)
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
