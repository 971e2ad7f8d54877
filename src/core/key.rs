//! The name of one connection: a slot's index and the generation of its tenant.
//!
//! The upper two bits of the generation are the connection's [`Kind`]: each kind has slots of its
//! own, and an event has to find the right ones. The bits cost no memory, and every table that
//! compares generations compares kinds with them. Two of the four values are free, for sockets
//! without connections, such as those of datagrams.

/// The kinds of connections, by the side that opened them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A client has connected to the daemon.
    Client,
    /// The daemon connects to a server.
    Outbound,
}

impl Kind {
    /// The bits that a generation has beside the kind.
    pub const GENERATION_BITS: u32 = 30;

    /// Returns the kind's bits in a generation.
    pub const fn bits(self) -> u32 {
        (self as u32) << Kind::GENERATION_BITS
    }
}

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

    pub const fn kind(self) -> Kind {
        match self.generation >> Kind::GENERATION_BITS {
            1 => Kind::Outbound,
            _ => Kind::Client,
        }
    }

    pub const fn from_u64(token: u64) -> Key {
        Key {
            index: token as u32,
            generation: (token >> 32) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutation: `Kind::bits` that shifts by 31.
    #[test]
    fn a_key_keeps_its_kind_on_the_way_through_the_kernel() {
        for kind in [Kind::Client, Kind::Outbound] {
            for count in [1, (1 << Kind::GENERATION_BITS) - 1] {
                let key = Key::new(u32::MAX, kind.bits() | count);
                assert_eq!(Key::from_u64(key.to_u64()), key);
                assert_eq!(key.kind(), kind);
            }
        }
    }
}
