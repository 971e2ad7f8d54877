//! From a claimed job to a job of the engine.
//!
//! A job may be hours older than its run: the key may have been revoked since, and another model
//! loaded. So everything that a request's admission checks is checked again here.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::core::Moment;
use crate::core::bucket::Rate;
use crate::engine::language::language;
use crate::engine::{
    CacheMode, Class, ContextFile, GenerationId, Job, ModelInfo, Prompt, Refused, Sampling,
};
use crate::error::ErrorCode;
use crate::jobs::{JobRecord, JobRequest};
use crate::keys::{Holder, KeyRing, Scopes, Standing};
use crate::leases::{Draw, Leases, Unit};
use crate::limits::engine as engine_limits;
use crate::limits::jobs as limits;
use crate::limits::service as service_limits;
use crate::offload::Ticket;

use super::attempt::{Charge, failure};
use super::changes::Next;
use super::journal::Journal;
use super::recording::Recording;

/// The inputs of a start.
pub struct Terms<'a> {
    pub config: &'a Config,
    pub keys: &'a KeyRing,
    /// The count of tokens over all daemons.
    pub leases: &'a Leases,
    pub model: Option<&'a ModelInfo>,
    pub now: Moment,
    /// The wall clock, in milliseconds since 1970.
    pub now_ms: u64,
}

/// A job for the engine, and the terms on which it runs.
pub struct Ready {
    pub job: Job,
    pub language: Option<&'static str>,
    pub charge: Option<Charge>,
    pub recording: Option<Recording>,
}

/// Makes a job for the engine. An error is the end of the attempt.
pub fn prepare(
    record: &JobRecord,
    serial: u32,
    id: GenerationId,
    terms: &Terms<'_>,
) -> Result<Ready, Next> {
    let holder = holder(record, terms)?;
    let request = JobRequest::parse(&record.request);
    let request = request.ok_or_else(|| {
        failure(
            ErrorCode::Internal,
            "the stored request cannot be read; submit it again",
        )
    })?;
    check_model(&request, terms.model)?;
    let defaults = terms.model.map(|model| model.defaults).unwrap_or_default();
    let max_tokens = request.max_tokens.unwrap_or(defaults.max_tokens);
    let repeat_penalty = request.repeat_penalty.unwrap_or(defaults.repeat_penalty);
    let language = request.language.as_deref().and_then(language);
    let language = language.map(|language| language.name);
    let sampling = sampling(&request, repeat_penalty);
    let timeout = Duration::from_millis(request.timeout_ms);
    let prompt = prompt_of(request.prompt, language, request.context);
    let charge = take_tokens(holder, prompt.bytes(), max_tokens, terms)?;
    let job = Job {
        key: Journal::key(serial),
        id,
        cache: cache_mode(&request.cache),
        tenant: holder.map_or(0, |holder| holder.account.tenant),
        class: match request.is_live {
            true => Class::Live,
            false => Class::Background,
        },
        weight: holder.map_or(1, |holder| holder.record.weight),
        prompt,
        sampling,
        max_tokens,
        stop: request.stop,
        deadline: terms.now + timeout,
        submitted: terms.now,
        ticket: Arc::new(Ticket::new(service_limits::CREDIT_EVENTS)),
    };
    let model = terms.model.map(|model| &*model.id);
    Ok(Ready {
        recording: Recording::begin(&terms.config.store, record, &job, holder, model),
        job,
        language,
        charge,
    })
}

/// Returns the holder of the job's key. `None`: it was accepted while no key was required.
///
/// Another daemon may have accepted a job of a key that was just created, of which this one has not
/// heard yet. So a young job waits for its key.
fn holder<'a>(record: &JobRecord, terms: &Terms<'a>) -> Result<Option<&'a Arc<Holder>>, Next> {
    if record.key_id.is_empty() {
        return match terms.config.auth.enabled {
            true => {
                let message = "the job was accepted without a key, and a key is required now";
                Err(failure(ErrorCode::MissingCredentials, message))
            }
            false => Ok(None),
        };
    }
    let holder = terms.keys.find_named(&record.key_id);
    let holder = holder.filter(|holder| holder.record.id == record.key_id);
    let refused = |code, why: &str| Err(failure(code, format!("the job's key {why}")));
    let Some(holder) = holder else {
        let age = Duration::from_millis(terms.now_ms.saturating_sub(record.created_at));
        if age < limits::KEY_NEWS_MAX {
            let wait = limits::BACKOFF_MIN.as_millis() as u64;
            let postponed = Some(terms.now_ms.saturating_add(wait));
            return Err(Next::Wait { postponed });
        }
        return refused(ErrorCode::InvalidKey, "does not exist any more");
    };
    match holder.record.standing(terms.now_ms / 1_000) {
        Standing::Revoked => refused(ErrorCode::InvalidKey, "was revoked"),
        Standing::Expired => refused(ErrorCode::ExpiredKey, "has expired"),
        Standing::Valid if !holder.record.scopes.contains(Scopes::GENERATE) => refused(
            ErrorCode::InsufficientScope,
            "has lost the scope `generate`",
        ),
        Standing::Valid => Ok(Some(holder)),
    }
}

