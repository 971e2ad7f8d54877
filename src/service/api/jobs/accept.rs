//! `POST /api/v1/jobs`: a request becomes a durable job. So does a generation with
//! `Idempotency-Key`, which then waits for the job's end (`kept.rs`).
//!
//! The response, 202 with `Location`, is sent only after the job is on the disk. Everything that
//! decides the output is fixed here, also the seed.

use std::sync::Arc;

use crate::core::address_policy::AddressPolicy;
use crate::core::buffered::{Claim, Full};
use crate::engine::{CacheMode, Prompt, Refused};
use crate::error::{ApiError, ErrorCode};
use crate::http::Request;
use crate::http::origin::{Host, Origin};
use crate::jobs::{Bounds, File, JobRequest};
use crate::limits::jobs as limits;
use crate::offload::{JobKey, Ticket};
use crate::service::asking::{self, Asking};
use crate::service::call::{Admitted, Call, Incoming, buffers_full};
use crate::service::desk::{Desk, Wire};
use crate::service::dialect::{Asked, Narrator};
use crate::service::generation::failure::refusal;
use crate::service::generation::reading::{Read, read_or_begin};
use crate::service::generation::running::{Running, Stage};
use crate::service::generation::submit::{MODEL_ALIAS, check_model};

use super::kept::{self, Kept, Start};
use super::question::{JobQuestion, Wish};
use super::work::{Accept, Work};

/// A request that was begun.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for one call; boxing would allocate"
)]
pub enum Begun {
    /// A worker reads its body.
    Reading(Running),
    /// It waits for the store.
    Asking(Asking),
    Kept(Box<Kept>),
}

/// Takes a complete request. `None`: the response is complete.
pub fn accept(
    desk: &mut Desk,
    admitted: Admitted,
    incoming: Incoming<'_>,
    wire: &mut Wire<'_>,
) -> Option<Begun> {
    let Admitted {
        mut call,
        permit,
        share,
        ..
    } = admitted;
    let key = incoming.key;
    let read = idempotency_key(incoming.request).and_then(|idempotency_key| {
        call.idempotency_key = idempotency_key;
        read_or_begin(desk, &call, (permit, share), incoming)
    });
    match read {
        Ok(Read::Now(asked, ticket)) => store(desk, call, (key, ticket), asked, wire),
        Ok(Read::Later(reading)) => {
            let stage = Stage::Reading(reading);
            Some(Begun::Reading(Running { call, stage }))
        }
        Err(error) => {
            desk.fail(&call, &error, wire);
            None
        }
    }
}

/// Continues with a request that a worker has read. `None`: the response is complete. The caller
/// drops `running` in any case.
pub fn resume(
    desk: &mut Desk,
    running: &mut Running,
    read: Result<Asked, ApiError>,
    wire: &mut Wire<'_>,
) -> Option<Begun> {
    let rest = Call::unread(running.call.request_id, running.call.peer, wire.now);
    let call = std::mem::replace(&mut running.call, rest);
    let Stage::Reading(reading) = &running.stage else {
        debug_assert!(false, "its body was read before");
        return None;
    };
    match read {
        Ok(asked) => {
            let ticket = Arc::clone(&reading.ticket);
            store(desk, call, (reading.key, ticket), asked, wire)
        }
        Err(error) => {
            desk.fail(&call, &error, wire);
            None
        }
    }
}

/// Sends a job to the store. `None`: the response is complete.
fn store(
    desk: &mut Desk,
    mut call: Call,
    (key, ticket): (JobKey, Arc<Ticket>),
    asked: Asked,
    wire: &mut Wire<'_>,
) -> Option<Begun> {
    let deadline = call.started + asked.timeout;
    match job_of(desk, &mut call, asked) {
        Ok((accepted, narrator)) if call.route().is_generation() => {
            let start = Start {
                key,
                ticket,
                narrator,
                deadline,
            };
            let work = Work::Accept(Box::new(accepted));
            kept::begin(desk, call, start, work, wire).map(|kept| Begun::Kept(Box::new(kept)))
        }
        Ok((accepted, _)) => {
            let wish = Wish::Accept(Box::new(accepted));
            let question = Box::new(JobQuestion::new(desk, &call, wish));
            asking::begin(desk, call, ticket, key, question, wire).map(Begun::Asking)
        }
        Err(error) => {
            desk.fail(&call, &error, wire);
            None
        }
    }
}

