//! Messages in a stream of bytes: a flag, a length, the message (grpc/grpc,
//! doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message").
//!
//! Owns the reading of prefixes from pieces that end anywhere, and the compression of single
//! messages. A length is a claim: it is compared with the limit before anything is reserved for it,
//! and only bytes that have really come are kept. Inflating is bounded by size and by ratio, as it
//! is for whole bodies.
//!
//! Invariants:
//!  1. The same bytes produce the same messages however they are cut.
//!  2. A decoder holds at most one incomplete message, and the data received since its last poll.

use std::borrow::Cow;

use crate::error::{ApiError, ErrorCode};
use crate::http::compress::Coding;
use crate::http::compress::decode::{self, Bound, DecodeError};
use crate::http::compress::encode::encode_whole;
use crate::limits::grpc as limits;

use super::messages::Message;

/// The flag and the length.
pub const PREFIX_BYTES: usize = 5;

/// How flagged messages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    #[default]
    Identity,
    Gzip,
}

impl Encoding {
    pub const fn name(self) -> &'static str {
        match self {
            Encoding::Identity => "identity",
            Encoding::Gzip => "gzip",
        }
    }
}

/// How large a message may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Applies before and after inflating.
    pub bytes: usize,
    /// Maximum ratio of inflated to compressed size; `None`: compressed messages are refused.
    pub inflate_ratio: Option<u32>,
}

/// Takes messages out of pieces. Call order: `handle_data`, then `poll_message` until it returns
/// `None`; `finish` once the stream has ended.
#[derive(Debug)]
pub struct Decoder {
    encoding: Encoding,
    bounds: Bounds,
    pending: Vec<u8>,
    /// `pending` is used up to this position.
    start: usize,
}

impl Decoder {
    pub fn new(encoding: Encoding, bounds: Bounds) -> Decoder {
        Decoder {
            encoding,
            bounds,
            pending: Vec::new(),
            start: 0,
        }
    }

    pub fn handle_data(&mut self, data: &[u8]) {
        self.pending.drain(..self.start);
        self.start = 0;
        self.pending.extend_from_slice(data);
    }

    /// Returns how many bytes do not belong to a returned message yet.
    pub fn pending_bytes(&self) -> usize {
        self.pending.len() - self.start
    }

    /// Returns the memory that it holds.
    pub fn buffered_bytes(&self) -> usize {
        self.pending.capacity()
    }

    /// Returns the next whole message. After an error the stream is meaningless.
    pub fn poll_message(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        let Some(framed) = first(&self.pending[self.start..], self.bounds.bytes)? else {
            return Ok(None);
        };
        let message = framed.content(self.encoding, self.bounds)?.into_owned();
        self.start += framed.length();
        if self.start == self.pending.len() {
            // Between messages a stream holds no memory.
            self.pending = Vec::new();
            self.start = 0;
        }
        Ok(Some(message))
    }

    /// Handles the end of the stream: an incomplete message is an error.
    pub fn finish(&self) -> Result<(), ApiError> {
        match self.pending_bytes() {
            0 => Ok(()),
            _ => Err(cut_off()),
        }
    }
}

/// Returns the only message of a method that takes exactly one, borrowed if it came uncompressed.
pub fn only_message(
    body: &[u8],
    encoding: Encoding,
    bounds: Bounds,
) -> Result<Cow<'_, [u8]>, ApiError> {
    if body.is_empty() {
        return Err(malformed(
            "the request has no message; this method expects one",
        ));
    }
    let framed = first(body, bounds.bytes)?.ok_or_else(cut_off)?;
    if framed.length() < body.len() {
        return Err(malformed(
            "the request has more than one message; this method expects one",
        ));
    }
    framed.content(encoding, bounds)
}

/// Appends a message with its prefix, compressed if `encoding` asks for it and it becomes smaller.
pub fn append(out: &mut Vec<u8>, message: &impl Message, encoding: Encoding) {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    // A vector grows as needed, so encoding cannot fail.
    let encoded = message.encode(out);
    debug_assert!(encoded.is_ok());
    let content = start + PREFIX_BYTES;
    if encoding == Encoding::Gzip && out.len() - content >= limits::GZIP_BYTES_MIN {
        let mut packed = Vec::new();
        let is_packed = encode_whole(Coding::Gzip, &out[content..], &mut packed).is_ok();
        if is_packed && packed.len() < out.len() - content {
            out.truncate(content);
            out.extend_from_slice(&packed);
            out[start] = 1;
        }
    }
    let length = (out.len() - content) as u32;
    out[start + 1..content].copy_from_slice(&length.to_be_bytes());
}

/// A whole message within the bytes that carried it.
struct Framed<'a> {
    is_compressed: bool,
    content: &'a [u8],
}

