//! The form in which a change is announced.
//!
//! Mutations that the tests below catch: a text of another version that is read, and an id with
//! any bytes.

use std::fmt::Write as _;

use crate::limits::bus as limits;

/// A change that other daemons should see at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The key with this id was created, changed or revoked.
    Key(String),
    /// All that is kept for the key with this id is gone.
    Tenant(String),
    /// All that the caches hold is to be forgotten.
    Entries,
    /// A cached entry is not valid any more.
    Entry([u8; 32]),
    /// Anything may have changed.
    All,
}

/// The version of the text. Daemons of two versions may share a bus while they are upgraded.
const VERSION: &str = "1";

impl Notice {
    /// Returns the notice as it is sent.
    pub fn to_text(&self) -> String {
        match self {
            Notice::Key(id) => format!("{VERSION} key {id}"),
            Notice::Tenant(id) => format!("{VERSION} tenant {id}"),
            Notice::Entry(digest) => {
                let mut text = format!("{VERSION} entry ");
                for byte in digest {
                    // Writing to a string does not fail.
                    let _ = write!(text, "{byte:02x}");
                }
                text
            }
            Notice::Entries => format!("{VERSION} entries"),
            Notice::All => format!("{VERSION} all"),
        }
    }

    /// Reads a notice; `None` if it is not one. Texts come from the network.
    pub fn parse(text: &[u8]) -> Option<Notice> {
        if text.len() > limits::NOTICE_BYTES_MAX {
            return None;
        }
        let text = std::str::from_utf8(text).ok()?;
        let rest = text.strip_prefix(VERSION)?.strip_prefix(' ')?;
        let (word, value) = rest.split_once(' ').unwrap_or((rest, ""));
        match word {
            "key" => id(value).map(Notice::Key),
            "tenant" => id(value).map(Notice::Tenant),
            "entry" => {
                let hash = blake3::Hash::from_hex(value).ok()?;
                Some(Notice::Entry(*hash.as_bytes()))
            }
            "entries" if value.is_empty() => Some(Notice::Entries),
            "all" if value.is_empty() => Some(Notice::All),
            _ => None,
        }
    }
}

/// An id of a key: it goes into log lines and statements.
fn id(text: &str) -> Option<String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (!text.is_empty() && text.bytes().all(is_plain)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn notices_are_read_as_they_were_sent() {
        for notice in [
            Notice::Key("key_5f0c92ab61d7".into()),
            Notice::Tenant("key_5f0c92ab61d7".into()),
            Notice::Entries,
            Notice::Entry([0xa5; 32]),
            Notice::All,
        ] {
            assert_eq!(Notice::parse(notice.to_text().as_bytes()), Some(notice));
        }
        for wrong in [
            "",
            "1",
            "1 ",
            "2 all",
            "1 all x",
            "1 key",
            "1 key ",
            "1 key a b",
            "1 key a\n",
            "1 entry 00",
            "1 everything",
        ] {
            assert_eq!(Notice::parse(wrong.as_bytes()), None, "{wrong:?}");
        }
        let long = format!("1 key {}", "a".repeat(limits::NOTICE_BYTES_MAX));
        assert_eq!(Notice::parse(long.as_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(notice) = Notice::parse(&bytes) {
                prop_assert_eq!(Notice::parse(notice.to_text().as_bytes()), Some(notice));
            }
        }
    }
}
