//! A daemon that a command talks to: its address, the key for it, and its refusals.

use std::io;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::client::Target;
use crate::config::{Overrides, Sources};
use crate::console::exit::{self, Code};
use crate::console::{fail, note, printable};
use crate::error::ErrorCode;
use crate::limits::cli as limits;
use crate::os::file;
use crate::store::BOOTSTRAP_FILE;

const KEY_VARIABLE: &str = "AUTOGLMD_KEY";

/// The flags of a command that asks a daemon.
#[derive(Args, Debug)]
pub struct DaemonFlags {
    /// The daemon's address: http://HOST:PORT or unix:/PATH.
    #[arg(long, default_value = "http://127.0.0.1:8080", value_parser = Target::parse)]
    pub url: Target,
    /// The API key. Other users can see it in the list of processes, so prefer $AUTOGLMD_KEY
    /// [default: $AUTOGLMD_KEY, else the bootstrap key].
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    key: Option<String>,
    /// The folder of the bootstrap key [default: $STATE_DIRECTORY, else ~/.local/state/autoglmd].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl DaemonFlags {
    /// Returns the key from the flag, the variable, or the bootstrap file. Without any the request
    /// is sent without a key: a daemon may require none. A variable that is not a key is refused,
    /// because a request without it would be about another key than the user means.
    pub fn find_key(&self) -> Result<Option<String>, Code> {
        if let Some(key) = &self.key {
            return Ok(Some(key.clone()));
        }
        let flags = Overrides {
            state_dir: self.state_dir.clone(),
            ..Overrides::default()
        };
        let sources = Sources::of_process(None, flags);
        match sources.variable(KEY_VARIABLE) {
            Some(key) => parse_key(key)
                .map(Some)
                .map_err(|expected| fail(exit::USAGE, format_args!("{KEY_VARIABLE}: {expected}"))),
            None => Ok(bootstrap_key(&sources)),
        }
    }

    /// Prints why the daemon could not be reached, and returns the exit code.
    pub fn unreachable(&self, error: &io::Error) -> Code {
        let hint = match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                "; is the daemon running? Start it with `autoglmd serve`, or set its address with \
                 --url"
            }
            _ => "",
        };
        fail(
            exit::UNAVAILABLE,
            format_args!("{}: {error}{hint}", self.url),
        )
    }
}

/// Returns the key of the first start, if this user can read it.
fn bootstrap_key(sources: &Sources) -> Option<String> {
    let (state_dir, _) = sources.state_dir().ok()?;
    let path = state_dir.join(BOOTSTRAP_FILE);
    let bytes = file::read_up_to(&path, limits::CLIENT_KEY_BYTES_MAX as u64).ok()?;
    parse_key(std::str::from_utf8(&bytes).ok()?.trim()).ok()
}

/// The error object of every failed response.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Refusal {
    message: String,
    code: String,
    param: Option<String>,
    request_id: Option<String>,
    retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Wrapped {
    error: Refusal,
}

/// Returns the daemon's reason for a failed response.
pub fn refusal(status: u16, text: &str) -> Refusal {
    let wrapped: Result<Wrapped, _> = serde_json::from_str(text);
    match wrapped {
        Ok(wrapped) => wrapped.error,
        // Not our daemon, or a proxy before it.
        Err(_) => Refusal {
            message: format!("the server responded with status {status}"),
            ..Refusal::default()
        },
    }
}

impl Refusal {
    /// Prints the reason and the way out, and returns the exit code.
    pub fn explain(&self) -> Code {
        let known = ErrorCode::ALL
            .iter()
            .find(|code| code.as_str() == self.code);
        let message = printable(&self.message);
        let exit_code = known.map_or(exit::UNAVAILABLE, |code| exit_code(*code));
        match self.code.as_str() {
            "" => fail(exit_code, message),
            code => fail(exit_code, format_args!("{}: {message}", printable(code))),
        };
        if let Some(param) = &self.param {
            note(format_args!("  field: {}", printable(param)));
        }
        if let Some(way_out) = known.and_then(|code| way_out(*code)) {
            note(format_args!("  {way_out}"));
        }
        if let Some(milliseconds) = self.retry_after_ms {
            note(format_args!(
                "  try again in {} s",
                milliseconds.div_ceil(1_000)
            ));
        }
        if let Some(id) = &self.request_id {
            note(format_args!("  request id: {}", printable(id)));
        }
        exit_code
    }
}

/// Returns the remedy in terms of this command's flags. The daemon's message has the remedy for
/// clients in general.
fn way_out(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::MissingCredentials => Some(
            "set a key with --key or AUTOGLMD_KEY (`autoglmd key create` makes one), or the folder \
             of the bootstrap key with --state-dir",
        ),
        ErrorCode::GenerationTimeout => Some("use a longer --timeout"),
        ErrorCode::DeadlineUnmeetable => Some("use a longer --timeout, or try again later"),
        ErrorCode::ContextLengthExceeded => Some("shorten the prompt, or lower --max-tokens"),
        _ => None,
    }
}

fn exit_code(code: ErrorCode) -> Code {
    match code.status() {
        401 | 403 => exit::NO_PERMISSION,
        408 | 429 | 503 | 504 => exit::TEMPORARY,
        500 => exit::SOFTWARE,
        501 | 502 => exit::UNAVAILABLE,
        _ => exit::DATA,
    }
}

/// A key becomes part of a header field, so it must be one word.
fn parse_key(text: &str) -> Result<String, String> {
    let fits = (1..=limits::CLIENT_KEY_BYTES_MAX).contains(&text.len());
    match fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("expected a key such as `autoglmd key create` prints".to_owned()),
    }
}
