//! The use of one API key: its rates, its running requests, the memory of those that are not
//! complete, and those that the cache has served.
//!
//! Owns the numbers that all reactors share for a key. They are atomics, so nothing here waits.

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};

use crate::core::buffered;
use crate::core::lease::Lease;

/// Returns the tenant that a key's work is done for.
pub fn tenant_of(key_id: &str) -> u64 {
    let hash = blake3::hash(key_id.as_bytes());
    let mut tenant = [0; 8];
    tenant.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(tenant)
}

/// The account of one key, shared by its secrets, by rings and by reactors.
#[derive(Debug)]
pub struct Account {
    /// The key's id, which each record of a generation shares.
    pub id: Arc<str>,
    /// Derived from the key's id: the same after a rotation, and in every process.
    pub tenant: u64,
    pub requests: Lease,
    pub tokens: Lease,
    /// The number of running requests. Each request holds a permit of its own on it.
    pub running: Arc<AtomicU32>,
    /// Requests served from the cache that are not in the key's usage yet.
    pub hits: AtomicU64,
    /// The memory of its incomplete bodies. Most keys never have any.
    buffered: OnceLock<buffered::Account>,
}

impl Account {
    pub fn new(key_id: &str) -> Account {
        Account {
            id: key_id.into(),
            tenant: tenant_of(key_id),
            requests: Lease::default(),
            tokens: Lease::default(),
            running: Arc::default(),
            hits: AtomicU64::new(0),
            buffered: OnceLock::new(),
        }
    }

    /// Returns the account of the memory of its incomplete bodies. It has no room until its bound
    /// is set, because the bound is that of the request that asks.
    pub fn buffered(&self) -> &buffered::Account {
        self.buffered.get_or_init(|| buffered::Account::new(0))
    }
}
