//! The protocol alone: frames in, events and frames out.

mod sessions;

use proptest::prelude::*;

use super::*;
use crate::http::Fields;
use crate::http::ResponseHead;
use crate::http::http2::frame::FrameReader;
use crate::http::http2::hpack::encode;
use crate::http::http2::testing::frame;
use crate::http::sniff::PREFACE;
use crate::limits::http2 as limits;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const WHOLE: u8 = flag::END_HEADERS | flag::END_STREAM;
const ROOM: usize = 1 << 20;
const NOW: &[u8; 29] = b"Sun, 06 Nov 1994 08:49:37 GMT";

/// A connection, the bytes that go to it and the frames that come from it.
struct Wire {
    reader: FrameReader,
    connection: Connection,
    theirs: FrameReader,
}

/// The kind and numbers of an event, without the parts that it borrows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Request(u32, bool),
    Data(u32, Vec<u8>, bool),
    Reset(u32),
}

type Sent = (Kind, u8, u32, Vec<u8>);

impl Wire {
    /// Opens a connection: both prefaces have been read.
    fn open() -> Wire {
        let mut wire = Wire {
            reader: FrameReader::default(),
            connection: Connection::new(),
            theirs: FrameReader::default(),
        };
        wire.connection.set_room(ROOM);
        // This reader is a server's, so it expects a preface.
        assert_eq!(wire.theirs.next(PREFACE), Ok((PREFACE.len(), None)));
        assert_eq!(
            wire.feed(&[&PREFACE[..], &frame(SETTINGS, 0, 0, &[])].concat()),
            []
        );
        let sent: Vec<_> = wire.sent().iter().map(|it| (it.0, it.1)).collect();
        let expected = [
            (Kind::Settings, 0),
            (Kind::WindowUpdate, 0),
            (Kind::Settings, flag::ACK),
        ];
        assert_eq!(sent, expected);
        wire
    }

    fn feed(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.connection.begin_batch();
        let mut rest = bytes;
        while !self.connection.is_closed() {
            match self.reader.next(rest) {
                Ok((used, Some(frame))) => {
                    rest = &rest[used..];
                    seen.extend(match self.connection.handle_frame(&frame) {
                        Event::Nothing => None,
                        Event::Request {
                            stream, has_body, ..
                        } => Some(Seen::Request(stream, has_body)),
                        Event::Data {
                            stream,
                            bytes,
                            is_end,
                        } => Some(Seen::Data(stream, bytes.to_vec(), is_end)),
                        Event::Reset { stream } => Some(Seen::Reset(stream)),
                    });
                }
                Ok((_, None)) => break,
                Err(reason) => self.connection.close(reason),
            }
        }
        self.connection.write_waiting();
        seen
    }

    /// Returns the frames that were sent since the last call.
    fn sent(&mut self) -> Vec<Sent> {
        let bytes = std::mem::take(self.connection.output_mut());
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while let Ok((used, Some(frame))) = self.theirs.next(rest) {
            frames.push((
                frame.kind,
                frame.flags,
                frame.stream,
                frame.payload.to_vec(),
            ));
            rest = &rest[used..];
        }
        frames
    }

    /// Returns the sizes of all DATA that was sent, and whether each ended its stream.
    fn sent_data(&mut self) -> Vec<(u32, usize, bool)> {
        let sent = self.sent().into_iter();
        let data = sent.filter(|it| it.0 == Kind::Data);
        data.map(|it| (it.2, it.3.len(), it.1 & flag::END_STREAM != 0))
            .collect()
    }

    fn goaway(&mut self) -> Option<Reason> {
        let last = self.sent().pop()?;
        assert_eq!(last.0, Kind::GoAway);
        Some(Reason(u32::from_be_bytes(last.3[4..8].try_into().unwrap())))
    }
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", "h"),
    ];
    let mut block = Vec::new();
    for (name, value) in pseudo.iter().chain(fields) {
        encode::field(&mut block, name, value.as_bytes());
    }
    block
}

fn request(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, flags, stream, &block(&[]))
}

fn number(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn answer(headers: &Fields) -> ResponseHead<'_> {
    ResponseHead {
        status: 200,
        content_type: None,
        headers,
    }
}

fn respond(wire: &mut Wire, stream: u32, body: &[u8]) {
    let headers = Fields::new();
    wire.connection
        .respond(stream, &answer(&headers), body, NOW);
}

