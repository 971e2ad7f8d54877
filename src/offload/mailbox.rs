//! How other threads hand items to a reactor that may be asleep in `epoll_wait(2)`.
//!
//! # The mechanism
//!
//! ```text
//!   engine thread                                       reactor thread
//!                                                       sleep: "nothing here, wake me"
//!                                                       epoll_wait ...
//!   post_all ---> [ a b c ]  (a Vec behind a mutex)
//!        '- does it sleep? ring the bell ------------>  epoll_wait returns
//!                                                       take: the whole Vec changes hands
//!                 [ ]  <- an empty one takes its place
//! ```
//!
//! A thread that sleeps in the kernel can only be woken through the kernel: here by a write to an
//! `eventfd(2)` that its epoll watches, the *bell*. A write is a system call, so it must not happen
//! for every item. The bell rings for the first item that finds the reactor asleep; senders that
//! come later see that it has been rung. A reactor that is awake needs no bell, because it looks
//! into the box before it sleeps. Under load it hardly ever sleeps, so bells fall silent just when
//! they would cost most. Items that a reactor posts to itself in the middle of a turn never ring.
//!
//! **Why no wake-up is lost.** Going to sleep and posting exclude each other, because both hold the
//! lock of the items. If the item comes first, `sleep` finds it and refuses. If `sleep` comes
//! first, the item finds a sleeping reactor and rings; an eventfd remembers a ring that comes
//! before the `epoll_wait` that will see it. With a flag outside the lock, correctness would depend
//! on memory orderings. The model test tries every interleaving.
//!
//! **Why a mutex does not block the reactor.** It is held for a push, an append or a swap of two
//! `Vec`s, never across a system call: the bell rings after the lock is released.
//!
//! **Bounds.** The box itself has no bound; its producers do. An admitted job has at most its
//! credit's worth of token events and one terminal event under way, and the engine's queue bounds
//! the admitted jobs. The accept gate bounds the sockets that are handed over.
//!
//! # Invariants
//!
//!  1. When a reactor has been allowed to sleep, the box is empty, or the bell has rung since, or
//!     the thread that put the first item in is about to ring it.
//!  2. The items of one sender arrive in the order in which it posted them, each once.
//!  3. After the receiver is gone, `post` drops its item and `offer` returns it. Every item is
//!     taken, left at the close, dropped or returned, and only one of these.

use std::sync::PoisonError;

use super::sync::{Arc, Mutex, MutexGuard};

/// Wakes the reactor: an `eventfd` in the daemon, a counter in tests. Never blocks.
pub trait Doorbell: Send + Sync {
    fn ring(&self);
}

/// The sending end. Each thread that posts has its own clone.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// The receiving end, which the reactor owns.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    kept_capacity: usize,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    bell: Box<dyn Doorbell>,
}

enum State<T> {
    Open {
        items: Vec<T>,
        /// The receiver waits for the bell, and no sender has rung it yet.
        asleep: bool,
    },
    /// The receiver is gone.
    Closed,
}

/// Creates a mailbox with this `bell`. After a burst its buffers shrink to `kept_capacity` items.
pub fn mailbox<T>(bell: Box<dyn Doorbell>, kept_capacity: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State::Open {
            items: Vec::new(),
            asleep: false,
        }),
        bell,
    });
    let sender = Sender {
        shared: Arc::clone(&shared),
    };
    let receiver = Receiver {
        shared,
        kept_capacity,
    };
    (sender, receiver)
}

impl<T> Sender<T> {
    /// Puts one item into the box, and rings if the receiver sleeps.
    pub fn post(&self, item: T) {
        // A lost item is fine here; `offer` is for those that must not get lost.
        let _ = self.offer(item);
    }

    /// Like `post`, but returns the item if the receiver is gone.
    pub fn offer(&self, item: T) -> Result<(), T> {
        let mut item = Some(item);
        self.shared.put(|waiting| waiting.extend(item.take()));
        item.map_or(Ok(()), Err)
    }

    /// Puts all `items` into the box, in order. Rings at most once. The box is locked while the
    /// iterator runs, so the iterator should do no work of its own.
    pub fn post_all(&self, items: impl IntoIterator<Item = T>) {
        let mut items = items.into_iter();
        self.shared.put(|waiting| waiting.extend(items.by_ref()));
        // Items are left over only if the receiver is gone.
        items.for_each(drop);
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> Receiver<T> {
    /// Returns whether the receiver may wait for the bell; it must ask each time before it waits.
    /// If the result is false, the box holds items for which no bell has rung.
    #[must_use]
    pub fn sleep(&mut self) -> bool {
        match &mut *self.shared.lock() {
            State::Open { items, asleep } => {
                *asleep = items.is_empty();
                *asleep
            }
            // Only the receiver itself closes the box.
            State::Closed => true,
        }
    }

    /// Appends all waiting items to `batch`; the receiver counts as awake from here on. If `batch`
    /// is empty, the two buffers change places, so that nothing is allocated in the long run.
    pub fn take(&mut self, batch: &mut Vec<T>) {
        // Shrink before locking: senders should not wait while memory is freed.
        batch.shrink_to(self.kept_capacity);
        let mut state = self.shared.lock();
        let State::Open { items, asleep } = &mut *state else {
            return;
        };
        *asleep = false;
        if batch.is_empty() {
            std::mem::swap(batch, items);
        } else {
            batch.append(items);
        }
    }
}

impl<T> Receiver<T> {
    /// Closes the box: appends the items posted until now to `left`. Later items are refused.
    pub fn close(&mut self, left: &mut Vec<T>) {
        let state = std::mem::replace(&mut *self.shared.lock(), State::Closed);
        if let State::Open { mut items, .. } = state {
            left.append(&mut items);
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        // Items may own much memory; they are dropped after the lock is released.
        self.close(&mut Vec::new());
    }
}

impl<T> Shared<T> {
    /// Adds items with `fill` and rings if needed. Does not call `fill` if the receiver is gone.
    fn put(&self, fill: impl FnOnce(&mut Vec<T>)) {
        let must_ring = match &mut *self.lock() {
            State::Open { items, asleep } => {
                fill(items);
                // The first sender to find the receiver asleep rings; clearing the flag spares the
                // others.
                *asleep && !items.is_empty() && std::mem::take(asleep)
            }
            State::Closed => return,
        };
        if must_ring {
            self.bell.ring();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A thread that panicked while it held the lock still left a valid `Vec`.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
