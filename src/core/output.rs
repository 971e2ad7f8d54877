//! The bytes that wait to be written to one peer: one queue, and so one write path.
//!
//! # Shape
//!
//! ```text
//!   front                                                  back
//!   [ pooled ][ shared Bytes ][ shared Bytes ][ pooled ]   [ tail ]  <- encoders append here
//!   '----written----'
//!    \______________________ chain ____________________/
//! ```
//!
//! Small pieces (a head, a chunk's frame, a token event) are appended to the *tail*, one buffer
//! from the pool. Large `Bytes` are queued by reference: the present tail moves into the *chain*,
//! and they follow it there. One `writev(2)` then takes all of it: few system calls, and no copy of
//! large data.
//!
//! **The most common case allocates nothing.** A response fits in the tail, the socket takes it
//! whole, and the buffer returns to the pool in the same turn. The chain exists only while there is
//! more than one piece, or a piece that was written in part. It is boxed, so an idle connection
//! pays 32 bytes for its whole queue.
//!
//! # Marks
//!
//! A peer that reads slowly must be made to wait; it must not use up our memory.
//! [`OutputQueue::level`] compares the queue with three [`Marks`]; the connection acts on the
//! result:
//!
//! * `High`: stop reading from this peer, and grant its job no more credit. Below it, reading goes
//!   on;
//! * `Low`: grant the credit that was held back. It waits for this mark, so that the engine does
//!   not stop and go on at every write;
//! * `Hard`: close. A producer did not stop at `High`. A single piece longer than `High` does not
//!   count, however long it is: it is one whole response, whose length the engine's context bounds.
//!   The bytes that wait beside it do count.
//!
//! Mutation that a test catches: `level` without `longest_piece`
//! (`one_long_response_is_written_beyond_the_hard_mark_and_more_is_not`).
//!
//! # Invariants
//!
//!  1. Bytes leave in the order in which they came, each exactly once.
//!  2. No piece of the chain is empty; `written` is less than the front piece's length.
//!  3. There is a chain only while it holds a piece or a part of the tail was written.
//!  4. After `advance` has emptied the queue it holds no heap memory.
//!
//! The bound on bytes also bounds the number of pieces: of two neighbours at least one is a shared
//! piece longer than `limits::OUTPUT_COPY_BYTES_MAX` or a buffer that is nearly full.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

use super::pool::BufferPool;
use crate::limits::core as limits;

/// See the file's head.
#[derive(Debug, Default)]
pub struct OutputQueue {
    tail: Vec<u8>,
    chain: Option<Box<Chain>>,
}

/// The memory that an idle connection pays for its queue.
const _: () = assert!(size_of::<OutputQueue>() <= 32);

/// The pieces before the tail.
#[derive(Debug, Default)]
struct Chain {
    pieces: VecDeque<Piece>,
    /// The length of all pieces, including the written part of the first.
    pieces_bytes: usize,
    /// The memory of all pieces.
    memory_bytes: usize,
    /// How much of the first piece is written, or of the tail if there are no pieces.
    written: usize,
}

#[derive(Debug)]
enum Piece {
    /// A former tail, whose buffer returns to the pool.
    Pooled(Vec<u8>),
    Shared(Bytes),
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Piece::Pooled(buffer) => buffer,
            Piece::Shared(bytes) => bytes,
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Piece::Pooled(buffer) => buffer.capacity(),
            Piece::Shared(bytes) => bytes.len(),
        }
    }
}

/// The queue lengths at which the levels begin, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    pub low: usize,
    pub high: usize,
    pub hard: usize,
}

impl Marks {
    pub const DEFAULT: Marks = Marks {
        low: limits::OUTPUT_LOW_BYTES,
        high: limits::OUTPUT_HIGH_BYTES,
        hard: limits::OUTPUT_BYTES_MAX,
    };
}

/// How full a queue is. The order is the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// At most `low`: credit that was held back is granted.
    Low,
    /// Between the marks: the peer is read, and credit stays held back.
    Normal,
    /// At least `high`: the peer is not read, and no credit is granted.
    High,
    /// At least `hard`: close.
    Hard,
}

impl OutputQueue {
    pub const fn new() -> OutputQueue {
        OutputQueue {
            tail: Vec::new(),
            chain: None,
        }
    }

    // ---- getters ----

