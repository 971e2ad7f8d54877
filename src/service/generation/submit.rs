//! From a complete request to a running job.
//!
//! All errors of a request are found here, before the engine gets it: in the body, the model, the
//! key's tokens per minute. [`super::running`] handles the job's events.

use std::sync::Arc;

use crate::core::Moment;
use crate::core::buffered::{Claim, Full, Share};
use crate::engine::{Class, Job, ModelInfo, Refused, Served};
use crate::error::{ApiError, ErrorCode};
use crate::offload::{JobKey, Permit, Ticket};
use crate::service::call::{Admitted, Call, Incoming, buffers_full};
use crate::service::desk::{Desk, Flow, Wire};
use crate::service::dialect::{Asked, Narrator};
use crate::service::excerpt::excerpt;

use super::cached::{self, Keeping};
use super::failure::refusal;
use super::reading::{Read, read_or_begin};
use super::recording::Recording;
use super::reservation::Reserved;
use super::running::{Delivery, Running, Stage, Work};

/// The name by which a request asks for the loaded model, whichever it is.
pub const MODEL_ALIAS: &str = "default";

/// Turns a complete request into a job, or gives its body to a worker, or responds why not.
pub fn generate(
    desk: &mut Desk,
    admitted: Admitted,
    incoming: Incoming<'_>,
    wire: &mut Wire<'_>,
) -> Option<Running> {
    let Admitted {
        mut call,
        permit,
        share,
        ..
    } = admitted;
    let mut keeping = cached::respond(desk, &mut call, &incoming, wire)?;
    let asker = (&mut call, &mut keeping);
    match begin(desk, asker, (permit, share), incoming, wire.now) {
        Ok(stage) => Some(Running { call, stage }),
        Err(error) => {
            refuse(desk, &mut call, keeping, &error, wire);
            None
        }
    }
}

/// Responds with the error for which a request does not become a job.
fn refuse(
    desk: &mut Desk,
    call: &mut Call,
    keeping: Keeping,
    error: &ApiError,
    wire: &mut Wire<'_>,
) {
    if !matches!(keeping, Keeping::Undecided(_)) {
        cached::note_source(call, keeping, &Served::default());
        cached::keep_refusal(desk, keeping, error, wire.now);
        cached::count(desk, call, keeping);
    }
    desk.fail(call, error, wire);
}

fn begin(
    desk: &mut Desk,
    (call, keeping): (&mut Call, &mut Keeping),
    (permit, share): (Option<Permit>, Option<Box<Share>>),
    incoming: Incoming<'_>,
    now: Moment,
) -> Result<Stage, ApiError> {
    let key = incoming.key;
    match read_or_begin(desk, call, (permit, share), incoming)? {
        Read::Now(asked, ticket) => {
            let asker = (call, keeping);
            submit(desk, asker, asked, ticket, key, now).map(Stage::Working)
        }
        Read::Later(reading) => Ok(Stage::Reading(reading)),
    }
}

/// Continues with a request that a worker has read.
pub fn resume(
    desk: &mut Desk,
    running: &mut Running,
    read: Result<Asked, ApiError>,
    wire: &mut Wire<'_>,
) -> Flow {
    let Running { call, stage } = running;
    let Stage::Reading(reading) = stage else {
        debug_assert!(false, "its body was read before");
        return Flow::Open;
    };
    let (ticket, key) = (Arc::clone(&reading.ticket), reading.key);
    let mut keeping = Keeping::Undecided(None);
    let asker = (&mut *call, &mut keeping);
    match read.and_then(|asked| submit(desk, asker, asked, ticket, key, wire.now)) {
        Ok(work) => {
            *stage = Stage::Working(work);
            Flow::Open
        }
        Err(error) => {
            refuse(desk, call, keeping, &error, wire);
            Flow::Finished
        }
    }
}

/// Submits the job of a request. All errors are found before the engine gets it.
fn submit(
    desk: &mut Desk,
    (call, keeping): (&mut Call, &mut Keeping),
    mut asked: Asked,
    ticket: Arc<Ticket>,
    key: JobKey,
    now: Moment,
) -> Result<Work, ApiError> {
    if desk.is_draining {
        return Err(refusal(Refused::Draining));
    }
    let is_whole = matches!(asked.narrator, Narrator::Whole(_));
    keeping.decide(asked.cache, &asked.sampling, is_whole);
    // While the model is unknown, the engine refuses the job, so its defaults do not matter.
    let model = desk.model();
    check_model(model, asked.model.as_deref())?;
    let max_tokens = asked.complete(model.map(|model| model.defaults).unwrap_or_default());
    let id = desk.new_id();
    let mut memory = desk.parts.buffered.share(Claim::of(call.caller.is_some()));
    let taken = memory.resize(asked.prompt.bytes());
    taken.map_err(|Full| buffers_full())?;
    let counts = (&desk.parts.limiter.leases, &desk.parts.config.rate_limit);
    let reserved = Reserved::take(counts, call, asked.prompt.bytes(), max_tokens, now)?;
    let recording = Recording::begin(desk, call, &asked, id);
    let delivery = Delivery::new(asked.narrator, now);
    if let Delivery::Stream(_) = &delivery {
        ticket.begin_stream(delivery.credit());
    }
    let deadline = call.started + asked.timeout;
    let job = Job {
        key,
        id,
        tenant: call.tenant(),
        class: Class::Live,
        weight: call
            .caller
            .as_ref()
            .map_or(1, |caller| caller.record.weight),
        prompt: asked.prompt,
        sampling: asked.sampling,
        max_tokens,
        stop: asked.stop,
        deadline,
        submitted: now,
        cache: asked.cache,
        ticket: Arc::clone(&ticket),
    };
    if let Err(refused) = desk.parts.engine.submit(job) {
        if let Some(reserved) = reserved {
            reserved.reconcile(call, 0, now);
        }
        return Err(refusal(refused));
    }
    cached::note_source(call, *keeping, &Served::default());
    Ok(Work {
        id,
        ticket,
        key,
        delivery,
        text: String::new(),
        reserved,
        submitted: now,
        deadline,
        is_overdue: false,
        time_to_first_token: None,
        served: Served::default(),
        keeping: *keeping,
        recording,
        _memory: memory,
    })
}

/// Refuses a model other than the loaded one. While it is unknown, the engine refuses the job.
pub fn check_model(model: Option<&ModelInfo>, name: Option<&str>) -> Result<(), ApiError> {
    match (model, name) {
        (None, _) | (_, None | Some(MODEL_ALIAS)) => Ok(()),
        (Some(model), Some(name)) if *name == *model.id => Ok(()),
        (Some(model), Some(name)) => {
            let (name, id) = (excerpt(name), &model.id);
            let message = format!("the model `{name}` is not loaded; use `{id}`");
            Err(ApiError::new(ErrorCode::ModelNotFound, message).with_param("model"))
        }
    }
}
