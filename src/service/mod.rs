//! Handles requests, whatever protocol carried them.
//!
//! The reactor owns one [`Service`] in each of its threads and calls it in this order:
//!
//! ```text
//! head complete ── admit ──> Ok(Admitted)            read the body, at most body_limit
//!                    │            │
//!                    │ Err        ├── handle ──> None: the response is in `sink`
//!                    v            │      │
//!                 refuse <── admitted.refuse │ Some(Exchange): more is to come
//!                                        v
//!            handle_event, handle_deadline, handle_room   until Flow::Finished
//!                                        │
//!                                     abandon             if the client leaves before that
//! ```
//!
//! A request whose [`Intake`] is `Pieces` goes another way: `open` returns its exchange at once,
//! and `handle_data` takes each piece of its body until it returns `Flow::Finished`.
//!
//! Reading order: [`router`] (which paths exist, and who may use them), [`call`] (the facts about a
//! request), [`desk`] (the tools of every route), [`query`] (the parameters that each route knows),
//! [`admission`] (which requests may go on, by their heads), [`rate_limit`] (how many), [`dialect`]
//! (the interface of an API), [`api`] (each API, and the routes beside generation), [`inflation`]
//! (bodies without their codings), [`generation`] (a job and its response), [`question`] and
//! [`asking`] (requests that wait for the store), [`exchange`] (incomplete responses) and
//! [`completion`] (the messages for them), [`found`] (the store's replies about jobs among those),
//! [`representation`] and [`response`] (the forms and parts of responses), [`purge`] (of the
//! cache), [`request_log`] (counts and logs), [`copied`] (counts of others), [`excerpt`].
//!
//! Must never block, and never panic because of a client's bytes. Files depend on one another in
//! one direction: this one knows all the others, and none knows this one.
//!
//! Invariants:
//!  1. Every request gets exactly one response: from `handle`, from `refuse`, or from the call that
//!     returns `Flow::Finished`.
//!  2. Nothing is done for a request that its route's row in [`router::ROUTES`] does not allow.

mod admission;
mod api;
mod asking;
mod call;
mod completion;
mod copied;
mod desk;
mod dialect;
mod excerpt;
mod exchange;
mod found;
mod generation;
mod inflation;
pub mod metrics;
mod purge;
mod query;
mod question;
mod rate_limit;
mod representation;
mod request_log;
mod response;
mod router;

use std::borrow::Cow;
use std::sync::Arc;

use crate::config::Config;
use crate::core::Moment;
use crate::core::buffered::Account;
use crate::error::ApiError;
use crate::http::{Method, Request, ResponseSink};
use crate::keys::KeyRing;
use crate::offload::{CancelReason, JobKey, Ticket};
pub use api::jobs::object::callback_body;
pub use copied::{Copied, Owners};
pub use response::cached::Responses;
pub use response::compression::CompressionSeries;
pub use router::{Route, templates};

use admission::arrival::{self, Arrival};
use admission::check;
use api::grpc::{health, reflection};
use api::jobs::accept::Begun;
use api::jobs::{self, JobExchange};
use api::{admin, generations, operations};
use call::{Call, Incoming, Known};
use desk::{Desk, Wire};
use generation::{running, submit};
use question::Question;
use request_log::Outcome;
use response::static_body::StaticBodies;

pub use call::{Admitted, Intake, Peer, PeerAddress, Refusal, buffers_full};
pub use completion::{Completion, Reply};
pub use desk::{Flow, Parts};
pub use exchange::Exchange;
pub use purge::{Announce, Purger};
pub use rate_limit::Limiter;

/// One reactor's view of all routes.
pub struct Service {
    desk: Desk,
    static_bodies: StaticBodies,
}

impl Service {
    pub fn new(parts: Parts) -> Service {
        Service {
            desk: Desk::new(parts, api::dialect),
            static_bodies: StaticBodies::default(),
        }
    }

    /// Returns the account of the memory that slow peers make the daemon hold.
    pub fn buffered(&self) -> &Account {
        &self.desk.parts.buffered
    }