    /// Returns how many bytes wait.
    #[inline]
    pub fn len(&self) -> usize {
        match &self.chain {
            None => self.tail.len(),
            Some(chain) => chain.pieces_bytes + self.tail.len() - chain.written,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asked some ten times for each request, nearly always of a queue that is short.
    #[inline]
    pub fn level(&self, marks: &Marks) -> Level {
        let waiting = self.len();
        if waiting <= marks.low {
            Level::Low
        } else if waiting < marks.high {
            Level::Normal
        } else if waiting >= marks.hard && self.is_beyond(marks) {
            Level::Hard
        } else {
            Level::High
        }
    }

    /// Returns whether the hard mark is reached without counting the longest piece.
    #[cold]
    fn is_beyond(&self, marks: &Marks) -> bool {
        let chained = self.chain.iter().flat_map(|chain| &chain.pieces);
        let lengths = chained.map(|piece| piece.as_slice().len());
        let longest = lengths.chain([self.tail.len()]).max().unwrap_or(0);
        let answer = if longest > marks.high { longest } else { 0 };
        self.len().saturating_sub(answer) >= marks.hard
    }

    /// Returns whether the queue owns heap memory.
    pub fn holds_memory(&self) -> bool {
        self.tail.capacity() != 0 || self.chain.is_some()
    }

    /// Returns the memory that it owns: more than the bytes that wait.
    pub fn memory_bytes(&self) -> usize {
        self.tail.capacity() + self.chain.as_ref().map_or(0, |chain| chain.memory_bytes)
    }

    // ---- commands: fill ----

    /// Returns the buffer to append to, with room for at least `limits::OUTPUT_TAIL_ROOM_BYTES`
    /// without growing. The caller must only append: the bytes in it belong to earlier responses.
    /// If it may have appended nothing, it must call [`OutputQueue::release`] afterwards.
    pub fn tail(&mut self, pool: &mut BufferPool) -> &mut Vec<u8> {
        let room = self.tail.capacity() - self.tail.len();
        if room < limits::OUTPUT_TAIL_ROOM_BYTES && !self.tail.is_empty() {
            self.close_tail();
        }
        if self.tail.capacity() == 0 {
            self.tail = pool.take();
        }
        &mut self.tail
    }

    /// Queues `bytes`: small ones are copied, large ones by reference.
    pub fn push_bytes(&mut self, bytes: Bytes, pool: &mut BufferPool) {
        if bytes.is_empty() {
            return;
        }
        if bytes.len() <= limits::OUTPUT_COPY_BYTES_MAX {
            self.tail(pool).extend_from_slice(&bytes);
        } else {
            self.close_tail();
            self.push_piece(Piece::Shared(bytes));
        }
        self.debug_check();
    }

    // ---- commands: empty ----

    /// Fills `slices` with the front of the queue for `writev(2)`, and returns how many it filled.
    pub fn io_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (pieces, written) = match self.chain.as_deref() {
            Some(chain) => (chain.pieces.len(), chain.written),
            None => (0, 0),
        };
        let chained = self.chain.iter().flat_map(|chain| &chain.pieces);
        let waiting = chained
            .map(Piece::as_slice)
            .chain(std::iter::once(self.tail.as_slice()))
            .take(if self.tail.is_empty() {
                pieces
            } else {
                pieces + 1
            });
        let mut filled = 0;
        for (slot, piece) in slices.iter_mut().zip(waiting) {
            let skipped = if filled == 0 { written } else { 0 };
            *slot = IoSlice::new(&piece[skipped..]);
            filled += 1;
        }
        filled
    }

    /// Removes the first `count` bytes, which have been written. Empty buffers return to the pool.
    pub fn advance(&mut self, count: usize, pool: &mut BufferPool) {
        debug_assert!(count <= self.len(), "more was written than there was");
        match self.chain.take() {
            Some(mut chain) => {
                let tail_written = chain.advance(count, pool);
                if chain.pieces.is_empty() && tail_written >= self.tail.len() {
                    self.tail.clear();
                } else if !chain.pieces.is_empty() || tail_written > 0 {
                    self.chain = Some(chain);
                }
            }
            None if count >= self.tail.len() => self.tail.clear(),
            None if count > 0 => {
                self.chain = Some(Box::new(Chain {
                    written: count,
                    ..Chain::default()
                }));
            }
            None => {}
        }
        self.release(pool);
        self.debug_check();
    }

    /// Releases the memory of an empty queue.
    pub fn release(&mut self, pool: &mut BufferPool) {
        if self.tail.is_empty() && self.tail.capacity() != 0 {
            pool.give(std::mem::take(&mut self.tail));
        }
    }

    /// Drops all pending bytes.
    pub fn clear(&mut self, pool: &mut BufferPool) {
        if let Some(mut chain) = self.chain.take() {
            chain.advance(
                chain.pieces_bytes - chain.written.min(chain.pieces_bytes),
                pool,
            );
        }
        self.tail.clear();
        self.release(pool);
    }

    // ---- helpers ----

    /// Moves the tail into the chain, so that later pieces come after it.
    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.push_piece(Piece::Pooled(tail));
        }
    }

    fn push_piece(&mut self, piece: Piece) {
        let chain = self.chain.get_or_insert_default();
        chain.pieces_bytes += piece.as_slice().len();
        chain.memory_bytes += piece.memory_bytes();
        chain.pieces.push_back(piece);
    }

    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    pub fn check_invariants(&self) {
        let Some(chain) = &self.chain else {
            return;
        };
        let lengths = chain.pieces.iter().map(|piece| piece.as_slice().len());
        assert!(lengths.clone().all(|length| length > 0));
        assert_eq!(lengths.sum::<usize>(), chain.pieces_bytes);
        let memory = chain.pieces.iter().map(Piece::memory_bytes);
        assert_eq!(memory.sum::<usize>(), chain.memory_bytes);
        let front = chain.pieces.front().map(Piece::as_slice);
        assert!(chain.written < front.unwrap_or(&self.tail).len());
        assert!(front.is_some() || chain.written > 0);
    }
}

