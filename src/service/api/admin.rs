//! The administrators' routes: `/api/v1/admin/cache`.
//!
//! Must never wait: a purge takes effect at once, and a worker frees the memory later.

use serde::Serialize;

use crate::cache::metrics::{Figures, Level, Verdicts};
use crate::engine::Verdict;
use crate::error::ApiError;
use crate::http::{Method, Request};
use crate::keys::secret::is_id;
use crate::limits::cache as limits;
use crate::service::call::Call;
use crate::service::desk::{Desk, Wire};
use crate::service::excerpt::excerpt;
use crate::service::query::{self, Parameter};
use crate::service::response::buffer::JSON;
use crate::service::response::json::write_json;

/// Responds with the state of the cache, or purges it.
pub fn cache(desk: &mut Desk, call: &Call, request: &Request<'_>, wire: &mut Wire<'_>) {
    let result = match call.method {
        Method::Delete => purge(desk, request),
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

fn purge(desk: &Desk, request: &Request<'_>) -> Result<Vec<u8>, ApiError> {
    let key = query::value(request, Parameter::Key)
        .map(checked_key)
        .transpose()?;
    desk.parts.purger.purge(key);
    Ok(written(&PurgeObject {
        object: "cache.purge",
        purged: true,
        key,
    }))
}

/// Forgets the results of keys that are gone.
pub fn forget_gone(desk: &Desk, tenants: &[u64]) {
    let purger = &desk.parts.purger;
    match tenants.len() > limits::FORGOTTEN_KEYS_MAX {
        true => purger.forget(None),
        false => tenants
            .iter()
            .for_each(|&tenant| purger.forget(Some(tenant))),
    }
}

/// Returns the id of the key whose entries are meant. A key that is gone may still have entries, so
/// only the id's form is looked at: a key's name in its place would purge nothing.
fn checked_key(id: &str) -> Result<&str, ApiError> {
    match is_id(id) {
        true => Ok(id),
        false => {
            let message = format!(
                "`{}` is not the id of a key, such as key_5f0c92ab61d7",
                excerpt(id)
            );
            Err(query::invalid(Parameter::Key, message))
        }
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
