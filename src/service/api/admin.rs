//! The administrators' routes: `/api/v1/admin/cache`.
//!
//! Must never wait: a purge takes effect at once, and a worker frees the memory later.

use std::sync::Arc;

use serde::Serialize;

use crate::cache::metrics::{Figures, Level, Verdicts};
use crate::engine::{Engine, Verdict};
use crate::error::{ApiError, ErrorCode};
use crate::http::{Method, Request};
use crate::keys;
use crate::limits::cache as limits;
use crate::offload::Task;
use crate::service::call::Call;
use crate::service::desk::{Desk, Wire};
use crate::service::excerpt::excerpt;
use crate::service::response::buffer::JSON;
use crate::service::response::cached::Responses;
use crate::service::response::json::write_json;

/// Responds with the state of the cache, or purges it.
pub fn cache(desk: &mut Desk, call: &Call, request: &Request<'_>, wire: &mut Wire<'_>) {
    let result = match call.method {
        Method::Delete => purge(desk, call, request.query),
        _ => Ok(show(desk)),
    };
    match result {
        Ok(body) => {
            let buffer = &mut desk.buffer;
            buffer.begin(call);
            buffer.fields.push("cache-control", "no-store");
            buffer.body.extend_from_slice(&body);
            desk.send(call, 200, Some(JSON), wire);
        }
        Err(error) => desk.fail(call, &error, wire),
    }
}

fn show(desk: &Desk) -> Vec<u8> {
    let cache = &desk.parts.config.cache;
    let gauges = desk.parts.engine.gauges();
    desk.cache_series.update_prefixes(&gauges.prefixes);
    let all = [
        (Level::Response, desk.parts.responses.figures()),
        (Level::Generation, gauges.kept.into()),
        (Level::Prefix, gauges.prefixes.into()),
    ];
    written(&CacheObject {
        object: "cache",
        enabled: cache.enabled,
        ttl_ms: cache.ttl.as_millis() as u64,
        levels: all.map(|(level, figures)| level_object(desk, level, &figures)),
    })
}

fn level_object(desk: &Desk, level: Level, figures: &Figures) -> LevelObject {
    let verdicts = Verdicts::of(&desk.cache_series, level);
    LevelObject {
        level: level.as_str(),
        entries: figures.entries,
        bytes: figures.bytes,
        max_bytes: figures.max_bytes,
        evicted: figures.evicted,
        hits: verdicts.total(Verdict::Hit),
        joined: verdicts.total(Verdict::Joined),
        misses: verdicts.total(Verdict::Miss),
        bypassed: verdicts.total(Verdict::Bypass),
    }
}

fn purge(desk: &Desk, call: &Call, query: Option<&str>) -> Result<Vec<u8>, ApiError> {
    let key = key_of(query)?;
    forget(desk, key.map(keys::tenant_of), call.tenant());
    Ok(written(&PurgeObject {
        object: "cache.purge",
        purged: true,
        key,
    }))
}

/// Forgets the results of keys that are gone.
pub fn forget_gone(desk: &Desk, tenants: &[u64]) {
    match tenants.len() > limits::FORGOTTEN_KEYS_MAX {
        true => forget(desk, None, tenants[0]),
        false => tenants
            .iter()
            .for_each(|&tenant| forget(desk, Some(tenant), tenant)),
    }
}

/// Forgets the results of a tenant, or all, on behalf of `payer`.
fn forget(desk: &Desk, tenant: Option<u64>, payer: u64) {
    let responses = &desk.parts.responses;
    let entries = responses.figures().entries;
    responses.purge(tenant);
    desk.parts.engine.forget(tenant);
    let release = Release {
        responses: Arc::clone(responses),
        engine: Arc::clone(&desk.parts.engine),
        tenant,
    };
    // Without a worker the entries stay until others need their room; they are not found any more.
    let work = u32::try_from(entries).unwrap_or(u32::MAX);
    let _ = desk.parts.workers.submit(payer, work, release);
}

/// Returns the key whose entries are meant, from `?key=ID`; `None`: all. A query that was meant to
/// restrict a purge and does not must not purge everything.
fn key_of(query: Option<&str>) -> Result<Option<&str>, ApiError> {
    let Some(query) = query.filter(|query| !query.is_empty()) else {
        return Ok(None);
    };
    let id = query.strip_prefix("key=").filter(|id| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        !id.is_empty() && id.bytes().all(is_plain)
    });
    match id {
        Some(id) => Ok(Some(id)),
        None => {
            let query = excerpt(query);
            let message = format!(
                "unknown query `{query}`; send `?key=ID` with a key's id for its entries, or no \
                 query for all"
            );
            Err(ApiError::new(ErrorCode::InvalidParameter, message).with_param("key"))
        }
    }
}

/// Frees the memory of purged entries.
struct Release {
    responses: Arc<Responses>,
    engine: Arc<dyn Engine>,
    tenant: Option<u64>,
}

impl Task for Release {
    fn is_wanted(&self) -> bool {
        true
    }

    fn run(self: Box<Release>) {
        self.responses.release(self.tenant);
        self.engine.free_forgotten(self.tenant);
    }
}

fn written(value: &impl Serialize) -> Vec<u8> {
    let mut body = Vec::new();
    write_json(&mut body, value);
    body
}

#[derive(Serialize)]
struct CacheObject {
    object: &'static str,
    enabled: bool,
    ttl_ms: u64,
    levels: [LevelObject; Level::ALL.len()],
}

#[derive(Serialize)]
struct LevelObject {
    level: &'static str,
    entries: usize,
    bytes: usize,
    max_bytes: usize,
    evicted: u64,
    hits: u64,
    joined: u64,
    misses: u64,
    bypassed: u64,
}

#[derive(Serialize)]
struct PurgeObject<'a> {
    object: &'static str,
    purged: bool,
    key: Option<&'a str>,
}