    /// Decides by the head alone: route, credentials, rate limit, media type, body limit. Called
    /// once a head is complete.
    pub fn admit(
        &mut self,
        request: &Request<'_>,
        peer: &Peer,
        now: Moment,
    ) -> Result<Admitted, Refusal> {
        let sender = &*arrival::sender(request, peer, &self.desk.parts.config.server);
        let mut call = self.desk.begin_call(request, sender, now);
        let arrival = Arrival {
            request,
            sender,
            connected: peer.address,
            now,
        };
        match check::check_head(&self.desk, &mut call, &arrival) {
            Ok(permit) => Ok(Admitted {
                intake: check::intake(&call),
                body_limit: check::body_limit(&self.desk.parts, &call),
                call,
                permit,
                share: None,
            }),
            Err(error) => Err(Refusal::of(call, error)),
        }
    }

    /// Handles a complete request. `None`: the response is complete in `sink`. `Some`: a worker
    /// reads its body or a job runs, and messages that carry `key` will follow.
    pub fn handle(
        &mut self,
        admitted: Admitted,
        request: &Request<'_>,
        body: Cow<'_, [u8]>,
        key: JobKey,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<Exchange>> {
        let incoming = Incoming { request, body, key };
        self.dispatch(admitted, incoming, &mut Wire { now, sink })
    }

    fn dispatch(
        &mut self,
        admitted: Admitted,
        incoming: Incoming<'_>,
        wire: &mut Wire<'_>,
    ) -> Option<Box<Exchange>> {
        let (desk, call) = (&mut self.desk, &admitted.call);
        if call.method == Method::Options {
            operations::options(desk, call, wire);
            return None;
        }
        match call.route() {
            Route::Generate | Route::RpcGenerate | Route::RpcGenerateStream
                if jobs::accept::has_key(incoming.request) =>
            {
                return self.dispatch_job(admitted, incoming, wire);
            }
            Route::Generate | Route::RpcGenerate | Route::RpcGenerateStream => {
                let running = submit::generate(desk, admitted, incoming, wire)?;
                // Allocates per request: idle connections do not pay for its size.
                return Some(Box::new(Exchange::Generation(running)));
            }
            Route::Jobs
            | Route::Job
            | Route::JobEvents
            | Route::RpcSubmitJob
            | Route::RpcGetJob
            | Route::RpcWatchJob
            | Route::RpcCancelJob => return self.dispatch_job(admitted, incoming, wire),
            Route::HealthCheck => health::check(desk, call, &incoming.body, wire),
            Route::HealthWatch => {
                let watch = health::watch(desk, admitted.call, &incoming.body, wire)?;
                return Some(Box::new(Exchange::HealthWatch(watch)));
            }
            Route::Reflection => {
                let mut dialogue = reflection::open(desk, admitted.call, wire.now);
                let flow = reflection::handle_data(desk, &mut dialogue, &incoming.body, true, wire);
                return (flow == Flow::Open).then(|| Box::new(Exchange::Reflection(dialogue)));
            }
            Route::Generations => {
                let page = generations::Page::of(call, incoming.request);
                return self.ask(admitted, page, incoming.key, wire);
            }
            Route::Live => operations::live(desk, call, wire),
            Route::Ready => operations::ready(desk, call, wire),
            Route::Metrics => operations::metrics(desk, call, incoming.request, wire),
            Route::AdminCache => admin::cache(desk, call, incoming.request, wire),
            Route::Models => operations::models(desk, call, wire),
            Route::Languages => {
                operations::languages(desk, &mut self.static_bodies, call, wire);
            }
            Route::Index => operations::index(desk, &mut self.static_bodies, call, wire),
            // Neither is ever admitted, but it must get a response all the same.
            Route::Unknown | Route::Unread => {
                desk.fail(call, &desk.dialect(call.surface()).not_found(), wire);
            }
        }
        None
    }

    /// The routes of durable jobs.
    fn dispatch_job(
        &mut self,
        admitted: Admitted,
        incoming: Incoming<'_>,
        wire: &mut Wire<'_>,
    ) -> Option<Box<Exchange>> {
        let desk = &mut self.desk;
        let route = admitted.call.route();
        if route.is_generation() || is_submission(&admitted.call) {
            let begun = jobs::accept::accept(desk, admitted, incoming, wire)?;
            return Some(Box::new(exchange_of(begun)));
        }
        let (call, request) = (&admitted.call, incoming.request);
        let question = match route {
            Route::RpcWatchJob | Route::JobEvents => {
                let following = match route {
                    Route::RpcWatchJob => jobs::rpc::watch(desk, admitted.call, &incoming, wire)?,
                    _ => jobs::follow::follow(desk, admitted.call, &incoming, wire)?,
                };
                return Some(Box::new(Exchange::Job(JobExchange::Following(following))));
            }
            Route::Jobs => jobs::look::list(desk, call, request),
            Route::RpcGetJob | Route::RpcCancelJob => jobs::rpc::one(desk, call, &incoming.body),
            _ => jobs::look::one(desk, call, request),
        };
        self.ask(admitted, question, incoming.key, wire)
    }

    /// Sends a request's question to the store, or responds why not.
    fn ask<Q: Question + 'static>(
        &mut self,
        admitted: Admitted,
        question: Result<Q, ApiError>,
        key: JobKey,
        wire: &mut Wire<'_>,
    ) -> Option<Box<Exchange>> {
        let Admitted { call, permit, .. } = admitted;
        match question {
            Ok(question) => {
                let question = Box::new(question);
                let ticket = Arc::new(match permit {
                    Some(permit) => Ticket::with_permit(0, permit),
                    None => Ticket::new(0),
                });
                let asking = asking::begin(&mut self.desk, call, ticket, key, question, wire)?;
                Some(Box::new(Exchange::Asking(asking)))
            }
            Err(error) => {
                self.desk.fail(&call, &error, wire);
                None
            }
        }
    }

