//! The steps of a running pull, and how its caller ends it.

use std::ops::ControlFlow;
use std::time::Duration;

use super::error::ModelError;

/// A step of a running pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another process is pulling the same model; this one waits for it.
    Waiting,
    Started {
        name: String,
        from: String,
    },
    /// The engine makes it from another model.
    Optimizing {
        name: String,
        from: String,
    },
    Bytes {
        done: u64,
        total: Option<u64>,
    },
    Retrying {
        attempt: u32,
        attempts: u32,
        pause: Duration,
        reason: String,
    },
    /// A source, or one of several models, is not available; the next one is tried.
    Next {
        failed: String,
        reason: String,
        next: String,
    },
    /// All pieces have arrived and become one file.
    Joining {
        done: u64,
        total: u64,
    },
    /// All bytes have arrived and are compared with their checksum.
    Checking {
        done: u64,
        total: u64,
    },
}

/// Called for each step; `Break` ends the pull with [`ModelError::Cancelled`]. The bytes that have
/// arrived stay for the next one.
pub type Watch<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

pub(super) fn tell(watch: &mut Watch<'_>, progress: Progress) -> Result<(), ModelError> {
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ModelError::Cancelled),
    }
}
