//! The name of one connection: a slot's index and the generation of its tenant.

/// Names one value in one slot for as long as that value lives, and nothing afterwards.
///
/// A slot is used again and again, each time with a new generation. An event, a timer or a
/// completion that arrives for an earlier tenant carries the earlier generation and is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub index: u32,
    pub generation: u32,
}

impl Key {
    pub const fn new(index: u32, generation: u32) -> Key {
        Key { index, generation }
    }

    /// Returns `generation << 32 | index`, the form in which the kernel carries it in `epoll_data`.
    pub const fn to_u64(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    pub const fn from_u64(token: u64) -> Key {
        Key {
            index: token as u32,
            generation: (token >> 32) as u32,
        }
    }
}
