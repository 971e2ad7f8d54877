//! The Protobuf form of a generation: `GenerateRequest` in, `GenerateResponse` and `GenerateChunk`
//! out. gRPC and REST share it.
//!
//! Bounds and messages are those of the JSON form, in [`super::bounds`]. Where a field's name
//! differs, the error has the schema's.

use std::time::Duration;

use crate::config::Limits;
use crate::engine::{CacheMode, ContextFile, FinishReason};
use crate::error::ApiError;
use crate::grpc::messages::{autoglm, decode};
use crate::limits::engine as engine_limits;
use crate::limits::http::URL_BYTES_MAX;
use crate::limits::service as limits;

use super::bounds::{
    Interval, MIN_P, PENALTY, REPEAT_PENALTY, TEMPERATURE, TOP_P, check_text, checked_timeout,
    empty_stop, known_seed, language_of, no_prompt, out_of_interval, out_of_range, too_many, wrong,
};
use super::request::GenerateRequest;
use super::selection::{GenerationObject, Member};

/// Reads a request. `timeout` is from its head (`grpc-timeout`); of two the smaller counts.
pub fn read_request(
    bytes: &[u8],
    timeout: Option<Duration>,
    limits: &Limits,
) -> Result<GenerateRequest, ApiError> {
    let asked: autoglm::GenerateRequest = decode(bytes, "GenerateRequest")?;
    let mut request = GenerateRequest::new(limits);
    if asked.prompt.is_empty() {
        return Err(no_prompt());
    }
    check_text("prompt", &asked.prompt, 1, limits::PROMPT_BYTES_MAX)?;
    request.timeout = timeout_of(asked.timeout_ms, timeout, limits)?;
    if !asked.language.is_empty() {
        check_text("language", &asked.language, 1, limits::NAME_BYTES_MAX)?;
        request.language = Some(language_of(&asked.language)?);
    }
    if !asked.model.is_empty() {
        check_text("model", &asked.model, 1, limits::NAME_BYTES_MAX)?;
    }
    request.cache = match autoglm::CacheMode::try_from(asked.cache) {
        Ok(autoglm::CacheMode::Use) => CacheMode::Use,
        Ok(autoglm::CacheMode::Refresh) => CacheMode::Refresh,
        Ok(autoglm::CacheMode::Bypass) => CacheMode::Bypass,
        Err(_) => return Err(unknown_cache_mode(asked.cache)),
    };
    if !asked.callback_url.is_empty() {
        check_text("callback_url", &asked.callback_url, 1, URL_BYTES_MAX)?;
    }
    set_sampling(&mut request, &asked)?;
    request.stop = stop(asked.stop)?;
    request.context = context(asked.context)?;
    request.prompt = asked.prompt;
    request.model = Some(asked.model).filter(|model| !model.is_empty());
    request.callback_url = Some(asked.callback_url).filter(|url| !url.is_empty());
    Ok(request)
}

/// Returns the effective timeout. A deadline in the head may be as large as the client likes, and
/// the daemon's own bound comes first. A timeout in the body is refused if it is too large.
fn timeout_of(
    milliseconds: u32,
    of_head: Option<Duration>,
    limits: &Limits,
) -> Result<Duration, ApiError> {
    let of_head = of_head.map(|timeout| timeout.min(limits.max_request_timeout));
    if milliseconds == 0 {
        return Ok(of_head.unwrap_or(limits.default_request_timeout));
    }
    let given = || milliseconds.to_string();
    let of_body = checked_timeout("timeout_ms", Some(milliseconds), limits, given)?;
    Ok(of_head.map_or(of_body, |timeout| timeout.min(of_body)))
}

