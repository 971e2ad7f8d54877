//! The messages of other threads to a reactor, and the engines' way to its mailbox.
//!
//! A [`Message`] moves its contents: the sender no longer owns the socket, event or
//! configuration in it. Messages of one sender arrive in order. No message has a reply, so no
//! reactor ever waits for another thread. A sender that must know when its messages were handled
//! posts a [`Receipt`] after them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender as ChannelSender, bounded};

use crate::config::{Config, Opening};
use crate::core::Key;
use crate::core::idle_list::Since;
use crate::engine::{Deliver, Event};
use crate::keys::KeyRing;
use crate::offload::JobKey;
use crate::offload::fetch::{FetchDoor, Order};
use crate::offload::mailbox::Sender;
use crate::offload::resolver::Addresses;
use crate::runner::Wake;
use crate::service::{Completion, Peer, Reply};
use crate::tls::Acceptor;

/// One item in a reactor's mailbox.
#[derive(Debug)]
pub enum Message<K> {
    /// An event of a job.
    Engine(JobKey, Event),
    /// A worker has done its task for a request.
    Worker(JobKey, Completion),
    /// A request of the daemon's own begins, or is cancelled.
    Fetch(Order),
    /// The addresses of the name that a fetch asked for.
    Resolved(Key, Addresses),
    /// A connection that the reactor which accepted it hands over.
    Adopt(K, Peer, Opening),
    /// A client waits, all places are taken, and your connections are worth least.
    MakeRoom(RoomRequest),
    /// The answer of the reactor with this index: it has closed what there was to close.
    RoomMade(u16),
    /// A new configuration is in force.
    Apply(Arc<Config>),
    /// New connections use this acceptor from now on; `None`: there is no TLS.
    Tls(Option<Arc<Acceptor>>),
    /// The keys have changed.
    Keys(Arc<KeyRing>),
    /// Take no new work; end when the running requests have ended, or after this time.
    Drain(Duration),
    /// End now.
    Stop,
    /// Drop this: its sender waits until all that it posted before is handled.
    Handled(Receipt),
}

/// Reports by its drop that a reactor has handled what was posted before it, or has ended.
#[derive(Clone, Debug)]
pub struct Receipt(
    #[expect(dead_code, reason = "only its drop is observed")] ChannelSender<Infallible>,
);

/// Waits for the drop of all clones of one [`Receipt`].
pub struct Receipts(crossbeam_channel::Receiver<Infallible>);

impl Receipt {
    pub fn new() -> (Receipt, Receipts) {
        let (sender, receiver) = bounded(0);
        (Receipt(sender), Receipts(receiver))
    }
}

impl Receipts {
    /// Blocks until every clone of the receipt is dropped, at most for `patience`. `false`: one is
    /// left.
    pub fn wait(&self, patience: Duration) -> bool {
        match self.0.recv_timeout(patience) {
            Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Ok(never) => match never {},
        }
    }
}

/// What a connection is worth while another one waits for its place. None that shows a key or has a
/// job is closed for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Between two requests.
    Idle,
    /// At work, with neither a job nor a key.
    Stranger,
}

/// Asks for places of one kind of connections, the oldest first.
#[derive(Clone, Copy, Debug)]
pub struct RoomRequest {
    /// The reactor that asks, and waits for the answer.
    pub asker: u16,
    pub worth: Worth,
    pub wanted: usize,
    /// Those that are younger are worth more than some in other reactors.
    pub horizon: Since,
}

/// The mailboxes of all reactors, by index, for an engine's events and the workers' results.
pub struct Mailboxes<K>(pub Vec<Sender<Message<K>>>);

impl<K: Send> Deliver for Mailboxes<K> {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        // The events of one step mostly go to one reactor, and always to few: one pass for each.
        for (reactor, mailbox) in self.0.iter().enumerate() {
            let mine = events.extract_if(.., |(key, _)| usize::from(key.reactor) == reactor);
            mailbox.post_all(mine.map(|(key, event)| Message::Engine(key, event)));
        }
        debug_assert!(
            events.is_empty(),
            "an event names a reactor that does not exist"
        );
        events.clear();
    }

    fn deliver_one(&self, key: JobKey, event: Event) {
        match self.0.get(usize::from(key.reactor)) {
            Some(mailbox) => mailbox.post(Message::Engine(key, event)),
            None => debug_assert!(false, "the event names a reactor that does not exist"),
        }
    }
}

impl<K: Send> Wake for Mailboxes<K> {
    fn wake(&self, key: JobKey) {
        self.reply(key, Completion::JobMoved);
    }
}

impl<K: Send> Reply for Mailboxes<K> {
    fn reply(&self, key: JobKey, completion: Completion) {
        match self.0.get(usize::from(key.reactor)) {
            Some(mailbox) => mailbox.post(Message::Worker(key, completion)),
            None => debug_assert!(false, "the task names a reactor that does not exist"),
        }
    }
}

impl<K: Send> FetchDoor for Mailboxes<K> {
    fn post(&self, origin_hash: u64, order: Order) {
        let count = self.0.len().max(1) as u64;
        match self.0.get((origin_hash % count) as usize) {
            Some(mailbox) => mailbox.post(Message::Fetch(order)),
            None => debug_assert!(false, "a daemon without reactors"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_wait_for_the_last_clone() {
        let (receipt, receipts) = Receipt::new();
        let other = receipt.clone();
        drop(receipt);
        assert!(!receipts.wait(Duration::ZERO));
        drop(other);
        assert!(receipts.wait(Duration::ZERO));
    }
}
