//! `POST /api/v1/generate`, the daemon's own API.
//!
//! Reading order: [`dialect`], [`body`] (a JSON object, read strictly), [`request`] (its members),
//! [`bounds`] (the bounds of their values), [`narrator`] (the response of a generation), [`code`]
//! (the program within the model's text), [`selection`] (the members of a response), [`protobuf`]
//! (requests and responses in Protobuf), [`error`].

pub mod body;
pub mod bounds;
pub mod code;
pub mod dialect;
pub mod error;
pub mod narrator;
pub mod protobuf;
pub mod request;
pub mod selection;
