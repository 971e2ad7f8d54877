//! A complete body on its way to the request that it holds.
//!
//! A short body is read at once. A long one, or one that may become long, goes to a worker: reading
//! a mebibyte takes 10 ms, and inflating one that was made for it 280 ms.
//!
//! Owns the choice between the two, and the task of the worker. The permit of the request is in the
//! ticket that the request and the task share: a client that leaves gets its place back once the
//! worker has let go of the body.

use std::borrow::Cow;
use std::sync::Arc;

use crate::config::Config;
use crate::core::Moment;
use crate::core::buffered::{Claim, Full, Share};
use crate::engine::Refused;
use crate::error::{ApiError, ErrorCode};
use crate::http::compress::Coding;
use crate::limits::service as limits;
use crate::offload::{JobKey, Permit, Task, Ticket, workers};
use crate::service::call::{Call, Incoming, buffers_full};
use crate::service::completion::{Completion, Reply};
use crate::service::desk::Desk;
use crate::service::dialect::{Asked, Dialect, Received};
use crate::service::inflation::Inflater;
use crate::service::query::{self, Parameter};
use crate::service::representation::Form;

use super::failure::refusal;

/// A request whose body a worker reads.
#[derive(Debug)]
pub struct Reading {
    pub ticket: Arc<Ticket>,
    pub key: JobKey,
    /// The longest time that its body may ask for has passed then.
    pub deadline: Moment,
}

/// Everything that reading a body takes, except the body.
pub struct Reader {
    dialect: &'static dyn Dialect,
    form: Form,
    coding: Option<Coding>,
    config: Arc<Config>,
    inflater: Inflater,
}

impl Reader {
    pub fn of(desk: &Desk, call: &Call) -> Reader {
        Reader {
            dialect: desk.dialect(call.surface()),
            form: call.form(),
            coding: call.body_coding,
            config: Arc::clone(&desk.parts.config),
            inflater: desk.inflater.clone(),
        }
    }

    /// Returns whether reading this body could take longer than a reactor may spend on a request.
    pub fn is_long(&self, body: &[u8]) -> bool {
        self.plain_bytes_most(body) > limits::READ_AT_ONCE_BYTES_MAX
            || self.is_compressed(body) && body.len() > limits::INFLATE_AT_ONCE_BYTES_MAX
    }

    /// Returns what the body may become without its coding.
    fn plain_bytes_most(&self, body: &[u8]) -> usize {
        if !self.is_compressed(body) {
            return body.len();
        }
        let limits = &self.config.limits;
        body.len().saturating_mul(limits.max_inflate_ratio as usize)
    }

    /// Reads the request in the format of its API.
    pub fn read(&self, fields: Option<&str>, body: &[u8]) -> Result<Asked, ApiError> {
        let limits = &self.config.limits;
        let body = match self.coding {
            None => Cow::Borrowed(body),
            Some(coding) => {
                let mut plain = Vec::new();
                self.inflater.inflate(coding, body, limits, &mut plain)?;
                Cow::Owned(plain)
            }
        };
        let mut asked = self.dialect.read(&Received {
            form: self.form,
            fields,
            body: &body,
            limits,
            inflater: &self.inflater,
        })?;
        if self.config.store.records {
            // Here, because a long prompt is read by a worker.
            asked.digest = asked.prompt.digest();
        }
        Ok(asked)
    }

    /// Either of the whole body or, over gRPC, of its message.
    fn is_compressed(&self, body: &[u8]) -> bool {
        let is_flagged = self.form.representation.is_grpc() && body.first() == Some(&1);
        self.coding.is_some() || is_flagged
    }

    /// Returns the bytes that a worker will have to do with, as far as it can be known.
    fn expected_bytes(&self, body: &[u8]) -> u32 {
        let factor = match self.is_compressed(body) {
            true => limits::INFLATION_FACTOR_TYPICAL,
            false => 1,
        };
        let bytes = body.len().saturating_mul(factor);
        let bytes = bytes.min(self.config.limits.max_body.max(body.len()));
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

/// A complete body, on its way.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for one call; boxing would allocate"
)]
pub enum Read {
    Now(Asked, Arc<Ticket>),
    Later(Reading),
}

