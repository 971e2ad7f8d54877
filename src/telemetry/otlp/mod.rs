//! Metrics for an OpenTelemetry collector: their form, their times, and the bound on those that
//! wait.
//!
//! Owns everything about a push except its sending, which the supervisor's thread does. Nothing
//! here knows a socket, a clock or a thread: the caller passes the time and the text of the
//! registry, so every order of events can be tested.
//!
//! ```text
//!   registry ── text ──> families ── names ──> messages ── gzip ──> batch
//!                [`text`]          [`names`]           [`snapshot`]   │
//!                                                                     v
//!             collector <── bytes ── [`delivery`] <── oldest ── [`spool`]
//!                 │ status, Retry-After     ^
//!                 └──────── [`reply`] ──────┘
//! ```
//!
//! The registry is read once per interval, through the same text that a scraper gets. So a request
//! pays nothing for a push, and both sides always show the same numbers.
//!
//! # Totals, not differences
//!
//! Totals since the start of the process (cumulative temporality). Each interval is a batch with
//! its own time. While the collector is away, batches wait in order in a spool of bounded size, so
//! the collector later gets the whole course; if the spool is full, the oldest batch is dropped. A
//! total that is dropped costs only the resolution in time: the next one contains it.
//!
//! Reading order: [`text`], [`names`], [`message`], [`snapshot`], [`spool`], [`reply`],
//! [`delivery`], [`metrics`].

pub mod delivery;
pub mod message;
pub mod metrics;
pub mod names;
pub mod reply;
pub mod snapshot;
pub mod spool;
pub mod text;
