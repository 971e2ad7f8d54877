//! The account of buffered memory: one for the whole daemon.
//!
//! A bound on one connection bounds nothing if there are ten thousand of them. So everything that
//! is held because a peer is slow is counted in one place: requests that are not complete, output
//! that waits to be written, encoders of streams, bodies on other threads. Near the account's bound
//! new requests are refused, those without a key first; running ones go on.
//!
//! A [`Share`] is for memory that has one owner: it is taken before the memory, may be refused, and
//! is given back when it is dropped.
//!
//! # Invariants
//!
//!  1. The account holds the sum of all shares.
//!  2. A dropped share has given everything back.
//!
//! Mutations that the tests below catch: `drop` of a share that gives nothing back
//! (`shares_are_given_back`), `threshold` without its claim
//! (`requests_without_a_key_are_refused_first`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits::core as limits;

/// See the file's head. A clone is the same account.
#[derive(Clone, Debug)]
pub struct Account(Arc<Books>);

/// Each number is read and changed alone, so no order between them matters: all operations are
/// relaxed.
#[derive(Debug)]
struct Books {
    held: AtomicUsize,
    held_most: AtomicUsize,
    bound: AtomicUsize,
}

/// The kind of request that wants memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It has shown no valid key.
    Anonymous,
    Keyed,
}

impl Claim {
    pub const fn of(has_key: bool) -> Claim {
        if has_key {
            Claim::Keyed
        } else {
            Claim::Anonymous
        }
    }
}

/// The account has no room for this claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Account {
    pub fn new(bound: usize) -> Account {
        Account(Arc::new(Books {
            held: AtomicUsize::new(0),
            held_most: AtomicUsize::new(0),
            bound: AtomicUsize::new(bound),
        }))
    }

    // ---- getters ----

    /// Returns the bytes that are held now.
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Returns the most that was ever held.
    pub fn held_most(&self) -> usize {
        self.0.held_most.load(Ordering::Relaxed)
    }

    pub fn bound(&self) -> usize {
        self.0.bound.load(Ordering::Relaxed)
    }

    /// Returns the bytes from which on a claim is refused.
    pub fn threshold(&self, claim: Claim) -> usize {
        let bound = self.bound();
        match claim {
            Claim::Keyed => bound,
            // Divided first: the bound may be as large as a number can be.
            Claim::Anonymous => bound / 100 * limits::BUFFERED_ANONYMOUS_PERCENT,
        }
    }

    // ---- commands ----

    /// Returns an empty share.
    pub fn share(&self, claim: Claim) -> Share {
        Share {
            account: self.clone(),
            claim,
            bytes: 0,
        }
    }

    /// Takes bytes, whether or not there is room. Returns the bytes that are held then.
    fn take(&self, bytes: usize) -> usize {
        let held = self.0.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.held_most.fetch_max(held, Ordering::Relaxed);
        held
    }

    fn give_back(&self, bytes: usize) {
        let before = self.0.held.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more was given back than taken");
    }
}

// ---- memory with one owner ----------------------------------------------------------------------

/// A part of the account that belongs to one owner. Dropping it gives it back.
#[derive(Debug)]
pub struct Share {
    account: Account,
    claim: Claim,
    bytes: usize,
}

impl Share {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the share to this many bytes. Growing is refused if the account is full; the share
    /// is then as before.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Full> {
        if let Some(more) = bytes.checked_sub(self.bytes) {
            if more > 0 && self.account.take(more) > self.account.threshold(self.claim) {
                self.account.give_back(more);
                return Err(Full);
            }
        } else {
            self.account.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_given_back() {
        let account = Account::new(100);
        let mut share = account.share(Claim::Keyed);
        assert_eq!(share.resize(60), Ok(()));
        let mut other = account.share(Claim::Keyed);
        assert_eq!(other.resize(41), Err(Full));
        assert_eq!((other.bytes(), account.held()), (0, 60));
        assert_eq!(other.resize(40), Ok(()));
        assert_eq!(share.resize(70), Err(Full));
        assert_eq!(share.resize(20), Ok(()));
        drop(other);
        assert_eq!(account.held(), 20);
        drop(share);
        assert_eq!((account.held(), account.held_most()), (0, 110));
    }

    #[test]
    fn requests_without_a_key_are_refused_first() {
        let account = Account::new(1_000);
        let mut share = account.share(Claim::Anonymous);
        assert_eq!(share.resize(751), Err(Full));
        assert_eq!(share.resize(750), Ok(()));
        assert_eq!(account.share(Claim::Keyed).resize(250), Ok(()));
    }

    #[test]
    fn threads_give_back_what_they_take() {
        let account = Account::new(1_000);
        std::thread::scope(|scope| {
            for seed in 0..4_usize {
                let account = &account;
                scope.spawn(move || {
                    let mut share = account.share(Claim::Keyed);
                    for round in 0..1_000 {
                        let _ = share.resize((round * 7 + seed * 131) % 600);
                    }
                });
            }
        });
        assert_eq!(account.held(), 0);
    }
}
