//! Memory for results that were computed once.
//!
//! Reading order: [`lru`] (entries bounded by bytes), [`shards`] (the same for all reactors),
//! [`metrics`], [`shared`] (the level that several daemons have in Redis).
//!
//! The second level is an engine in front of an engine: [`key`] (which requests are equal),
//! [`entry`] (a finished generation), [`flight`] (a running one, and the requests that wait for
//! it), [`table`] (the flights and entries of a shard), [`results`] (all shards, and the way of
//! events to them), [`cached`] (the engine).

pub mod cached;
mod entry;
mod flight;
mod key;
pub mod lru;
pub mod metrics;
pub mod results;
pub mod shards;
pub mod shared;
mod table;

#[cfg(test)]
mod tests;
