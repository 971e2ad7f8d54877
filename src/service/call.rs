//! The facts about one request, from its head to its access line.
//!
//! A [`Call`] is created from the head, passes through [`Admitted`], [`Refusal`] or an exchange,
//! and ends in [`RequestLog::close`](super::request_log::RequestLog::close). It owns its data,
//! because the bytes of the head are gone by then.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::ClientIdentity;
use crate::core::Moment;
use crate::core::bucket::Level;
use crate::core::buffered::{Claim, Full, Share};
use crate::engine::Verdict;
use crate::error::{ApiError, ErrorCode};
use crate::grpc::{Encoding, Terms};
use crate::http::compress::Coding;
use crate::http::negotiate::AcceptEncoding;
use crate::http::{Method, Request};
use crate::keys::Holder;
use crate::limits::service as limits;
use crate::offload::{JobKey, Permit};
use crate::telemetry::request_id::{RequestId, TraceContext};

use super::representation::{Form, Media, Representation};
use super::router::{BodyBound, Route, Row, Surface};

/// What the cache did for a generation.
#[derive(Clone, Copy, Debug)]
pub struct Reuse {
    pub verdict: Verdict,
    /// The time since the result was complete.
    pub age: Duration,
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: PeerAddress,
    /// The identity in its certificate, if it was asked for one and has one.
    pub client: Option<Arc<ClientIdentity>>,
    /// It counts among the connections of its client network.
    pub is_counted: bool,
    /// It has sent a valid key, or had a job run.
    pub is_known: bool,
    /// Its connection has used up the time of a pump, and each later pump took several steps.
    pub is_greedy: bool,
    /// Its output waits and memory is used up, so it is not read until all of that is written.
    pub is_held_back: bool,
}

impl Peer {
    pub const fn new(address: PeerAddress) -> Peer {
        Peer {
            address,
            client: None,
            is_counted: false,
            is_known: false,
            is_greedy: false,
            is_held_back: false,
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddress::Ip(address) => write!(f, "{address}"),
            PeerAddress::Unix => f.write_str("a Unix socket"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    Ip(IpAddr),
    Unix,
}

impl PeerAddress {
    pub const fn ip(self) -> Option<IpAddr> {
        match self {
            PeerAddress::Ip(address) => Some(address),
            PeerAddress::Unix => None,
        }
    }

    /// Returns whether the peer is on this machine. Requests through a proxy of this machine look
    /// the same here.
    pub fn is_local(self) -> bool {
        self.ip().is_none_or(|ip| ip.to_canonical().is_loopback())
    }
}

/// A request, with the facts that its response and its records need.
#[derive(Debug)]
pub struct Call {
    pub request_id: RequestId,
    pub method: Method,
    pub path: Cow<'static, str>,
    /// `None`: nothing is served at the path.
    pub row: Option<&'static Row>,
    pub started: Moment,
    pub peer: PeerAddress,
    pub user_agent: Option<Box<str>>,
    pub trace: Option<TraceContext>,
    /// The content codings that the client accepts; none until it has shown that it may use a route
    /// that is not public.
    pub accept_encoding: AcceptEncoding,
    /// The content coding of its body.
    pub body_coding: Option<Coding>,
    /// The holder of its key, once that has been shown to be valid.
    pub caller: Option<Arc<Holder>>,
    /// The key's buckets after this request, for the `x-ratelimit-*` fields.
    pub requests: Option<Level>,
    pub tokens: Option<Level>,
    /// The media types of the request's and the response's body, by the head.
    pub media: Media,
    /// The representation of the response.
    pub representation: Representation,
    /// Of a generation, once it is known: for the response's fields.
    pub reuse: Option<Reuse>,
    /// The value of `Idempotency-Key`, on a route that knows it.
    pub idempotency_key: Option<Box<str>>,
}

impl Call {
    /// A request whose head could not be read.
    pub fn unread(request_id: RequestId, peer: PeerAddress, now: Moment) -> Call {
        Call {
            request_id,
            method: Method::Other,
            path: Cow::Borrowed(""),
            row: None,
            started: now,
            peer,
            user_agent: None,
            trace: None,
            accept_encoding: AcceptEncoding::NONE,
            body_coding: None,
            caller: None,
            requests: None,
            tokens: None,
            media: Media::default(),
            representation: Representation::Json,
            reuse: None,
            idempotency_key: None,
        }
    }

    /// Returns the API whose dialect the response is written in. A request of another kind to a
    /// gRPC path gets its error in JSON, as at an unknown path.
    pub fn surface(&self) -> Surface {
        match (self.representation, self.row.map(|row| row.surface)) {
            (Representation::Grpc(_), _) => Surface::Grpc,
            (_, None | Some(Surface::Grpc)) => Surface::Native,
            (_, Some(surface)) => surface,
        }
    }

    /// Returns the terms of a gRPC request; the default ones of any other.
    pub fn terms(&self) -> Terms {
        self.representation.terms()
    }

    pub fn response_encoding(&self) -> Encoding {
        self.form().response_encoding()
    }

    pub fn form(&self) -> Form {
        Form {
            row: self.row,
            media: self.media,
            representation: self.representation,
        }
    }

    /// Returns the tenant that its work is done for: anonymous clients are one together.
    pub fn tenant(&self) -> u64 {
        let caller = self.caller.as_ref();
        caller.map_or(0, |caller| caller.account.tenant)
    }

    pub fn route(&self) -> Route {
        match self.row {
            Some(row) => row.route,
            None if self.path.is_empty() => Route::Unread,
            None => Route::Unknown,
        }
    }
}

/// How a request's body reaches the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// Collected first: [`super::Service::handle`] gets all of it.
    Whole,
    /// In pieces, only over HTTP/2: [`super::Service::open`], then [`super::Service::handle_data`]
    /// for each piece. The client may wait for a response to the first piece before it sends the
    /// next.
    Pieces,
}

/// A complete request on its way to its route.
pub struct Incoming<'a> {
    pub request: &'a Request<'a>,
    /// Owned if the connection has no other use for it.
    pub body: Cow<'a, [u8]>,
    /// The key for the events of the job that it may become.
    pub key: JobKey,
}

/// A request with an accepted head; its body may be read.
#[derive(Debug)]
pub struct Admitted {
    pub intake: Intake,
    /// Maximum number of body bytes of this route; 0 if it takes none.
    pub body_limit: usize,
    pub(super) call: Call,
    /// The place that the request takes among its key's running requests.
    pub(super) permit: Option<Permit>,
    /// The part of its key's memory that its body takes while it is incomplete.
    pub(super) share: Option<Box<Share>>,
}

impl Admitted {
    /// Returns whether a valid key came with it.
    pub const fn has_key(&self) -> bool {
        self.call.caller.is_some()
    }

