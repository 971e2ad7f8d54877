//! The account of buffered memory: one for the whole daemon.
//!
//! A bound on one connection bounds nothing if there are ten thousand of them. So everything that
//! is held because a peer is slow is counted in one place: requests that are not complete, output
//! that waits to be written, encoders of streams, bodies on other threads. Near the account's bound
//! new requests are refused, those without a key first; running ones go on.
//!
//! ```text
//!   reactor 0: Tally ---- in steps of 64 KiB ----+
//!   reactor 1: Tally ----------------------------+--> Account { held, bound }
//!   a body on another thread: Share -------------+
//!   an encoder of a stream: Share ---------------+
//! ```
//!
//! A [`Share`] is for memory that has one owner: it is taken before the memory, may be refused, and
//! is given back when it is dropped. Each key has a small account of its own as well, from which
//! its incomplete bodies take shares: one key cannot use up the daemon's.
//!
//! A [`Tally`] is for the memory of all connections of a reactor, which has been taken already when
//! it is counted: the reactor counts a connection's bytes again after everything that it has done
//! with that connection. So no path that ends a connection can forget to give something back. A
//! tally is not atomic; it changes the account only once it is a whole step away from what the
//! account knows. A request that arrives whole and whose response leaves at once changes neither.
//!
//! # What the bound promises
//!
//! While the account is at its bound, no request begins or goes on to wait for its rest, no share
//! grows, nothing is read from the store or the cache for a response, and a connection whose output
//! waits is not read. It may exceed the bound by
//!
//!  * `limits::BUFFERED_STEP_BYTES` for each reactor, which the others do not see yet, and what one
//!    connection takes in before it is counted again: one pump, `READS_PER_PUMP_MAX` reads of
//!    `SCRATCH_BYTES`, 1 MiB (twice as much once a growing vector has doubled);
//!  * the text of running generations that several requests wait for, which the engine's context
//!    bounds for each of its sequences;
//!  * for connections with a valid key or a job: what they had sent behind a running request, at
//!    most one read and one frame each, and the output of requests that had been admitted, which
//!    the marks of each connection bound;
//!  * for such a connection whose client reads nothing, one buffer of the pool: the response that
//!    finds the kernel's buffer full. A stranger's connection ends there.
//!
//! It does not count memory that does not depend on peers being slow: a reactor's scratch buffer,
//! its free buffers (`POOL_RETAINED_BYTES_MAX`, which go back to the allocator at the first
//! refusal), and the fixed state of a connection.
//!
//! # Invariants
//!
//!  1. The account holds the sum of all shares and of what all tallies have settled.
//!  2. A tally and what it has settled differ by less than a step, and not at all while it holds
//!     nothing.
//!  3. A dropped share or tally has given everything back.
//!
//! Mutations that the tests below catch: `drop` of a share that gives nothing back
//! (`shares_are_given_back`), `threshold` without its claim
//! (`requests_without_a_key_are_refused_first`), `settle` that is never called at zero
//! (`a_tally_is_settled_in_steps_and_at_zero`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Key;
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

    pub const fn as_str(self) -> &'static str {
        match self {
            Claim::Anonymous => "anonymous",
            Claim::Keyed => "keyed",
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
            Claim::Anonymous => percent(bound, limits::BUFFERED_ANONYMOUS_PERCENT),
        }
    }

    /// Returns whether there is room for the response to a request, whose size is not known yet.
    pub fn has_room(&self, claim: Claim) -> bool {
        self.held() < self.threshold(claim)
    }

    /// Returns the bytes that the incomplete bodies of one key may have.
    pub fn bound_of_key(&self) -> usize {
        percent(self.bound(), limits::BUFFERED_KEY_PERCENT)
    }

    // ---- commands ----

    /// Changes the bound. What is held above a lower one stays until its owner is done.
    pub fn set_bound(&self, bytes: usize) {
        self.0.bound.store(bytes, Ordering::Relaxed);
    }

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

