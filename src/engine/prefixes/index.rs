//! Which files there are, and which of them is the next to go. Pure.
//!
//! Owns the entries, their sum of bytes, and their order by use. Within the tenant that has the
//! most bytes the least recently used file goes first: a tenant that fills the folder removes its
//! own files before those of others.
//!
//! Invariants:
//!  1. `bytes` is the sum of all entries' bytes, and `count` their number.
//!  2. A tenant without an entry has no list.
//!  3. Of one tenant no entry holds fewer than [`limits::TOKENS_MIN`] tokens that another one does
//!     not hold, when it is inserted.

use std::collections::HashMap;
use std::sync::Arc;

use super::copied::Token;
use super::names::TenantDigest;
use crate::limits::prefixes as limits;

#[derive(Debug, Default)]
pub struct Index {
    tenants: HashMap<TenantDigest, Vec<Arc<Entry>>>,
    bytes: u64,
    count: usize,
}

/// One file.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub tenant: TenantDigest,
    pub tokens: Box<[Token]>,
    /// Of the whole file.
    pub bytes: u64,
    /// The number of its last use.
    pub used: u64,
}

impl Index {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the entries of a tenant.
    pub fn of(&self, tenant: TenantDigest) -> Vec<Arc<Entry>> {
        self.tenants.get(&tenant).cloned().unwrap_or_default()
    }

    pub fn insert(&mut self, entry: Entry) {
        self.remove(entry.tenant, &entry.name);
        self.bytes += entry.bytes;
        self.count += 1;
        let list = self.tenants.entry(entry.tenant).or_default();
        list.push(Arc::new(entry));
        self.check_invariants();
    }

    pub fn remove(&mut self, tenant: TenantDigest, name: &str) -> Option<Arc<Entry>> {
        let list = self.tenants.get_mut(&tenant)?;
        let at = list.iter().position(|entry| entry.name == name)?;
        let removed = list.swap_remove(at);
        if list.is_empty() {
            self.tenants.remove(&tenant);
        }
        self.bytes -= removed.bytes;
        self.count -= 1;
        self.check_invariants();
        Some(removed)
    }

    /// Removes all entries of a tenant, or of all.
    pub fn remove_all(&mut self, tenant: Option<TenantDigest>) -> Vec<Arc<Entry>> {
        let lists: Vec<Vec<Arc<Entry>>> = match tenant {
            Some(tenant) => self.tenants.remove(&tenant).into_iter().collect(),
            None => std::mem::take(&mut self.tenants).into_values().collect(),
        };
        let removed: Vec<Arc<Entry>> = lists.into_iter().flatten().collect();
        self.count -= removed.len();
        self.bytes -= removed.iter().map(|entry| entry.bytes).sum::<u64>();
        self.check_invariants();
        removed
    }

    /// Records a use of an entry.
    pub fn note_use(&mut self, tenant: TenantDigest, name: &str, used: u64) {
        let list = self.tenants.get_mut(&tenant).into_iter().flatten();
        for entry in list.filter(|entry| entry.name == name) {
            // A reader of the list may still hold the old one.
            let tokens = entry.tokens.clone();
            *entry = Arc::new(Entry {
                name: name.to_owned(),
                tenant,
                tokens,
                bytes: entry.bytes,
                used,
            });
        }
    }

    /// Removes the entry that must make room for `bytes` of `tenant`.
    pub fn remove_next(&mut self, tenant: TenantDigest, bytes: u64) -> Option<Arc<Entry>> {
        let sum = |(its, list): (&TenantDigest, &Vec<Arc<Entry>>)| {
            let own: u64 = list.iter().map(|entry| entry.bytes).sum();
            own + if *its == tenant { bytes } else { 0 }
        };
        let most = self.tenants.iter().map(|both| (sum(both), both.1));
        // Of several tenants, the one whose oldest file is the oldest of all.
        let oldest = |list: &[Arc<Entry>]| list.iter().map(|entry| entry.used).min();
        let list = most
            .max_by_key(|(sum, list)| (*sum, std::cmp::Reverse(oldest(list))))?
            .1;
        let next = list.iter().min_by_key(|entry| entry.used)?.clone();
        self.remove(next.tenant, &next.name)
    }

    fn check_invariants(&self) {
        if cfg!(debug_assertions) {
            let all = || self.tenants.values().flatten();
            assert_eq!(self.bytes, all().map(|entry| entry.bytes).sum::<u64>(), "1");
            assert_eq!(self.count, all().count(), "1");
            assert!(self.tenants.values().all(|list| !list.is_empty()), "2");
        }
    }
}

