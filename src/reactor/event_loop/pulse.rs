//! What the reactors know of each other: numbers that each publishes, and the way to its mailbox.
//!
//! Owns no connection. The numbers are as old as the reactor's last turn, except for the count of
//! connections, which includes those that are on their way to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::core::Moment;
use crate::core::idle_list::{IdleList, Since};
use crate::limits::reactor as limits;
use crate::offload::mailbox::Sender;
use crate::reactor::message::Message;

/// The state of a reactor that other threads can see.
#[derive(Debug)]
pub struct Pulse {
    /// Connections that it has, or is about to get.
    pub connections: AtomicU32,
    /// Of these, those with neither a job nor a key that are not idle, as of its last turn.
    pub strangers: AtomicU32,
    /// [`Since`] when the oldest of its idle connections is idle, and the oldest stranger at work,
    /// as of its last turn.
    pub idle_since: AtomicU32,
    pub stranger_since: AtomicU32,
    /// When its present turn began, in [`Moment`]'s microseconds; `NEVER` while it waits.
    pub turn_began_micros: AtomicU64,
    /// When its last turn ended, in the same unit, for the watchdog.
    pub last_turn_micros: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse {
            connections: AtomicU32::new(0),
            strangers: AtomicU32::new(0),
            idle_since: AtomicU32::new(Since::NEVER.to_bits()),
            stranger_since: AtomicU32::new(Since::NEVER.to_bits()),
            turn_began_micros: AtomicU64::new(Moment::NEVER.as_micros()),
            last_turn_micros: AtomicU64::new(0),
        }
    }
}

impl Pulse {
    /// Returns whether its present turn takes so long that others should do without it.
    pub fn is_held_up(&self, now: Moment) -> bool {
        let began = Moment::from_micros(self.turn_began_micros.load(Ordering::Relaxed));
        now.since(began) >= limits::HELD_UP_AFTER
    }

    pub fn begin_turn(&self, now: Moment) {
        let began = now.as_micros();
        self.turn_began_micros.store(began, Ordering::Relaxed);
    }

    /// Publishes the state at the end of a turn.
    pub fn end_turn(&self, now: Moment, idle: &IdleList, strangers: &IdleList) {
        for (number, value) in [
            (&self.strangers, strangers.len() as u32),
            (&self.idle_since, idle.oldest_since().to_bits()),
            (&self.stranger_since, strangers.oldest_since().to_bits()),
        ] {
            number.store(value, Ordering::Relaxed);
        }
        let never = Moment::NEVER.as_micros();
        self.turn_began_micros.store(never, Ordering::Relaxed);
        let ended = now.as_micros();
        self.last_turn_micros.store(ended, Ordering::Relaxed);
    }
}

/// The way from one reactor to another.
pub struct Neighbour<K> {
    pub mailbox: Sender<Message<K>>,
    pub pulse: Arc<Pulse>,
}

impl<K> Clone for Neighbour<K> {
    fn clone(&self) -> Neighbour<K> {
        Neighbour {
            mailbox: self.mailbox.clone(),
            pulse: self.pulse.clone(),
        }
    }
}
