//! Which node of a cluster has a key: slots, hash tags, and the map of slots.
//!
//! Owns the rules of Redis's cluster specification. Pure.
//!
//! Mutations that the tests below catch: the hash of the whole key in spite of a tag, an empty tag
//! that is hashed, a range without its last slot.

use crate::limits::redis as limits;

/// Returns the slot of a key: a hash of the part between the first `{` and the next `}`, if that
/// is not empty, or else of the whole key. Keys with the same tag are on the same node.
pub fn slot_of(key: &[u8]) -> u16 {
    crc16(tag_of(key)) % limits::CLUSTER_SLOTS as u16
}

fn tag_of(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    let rest = &key[open + 1..];
    match rest.iter().position(|byte| *byte == b'}') {
        None | Some(0) => key,
        Some(length) => &rest[..length],
    }
}

/// CRC-16/XMODEM, bit by bit: a key has a hundred bytes, and its round trip takes far longer.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    })
}

/// The node of each slot, by its number in the caller's list.
#[derive(Debug)]
pub struct SlotMap(Box<[u16]>);

/// A slot without a node.
const NONE: u16 = u16::MAX;

impl Default for SlotMap {
    fn default() -> SlotMap {
        SlotMap(vec![NONE; limits::CLUSTER_SLOTS].into())
    }
}

impl SlotMap {
    /// Assigns the slots from `first` to `last` to a node. Slots that don't exist are ignored: they
    /// are a server's claim.
    pub fn assign(&mut self, first: u64, last: u64, node: usize) {
        let last = last.min(limits::CLUSTER_SLOTS as u64 - 1);
        if let Ok(node) = u16::try_from(node) {
            for slot in first..=last {
                self.0[slot as usize] = node;
            }
        }
    }

    /// Returns whether each slot has a node.
    pub fn is_whole(&self) -> bool {
        !self.0.contains(&NONE)
    }

    pub fn node_of(&self, key: &[u8]) -> Option<usize> {
        let node = self.0[usize::from(slot_of(key))];
        (node != NONE).then_some(usize::from(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first value is the specification's own; the others are `CLUSTER KEYSLOT` of a server.
    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, slot) in [
            ("foo", 12_182),
            ("bar", 5_061),
            ("foo{}{bar}", 8_363),
            ("foo{{bar}}zap", 4_015),
            ("foo{bar}{zap}", 5_061),
            ("{bar", 4_015),
            ("", 0),
        ] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn a_map_has_whole_ranges_and_ignores_slots_that_do_not_exist() {
        let mut map = SlotMap::default();
        assert_eq!(map.node_of(b"foo"), None);
        map.assign(5_061, 12_182, 3);
        map.assign(16_000, 99_999, 1);
        assert_eq!(map.node_of(b"foo"), Some(3));
        assert_eq!(map.node_of(b"bar"), Some(3));
        map.assign(12_182, 12_182, 0);
        assert_eq!(map.node_of(b"foo"), Some(0));
    }
}
