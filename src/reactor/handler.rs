//! The interface between the protocols and the application behind them.
//!
//! [`Service`] is the application of the daemon. The trait is between it and the protocols, so that
//! a protocol can be tested, and shown in an example, with an application of a few lines:
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
//!                                     cut_off             if the daemon's patience ends
//! ```
//!
//! A request whose [`Intake`] is `Pieces` goes another way: `open` returns its exchange at once,
//! and `handle_data` takes each piece of its body until it returns `Flow::Finished`.
//!
//! Why a type parameter and not `dyn Handler`: the application's state of a request between two
//! calls (`Admitted`, `Exchange`) has the application's own types. Behind `dyn` they would have to
//! be concrete types of `service`, or an allocation per request. Only `Service` is ever compiled
//! into the daemon, so nothing is dispatched at run time. The parameter defaults to it, so code
//! outside the protocols need not name it.
//!
//! An application must never block, and never panic because of a client's bytes.

use std::borrow::Cow;

use crate::core::Moment;
use crate::core::buffered::Full;
use crate::error::ApiError;
use crate::http::{Request, ResponseSink};
use crate::offload::{CancelReason, JobKey};
use crate::service::{Admitted, Completion, Exchange, Flow, Intake, Peer, Refusal, Service};

/// See the file's head.
pub trait Handler {
    /// A request whose head was accepted, and whose body may be read.
    type Admitted: Admission;
    /// A request whose response is not complete.
    type Exchange: Pending;
    /// A request that gets an error.
    type Refusal;

    /// Decides by the head alone whether this request may go on.
    fn admit(
        &mut self,
        request: &Request<'_>,
        peer: &Peer,
        now: Moment,
    ) -> Result<Self::Admitted, Self::Refusal>;

    /// Handles a complete request. `None`: its response is complete in `sink`. `Some`: messages
    /// that carry `key` will follow.
    fn handle(
        &mut self,
        admitted: Self::Admitted,
        request: &Request<'_>,
        body: Cow<'_, [u8]>,
        key: JobKey,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<Self::Exchange>>;

    /// Begins a request that is taken in pieces.
    fn open(&mut self, admitted: Self::Admitted, now: Moment) -> Box<Self::Exchange>;

    /// Handles one piece of the body of an opened exchange.
    fn handle_data(
        &mut self,
        exchange: &mut Self::Exchange,
        piece: &[u8],
        is_end: bool,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow;

    /// Handles a message of the engine or of a worker for this exchange.
    fn handle_event(
        &mut self,
        exchange: &mut Self::Exchange,
        completion: Completion,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow;

    /// Handles a passed [`Pending::next_deadline`].
    fn handle_deadline(
        &mut self,
        exchange: &mut Self::Exchange,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow;

    /// Handles a drained output: output that was held back for lack of room may be produced.
    fn handle_room(&mut self, exchange: &mut Self::Exchange);

    /// Returns the refusal of an admitted request because of its body.
    fn refusal(admitted: Self::Admitted, error: ApiError) -> Self::Refusal;

    /// Returns the refusal of a request of which only the sender is known.
    fn refusal_of_peer(peer: &Peer, error: ApiError) -> Self::Refusal;

    /// Responds to a refused request.
    fn refuse(&mut self, refusal: Self::Refusal, now: Moment, sink: &mut dyn ResponseSink);

    /// Completes a response with the error `draining`: the daemon ends now. The exchange's job is
    /// cancelled.
    fn cut_off(&mut self, exchange: &mut Self::Exchange, now: Moment, sink: &mut dyn ResponseSink);

    /// Handles a client that left before its response was complete.
    fn abandon(&mut self, exchange: Box<Self::Exchange>, reason: CancelReason, now: Moment);

    /// Handles a client that left before its body was complete.
    fn abandon_admitted(&mut self, admitted: Self::Admitted, reason: CancelReason, now: Moment);
}

/// The facts about an admitted request that a protocol needs.
pub trait Admission {
    fn intake(&self) -> Intake;

    /// Returns how many body bytes the request may have; 0 if it takes none.
    fn body_limit(&self) -> usize;

    /// Returns whether a valid key came with it.
    fn has_key(&self) -> bool;

    /// Takes memory for the `bytes` of its body that have come. All incomplete bodies of a client
    /// may have `most` together, if the application tells clients apart.
    fn hold(&mut self, _bytes: usize, _most: usize) -> Result<(), Full> {
        Ok(())
    }
}

/// The facts about a request with an incomplete response that a protocol needs.
pub trait Pending {
    /// Returns when [`Handler::handle_deadline`] must be called if nothing happens before. It moves
    /// with every call, so the caller must read it again after each.
    fn next_deadline(&self) -> Moment;

    /// Returns whether a job runs for it, whose terminal event will come in any case.
    fn has_job(&self) -> bool;

    /// Returns the memory that it holds until its response is complete.
    fn buffered_bytes(&self) -> usize {
        0
    }
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
        body: Cow<'_, [u8]>,
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
        completion: Completion,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow {
        Service::handle_event(self, exchange, completion, now, sink)
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

    fn cut_off(&mut self, exchange: &mut Exchange, now: Moment, sink: &mut dyn ResponseSink) {
        Service::cut_off(self, exchange, now, sink);
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

    fn hold(&mut self, bytes: usize, most: usize) -> Result<(), Full> {
        Admitted::hold(self, bytes, most)
    }
}

impl Pending for Exchange {
    fn next_deadline(&self) -> Moment {
        Exchange::next_deadline(self)
    }

    fn has_job(&self) -> bool {
        Exchange::has_job(self)
    }

    fn buffered_bytes(&self) -> usize {
        Exchange::buffered_bytes(self)
    }
}
