//! Downloads a file over HTTP into a `.part`, resumed where an earlier attempt stopped.
//!
//! Owns the conversation with the server and the note beside the part, which records the URL and
//! the version of the file that the part's bytes come from. Must never join bytes of two versions.
//! That is why it sends `If-Range` with a strong validator (RFC 9110, section 13.1.5): the server
//! sends the rest if the file is still the same, and all of it otherwise.
//!
//! | response      | meaning                                | then                                |
//! | ------------- | -------------------------------------- | ----------------------------------- |
//! | 206           | the rest, from where we stopped        | append                              |
//! | 200           | the whole file                         | begin again                         |
//! | 416           | there is nothing beyond what we have   | done if the sizes agree, else again |
//! | 408 429 5xx   | not now                                | wait, retry                         |
//! | 30x           | elsewhere, at another web server       | ask there                           |
//! | other         | no                                     | give up                             |
//! | cut off       |                                        | wait, retry from there              |
//!
//! Invariants:
//!  1. The part is a prefix of the version that its note names, or there is no note.
//!  2. Attempts end: a failure counts against `limits::PULL_ATTEMPTS_MAX` unless the part has
//!     become longer than ever before, which can happen only finitely often.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::error::ModelError;
use super::files::{Pace, read_bounded, replace};
use super::means::Means;
use super::progress::{Progress, Watch, tell};
use super::redirect::{Hop, follow};
use crate::core::UnixSeconds;
use crate::http::retry_after;
use crate::limits::models as limits;
use crate::limits::tls as tls_limits;

pub(super) struct Wanted<'a> {
    pub url: &'a str,
    /// Sent as a Bearer token to this URL's host, but not to where it redirects.
    pub token: Option<&'a str>,
    pub part: &'a Path,
    /// The size of a pinned file: a file of another size is not even downloaded.
    pub bytes: Option<u64>,
    /// If there is another source, one that does not respond at all is asked only once.
    pub has_alternative: bool,
}

/// How an attempt fails.
enum Failure {
    /// A retry may succeed, after the pause that the server asks for.
    Passing {
        reason: String,
        pause: Option<Duration>,
    },
    /// The server could not be reached.
    NoConnection(String),
    Final(ModelError),
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Failure {
        Failure::Final(error)
    }
}

/// Leaves all bytes in the part. The note stays until the caller has accepted them: an interrupted
/// check then costs one request instead of the whole file.
pub(super) fn bring(
    wanted: &Wanted<'_>,
    means: &Means,
    watch: &mut Watch<'_>,
) -> Result<(), ModelError> {
    let agent = agent(wanted, means)?;
    let mut failures = 0;
    let mut furthest = part_bytes(wanted.part);
    loop {
        let (reason, wish) = match attempt(&agent, wanted, watch) {
            Ok(()) => return Ok(()),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::NoConnection(reason)) if wanted.has_alternative => {
                let url = wanted.url.to_owned();
                return Err(ModelError::Unreachable { url, reason });
            }
            Err(Failure::NoConnection(reason)) => (reason, None),
            Err(Failure::Passing { reason, pause }) => (reason, pause),
        };
        let reached = part_bytes(wanted.part);
        failures = if reached > furthest { 1 } else { failures + 1 };
        furthest = furthest.max(reached);
        if failures >= limits::PULL_ATTEMPTS_MAX {
            return Err(ModelError::Unreachable {
                url: wanted.url.to_owned(),
                reason,
            });
        }
        let own = means.retry_pause.saturating_mul(1 << (failures - 1));
        let pause = wish.unwrap_or(own).min(limits::PULL_RETRY_PAUSE_MAX);
        let progress = Progress::Retrying {
            attempt: failures + 1,
            attempts: limits::PULL_ATTEMPTS_MAX,
            pause,
            reason,
        };
        rest(pause, &progress, watch)?;
    }
}

/// The note beside a part.
#[derive(Serialize, Deserialize)]
struct Note {
    url: String,
    /// The strong entity tag of the version that the part's bytes belong to.
    validator: Option<String>,
}

fn attempt(agent: &Agent, wanted: &Wanted<'_>, watch: &mut Watch<'_>) -> Result<(), Failure> {
    let resume = resumable(wanted);
    let response = request(agent, wanted, resume.as_ref())?;
    match (response.status().as_u16(), resume) {
        (200, _) => begin_anew(wanted, response, watch),
        (206, Some((from, _))) => go_on(wanted, response, from, watch),
        (416, Some((from, _))) => nothing_more(wanted, &response, from),
        (status @ (408 | 429 | 500..=599), _) => Err(Failure::Passing {
            reason: format!("the server responded with {status}"),
            pause: asked_pause(response.headers()),
        }),
        (status, _) => Err(Failure::Final(ModelError::Refused {
            url: wanted.url.to_owned(),
            status,
        })),
    }
}