/// Mutations: END_STREAM on HEADERS; a stream that is kept after both sides have ended.
#[test]
fn a_request_is_answered_and_its_stream_is_gone() {
    let mut wire = Wire::open();
    let bytes = [
        request(1, flag::END_HEADERS),
        frame(DATA, 0, 1, b"half"),
        frame(DATA, flag::END_STREAM, 1, b"whole"),
    ];
    let seen = wire.feed(&bytes.concat());
    let expected = [
        Seen::Request(1, true),
        Seen::Data(1, b"half".to_vec(), false),
        Seen::Data(1, b"whole".to_vec(), true),
    ];
    assert_eq!(seen, expected);
    respond(&mut wire, 1, b"body");
    let sent = wire.sent();
    assert_eq!((sent[0].0, sent[0].1), (Kind::Headers, flag::END_HEADERS));
    assert_eq!(sent[1], (Kind::Data, flag::END_STREAM, 1, b"body".to_vec()));
    assert!(!wire.connection.has_stream(1));
    // Later commands for this stream are ignored.
    respond(&mut wire, 1, b"again");
    assert_eq!(wire.sent(), []);
}

/// Mutations: each window left out of `push` and `write_waiting`; no turns.
#[test]
fn data_is_bounded_by_both_windows_and_the_room() {
    let mut wire = Wire::open();
    let settings = [&[0, 4][..], &number(10)].concat();
    wire.feed(
        &[
            frame(SETTINGS, 0, 0, &settings),
            request(1, WHOLE),
            request(3, WHOLE),
        ]
        .concat(),
    );
    wire.sent();
    respond(&mut wire, 1, &[b'a'; 30]);
    respond(&mut wire, 3, &[b'b'; 30]);
    assert_eq!(wire.sent_data(), [(1, 10, false), (3, 10, false)]);
    assert_eq!(wire.connection.take_progress(1), (10, 20));
    assert_eq!(wire.connection.take_progress(1), (0, 20));
    // The stream's window.
    wire.feed(&frame(WINDOW_UPDATE, 0, 3, &number(5)));
    assert_eq!(wire.sent_data(), [(3, 5, false)]);
    // The room.
    wire.connection.set_room(0);
    wire.feed(&frame(WINDOW_UPDATE, 0, 1, &number(100)));
    assert_eq!(wire.sent_data(), []);
    assert!(wire.connection.wants_room());
    wire.connection.set_room(ROOM);
    wire.connection.write_waiting();
    assert_eq!(wire.sent_data(), [(1, 20, true)]);
    // The connection's window, by turns: each stream's own window allows more than the
    // connection's.
    let settings = [&[0, 4][..], &number(1 << 20)].concat();
    wire.feed(
        &[
            frame(SETTINGS, 0, 0, &settings),
            request(5, WHOLE),
            request(7, WHOLE),
        ]
        .concat(),
    );
    assert_eq!(wire.sent_data(), [(3, 15, true)]);
    respond(&mut wire, 5, &[b'c'; 100_000]);
    respond(&mut wire, 7, &[b'd'; 100_000]);
    let all: usize = wire.sent_data().iter().map(|it| it.1).sum();
    assert_eq!(all, WINDOW_DEFAULT as usize - 60);
    assert!(!wire.connection.wants_room());
    wire.feed(&frame(WINDOW_UPDATE, 0, 0, &number(40_000)));
    let turns: Vec<_> = wire.sent_data().iter().map(|it| it.0).collect();
    assert_eq!(turns, [5, 7, 5]);
}

/// Mutation: `handle_initial_window` that changes later streams only.
#[test]
fn settings_change_the_windows_of_open_streams() {
    let mut wire = Wire::open();
    let initial = |bytes| frame(SETTINGS, 0, 0, &[&[0, 4][..], &number(bytes)].concat());
    wire.feed(&[initial(20), request(1, WHOLE)].concat());
    respond(&mut wire, 1, &[b'a'; 100]);
    assert_eq!(wire.sent_data(), [(1, 20, false)]);
    wire.feed(&initial(5));
    wire.feed(&frame(WINDOW_UPDATE, 0, 1, &number(15)));
    assert_eq!(wire.sent_data(), []);
    wire.feed(&initial(6));
    assert_eq!(wire.sent_data(), [(1, 1, false)]);
    wire.feed(&initial(STREAM_MAX));
    assert_eq!(wire.sent_data(), [(1, 79, true)]);
    let mut wire = Wire::open();
    let most = frame(WINDOW_UPDATE, 0, 1, &number(STREAM_MAX - WINDOW_DEFAULT));
    wire.feed(&[request(1, flag::END_HEADERS), most].concat());
    wire.feed(&initial(WINDOW_DEFAULT + 1));
    assert_eq!(wire.goaway(), Some(Reason::FLOW_CONTROL_ERROR));
}

