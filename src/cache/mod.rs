//! Memory for results that were computed once.
//!
//! Reading order: [`lru`] (entries bounded by bytes), [`shards`] (the same for all reactors).

pub mod lru;
pub mod shards;
