//! Memory for results that were computed once.
//!
//! Reading order: [`lru`] (entries bounded by bytes), [`shards`] (the same for all reactors),
//! [`shared`] (the level that several daemons have in Redis).

pub mod lru;
pub mod shards;
pub mod shared;
