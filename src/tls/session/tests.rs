//! Both ends of a session in one thread, connected by vectors alone.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, SupportedProtocolVersion};

use super::*;
use crate::tls::testing::{acceptor, client};

/// Both ends, and the bytes between them.
struct Pair {
    client: ClientConnection,
    server: Box<Session>,
    plaintext: Vec<u8>,
    scratch: Vec<u8>,
    pool: BufferPool,
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

impl Pair {
    fn new(version: &'static SupportedProtocolVersion) -> Pair {
        Pair::of(client(version))
    }

    fn of(config: Arc<ClientConfig>) -> Pair {
        let name = "localhost".try_into().expect("a name");
        let mut client = ClientConnection::new(config, name).expect("a configuration");
        client.set_buffer_limit(None);
        Pair {
            client,
            server: Session::new(&acceptor()).expect("a configuration"),
            plaintext: Vec::new(),
            scratch: vec![0; limits::READ_BYTES_MAX + limits::RECORD_BYTES_MAX],
            pool: BufferPool::default(),
        }
    }

    /// Returns the bytes that the client has to send now.
    fn sent(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client
                .write_tls(&mut bytes)
                .expect("a vector takes all");
        }
        bytes
    }

    fn arrive(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        for piece in bytes.chunks(limits::READ_BYTES_MAX) {
            let mut piece = piece.to_vec();
            let received =
                self.server
                    .handle_input(&mut piece, &mut self.scratch, &mut self.pool)?;
            let plaintext = &self.scratch[..received.plaintext];
            self.plaintext.extend_from_slice(plaintext);
        }
        Ok(())
    }

    /// Returns the bytes that the server has to send.
    fn said(&mut self) -> Vec<u8> {
        let queue = self.server.queue_mut();
        let mut slices = [IoSlice::new(&[]); 64];
        let count = queue.io_slices(&mut slices);
        let bytes: Vec<u8> = slices[..count]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        queue.advance(bytes.len(), &mut self.pool);
        bytes
    }

    /// Passes the server's bytes on to the client, and returns the decrypted plaintext.
    fn answer(&mut self) -> Vec<u8> {
        let bytes = self.said();
        let (mut rest, mut heard) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).expect("there is room");
            self.client.process_new_packets().expect("good records");
            let _ = self.client.reader().read_to_end(&mut heard);
        }
        heard
    }

    /// Runs until neither side has bytes to send, in pieces of the sizes that `cut` returns.
    fn shake_hands(&mut self, mut cut: impl FnMut(usize) -> usize) {
        loop {
            let sent = self.sent();
            let mut rest = sent.as_slice();
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(cut(rest.len()).clamp(1, rest.len()));
                self.arrive(piece).expect("a good client");
                rest = later;
            }
            self.answer();
            if sent.is_empty() {
                return;
            }
        }
    }
}

#[test]
fn a_session_runs_from_hello_to_goodbye() {
    for version in VERSIONS {
        let mut pair = Pair::new(version);
        assert!(pair.server.is_handshaking());
        pair.shake_hands(|all| all);
        assert!(pair.server.is_open() && pair.server.queue().is_empty());
        pair.client.writer().write_all(b"question").expect("room");
        let sent = pair.sent();
        pair.arrive(&sent).expect("a good record");
        assert_eq!(pair.plaintext, b"question");
        let answer = [IoSlice::new(b"ans"), IoSlice::new(b"wer")];
        assert_eq!(pair.server.handle_output(&answer, &mut pair.pool), 6);
        assert_eq!(pair.answer(), b"answer");
        pair.client.send_close_notify();
        // The beginning of a record that must not come any more.
        let late = &[23, 3, 3];
        let sent = [&pair.sent()[..], late].concat();
        pair.arrive(&sent).expect("a good record");
        assert!(pair.server.input_is_over() && pair.server.partial.is_empty());
        pair.arrive(late).expect("nothing is read");
        assert!(pair.server.partial.is_empty());
        // The other direction is still open (RFC 8446, section 6.1).
        assert_eq!(pair.server.handle_output(&answer, &mut pair.pool), 6);
        assert!(pair.server.close(&mut pair.pool));
        assert!(!pair.server.close(&mut pair.pool), "once");
        assert_eq!(
            pair.server.handle_output(&answer, &mut pair.pool),
            0,
            "nothing after the last word"
        );
        assert_eq!(pair.answer(), b"answer");
    }
}

#[test]
fn what_waits_to_be_written_is_bounded() {
    let mut pair = Pair::new(&rustls::version::TLS13);
    pair.shake_hands(|all| all);
    let much = vec![b'x'; 4 * limits::CIPHERTEXT_BYTES_MAX];
    let taken = pair
        .server
        .handle_output(&[IoSlice::new(&much)], &mut pair.pool);
    assert_eq!(taken, limits::CIPHERTEXT_BYTES_MAX);
    assert_eq!(
        pair.server
            .handle_output(&[IoSlice::new(&much)], &mut pair.pool),
        0
    );
    assert_eq!(pair.answer().len(), taken);
    assert!(
        pair.server
            .handle_output(&[IoSlice::new(&much)], &mut pair.pool)
            > 0
    );
}

