//! `POST /api/v1/generate`, the daemon's own API.
//!
//! Reading order: [`body`] (a JSON object, read strictly), [`request`] (its members and their
//! bounds), [`selection`] (the members of a response), [`protobuf`] (both in Protobuf).

pub mod body;
pub mod protobuf;
pub mod request;
pub mod selection;
