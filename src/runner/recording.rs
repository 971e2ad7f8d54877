//! The record of the attempt that ends a job, for lists of generations and the usage of keys.
//!
//! It begins when the engine gets the job, learns how that ended, and is sent once the end is
//! saved. So an attempt that runs again, or is fenced, leaves none, and a job leaves one at most.
//! As for requests, a result that the cache has served counts as a hit and has no record.
//!
//! Must never wait, like [`crate::store::records::Records`].

use std::borrow::Cow;
use std::sync::Arc;

use crate::config;
use crate::core::Moment;
use crate::engine::{Done, Failed, Job, Prompt, Served, Timings, Usage};
use crate::error::ErrorCode;
use crate::jobs::JobRecord;
use crate::keys::Holder;
use crate::store::Requests;
use crate::store::interface::generations::{Content, GenerationRecord, Status};
use crate::telemetry::request_id::RequestId;

/// See the file's head.
pub struct Recording {
    record: Box<GenerationRecord>,
    /// `None`: the job has no key.
    holder: Option<Arc<Holder>>,
    begun: Moment,
    is_hit: bool,
}

impl Recording {
    /// Begins the record of a job that the engine is about to get. `None`: records are off.
    pub fn begin(
        config: &config::Store,
        record: &JobRecord,
        job: &Job,
        holder: Option<&Arc<Holder>>,
        model: Option<&str>,
    ) -> Option<Recording> {
        if !config.records {
            return None;
        }
        let content = config.content.then(|| Content {
            prompt: job.prompt.text(),
            text: String::new(),
        });
        let record = GenerationRecord {
            id: job.id,
            key_id: record.key_id.as_str().into(),
            status: Status::Abandoned,
            model: model.map(Arc::from),
            language: match &job.prompt {
                Prompt::Code { language, .. } => language.map(Cow::Borrowed),
                Prompt::Chat(_) | Prompt::Raw(_) => None,
            },
            finish_reason: None,
            error: None,
            cached: Cow::Borrowed(Served::default().verdict.as_str()),
            // Its request has ended long ago; the job is what a client knows.
            request_id: RequestId::from_client(record.id.to_string().as_bytes())?,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            queue: Default::default(),
            prefill: Default::default(),
            decode: Default::default(),
            latency: Default::default(),
            digest: job.prompt.digest(),
            content,
        };
        Some(Recording {
            record: Box::new(record),
            holder: holder.cloned(),
            begun: job.submitted,
            is_hit: false,
        })
    }

    /// Handles the result of the engine.
    pub fn handle_done(&mut self, done: &Done, text: &str, now: Moment) {
        self.is_hit = done.served.verdict.is_cached();
        let record = &mut self.record;
        record.status = Status::Done;
        record.finish_reason = Some(Cow::Borrowed(done.finish_reason.as_str()));
        record.cached = Cow::Borrowed(done.served.verdict.as_str());
        self.fill(&done.usage, &done.timings, text, now);
    }

    /// Handles a failure that ends the job.
    pub fn handle_failed(&mut self, failed: &Failed, code: ErrorCode, text: &str, now: Moment) {
        self.record.status = Status::Failed;
        self.record.error = Some(Cow::Borrowed(code.as_str()));
        self.fill(&failed.usage, &failed.timings, text, now);
    }

    /// Sends the record, or counts a hit: the end of the job is saved, or its client has cancelled
    /// it.
    pub fn send(self, requests: &Requests) {
        match self.is_hit {
            true => requests.hits().count(self.holder.as_ref()),
            false => requests.records().push(self.record),
        }
    }

    fn fill(&mut self, usage: &Usage, timings: &Timings, text: &str, now: Moment) {
        let record = &mut self.record;
        record.prompt_tokens = usage.prompt_tokens;
        record.cached_tokens = usage.cached_tokens;
        record.completion_tokens = usage.completion_tokens;
        (record.queue, record.prefill, record.decode) =
            (timings.queue, timings.prefill, timings.decode);
        record.latency = now.since(self.begun);
        if let Some(content) = &mut record.content {
            text.clone_into(&mut content.text);
        }
    }
}
