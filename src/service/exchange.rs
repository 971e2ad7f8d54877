//! A request whose response is not complete yet.
//!
//! Owns the choice between the kinds of exchange; each kind has its own file.

use crate::core::Moment;

use super::api::grpc::health::Watch;
use super::api::grpc::reflection::Dialogue;
use super::api::jobs::JobExchange;
use super::asking::Asking;
use super::generation::running::Running;

/// A request whose response is not complete yet.
#[derive(Debug)]
// It is boxed as a whole, and nearly all of them are generations.
#[allow(clippy::large_enum_variant)]
pub enum Exchange {
    Generation(Running),
    /// A request that waits for the store.
    Asking(Asking),
    /// Without a job: a client that watches the daemon's health.
    HealthWatch(Watch),
    /// Without a job: a client that asks about the schema.
    Reflection(Dialogue),
    /// It follows a job.
    Job(JobExchange),
}

impl Exchange {
    /// Returns whether a job, a worker or the store works for it, so that a last message will come
    /// in any case.
    pub const fn has_job(&self) -> bool {
        matches!(self, Exchange::Generation(_) | Exchange::Asking(_))
    }

    /// Returns the memory that it holds until its response is complete.
    pub fn buffered_bytes(&self) -> usize {
        match self {
            Exchange::Generation(running) => running.buffered_bytes(),
            Exchange::Asking(_) | Exchange::HealthWatch(_) => 0,
            Exchange::Job(job) => job.buffered_bytes(),
            Exchange::Reflection(dialogue) => dialogue.buffered_bytes(),
        }
    }

    /// Returns when [`handle_deadline`](super::Service::handle_deadline) must be called, if nothing
    /// happens before. Every event moves it, so the caller must read it again after each call.
    pub fn next_deadline(&self) -> Moment {
        match self {
            Exchange::Generation(running) => running.next_deadline(),
            Exchange::Asking(asking) => asking.next_deadline(),
            Exchange::HealthWatch(watch) => watch.next_deadline(),
            Exchange::Reflection(dialogue) => dialogue.next_deadline(),
            Exchange::Job(job) => job.next_deadline(),
        }
    }
}
