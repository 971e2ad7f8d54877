//! From a complete request to a running job.
//!
//! All errors of a request are found here, before the engine gets it: in the body, the model, the
//! key's tokens per minute. [`super::running`] handles the job's events.

use std::sync::Arc;

use crate::core::Moment;
use crate::core::buffered::{Claim, Full};
use crate::engine::{Class, Job, ModelInfo, Refused};
use crate::error::{ApiError, ErrorCode, milliseconds_up};
use crate::limits::service as limits;
use crate::offload::{Permit, Ticket};
use crate::service::call::{Admitted, Call, Incoming, buffers_full};
use crate::service::desk::{Desk, Wire};
use crate::service::dialect::{Asked, Received};
use crate::service::excerpt::excerpt;

use super::reservation::Reserved;
use super::running::{Delivery, Running, Work};

/// The name by which a request asks for the loaded model, whichever it is.
const MODEL_ALIAS: &str = "default";

/// Turns a complete request into a job, or responds why not.
pub fn generate(
    desk: &mut Desk,
    admitted: Admitted,
    incoming: Incoming<'_>,
    wire: &mut Wire<'_>,
) -> Option<Running> {
    let Admitted {
        mut call, permit, ..
    } = admitted;
    match submit(desk, &mut call, permit, incoming, wire.now) {
        Ok(work) => Some(Running { call, work }),
        Err(error) => {
            desk.fail(&call, &error, wire);
            None
        }
    }
}

fn submit(
    desk: &mut Desk,
    call: &mut Call,
    permit: Option<Permit>,
    incoming: Incoming<'_>,
    now: Moment,
) -> Result<Work, ApiError> {
    if desk.is_draining {
        return Err(refusal(Refused::Draining));
    }
    let mut asked = read(desk, call, incoming)?;
    // While the model is unknown, the engine refuses the job, so its defaults do not matter.
    let model = desk.model();
    check_model(model, asked.model.as_deref())?;
    let max_tokens = asked.complete(model.map(|model| model.defaults).unwrap_or_default());
    let mut memory = desk.parts.buffered.share(Claim::of(call.caller.is_some()));
    let taken = memory.resize(asked.prompt.bytes());
    taken.map_err(|Full| buffers_full())?;
    let rates = &desk.parts.config.rate_limit;
    let reserved = Reserved::take(rates, call, asked.prompt.bytes(), max_tokens, now)?;
    let delivery = Delivery::new(asked.narrator, now);
    let credit = delivery.credit();
    // Allocates per request: the engine and the response share it.
    let ticket = Arc::new(match permit {
        Some(permit) => Ticket::with_permit(credit, permit),
        None => Ticket::new(credit),
    });
    let deadline = call.started + asked.timeout;
    let caller = call.caller.as_ref();
    let job = Job {
        key: incoming.key,
        tenant: caller.map_or(0, |caller| caller.account.tenant),
        class: Class::Live,
        weight: caller.map_or(1, |caller| caller.record.weight),
        prompt: asked.prompt,
        sampling: asked.sampling,
        max_tokens,
        stop: asked.stop,
        deadline,
        submitted: now,
        ticket: Arc::clone(&ticket),
    };
    if let Err(refused) = desk.parts.engine.submit(job) {
        if let Some(reserved) = reserved {
            reserved.reconcile(call, 0, now);
        }
        return Err(refusal(refused));
    }
    Ok(Work {
        ticket,
        delivery,
        text: String::new(),
        reserved,
        submitted: now,
        deadline: deadline + limits::ENGINE_GRACE,
        time_to_first_token: None,
        _memory: memory,
    })
}

/// Reads the request in the format of its API.
fn read(desk: &Desk, call: &Call, incoming: Incoming<'_>) -> Result<Asked, ApiError> {
    desk.dialect(call.surface()).read(&Received {
        call,
        request: incoming.request,
        body: incoming.body,
        config: &desk.parts.config,
        coder: &desk.buffer.coder,
    })
}

/// Refuses a model other than the loaded one. While it is unknown, the engine refuses the job.
fn check_model(model: Option<&ModelInfo>, name: Option<&str>) -> Result<(), ApiError> {
    match (model, name) {
        (None, _) | (_, None | Some(MODEL_ALIAS)) => Ok(()),
        (Some(model), Some(name)) if name == model.id => Ok(()),
        (Some(model), Some(name)) => {
            let (name, id) = (excerpt(name), &model.id);
            let message = format!("the model `{name}` is not loaded; use `{id}`");
            Err(ApiError::new(ErrorCode::ModelNotFound, message).with_param("model"))
        }
    }
}

/// Returns the engine's refusal as an error of the catalogue.
fn refusal(refused: Refused) -> ApiError {
    let error = |code, message: &str| ApiError::new(code, message);
    match refused {
        Refused::QueueFull { retry_after } => {
            let message = "the engine's queue is full; wait for `Retry-After`";
            error(ErrorCode::QueueFull, message).with_retry_after(retry_after)
        }
        Refused::TooLong { context_length } => {
            let message = format!(
                "the prompt is too long for the model's context of {context_length} tokens; \
                 shorten it or raise engine.context"
            );
            error(ErrorCode::ContextLengthExceeded, &message)
        }
        Refused::DeadlineUnmeetable { estimated } => {
            let estimated_ms = milliseconds_up(estimated);
            let message = format!(
                "the response cannot begin within `timeout`: at the engine's measured speed it \
                 would take {estimated_ms} ms; raise `timeout` or try again later"
            );
            error(ErrorCode::DeadlineUnmeetable, &message).with_retry_after(estimated)
        }
        Refused::Loading => {
            let message = "the model is still loading; `/readyz` reports when it is ready";
            error(ErrorCode::ModelLoading, message).with_retry_after(limits::LOADING_RETRY_AFTER)
        }
        Refused::Unavailable(why) => {
            let message = format!("the engine is not available: {why}");
            error(ErrorCode::EngineFailed, &message).with_retry_after(limits::BUSY_RETRY_AFTER)
        }
        Refused::Draining => {
            let message = "the daemon is stopping; send the request elsewhere";
            error(ErrorCode::Draining, message).with_retry_after(limits::BUSY_RETRY_AFTER)
        }
    }
}
