//! A pool of buffers, so that connections need none while they wait.
//!
//! Of ten thousand connections a few are in the middle of something. A buffer for each would cost
//! ten thousand buffers, so connections own none. They take one when the first byte needs a place
//! and return it when the last byte has left, usually within the same turn of the loop. The buffer
//! that was returned last is taken first, because it is still in the processor's cache.
//!
//! There is one size class: a pool with several has to guess, and bodies larger than this class are
//! rare enough to be allocated. A buffer that grew while it was out is kept if it grew little (the
//! next user profits) and freed if it grew much (or one large body would stay for ever).
//!
//! # Invariants
//!
//!  1. A buffer in the pool is empty and has room for at least `buffer_bytes`.
//!  2. The buffers in the pool together hold at most `retained_bytes_most` of memory.

use crate::limits::core as limits;

/// See the file's head. Each reactor has its own pool, which therefore needs no lock.
#[derive(Debug)]
pub struct BufferPool {
    buffers: Vec<Vec<u8>>,
    /// The sum of the capacities of `buffers`.
    retained_bytes: usize,
    buffer_bytes: usize,
    retained_bytes_most: usize,
    counters: PoolCounters,
}

/// Counts of the pool's work since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// Buffers taken.
    pub taken: u64,
    /// How many of the taken buffers had to be allocated.
    pub allocated: u64,
    /// Buffers returned, kept or not.
    pub given: u64,
    /// How many of the returned buffers were freed: too large, or the pool was full.
    pub freed: u64,
}

impl Default for BufferPool {
    fn default() -> BufferPool {
        BufferPool::new(limits::POOL_BUFFER_BYTES, limits::POOL_RETAINED_BYTES_MAX)
    }
}

impl BufferPool {
    /// Creates a pool of buffers of `buffer_bytes`, which retains at most `retained_bytes_most`.
    pub const fn new(buffer_bytes: usize, retained_bytes_most: usize) -> BufferPool {
        assert!(buffer_bytes > 0);
        BufferPool {
            buffers: Vec::new(),
            retained_bytes: 0,
            buffer_bytes,
            retained_bytes_most,
            counters: PoolCounters {
                taken: 0,
                allocated: 0,
                given: 0,
                freed: 0,
            },
        }
    }

    // ---- getters ----

    /// Returns how many buffers are in the pool.
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    pub fn counters(&self) -> PoolCounters {
        self.counters
    }

    /// Returns how many buffers are taken and not yet returned: zero when no request is under way.
    pub fn outstanding(&self) -> u64 {
        self.counters.taken.saturating_sub(self.counters.given)
    }

    // ---- commands ----

    /// Returns an empty buffer with room for at least `buffer_bytes`.
    pub fn take(&mut self) -> Vec<u8> {
        self.counters.taken += 1;
        let Some(buffer) = self.buffers.pop() else {
            self.counters.allocated += 1;
            return Vec::with_capacity(self.buffer_bytes);
        };
        self.retained_bytes -= buffer.capacity();
        debug_assert!(buffer.is_empty());
        buffer
    }

    /// Takes back a buffer from [`BufferPool::take`] and drops its contents.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        self.counters.given += 1;
        let capacity = buffer.capacity();
        let fits = (self.buffer_bytes..=self.buffer_bytes * limits::POOL_GROWTH_FACTOR_MAX)
            .contains(&capacity)
            && self.retained_bytes + capacity <= self.retained_bytes_most;
        if !fits {
            self.counters.freed += 1;
            return;
        }
        buffer.clear();
        self.retained_bytes += capacity;
        self.buffers.push(buffer);
    }

    /// Frees all buffers that are in the pool.
    pub fn release_free(&mut self) {
        self.retained_bytes = 0;
        self.buffers = Vec::new();
    }

    /// Checks every buffer: for tests and the simulation.
    pub fn check_invariants(&self) {
        let capacities = self.buffers.iter().map(Vec::capacity);
        assert_eq!(capacities.sum::<usize>(), self.retained_bytes);
        assert!(self.retained_bytes <= self.retained_bytes_most);
        for buffer in &self.buffers {
            assert!(buffer.is_empty() && buffer.capacity() >= self.buffer_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_taken_again_empty() {
        let mut pool = BufferPool::new(64, 1_024);
        let mut buffer = pool.take();
        buffer.extend_from_slice(b"one client's secret");
        let address = buffer.as_ptr();
        pool.give(buffer);
        pool.check_invariants();
        let again = pool.take();
        assert_eq!(again.as_ptr(), address);
        assert!(again.is_empty());
        assert_eq!(pool.counters().allocated, 1);
        assert_eq!(pool.outstanding(), 1);
    }

    #[test]
    fn retained_memory_is_bounded() {
        let mut pool = BufferPool::new(64, 256);
        let buffers: Vec<_> = (0..10).map(|_| pool.take()).collect();
        buffers.into_iter().for_each(|buffer| pool.give(buffer));
        pool.check_invariants();
        assert!(pool.retained_bytes <= 256);
        assert!((1..=4).contains(&pool.len()));
        assert_eq!(pool.counters().freed, 10 - pool.len() as u64);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn free_buffers_can_be_released() {
        let mut pool = BufferPool::new(64, 1_024);
        let (one, other) = (pool.take(), pool.take());
        pool.give(one);
        pool.release_free();
        pool.check_invariants();
        assert!(pool.is_empty());
        pool.give(other);
        assert_eq!((pool.len(), pool.outstanding()), (1, 0));
    }

    #[test]
    fn a_buffer_that_grew_much_is_freed() {
        let mut pool = BufferPool::new(64, usize::MAX);
        let mut buffer = pool.take();
        buffer.reserve_exact(64 * limits::POOL_GROWTH_FACTOR_MAX + 1);
        pool.give(buffer);
        assert_eq!((pool.len(), pool.counters().freed), (0, 1));
        // A buffer that `mem::take` has emptied has no memory left to reuse.
        let _ = pool.take();
        pool.give(Vec::new());
        assert_eq!((pool.len(), pool.counters().freed), (0, 2));
    }
}