/// Mutation: each of the values is applied, which overflows the window in between.
#[test]
fn the_last_of_equal_settings_is_applied() {
    let mut wire = Wire::open();
    let grant = frame(WINDOW_UPDATE, 0, 1, &number(10));
    wire.feed(&[request(1, flag::END_HEADERS), grant].concat());
    let value = |bytes| [&[0, 4][..], &number(bytes)].concat();
    let settings = [value(STREAM_MAX), value(100)].concat();
    wire.feed(&frame(SETTINGS, 0, 0, &settings));
    assert!(!wire.connection.is_closed());
    respond(&mut wire, 1, &[b'a'; 200]);
    assert_eq!(wire.sent_data(), [(1, 110, false)]);
}

/// Mutations: the end without its trailers; trailers before the waiting bytes.
#[test]
fn trailers_follow_the_last_data() {
    let mut wire = Wire::open();
    let initial = |bytes| frame(SETTINGS, 0, 0, &[&[0, 4][..], &number(bytes)].concat());
    wire.feed(&[initial(2), request(1, WHOLE)].concat());
    let (headers, mut trailers) = (Fields::new(), Fields::new());
    trailers.push("grpc-status", "0");
    wire.connection.start(1, &answer(&headers), NOW);
    wire.connection.send(1, b"abc");
    wire.connection.finish(1, &trailers);
    let kinds = |sent: Vec<Sent>| sent.iter().map(|it| (it.0, it.1)).collect::<Vec<_>>();
    let sent = kinds(wire.sent());
    assert_eq!(
        sent[1..],
        [(Kind::Headers, flag::END_HEADERS), (Kind::Data, 0)]
    );
    wire.feed(&initial(3));
    let sent = kinds(wire.sent());
    assert_eq!(sent[1..], [(Kind::Data, 0), (Kind::Headers, WHOLE)]);
    assert!(!wire.connection.has_stream(1));
}

/// Mutations: no credit; credit for a body that is not wanted; padding that is not credited.
#[test]
fn credit_follows_what_was_read() {
    let mut wire = Wire::open();
    wire.feed(&request(1, flag::END_HEADERS));
    let padded = [&[99][..], &[b'x'; 16_000], &[0; 99]].concat();
    let data = frame(DATA, flag::PADDED, 1, &padded);
    for _ in 0..40 {
        wire.feed(&data);
    }
    assert!(!wire.connection.is_closed());
    let updates: Vec<_> = wire.sent().iter().map(|it| (it.0, it.2)).collect();
    assert!(updates.contains(&(Kind::WindowUpdate, 1)));
    assert!(updates.contains(&(Kind::WindowUpdate, 0)));
    assert!(wire.connection.ignore_body(1));
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.extend(wire.feed(&data));
    }
    assert_eq!(seen.last(), Some(&Seen::Reset(1)), "its window is used up");
    let sent = wire.sent();
    assert!(
        !sent
            .iter()
            .any(|it| (it.0, it.2) == (Kind::WindowUpdate, 1))
    );
    assert_eq!(sent.last().map(|it| &it.3[..]), Some(&number(3)[..]));
}

