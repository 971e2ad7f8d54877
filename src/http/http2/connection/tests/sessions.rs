//! Valid sessions, and the same with bytes that are changed, repeated, lost or cut off.

use super::*;

/// Returns the bytes of one step of a client that is well behaved most of the time.
fn step() -> impl Strategy<Value = Vec<u8>> {
    let stream = || (0u32..6).prop_map(|at| 2 * at + 1);
    let end = || prop_oneof![Just(0), Just(flag::END_STREAM)];
    let window = prop_oneof![0u32..100, Just(WINDOW_DEFAULT), Just(STREAM_MAX)];
    let head = (stream(), end()).prop_map(|(id, end)| {
        let block = [&block(&[])[..], b"\x40\x01x\x01y\xbe"].concat();
        frame(HEADERS, end | flag::END_HEADERS, id, &block)
    });
    let long_head = (stream(), end(), 0..20usize).prop_map(|(id, end, at)| {
        let block = block(&[("content-length", "3")]);
        let (start, rest) = block.split_at(at);
        let rest = frame(CONTINUATION, flag::END_HEADERS, id, rest);
        [frame(HEADERS, end, id, start), rest].concat()
    });
    let data = (stream(), end(), 0..40usize, any::<bool>()).prop_map(|(id, end, size, padded)| {
        let payload = [&[2][..], &vec![b'd'; size], &[0, 0]].concat();
        match padded {
            true => frame(DATA, end | flag::PADDED, id, &payload),
            false => frame(DATA, end, id, &payload[1..=size]),
        }
    });
    let trailers = stream().prop_map(|id| frame(HEADERS, WHOLE, id, b"\x00\x01t\x01z"));
    let reset = stream().prop_map(|id| frame(RESET, 0, id, &number(8)));
    let grant = (stream(), 1u32..9_000, any::<bool>()).prop_map(|(id, bytes, is_of_all)| {
        let id = if is_of_all { 0 } else { id };
        frame(WINDOW_UPDATE, 0, id, &number(bytes))
    });
    let settings = (1u8..7, window).prop_map(|(name, value)| {
        frame(SETTINGS, 0, 0, &[&[0, name][..], &number(value)].concat())
    });
    prop_oneof![
        4 => head,
        1 => long_head,
        4 => data,
        1 => trailers,
        1 => reset,
        2 => grant,
        1 => settings,
        1 => Just(frame(PING, 0, 0, b"12345678")),
    ]
}

/// A change of the bytes from a place on: the place, the kind, and a number that the kind uses.
type Change = (prop::sample::Index, u8, u8);

fn change(bytes: &mut Vec<u8>, changes: &[Change]) {
    for (at, kind, number) in changes {
        if bytes.is_empty() {
            return;
        }
        let at = at.index(bytes.len());
        let end = bytes.len().min(at + usize::from(*number));
        match kind {
            0 => bytes[at] ^= number,
            1 => bytes[at] = *number,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let repeated = bytes[at..end].to_vec();
                bytes.splice(at..at, repeated);
            }
            _ => bytes.truncate(at),
        }
    }
}

/// Returns the preface, SETTINGS, and the steps with their changes.
fn session() -> impl Strategy<Value = Vec<u8>> {
    let place = any::<prop::sample::Index>();
    let changes = prop::collection::vec((place, 0u8..5, any::<u8>()), 0..4);
    let steps = prop::collection::vec(step(), 1..25);
    (steps, changes).prop_map(|(steps, changes)| {
        let mut bytes = steps.concat();
        change(&mut bytes, &changes);
        [&PREFACE[..], &frame(SETTINGS, 0, 0, &[]), &bytes].concat()
    })
}

/// Returns a connection that has read nothing yet.
fn fresh() -> Wire {
    let mut wire = Wire {
        reader: FrameReader::default(),
        connection: Connection::new(),
        theirs: FrameReader::default(),
    };
    wire.connection.set_room(ROOM);
    assert_eq!(wire.theirs.next(PREFACE), Ok((PREFACE.len(), None)));
    wire
}

/// Checks that a stream or the connection sends nothing behind its end.
#[derive(Default)]
struct Ends {
    streams: Vec<u32>,
    has_goaway: bool,
}

impl Ends {
    fn check(&mut self, sent: &[Sent]) {
        for (kind, flags, stream, _) in sent {
            assert!(!self.has_goaway, "{kind:?} behind GOAWAY");
            self.has_goaway = *kind == Kind::GoAway;
            let is_reset = *kind == Kind::ResetStream;
            let carries = matches!(kind, Kind::Data | Kind::Headers);
            assert!(!carries || !self.streams.contains(stream), "{kind:?}");
            if is_reset || (carries && flags & flag::END_STREAM != 0) {
                self.streams.push(*stream);
            }
        }
    }
}

proptest! {
    /// Nothing panics, the invariants hold, the output stays in proportion to the input, and
    /// nothing follows an end.
    ///
    /// Mutations: `close` that leaves the phase; `remove` without `sendable`; `write_end` without
    /// its new state.
    #[test]
    fn a_broken_session_breaks_no_rule_of_ours(
        bytes in session(),
        pieces in 1..200usize,
        body_bytes in prop_oneof![Just(0usize), 1..100usize, Just(40_000)],
    ) {
        let (mut wire, mut ends, mut answered) = (fresh(), Ends::default(), 0);
        let (mut trailers, headers, body) = (Fields::new(), Fields::new(), vec![b'b'; body_bytes]);
        trailers.push("x-end", "1");
        for piece in bytes.chunks(pieces) {
            for seen in wire.feed(piece) {
                let Seen::Request(stream, _) = seen else { continue };
                answered += 1;
                if answered % 2 == 0 {
                    respond(&mut wire, stream, &body);
                    continue;
                }
                wire.connection.start(stream, &answer(&headers), NOW);
                wire.connection.send(stream, &body);
                wire.connection.finish(stream, &trailers);
            }
            wire.connection.check_invariants();
            let bound = 4 * piece.len() + 100 + 20 * (body_bytes + 200);
            prop_assert!(wire.connection.output_bytes() <= bound);
            ends.check(&wire.sent());
        }
        wire.connection.close(Reason::NO_ERROR);
        ends.check(&wire.sent());
        prop_assert!(ends.has_goaway);
    }

    /// The cuts of the reads change nothing.
    ///
    /// Mutations: `collect` that takes a byte too much; a partial frame that is returned twice.
    #[test]
    fn the_cuts_of_the_reads_change_no_event(bytes in session(), pieces in 1..50usize) {
        let (mut whole, mut cut) = (fresh(), fresh());
        let expected = whole.feed(&bytes);
        let found: Vec<_> = bytes.chunks(pieces).flat_map(|piece| cut.feed(piece)).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(cut.sent(), whole.sent());
    }
}
