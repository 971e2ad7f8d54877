//! `POST /api/v1/generate` and its siblings of gRPC: from a complete request to a job that runs.
//!
//! Whatever can be wrong with a request is found here, before the engine hears of it: the body, the
//! model, the key's tokens a minute. The job's events are [`super::running`]'s business.

use std::borrow::Cow;
use std::sync::Arc;

use crate::core::Moment;
use crate::engine::{Job, Prompt, Refused};
use crate::error::{ApiError, ErrorCode, milliseconds_up};
use crate::grpc::Encoding;
use crate::http::negotiate::{ContentType, MediaType};
use crate::http::{Request, ResponseSink};
use crate::limits::engine as engine_limits;
use crate::limits::service as limits;
use crate::offload::{JobKey, Permit, Ticket};

use super::running::{Delivery, Exchange, Reserved, Running, Stream, Work};
use crate::service::Service;
use crate::service::admission::router::Route;
use crate::service::api::native::body::excerpt;
use crate::service::api::native::protobuf::{no_stream, read_request};
use crate::service::api::native::request::GenerateRequest;
use crate::service::api::native::selection::Selection;
use crate::service::call::{Admitted, Call};
use crate::service::representation::Representation;
use crate::service::response::coding::message_bounds;

/// The name by which a request asks for the loaded model, whichever it is.
const MODEL_ALIAS: &str = "default";

impl Service {
    /// Turns a complete request into a job, or answers why not.
    pub(in crate::service) fn generate(
        &mut self,
        admitted: Admitted,
        request: &Request<'_>,
        body: &[u8],
        key: JobKey,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Option<Box<Exchange>> {
        let Admitted {
            mut call, permit, ..
        } = admitted;
        match self.submit(&mut call, permit, request, body, key, now) {
            Ok(work) => Some(Box::new(Exchange::Generation(Running { call, work }))),
            Err(error) => {
                self.fail(&call, &error, None, now, reply);
                None
            }
        }
    }

    fn submit(
        &mut self,
        call: &mut Call,
        permit: Option<Permit>,
        request: &Request<'_>,
        body: &[u8],
        key: JobKey,
        now: Moment,
    ) -> Result<Work, ApiError> {
        if self.is_draining {
            return Err(refusal(Refused::Draining));
        }
        let asked = self.read_generation(call, body)?;
        let selection = Selection::parse(request.query_value("fields"))?;
        self.check_model(asked.model.as_deref())?;
        let language = asked.language.map(|language| language.name);
        let delivery = if wants_stream(&asked, call)? {
            Delivery::Stream(Box::new(Stream::new(language, now)))
        } else {
            Delivery::Whole
        };
        let credit = match &delivery {
            Delivery::Whole => 0,
            Delivery::Stream(_) => limits::CREDIT_EVENTS,
        };
        // While the model is not known the engine refuses the job, so its defaults do not matter.
        let defaults = self.model().map(|model| model.defaults).unwrap_or_default();
        let (sampling, max_tokens) = asked.effective(defaults);
        let reserved = self.reserve(call, &asked, max_tokens, now)?;
        let ticket = Arc::new(match permit {
            Some(permit) => Ticket::with_permit(credit, permit),
            None => Ticket::new(credit),
        });
        let deadline = call.started + asked.timeout;
        let tenant = call
            .caller
            .as_ref()
            .map_or(0, |caller| caller.account.tenant);
        let job = Job {
            key,
            tenant,
            prompt: Prompt::Code {
                language,
                prompt: asked.prompt,
                context: asked.context,
            },
            sampling,
            max_tokens,
            stop: asked.stop,
            deadline,
            submitted: now,
            ticket: Arc::clone(&ticket),
        };
        if let Err(refused) = self.parts.engine.submit(job) {
            if let Some(reserved) = &reserved {
                reserved.settle(call, 0, now);
            }
            return Err(refusal(refused));
        }
        Ok(Work {
            ticket,
            delivery,
            text: String::new(),
            language,
            selection,
            reserved,
            submitted: now,
            deadline: deadline + limits::ENGINE_GRACE,
            time_to_first_token: None,
        })
    }

    /// Reads the body in the form in which it came.
    fn read_generation(&self, call: &Call, body: &[u8]) -> Result<GenerateRequest, ApiError> {
        let limits = &self.parts.config.limits;
        match (call.representation, call.media.sent) {
            (Representation::Grpc(terms), _) => {
                read_request(&self.only_message(call, body)?, terms.timeout, limits)
            }
            (_, ContentType::Known(MediaType::Protobuf)) => read_request(body, None, limits),
            _ => GenerateRequest::parse(body, limits),
        }
    }

    /// The message of a method that takes one.
    pub(in crate::service) fn only_message<'b>(
        &self,
        call: &Call,
        body: &'b [u8],
    ) -> Result<Cow<'b, [u8]>, ApiError> {
        let encoding = match call.representation {
            Representation::Grpc(terms) => terms.encoding,
            Representation::Json | Representation::Protobuf => Encoding::Identity,
        };
        let bounds = message_bounds(&self.parts.config, call.row);
        self.buffer.coder.only_message(body, encoding, bounds)
    }

    /// Refuses a model that is not the loaded one.
    fn check_model(&mut self, name: Option<&str>) -> Result<(), ApiError> {
        // While it is not known yet, the engine itself refuses the job.
        let Some(model) = self.model() else {
            return Ok(());
        };
        match name {
            None | Some(MODEL_ALIAS) => Ok(()),
            Some(name) if name == model.id => Ok(()),
            Some(name) => {
                let (name, id) = (excerpt(name), &model.id);
                let message = format!("the model `{name}` is not loaded; `{id}` is");
                Err(ApiError::new(ErrorCode::ModelNotFound, message).with_param("model"))
            }
        }
    }

    /// Takes what the answer may cost out of the key's tokens a minute.
    fn reserve(
        &self,
        call: &mut Call,
        asked: &GenerateRequest,
        max_tokens: u32,
        now: Moment,
    ) -> Result<Option<Reserved>, ApiError> {
        let Some(caller) = &call.caller else {
            return Ok(None);
        };
        let rate = self.token_rate(&caller.record);
        if !rate.is_bounded() {
            return Ok(None);
        }
        let files = asked.context.iter().map(|file| file.text.len());
        let bytes = asked.prompt.len() + files.sum::<usize>();
        let prompt_tokens = (bytes / engine_limits::BYTES_PER_TOKEN) as u32;
        let tokens = prompt_tokens.saturating_add(max_tokens);
        match caller.account.tokens.take(rate, tokens, now) {
            Ok(level) => {
                call.tokens = Some(level);
                Ok(Some(Reserved { rate, tokens }))
            }
            Err(exceeded) => {
                call.tokens = Some(exceeded.level);
                let message = format!(
                    "this may cost {tokens} tokens, and of {} a minute {} are left; \
                     wait, or lower `max_tokens`",
                    rate.per_minute, exceeded.level.remaining
                );
                Err(ApiError::new(ErrorCode::TokenBudgetExceeded, message)
                    .with_retry_after(exceeded.retry_after))
            }
        }
    }
}