impl Chain {
    /// Removes `count` written bytes from the pieces. Returns how much of the tail is written,
    /// which is meaningful only if no piece is left.
    fn advance(&mut self, mut count: usize, pool: &mut BufferPool) -> usize {
        while let Some(front) = self.pieces.front() {
            let length = front.as_slice().len();
            if count < length - self.written {
                break;
            }
            count -= length - self.written;
            self.written = 0;
            self.pieces_bytes -= length;
            self.memory_bytes -= front.memory_bytes();
            if let Some(Piece::Pooled(buffer)) = self.pieces.pop_front() {
                pool.give(buffer);
            }
        }
        self.written += count;
        self.written
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::core as limits;

    fn front(queue: &OutputQueue) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); limits::OUTPUT_SLICES_MAX];
        let filled = queue.io_slices(&mut slices);
        slices[..filled]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn one_answer_and_one_write_allocate_nothing_after_the_first() {
        let mut pool = BufferPool::default();
        let mut queue = OutputQueue::new();
        for _ in 0..3 {
            queue
                .tail(&mut pool)
                .extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n");
            assert!(queue.chain.is_none());
            queue.advance(queue.len(), &mut pool);
            assert!(queue.is_empty() && !queue.holds_memory());
        }
        assert_eq!(pool.counters().allocated, 1);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn what_is_large_is_not_copied() {
        let mut pool = BufferPool::default();
        let mut queue = OutputQueue::new();
        let large = Bytes::from(vec![b'x'; limits::OUTPUT_COPY_BYTES_MAX + 1]);
        queue.tail(&mut pool).push(b'a');
        queue.push_bytes(large.clone(), &mut pool);
        queue.tail(&mut pool).push(b'z');
        let mut slices = [IoSlice::new(&[]); limits::OUTPUT_SLICES_MAX];
        assert_eq!(queue.io_slices(&mut slices), 3);
        assert_eq!(slices[1].as_ptr(), large.as_ptr());
        assert_eq!(queue.len(), large.len() + 2);
    }

    #[test]
    fn a_tail_without_room_makes_way_instead_of_growing() {
        let mut pool = BufferPool::default();
        let mut queue = OutputQueue::new();
        for _ in 0..100 {
            let tail = queue.tail(&mut pool);
            let capacity = tail.capacity();
            tail.extend_from_slice(&[b'x'; limits::OUTPUT_TAIL_ROOM_BYTES - 1]);
            assert_eq!(tail.capacity(), capacity);
        }
        queue.check_invariants();
        queue.clear(&mut pool);
        assert!(queue.is_empty() && !queue.holds_memory());
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn a_write_that_ends_with_the_last_piece_leaves_the_tail_alone() {
        let mut pool = BufferPool::default();
        let mut queue = OutputQueue::new();
        queue.push_bytes(
            vec![b'x'; limits::OUTPUT_COPY_BYTES_MAX + 1].into(),
            &mut pool,
        );
        queue.tail(&mut pool).push(b'z');
        queue.advance(limits::OUTPUT_COPY_BYTES_MAX + 1, &mut pool);
        assert!(queue.chain.is_none());
        assert_eq!(front(&queue), b"z");
    }

    #[test]
    fn levels_begin_at_their_marks() {
        let mut pool = BufferPool::default();
        let mut queue = OutputQueue::new();
        let mut levels = vec![queue.level(&MARKS)];
        for _ in 0..5 {
            queue.push_bytes(piece(1), &mut pool);
            levels.push(queue.level(&MARKS));
        }
        use Level::{Hard, High, Low, Normal};
        assert_eq!(levels, [Low, Low, Normal, High, High, Hard]);
    }

    const PIECE: usize = 2 * limits::OUTPUT_COPY_BYTES_MAX;
    const MARKS: Marks = Marks {
        low: PIECE,
        high: 3 * PIECE,
        hard: 5 * PIECE,
    };

    fn piece(times: usize) -> Bytes {
        vec![b'x'; times * PIECE].into()
    }

    /// A regression test: one long response of a model with a context of a million tokens used to
    /// end its connection.
    #[test]
    fn one_long_response_is_written_beyond_the_hard_mark_and_more_is_not() {
        let mut pool = BufferPool::default();
        for is_copied in [false, true] {
            let mut queue = OutputQueue::new();
            match is_copied {
                true => queue.tail(&mut pool).extend_from_slice(&piece(50)),
                false => queue.push_bytes(piece(50), &mut pool),
            }
            assert_eq!(queue.level(&MARKS), Level::High);
            (0..4).for_each(|_| queue.push_bytes(piece(1), &mut pool));
            assert_eq!(queue.level(&MARKS), Level::High);
            queue.push_bytes(piece(1), &mut pool);
            assert_eq!(queue.level(&MARKS), Level::Hard);
            queue.advance(50 * PIECE, &mut pool);
            assert_eq!(queue.level(&MARKS), Level::Hard);
            queue.clear(&mut pool);
        }
    }

    #[test]
    fn an_unused_tail_returns_to_the_pool() {
        let mut pool = BufferPool::default();
        let mut queue = OutputQueue::new();
        queue.tail(&mut pool);
        queue.release(&mut pool);
        assert!(!queue.holds_memory());
        assert_eq!((pool.len(), pool.outstanding()), (1, 0));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append(usize),
        Push(usize),
        /// The socket takes this many of the bytes offered.
        Write(usize),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let size = || {
            prop_oneof![
                0_usize..20,
                0..3 * limits::OUTPUT_COPY_BYTES_MAX,
                0..2 * 64_usize * 1_024
            ]
        };
        let step = prop_oneof![
            6 => size().prop_map(Step::Append),
            6 => size().prop_map(Step::Push),
            9 => size().prop_map(Step::Write),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 0..24)
    }

    /// Returns the stream's bytes from `position` on, with a period that divides no buffer's size.
    fn stream(position: usize, count: usize) -> Vec<u8> {
        (position..position + count)
            .map(|byte| (byte % 251) as u8)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bytes_leave_in_order_each_once(steps in steps()) {
            let mut pool = BufferPool::default();
            let mut queue = OutputQueue::new();
            let (mut queued, mut written) = (0, 0);
            for step in steps {
                match step {
                    Step::Append(count) => {
                        queue.tail(&mut pool).extend_from_slice(&stream(queued, count));
                        queue.release(&mut pool);
                        queued += count;
                    }
                    Step::Push(count) => {
                        queue.push_bytes(Bytes::from(stream(queued, count)), &mut pool);
                        queued += count;
                    }
                    Step::Write(count) => {
                        let shown = front(&queue);
                        prop_assert_eq!(&shown, &stream(written, shown.len()));
                        prop_assert_eq!(shown.is_empty(), queue.is_empty());
                        let taken = count.min(shown.len());
                        queue.advance(taken, &mut pool);
                        written += taken;
                    }
                    Step::Clear => {
                        queue.clear(&mut pool);
                        written = queued;
                    }
                }
                queue.check_invariants();
                pool.check_invariants();
                prop_assert_eq!(queue.len(), queued - written);
                prop_assert!(queue.memory_bytes() >= queue.len());
                if queue.is_empty() {
                    prop_assert!(!queue.holds_memory() && queue.memory_bytes() == 0);
                    prop_assert_eq!(pool.outstanding(), 0);
                }
            }
        }
    }
}
