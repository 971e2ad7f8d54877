//! The record of one generation, from its job's admission to its end.
//!
//! Owns the choice of what is recorded. Must never wait: a complete record goes into a bounded
//! channel, or is dropped and counted there.
//!
//! A result that the cache has served is not a generation, at whichever level it was found: its
//! response has the id of the generation that computed it, whose record is there. So it leaves
//! none, and counts as a hit in the usage of its key.
//!
//! Invariant: an admitted job's record is sent exactly once, with the outcome that its client got,
//! or it counts as a hit exactly once.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::core::Moment;
use crate::engine::{Done, Failed, GenerationId, Prompt, Served, Timings, Usage};
use crate::error::ErrorCode;
use crate::service::call::Call;
use crate::service::desk::Desk;
use crate::service::dialect::Asked;
use crate::store::interface::generations::{Content, GenerationRecord, Status};
use crate::telemetry::access::Figures;

/// The record of a generation that has not ended.
#[derive(Debug)]
pub struct Recording {
    /// `None`: records are off, or it has been sent.
    record: Option<Box<GenerationRecord>>,
}

impl Recording {
    /// Begins the record of a request that is about to become a job.
    pub fn begin(desk: &Desk, call: &Call, asked: &Asked, id: GenerationId) -> Recording {
        let config = &desk.parts.config.store;
        if !config.records {
            return Recording { record: None };
        }
        let caller = call.caller.as_ref();
        let content = config.content.then(|| Content {
            prompt: asked.prompt.text(),
            text: String::new(),
        });
        let record = GenerationRecord {
            id,
            key_id: caller.map_or_else(Arc::default, |caller| Arc::clone(&caller.account.id)),
            status: Status::Abandoned,
            model: desk.model.as_ref().map(|model| Arc::clone(&model.id)),
            language: match &asked.prompt {
                Prompt::Code { language, .. } => language.map(Cow::Borrowed),
                Prompt::Chat(_) | Prompt::Raw(_) => None,
            },
            finish_reason: None,
            error: None,
            cached: Cow::Borrowed(Served::default().verdict.as_str()),
            request_id: call.request_id,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            queue: Default::default(),
            prefill: Default::default(),
            decode: Default::default(),
            latency: Default::default(),
            digest: asked.digest,
            content,
        };
        // Allocates per request: the record, whose pointer moves from here to the store's thread.
        Recording {
            record: Some(Box::new(record)),
        }
    }

    /// Sends the record of a generation that is complete, or counts a hit. `before`: the text that
    /// came before the last event.
    pub fn done(&mut self, desk: &Desk, call: &Call, done: &Done, before: &str, now: Moment) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        if done.served.verdict.is_cached() {
            return desk.parts.requests.hits().count(call.caller.as_ref());
        }
        record.status = Status::Done;
        record.finish_reason = Some(Cow::Borrowed(done.finish_reason.as_str()));
        fill(&mut record, &done.usage, &done.timings, &done.served);
        send(desk, call, record, [before, &done.text], now);
    }

    /// Sends the record of a generation that failed.
    pub fn failed(
        &mut self,
        desk: &Desk,
        call: &Call,
        (failed, code): (&Failed, ErrorCode),
        before: &str,
        now: Moment,
    ) {
        let Some(mut record) = self.record.take() else {
            return;
        };
        record.status = Status::Failed;
        record.error = Some(Cow::Borrowed(code.as_str()));
        let (usage, timings) = (&failed.usage, &failed.timings);
        fill(&mut record, usage, timings, &Served::default());
        send(desk, call, record, [before, &failed.text], now);
    }

    /// Sends the record of a generation whose client left, or counts a hit. Its cost is not known.
    pub fn abandoned(
        &mut self,
        desk: &Desk,
        call: &Call,
        served: &Served,
        text: &str,
        now: Moment,
    ) {
        let Some(record) = self.record.take() else {
            return;
        };
        match served.verdict.is_cached() {
            true => desk.parts.requests.hits().count(call.caller.as_ref()),
            false => send(desk, call, record, [text, ""], now),
        }
    }
}

/// Counts a request whose response was there before it became a job.
pub fn count_hit(desk: &Desk, call: &Call) {
    if desk.parts.config.store.records {
        desk.parts.requests.hits().count(call.caller.as_ref());
    }
}

fn fill(record: &mut GenerationRecord, usage: &Usage, timings: &Timings, served: &Served) {
    record.cached = Cow::Borrowed(served.verdict.as_str());
    record.prompt_tokens = usage.prompt_tokens;
    record.cached_tokens = usage.cached_tokens;
    record.completion_tokens = usage.completion_tokens;
    (record.queue, record.prefill, record.decode) =
        (timings.queue, timings.prefill, timings.decode);
}

fn send(desk: &Desk, call: &Call, mut record: Box<GenerationRecord>, text: [&str; 2], now: Moment) {
    record.latency = now - call.started;
    if let Some(content) = &mut record.content {
        content.text = text.concat();
    }
    desk.parts.requests.records().push(record);
}

/// Returns the figures of a generation for the access line.
pub fn figures(usage: &Usage, timings: &Timings, first_token: Option<Duration>) -> Figures {
    Figures {
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        completion_tokens: usage.completion_tokens,
        queue: timings.queue,
        time_to_first_token: first_token,
    }
}