/// Each error ends the connection with its own code, and nothing is read or written after that.
#[test]
fn errors_of_the_connection() {
    let settings =
        |name: u8, value| frame(SETTINGS, 0, 0, &[&[0, name][..], &number(value)].concat());
    let part = frame(HEADERS, flag::END_STREAM, 1, &block(&[]));
    for (bytes, reason) in [
        (frame(DATA, 0, 0, b"x"), Reason::PROTOCOL_ERROR),
        (frame(DATA, 0, 1, b"x"), Reason::PROTOCOL_ERROR),
        (frame(DATA, 0, 2, b"x"), Reason::PROTOCOL_ERROR),
        (request(2, WHOLE), Reason::PROTOCOL_ERROR),
        (request(0, WHOLE), Reason::PROTOCOL_ERROR),
        (
            [request(3, WHOLE), request(1, WHOLE)].concat(),
            Reason::PROTOCOL_ERROR,
        ),
        (
            [request(1, WHOLE), frame(DATA, 0, 1, b"x")].concat(),
            Reason::STREAM_CLOSED,
        ),
        (
            [request(1, WHOLE), request(1, WHOLE)].concat(),
            Reason::STREAM_CLOSED,
        ),
        (frame(HEADERS, WHOLE, 1, &[0xff]), Reason::COMPRESSION_ERROR),
        (
            frame(HEADERS, WHOLE | flag::PADDED, 1, &[9, 0x82]),
            Reason::PROTOCOL_ERROR,
        ),
        (
            frame(CONTINUATION, flag::END_HEADERS, 1, &[]),
            Reason::PROTOCOL_ERROR,
        ),
        (
            [&part[..], &frame(PING, 0, 0, &[0; 8])].concat(),
            Reason::PROTOCOL_ERROR,
        ),
        (
            [&part[..], &frame(CONTINUATION, 4, 3, &[])].concat(),
            Reason::PROTOCOL_ERROR,
        ),
        (frame(RESET, 0, 1, &number(8)), Reason::PROTOCOL_ERROR),
        (frame(2, 0, 0, &[0; 5]), Reason::PROTOCOL_ERROR),
        (frame(5, 4, 1, &[0; 8]), Reason::PROTOCOL_ERROR),
        (frame(PING, 0, 1, &[0; 8]), Reason::PROTOCOL_ERROR),
        (frame(7, 0, 1, &[0; 8]), Reason::PROTOCOL_ERROR),
        (frame(SETTINGS, 0, 1, &[]), Reason::PROTOCOL_ERROR),
        (settings(2, 2), Reason::PROTOCOL_ERROR),
        (settings(4, 1 << 31), Reason::FLOW_CONTROL_ERROR),
        (settings(5, (1 << 14) - 1), Reason::PROTOCOL_ERROR),
        (settings(5, 1 << 24), Reason::PROTOCOL_ERROR),
        (
            frame(WINDOW_UPDATE, 0, 1, &number(1)),
            Reason::PROTOCOL_ERROR,
        ),
        (
            frame(WINDOW_UPDATE, 0, 0, &number(0)),
            Reason::PROTOCOL_ERROR,
        ),
        (
            frame(WINDOW_UPDATE, 0, 0, &number(STREAM_MAX)),
            Reason::FLOW_CONTROL_ERROR,
        ),
    ] {
        let mut wire = Wire::open();
        wire.feed(&bytes);
        assert!(wire.connection.is_closed(), "{bytes:?}");
        assert_eq!(wire.goaway(), Some(reason), "{bytes:?}");
        assert_eq!(wire.feed(&request(9, WHOLE)), []);
        wire.connection.close(Reason::NO_ERROR);
        assert_eq!(wire.sent(), []);
    }
}