/// An alert of rustls', or our own if rustls sends none.
#[test]
fn nonsense_gets_an_alert() {
    for nonsense in [
        &b"\x16\x03\x01\x00\x05hello"[..],
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 255, 255],
        &[22, 9, 9, 0, 1, 1],
    ] {
        let mut pair = Pair::new(&rustls::version::TLS13);
        // No alert is sent while a record may still become valid.
        let failed = pair
            .arrive(&[nonsense, &[22; 64]].concat())
            .expect_err("nonsense");
        assert!(failed.in_handshake);
        let bytes = pair.said();
        assert_eq!((bytes[0], bytes.len()), (21, 7), "{nonsense:?}: {bytes:?}");
        assert!(
            !pair.server.close(&mut pair.pool),
            "an alert is the last word"
        );
    }
}

/// Returns whether rustls may ignore this byte of a record's head: the two that name a version
/// (RFC 8446, section 5.1: ignored for all purposes), and in TLS 1.3 the outer content type.
///
/// rustls computes the additional data of TLS 1.3 (section 5.2) from the only type that an
/// encrypted record may have, instead of from the byte received, so another type there changes
/// nothing. In TLS 1.2 the type is authenticated.
fn is_ignored(records: &[u8], place: usize, is_old: bool) -> bool {
    let mut start = 0;
    while start + 5 <= records.len() {
        let first = if is_old { start + 1 } else { start };
        if (first..start + 3).contains(&place) {
            return true;
        }
        start += 5 + usize::from(u16::from_be_bytes([records[start + 3], records[start + 4]]));
    }
    false
}

/// Every bit of a short message's head: the few that rustls ignores change nothing, the rest are
/// found. A random place seldom falls on a head.
#[test]
fn a_wrong_bit_in_a_head_is_found_or_changes_nothing() {
    for is_old in [false, true] {
        for (place, bit) in (0..5).flat_map(|place| (0..8).map(move |bit| (place, bit))) {
            let mut pair = Pair::new(VERSIONS[usize::from(!is_old)]);
            pair.shake_hands(|all| all);
            pair.client.writer().write_all(b"hello").expect("no limit");
            let mut sent = pair.sent();
            sent[place] ^= 1 << bit;
            let result = pair.arrive(&sent);
            let is_whole = result.is_ok() && pair.plaintext == b"hello";
            let may_be_whole = is_ignored(&sent, place, is_old);
            assert!(
                !is_whole || may_be_whole,
                "byte {place}, bit {bit}, old: {is_old}"
            );
            assert!(pair.plaintext.is_empty() || is_whole);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The same bytes have the same result, however they are cut.
    #[test]
    fn pieces_do_not_matter(
        cuts in prop::collection::vec(1_usize..9_000, 1..40),
        payload in prop::collection::vec(any::<u8>(), 0..60_000),
        fragment in prop::option::of(32_usize..600),
        is_old: bool,
    ) {
        // A hello in several records is one message in several pieces.
        let mut config = (*client(VERSIONS[usize::from(!is_old)])).clone();
        config.max_fragment_size = fragment;
        let mut pair = Pair::of(Arc::new(config));
        let mut next = cuts.iter().cycle();
        pair.client.writer().write_all(&payload).expect("no limit");
        pair.shake_hands(|_| next.next().copied().unwrap_or(1));
        prop_assert!(pair.server.is_open());
        prop_assert_eq!(&pair.plaintext, &payload);
        let counters = pair.pool.counters();
        prop_assert_eq!(counters.taken, counters.given, "an idle session holds no buffer");
    }

    /// With one wrong bit anywhere, only a beginning of the sent plaintext comes out.
    #[test]
    fn a_wrong_bit_is_found_and_never_panics(
        place: prop::sample::Index,
        bit in 0_u8..8,
        payload in prop::collection::vec(any::<u8>(), 1..20_000),
        is_old: bool,
    ) {
        let mut pair = Pair::new(VERSIONS[usize::from(!is_old)]);
        pair.shake_hands(|all| all);
        pair.client.writer().write_all(&payload).expect("no limit");
        let mut sent = pair.sent();
        let place = place.index(sent.len());
        let is_ignored = is_ignored(&sent, place, is_old);
        sent[place] ^= 1 << bit;
        let result = pair.arrive(&sent);
        prop_assert!(payload.starts_with(&pair.plaintext));
        // A length that has grown waits for bytes that do not come.
        let is_found = result.is_err() || pair.plaintext.len() < payload.len();
        prop_assert!(is_found || is_ignored);
        pair.server.close(&mut pair.pool);
        pair.said();
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let mut pair = Pair::new(&rustls::version::TLS13);
        let _ = pair.arrive(&[&[22, 3, 1][..], &bytes].concat());
        prop_assert_eq!(&pair.plaintext, &Vec::<u8>::new());
    }
}