    /// Returns the exchange of an admitted request of [`Intake::Pieces`], before any of its body.
    pub fn open(&mut self, admitted: Admitted, now: Moment) -> Box<Exchange> {
        let dialogue = reflection::open(&self.desk, admitted.call, now);
        Box::new(Exchange::Reflection(dialogue))
    }

    /// Takes the next piece of a body that comes in pieces. An empty piece may be the last.
    pub fn handle_data(
        &mut self,
        exchange: &mut Exchange,
        data: &[u8],
        is_end: bool,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow {
        let Exchange::Reflection(dialogue) = exchange else {
            debug_assert!(false, "this exchange has its body already");
            return Flow::Open;
        };
        let wire = &mut Wire { now, sink };
        reflection::handle_data(&mut self.desk, dialogue, data, is_end, wire)
    }

    /// Handles a message of a worker or of the engine for a running exchange.
    pub fn handle_event(
        &mut self,
        exchange: &mut Exchange,
        completion: Completion,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow {
        let wire = &mut Wire { now, sink };
        let desk = &mut self.desk;
        match (exchange, completion) {
            (Exchange::Generation(running), Completion::Event(event)) => {
                running::handle_event(desk, running, event, wire)
            }
            (Exchange::Generation(running), Completion::Written(written)) => {
                running::finish_writing(desk, running, written, wire)
            }
            (exchange, Completion::Read(read)) => {
                let Exchange::Generation(running) = exchange else {
                    return Flow::Open;
                };
                if !is_submission(&running.call) {
                    return submit::resume(desk, running, *read, wire);
                }
                match jobs::accept::resume(desk, running, *read, wire) {
                    Some(begun) => *exchange = exchange_of(begun),
                    None => return Flow::Finished,
                }
                Flow::Open
            }
            (exchange, Completion::Job(reply)) => {
                let Exchange::Job(job) = exchange else {
                    return Flow::Open;
                };
                let flow = job.handle_reply(desk, *reply, wire);
                if let Some(running) = job.take_running(wire.now) {
                    *exchange = Exchange::Generation(running);
                }
                flow
            }
            (Exchange::Job(job), Completion::JobMoved) => {
                job.handle_moved(desk, wire);
                Flow::Open
            }
            (Exchange::Asking(asking), Completion::Stored(answered)) => {
                asking::handle_answer(desk, asking, answered, wire);
                Flow::Finished
            }
            // It belongs to an earlier request's job; the caller's own check is stricter.
            _ => Flow::Open,
        }
    }

    /// Handles a passed `exchange.next_deadline()`. Does nothing if it has not passed.
    pub fn handle_deadline(
        &mut self,
        exchange: &mut Exchange,
        now: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow {
        let (desk, wire) = (&mut self.desk, &mut Wire { now, sink });
        match exchange {
            Exchange::Generation(running) => running::handle_deadline(desk, running, wire),
            Exchange::Asking(asking) => asking::handle_deadline(desk, asking, wire),
            Exchange::HealthWatch(watch) => health::handle_deadline(desk, watch, wire),
            Exchange::Reflection(dialogue) => reflection::handle_deadline(desk, dialogue, wire),
            Exchange::Job(job) => job.handle_deadline(desk, wire),
        }
    }

    /// Handles an output queue below its low mark.
    pub fn handle_room(&mut self, exchange: &mut Exchange) {
        match exchange {
            Exchange::Generation(running) => running::handle_room(&self.desk, running),
            Exchange::Job(job) => job.handle_room(&mut self.desk),
            Exchange::Asking(_) | Exchange::HealthWatch(_) | Exchange::Reflection(_) => {}
        }
    }

    /// Completes a response with the error `draining`, and stops its job: the drain's patience has
    /// ended.
    pub fn cut_off(&mut self, exchange: &mut Exchange, now: Moment, sink: &mut dyn ResponseSink) {
        let (desk, wire) = (&mut self.desk, &mut Wire { now, sink });
        match exchange {
            Exchange::Generation(running) => running::cut_off(desk, running, wire),
            Exchange::Asking(asking) => asking::cut_off(desk, asking, wire),
            Exchange::HealthWatch(watch) => health::cut_off(desk, watch, wire),
            Exchange::Reflection(dialogue) => reflection::cut_off(desk, dialogue, wire),
            Exchange::Job(job) => job.cut_off(desk, wire),
        }
    }

    /// Abandons an exchange: its client left.
    pub fn abandon(&mut self, exchange: Box<Exchange>, reason: CancelReason, now: Moment) {
        let desk = &mut self.desk;
        match *exchange {
            Exchange::Generation(running) => running::abandon(desk, running, reason, now),
            Exchange::Asking(asking) => asking.abandon(desk, reason, now),
            Exchange::HealthWatch(watch) => watch.abandon(&mut desk.log, reason, now),
            Exchange::Reflection(dialogue) => dialogue.abandon(&mut desk.log, reason, now),
            Exchange::Job(job) => job.abandon(&mut desk.log, reason, now),
        }
    }

    /// Responds to a request that was refused, malformed or late.
    pub fn refuse(&mut self, refusal: Refusal, now: Moment, sink: &mut dyn ResponseSink) {
        let (error, known) = refusal.into_parts();
        let call = match known {
            Known::Call(call) => *call,
            Known::Peer(peer) => Call::unread(self.desk.request_ids.make(now), peer, now),
        };
        let wire = &mut Wire { now, sink };
        self.desk.fail(&call, &error, wire);
    }

    /// Records that the client left before its body was complete.
    pub fn abandon_admitted(&mut self, admitted: Admitted, reason: CancelReason, now: Moment) {
        let outcome = Outcome::Abandoned { bytes: 0, reason };
        self.desk.log.close(&admitted.call, outcome, None, now);
    }

    /// Applies a new configuration to requests from now on.
    pub fn apply(&mut self, config: Arc<Config>) {
        self.desk.apply(config);
    }

    /// Takes new keys. The thread that has read them holds the old ring longer than this reactor
    /// does, so nothing is freed here.
    pub fn set_keys(&mut self, keys: Arc<KeyRing>) {
        self.desk.parts.keys = keys;
        admin::forget_gone(&self.desk, self.desk.parts.keys.gone());
    }

    /// Accepts no new generation from now on; running ones end by themselves.
    pub fn set_draining(&mut self) {
        self.desk.is_draining = true;
    }
}

/// Returns whether a request with a body submits a durable job. A generation does that if it has a
/// key of idempotency.
fn is_submission(call: &Call) -> bool {
    match call.route() {
        Route::Jobs => call.method == Method::Post,
        Route::RpcSubmitJob => true,
        route => route.is_generation() && call.idempotency_key.is_some(),
    }
}

/// Returns the exchange of a request that submits a durable job.
fn exchange_of(begun: Begun) -> Exchange {
    match begun {
        Begun::Reading(running) => Exchange::Generation(running),
        Begun::Asking(asking) => Exchange::Asking(asking),
        Begun::Kept(kept) => Exchange::Job(JobExchange::Kept(kept)),
    }
}

#[cfg(test)]
mod tests;
