//! The two tables of HPACK (RFC 7541, section 2.3): the static one of the RFC, and the dynamic one
//! that a peer fills.
//!
//! Invariants:
//!  1. `bytes` is the sum of all entries' sizes and at most `bytes_max`.
//!  2. `bytes_max` is at most `limits::HEADER_TABLE_BYTES`.

use crate::limits::http2 as limits;
use std::collections::VecDeque;

/// The bytes that an entry counts in addition to its strings (RFC 7541, section 4.1).
pub const ENTRY_OVERHEAD_BYTES: usize = 32;

/// RFC 7541, appendix A; index 1 comes first.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"), (":status", "200"),
    (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""),
    ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""),
    ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""),
    ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""),
    ("vary", ""), ("via", ""), ("www-authenticate", ""),
];

/// Returns the index of a name in the static table, for the names that responses have.
pub fn static_name(name: &str) -> Option<u32> {
    let index = match name {
        "accept-ranges" => 18,
        "access-control-allow-origin" => 20,
        "allow" => 22,
        "cache-control" => 24,
        "content-encoding" => 26,
        "content-length" => 28,
        "content-type" => 31,
        "date" => 33,
        "etag" => 34,
        "last-modified" => 44,
        "link" => 45,
        "location" => 46,
        "retry-after" => 53,
        "server" => 54,
        "strict-transport-security" => 56,
        "vary" => 59,
        "www-authenticate" => 61,
        _ => return None,
    };
    Some(index)
}

/// Both tables, in the state that one peer has given them.
#[derive(Debug)]
pub struct Table {
    /// The newest comes first.
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Entry {
    /// Name and value.
    text: Box<[u8]>,
    name_bytes: usize,
}

impl Entry {
    fn size(&self) -> usize {
        self.text.len() + ENTRY_OVERHEAD_BYTES
    }
}

impl Default for Table {
    fn default() -> Table {
        Table {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max: limits::HEADER_TABLE_BYTES as usize,
        }
    }
}

impl Table {
    /// Returns name and value at an index (RFC 7541, section 2.3.3).
    pub fn get(&self, index: u32) -> Option<(&[u8], &[u8])> {
        let index = (index as usize).checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - STATIC.len())?;
        Some(entry.text.split_at(entry.name_bytes))
    }

    /// RFC 7541, section 4.4: an entry that is larger than the table empties it.
    pub fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + ENTRY_OVERHEAD_BYTES;
        self.evict(self.bytes_max.saturating_sub(size));
        if size <= self.bytes_max {
            self.bytes += size;
            self.entries.push_front(Entry {
                text: [name, value].concat().into(),
                name_bytes: name.len(),
            });
        }
        self.debug_check();
    }

    /// Changes the table's size, which the peer chooses (RFC 7541, section 6.3). `false`: it is
    /// more than we allow.
    #[must_use]
    pub fn resize(&mut self, bytes_max: u32) -> bool {
        if bytes_max > limits::HEADER_TABLE_BYTES {
            return false;
        }
        self.bytes_max = bytes_max as usize;
        self.evict(self.bytes_max);
        self.debug_check();
        true
    }

    /// Drops the oldest entries until at most `bytes_most` bytes are left.
    fn evict(&mut self, bytes_most: usize) {
        while self.bytes > bytes_most
            && let Some(oldest) = self.entries.pop_back()
        {
            self.bytes -= oldest.size();
        }
    }

    fn debug_check(&self) {
        debug_assert!(self.bytes <= self.bytes_max);
        debug_assert!(self.bytes_max <= limits::HEADER_TABLE_BYTES as usize);
        debug_assert_eq!(
            self.bytes,
            self.entries.iter().map(Entry::size).sum::<usize>()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_responses_have_their_index() {
        for (index, (name, _)) in STATIC.iter().enumerate() {
            if let Some(found) = static_name(name) {
                assert_eq!(found as usize, index + 1, "{name}");
            }
        }
        assert_eq!(static_name("x-request-id"), None);
    }

    /// Mutations: the oldest entry first; `evict` before room is needed; no eviction.
    #[test]
    fn the_newest_entry_has_the_lowest_index() {
        let mut table = Table::default();
        assert_eq!(table.get(0), None);
        assert_eq!(table.get(2), Some((&b":method"[..], &b"GET"[..])));
        assert_eq!(table.get(62), None);
        table.insert(b"a", b"1");
        table.insert(b"b", b"2");
        assert_eq!(table.get(62), Some((&b"b"[..], &b"2"[..])));
        assert_eq!(table.get(63), Some((&b"a"[..], &b"1"[..])));
        assert_eq!(table.get(64), None);
        assert!(table.resize(2 * 34));
        assert!(table.get(63).is_some());
        assert!(table.resize(2 * 34 - 1));
        assert_eq!(table.get(62), Some((&b"b"[..], &b"2"[..])));
        assert_eq!(table.get(63), None);
        // The entry is larger than the table: nothing is left.
        table.insert(b"c", &[b'x'; 99]);
        assert_eq!(table.get(62), None);
        assert!(!table.resize(limits::HEADER_TABLE_BYTES + 1));
    }
}
