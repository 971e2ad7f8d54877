//! Durable jobs: accepted, shown, listed, cancelled and followed.
//!
//! Reading order: [`object`] (a job in JSON), [`message`] (in Protobuf), [`notation`] (the choice
//! between them), [`work`] (what followers ask the store for), [`question`] (requests that end with
//! the store's reply), [`accept`] (`POST /api/v1/jobs` and `SubmitJob`), [`look`] (one job, lists,
//! cancelling), [`looks`] (when a follower asks the store for more), [`follow`]
//! (`GET /api/v1/jobs/{id}/events`), [`kept`] (a generation with `Idempotency-Key`), [`rpc`] (the
//! other methods of gRPC).
//!
//! Must never wait for the store: a request sends it a task and becomes an exchange. The bodies of
//! responses are written by the store's thread, because a job's result may be long.
//!
//! Every look-up compares the job's key with the caller's: a job of another key does not exist.

pub mod accept;
pub mod follow;
pub mod kept;
pub mod look;
pub mod looks;
pub mod message;
pub mod notation;
pub mod object;
pub mod question;
pub mod rpc;
pub mod work;

use crate::core::Moment;
use crate::offload::CancelReason;
use crate::service::desk::{Desk, Flow, Wire};
use crate::service::found::StoreReply;
use crate::service::generation::running::Running;
use crate::service::request_log::RequestLog;

use follow::Following;
use kept::Kept;

/// A request that follows a job.
#[derive(Debug)]
// An exchange is boxed as a whole.
#[allow(clippy::large_enum_variant)]
pub enum JobExchange {
    Following(Following),
    Kept(Box<Kept>),
}

impl JobExchange {
    pub fn next_deadline(&self) -> Moment {
        match self {
            JobExchange::Following(following) => following.next_deadline(),
            JobExchange::Kept(kept) => kept.next_deadline(),
        }
    }

    /// Returns the memory that it holds until its response is complete.
    pub fn buffered_bytes(&self) -> usize {
        match self {
            JobExchange::Following(_) => 0,
            JobExchange::Kept(kept) => kept.buffered_bytes(),
        }
    }

    /// Handles a reply of the store.
    pub fn handle_reply(
        &mut self,
        desk: &mut Desk,
        reply: StoreReply,
        wire: &mut Wire<'_>,
    ) -> Flow {
        match self {
            JobExchange::Following(following) => following.handle_reply(desk, reply, wire),
            JobExchange::Kept(kept) => kept.handle_reply(desk, reply, wire),
        }
    }

    /// Returns the request as one whose response a worker writes. `None`: none does.
    pub fn take_running(&mut self, now: Moment) -> Option<Running> {
        match self {
            JobExchange::Following(_) => None,
            JobExchange::Kept(kept) => kept.take_running(now),
        }
    }

    /// Handles the news that the followed job has new events.
    pub fn handle_moved(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) {
        match self {
            JobExchange::Following(following) => following.handle_moved(desk, wire),
            JobExchange::Kept(kept) => kept.handle_moved(desk, wire),
        }
    }

    pub fn handle_deadline(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) -> Flow {
        match self {
            JobExchange::Following(following) => following.handle_deadline(desk, wire),
            JobExchange::Kept(kept) => kept.handle_deadline(desk, wire),
        }
    }

    pub fn handle_room(&mut self, desk: &mut Desk) {
        match self {
            JobExchange::Following(following) => following.handle_room(desk),
            JobExchange::Kept(kept) => kept.handle_room(desk),
        }
    }

    pub fn cut_off(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) {
        match self {
            JobExchange::Following(following) => following.cut_off(desk, wire),
            JobExchange::Kept(kept) => kept.cut_off(desk, wire),
        }
    }

    pub fn abandon(&self, log: &mut RequestLog, reason: CancelReason, now: Moment) {
        match self {
            JobExchange::Following(following) => following.abandon(log, reason, now),
            JobExchange::Kept(kept) => kept.abandon(log, reason, now),
        }
    }
}