/// Returns the first message, if it is complete.
fn first(bytes: &[u8], limit: usize) -> Result<Option<Framed<'_>>, ApiError> {
    let Some((&flag, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    if flag > 1 {
        let message = format!("the message's compressed flag is {flag}; expected 0 or 1");
        return Err(malformed(&message));
    }
    let Some((length, rest)) = rest.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > limit {
        return Err(too_large(limit));
    }
    Ok(rest.get(..length).map(|content| Framed {
        is_compressed: flag == 1,
        content,
    }))
}

impl<'a> Framed<'a> {
    fn length(&self) -> usize {
        PREFIX_BYTES + self.content.len()
    }

    fn content(&self, encoding: Encoding, bounds: Bounds) -> Result<Cow<'a, [u8]>, ApiError> {
        match (self.is_compressed, encoding, bounds.inflate_ratio) {
            (false, _, _) => Ok(Cow::Borrowed(self.content)),
            (true, Encoding::Gzip, Some(ratio)) => {
                gunzip(self.content, bounds.bytes, ratio).map(Cow::Owned)
            }
            // UNIMPLEMENTED, as for an unknown encoding (grpc/grpc, doc/compression.md).
            (true, Encoding::Gzip, None) => Err(ApiError::new(
                ErrorCode::NotImplemented,
                "this method does not accept compressed messages; send the message uncompressed",
            )),
            (true, Encoding::Identity, _) => Err(malformed(
                "a message has the compressed flag, but the request has no `grpc-encoding`; send \
                 `grpc-encoding: gzip`",
            )),
        }
    }
}

fn gunzip(packed: &[u8], bytes: usize, ratio: u32) -> Result<Vec<u8>, ApiError> {
    let bound = Bound::of(packed.len(), bytes, ratio);
    let mut content = Vec::new();
    let inflated = decode::Decoder::new(Coding::Gzip, bound).and_then(|mut decoder| {
        decoder.decode(packed, &mut content)?;
        decoder.finish()
    });
    match inflated {
        Ok(()) => Ok(content),
        Err(DecodeError::TooLarge) => Err(too_large(bytes)),
        Err(DecodeError::TooDense) => {
            let message = format!(
                "a message inflates to more than {ratio} times its size \
                 (`limits.max_inflate_ratio`); send it uncompressed"
            );
            Err(ApiError::new(ErrorCode::BodyTooLarge, message))
        }
        Err(DecodeError::WindowTooLarge | DecodeError::Malformed | DecodeError::Truncated) => {
            Err(malformed("a compressed message is not valid gzip"))
        }
    }
}

fn malformed(message: &str) -> ApiError {
    ApiError::new(ErrorCode::MalformedGrpc, message)
}