/// Divides first, because the bound may be as large as a number can be.
const fn percent(bound: usize, percent: usize) -> usize {
    bound / 100 * percent
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

    /// Changes the share to this many bytes, whether or not there is room: of memory that a running
    /// request has taken already, and that another bound limits.
    pub fn set(&mut self, bytes: usize) {
        match bytes.checked_sub(self.bytes) {
            Some(more) => {
                self.account.take(more);
            }
            None => self.account.give_back(self.bytes - bytes),
        }
        self.bytes = bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}

// ---- memory of a reactor's connections ----------------------------------------------------------

/// The memory that one reactor's connections hold.
#[derive(Debug)]
pub struct Tally {
    account: Account,
    /// By the slot of the connection.
    counted: Vec<u32>,
    /// The sum of `counted`.
    held: usize,
    /// The part of it that the account knows.
    settled: usize,
}

impl Tally {
    pub fn new(account: Account) -> Tally {
        Tally {
            account,
            counted: Vec::new(),
            held: 0,
            settled: 0,
        }
    }

    // ---- getters ----

    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Returns the bytes that the reactor's connections hold.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Returns whether a request may keep bytes.
    pub fn admits(&self, claim: Claim) -> bool {
        let others = self.account.held().saturating_sub(self.settled);
        others + self.held < self.account.threshold(claim)
    }

    // ---- commands ----

    /// Counts the bytes that a connection holds now, in place of those that it held before. An
    /// ended connection holds none.
    pub fn set(&mut self, key: Key, bytes: usize) {
        let index = key.index as usize;
        let before = self.counted.get(index).copied().unwrap_or(0);
        let now = u32::try_from(bytes).unwrap_or(u32::MAX);
        if now == before {
            return;
        }
        if index >= self.counted.len() {
            self.counted.resize(index + 1, 0);
        }
        self.counted[index] = now;
        self.held = self.held - before as usize + now as usize;
        let is_far = self.held.abs_diff(self.settled) >= limits::BUFFERED_STEP_BYTES;
        if is_far || (self.held == 0 && self.settled > 0) {
            self.settle();
        }
    }

    fn settle(&mut self) {
        match self.held.checked_sub(self.settled) {
            Some(more) => {
                self.account.take(more);
            }
            None => self.account.give_back(self.settled - self.held),
        }
        self.settled = self.held;
    }

    /// Checks invariant 2.
    pub fn check_invariants(&self) {
        let counted = self.counted.iter().map(|&bytes| bytes as usize);
        assert_eq!(counted.sum::<usize>(), self.held);
        let difference = self.held.abs_diff(self.settled);
        assert!(difference < limits::BUFFERED_STEP_BYTES);
        assert!(self.held > 0 || difference == 0);
        assert!(self.account.held() >= self.settled);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.account.give_back(self.settled);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STEP: usize = limits::BUFFERED_STEP_BYTES;
    const ONE: Key = Key::new(0, 1);
    const TWO: Key = Key::new(5, 1);

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
        let mut tally = Tally::new(account.clone());
        assert!(!tally.admits(Claim::Anonymous));
        tally.set(ONE, 249);
        assert!(tally.admits(Claim::Keyed));
        tally.set(ONE, 250);
        assert!(!tally.admits(Claim::Keyed));
        account.set_bound(usize::MAX);
        assert!(tally.admits(Claim::Anonymous));
        // A lower bound takes nothing away.
        account.set_bound(10);
        assert_eq!(share.resize(750), Ok(()));
        assert!(!tally.admits(Claim::Keyed));
    }

    #[test]
    fn a_tally_is_settled_in_steps_and_at_zero() {
        let account = Account::new(STEP - 1);
        let mut tally = Tally::new(account.clone());
        tally.set(ONE, STEP - 1);
        assert_eq!(account.held(), 0, "less than a step");
        assert!(!tally.admits(Claim::Keyed), "its own bytes count");
        tally.set(TWO, 1);
        assert_eq!(account.held(), STEP);
        tally.set(ONE, 0);
        assert_eq!(account.held(), STEP, "a byte is left");
        tally.set(TWO, 0);
        assert_eq!(account.held(), 0);
        // What is left after a step down may be less than a step.
        tally.set(ONE, 3 * STEP);
        tally.set(ONE, 10);
        assert_eq!(account.held(), 10);
        tally.set(ONE, 0);
        assert_eq!(account.held(), 0);
    }

    #[test]
    fn a_tally_sees_what_others_hold() {
        let account = Account::new(4 * STEP);
        let mut one = Tally::new(account.clone());
        let mut other = Tally::new(account.clone());
        one.set(ONE, 3 * STEP);
        assert!(other.admits(Claim::Keyed));
        assert!(!other.admits(Claim::Anonymous));
        other.set(ONE, STEP);
        assert!(!one.admits(Claim::Keyed));
        drop(one);
        assert_eq!(account.held(), STEP);
        assert!(other.admits(Claim::Anonymous));
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

    proptest! {
        /// Connections come, change and go; the account follows them within a step.
        #[test]
        fn the_account_follows_its_tallies(
            changes in prop::collection::vec((0..2_usize, 0..4_usize, 0..3 * STEP), 0..60),
        ) {
            let account = Account::new(5 * STEP);
            let mut tallies = [Tally::new(account.clone()), Tally::new(account.clone())];
            let mut connections = [[0; 4]; 2];
            for (reactor, connection, bytes) in changes {
                connections[reactor][connection] = bytes;
                tallies[reactor].set(Key::new(connection as u32, 1), bytes);
                let sum: usize = connections.iter().flatten().sum();
                tallies.iter().for_each(Tally::check_invariants);
                prop_assert_eq!(tallies[0].held() + tallies[1].held(), sum);
                prop_assert!(account.held().abs_diff(sum) < 2 * STEP);
            }
            drop(tallies);
            prop_assert_eq!(account.held(), 0);
        }
    }
}