/// Reads a body at once, or sends it to the workers.
pub fn read_or_begin(
    desk: &Desk,
    call: &Call,
    (permit, share): (Option<Permit>, Option<Box<Share>>),
    incoming: Incoming<'_>,
) -> Result<Read, ApiError> {
    if desk.is_draining {
        return Err(refusal(Refused::Draining));
    }
    // Allocates per request: the response shares it with a worker and with the engine.
    let ticket = Arc::new(match permit {
        Some(permit) => Ticket::with_permit(0, permit),
        None => Ticket::new(0),
    });
    let reader = Reader::of(desk, call);
    if reader.is_long(&incoming.body) {
        return begin(desk, call, reader, incoming, ticket, share).map(Read::Later);
    }
    let fields = query::value(incoming.request, Parameter::Fields);
    let asked = reader.read(fields, &incoming.body)?;
    Ok(Read::Now(asked, ticket))
}

/// Sends a body to the workers.
fn begin(
    desk: &Desk,
    call: &Call,
    reader: Reader,
    incoming: Incoming<'_>,
    ticket: Arc<Ticket>,
    share_of_key: Option<Box<Share>>,
) -> Result<Reading, ApiError> {
    let Incoming { request, body, key } = incoming;
    let bytes = reader.expected_bytes(&body);
    let claim = Claim::of(call.caller.is_some());
    let mut share = desk.parts.buffered.share(claim);
    share.resize(body.len()).map_err(|Full| buffers_full())?;
    let longest = desk.parts.config.limits.max_request_timeout;
    let timeout = call.terms().timeout.map_or(longest, |own| own.min(longest));
    let task = ReadTask {
        reader,
        fields: query::value(request, Parameter::Fields).map(Box::from),
        // A body that is still in its connection's buffer is copied: 0.1 ms for a mebibyte.
        body: body.into_owned(),
        share,
        _share_of_key: share_of_key,
        key,
        ticket: Arc::clone(&ticket),
        replies: Some(Arc::clone(&desk.parts.replies)),
    };
    if let Err(workers::Full(task)) = desk.parts.workers.submit(call.tenant(), bytes, task) {
        task.forget();
        let message = "too many long bodies wait to be read; wait for `Retry-After`";
        return Err(
            ApiError::new(ErrorCode::QueueFull, message).with_retry_after(limits::BUSY_RETRY_AFTER)
        );
    }
    Ok(Reading {
        ticket,
        key,
        deadline: call.started + timeout,
    })
}

/// A body at a worker.
struct ReadTask {
    reader: Reader,
    fields: Option<Box<str>>,
    body: Vec<u8>,
    /// The memory of the body, and of what it becomes.
    share: Share,
    /// A part of what its key's bodies may hold until they are read.
    _share_of_key: Option<Box<Share>>,
    key: JobKey,
    ticket: Arc<Ticket>,
    /// `None` once it has replied.
    replies: Option<Arc<dyn Reply>>,
}

impl ReadTask {
    fn reply(&mut self, result: Result<Asked, ApiError>) {
        if let Some(replies) = self.replies.take() {
            replies.reply(self.key, Completion::Read(Box::new(result)));
        }
    }

    /// Drops the task without a reply: its request gets its response at once.
    fn forget(mut self) {
        self.replies = None;
    }
}

impl Task for ReadTask {
    fn is_wanted(&self) -> bool {
        self.ticket.cancelled().is_none()
    }

    fn run(mut self: Box<ReadTask>) {
        let becomes_most = self.reader.plain_bytes_most(&self.body);
        let bound = self.reader.config.limits.max_body;
        let result = match self.share.resize(self.body.len() + becomes_most.min(bound)) {
            Ok(()) => self.reader.read(self.fields.as_deref(), &self.body),
            Err(Full) => Err(buffers_full()),
        };
        self.reply(result);
    }
}

impl Drop for ReadTask {
    fn drop(&mut self) {
        // Without a reply only if its client has left, the daemon stops, or reading panicked.
        let message = "the body could not be read because of a fault of the daemon";
        self.reply(Err(ApiError::new(ErrorCode::Internal, message)));
    }
}