fn job_of(
    desk: &mut Desk,
    call: &mut Call,
    mut asked: Asked,
) -> Result<(Accept, Narrator), ApiError> {
    if desk.is_draining {
        return Err(refusal(Refused::Draining));
    }
    let config = &desk.parts.config;
    let jobs = &config.jobs;
    let (enabled, max_wait, ttl) = (jobs.enabled, jobs.max_wait, jobs.idempotency_ttl);
    let bounds = Bounds {
        jobs: jobs.max_queued.into(),
        jobs_of_key: jobs.max_queued_per_key.into(),
        bytes: config.jobs_bytes(),
    };
    if !enabled {
        let message = "this daemon keeps no jobs (`jobs.enabled`), which durable jobs and \
                       `Idempotency-Key` need";
        return Err(ApiError::new(ErrorCode::NotImplemented, message));
    }
    let callback_url = asked.callback_url.take();
    if let Some(url) = &callback_url {
        check_callback(url, &jobs.callback_networks.policy())?;
    }
    check_model(desk.model(), asked.model.as_deref())?;
    let mut memory = desk.parts.buffered.share(Claim::of(call.caller.is_some()));
    let taken = memory.resize(asked.prompt.bytes());
    taken.map_err(|Full| buffers_full())?;
    let now_ms = (desk.parts.wall_clock)().as_u64();
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|_| {
        ApiError::new(
            ErrorCode::Internal,
            "the kernel's random numbers are not available",
        )
    })?;
    // Signed numbers from 0 on: -1 asks for a random seed.
    let drawn = i64::from_le_bytes(random) & i64::MAX;
    let is_live = call.route().is_generation();
    let max_wait = match is_live {
        true => asked.timeout,
        false => max_wait,
    };
    let is_seed_drawn = asked.sampling.seed.is_none();
    let (request, narrator) = request_of(asked, drawn, is_live);
    let accepted = Accept {
        id: desk.new_id(),
        is_seed_drawn,
        request,
        callback_url,
        created_at: now_ms,
        expires_at: now_ms.saturating_add(max_wait.as_millis() as u64),
        bounds,
        idempotency_key: call.idempotency_key.take(),
        idempotency_ms: ttl.as_millis() as u64,
        _memory: memory,
        candidate: None,
    };
    Ok((accepted, narrator))
}

/// Refuses a URL that cannot be called. A name is looked up when it is called, because it may lead
/// elsewhere by then.
fn check_callback(url: &str, policy: &AddressPolicy) -> Result<(), ApiError> {
    let refused = |message| {
        Err(ApiError::new(ErrorCode::InvalidParameter, message).with_param("callback_url"))
    };
    match Origin::parse(url) {
        Err(why) => refused(format!("`callback_url` cannot be used: {why}")),
        Ok((origin, _)) => match origin.host {
            Host::Address(address) if !policy.permits(address) => refused(format!(
                "`callback_url` leads to {address}, which is not public and not in \
                 `jobs.callback_networks`"
            )),
            _ => Ok(()),
        },
    }
}

fn request_of(asked: Asked, drawn_seed: i64, is_live: bool) -> (JobRequest, Narrator) {
    let (language, prompt, context) = match asked.prompt {
        Prompt::Code {
            language,
            prompt,
            context,
        } => (language, prompt, context),
        // The native API asks for programs alone.
        Prompt::Chat(_) => (None, String::new(), Vec::new()),
        Prompt::Raw(prompt) => (None, prompt, Vec::new()),
    };
    let context = context.into_iter().map(|file| File {
        path: file.path,
        text: file.text,
    });
    let sampling = asked.sampling;
    let request = JobRequest {
        prompt,
        language: language.map(str::to_owned),
        context: context.collect(),
        model: asked.model.filter(|model| model != MODEL_ALIAS),
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        seed: sampling.seed.unwrap_or(drawn_seed),
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        repeat_penalty: asked.repeat_penalty,
        max_tokens: asked.max_tokens,
        stop: asked.stop,
        cache: match asked.cache {
            CacheMode::Use => String::new(),
            CacheMode::Refresh => "refresh".to_owned(),
            CacheMode::Bypass => "bypass".to_owned(),
        },
        timeout_ms: asked.timeout.as_millis() as u64,
        is_live,
    };
    (request, asked.narrator)
}

/// Returns whether a request has `Idempotency-Key`, well formed or not: a client that sends one
/// relies on it.
pub fn has_key(request: &Request<'_>) -> bool {
    keys(request).next().is_some()
}

fn keys<'a>(request: &Request<'a>) -> impl Iterator<Item = &'a [u8]> {
    let fields = request.headers.iter();
    let keys = fields.filter(|field| field.name.eq_ignore_ascii_case("idempotency-key"));
    keys.map(|field| field.value)
}

/// Reads `Idempotency-Key`: one, visible ASCII, bounded.
fn idempotency_key(request: &Request<'_>) -> Result<Option<Box<str>>, ApiError> {
    let mut keys = keys(request);
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    let is_visible = key.iter().all(u8::is_ascii_graphic);
    let is_short = (1..=limits::IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len());
    match std::str::from_utf8(key) {
        Ok(key) if is_visible && is_short && keys.next().is_none() => Ok(Some(key.into())),
        _ => {
            let most = limits::IDEMPOTENCY_KEY_BYTES_MAX;
            let message = format!(
                "`Idempotency-Key` must be one field of 1 to {most} visible ASCII characters"
            );
            let error = ApiError::new(ErrorCode::InvalidParameter, message);
            Err(error.with_param("idempotency-key"))
        }
    }
}
