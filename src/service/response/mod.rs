//! The parts of responses, whichever API they belong to.
//!
//! Reading order: [`buffer`] (fields and body of one response), [`headers`] (the fields that
//! responses share), [`json`] (JSON written by hand), [`coding`] (compression), [`static_body`]
//! (bodies that never change), [`stored_body`] and [`cached`] (responses that are sent again).

pub mod buffer;
pub mod cached;
pub mod coding;
pub mod compression;
pub mod headers;
pub mod json;
pub mod static_body;
pub mod stored_body;
