//! A generation beside the cache of finished responses: before its body is read, and after its
//! response was sent.
//!
//! A hit ends the request here. Otherwise [`Keeping`] goes with the request until its response is
//! complete: what the client wishes is known once the body is read, and whether a response may be
//! used again once the engine has reported it.
//!
//! Bodies that ask for `refresh` or `bypass` are looked up as well, but never found: a body is
//! stored only if it was read and asked for neither, and its digest is of every byte. For JSON a
//! search for the word `"bypass"` saves the digest; a prompt that consists of this word is then
//! not found either, which costs it the time of the second level.

use std::time::Duration;

use crate::core::Moment;
use crate::engine::{CacheMode, Sampling, Served, Verdict};
use crate::error::{ApiError, ErrorCode};
use crate::http::negotiate::MediaType;
use crate::limits::cache as limits;
use crate::service::asking::has_room;
use crate::service::call::{Call, Incoming, Reuse};
use crate::service::desk::{Desk, Parts, Wire};
use crate::service::dialect::{Generation, Whole};
use crate::service::query::{self, Parameter};
use crate::service::request_log::Outcome;
use crate::service::response::buffer::ResponseBuffer;
use crate::service::response::cached::{Content, Miss, Stored, digest};
use crate::service::response::stored_body::StoredBody;
use crate::service::router::Route;

use super::recording;

/// What becomes of a request's response once it is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// The body was not read yet.
    Undecided(Option<Miss>),
    /// It is stored.
    Store(Miss),
    /// It replaces what was stored for equal requests.
    Replace,
    Nothing,
}

impl Keeping {
    /// Decides by the wishes of a request whose body was read.
    pub fn decide(&mut self, mode: CacheMode, sampling: &Sampling, is_whole: bool) {
        let is_reproducible = sampling.temperature == 0.0 || sampling.seed.is_some();
        *self = match (mode, *self) {
            (CacheMode::Use, Keeping::Undecided(Some(miss))) if is_reproducible && is_whole => {
                Keeping::Store(miss)
            }
            (CacheMode::Refresh, _) if is_reproducible => Keeping::Replace,
            _ => Keeping::Nothing,
        };
    }

    /// Returns the verdict on a response that no level behind this one has found.
    pub const fn verdict(self) -> Verdict {
        match self {
            Keeping::Store(_) | Keeping::Replace => Verdict::Miss,
            Keeping::Undecided(_) | Keeping::Nothing => Verdict::Bypass,
        }
    }
}

/// Responds from the cache, or returns what to do with the response to come.
pub fn respond(
    desk: &mut Desk,
    call: &mut Call,
    incoming: &Incoming<'_>,
    wire: &mut Wire<'_>,
) -> Option<Keeping> {
    let Some(key) = desk.digest_key() else {
        return Some(Keeping::Undecided(None));
    };
    // Without memory for a response it is refused as a job.
    if !is_looked_up(desk, call, &incoming.body) || !has_room(desk, call) {
        return Some(Keeping::Undecided(None));
    }
    let fields = query::value(incoming.request, Parameter::Fields);
    let digest = digest(&key, call, fields, &incoming.body);
    match desk.parts.responses.find(digest, call.tenant(), wire.now) {
        Ok(stored) => {
            desk.lookup.verdicts.count(Verdict::Hit);
            recording::count_hit(desk, call);
            call.reuse = Some(Reuse {
                verdict: Verdict::Hit,
                age: stored.age(wire.now),
            });
            send(desk, call, &stored, wire);
            None
        }
        Err(miss) => Some(Keeping::Undecided(Some(miss))),
    }
}

/// Returns whether a response to this body may be stored. Streams are stored by the engine's level.
fn is_looked_up(desk: &Desk, call: &Call, body: &[u8]) -> bool {
    let may_be_whole = match call.route() {
        Route::RpcGenerate => true,
        Route::Generate => call.media.accepted != Some(MediaType::EventStream),
        _ => false,
    };
    may_be_whole && body.len() <= limits::REQUEST_BYTES_MAX && !desk.lookup.asks_for_bypass(body)
}

fn send(desk: &mut Desk, call: &Call, stored: &Stored, wire: &mut Wire<'_>) {
    let body = match &stored.content {
        Content::Refused(error) => return desk.fail(call, error, wire),
        Content::Whole(body) => body,
    };
    let dialect = desk.dialect(call.surface());
    let content_type = dialect.content_type(call.form());
    let buffer = &mut desk.buffer;
    let has_grown = buffer.begin_stored(call, content_type, body);
    let total = wire.now - call.started;
    buffer.push_server_timing(total, None, total);
    buffer.fields.push("cache-control", "no-store");
    let bytes = dialect.send(buffer, call, wire.sink);
    if has_grown {
        desk.parts.responses.resize(stored, wire.now);
    }
    let outcome = Outcome::Completed { status: 200, bytes };
    desk.log.close(call, outcome, None, wire.now);
}

/// Names the source of a response whose head is not sent yet, in its fields.
pub fn note_source(call: &mut Call, keeping: Keeping, served: &Served) {
    let verdict = match served.verdict {
        // There is no level behind this one, or it has done nothing.
        Verdict::Bypass => keeping.verdict(),
        verdict => verdict,
    };
    let age = served.age;
    call.reuse = Some(Reuse { verdict, age });
}

/// Stores a response that was just sent, if an equal request may get it.
pub fn keep(
    (parts, buffer): (&Parts, &mut ResponseBuffer),
    call: &Call,
    keeping: Keeping,
    (whole, generation): (&dyn Whole, &Generation<'_>),
    served: &Served,
    now: Moment,
) {
    let Keeping::Store(miss) = keeping else {
        return;
    };
    // Without a level behind this one, the request alone decides.
    if served.verdict != Verdict::Bypass && !served.is_reproducible {
        return;
    }
    buffer.body.clear();
    let again = Generation {
        is_cached: true,
        ..*generation
    };
    whole.write(buffer, call.form(), &again);
    let content = Content::Whole(StoredBody::new(&buffer.body));
    let ttl = parts.config.cache.ttl;
    let responses = &parts.responses;
    // A level behind this one may have had it for a while, and it must not live twice as long.
    responses.insert(&miss, content, served.age, ttl, now);
}

/// Stores a refusal that will recur.
pub fn keep_refusal(desk: &Desk, keeping: Keeping, error: &ApiError, now: Moment) {
    let ttl = desk.parts.config.cache.negative_ttl;
    let Keeping::Store(miss) = keeping else {
        return;
    };
    if error.code != ErrorCode::ContextLengthExceeded || ttl == Duration::ZERO {
        return;
    }
    let content = Content::Refused(error.clone());
    let responses = &desk.parts.responses;
    responses.insert(&miss, content, Duration::ZERO, ttl, now);
}

/// Counts a request that was not found, once its response is complete.
pub fn count(desk: &Desk, call: &Call, keeping: Keeping) {
    desk.lookup.verdicts.count(keeping.verdict());
    if keeping == Keeping::Replace {
        desk.parts.responses.forget(call.tenant());
    }
}
