//! One request being received on one connection.
//!
//! [`Reception`] owns the position within a request, and no byte of it. The connection owns one
//! contiguous buffer that begins with the request's first byte, and drives:
//!
//! ```text
//!   poll --Partial{keep}--> read more, poll again        (keep input[..keep], append behind it)
//!   poll --Head(span)-----> span.parse, ask the service, accept --Complete(message)--> respond
//!                                                           \--Waiting-----------> poll again
//!                                                            \-WaitingForContinue-> send 100, poll
//!   poll --Complete(message)--> respond; drop input[..message.consumed]; restart
//!   any  --Err(malformed)-----> respond once, close
//!
//!   Idle --byte--> Head --end--> Deciding --accept--> Body --end--> Complete --restart--> Idle
//!      \____________\______________\_____refusal_______\_____> Refused (for good)
//! ```
//!
//! Invariants:
//!
//! 1. `Partial` is returned only when the input was used up: a call without new bytes changes
//!    nothing, so a caller that reads between calls always makes progress.
//! 2. The way the bytes were cut into inputs changes no request, no refusal and no position.
//! 3. The head is not moved or changed after `Head` was returned; a chunked body is decoded right
//!    behind it, so `message.head` and `message.body` are always neighbours.
//! 4. Bytes after the request are neither read nor moved: they begin at `message.consumed`.
//! 5. A refusal is final.

use std::ops::Range;

use super::chunked::{BODY_TOO_LARGE, Decoded, Decoder};
use super::scanner::{HeadPlace, HeadScanner};
use super::{Bounds, Framing, Head, Malformed, Storage, head};
use crate::error::ErrorCode;

/// The state of one request; see the head of this file. Small, because every connection has one.
#[derive(Debug)]
pub struct Reception {
    state: State,
    /// Very small chunks that have come since the caller last asked.
    tiny_chunks: u32,
}

const _: () = assert!(size_of::<Reception>() <= 48);

#[derive(Debug)]
enum State {
    Head(HeadScanner),
    Deciding(HeadSpan),
    Length {
        head: HeadSpan,
        body_bytes: usize,
    },
    Chunked {
        head: HeadSpan,
        body_bytes: usize,
        decoder: Decoder,
    },
    Complete {
        head: HeadSpan,
        body_bytes: usize,
        consumed: usize,
    },
    Refused(Malformed),
}

/// The part of a request that the connection waits for, which decides its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No byte of a request has come.
    Idle,
    Head,
    /// The head is whole and has not been accepted or refused yet.
    Deciding,
    Body,
    Complete,
    Refused,
}

/// The result of [`Reception::poll`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The request goes on. The next input must be `input[..keep]` and the new bytes after it: the
    /// bytes beyond `keep` are decoded and no longer needed.
    Partial { keep: usize },
    /// The head is whole. The caller must parse it, and [`Reception::accept`] the request or refuse
    /// it.
    Head(HeadSpan),
    /// The request is whole.
    Complete(Message),
}

/// The result of [`Reception::accept`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The body is complete already (or there is none): the head need not be parsed again.
    Complete(Message),
    /// The caller must go on polling for the body.
    Waiting,
    /// The same, but the client holds the body back until it gets `100 Continue`. Returned once.
    WaitingForContinue,
}

/// The position of a head in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSpan(HeadPlace);

impl HeadSpan {
    pub const fn range(self) -> Range<usize> {
        self.0.start as usize..self.0.end as usize
    }

    /// Returns whether an empty line came before it, which a server ignores (RFC 9112, section
    /// 2.2).
    pub const fn follows_empty_line(self) -> bool {
        self.0.start != 0
    }

    const fn end(self) -> usize {
        self.0.end as usize
    }

    /// Parses the head in the input in which it was found. An error is final: respond and close.
    pub fn parse<'a>(
        self,
        input: &'a [u8],
        storage: &'a mut Storage<'a>,
    ) -> Result<Head<'a>, Malformed> {
        // The span belongs to this input or to its beginning; a shorter input is a bug of the
        // caller.
        let bytes = input.get(self.range()).ok_or(OUT_OF_TURN)?;
        head::parse(bytes, storage)
    }
}

