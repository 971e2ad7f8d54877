//! The chunked transfer coding (RFC 9112, section 7.1), decoded in place.
//!
//! This file owns the walk through a chunked body. It never needs a byte twice, so the wire bytes
//! may be cut anywhere: half-read state lives in the [`Decoder`], not in the buffer. Decoded bytes
//! are written over wire bytes that were read already; decoding only ever shrinks them.
//!
//! ```text
//!   Size --digit--> Size --";"--> Extension --CR--+
//!    ^                \-------------CR------------+--> SizeLf --size > 0--> Data --> DataCr
//!    |                                                   |                             |
//!    +---------------------------- LF ---- DataLf <------|-------------CR--------------+
//!                                                        v size = 0
//!                   Finished <--LF-- EndLf <--CR-- TrailerStart <--LF-- TrailerLf <--CR--+
//!                                                        \--> TrailerName --":"--> TrailerValue
//! ```
//!
//! Strict where parsers have disagreed, so that requests could be smuggled between them:
//!
//! 1. A size is hexadecimal digits and nothing else: no sign, `0x`, or white space around it.
//! 2. Every line ends with CRLF; a CR without LF, or an LF without CR, is refused in a size line,
//!    in an extension, after the data and in a trailer.
//! 3. Extensions and trailers are bounded, must hold no control byte, and are dropped.
//! 4. A chunk that would exceed the body's limit is refused by its size line, before its data.

use super::{Malformed, is_token_byte, is_value_byte};
use crate::error::ErrorCode;
use crate::limits::http as http_limits;
use crate::limits::http1 as limits;

/// The state of one chunked body.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    /// The chunk's size while its line is read; then how much of its data is still to come.
    size: u64,
    /// Decoded bytes that the body's limit still allows.
    room_bytes: u64,
    extension_bytes: u16,
    trailer_bytes: u16,
    digits: u8,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Finished,
}

/// The result of one call of [`Decoder::decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Where the decoded bytes end in the buffer.
    pub write: usize,
    /// Where the unread wire bytes begin: at the buffer's end, unless the body ended.
    pub read: usize,
    /// Whether the body and its trailer are complete.
    pub is_finished: bool,
    /// Chunks begun in this call that hold next to nothing: the caller may lose its patience.
    pub tiny_chunks: u32,
}

impl Decoder {
    /// Creates a decoder. `body_limit` applies to the decoded bytes.
    pub const fn new(body_limit: usize) -> Decoder {
        Decoder {
            size: 0,
            room_bytes: body_limit as u64,
            extension_bytes: 0,
            trailer_bytes: 0,
            digits: 0,
            phase: Phase::Size,
        }
    }

    /// Reads the wire bytes from `read` on and writes the decoded bytes from `write` on, which must
    /// not be greater than `read`. After an error the decoder must not be called again.
    pub fn decode(
        &mut self,
        buffer: &mut [u8],
        mut write: usize,
        mut read: usize,
    ) -> Result<Decoded, Malformed> {
        debug_assert!(write <= read, "decoding would overwrite bytes not yet read");
        let mut tiny_chunks = 0;
        while read < buffer.len() && self.phase != Phase::Finished {
            if self.phase == Phase::Data {
                let available = (buffer.len() - read) as u64;
                let taken = self.size.min(available) as usize;
                buffer.copy_within(read..read + taken, write);
                read += taken;
                write += taken;
                self.size -= taken as u64;
                if self.size == 0 {
                    self.phase = Phase::DataCr;
                }
            } else {
                self.phase = self.next_phase(buffer[read])?;
                read += 1;
                let is_tiny =
                    self.phase == Phase::Data && self.size < http_limits::BODY_PIECE_BYTES_MIN;
                tiny_chunks += u32::from(is_tiny);
            }
        }
        Ok(Decoded {
            write,
            read,
            is_finished: self.phase == Phase::Finished,
            tiny_chunks,
        })
    }

    fn next_phase(&mut self, byte: u8) -> Result<Phase, Malformed> {
        match (self.phase, byte) {
            (Phase::Size, b'\r') if self.digits > 0 => Ok(Phase::SizeLf),
            (Phase::Size, b';') if self.digits > 0 => Ok(Phase::Extension),
            (Phase::Size, digit) => self.handle_digit(digit),
            (Phase::Extension, b'\r') => Ok(Phase::SizeLf),
            (Phase::Extension, byte) => self.handle_extension(byte),
            (Phase::SizeLf, b'\n') => self.handle_size(),
            (Phase::DataCr, b'\r') => Ok(Phase::DataLf),
            (Phase::DataLf, b'\n') => {
                self.digits = 0;
                Ok(Phase::Size)
            }
            (Phase::DataCr | Phase::DataLf, _) => {
                Err(Malformed::bad("a chunk is longer than its size"))
            }
            (Phase::TrailerStart, b'\r') => Ok(Phase::EndLf),
            (Phase::EndLf, b'\n') => Ok(Phase::Finished),
            (Phase::TrailerLf, b'\n') => Ok(Phase::TrailerStart),
            (Phase::TrailerStart | Phase::TrailerName | Phase::TrailerValue, byte) => {
                self.handle_trailer(byte)
            }
            (Phase::SizeLf | Phase::TrailerLf | Phase::EndLf, _) => Err(Malformed::bad(
                "a CR in a chunked body is not followed by LF",
            )),
            // `decode` never gets here in these phases.
            (Phase::Data | Phase::Finished, _) => Ok(self.phase),
        }
    }

