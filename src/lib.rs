//! Open-AutoGLM's daemon: LLM code generation behind a hand-written mio reactor.
//!
//! The modules in reading order; each uses only modules before it.

// Every way in which the daemon refuses or fails, in one table.
pub mod error;

// Every bound that is not configuration, with its reason.
pub mod limits;

// The reactor's pure parts: slots, readiness, timer wheel, output queue, accept gate.
pub mod core;

// HTTP as a function of bytes: heads, bodies, negotiation, compression, HTTP/2.
pub mod http;

// The messages and frames of gRPC.
pub mod grpc;

// The kernel's interfaces that `std` lacks; almost all `unsafe` code.
pub mod os;

// Log, access lines, request ids and metrics.
pub mod telemetry;

// How a reactor and other threads share work: mailbox, tickets, permits, workers.
pub mod offload;

// The language model behind a border: jobs go in, events come out. llama.cpp, and an echo.
pub mod engine;

// The configuration: schema, sources, reload.
pub mod config;

// TLS as a function of bytes, around `rustls`; certificates and their reload.
pub mod tls;

// Runs a program in namespaces, without rights.
pub mod sandbox;

// API keys: secrets, scopes, the key ring.
pub mod keys;

// The model catalogue and its downloads.
pub mod models;

// Durable jobs: their states, events and records.
pub mod jobs;

// The database, and the watch over its changes.
pub mod store;

// Redis on its own thread: servers, pipelines, and what happens when they are lost.
pub mod redis;

// Results that were computed once: entries bounded by bytes.
pub mod cache;

// The limits of keys, over all daemons that share a Redis.
pub mod leases;

// Runs durable jobs: claims them, computes them, saves what they write.
pub mod runner;

// Notices between daemons about what has changed.
pub mod bus;

// The service: admission, generations, responses, one folder per API.
pub mod service;

// The event loop and its connections: sockets, protocols, deadlines.
pub mod reactor;

// The printed output of the commands and the supervisor, and their exit codes.
pub mod console;

// Starts, watches, reloads and stops the daemon's parts.
pub mod supervisor;

// The command line: one file per command.
pub mod cli;
