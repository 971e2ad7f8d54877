//! Which requests may go on, decided by their heads alone.
//!
//! Reading order: [`router`] (which paths exist, and who may use them), [`check`] (the order of all
//! checks), [`client_address`] and [`origin`] (where a request comes from), [`auth`] (whose it is),
//! [`rate_limit`] (how many a key or an address may send).
//!
//! Must never look at a body.

pub mod auth;
pub mod check;
pub mod client_address;
pub mod origin;
pub mod rate_limit;
pub mod router;