/// The position of a whole request in the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub head: HeadSpan,
    /// The body, decoded.
    pub body: Range<usize>,
    /// Where the next request begins.
    pub consumed: usize,
}

impl Default for Reception {
    fn default() -> Reception {
        Reception::new()
    }
}

impl Reception {
    pub fn new() -> Reception {
        Reception {
            state: State::Head(HeadScanner::default()),
            tiny_chunks: 0,
        }
    }

    /// Starts the next request, whose first byte will be the first of the input.
    pub fn restart(&mut self) {
        *self = Reception::new();
    }

    pub fn stage(&self) -> Stage {
        match &self.state {
            State::Head(scanner) if scanner.is_untouched() => Stage::Idle,
            State::Head(_) => Stage::Head,
            State::Deciding(_) => Stage::Deciding,
            State::Length { .. } | State::Chunked { .. } => Stage::Body,
            State::Complete { .. } => Stage::Complete,
            State::Refused(_) => Stage::Refused,
        }
    }

    /// Returns how many very small chunks have come since the last call: legal, harmless once, and
    /// an attack by the thousand. The caller decides what to do about them.
    pub fn take_tiny_chunks(&mut self) -> u32 {
        std::mem::take(&mut self.tiny_chunks)
    }

    /// Goes as far as the input allows. The input begins where the request begins. Except for the
    /// bytes that a `Partial` dropped, it must begin with the input of the last call.
    pub fn poll(&mut self, input: &mut [u8], bounds: &Bounds) -> Result<Progress, Malformed> {
        match &mut self.state {
            State::Head(scanner) => match scanner.poll(input, bounds) {
                Ok(None) => Ok(Progress::Partial { keep: input.len() }),
                Ok(Some(place)) => {
                    self.state = State::Deciding(HeadSpan(place));
                    Ok(Progress::Head(HeadSpan(place)))
                }
                Err(malformed) => Err(self.refuse(malformed)),
            },
            State::Deciding(head) => Ok(Progress::Head(*head)),
            State::Length { head, body_bytes } => {
                let (head, body_bytes) = (*head, *body_bytes);
                Ok(match input.len().saturating_sub(head.end()) < body_bytes {
                    true => Progress::Partial { keep: input.len() },
                    false => Progress::Complete(self.complete(head, body_bytes, None)),
                })
            }
            State::Chunked { .. } => self.poll_chunked(input),
            State::Complete {
                head,
                body_bytes,
                consumed,
            } => Ok(Progress::Complete(message(*head, *body_bytes, *consumed))),
            State::Refused(malformed) => Err(*malformed),
        }
    }

    /// Accepts the request whose head was just parsed, with a body of at most `body_limit` bytes.
    /// `input_bytes` is the length of the input from which the head was parsed.
    ///
    /// A request that the service refuses by its head alone may be accepted all the same, so that
    /// its body is read and dropped and the connection survives the refusal.
    pub fn accept(
        &mut self,
        head: &Head<'_>,
        body_limit: usize,
        input_bytes: usize,
    ) -> Result<Accepted, Malformed> {
        let State::Deciding(span) = self.state else {
            debug_assert!(false, "accept is called once, after poll returned Head");
            return Err(self.refuse(OUT_OF_TURN));
        };
        debug_assert_eq!(span.range().len(), head.len, "the head of another request");
        let received_bytes = input_bytes.saturating_sub(span.end());
        match head.framing {
            Framing::None => return Ok(Accepted::Complete(self.complete(span, 0, None))),
            Framing::Length(length) if length > body_limit as u64 => {
                return Err(self.refuse(BODY_TOO_LARGE));
            }
            Framing::Length(length) if length <= received_bytes as u64 => {
                let message = self.complete(span, length as usize, None);
                return Ok(Accepted::Complete(message));
            }
            Framing::Length(length) => {
                self.state = State::Length {
                    head: span,
                    body_bytes: length as usize,
                };
            }
            Framing::Chunked => {
                let decoder = Decoder::new(body_limit);
                self.state = State::Chunked {
                    head: span,
                    body_bytes: 0,
                    decoder,
                };
            }
        }
        // RFC 9110, section 10.1.1: no 100 is needed once a part of the body has come.
        Ok(match head.expects_continue && received_bytes == 0 {
            true => Accepted::WaitingForContinue,
            false => Accepted::Waiting,
        })
    }

