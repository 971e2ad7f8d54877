//! gRPC: the native API's generation as methods, and the services that gRPC clients expect.
//!
//! Reading order: [`dialect`], [`narrator`] (the response of a generation), [`dialogue`] (responses
//! of one message or of several), [`health`], [`reflection`].

pub mod dialect;
pub mod dialogue;
pub mod health;
pub mod narrator;
pub mod reflection;