/// Each error resets its stream, is counted, and leaves the connection as it was.
#[test]
fn errors_of_a_stream() {
    let open = request(1, flag::END_HEADERS);
    let head = |flags, fields: &[(&str, &str)]| frame(HEADERS, flags, 1, &block(fields));
    let trailers = |flags, block: &[u8]| frame(HEADERS, flags, 1, block);
    let of_5 = head(flag::END_HEADERS, &[("content-length", "5")]);
    for (first, second, reason) in [
        (
            head(WHOLE, &[("connection", "close")]),
            vec![],
            Reason::PROTOCOL_ERROR,
        ),
        (
            head(WHOLE, &[("content-length", "5")]),
            vec![],
            Reason::PROTOCOL_ERROR,
        ),
        (
            of_5.clone(),
            frame(DATA, 0, 1, b"123456"),
            Reason::PROTOCOL_ERROR,
        ),
        (
            of_5.clone(),
            frame(DATA, flag::END_STREAM, 1, b"1234"),
            Reason::PROTOCOL_ERROR,
        ),
        (of_5, trailers(WHOLE, b""), Reason::PROTOCOL_ERROR),
        (
            open.clone(),
            trailers(flag::END_HEADERS, b""),
            Reason::PROTOCOL_ERROR,
        ),
        (
            open.clone(),
            trailers(WHOLE, b"\x84"),
            Reason::PROTOCOL_ERROR,
        ),
        (
            open.clone(),
            frame(WINDOW_UPDATE, 0, 1, &number(0)),
            Reason::PROTOCOL_ERROR,
        ),
        (
            open,
            frame(WINDOW_UPDATE, 0, 1, &number(STREAM_MAX)),
            Reason::FLOW_CONTROL_ERROR,
        ),
    ] {
        let mut wire = Wire::open();
        let bytes = [&first[..], &second].concat();
        wire.feed(&bytes);
        let sent = wire.sent();
        let reset = (Kind::ResetStream, 0, 1, number(reason.0).to_vec());
        assert_eq!(sent, [reset], "{bytes:?}");
        assert_eq!(wire.connection.tally().resets, 1);
        assert!(!wire.connection.has_stream(1));
        // Frames that were on their way are ignored; a field block is still decoded.
        let kept = frame(HEADERS, WHOLE, 1, b"\x40\x01x\x01y");
        let late = [
            frame(DATA, 0, 1, b"late"),
            frame(WINDOW_UPDATE, 0, 1, &number(1)),
            kept,
        ];
        assert_eq!(wire.feed(&late.concat()), []);
        let next = [&block(&[])[..], &[0xbe]].concat();
        let seen = wire.feed(&frame(HEADERS, WHOLE, 3, &next));
        assert_eq!(seen, [Seen::Request(3, false)]);
    }
}

/// Mutation: `handle_head` without its bound.
#[test]
fn streams_above_the_bound_are_refused() {
    let mut wire = Wire::open();
    for number in 0..=limits::STREAMS_MAX {
        wire.feed(&request(2 * number + 1, flag::END_HEADERS));
    }
    let last = 2 * limits::STREAMS_MAX + 1;
    let refused = (Kind::ResetStream, 0, last, number(7).to_vec());
    assert_eq!(wire.sent().last(), Some(&refused));
    assert_eq!(wire.connection.tally().resets, 1);
}

/// Mutation: fewer resets are remembered than there can be streams.
#[test]
fn late_data_of_any_reset_stream_is_ignored() {
    let mut wire = Wire::open();
    let streams = (0..limits::STREAMS_MAX).map(|number| 2 * number + 1);
    for stream in streams.clone() {
        wire.feed(&request(stream, flag::END_HEADERS));
    }
    for stream in streams.clone() {
        wire.connection.reset(stream, Reason::NO_ERROR);
    }
    for stream in streams {
        wire.feed(&frame(DATA, flag::END_STREAM, stream, b"late"));
        assert!(!wire.connection.is_closed(), "stream {stream}");
    }
}

