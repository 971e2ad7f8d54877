//! Memory for results that were computed once.
//!
//! Reading order: [`lru`] (entries bounded by bytes), [`shards`] (the same for all reactors),
//! [`metrics`], [`sealed`] (an entry outside of memory), [`shared`] (the level that several daemons
//! have in Redis), [`stored`] (the level in the daemon's own store), with its [`timer`].
//!
//! The second level is an engine in front of an engine: [`key`] (which requests are equal),
//! [`entry`] (a finished generation), [`flight`] (a running one, and the requests that wait for
//! it), [`table`] (the flights and entries of a shard), [`forgotten`] (purges), [`results`] (all
//! shards, and the way of events to them), [`cached`] (the engine), [`preload`] (what the start
//! brings into memory).

pub mod cached;
mod entry;
mod flight;
mod forgotten;
mod key;
pub mod lru;
pub mod metrics;
pub mod preload;
pub mod results;
mod sealed;
pub mod shards;
pub mod shared;
pub mod stored;
mod table;
pub mod timer;

#[cfg(test)]
mod tests;
