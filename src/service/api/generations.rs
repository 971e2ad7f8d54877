//! `GET /api/v1/generations`: the records of a key's past generations, page by page.
//!
//! A page is found by the id of the last record before it, so it costs the same wherever it is, and
//! records that come meanwhile shift nothing. Each query is bound to the calling key: whatever
//! cursor a client sends, it can only choose among its own records.
//!
//! With `store.content` a record may hold a megabyte of text. So a page ends early if its texts are
//! long, and the store's thread writes it.

use serde::Serialize;

use crate::core::id::GenerationId;
use crate::error::ApiError;
use crate::http::Request;
use crate::limits::store as limits;
use crate::service::call::Call;
use crate::service::excerpt::excerpt;
use crate::service::query::{self, Parameter};
use crate::service::question::Question;
use crate::service::response::buffer::ResponseBuffer;
use crate::service::response::json::write_json;
use crate::store::interface::generations::{GenerationRecord, Query, Status};
use crate::store::{Store, StoreError};

/// A page that a client asks for, and then that page.
#[derive(Debug)]
pub struct Page {
    key_id: String,
    status: Option<Status>,
    since: u64,
    before: Option<GenerationId>,
    limit: u32,
    /// The response, once the store was asked.
    body: Vec<u8>,
}

impl Page {
    /// Reads the request's query.
    pub fn of(call: &Call, request: &Request<'_>) -> Result<Page, ApiError> {
        let value = |parameter| query::value(request, parameter);
        let (default, most) = (limits::PAGE_RECORDS_DEFAULT, limits::PAGE_RECORDS_MAX);
        let caller = call.caller.as_ref();
        Ok(Page {
            key_id: caller.map_or(String::new(), |caller| caller.record.id.clone()),
            status: value(Parameter::Status).map(status).transpose()?,
            since: value(Parameter::Since).map_or(Ok(0), since)?,
            before: value(Parameter::Cursor).map(cursor).transpose()?,
            limit: query::page_limit(request, default, most)?,
            body: Vec::new(),
        })
    }
}

impl Question for Page {
    fn ask(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        let found = store.find_generations(&Query {
            key_id: &self.key_id,
            status: self.status,
            since: self.since,
            before: self.before,
            // One more than the page has shows whether there is one.
            limit: self.limit + 1,
            bytes_max: limits::PAGE_TEXT_BYTES_MAX,
        })?;
        let bytes: usize = found.iter().map(GenerationRecord::bytes).sum();
        let has_more = found.len() > self.limit as usize || bytes >= limits::PAGE_TEXT_BYTES_MAX;
        let most = match has_more {
            true => (found.len() - 1).max(1),
            false => found.len(),
        };
        let page = found.iter().take(most);
        let list = List {
            object: "list",
            next_cursor: match has_more {
                true => page.clone().next_back().map(|record| record.id.to_string()),
                false => None,
            },
            data: page.map(Entry::of).collect(),
        };
        self.body.clear();
        write_json(&mut self.body, &list);
        Ok(())
    }

    fn write(self: Box<Self>, buffer: &mut ResponseBuffer) -> Result<u16, ApiError> {
        buffer.body = self.body;
        Ok(200)
    }
}

fn status(word: &str) -> Result<Status, ApiError> {
    Status::parse(word).ok_or_else(|| {
        let word = excerpt(word);
        let message = format!("unknown status `{word}`; expected done, failed, abandoned");
        query::invalid(Parameter::Status, message)
    })
}

fn since(digits: &str) -> Result<u64, ApiError> {
    query::number(digits).ok_or_else(|| {
        let message = "`since` must be a time in milliseconds since 1970";
        query::invalid(Parameter::Since, message)
    })
}

fn cursor(text: &str) -> Result<GenerationId, ApiError> {
    GenerationId::parse(text).ok_or_else(query::no_cursor)
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry<'a>>,
    next_cursor: Option<String>,
}

#[derive(Serialize)]
struct Entry<'a> {
    id: String,
    created_at: u64,
    status: &'static str,
    model: Option<&'a str>,
    language: Option<&'a str>,
    finish_reason: Option<&'a str>,
    error: Option<&'a str>,
    cache: &'a str,
    request_id: &'a str,
    usage: Tokens,
    queue_ms: u64,
    prefill_ms: u64,
    decode_ms: u64,
    latency_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

#[derive(Serialize)]
struct Tokens {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    cached_tokens: u32,
}

impl Entry<'_> {
    fn of(record: &GenerationRecord) -> Entry<'_> {
        let content = record.content.as_ref();
        Entry {
            id: record.id.to_string(),
            created_at: record.id.unix_millis().as_u64(),
            status: record.status.as_str(),
            model: record.model.as_deref(),
            language: record.language.as_deref(),
            finish_reason: record.finish_reason.as_deref(),
            error: record.error.as_deref(),
            cache: &record.cached,
            request_id: record.request_id.as_str(),
            usage: Tokens {
                prompt_tokens: record.prompt_tokens,
                completion_tokens: record.completion_tokens,
                total_tokens: record
                    .prompt_tokens
                    .saturating_add(record.completion_tokens),
                cached_tokens: record.cached_tokens,
            },
            queue_ms: record.queue.as_millis() as u64,
            prefill_ms: record.prefill.as_millis() as u64,
            decode_ms: record.decode.as_millis() as u64,
            latency_ms: record.latency.as_millis() as u64,
            prompt: content.map(|content| content.prompt.as_str()),
            text: content.map(|content| content.text.as_str()),
        }
    }
}