/// Returns the entry that has the most of the first tokens of a prompt, and how many.
pub fn longest<'a>(entries: &'a [Arc<Entry>], prompt: &[Token]) -> Option<(&'a Arc<Entry>, usize)> {
    let shared = entries
        .iter()
        .map(|entry| (entry, shared(&entry.tokens, prompt)));
    shared.max_by_key(|(entry, tokens)| (*tokens, entry.used))
}

/// Returns whether a file with these tokens would save enough beside those that there are.
pub fn is_worth_keeping(entries: &[Arc<Entry>], tokens: &[Token]) -> bool {
    let known = longest(entries, tokens).map_or(0, |(_, tokens)| tokens);
    tokens.len() >= known + limits::TOKENS_MIN
}

/// Returns the entries that a new file with `tokens` makes superseded.
pub fn superseded<'a>(
    entries: &'a [Arc<Entry>],
    tokens: &'a [Token],
) -> impl Iterator<Item = &'a Arc<Entry>> {
    let own = |entry: &Entry| entry.tokens.len() - shared(&entry.tokens, tokens);
    entries
        .iter()
        .filter(move |entry| own(entry) < limits::TOKENS_MIN)
}

/// Returns how many of the first tokens are the same.
pub fn shared(one: &[Token], other: &[Token]) -> usize {
    let pairs = one.iter().zip(other);
    pairs.take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(number: u8) -> TenantDigest {
        TenantDigest([number; 32])
    }

    fn entry(of: u8, used: u64, bytes: u64) -> Entry {
        Entry {
            name: format!("{of}-{used}"),
            tenant: tenant(of),
            tokens: Box::default(),
            bytes,
            used,
        }
    }

    fn removed(index: &mut Index, of: u8, bytes: u64) -> Option<String> {
        let next = index.remove_next(tenant(of), bytes);
        next.map(|entry| entry.name.clone())
    }

    /// Mutations that this test catches: the least recently used of all tenants goes first; the new
    /// file's bytes not counted; a use that is not noted.
    #[test]
    fn tenant_that_fills_the_folder_loses_its_own_oldest_file() {
        let mut index = Index::default();
        for entry in [entry(1, 1, 10), entry(2, 2, 30), entry(2, 3, 30)] {
            index.insert(entry);
        }
        index.note_use(tenant(2), "2-2", 9);
        assert_eq!(removed(&mut index, 2, 10).as_deref(), Some("2-3"));
        // With its new file the first one has the most.
        assert_eq!(removed(&mut index, 1, 25).as_deref(), Some("1-1"));
        assert_eq!((index.bytes(), index.count()), (30, 1));
        assert_eq!(removed(&mut index, 1, 10).as_deref(), Some("2-2"));
        assert_eq!(removed(&mut index, 1, 10), None);
    }

    #[test]
    fn one_tenants_entries_are_removed_and_those_of_others_stay() {
        let mut index = Index::default();
        for entry in [entry(1, 1, 10), entry(1, 2, 20), entry(2, 3, 5)] {
            index.insert(entry);
        }
        assert_eq!(index.remove_all(Some(tenant(1))).len(), 2);
        assert_eq!((index.bytes(), index.of(tenant(2)).len()), (5, 1));
        assert_eq!(index.remove_all(None).len(), 1);
        assert_eq!((index.bytes(), index.count()), (0, 0));
    }

    /// Mutations that this test catches: `>` for `>=`; the first entry in place of the longest one.
    #[test]
    fn longest_prefix_is_found_and_one_that_adds_little_is_not_kept() {
        let least = limits::TOKENS_MIN;
        let text = |length: usize| (0..length as Token).collect::<Vec<_>>();
        let with = |length: usize| {
            Arc::new(Entry {
                tokens: text(length).into(),
                ..entry(1, 1, 1)
            })
        };
        let entries = [with(least), with(3 * least), with(2 * least)];
        let (found, tokens) = longest(&entries, &text(4 * least)).unwrap();
        assert_eq!((found.tokens.len(), tokens), (3 * least, 3 * least));
        let mut other = text(4 * least);
        other[least] = -1;
        assert_eq!(longest(&entries, &other).unwrap().1, least);
        assert!(longest(&[], &other).is_none());
        assert!(!is_worth_keeping(&entries, &text(4 * least - 1)));
        assert!(is_worth_keeping(&entries, &text(4 * least)));
        assert!(!is_worth_keeping(&[], &text(least - 1)));
        assert!(is_worth_keeping(&[], &text(least)));
        // One that goes on from them makes all of them superseded, and one that differs does not.
        assert_eq!(superseded(&entries, &text(4 * least)).count(), 3);
        assert_eq!(superseded(&entries, &other).count(), 1);
    }
}