    fn handle_digit(&mut self, byte: u8) -> Result<Phase, Malformed> {
        let digit = (byte as char)
            .to_digit(16)
            .ok_or(Malformed::bad("a chunk size is not a hexadecimal number"))?;
        if self.digits == limits::CHUNK_SIZE_DIGITS_MAX {
            return Err(Malformed::bad("a chunk size has too many digits"));
        }
        self.digits += 1;
        // At most 16 digits of 4 bits: nothing is shifted out.
        self.size = self.size << 4 | u64::from(digit);
        Ok(Phase::Size)
    }

    fn handle_extension(&mut self, byte: u8) -> Result<Phase, Malformed> {
        if !is_value_byte(byte) {
            return Err(Malformed::bad("a chunk extension holds a control byte"));
        }
        self.extension_bytes += 1;
        match self.extension_bytes > limits::CHUNK_EXTENSION_BYTES_MAX {
            true => Err(Malformed::bad("the chunk extensions are too long")),
            false => Ok(Phase::Extension),
        }
    }

    /// Handles the end of the size line.
    fn handle_size(&mut self) -> Result<Phase, Malformed> {
        if self.size == 0 {
            return Ok(Phase::TrailerStart);
        }
        self.room_bytes = self
            .room_bytes
            .checked_sub(self.size)
            .ok_or(BODY_TOO_LARGE)?;
        Ok(Phase::Data)
    }

    fn handle_trailer(&mut self, byte: u8) -> Result<Phase, Malformed> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > limits::TRAILER_BYTES_MAX {
            return Err(Malformed::new(
                ErrorCode::HeadersTooLarge,
                "the trailer section is too long",
            ));
        }
        match (self.phase, byte) {
            (Phase::TrailerName, b':') => Ok(Phase::TrailerValue),
            (Phase::TrailerValue, b'\r') => Ok(Phase::TrailerLf),
            (Phase::TrailerValue, byte) if is_value_byte(byte) => Ok(Phase::TrailerValue),
            (Phase::TrailerValue, _) => Err(Malformed::bad("a trailer holds a control byte")),
            (_, byte) if is_token_byte(byte) => Ok(Phase::TrailerName),
            _ => Err(Malformed::bad(
                "a trailer's name is not a token followed by a colon",
            )),
        }
    }
}

