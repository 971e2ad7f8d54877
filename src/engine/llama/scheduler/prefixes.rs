//! Computed states of the daemon's own texts, with which every tenant's prompts begin.
//!
//! Owns copies of cache contents, about one per language, within a bound in bytes. Must never be
//! given a token that came from a request.

use std::sync::Arc;

use super::Token;
use crate::limits::engine as limits;

#[derive(Debug, Default)]
pub struct Prefixes {
    entries: Vec<Prefix>,
    bytes: usize,
}

#[derive(Debug)]
struct Prefix {
    tokens: Vec<Token>,
    state: Arc<[u8]>,
}

impl Prefixes {
    pub fn contains(&self, tokens: &[Token]) -> bool {
        self.entries.iter().any(|prefix| prefix.tokens == tokens)
    }

    pub fn find(&self, tokens: &[Token]) -> Option<Arc<[u8]>> {
        self.entries
            .iter()
            .find(|prefix| prefix.tokens == tokens)
            .map(|prefix| prefix.state.clone())
    }

    /// Keeps a state; drops the oldest ones if there is no room.
    pub fn insert(&mut self, tokens: Vec<Token>, state: Vec<u8>) {
        self.bytes += state.len();
        let state = state.into();
        self.entries.push(Prefix { tokens, state });
        while self.bytes > limits::PREFIX_STATES_BYTES_MAX && self.entries.len() > 1 {
            self.bytes -= self.entries.remove(0).state.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_states_go_when_the_bound_is_reached() {
        let mut prefixes = Prefixes::default();
        for token in 0..4 {
            prefixes.insert(vec![token], vec![0; limits::PREFIX_STATES_BYTES_MAX / 3]);
        }
        assert!(!prefixes.contains(&[0]));
        assert!(prefixes.find(&[1]).is_some() && prefixes.find(&[3]).is_some());
        assert!(prefixes.find(&[1, 2]).is_none());
    }
}
