//! One sequence of the backend: what it holds, who may go on from there, and who runs on it.
//!
//! A slot keeps its tokens after its job has ended, also if that was cancelled: a retry, or the
//! next turn of a conversation, begins where they are the same. Two kinds of tokens are told apart,
//! for a cache must not give one tenant another's text, nor let it be found out by timing: the
//! first `common` ones come from the daemon itself and serve everyone; the rest serves its tenant
//! only.

use std::cmp::Reverse;

use super::run::Run;
use super::{Prepared, Token};

pub struct Slot<S> {
    /// What the backend holds of this sequence.
    pub tokens: Vec<Token>,
    /// So many of the first tokens are the daemon's own text.
    pub common: usize,
    /// For whom the others were computed.
    pub tenant: u64,
    /// When a job came last, in jobs; 0 if none has.
    pub used: u64,
    pub run: Option<Box<Run<S>>>,
}

impl<S> Default for Slot<S> {
    fn default() -> Slot<S> {
        Slot {
            tokens: Vec::new(),
            common: 0,
            tenant: 0,
            used: 0,
            run: None,
        }
    }
}

/// How far a job may go on from a slot's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// As far as they are the same.
    Longest,
    /// As far as the daemon's own text, or not at all. What lies behind it was computed in batches
    /// that this job's would not repeat, so that its rounding is another one.
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

    /// How many of the slot's tokens a job of `tenant` may go on from. Never its whole prompt: the
    /// last token is computed in any case, for the scores after it.
    pub fn reusable(&self, tenant: u64, prepared: &Prepared, reuse: Reuse) -> usize {
        let allowed = match self.tenant == tenant {
            true => self.tokens.len(),
            false => self.common.min(prepared.common),
        };
        let bound = allowed
            .min(prepared.tokens.len().saturating_sub(1))
            .min(self.tokens.len());
        let pairs = self.tokens[..bound].iter().zip(&prepared.tokens);
        let longest = pairs.take_while(|(held, wanted)| held == wanted).count();
        match reuse {
            Reuse::Longest => longest,
            Reuse::OwnText if self.common == prepared.common && longest >= self.common => {
                self.common
            }
            Reuse::OwnText => 0,
        }
    }

    /// The backend has taken all tokens from `length` on.
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

/// Chooses a free slot: the one from which this job can go on furthest, else one beside a slot that
/// runs, for llama.cpp computes only neighbouring sequences in one pass (eight with gaps between
/// them take more than twice as long), and of several, or if none runs, the one that was not used
/// for longest, so that what others may come back to is kept as long as there is room.
pub fn choose<S>(
    slots: &[Slot<S>],
    tenant: u64,
    prepared: &Prepared,
    reuse: Reuse,
) -> Option<usize> {
    let free = || slots.iter().enumerate().filter(|(_, slot)| slot.is_free());
    let (furthest, reusable) = free()
        .map(|(index, slot)| (index, slot.reusable(tenant, prepared, reuse)))
        .max_by_key(|(index, reusable)| (*reusable, Reverse(*index)))?;
    // The daemon's own text is kept elsewhere, too: to find it in a slot is no reason to take it.
    match reusable > prepared.common {
        true => Some(furthest),
        false => free()
            .min_by_key(|(index, slot)| (Reverse(running_beside(slots, *index)), slot.used, *index))
            .map(|(index, _)| index),
    }
}

/// How many of a slot's two neighbours run.
fn running_beside<S>(slots: &[Slot<S>], index: usize) -> usize {
    let neighbours = [index.checked_sub(1), Some(index + 1)];
    let neighbours = neighbours.into_iter().flatten();
    let running = neighbours.filter(|index| slots.get(*index).is_some_and(|slot| !slot.is_free()));
    running.count()
}
