//! How a job and its events are written: in JSON, or as messages of gRPC.
//!
//! The store's thread writes them, so that a long result costs the reactor nothing. Messages are
//! not compressed there: the thread serves all requests, and gRPC lets each message choose.

use crate::grpc::messages::Message;
use crate::grpc::{Encoding, frame};
use crate::jobs::{JobEvent, JobRecord};
use crate::service::call::Call;

use super::message::{event_message, job_message};
use super::object::{write_event, write_job};

/// See the file's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    Json,
    /// Messages with their prefixes.
    Grpc,
    /// Not at all: the reactor writes the response of a kept generation.
    Bare,
}

impl Notation {
    pub fn of(call: &Call) -> Notation {
        match call.representation.is_grpc() {
            _ if call.route().is_generation() => Notation::Bare,
            true => Notation::Grpc,
            false => Notation::Json,
        }
    }

    /// Appends a job.
    pub fn append_job(self, out: &mut Vec<u8>, job: &JobRecord) {
        match self {
            Notation::Json => write_job(out, job),
            Notation::Grpc => append(out, &job_message(job)),
            Notation::Bare => {}
        }
    }

    /// Appends an event as the client gets it.
    pub fn append_event(self, out: &mut Vec<u8>, event: &JobEvent, job: &JobRecord) {
        match self {
            Notation::Json => write_event(out, event, job),
            Notation::Grpc => append(out, &event_message(event, job)),
            Notation::Bare => {}
        }
    }
}

fn append(out: &mut Vec<u8>, message: &impl Message) {
    frame::append(out, message, Encoding::Identity);
}
