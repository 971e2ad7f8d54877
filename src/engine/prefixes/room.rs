//! The bound on the memory of copies, which several threads share.
//!
//! Owns one number. A claim gives its bytes back when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone, Debug)]
pub struct Room {
    bytes_max: usize,
    bytes: Arc<AtomicUsize>,
}

/// The bytes of one copy.
#[derive(Debug)]
pub struct Claimed {
    room: Room,
    bytes: usize,
}

impl Room {
    pub fn new(bytes_max: usize) -> Room {
        Room {
            bytes_max,
            bytes: Arc::default(),
        }
    }

    /// Takes `bytes`, if there is room for them.
    pub fn claim(&self, bytes: usize) -> Option<Claimed> {
        // Relaxed: the number publishes no other data.
        let add = |taken: usize| {
            taken
                .checked_add(bytes)
                .filter(|sum| *sum <= self.bytes_max)
        };
        let added = self
            .bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.ok().map(|_| Claimed {
            room: self.clone(),
            bytes,
        })
    }

    /// Returns whether a claim of `bytes` would succeed now.
    pub fn has(&self, bytes: usize) -> bool {
        self.taken().saturating_add(bytes) <= self.bytes_max
    }

    /// Returns whether a claim of `bytes` can ever succeed.
    pub fn can_have(&self, bytes: usize) -> bool {
        bytes <= self.bytes_max
    }

    pub fn taken(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.room.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations that this test catches: no `Drop`; a claim above the bound.
    #[test]
    fn claims_stay_within_the_bound_and_give_their_bytes_back() {
        let room = Room::new(100);
        let first = room.claim(60).expect("there is room");
        assert!(room.has(40) && !room.has(41) && room.can_have(100) && !room.can_have(101));
        assert!(room.claim(50).is_none() && room.claim(usize::MAX).is_none());
        drop(first);
        assert!(room.claim(100).is_some());
        assert_eq!(room.taken(), 0);
    }
}
