//! The formats that each API reads and writes.
//!
//! Reading order: [`native`] (`POST /api/v1/generate`, in JSON and in Protobuf), [`grpc`] (the same
//! generation over gRPC, health checks and server reflection), [`operations`] (probes, metrics and
//! listings).

pub mod grpc;
pub mod native;
pub mod operations;