/// Sends a request and follows redirects, checking each: only a web server may deliver models. The
/// token stays with the first host.
fn request(
    agent: &Agent,
    wanted: &Wanted<'_>,
    resume: Option<&(u64, String)>,
) -> Result<Response<Body>, Failure> {
    let mut url = wanted.url.to_owned();
    for _ in 0..=limits::PULL_REDIRECTS_MAX {
        let mut request = agent.get(&url).header("accept-encoding", "identity");
        if let Some(token) = wanted.token.filter(|_| url == wanted.url) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some((from, validator)) = resume {
            request = request.header("range", format!("bytes={from}-"));
            request = request.header("if-range", validator);
        }
        let response = request.call().map_err(|error| judge(wanted, error))?;
        let location = header(response.headers(), "location");
        url = match follow(&url, response.status().as_u16(), location) {
            Hop::Arrived => return Ok(response),
            Hop::To(next) => next,
            Hop::Refused(reason) => {
                let (url, reason) = (wanted.url.to_owned(), reason.to_owned());
                return Err(ModelError::BadRedirect { url, reason }.into());
            }
        };
    }
    let reason = format!(
        "more than {most} redirects",
        most = limits::PULL_REDIRECTS_MAX
    );
    let url = wanted.url.to_owned();
    Err(ModelError::BadRedirect { url, reason }.into())
}

/// Returns where to continue, if the part's bytes are known to be of this URL and of a version that
/// the server can recognise.
fn resumable(wanted: &Wanted<'_>) -> Option<(u64, String)> {
    let from = part_bytes(wanted.part);
    let note = read_bounded(&note_path(wanted.part), limits::MODEL_RECORD_BYTES_MAX).ok()?;
    let note: Note = serde_json::from_slice(&note).ok()?;
    let validator = note.validator?;
    (from > 0 && note.url == wanted.url).then_some((from, validator))
}

fn begin_anew(
    wanted: &Wanted<'_>,
    response: Response<Body>,
    watch: &mut Watch<'_>,
) -> Result<(), Failure> {
    let part_error = |error| ModelError::File(wanted.part.to_owned(), error);
    // The part is emptied before the note changes: old bytes never have a new note.
    let part = File::create(wanted.part).map_err(part_error)?;
    let note = Note {
        url: wanted.url.to_owned(),
        validator: strong_validator(response.headers()),
    };
    let note = serde_json::to_vec(&note).map_err(|error| part_error(error.into()))?;
    replace(&note_path(wanted.part), &note).map_err(part_error)?;
    let total = response.body().content_length();
    if let (Some(expected), Some(found)) = (wanted.bytes, total)
        && expected != found
    {
        return Err(ModelError::WrongSize { expected, found }.into());
    }
    copy(wanted, response, part, 0, total.or(wanted.bytes), watch)
}

fn go_on(
    wanted: &Wanted<'_>,
    response: Response<Body>,
    from: u64,
    watch: &mut Watch<'_>,
) -> Result<(), Failure> {
    let range = header(response.headers(), "content-range").and_then(ContentRange::parse);
    let total = match range {
        Some(ContentRange {
            first: Some(first),
            total,
        }) if first == from => total,
        _ => {
            return Err(discard(
                wanted,
                "the server sent another range than requested",
            ));
        }
    };
    let part = OpenOptions::new()
        .append(true)
        .open(wanted.part)
        .map_err(|error| ModelError::File(wanted.part.to_owned(), error))?;
    copy(wanted, response, part, from, total, watch)
}

fn nothing_more(wanted: &Wanted<'_>, response: &Response<Body>, from: u64) -> Result<(), Failure> {
    let range = header(response.headers(), "content-range").and_then(ContentRange::parse);
    match range {
        Some(ContentRange {
            first: None,
            total: Some(total),
        }) if total == from => Ok(()),
        _ => Err(discard(
            wanted,
            "the stored part does not belong to the server's file",
        )),
    }
}

fn copy(
    wanted: &Wanted<'_>,
    response: Response<Body>,
    mut part: File,
    from: u64,
    total: Option<u64>,
    watch: &mut Watch<'_>,
) -> Result<(), Failure> {
    let part_error = |error| ModelError::File(wanted.part.to_owned(), error);
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; limits::PULL_BUFFER_BYTES];
    let mut done = from;
    let mut pace = Pace::new();
    tell(watch, Progress::Bytes { done, total })?;
    loop {
        let count = body
            .read(&mut buffer)
            .map_err(|error| passing(error.to_string()))?;
        if count == 0 {
            break;
        }
        part.write_all(&buffer[..count]).map_err(part_error)?;
        done += count as u64;
        if pace.is_due() {
            tell(watch, Progress::Bytes { done, total })?;
        }
    }
    tell(watch, Progress::Bytes { done, total })?;
    match total {
        Some(total) if done < total => Err(passing("the connection ended early".to_owned())),
        Some(total) if done > total => {
            let error = ModelError::WrongSize {
                expected: total,
                found: done,
            };
            remove(wanted.part);
            Err(Failure::Final(error))
        }
        _ => Ok(()),
    }
}

