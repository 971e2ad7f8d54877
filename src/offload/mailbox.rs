//! How other threads hand things to a reactor that sleeps in `epoll_wait(2)`.
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
//! A thread that sleeps in the kernel has to be woken through the kernel: a write to an
//! `eventfd(2)` that its epoll watches, the *bell*. A write is a system call, so it must not
//! happen for each item. The bell rings for the item that meets a sleeping reactor; whoever posts
//! after that finds it called already. And a reactor that is awake needs no bell at all: it looks
//! into the box before it sleeps. Under load it hardly ever sleeps, so that bells fall silent when
//! they would cost most; and what it posts to itself, in the midst of a turn, never rings.
//!
//! **Why no wake-up is lost.** Going to sleep and posting exclude each other by the lock that the
//! items are under. If the item comes first, `sleep` finds it and refuses. If `sleep` comes first,
//! the item finds a sleeper and rings; an eventfd remembers a ring that comes before the
//! `epoll_wait` that is to hear it. With a flag outside of the lock the same would hang on memory
//! orders. The model test tries every interleaving.
//!
//! **Why a mutex does not block the reactor.** It is held for a push, an append or a swap of two
//! `Vec`s, never across a system call: the bell rings after it is released.
//!
//! **Bounds.** The box itself has none, so producers bring theirs: an admitted job has at most its
//! credit's worth of token events and one terminal event under way, and admitted jobs are bounded
//! by the engine's queue; sockets handed over are bounded by the gate.
//!
//! # Invariants
//!
//!  1. A reactor that was allowed to sleep has an empty box, or the bell has rung since, or is
//!     about to be rung by the thread that put the first item in.
//!  2. Items of one sender arrive in the order in which it posted them, each once.
//!  3. What is posted after the receiver is gone is dropped at once, what is offered comes back: an
//!     item is taken, left at the close, or given back, and never two of these.

use std::sync::PoisonError;

use super::sync::{Arc, Mutex, MutexGuard};

/// Wakes the reactor: an `eventfd` in the daemon, a counter in tests. Never blocks.
pub trait Doorbell: Send + Sync {
    fn ring(&self);
}

/// The sending end, one clone for each thread that needs it.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// The reactor's end.
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
        /// The receiver waits for the bell, and nobody has rung it yet.
        asleep: bool,
    },
    /// The receiver is gone.
    Closed,
}

/// A mailbox whose bell is `bell`. After a burst its buffers shrink to `kept_capacity` items.
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
    /// Puts one item into the box; rings if the receiver sleeps.
    pub fn post(&self, item: T) {
        // Who posts does not care whether anybody is left to read it.
        let _ = self.offer(item);
    }

    /// As `post`, and gives the item back if the receiver is gone: for what must not get lost.
    pub fn offer(&self, item: T) -> Result<(), T> {
        let mut item = Some(item);
        self.shared.put(|waiting| waiting.extend(item.take()));
        item.map_or(Ok(()), Err)
    }

    /// Puts all `items` into the box, in order. Rings at most once. The box is locked while the
    /// iterator runs, so it should have nothing to do but hand over.
    pub fn post_all(&self, items: impl IntoIterator<Item = T>) {
        let mut items = items.into_iter();
        self.shared.put(|waiting| waiting.extend(items.by_ref()));
        // Something is left only if the receiver is gone.
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
    /// To be called before waiting for the bell: whether the receiver may wait. If not, something
    /// is in the box, for which no bell has rung.
    #[must_use]
    pub fn sleep(&mut self) -> bool {
        match &mut *self.shared.lock() {
            State::Open { items, asleep } => {
                *asleep = items.is_empty();
                *asleep
            }
            // Only the receiver's own end closes the box.
            State::Closed => true,
        }
    }

    /// Appends everything that waits to `batch`; the receiver is awake from here on. With an empty
    /// `batch` the two buffers change places, so that in the long run nothing is allocated.
    pub fn take(&mut self, batch: &mut Vec<T>) {
        // Before the lock: freeing memory is not the senders' business.
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
    /// The receiver goes: appends what was posted until now to `left`, and takes nothing more.
    pub fn close(&mut self, left: &mut Vec<T>) {
        let state = std::mem::replace(&mut *self.shared.lock(), State::Closed);
        if let State::Open { mut items, .. } = state {
            left.append(&mut items);
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        // Items may own much; they are dropped after the lock is released.
        self.close(&mut Vec::new());
    }
}

impl<T> Shared<T> {
    /// Does not call `fill` if the receiver is gone.
    fn put(&self, fill: impl FnOnce(&mut Vec<T>)) {
        let must_ring = match &mut *self.lock() {
            State::Open { items, asleep } => {
                fill(items);
                // Whoever meets the sleeper first calls it; nobody else needs to.
                *asleep && !items.is_empty() && std::mem::take(asleep)
            }
            State::Closed => return,
        };
        if must_ring {
            self.bell.ring();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A thread that panicked while it held the lock left a Vec that is whole all the same.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
