//! Notices between daemons: what has changed, so that each of them reads it at once.
//!
//! Owns the interface of a bus and the form of a notice. A notice carries no data, so a forged or
//! repeated one costs a reading of the store and nothing else, and a lost one costs the time until
//! the store is polled again: each daemon polls it each second, with a bus and without.
//!
//! In reading order: [`notice`], then the buses: [`redis`] on the thread of [`receiver`];
//! [`gossip`], which needs no server; and `kafka`, with the feature of that name.

pub mod notice;

pub mod receiver;

pub mod redis;

pub mod gossip;

#[cfg(feature = "kafka")]
pub mod kafka;

pub mod metrics;

pub use notice::Notice;

/// A way to the other daemons.
pub trait Invalidation: Send + Sync {
    /// Sends a notice to all daemons, this one included. Never waits; while the bus is lost, the
    /// notice is dropped.
    fn publish(&self, notice: &Notice);

    /// Returns whether notices of others arrive.
    fn is_connected(&self) -> bool;
}

/// Receives notices, on the bus's own thread. [`Notice::All`] comes whenever notices may have been
/// missed.
pub type OnNotice = Box<dyn Fn(Notice) + Send>;
