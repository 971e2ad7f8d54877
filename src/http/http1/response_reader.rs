//! Reads one whole response, however its bytes are cut.
//!
//! Owns the walk from the first byte of a head to the last one of its body, and the bytes of the
//! response that has not ended. Interim responses (1xx) are read and dropped. Must never wait, or
//! know where the bytes come from.
//!
//! ```text
//!        1xx
//!      +-----+
//!      v     |
//!     Head --+-- Length(n), Chunked, UntilClose ----> Done
//!            |                                         ^
//!            +-- no body: HEAD, 204, 304 --------------+
//! ```
//!
//! # Invariants
//!
//!  1. The bytes held never exceed the bounds: `head_bytes` of an incomplete head, `body_bytes` of
//!     a body. A length that is announced above the bound is refused before its first byte.
//!  2. After `Done` no byte is taken: what follows belongs to no response that was asked for.
//!  3. A body that ends before its framing allows is an error, never a short response.
//!
//! A server that sends a head byte by byte makes each of its bytes cost a look at the whole head,
//! up to 16 KiB: about as much as the wake-up that brought the byte.
//!
//! Mutations that the tests below catch: `is_head` not looked at, an interim response taken for the
//! final one (`pieces_do_not_matter`); no comparison with `body_bytes` in `begin_body`
//! (`bounds_hold`); `handle_end` without its match (`a_response_that_is_cut_off_is_an_error`).

use super::chunked;
use super::response::{self, BadResponse, Framing, ResponseHead};
use crate::error::ErrorCode;
use crate::limits::http1 as limits;

/// How much of a response is read.
#[derive(Clone, Copy, Debug)]
pub struct ResponseBounds {
    pub head_bytes: usize,
    pub body_bytes: usize,
    /// Whether the status is enough: the body is read for the sake of the connection alone. Then a
    /// response counts also if its body is too long, malformed, cut off or late.
    pub status_is_enough: bool,
}

impl ResponseBounds {
    /// Of a reader that has handed over its response.
    pub const NOTHING: ResponseBounds = ResponseBounds {
        head_bytes: 0,
        body_bytes: 0,
        status_is_enough: false,
    };
}

/// See the file's head.
pub struct ResponseReader {
    bounds: ResponseBounds,
    /// The response to HEAD, which has no body whatever its fields promise.
    is_head: bool,
    state: State,
    /// Bytes of an incomplete head. Of the final one all of them, for its fields.
    head_bytes: Vec<u8>,
    interim: u32,
    head: Option<ResponseHead>,
    body: Vec<u8>,
}

enum State {
    Head,
    /// This many bytes of the body are still to come.
    Length(u64),
    Chunked(chunked::Decoder),
    UntilClose,
    Done,
}

/// The result of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadProgress {
    Incomplete,
    /// The response ended after this many of the bytes.
    Complete {
        used: usize,
    },
}

/// A response that was read to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct WholeResponse {
    pub head: ResponseHead,
    /// The head as it came, with its last empty line.
    pub head_bytes: Vec<u8>,
    pub body: Vec<u8>,
}

impl ResponseReader {
    pub fn new(bounds: ResponseBounds, is_head: bool) -> ResponseReader {
        ResponseReader {
            bounds,
            is_head,
            state: State::Head,
            head_bytes: Vec::new(),
            interim: 0,
            head: None,
            body: Vec::new(),
        }
    }

    // ---- getters ----

    /// Returns whether a byte of the response has come.
    pub fn has_begun(&self) -> bool {
        !matches!(self.state, State::Head) || !self.head_bytes.is_empty() || self.interim > 0
    }

    /// Returns whether the status has come, and is enough.
    pub fn has_status(&self) -> bool {
        self.bounds.status_is_enough && self.head.is_some()
    }

    /// Returns the memory of what it holds.
    pub fn buffered_bytes(&self) -> usize {
        self.head_bytes.capacity() + self.body.capacity()
    }

    // ---- events ----

    /// Takes the next bytes; decodes a chunked body within them.
    pub fn handle_input(&mut self, bytes: &mut [u8]) -> Result<ReadProgress, BadResponse> {
        let mut at = 0;
        loop {
            match &mut self.state {
                State::Done => return Ok(ReadProgress::Complete { used: at }),
                State::Head => match self.read_head(&bytes[at..])? {
                    Some(used) => at += used,
                    None => return Ok(ReadProgress::Incomplete),
                },
                _ if at == bytes.len() => return Ok(ReadProgress::Incomplete),
                State::Length(left) => {
                    let rest = &bytes[at..];
                    let taken = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    self.body.extend_from_slice(&rest[..taken]);
                    at += taken;
                    *left -= taken as u64;
                    if *left == 0 {
                        self.state = State::Done;
                    }
                }
                State::Chunked(decoder) => {
                    let decoded = decoder.decode(bytes, at, at).map_err(bad_chunks)?;
                    self.body.extend_from_slice(&bytes[at..decoded.write]);
                    at = decoded.read;
                    if decoded.is_finished {
                        self.state = State::Done;
                    }
                }
                State::UntilClose => {
                    let rest = &bytes[at..];
                    if rest.len() > self.bounds.body_bytes - self.body.len() {
                        return Err(BadResponse::TooLarge);
                    }
                    self.body.extend_from_slice(rest);
                    at = bytes.len();
                }
            }
        }
    }

