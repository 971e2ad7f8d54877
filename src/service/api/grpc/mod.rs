//! The gRPC services beside generation.
//!
//! Reading order: [`dialogue`] (responses of one message or of several), [`health`],
//! [`reflection`].

pub mod dialogue;
pub mod health;
pub mod reflection;