fn check_model(request: &JobRequest, model: Option<&ModelInfo>) -> Result<(), Next> {
    match (&request.model, model) {
        (Some(wanted), Some(model)) if **wanted != *model.id => {
            let message = format!(
                "the model `{wanted}` is not loaded any more; use `{}`",
                model.id
            );
            Err(failure(ErrorCode::ModelNotFound, message))
        }
        _ => Ok(()),
    }
}

fn sampling(request: &JobRequest, repeat_penalty: f32) -> Sampling {
    Sampling {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        seed: Some(request.seed),
        frequency_penalty: request.frequency_penalty,
        presence_penalty: request.presence_penalty,
        repeat_penalty,
    }
}

fn prompt_of(
    prompt: String,
    language: Option<&'static str>,
    context: Vec<crate::jobs::File>,
) -> Prompt {
    let context = context.into_iter().map(|file| ContextFile {
        path: file.path,
        text: file.text,
    });
    Prompt::Code {
        language,
        prompt,
        context: context.collect(),
    }
}

/// A word of a later version means the default.
fn cache_mode(word: &str) -> CacheMode {
    match word {
        "refresh" => CacheMode::Refresh,
        "bypass" => CacheMode::Bypass,
        _ => CacheMode::Use,
    }
}

/// Takes what the job may cost from its key's tokens per minute. If there are too few, the jobs of
/// the key wait until there are enough.
fn take_tokens(
    holder: Option<&Arc<Holder>>,
    prompt_bytes: usize,
    max_tokens: u32,
    terms: &Terms<'_>,
) -> Result<Option<Charge>, Next> {
    let rates = &terms.config.rate_limit;
    let Some(holder) = holder.filter(|_| rates.enabled) else {
        return Ok(None);
    };
    let own = holder.record.tokens_per_minute;
    let per_minute = own.unwrap_or(rates.tokens_per_minute);
    let rate = Rate::new(per_minute, per_minute);
    if !rate.is_bounded() {
        return Ok(None);
    }
    let prompt_tokens = (prompt_bytes / engine_limits::BYTES_PER_TOKEN) as u32;
    let tokens = prompt_tokens.saturating_add(max_tokens);
    let draw = Draw {
        unit: Unit::Tokens,
        rate,
        units: tokens,
        // A job that was refused until the common count replies would cost an attempt. No more
        // reservations of this daemon are unconfirmed than attempts run here.
        percent: 100,
    };
    match terms.leases.reserve(holder, draw, terms.now) {
        Ok((_, reservation)) => Ok(Some(Charge {
            holder: Arc::clone(holder),
            reservation,
        })),
        Err(exceeded) => {
            let wait_ms = exceeded.retry_after.as_millis() as u64;
            let postponed = Some(terms.now_ms.saturating_add(wait_ms).saturating_add(1));
            Err(Next::Wait { postponed })
        }
    }
}

/// Returns the end of an attempt that the engine has refused, and whether it would refuse every
/// other job as well. A refusal that depends on the job or its key puts off that key's jobs alone.
pub fn refused(refused: Refused, now_ms: u64) -> (Next, bool) {
    let later = |wait: Duration| {
        let wait = wait.max(limits::BACKOFF_MIN).as_millis() as u64;
        Next::Wait {
            postponed: Some(now_ms.saturating_add(wait)),
        }
    };
    match refused {
        Refused::TooLong { context_length } => {
            let message = format!(
                "the prompt is too long for the model's context of {context_length} tokens"
            );
            (failure(ErrorCode::ContextLengthExceeded, message), false)
        }
        Refused::QueueFull { retry_after } => (later(retry_after), false),
        Refused::DeadlineUnmeetable { estimated } => (later(estimated), false),
        Refused::Loading | Refused::Unavailable(_) | Refused::Draining => {
            (Next::Wait { postponed: None }, true)
        }
    }
}
