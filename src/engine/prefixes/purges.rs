//! The purges that come while the folder is not read. Pure.
//!
//! A purge takes files out of the index. The folder has an index only once it was read, and none
//! while it is read again. So purges are kept until then, and apply to the files that are found:
//! none of them is newer.
//!
//! Invariant: at most [`limits::PURGED_KEYS_MAX`] tenants are kept. More purge all.

use super::names::{self, Kind, Secret, TenantDigest};
use crate::limits::prefixes as limits;

#[derive(Clone, Debug)]
pub enum Purges<T> {
    Of(Vec<T>),
    All,
}

impl<T> Default for Purges<T> {
    fn default() -> Purges<T> {
        Purges::Of(Vec::new())
    }
}

impl Purges<u64> {
    /// Adds a tenant, or all.
    pub fn add(&mut self, tenant: Option<u64>) {
        match (&mut *self, tenant) {
            (Purges::Of(tenants), Some(tenant)) if tenants.contains(&tenant) => {}
            (Purges::Of(tenants), Some(tenant)) if tenants.len() < limits::PURGED_KEYS_MAX => {
                tenants.push(tenant);
            }
            _ => *self = Purges::All,
        }
    }

    pub fn with(&self, secret: &Secret) -> Purges<TenantDigest> {
        match self {
            Purges::Of(tenants) => {
                let digests = tenants.iter().map(|tenant| secret.tenant(*tenant));
                Purges::Of(digests.collect())
            }
            Purges::All => Purges::All,
        }
    }
}

impl Purges<TenantDigest> {
    pub fn has(&self, tenant: TenantDigest) -> bool {
        match self {
            Purges::Of(tenants) => tenants.contains(&tenant),
            Purges::All => true,
        }
    }

    /// Returns whether a file of this name is purged, finished or not.
    pub fn has_file(&self, name: &str) -> bool {
        match self {
            Purges::Of(tenants) => tenants.iter().any(|tenant| tenant.owns(name)),
            Purges::All => matches!(names::kind(name), Kind::Prefix | Kind::Unfinished),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: no bound, one that is one off, a tenant that counts twice.
    #[test]
    fn more_tenants_than_are_kept_purge_all() {
        let mut purges = Purges::default();
        let most = limits::PURGED_KEYS_MAX as u64;
        (0..most).for_each(|tenant| purges.add(Some(tenant)));
        (0..most).for_each(|tenant| purges.add(Some(tenant)));
        assert!(matches!(&purges, Purges::Of(tenants) if tenants.len() as u64 == most));
        purges.add(Some(most));
        assert!(matches!(&purges, Purges::All));
        purges.add(Some(0));
        assert!(matches!(&purges, Purges::All));
        let mut purges = Purges::default();
        purges.add(None);
        assert!(matches!(&purges, Purges::All));
    }
}