    fn poll_chunked(&mut self, input: &mut [u8]) -> Result<Progress, Malformed> {
        let State::Chunked {
            head,
            body_bytes,
            decoder,
        } = &mut self.state
        else {
            return Err(self.refuse(OUT_OF_TURN));
        };
        // All decoded bytes follow the head, and new wire bytes follow them.
        let decoded_end = head.end() + *body_bytes;
        match decoder.decode(input, decoded_end, decoded_end) {
            Ok(Decoded {
                write,
                read,
                is_finished: true,
                tiny_chunks,
            }) => {
                self.tiny_chunks += tiny_chunks;
                let (head, body_bytes) = (*head, write - head.end());
                Ok(Progress::Complete(self.complete(
                    head,
                    body_bytes,
                    Some(read),
                )))
            }
            Ok(Decoded {
                write, tiny_chunks, ..
            }) => {
                self.tiny_chunks += tiny_chunks;
                *body_bytes = write - head.end();
                Ok(Progress::Partial { keep: write })
            }
            Err(malformed) => Err(self.refuse(malformed)),
        }
    }

    fn complete(&mut self, head: HeadSpan, body_bytes: usize, consumed: Option<usize>) -> Message {
        let consumed = consumed.unwrap_or(head.end() + body_bytes);
        self.state = State::Complete {
            head,
            body_bytes,
            consumed,
        };
        message(head, body_bytes, consumed)
    }

    fn refuse(&mut self, malformed: Malformed) -> Malformed {
        self.state = State::Refused(malformed);
        malformed
    }
}

/// The connection called in the wrong order: a bug of ours, but no reason to panic.
const OUT_OF_TURN: Malformed =
    Malformed::new(ErrorCode::Internal, "the request was received out of turn");