/// Deletes the note of a part that is finished, or about to get other bytes.
pub(super) fn forget(part: &Path) -> Result<(), ModelError> {
    let note = note_path(part);
    match fs::remove_file(&note) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ModelError::File(note, error)),
        _ => Ok(()),
    }
}

/// Waits in slices, so that the caller can give up meanwhile.
fn rest(pause: Duration, progress: &Progress, watch: &mut Watch<'_>) -> Result<(), ModelError> {
    let mut left = pause;
    tell(watch, progress.clone())?;
    while !left.is_zero() {
        let slice = left.min(limits::PULL_PROGRESS_INTERVAL);
        thread::sleep(slice);
        left -= slice;
        tell(watch, progress.clone())?;
    }
    Ok(())
}

fn agent(wanted: &Wanted<'_>, means: &Means) -> Result<Agent, ModelError> {
    // The same cryptography as the daemon's own listeners, instead of a second one.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = TlsConfig::builder().unversioned_rustls_crypto_provider(provider);
    if let Some(path) = &means.certificates {
        tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates(path)?)));
    }
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        .user_agent(concat!("autoglmd/", env!("CARGO_PKG_VERSION")))
        // `request` checks each redirect.
        .max_redirects(0)
        .timeout_resolve(Some(means.connect_timeout))
        .timeout_connect(Some(means.connect_timeout))
        .timeout_recv_response(Some(match wanted.has_alternative {
            true => means.response_timeout,
            false => limits::PULL_READ_TIMEOUT,
        }))
        // A bound on silence, not on the whole: a large file over a slow line may take hours.
        .timeout_per_read(Some(limits::PULL_READ_TIMEOUT))
        .build();
    Ok(config.new_agent())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, ModelError> {
    let pem = read_bounded(path, tls_limits::CERTIFICATES_BYTES_MAX)
        .map_err(|error| ModelError::File(path.to_owned(), error))?;
    let only_certificates = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    let found: Vec<_> = parse_pem(&pem).filter_map(only_certificates).collect();
    match found.is_empty() {
        true => Err(ModelError::BadCertificates(path.to_owned())),
        false => Ok(found),
    }
}

/// Returns a strong entity tag: only a strong one means that the bytes are the same.
fn strong_validator(headers: &HeaderMap) -> Option<String> {
    let tag = header(headers, "etag")?;
    tag.starts_with('"').then(|| tag.to_owned())
}

/// RFC 9110, section 14.4: `bytes 5-9/10`, `bytes 5-9/*`, `bytes */10`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    first: Option<u64>,
    total: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<ContentRange> {
        let (range, total) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
        let total = match total {
            "*" => None,
            digits => Some(digits.parse().ok()?),
        };
        let first = match range {
            "*" => None,
            range => Some(range.split_once('-')?.0.parse().ok()?),
        };
        Some(ContentRange { first, total })
    }
}

fn asked_pause(headers: &HeaderMap) -> Option<Duration> {
    let asked = header(headers, "retry-after")?;
    retry_after::parse(asked, header(headers, "date"), UnixSeconds::now().as_u64())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Decides whether a retry can help.
fn judge(wanted: &Wanted<'_>, error: ureq::Error) -> Failure {
    match error {
        ureq::Error::Io(_)
        | ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed => Failure::NoConnection(error.to_string()),
        ureq::Error::Protocol(_) => passing(error.to_string()),
        other => Failure::Final(ModelError::Unreachable {
            url: wanted.url.to_owned(),
            reason: other.to_string(),
        }),
    }
}

fn passing(reason: String) -> Failure {
    Failure::Passing {
        reason,
        pause: None,
    }
}

/// Drops the part, so that the next attempt begins again.
fn discard(wanted: &Wanted<'_>, reason: &str) -> Failure {
    remove(&note_path(wanted.part));
    remove(wanted.part);
    passing(reason.to_owned())
}

/// If this fails, the next attempt finds the same file and reports it.
fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

fn note_path(part: &Path) -> PathBuf {
    let mut path = part.as_os_str().to_owned();
    path.push(".json");
    PathBuf::from(path)
}

fn part_bytes(part: &Path) -> u64 {
    fs::metadata(part).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_those_of_rfc_9110() {
        let range = |first, total| Some(ContentRange { first, total });
        assert_eq!(
            ContentRange::parse("bytes 5-9/10"),
            range(Some(5), Some(10))
        );
        assert_eq!(ContentRange::parse("bytes 5-9/*"), range(Some(5), None));
        assert_eq!(ContentRange::parse("bytes */10"), range(None, Some(10)));
        for wrong in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes x-9/10",
            "items 5-9/10",
            "bytes 5/10",
        ] {
            assert_eq!(ContentRange::parse(wrong), None, "{wrong}");
        }
    }
}