    /// Takes memory for the `bytes` of its body that have come. All incomplete bodies of a key may
    /// have `most` together.
    pub fn hold(&mut self, bytes: usize, most: usize) -> Result<(), Full> {
        let Some(caller) = &self.call.caller else {
            return Ok(());
        };
        let account = caller.account.buffered();
        account.set_bound(most);
        let share = self
            .share
            .get_or_insert_with(|| Box::new(account.share(Claim::Keyed)));
        share.resize(bytes)
    }

    /// Refuses the request because of its body: the refusal keeps the request's id, route and
    /// start. The bound of the body is known here, not where the body was found to exceed it.
    pub fn refuse(self, mut error: ApiError) -> Refusal {
        if error.code == ErrorCode::BodyTooLarge {
            let limit = self.body_limit;
            error.message = match self.call.row.map(|row| row.body) {
                Some(BodyBound::MaxBody) if limit > 0 => {
                    format!("the body is larger than {limit} bytes (`limits.max_body`)")
                }
                Some(BodyBound::Bytes(_)) if limit > 0 => {
                    format!("the body is larger than {limit} bytes, the limit of this path")
                }
                // Like a body whose length was announced: see `check_no_body`.
                _ => {
                    error.code = ErrorCode::InvalidRequest;
                    "this request must not have a body".to_owned()
                }
            };
        }
        Refusal::of(self.call, error)
    }
}

/// Returns the error of a request for which there is no memory.
pub fn buffers_full() -> ApiError {
    ApiError::new(ErrorCode::BuffersFull, BUFFERS_FULL).with_retry_after(limits::BUSY_RETRY_AFTER)
}

const BUFFERS_FULL: &str = "all requests that the daemon holds, or those of this key, are as large \
                            as `limits.max_buffered` allows; wait for `Retry-After`, or send the \
                            request in one piece";

/// A request that gets an error response, with the facts about it.
#[derive(Debug)]
pub struct Refusal {
    /// Boxed, so that an admitted request does not carry the space of an error.
    error: Box<ApiError>,
    known: Known,
}

/// The facts about a refused request.
#[derive(Debug)]
pub(super) enum Known {
    /// Its head could not be read.
    Peer(PeerAddress),
    Call(Box<Call>),
}

impl Refusal {
    /// For a request whose head could not be read: at least its sender is known.
    pub fn of_peer(error: ApiError, peer: &Peer) -> Refusal {
        Refusal::with(error, Known::Peer(peer.address))
    }

    pub(super) fn of(call: Call, error: ApiError) -> Refusal {
        Refusal::with(error, Known::Call(Box::new(call)))
    }

    fn with(error: ApiError, known: Known) -> Refusal {
        let error = Box::new(error);
        Refusal { error, known }
    }

    pub fn error(&self) -> &ApiError {
        &self.error
    }

    pub(super) fn into_parts(self) -> (ApiError, Known) {
        (*self.error, self.known)
    }
}