    /// Handles the end of the connection: the end of a response that has no other.
    pub fn handle_end(&mut self) -> Result<(), BadResponse> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            State::Head | State::Length(_) | State::Chunked(_) => Err(BadResponse::CutOff),
        }
    }

    /// Returns the response; `None` before its end.
    pub fn into_response(self) -> Option<WholeResponse> {
        match self.state {
            State::Done => Some(WholeResponse {
                head: self.head?,
                head_bytes: self.head_bytes,
                body: self.body,
            }),
            _ => None,
        }
    }

    /// Returns the response without the rest of its body, if its status has come and is enough.
    pub fn into_status(self) -> Option<WholeResponse> {
        let head = self.head.filter(|_| self.bounds.status_is_enough)?;
        Some(WholeResponse {
            head,
            head_bytes: self.head_bytes,
            body: self.body,
        })
    }

    // ---- helpers ----

    /// Reads a head. Returns how many of the bytes belonged to it, or `None` if all of them do and
    /// its end is still to come.
    fn read_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, BadResponse> {
        let held = self.head_bytes.len();
        let room = self.bounds.head_bytes.saturating_sub(held);
        let taken = bytes.len().min(room);
        self.head_bytes.extend_from_slice(&bytes[..taken]);
        let Some(head) = response::parse(&self.head_bytes)? else {
            return match taken < bytes.len() || room == 0 {
                true => Err(BadResponse::TooLarge),
                false => Ok(None),
            };
        };
        let used = head.len - held;
        match head.status {
            101 => return Err(BadResponse::Upgrade),
            100..=199 => {
                self.interim += 1;
                if self.interim > limits::INTERIM_RESPONSES_MAX {
                    return Err(BadResponse::Interim);
                }
                self.head_bytes.clear();
            }
            _ => {
                self.head_bytes.truncate(head.len);
                let begun = self.begin_body(&head);
                self.head = Some(head);
                begun?;
            }
        }
        Ok(Some(used))
    }

    fn begin_body(&mut self, head: &ResponseHead) -> Result<(), BadResponse> {
        self.state = match head.framing {
            _ if self.is_head => State::Done,
            Framing::Empty => State::Done,
            Framing::Length(length) if length > self.bounds.body_bytes as u64 => {
                return Err(BadResponse::TooLarge);
            }
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(chunked::Decoder::new(self.bounds.body_bytes)),
            Framing::UntilClose => State::UntilClose,
        };
        Ok(())
    }
}