fn message(head: HeadSpan, body_bytes: usize, consumed: usize) -> Message {
    Message {
        head,
        body: head.end()..head.end() + body_bytes,
        consumed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 64;

    /// The requests that one connection received, and the refusal that ended it, if any.
    type Received = (Vec<(String, Vec<u8>)>, Option<Malformed>);

    /// A connection like the reactor's, without a socket: appends what arrives, polls, drops what
    /// was consumed. Bounded: a reception that makes no progress fails the test.
    #[derive(Default)]
    struct Connection {
        reception: Reception,
        input: Vec<u8>,
        requests: Vec<(String, Vec<u8>)>,
        continues: usize,
        refusal: Option<Malformed>,
    }

    impl Connection {
        fn receive(&mut self, bytes: &[u8]) {
            self.input.extend_from_slice(bytes);
            for _ in 0..2 * self.input.len() + 2 {
                match self.turn() {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(malformed) => {
                        let again = self.reception.poll(&mut self.input, &Bounds::default());
                        assert_eq!(again, Err(malformed), "a refusal is final");
                        self.refusal = Some(malformed);
                        return;
                    }
                }
            }
            panic!("no progress in {:?}", self.input);
        }

        /// Returns whether there may be more to do without more bytes.
        fn turn(&mut self) -> Result<bool, Malformed> {
            let bounds = Bounds::default();
            match self.reception.poll(&mut self.input, &bounds)? {
                Progress::Partial { keep } => {
                    self.input.truncate(keep);
                    Ok(false)
                }
                Progress::Head(span) => {
                    let mut storage = Storage::new();
                    let parsed = span.parse(&self.input, &mut storage);
                    let head = parsed.map_err(|malformed| self.reception.refuse(malformed))?;
                    match self.reception.accept(&head, LIMIT, self.input.len())? {
                        Accepted::Complete(message) => self.answer(message),
                        Accepted::Waiting => {}
                        Accepted::WaitingForContinue => self.continues += 1,
                    }
                    Ok(true)
                }
                Progress::Complete(message) => {
                    self.answer(message);
                    Ok(true)
                }
            }
        }

        fn answer(&mut self, message: Message) {
            let again = self.reception.poll(&mut self.input, &Bounds::default());
            assert_eq!(again, Ok(Progress::Complete(message.clone())));
            let mut storage = Storage::new();
            let head = message
                .head
                .parse(&self.input, &mut storage)
                .expect("the head was parsed before and has not changed");
            let name = format!("{} {}", head.request.method.as_str(), head.request.path);
            self.requests
                .push((name, self.input[message.body].to_vec()));
            self.input.drain(..message.consumed);
            self.reception.restart();
        }
    }

    fn receive_in_pieces(wire: &[u8], cuts: &[usize]) -> Received {
        let mut connection = Connection::default();
        let mut start = 0;
        for &end in cuts.iter().chain([&wire.len()]) {
            connection.receive(&wire[start..end]);
            start = end;
            if connection.refusal.is_some() {
                break;
            }
        }
        (connection.requests, connection.refusal)
    }

    const SAMPLE: &[u8] = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n\
        POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello\
        \r\nPOST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
        3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nA: b\r\n\r\n\
        POST /d HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n\
        GET /e HTTP/1.1\r\nHost: h\r\n\r\n";

    #[test]
    fn pipelined_requests_come_out_the_same_for_every_pair_of_cuts() {
        let whole = receive_in_pieces(SAMPLE, &[]);
        let request = |name: &str, body: &[u8]| (name.to_owned(), body.to_vec());
        let expected = vec![
            request("GET /a", b""),
            request("POST /b", b"hello"),
            request("POST /c", b"abcde"),
            request("POST /d", b""),
            request("GET /e", b""),
        ];
        assert_eq!(whole, (expected, None));
        for first in 0..=SAMPLE.len() {
            for second in (first..=SAMPLE.len()).step_by(7) {
                let pieces = receive_in_pieces(SAMPLE, &[first, second]);
                assert_eq!(pieces, whole, "cut at {first} and {second}");
            }
        }
        let every: Vec<usize> = (0..SAMPLE.len()).collect();
        assert_eq!(receive_in_pieces(SAMPLE, &every), whole);
    }

    #[test]
    fn stages_follow_the_request() {
        let bounds = Bounds::default();
        let mut reception = Reception::new();
        let mut input = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab".to_vec();
        let head_end = input.len() - 2;
        assert_eq!(reception.stage(), Stage::Idle);
        assert_eq!(
            reception.poll(&mut [], &bounds),
            Ok(Progress::Partial { keep: 0 })
        );
        assert_eq!(reception.stage(), Stage::Idle);
        assert_eq!(
            reception.poll(&mut input[..9], &bounds),
            Ok(Progress::Partial { keep: 9 })
        );
        assert_eq!(reception.stage(), Stage::Head);
        let progress = reception.poll(&mut input[..head_end], &bounds);
        let Ok(Progress::Head(span)) = progress else {
            panic!("{progress:?}");
        };
        assert_eq!(span.range(), 0..head_end);
        assert_eq!(reception.stage(), Stage::Deciding);
        let mut storage = Storage::new();
        let head = span.parse(&input, &mut storage).unwrap();
        let accepted = reception.accept(&head, LIMIT, head_end);
        assert_eq!(accepted, Ok(Accepted::Waiting));
        assert_eq!(reception.stage(), Stage::Body);
        let progress = reception.poll(&mut input, &bounds);
        assert!(
            matches!(progress, Ok(Progress::Complete(_))),
            "{progress:?}"
        );
        assert_eq!(reception.stage(), Stage::Complete);
        reception.restart();
        assert_eq!(reception.stage(), Stage::Idle);
    }

    #[test]
    fn a_body_above_the_limit_is_refused_by_its_announcement() {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
            LIMIT + 1
        );
        let (requests, refusal) = receive_in_pieces(head.as_bytes(), &[]);
        assert_eq!((requests.len(), refusal), (0, Some(BODY_TOO_LARGE)));
        let chunked = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n41\r\n";
        assert_eq!(receive_in_pieces(chunked, &[]).1, Some(BODY_TOO_LARGE));
    }

    #[test]
    fn continue_is_due_once_and_only_while_no_body_has_come() {
        let fields = "Host: h\r\nExpect: 100-continue\r\n";
        let length = format!("POST / HTTP/1.1\r\n{fields}Content-Length: 2\r\n\r\n");
        let chunked = format!("POST / HTTP/1.1\r\n{fields}Transfer-Encoding: chunked\r\n\r\n");
        let cases = [(&length, "ab", 1), (&chunked, "2\r\nab\r\n0\r\n\r\n", 1)];
        for (head, body, continues) in cases {
            let mut patient = Connection::default();
            patient.receive(head.as_bytes());
            assert_eq!(patient.continues, continues);
            for byte in body.bytes() {
                patient.receive(&[byte]);
            }
            assert_eq!((patient.continues, patient.requests.len()), (continues, 1));

            let mut eager = Connection::default();
            eager.receive(format!("{head}{}", &body[..1]).as_bytes());
            eager.receive(&body.as_bytes()[1..]);
            assert_eq!((eager.continues, eager.requests.len()), (0, 1));
        }
        let mut bodiless = Connection::default();
        bodiless.receive(format!("GET / HTTP/1.1\r\n{fields}Content-Length: 0\r\n\r\n").as_bytes());
        assert_eq!((bodiless.continues, bodiless.requests.len()), (0, 1));
    }

    #[test]
    fn a_dripping_chunked_body_takes_no_more_memory_than_its_data() {
        let mut connection = Connection::default();
        let head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.receive(head);
        for _ in 0..LIMIT {
            for byte in *b"1\r\na\r\n" {
                connection.receive(&[byte]);
            }
        }
        assert_eq!(connection.input.len(), head.len() + LIMIT);
        connection.receive(b"0\r\n\r\nrest");
        assert_eq!(connection.requests[0].1, vec![b'a'; LIMIT]);
        assert_eq!(connection.input, b"rest");
    }

    /// A request that is valid, or nearly valid.
    fn request() -> impl Strategy<Value = Vec<u8>> {
        let body = prop::collection::vec(any::<u8>(), 0..LIMIT + 2);
        let line = prop::sample::select(vec![
            "GET / HTTP/1.1",
            "POST /p?q HTTP/1.1",
            "PUT /x HTTP/1.0",
            "GET / HTTP/1.1\r\nbad : x",
            "\r\nGET /crlf HTTP/1.1",
        ]);
        (line, 0..3, body, 0..6usize).prop_map(|(line, framing, body, chunk_bytes)| {
            let mut out = format!("{line}\r\nHost: h\r\n").into_bytes();
            match framing {
                0 => out.extend_from_slice(b"\r\n"),
                1 => {
                    out.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
                    out.extend(body);
                }
                _ => {
                    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                    for chunk in body.chunks(chunk_bytes + 1) {
                        super::super::encode::chunk(&mut out, chunk);
                    }
                    super::super::encode::last_chunk(&mut out, &crate::http::Fields::new());
                }
            }
            out
        })
    }

    proptest! {
        #[test]
        fn cuts_do_not_change_the_requests(
            requests in prop::collection::vec(request(), 1..5),
            damage in prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>())),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut wire = requests.concat();
            if let Some((place, byte)) = damage {
                let place = place.index(wire.len());
                wire[place] = byte;
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
            cuts.sort_unstable();
            prop_assert_eq!(receive_in_pieces(&wire, &cuts), receive_in_pieces(&wire, &[]));
        }

        #[test]
        fn any_bytes_end_in_a_wait_or_a_refusal(
            wire in prop::collection::vec(any::<u8>(), 0..300),
            is_behind_a_head in any::<bool>(),
        ) {
            let head: &[u8] = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
            let wire = if is_behind_a_head { [head, &wire].concat() } else { wire };
            // `Connection::receive` panics if no progress is made.
            let _verdict = receive_in_pieces(&wire, &[]);
        }
    }
}
