//! Recognises a connection's protocol by its first bytes.
//!
//! One port serves all protocols, and each can be recognised: a TLS record of the handshake type
//! begins with the byte 22 (RFC 8446, section 5.1), HTTP/2 in clear text with its preface (RFC
//! 9113, section 3.4), and everything else is left to HTTP/1 to read or to refuse. The preface
//! begins like a request with the method `PRI`, so it can take all of its 24 bytes to distinguish
//! the two; a TLS record never needs more than one.

/// The first bytes that every HTTP/2 client sends.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// RFC 8446, section 5.1: the content type of a handshake record.
const TLS_HANDSHAKE: u8 = 22;

/// The protocol that the first bytes show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// Too few bytes to decide: a beginning of the preface, or none at all.
    Undecided,
    Http1,
    Http2,
    Tls,
}

/// Looks at the first bytes of a connection. Once decided, the result does not change with more
/// bytes.
pub fn sniff(first: &[u8]) -> Sniffed {
    match first.first() {
        None => Sniffed::Undecided,
        Some(&TLS_HANDSHAKE) => Sniffed::Tls,
        Some(_) if first.starts_with(PREFACE) => Sniffed::Http2,
        Some(_) if PREFACE.starts_with(first) => Sniffed::Undecided,
        Some(_) => Sniffed::Http1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_protocol_is_recognised() {
        assert_eq!(sniff(b""), Sniffed::Undecided);
        assert_eq!(sniff(b"POST / HTTP/1.1\r\n"), Sniffed::Http1);
        assert_eq!(sniff(b"PRI * HTTP/1.1\r\n"), Sniffed::Http1);
        assert_eq!(sniff(b"\x16\x03\x01"), Sniffed::Tls);
        assert_eq!(sniff(b"\x16"), Sniffed::Tls);
        assert_eq!(sniff(b"\x15\x03\x01"), Sniffed::Http1);
        assert_eq!(sniff(&[PREFACE, &b"\0\0\0"[..]].concat()), Sniffed::Http2);
    }

    #[test]
    fn the_preface_is_undecided_up_to_its_last_byte() {
        for length in 0..PREFACE.len() {
            assert_eq!(sniff(&PREFACE[..length]), Sniffed::Undecided, "{length}");
            let mut other = PREFACE[..length].to_vec();
            other.push(!PREFACE[length]);
            if length > 0 {
                assert_eq!(sniff(&other), Sniffed::Http1, "{length}");
            }
        }
    }
}