fn bad_chunks(malformed: super::Malformed) -> BadResponse {
    match malformed.code {
        ErrorCode::BodyTooLarge => BadResponse::TooLarge,
        _ => BadResponse::Chunks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: ResponseBounds = ResponseBounds {
        head_bytes: 256,
        body_bytes: 16,
        status_is_enough: false,
    };

    /// Reads `wire` in pieces that end at the cuts, then its end if `ends`. Returns the response
    /// and how many bytes it took.
    fn read(
        wire: &[u8],
        is_head: bool,
        cuts: &[usize],
        ends: bool,
    ) -> Result<Option<(u16, Vec<u8>, usize)>, BadResponse> {
        let mut reader = ResponseReader::new(BOUNDS, is_head);
        let mut start = 0;
        for &end in cuts.iter().chain([&wire.len()]) {
            let mut piece = wire[start..end].to_vec();
            let progress = reader.handle_input(&mut piece)?;
            assert!(reader.body.len() <= BOUNDS.body_bytes);
            assert!(reader.head_bytes.len() <= BOUNDS.head_bytes);
            if let ReadProgress::Complete { used } = progress {
                let whole = reader.into_response().expect("it is complete");
                return Ok(Some((whole.head.status, whole.body, start + used)));
            }
            start = end;
        }
        if !ends {
            return Ok(None);
        }
        reader.handle_end()?;
        let whole = reader.into_response().expect("its end has come");
        Ok(Some((whole.head.status, whole.body, wire.len())))
    }

    /// Wire, whether it is for HEAD, status, body, and the bytes after the response's end.
    const WHOLE: [(&str, bool, u16, &str, usize); 8] = [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhellonext",
            false,
            200,
            "hello",
            4,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            false,
            200,
            "",
            0,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx",
            true,
            200,
            "",
            1,
        ),
        (
            "HTTP/1.1 204 No\r\ncontent-length: 9\r\n\r\n",
            false,
            204,
            "",
            0,
        ),
        ("HTTP/1.1 304 No\r\n\r\nrest", false, 304, "", 4),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
             3\r\nabc\r\n2;x\r\nde\r\n0\r\nt: u\r\n\r\n!",
            false,
            200,
            "abcde",
            1,
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n\
             HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nno",
            false,
            404,
            "no",
            0,
        ),
        (
            "HTTP/1.0 200 OK\r\n\r\nuntil the end",
            false,
            200,
            "until the end",
            0,
        ),
    ];

    #[test]
    fn pieces_do_not_matter() {
        for (wire, is_head, status, body, rest) in WHOLE {
            let wire = wire.as_bytes();
            for cut in 0..=wire.len() {
                let read = read(wire, is_head, &[cut], true).expect("a good response");
                let used = wire.len() - rest;
                let expected = (status, body.as_bytes().to_vec(), used);
                assert_eq!(read, Some(expected), "cut at {cut}");
            }
            let every: Vec<usize> = (0..wire.len()).collect();
            assert!(read(wire, is_head, &every, true).is_ok());
        }
    }

    #[test]
    fn a_response_that_is_cut_off_is_an_error() {
        for (wire, is_head, _, _, rest) in WHOLE {
            let whole = wire.len() - rest;
            for cut in 0..whole {
                let read = read(&wire.as_bytes()[..cut], is_head, &[], true);
                let may_end = wire.starts_with("HTTP/1.0") && cut >= wire.len() - 13;
                assert_eq!(read.is_ok(), may_end, "{wire} cut at {cut}");
            }
        }
    }

    #[test]
    fn bounds_hold() {
        let refused = |wire: &str| read(wire.as_bytes(), false, &[], true);
        let too_large = Err(BadResponse::TooLarge);
        let field = "x".repeat(BOUNDS.head_bytes);
        assert_eq!(
            refused(&format!("HTTP/1.1 200 OK\r\nx: {field}\r\n\r\n")),
            too_large
        );
        assert_eq!(
            refused("HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\n"),
            too_large
        );
        let body = "x".repeat(BOUNDS.body_bytes + 1);
        assert_eq!(
            refused(&format!("HTTP/1.1 200 OK\r\n\r\n{body}")),
            too_large
        );
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(refused(&format!("{chunked}11\r\n")), too_large);
        assert_eq!(refused(&format!("{chunked}x")), Err(BadResponse::Chunks));
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(9);
        assert_eq!(refused(&interim), Err(BadResponse::Interim));
        let upgrade = "HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n";
        assert_eq!(refused(upgrade), Err(BadResponse::Upgrade));
    }

    /// Mutations: `into_status` without its bound; a head that is kept only if its body may begin.
    #[test]
    fn a_status_may_be_enough() {
        let status = |wire: &str, status_is_enough| {
            let bounds = ResponseBounds {
                status_is_enough,
                ..BOUNDS
            };
            let mut reader = ResponseReader::new(bounds, false);
            let _ = reader.handle_input(&mut wire.as_bytes().to_vec());
            reader.into_status().map(|whole| whole.head.status)
        };
        for wire in [
            "HTTP/1.1 202 OK\r\ncontent-length: 17\r\n\r\n",
            "HTTP/1.1 202 OK\r\ncontent-length: 9\r\n\r\ncut",
            "HTTP/1.1 202 OK\r\ntransfer-encoding: chunked\r\n\r\nx",
            "HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 202 OK\r\n\r\nlonger than its bound",
        ] {
            assert_eq!(status(wire, true), Some(202), "{wire}");
            assert_eq!(status(wire, false), None, "{wire}");
        }
        for wire in [
            "",
            "HTTP/1.1 202 OK\r\n",
            "HTTP/1.1 100 Go on\r\n\r\n",
            "HTTP/1.1 202 OK\r\ncontent-length: x\r\n\r\n",
        ] {
            assert_eq!(status(wire, true), None, "{wire}");
        }
    }

    proptest! {
        /// Whatever a server sends, cut anywhere: no panic, the bounds hold, and the cuts do not
        /// change what is read.
        #[test]
        fn any_bytes_are_read_the_same_way_however_they_are_cut(
            head in 0..WHOLE.len(),
            noise in prop::collection::vec(any::<u8>(), 0..24),
            at in any::<prop::sample::Index>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let (wire, is_head, ..) = WHOLE[head];
            let mut wire = wire.as_bytes().to_vec();
            let at = at.index(wire.len());
            wire.splice(at..at, noise);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
            cuts.sort_unstable();
            let whole = read(&wire, is_head, &[], true);
            let pieces = read(&wire, is_head, &cuts, true);
            prop_assert_eq!(whole, pieces);
        }
    }
}
