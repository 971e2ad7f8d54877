//! Copies of the sequences of jobs that wait in the middle of their work.
//!
//! Owns a bound in bytes over all copies. A copy gives its bytes back when it is dropped.

use std::cell::Cell;
use std::rc::Rc;

#[derive(Debug)]
pub struct Saved {
    bytes_max: usize,
    bytes: Rc<Cell<usize>>,
    /// Bytes of a token in the last copy; 0 before there was one.
    token_bytes: usize,
}

/// The contents of one sequence.
#[derive(Debug)]
pub struct State {
    bytes: Vec<u8>,
    total: Rc<Cell<usize>>,
}

impl Saved {
    pub fn new(bytes_max: usize) -> Saved {
        Saved {
            bytes_max,
            bytes: Rc::default(),
            token_bytes: 0,
        }
    }

    /// Returns whether there is room for a sequence of `tokens`, by the size of the last copy.
    pub fn has_room(&self, tokens: usize) -> bool {
        self.bytes.get() + tokens * self.token_bytes <= self.bytes_max
    }

    /// Keeps a copy of a sequence of `tokens`, if there is room.
    pub fn keep(&mut self, bytes: Vec<u8>, tokens: usize) -> Option<State> {
        self.token_bytes = bytes.len().div_ceil(tokens.max(1));
        let total = self.bytes.get() + bytes.len();
        (total <= self.bytes_max).then(|| {
            self.bytes.set(total);
            State {
                bytes,
                total: Rc::clone(&self.bytes),
            }
        })
    }
}

impl State {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations that this test catches: no `Drop`; a copy kept above the bound.
    #[test]
    fn copies_stay_within_their_bound_and_give_their_bytes_back() {
        let mut saved = Saved::new(100);
        assert!(saved.has_room(1_000), "no size is known yet");
        let first = saved.keep(vec![0; 60], 6);
        assert!(first.is_some());
        assert!(saved.has_room(4) && !saved.has_room(5));
        assert!(saved.keep(vec![0; 50], 5).is_none());
        drop(first);
        assert!(saved.keep(vec![0; 50], 5).is_some());
        assert_eq!(saved.bytes.get(), 0);
    }
}