/// 413, for either framing.
pub(super) const BODY_TOO_LARGE: Malformed = Malformed::new(
    ErrorCode::BodyTooLarge,
    "the body is larger than this route accepts",
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds the wire bytes in pieces that end at `cuts`. Returns the decoded bytes and how many
    /// wire bytes the body took; `None` if it has not ended.
    fn decode(
        wire: &[u8],
        cuts: &[usize],
        limit: usize,
    ) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
        let mut decoder = Decoder::new(limit);
        let mut buffer = Vec::new();
        let mut start = 0;
        for &end in cuts.iter().chain([&wire.len()]) {
            let read = buffer.len();
            buffer.extend_from_slice(&wire[start..end]);
            let decoded = decoder.decode(&mut buffer, read, read)?;
            if decoded.is_finished {
                let consumed = start + decoded.read - read;
                buffer.truncate(decoded.write);
                return Ok(Some((buffer, consumed)));
            }
            assert_eq!(
                decoded.read,
                buffer.len(),
                "an unfinished body leaves nothing unread"
            );
            buffer.truncate(decoded.write);
            start = end;
        }
        Ok(None)
    }

    /// Checks that the result is the same for the whole, for every cut in two, and byte by byte.
    fn decode_all_ways(wire: &[u8], limit: usize) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
        let whole = decode(wire, &[], limit);
        for cut in 0..=wire.len() {
            assert_eq!(
                decode(wire, &[cut], limit),
                whole,
                "cut at {cut} of {wire:?}"
            );
        }
        let every: Vec<usize> = (0..wire.len()).collect();
        assert_eq!(decode(wire, &every, limit), whole, "byte by byte: {wire:?}");
        whole
    }

    #[test]
    fn bodies_are_decoded_whatever_the_cut() {
        let cases: &[(&str, &str)] = &[
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", "hello!"),
            ("A\r\n0123456789\r\n00\r\n\r\n", "0123456789"),
            ("0000000000000002\r\nab\r\n0\r\n\r\n", "ab"),
            ("2;a;b=\"c d\"\r\n\r\n\r\n0;last\r\n\r\n", "\r\n"),
            ("1\r\na\r\n0\r\nX-Sum: 1\r\nEmpty:\r\n\r\n", "a"),
        ];
        for (wire, body) in cases {
            let with_next = format!("{wire}GET /");
            let expected = Ok(Some((body.as_bytes().to_vec(), wire.len())));
            assert_eq!(
                decode_all_ways(with_next.as_bytes(), 64),
                expected,
                "{wire:?}"
            );
            let unfinished = &wire.as_bytes()[..wire.len() - 1];
            assert_eq!(decode_all_ways(unfinished, 64), Ok(None), "{wire:?}");
        }
    }

    #[test]
    fn what_parsers_have_disagreed_about_is_refused() {
        for wire in [
            "\r\n",
            ";a\r\n",
            "+5\r\n",
            "-5\r\n",
            "0x5\r\n",
            " 5\r\n",
            "5 \r\n",
            "5\t;a\r\n",
            "g\r\n",
            "5\n",
            "5;a\n",
            "5;a\rb\r\n",
            "5;\0\r\n",
            "5;\x0b\r\n",
            "5\r\r\n",
            "5_0\r\n",
            "00000000000000005\r\n",
            "10000000000000000\r\n",
            "ffffffffffffffff0\r\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1\r\na\r\r\n",
            "1\r\na0\r\n",
            "2\r\na\r\n0\r\n\r\n",
            "0\r\n\n",
            "0\r\n \r\n",
            "0\r\n a: b\r\n",
            "0\r\na b: c\r\n",
            "0\r\n: c\r\n",
            "0\r\na\r\n",
            "0\r\na: b\n",
            "0\r\na: \0\r\n",
            "0\r\na: b\r\n c\r\n",
            "0\r\n\rX",
        ] {
            let malformed = decode_all_ways(wire.as_bytes(), usize::MAX).unwrap_err();
            assert_eq!(malformed.code, ErrorCode::MalformedHttp, "{wire:?}");
        }
    }

    #[test]
    fn the_limit_is_on_decoded_bytes_and_applied_by_the_size_line() {
        let wire = b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n";
        assert!(decode_all_ways(wire, 10).unwrap().is_some());
        assert_eq!(decode_all_ways(wire, 9), Err(BODY_TOO_LARGE));
        assert_eq!(
            decode_all_ways(b"ffffffffffffffff\r\n", 9),
            Err(BODY_TOO_LARGE)
        );
        assert_eq!(decode_all_ways(b"a\r\n", 9), Err(BODY_TOO_LARGE));
    }

    #[test]
    fn extensions_and_trailers_are_bounded_over_the_whole_body() {
        let extension = "x".repeat(limits::CHUNK_EXTENSION_BYTES_MAX as usize / 4);
        let body = |chunks: usize| format!("1;{extension}\r\na\r\n").repeat(chunks);
        assert_eq!(decode(body(4).as_bytes(), &[], 99), Ok(None));
        assert!(decode(body(5).as_bytes(), &[], 99).is_err());
        let trailers = |fields: usize| format!("0\r\n{}", "a:bc\r\n".repeat(fields));
        let most = limits::TRAILER_BYTES_MAX as usize / "a:bc\r".len();
        assert_eq!(decode(trailers(most).as_bytes(), &[], 99), Ok(None));
        let malformed = decode(trailers(most + 1).as_bytes(), &[], 99).unwrap_err();
        assert_eq!(malformed.code, ErrorCode::HeadersTooLarge);
    }

    proptest! {
        #[test]
        fn encoded_chunks_decode_to_themselves_whatever_the_cuts(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                super::super::encode::chunk(&mut wire, chunk);
            }
            super::super::encode::last_chunk(&mut wire, &crate::http::Fields::new());
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
            cuts.sort_unstable();
            let body = chunks.concat();
            let decoded = decode(&wire, &cuts, body.len()).unwrap();
            prop_assert_eq!(decoded, Some((body, wire.len())));
        }

        #[test]
        fn cuts_do_not_change_the_verdict_on_hostile_bytes(
            wire in prop::collection::vec(
                prop::sample::select(b"0123456789aF;:\r\n\r\n\r\n x\0\xff".to_vec()),
                0..60,
            ),
        ) {
            let _same_for_every_cut = decode_all_ways(&wire, 20);
        }
    }
}