fn cut_off() -> ApiError {
    malformed("the request ends within a message")
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the message is too large; this method accepts at most {limit} bytes");
    ApiError::new(ErrorCode::BodyTooLarge, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::messages::health::HealthCheckRequest;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 20;

    fn bounds(bytes: usize) -> Bounds {
        Bounds {
            bytes,
            inflate_ratio: Some(100),
        }
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        encode_whole(Coding::Gzip, content, &mut packed).unwrap();
        packed
    }

    fn framed(flag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![flag];
        bytes.extend_from_slice(&(content.len() as u32).to_be_bytes());
        bytes.extend_from_slice(content);
        bytes
    }

    /// Whether the message is compressed, and its content.
    fn message() -> impl Strategy<Value = (bool, Vec<u8>)> {
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..40))
    }

    fn code(result: Result<impl std::fmt::Debug, ApiError>) -> ErrorCode {
        result.unwrap_err().code
    }

    #[test]
    fn one_message_is_borrowed() {
        let bytes = framed(0, b"abc");
        let message = only_message(&bytes, Encoding::Identity, bounds(3)).unwrap();
        assert!(matches!(message, Cow::Borrowed(b"abc")));
        let packed = framed(1, &gzip(b"abc"));
        let message = only_message(&packed, Encoding::Gzip, bounds(LIMIT)).unwrap();
        assert_eq!(&*message, b"abc");
    }

    #[test]
    fn broken_framing_and_oversized_messages_are_different_errors() {
        let (identity, limit) = (Encoding::Identity, bounds(100));
        for bytes in [
            &b""[..],
            &[0],
            &[2],
            &[0xff, 0, 0, 0, 1, 0],
            &[0, 0, 0, 0, 2, b'a'],
            &[0, 0, 0, 0, 0, 0],
            &framed(0, b"a").repeat(2),
            // The flag without an encoding.
            &framed(1, b"a"),
        ] {
            let result = only_message(bytes, identity, limit);
            assert_eq!(code(result), ErrorCode::MalformedGrpc, "{bytes:?}");
        }
        let large = only_message(&[0, 0, 0, 0, 101], identity, limit);
        assert_eq!(code(large), ErrorCode::BodyTooLarge);
    }

    #[test]
    fn a_hostile_length_reserves_nothing() {
        let mut decoder = Decoder::new(Encoding::Identity, bounds(usize::MAX));
        decoder.handle_data(&[0, 0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(decoder.poll_message(), Ok(None));
        assert!(decoder.pending.capacity() < 1_024);
        assert_eq!(code(decoder.finish()), ErrorCode::MalformedGrpc);
        let mut decoder = Decoder::new(Encoding::Identity, bounds(LIMIT));
        decoder.handle_data(&[0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(code(decoder.poll_message()), ErrorCode::BodyTooLarge);
    }

    #[test]
    fn a_bomb_ends_at_its_bound() {
        let bomb = |bytes| gzip(&vec![0; bytes]);
        let zeros = bomb(16 << 20);
        assert!(zeros.len() < 32 << 10);
        let error = gunzip(&zeros, LIMIT, 100).unwrap_err();
        assert_eq!(error.code, ErrorCode::BodyTooLarge);
        // Small, but inflating by a thousand.
        let small = bomb(512 << 10);
        let error = gunzip(&small, LIMIT, 100).unwrap_err();
        assert!(error.message.contains("times its size"), "{error}");
        // An honest message passes even at the bound.
        let honest: Vec<u8> = (0..LIMIT as u32)
            .map(|n| (n.wrapping_mul(0x9e37_79b9) >> 28) as u8 ^ (n >> 9) as u8)
            .collect();
        assert_eq!(gunzip(&gzip(&honest), LIMIT, 100).unwrap(), honest);
        let short = gunzip(&gzip(&honest), LIMIT - 1, 100).unwrap_err();
        let most = format!("accepts at most {} bytes", LIMIT - 1);
        assert!(short.message.contains(&most), "{short}");
    }

    #[test]
    fn what_is_not_gzip_is_malformed() {
        let good = gzip(b"abc");
        let mut broken = good.clone();
        broken[good.len() - 6] ^= 1;
        for packed in [
            &b"abc"[..],
            b"",
            &good[..good.len() - 1],
            &broken,
            &[good.as_slice(), b"x"].concat(),
        ] {
            assert_eq!(code(gunzip(packed, LIMIT, 100)), ErrorCode::MalformedGrpc);
        }
    }

    #[test]
    fn answers_are_compressed_where_it_pays() {
        let message = |length| HealthCheckRequest {
            service: "a".repeat(length),
        };
        for (length, encoding, flag) in [
            (10, Encoding::Gzip, 0),
            (5_000, Encoding::Identity, 0),
            (5_000, Encoding::Gzip, 1),
        ] {
            let mut out = b"before".to_vec();
            append(&mut out, &message(length), encoding);
            assert_eq!(out[6], flag);
            let content = only_message(&out[6..], Encoding::Gzip, bounds(LIMIT)).unwrap();
            assert_eq!(HealthCheckRequest::decode(&*content), Ok(message(length)));
        }
    }

    proptest! {
        #[test]
        fn cuts_do_not_change_the_messages(
            messages in prop::collection::vec(message(), 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let wire: Vec<u8> = messages
                .iter()
                .flat_map(|(packed, content)| match packed {
                    true => framed(1, &gzip(content)),
                    false => framed(0, content),
                })
                .collect();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let mut decoder = Decoder::new(Encoding::Gzip, bounds(LIMIT));
            let mut found = Vec::new();
            for piece in cuts.windows(2) {
                decoder.handle_data(&wire[piece[0]..piece[1]]);
                while let Some(message) = decoder.poll_message().unwrap() {
                    found.push(message);
                }
            }
            prop_assert_eq!(decoder.finish(), Ok(()));
            let sent: Vec<_> = messages.into_iter().map(|(_, content)| content).collect();
            prop_assert_eq!(found, sent);
        }

        #[test]
        fn cuts_do_not_change_the_result_of_hostile_bytes(
            bytes in prop::collection::vec(prop_oneof![0..3u8, any::<u8>()], 0..64),
            at: prop::sample::Index,
        ) {
            let run = |pieces: &[&[u8]]| {
                let mut decoder = Decoder::new(Encoding::Gzip, bounds(16));
                let mut found = Vec::new();
                for piece in pieces {
                    decoder.handle_data(piece);
                    loop {
                        match decoder.poll_message() {
                            Ok(Some(message)) => found.push(message),
                            Ok(None) => break,
                            Err(error) => return (found, Some(error)),
                        }
                    }
                }
                let end = decoder.finish().err();
                (found, end)
            };
            let (head, tail) = bytes.split_at(at.index(bytes.len() + 1));
            prop_assert_eq!(run(&[&bytes]), run(&[head, tail]));
        }
    }
}