/// Mutation: the reset of a stream that got its response in the same batch counts as a control
/// frame.
#[test]
fn oddities_are_counted_as_what_they_are() {
    let mut wire = Wire::open();
    wire.feed(&[request(1, WHOLE), frame(RESET, 0, 1, &number(8))].concat());
    assert_eq!(wire.connection.tally().resets, 1);
    wire.feed(&frame(RESET, 0, 1, &number(8)));
    let bytes = [
        frame(RESET, 0, 1, &number(8)),
        frame(PING, 0, 0, &[0; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(WINDOW_UPDATE, 0, 0, &number(1)),
        frame(2, 0, 5, &[0; 5]),
        frame(77, 0, 0, b"?"),
        request(3, flag::END_HEADERS),
        frame(DATA, 0, 3, b""),
        frame(DATA, flag::PADDED, 3, &[9; 10]),
        frame(DATA, 0, 3, b"tiny"),
        frame(DATA, 0, 3, b"large enough"),
        frame(DATA, flag::END_STREAM, 3, b""),
    ];
    wire.feed(&bytes.concat());
    let expected = Tally {
        resets: 0,
        empty_frames: 2,
        control_frames: 4,
        tiny_data: 1,
        ignored_frames: 2,
        header_churn: 0,
    };
    assert_eq!(wire.connection.tally(), expected);
}

/// Mutations: the bound of an unfinished block; blocks that are cut short.
#[test]
fn a_field_block_of_several_frames_is_one() {
    let mut wire = Wire::open();
    let block = block(&[("x", "y")]);
    let bytes = [
        frame(HEADERS, flag::END_STREAM, 1, &block[..3]),
        frame(CONTINUATION, 0, 1, &block[3..9]),
    ];
    assert_eq!(wire.feed(&bytes.concat()), []);
    assert!(wire.connection.is_within_block());
    let last = frame(CONTINUATION, flag::END_HEADERS, 1, &block[9..]);
    assert_eq!(wire.feed(&last), [Seen::Request(1, false)]);
    assert!(!wire.connection.is_within_block());
    wire.feed(&frame(HEADERS, 0, 3, &block));
    for _ in 0..5 {
        wire.feed(&frame(CONTINUATION, 0, 3, &[0; 16_000]));
    }
    assert_eq!(wire.goaway(), Some(Reason::ENHANCE_YOUR_CALM));
}

/// Mutations: one GOAWAY; a stream that is accepted after the second.
#[test]
fn leaving_takes_two_goaways() {
    let mut wire = Wire::open();
    wire.feed(&request(1, WHOLE));
    wire.connection.begin_shutdown();
    let sent = wire.sent();
    assert_eq!(sent[0].3, [number(STREAM_MAX), number(0)].concat());
    let ping = sent[1].3.clone();
    // This request was on its way.
    assert_eq!(wire.feed(&request(3, WHOLE)), [Seen::Request(3, false)]);
    wire.feed(&frame(PING, flag::ACK, 0, &ping));
    assert_eq!(wire.sent()[0].3, [number(3), number(0)].concat());
    assert_eq!(wire.feed(&request(5, flag::END_HEADERS)), []);
    assert_eq!(wire.connection.tally().control_frames, 1);
    assert_eq!(wire.feed(&frame(DATA, flag::END_STREAM, 5, b"late")), []);
    assert!(!wire.connection.is_closed() && !wire.connection.has_left());
    respond(&mut wire, 1, b"");
    respond(&mut wire, 3, b"");
    assert!(wire.connection.has_left());
}

/// Mutation: `owes_table_size` is never set.
#[test]
fn a_smaller_table_is_acknowledged_in_the_next_block() {
    let mut wire = Wire::open();
    let bytes = [
        frame(SETTINGS, 0, 0, &[&[0, 1][..], &number(0)].concat()),
        request(1, WHOLE),
        request(3, WHOLE),
    ];
    wire.feed(&bytes.concat());
    respond(&mut wire, 1, b"");
    respond(&mut wire, 3, b"");
    let blocks: Vec<_> = wire.sent()[1..]
        .iter()
        .map(|it| it.3[..1].to_vec())
        .collect();
    assert_eq!(blocks, [[0x20], [0x88]]);
}

/// Mutation: `greet` at the second call.
#[test]
fn settings_come_first_even_without_a_word_of_the_peer() {
    let mut connection = Connection::new();
    connection.close(Reason::NO_ERROR);
    let bytes = std::mem::take(connection.output_mut());
    assert_eq!(bytes[3], SETTINGS);
}

proptest! {
    /// Whatever frames come, nothing panics, the invariants hold, and no window is overdrawn.
    #[test]
    fn any_frames_leave_a_state_that_makes_sense(
        frames in prop::collection::vec(
            (
                0u8..11, any::<u8>(), 0u32..8, prop::collection::vec(any::<u8>(), 0..12),
                any::<bool>(),
            ),
            0..40),
    ) {
        let mut wire = Wire::open();
        let mut granted = WINDOW_DEFAULT as usize;
        for (kind, flags, stream, payload, is_request) in frames {
            let payload = match (kind, is_request) {
                (HEADERS, true) => block(&[]),
                (WINDOW_UPDATE | RESET, _) => number(payload.len() as u32).to_vec(),
                _ => payload,
            };
            let flags = if kind == HEADERS { flags & WHOLE | 4 } else { flags };
            if (kind, stream) == (WINDOW_UPDATE, 0) {
                granted += u32::from_be_bytes(payload[..4].try_into().unwrap()) as usize;
            }
            for seen in wire.feed(&frame(kind, flags, stream, &payload)) {
                if let Seen::Request(stream, _) = seen {
                    respond(&mut wire, stream, &vec![b'x'; 9_000 * stream as usize]);
                }
            }
            wire.connection.check_invariants();
            let sent: usize = wire.sent_data().iter().map(|it| it.1).sum();
            prop_assert!(sent <= granted);
            granted -= sent;
        }
    }
}
