//! Decides by their heads alone which requests may go on.
//!
//! Reading order: [`router`] (which paths exist, and who may use them), [`check`] (the order of all
//! checks), [`client_address`] and [`origin`] (where a request comes from), [`auth`] (its key),
//! [`rate_limit`] (how many a key or an address may send).
//!
//! Must never look at a body.

pub mod auth;
pub mod check;
pub mod client_address;
pub mod origin;
pub mod rate_limit;
pub mod router;
