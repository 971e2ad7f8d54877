//! The way of notes to the runner's thread, and of the events of its jobs among them.
//!
//! An engine delivers the events of all its jobs to one place. Those of a request go to the mailbox
//! of its reactor, those of a durable job to the runner, which keeps a journal of them. The job's
//! key decides: that of a durable job names no reactor, but [`JobKey::JOURNAL`].
//!
//! Must never block: the engine's thread delivers here.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::config::Config;
use crate::core::Key;
use crate::engine::{Deliver, Event};
use crate::jobs::JobId;
use crate::keys::KeyRing;
use crate::offload::JobKey;

use super::calls::Called;
use super::tasks::Done;

/// A message to the runner's thread.
pub enum Note {
    /// Events of the engine for attempts, by their serial numbers.
    Events(Vec<(u32, Event)>),
    /// A job was accepted. If its client waits for the result, it is called.
    Accepted(Option<Called>),
    /// A job was cancelled in the store.
    Cancelled(JobId),
    /// The store has dealt with a task of the runner.
    Done(Done),
    /// The keys have changed.
    Keys(Arc<KeyRing>),
    /// A new configuration is in force.
    Apply(Arc<Config>),
    /// Take no more jobs, and give back those that run.
    Drain,
}

/// The sending end.
///
/// The channel has no bound of its own, but its senders do: an attempt has its credit's worth of
/// events under way, the runner a few tasks, and each other note follows a task of the store, whose
/// queue is bounded.
#[derive(Clone, Debug)]
pub struct Journal(Sender<Note>);

impl Journal {
    pub fn new() -> (Journal, Receiver<Note>) {
        let (sender, receiver) = unbounded();
        (Journal(sender), receiver)
    }

    /// Returns the key of an attempt's job in the engine.
    pub const fn key(serial: u32) -> JobKey {
        JobKey {
            reactor: JobKey::JOURNAL,
            connection: Key::new(0, 0),
            request: serial,
        }
    }

    /// Without a runner nothing happens: it has ended.
    pub fn note(&self, note: Note) {
        let _ = self.0.send(note);
    }
}

impl Default for Journal {
    /// A journal that nothing reads.
    fn default() -> Journal {
        Journal::new().0
    }
}

/// Delivers events by their destination. See the file's head.
pub struct Destinations<D> {
    pub requests: D,
    pub journal: Journal,
}

impl<D: Deliver> Deliver for Destinations<D> {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        let is_ours = |(key, _): &mut (JobKey, Event)| key.reactor == JobKey::JOURNAL;
        let ours = events.extract_if(.., is_ours);
        let ours: Vec<_> = ours.map(|(key, event)| (key.request, event)).collect();
        if !ours.is_empty() {
            self.journal.note(Note::Events(ours));
        }
        if !events.is_empty() {
            self.requests.deliver(events);
        }
    }

    fn deliver_one(&self, key: JobKey, event: Event) {
        if key.reactor == JobKey::JOURNAL {
            self.journal.note(Note::Events(vec![(key.request, event)]));
        } else {
            self.requests.deliver_one(key, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Mailboxes(Mutex<Vec<JobKey>>);

    impl Deliver for Mailboxes {
        fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
            let keys = events.drain(..).map(|(key, _)| key);
            self.0.lock().unwrap().extend(keys);
        }
    }

    fn token(text: &str) -> Event {
        Event::Token {
            text: text.to_owned(),
        }
    }

    /// Mutation: `deliver` that passes everything on to the mailboxes.
    #[test]
    fn each_event_goes_to_its_own_destination_in_order() {
        let (journal, notes) = Journal::new();
        let destinations = Destinations {
            requests: Mailboxes::default(),
            journal,
        };
        let request = JobKey {
            reactor: 1,
            connection: Key::new(3, 1),
            request: 7,
        };
        let mut events = vec![
            (Journal::key(7), token("a")),
            (request, token("b")),
            (Journal::key(8), token("c")),
        ];
        destinations.deliver(&mut events);
        assert!(events.is_empty());
        destinations.deliver_one(Journal::key(7), token("d"));
        destinations.deliver_one(request, token("e"));
        assert_eq!(*destinations.requests.0.lock().unwrap(), [request, request]);
        let events = notes.try_iter().flat_map(|note| match note {
            Note::Events(events) => events,
            _ => Vec::new(),
        });
        let events: Vec<_> = events.collect();
        assert_eq!(events, [(7, token("a")), (8, token("c")), (7, token("d"))]);
    }
}