/// A gRPC method's name decides. Else the body's `stream` does; where it says nothing, `Accept`.
/// Clients of the OpenAI API say `stream: true` beside `Accept: application/json`, so the two
/// cannot be made to agree.
fn wants_stream(asked: &GenerateRequest, call: &Call) -> Result<bool, ApiError> {
    match (call.representation, asked.stream) {
        (Representation::Grpc(_), _) => Ok(call.route() == Route::RpcGenerateStream),
        (Representation::Protobuf, Some(true)) => Err(no_stream()),
        (_, Some(stream)) => Ok(stream),
        (_, None) => Ok(call.media.accepted == Some(MediaType::EventStream)),
    }
}

/// The engine's refusal in the catalogue's words.
fn refusal(refused: Refused) -> ApiError {
    let error = |code, message: &str| ApiError::new(code, message);
    match refused {
        Refused::QueueFull { retry_after } => {
            let message = "the engine's queue is full; wait for `Retry-After`";
            error(ErrorCode::QueueFull, message).with_retry_after(retry_after)
        }
        Refused::DeadlineUnmeetable { estimated } => {
            let estimated_ms = milliseconds_up(estimated);
            let message = format!(
                "the answer cannot begin within `timeout`: by the engine's measured speed it \
                 would take {estimated_ms} ms"
            );
            error(ErrorCode::DeadlineUnmeetable, &message).with_retry_after(estimated)
        }
        Refused::Loading => {
            let message = "the model is being loaded; `/readyz` tells when it is there";
            error(ErrorCode::ModelLoading, message).with_retry_after(limits::LOADING_RETRY_AFTER)
        }
        Refused::Unavailable(why) => {
            let message = format!("the engine is not available: {why}");
            error(ErrorCode::EngineFailed, &message).with_retry_after(limits::BUSY_RETRY_AFTER)
        }
        Refused::Draining => {
            let message = "the daemon is about to stop; send the request elsewhere";
            error(ErrorCode::Draining, message).with_retry_after(limits::BUSY_RETRY_AFTER)
        }
    }
}
