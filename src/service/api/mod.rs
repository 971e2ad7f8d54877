//! The formats that each API reads and writes.
//!
//! Reading order: [`native`] (`POST /api/v1/generate`, in JSON and in Protobuf), [`grpc`] (the same
//! generation over gRPC, health checks and server reflection), [`generations`] (the records of past
//! ones), [`jobs`] (durable jobs), [`operations`] (probes, metrics and listings), [`admin`] (the
//! administrators' routes).
//!
//! Owns the choice of a dialect by a row's [`Surface`].

pub mod admin;
pub mod generations;
pub mod grpc;
pub mod jobs;
pub mod native;
pub mod operations;

use super::dialect::Dialect;
use super::router::Surface;

/// Returns the dialect of an API.
pub fn dialect(surface: Surface) -> &'static dyn Dialect {
    match surface {
        Surface::Native => &native::dialect::Native,
        Surface::Grpc => &grpc::dialect::Grpc,
    }
}
