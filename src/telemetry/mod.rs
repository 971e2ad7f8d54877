//! The daemon's reports about itself: log lines, access lines, metrics, ids.
//!
//! Nothing here makes a caller wait: lines go through a bounded queue to their own thread, and a
//! metric is an atomic that its owner resolved once.

pub mod access;
pub mod exposition;
pub mod histogram;
pub mod id;
pub mod log;
pub mod metrics;
pub mod otlp;
pub mod random;
pub mod request_id;

mod format;
mod journald;
mod line;
mod output;
mod queue;

pub use format::LogFormat;
