//! Messages for a request whose response is not complete, from the engine and from the workers.

use crate::engine::Event;
use crate::error::ApiError;
use crate::offload::JobKey;

use super::dialect::Asked;
use super::found::StoreReply;
use super::question::Answered;
use super::response::buffer::Written;

/// One message. It names its request by the [`JobKey`] that it comes with.
#[derive(Debug)]
pub enum Completion {
    /// An event of its job.
    Event(Event),
    /// A worker has read its body.
    Read(Box<Result<Asked, ApiError>>),
    /// A worker has written its response; `None` if the task was lost.
    Written(Option<Box<Written>>),
    /// The store has replied to a request that follows a job.
    Job(Box<StoreReply>),
    /// A job that it follows has new events.
    JobMoved,
    /// The store's thread has asked its question.
    Stored(Answered),
}

impl Completion {
    /// Returns whether no other message will come for a request whose client has left: its job has
    /// ended, or none was begun.
    pub fn is_last(&self) -> bool {
        match self {
            Completion::Event(event) => event.is_terminal(),
            Completion::Read(_) | Completion::Written(_) => true,
            Completion::Stored(_) | Completion::Job(_) => true,
            Completion::JobMoved => false,
        }
    }
}

/// The workers' way to the mailboxes of the reactors.
pub trait Reply: Send + Sync {
    fn reply(&self, key: JobKey, completion: Completion);
}
