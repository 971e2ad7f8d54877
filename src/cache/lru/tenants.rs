//! The tenants that have entries, and how many bytes each has.
//!
//! Owns a row per tenant with the list of its entries, and the order of rows by bytes. A tenant
//! whose last entry went has no row.

use std::collections::BTreeSet;

use super::blocks::Blocks;
use super::index::Index;
use super::lists::List;

#[derive(Debug)]
pub struct Tenant {
    id: u64,
    bytes: usize,
    /// Its entries, the most recently used first.
    pub uses: List,
}

/// See the file's head.
#[derive(Debug)]
pub struct Tenants {
    rows: Blocks<Tenant>,
    free: Vec<u32>,
    index: Index,
    by_bytes: BTreeSet<(usize, u32)>,
}

impl Default for Tenants {
    fn default() -> Tenants {
        Tenants::new()
    }
}

impl Tenants {
    pub fn new() -> Tenants {
        Tenants {
            rows: Blocks::new(),
            free: Vec::new(),
            index: Index::new(),
            by_bytes: BTreeSet::new(),
        }
    }

    /// Returns how many rows there are, the free ones included.
    pub fn rows(&self) -> usize {
        self.rows.count()
    }

    /// Returns whether an entry of this tenant would need memory for one more row.
    pub fn needs_row(&self, id: u64, hash: u32) -> bool {
        self.free.is_empty() && self.find(id, hash).is_none()
    }

    pub fn find(&self, id: u64, hash: u32) -> Option<u32> {
        self.index.find(hash, |row| self.rows.at(row).id == id)
    }

    /// Returns the row of a tenant, which may be a new one. The caller adds bytes to it next.
    pub fn find_or_insert(&mut self, id: u64, hash: u32) -> u32 {
        if let Some(row) = self.find(id, hash) {
            return row;
        }
        let tenant = Tenant {
            id,
            bytes: 0,
            uses: List::EMPTY,
        };
        let row = match self.free.pop() {
            Some(row) => {
                *self.rows.at_mut(row) = tenant;
                row
            }
            None => self.rows.push(tenant),
        };
        self.index.insert(hash, row);
        row
    }

    pub fn uses(&mut self, row: u32) -> &mut List {
        &mut self.rows.at_mut(row).uses
    }

    /// Replaces bytes that a tenant has. Its row is gone if it has none afterwards.
    pub fn replace_bytes(&mut self, row: u32, old: usize, new: usize) {
        let tenant = self.rows.at_mut(row);
        let before = tenant.bytes;
        tenant.bytes = before - old + new;
        if before > 0 {
            self.by_bytes.remove(&(before, row));
        }
        if tenant.bytes > 0 {
            self.by_bytes.insert((tenant.bytes, row));
        } else {
            self.index.remove(row);
            self.free.push(row);
        }
    }

    /// Returns the row of the tenant that has the most bytes.
    pub fn largest(&self) -> Option<u32> {
        self.by_bytes.last().map(|(_, row)| *row)
    }

    /// Returns how many tenants have entries.
    pub fn count(&self) -> usize {
        self.by_bytes.len()
    }
}
