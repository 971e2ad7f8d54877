//! `autoglmd cache`: shows the cache of a running daemon, or purges it.

use std::fmt::Write as _;
use std::io::Read as _;

use clap::{Args, Subcommand};
use serde::Deserialize;

use super::client::{self, Request};
use super::daemon::{DaemonFlags, refusal};
use crate::console::exit::{self, Code};
use crate::console::{fail, note, put};
use crate::keys::secret::is_id;
use crate::limits::cli as limits;

const PATH: &str = "/api/v1/admin/cache";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Cache {
    #[command(subcommand)]
    command: CacheCommand,
}

const EXAMPLES: &str = "\
Examples:
  autoglmd cache stats
  autoglmd cache stats --json | jq '.levels[].hits'
  autoglmd cache purge                         forget all results
  autoglmd cache purge --of key_5f0c92ab61d7   forget those of one key

Both need a key with the scope admin, such as the bootstrap key.";

#[derive(Debug, Subcommand)]
enum CacheCommand {
    /// Print entries, memory and hits.
    Stats {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        daemon: DaemonFlags,
    },
    /// Forget all results, or those of one key.
    Purge {
        /// The id of the key whose results are forgotten.
        #[arg(long, value_name = "ID")]
        of: Option<String>,
        #[command(flatten)]
        daemon: DaemonFlags,
    },
}

impl Cache {
    pub fn run(self) -> Result<(), Code> {
        match self.command {
            CacheCommand::Stats { json, daemon } => {
                let text = ask(&daemon, "GET", PATH)?;
                put(&match json {
                    true => format!("{}\n", text.trim_end()),
                    false => table(&text)?,
                })
            }
            CacheCommand::Purge { of, daemon } => purge(of.as_deref(), &daemon),
        }
    }
}

fn purge(of: Option<&str>, daemon: &DaemonFlags) -> Result<(), Code> {
    let path = match of {
        None => PATH.to_owned(),
        Some(id) => format!("{PATH}?key={}", checked_id(id)?),
    };
    ask(daemon, "DELETE", &path)?;
    note(match of {
        None => "purged the cache".to_owned(),
        Some(id) => format!("purged the results of {id}"),
    });
    Ok(())
}

/// Refuses a name: the daemon would look for results of a key with that id, and find none. The id
/// becomes part of the request's target.
fn checked_id(id: &str) -> Result<&str, Code> {
    match is_id(id) {
        true => Ok(id),
        false => Err(fail(
            exit::USAGE,
            "--of: expected a key's id such as key_5f0c92ab61d7; `autoglmd key list` shows them",
        )),
    }
}

/// Sends a request without a body. Returns the body of a response that is not an error.
fn ask(daemon: &DaemonFlags, method: &'static str, path: &str) -> Result<String, Code> {
    let key = daemon.find_key()?;
    let request = Request {
        method,
        path,
        accept: "application/json",
        key: key.as_deref(),
        json: None,
    };
    let response = client::send(&daemon.url, &request, limits::CLIENT_PATIENCE);
    let response = response.map_err(|error| daemon.unreachable(&error))?;
    let status = response.status;
    let mut bytes = Vec::new();
    response
        .take(limits::CLIENT_RESPONSE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| fail(exit::IO, format_args!("{}: {error}", daemon.url)))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match status {
        200 => Ok(text),
        _ => Err(refusal(status, &text).explain()),
    }
}

#[derive(Deserialize)]
struct Shown {
    enabled: bool,
    levels: Vec<ShownLevel>,
}

#[derive(Deserialize)]
struct ShownLevel {
    level: String,
    entries: u64,
    bytes: u64,
    max_bytes: u64,
    evicted: u64,
    hits: u64,
    joined: u64,
    misses: u64,
    bypassed: u64,
}

fn table(text: &str) -> Result<String, Code> {
    let shown: Shown = serde_json::from_str(text).map_err(|error| {
        let message = format!("the daemon's response is not that of a cache: {error}");
        fail(exit::DATA, message)
    })?;
    let mut out = String::new();
    if !shown.enabled {
        out.push_str("the cache is off (`cache.enabled`)\n");
    }
    let head = [
        "LEVEL", "ENTRIES", "BYTES", "MAX", "EVICTED", "HITS", "JOINED", "MISSES", "BYPASSED",
    ];
    let mut row = |cells: [String; 9]| {
        for (index, cell) in cells.iter().enumerate() {
            let width = if index == 0 { 10 } else { 11 };
            // Writing to a string does not fail.
            let _ = match index {
                0 => write!(out, "{cell:<width$}"),
                _ => write!(out, "{cell:>width$}"),
            };
        }
        out.push('\n');
    };
    row(head.map(str::to_owned));
    for level in shown.levels {
        row([
            level.level,
            level.entries.to_string(),
            level.bytes.to_string(),
            level.max_bytes.to_string(),
            level.evicted.to_string(),
            level.hits.to_string(),
            level.joined.to_string(),
            level.misses.to_string(),
            level.bypassed.to_string(),
        ]);
    }
    Ok(out)
}
