//! Open-AutoGLM's daemon: LLM code generation behind a hand-written mio reactor.
//!
//! The modules in reading order, each resting only on those before it:

pub mod error;
pub mod limits;

pub mod core;

pub mod http;

pub mod grpc;

pub mod offload;

pub mod engine;

pub mod config;
pub mod os;
pub mod sandbox;

pub mod keys;
pub mod models;
pub mod store;
pub mod telemetry;
pub mod tls;

pub mod service;

pub mod reactor;

pub mod console;
pub mod supervisor;

pub mod cli;