fn set_sampling(
    request: &mut GenerateRequest,
    asked: &autoglm::GenerateRequest,
) -> Result<(), ApiError> {
    let sampling = &mut request.sampling;
    let temperature = Some(asked.temperature);
    for (field, given, interval, target) in [
        (
            "temperature",
            temperature,
            &TEMPERATURE,
            &mut sampling.temperature,
        ),
        ("top_p", asked.top_p, &TOP_P, &mut sampling.top_p),
        ("min_p", asked.min_p, &MIN_P, &mut sampling.min_p),
        (
            "frequency_penalty",
            asked.frequency_penalty,
            &PENALTY,
            &mut sampling.frequency_penalty,
        ),
        (
            "presence_penalty",
            asked.presence_penalty,
            &PENALTY,
            &mut sampling.presence_penalty,
        ),
    ] {
        if let Some(number) = given {
            *target = number_in(field, number, interval)?;
        }
    }
    if let Some(number) = asked.repeat_penalty {
        request.repeat_penalty = Some(number_in("repeat_penalty", number, &REPEAT_PENALTY)?);
    }
    sampling.top_k = asked.top_k.unwrap_or(sampling.top_k);
    sampling.seed = asked.seed.and_then(known_seed);
    if let Some(max_tokens) = asked.max_tokens {
        let (low, high) = (1, engine_limits::GENERATED_TOKENS_MAX);
        if !(low..=high).contains(&max_tokens) {
            return Err(out_of_range(
                "max_tokens",
                low,
                high,
                &max_tokens.to_string(),
            ));
        }
        request.max_tokens = Some(max_tokens);
    }
    Ok(())
}

/// No interval contains NaN.
fn number_in(field: &str, number: f32, interval: &Interval) -> Result<f32, ApiError> {
    if interval.contains(number.into()) {
        Ok(number)
    } else {
        Err(out_of_interval(field, interval, &number.to_string()))
    }
}

fn stop(strings: Vec<String>) -> Result<Vec<String>, ApiError> {
    if strings.len() > limits::STOP_STRINGS_MAX {
        return Err(too_many("stop", limits::STOP_STRINGS_MAX));
    }
    for (index, string) in strings.iter().enumerate() {
        let field = format!("stop[{index}]");
        check_text(&field, string, 0, limits::STOP_STRING_BYTES_MAX)?;
        if string.is_empty() {
            return Err(empty_stop(&field));
        }
    }
    Ok(strings)
}

fn context(files: Vec<autoglm::ContextFile>) -> Result<Vec<ContextFile>, ApiError> {
    if files.len() > limits::CONTEXT_FILES_MAX {
        return Err(too_many("context", limits::CONTEXT_FILES_MAX));
    }
    let check = |(index, file): (usize, autoglm::ContextFile)| {
        let field = |name: &str| format!("context[{index}].{name}");
        let most = limits::CONTEXT_PATH_BYTES_MAX;
        check_text(&field("path"), &file.path, 1, most)?;
        check_text(&field("text"), &file.text, 0, limits::PROMPT_BYTES_MAX)?;
        let autoglm::ContextFile { path, text } = file;
        Ok(ContextFile { path, text })
    };
    files.into_iter().enumerate().map(check).collect()
}

fn unknown_cache_mode(given: i32) -> ApiError {
    let problem = format!(
        "must be CACHE_MODE_USE (0), CACHE_MODE_REFRESH (1) or CACHE_MODE_BYPASS (2), not {given}"
    );
    wrong("cache", &problem)
}

/// The error of a JSON body that asks for a stream in Protobuf.
pub fn no_stream() -> ApiError {
    let problem = "is not available in Protobuf; accept text/event-stream, or call GenerateStream";
    wrong("stream", problem)
}

/// Returns a complete generation with its selected members.
pub fn response_of(object: &GenerationObject<'_>) -> autoglm::GenerateResponse {
    let generation = object.generation;
    let chosen = |member| object.selection.contains(member);
    let text = |member, text: &str| {
        if chosen(member) {
            text.to_owned()
        } else {
            String::new()
        }
    };
    let finish_reason = match generation.finish_reason {
        _ if !chosen(Member::FinishReason) => autoglm::FinishReason::Unspecified,
        FinishReason::Stop => autoglm::FinishReason::Stop,
        FinishReason::Length => autoglm::FinishReason::Length,
    };
    let usage = generation.usage;
    let usage = autoglm::Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
        cached_tokens: usage.cached_tokens,
    };
    autoglm::GenerateResponse {
        text: text(Member::Text, generation.text),
        latency: if chosen(Member::LatencyMs) {
            generation.latency.as_secs_f32()
        } else {
            0.0
        },
        code: text(Member::Code, object.code),
        id: text(Member::Id, generation.id),
        language: text(Member::Language, object.language.unwrap_or_default()),
        model: text(Member::Model, generation.model.unwrap_or_default()),
        finish_reason: finish_reason.into(),
        cached: chosen(Member::Cached) && generation.is_cached,
        usage: chosen(Member::Usage).then_some(usage),
    }
}
