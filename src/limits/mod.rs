//! Every bound that is not configuration: one file per module, each constant with its unit in its
//! name and its reason above it.
//!
//! A user writes `use crate::limits::core as limits`, so names carry no prefix for their module.
//! Another module's bounds keep that module's name: `use crate::limits::tls as tls_limits`.
//!
//! Names end in their unit: `HEAD_BYTES_MAX` is the most that is accepted, `CONTEXT_TOKENS_MIN` the
//! least, `HEAD_BYTES_DEFAULT` the value that a configuration may change, and
//! `LOG_LINE_BYTES_TYPICAL` what room is made for at first. A size without such an ending is exact.
//! A `Duration` needs no unit. `tests/tidy.rs` checks the endings, and that no two constants
//! consist of the same words.

// In reading order: the modules from the bottom up.
pub mod core;

pub mod os;

pub mod http;

pub mod http1;

pub mod http2;

pub mod compression;

pub mod grpc;

pub mod tls;

pub mod offload;

pub mod engine;

// The engine's prefixes on disk.
pub mod prefixes;

pub mod models;

pub mod keys;

pub mod jobs;

pub mod store;

pub mod redis;

pub mod bus;

pub mod telemetry;

pub mod config;

pub mod sandbox;

pub mod cache;

pub mod service;

pub mod reactor;

// The daemon's own requests to other servers.
pub mod outbound;

pub mod console;

pub mod supervisor;

pub mod cli;
