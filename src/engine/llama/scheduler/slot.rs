//! One sequence of the backend: its tokens, the jobs that may go on from there, and the running
//! job.
//!
//! A slot keeps its tokens after its job has ended, even if the job was cancelled: a retry, or the
//! next turn of a conversation, begins where its tokens are the same. A cache must not show one
//! tenant another's text, nor let it be found out by timing. So there are two kinds of tokens: the
//! first `common` ones come from the daemon itself and serve everyone; the rest serves only its
//! tenant.

use std::cmp::Reverse;

use super::Token;
use super::run::Run;
use crate::core::Moment;

pub struct Slot<S> {
    /// The tokens that the backend holds of this sequence.
    pub tokens: Vec<Token>,
    /// How many of them the last batch computed; 0 between batches.
    pub computed: u32,
    /// How many of the first tokens are the daemon's own text.
    pub common: usize,
    /// The tenant whose job computed the others.
    pub tenant: u64,
    /// The number of the last job that used it; 0 if none has.
    pub used: u64,
    /// The archive's epoch at that time.
    pub epoch: u64,
    /// When the archive is to be asked whether it wants a copy; `None`: it has been asked, or a job
    /// runs.
    pub keep_at: Option<Moment>,
    pub run: Option<Box<Run<S>>>,
}

impl<S> Default for Slot<S> {
    fn default() -> Slot<S> {
        Slot {
            tokens: Vec::new(),
            computed: 0,
            common: 0,
            tenant: 0,
            used: 0,
            epoch: 0,
            keep_at: None,
            run: None,
        }
    }
}

/// The tokens that a job wants to go on from.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub tenant: u64,
    pub tokens: &'a [Token],
    /// How many of the first tokens are the daemon's own text.
    pub common: usize,
}

/// How far a job may reuse a slot's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// As far as they are the same.
    Longest,
    /// Up to the end of the daemon's own text, or not at all. Tokens after it were computed in
    /// batches that this job would not repeat, so they are rounded differently.
    OwnText,
}

impl Reuse {
    pub fn of(is_reproducible: bool) -> Reuse {
        match is_reproducible {
            true => Reuse::OwnText,
            false => Reuse::Longest,
        }
    }
}

impl<S> Slot<S> {
    pub fn is_free(&self) -> bool {
        self.run.is_none()
    }

    /// Returns how many of the slot's tokens a job of `tenant` may reuse. Never its whole prompt:
    /// the last token is always computed, for the scores after it.
    pub fn reusable(&self, wanted: Wanted<'_>, reuse: Reuse) -> usize {
        let allowed = match self.tenant == wanted.tenant {
            true => self.tokens.len(),
            false => self.common.min(wanted.common),
        };
        let bound = allowed
            .min(wanted.tokens.len().saturating_sub(1))
            .min(self.tokens.len());
        let pairs = self.tokens[..bound].iter().zip(wanted.tokens);
        let longest = pairs.take_while(|(held, wanted)| held == wanted).count();
        match reuse {
            Reuse::Longest => longest,
            Reuse::OwnText if self.common == wanted.common && longest >= self.common => self.common,
            Reuse::OwnText => 0,
        }
    }

    /// Records that the backend has removed all tokens from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.tokens.truncate(length);
    }

    pub fn check_invariants(&self) {
        if let Some(run) = &self.run {
            let shared = self.tokens.len().min(run.prompt.len());
            assert_eq!(self.tokens[..shared], run.prompt[..shared], "invariant 2");
            assert!(self.common <= run.prompt.len());
        }
    }
}

/// Chooses a free slot: the one from which this job can reuse most; otherwise one beside a running
/// slot, because llama.cpp computes only neighbouring sequences in one pass (eight with gaps
/// between them take more than twice as long). Of several, or if none runs, it takes the least
/// recently used one, so that text that may be needed again is kept as long as there is room.
pub fn choose<S>(slots: &[Slot<S>], wanted: Wanted<'_>, reuse: Reuse) -> Option<usize> {
    let free = || slots.iter().enumerate().filter(|(_, slot)| slot.is_free());
    let (furthest, reusable) = free()
        .map(|(index, slot)| (index, slot.reusable(wanted, reuse)))
        .max_by_key(|(index, reusable)| (*reusable, Reverse(*index)))?;
    // The daemon's own text is kept elsewhere, too, so a slot is not chosen for it.
    match reusable > wanted.common {
        true => Some(furthest),
        false => free()
            .min_by_key(|(index, slot)| (Reverse(running_beside(slots, *index)), slot.used, *index))
            .map(|(index, _)| index),
    }
}

/// Returns how many of a slot's two neighbours run.
fn running_beside<S>(slots: &[Slot<S>], index: usize) -> usize {
    let neighbours = [index.checked_sub(1), Some(index + 1)];
    let neighbours = neighbours.into_iter().flatten();
    let running = neighbours.filter(|index| slots.get(*index).is_some_and(|slot| !slot.is_free()));
    running.count()
}
