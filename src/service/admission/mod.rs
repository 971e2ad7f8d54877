//! Decides by their heads alone which requests may go on.
//!
//! Reading order: [`check`] (the order of all checks), [`arrival`], [`client_address`] and
//! [`origin`] (where a request comes from), [`auth`] (the holder of its key).
//!
//! Must never look at a body.

pub mod arrival;
pub mod auth;
pub mod check;
pub mod client_address;
pub mod origin;
