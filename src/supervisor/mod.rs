//! The supervisor: assembles the daemon, then watches over it from the main thread.
//!
//! Owns the order in which parts start and stop, and none of their work:
//!
//! ```text
//!   configuration -> signals blocked -> log -> certificates -> listeners -> Redis -> keys
//!                 -> bus -> store -> workers -> outbound -> engine -> reactors -> (ready)
//!                 -> signals, file watch, watchdog ...
//!                 -> drain: last push -> reactors end -> engine ends -> outbound, workers end
//!                 -> store ends
//!                 -> bus ends -> keys' thread ends -> Redis's thread ends -> log flushed
//! ```
//!
//! In reading order:
//!
//! * [`part`] and [`parts`]: the steps of a part's life, and the list of the parts;
//! * [`log`], [`certificates`], [`listeners`] (with [`stored`]), [`redis`], [`keys`] (with
//!   [`database`]), [`bus`], [`requests`], [`workers`], [`outbound`], [`engine`] (with
//!   [`prover`]), [`reactors`] (with [`spawner`] and [`buffers`]), [`push`]: the parts;
//! * [`daemon`]: the loop on the main thread, and [`reload`] (with [`reading`] and [`files`]);
//! * [`rhythm`], [`vigil`], [`household`]: the duties of that loop, each without a clock;
//! * [`remaining`]: the rest of a drain's time, after that loop.
//!
//! Signals are blocked before the first thread starts, so that only this thread receives them. Work
//! that may block for as long as a disk does (reading a reload's files, SQLite) happens in a
//! worker, because this thread feeds the watchdog and reactors serve.

mod buffers;
mod bus;
mod certificates;
mod daemon;
pub mod database;
mod engine;
mod failure;
mod files;
mod household;
mod jobs;
mod keys;
mod listeners;
mod log;
mod metrics;
mod outbound;
mod part;
mod parts;
#[cfg(feature = "llama")]
pub mod prover;
mod push;
mod reactors;
mod reading;
mod redis;
mod reload;
mod remaining;
mod requests;
mod rhythm;
mod spawner;
mod stored;
mod vigil;
mod workers;

pub use daemon::Daemon;
pub use failure::Failure;

use crate::config::{Loaded, Sources};
use crate::limits::outbound as limits;
use crate::os::process::set_resolver_options;

/// Assembles the daemon; [`Daemon::supervise`] runs it.
pub fn start(sources: &Sources, loaded: Loaded) -> Result<Daemon, Failure> {
    let timeout = limits::LOOK_UP_TIMEOUT.as_secs();
    let attempts = limits::LOOK_UP_ATTEMPTS_MAX;
    set_resolver_options(&format!("timeout:{timeout} attempts:{attempts}"));
    engine::prepare_process(&loaded.config)?;
    Daemon::start(sources, loaded)
}
