//! What the protocols ask of the application behind them.
//!
//! [`Service`] is the application of the daemon. The trait stands between it and the protocols, so
//! that a protocol can be tested, and shown in an example, with an application of a few lines:
//! [`super::http1`] has one in its head.
//!
//! ```text
//! head complete ── admit ──> Ok(Admitted)            read the body, at most body_limit
//!                    │            │
//!                    │ Err        ├── handle ──> None: the response is in the sink
//!                    v            │      │
//!                 refuse <── refusal     │ Some(Exchange): more is to come
//!                                        v
//!            handle_event, handle_deadline, handle_room   until Flow::Finished
//!                                        │
//!                                     abandon             if the client leaves before that
//! ```
//!
//! A request whose [`Intake`] is `Pieces` goes another way: `open` returns its exchange at once,
//! and `handle_data` takes each piece of its body until it returns `Flow::Finished`.
//!
//! Why a type parameter and not `dyn Handler`: what a request is remembered by between two calls
//! (`Admitted`, `Exchange`) belongs to the application, and behind `dyn` it would have to be a
//! concrete type of `service` or an allocation for each request. Only `Service` is ever compiled
//! into the daemon, so nothing is dispatched at run time. The parameter defaults to it, so code
//! that is not a protocol need not name it.
//!
//! An application must never block, and never panic at what a client sent.

use crate::core::Moment;
use crate::engine::Event;
use crate::error::ApiError;
use crate::http::{Request, ResponseSink};
use crate::offload::{CancelReason, JobKey};
use crate::service::{Admitted, Exchange, Flow, Intake, Peer, Refusal, Service};

/// See the file's head.
pub trait Handler {
    /// A request whose head was accepted, and whose body may be read.
    type Admitted: Admission;
    /// A request whose response is not complete.
    type Exchange: Pending;
    /// A request that gets an error.
    type Refusal;

    /// From the head alone: may this request go on?
    fn admit(
        &mut self,
        request: &Request<'_>,
        peer: &Peer,
        now: Moment,
    ) -> Result<Self::Admitted, Self::Refusal>;

    /// The whole request is there. `None`: its response is complete in `sink`. `Some`: a job runs,
    /// and events that carry `key` will follow.
    fn handle(
        &mut self,
        admitted: Self::Admitted,
        request: &Request<'_>,
        body: &[u8],
        key: JobKey,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<Self::Exchange>>;

    /// Begins a request that is taken in pieces.
    fn open(&mut self, admitted: Self::Admitted, now: Moment) -> Box<Self::Exchange>;

    /// One piece of the body of an exchange that was opened.
    fn handle_data(
        &mut self,
        exchange: &mut Self::Exchange,
        piece: &[u8],
        is_end: bool,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow;

    /// The engine's event for this exchange.
    fn handle_event(
        &mut self,
        exchange: &mut Self::Exchange,
        event: Event,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow;

    /// [`Pending::next_deadline`] has passed.
    fn handle_deadline(
        &mut self,
        exchange: &mut Self::Exchange,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow;

    /// The output has drained: what was held back for lack of room may be produced.
    fn handle_room(&mut self, exchange: &mut Self::Exchange);

    /// The body of an admitted request went wrong.
    fn refusal(admitted: Self::Admitted, error: ApiError) -> Self::Refusal;

    /// A request went wrong of which only its sender is known.
    fn refusal_of_peer(peer: &Peer, error: ApiError) -> Self::Refusal;

    /// Responds to a refused request.
    fn refuse(&mut self, refusal: Self::Refusal, now: Moment, sink: &mut dyn ResponseSink);

    /// The client left before its response was complete.
    fn abandon(&mut self, exchange: Box<Self::Exchange>, reason: CancelReason, now: Moment);

    /// The client left before its body was complete.
    fn abandon_admitted(&mut self, admitted: Self::Admitted, reason: CancelReason, now: Moment);
}

/// What a protocol has to know of a request that was admitted.
pub trait Admission {
    fn intake(&self) -> Intake;

    /// Bytes of body that the request may have; 0 where it takes none.
    fn body_limit(&self) -> usize;

    /// Whether a valid key came with it.
    fn has_key(&self) -> bool;
}

/// What a protocol has to know of a request whose response is not complete.
pub trait Pending {
    /// When [`Handler::handle_deadline`] has to be called if nothing happens before. It moves with
    /// every call, so it is read again after each.
    fn next_deadline(&self) -> Moment;

    /// Whether a job runs for it, whose terminal event will come in any case.
    fn has_job(&self) -> bool;
}

impl Handler for Service {
    type Admitted = Admitted;
    type Exchange = Exchange;
    type Refusal = Refusal;

    fn admit(
        &mut self,
        request: &Request<'_>,
        peer: &Peer,
        now: Moment,
    ) -> Result<Admitted, Refusal> {
        Service::admit(self, request, peer, now)
    }

    fn handle(
        &mut self,
        admitted: Admitted,
        request: &Request<'_>,
        body: &[u8],
        key: JobKey,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<Exchange>> {
        Service::handle(self, admitted, request, body, key, now, sink)
    }

    fn open(&mut self, admitted: Admitted, now: Moment) -> Box<Exchange> {
        Service::open(self, admitted, now)
    }

    fn handle_data(
        &mut self,
        exchange: &mut Exchange,
        piece: &[u8],
        is_end: bool,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow {
        Service::handle_data(self, exchange, piece, is_end, now, sink)
    }

    fn handle_event(
        &mut self,
        exchange: &mut Exchange,
        event: Event,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow {
        Service::handle_event(self, exchange, event, now, sink)
    }

    fn handle_deadline(
        &mut self,
        exchange: &mut Exchange,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow {
        Service::handle_deadline(self, exchange, now, sink)
    }

    fn handle_room(&mut self, exchange: &mut Exchange) {
        Service::handle_room(self, exchange);
    }

    fn refusal(admitted: Admitted, error: ApiError) -> Refusal {
        admitted.refuse(error)
    }

    fn refusal_of_peer(peer: &Peer, error: ApiError) -> Refusal {
        Refusal::of_peer(error, peer)
    }

    fn refuse(&mut self, refusal: Refusal, now: Moment, sink: &mut dyn ResponseSink) {
        Service::refuse(self, refusal, now, sink);
    }

    fn abandon(&mut self, exchange: Box<Exchange>, reason: CancelReason, now: Moment) {
        Service::abandon(self, exchange, reason, now);
    }

    fn abandon_admitted(&mut self, admitted: Admitted, reason: CancelReason, now: Moment) {
        Service::abandon_admitted(self, admitted, reason, now);
    }
}

impl Admission for Admitted {
    fn intake(&self) -> Intake {
        self.intake
    }

    fn body_limit(&self) -> usize {
        self.body_limit
    }

    fn has_key(&self) -> bool {
        Admitted::has_key(self)
    }
}

impl Pending for Exchange {
    fn next_deadline(&self) -> Moment {
        Exchange::next_deadline(self)
    }

    fn has_job(&self) -> bool {
        Exchange::has_job(self)
    }
}
