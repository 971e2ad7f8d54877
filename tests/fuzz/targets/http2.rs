//! The HTTP/2 pipe: frame meter, h2 behind it, and the reading of what h2 died of. The first byte
//! says where the rest is cut.
//!
//! What must hold: nothing panics, the meter's verdict and tally do not depend on the cuts, and h2
//! never writes more than it was given room for and one frame.

#![no_main]

use autoglmd::http::http2::explain::explain;
use autoglmd::http::http2::meter::{FrameMeter, Tally};
use autoglmd::http::http2::{Polled, Server};
use autoglmd::http::sniff::PREFACE;
use libfuzzer_sys::fuzz_target;

const ROOM_BYTES: usize = 64 * 1024;
/// h2's write buffer, and the head and payload of a frame behind it.
const BEYOND_BYTES: usize = 64 * 1024;

fuzz_target!(|input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first() else {
        return;
    };
    let size = usize::from(cut).max(1);
    let (tally, is_violated) = measure([bytes]);
    assert_eq!((tally, is_violated), measure(bytes.chunks(size)));
    explain(bytes, u32::from(cut));

    let mut server = Server::new();
    server.feed(PREFACE);
    for piece in bytes.chunks(size) {
        server.feed(piece);
        if !answer_all(&mut server) {
            return;
        }
    }
    server.begin_shutdown();
    answer_all(&mut server);
});

/// Answers every request with nothing. `false`: the connection is over.
fn answer_all(server: &mut Server) -> bool {
    loop {
        let polled = server.poll_request(ROOM_BYTES);
        let written = server.take_output().map_or(0, |bytes| bytes.len());
        assert!(written <= ROOM_BYTES + BEYOND_BYTES);
        match polled {
            Polled::Request(mut incoming) => {
                let response = http::Response::new(());
                // Fails where the stream is gone.
                let _ = incoming.respond.send_response(response, true);
            }
            Polled::Waiting => return true,
            Polled::Closed => return false,
        }
    }
}

/// What the meter makes of the pieces, and whether it refuses a frame.
fn measure<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Tally, bool) {
    let (mut meter, mut tally) = (FrameMeter::default(), Tally::default());
    for piece in pieces {
        if meter.handle(piece, &mut tally).is_err() {
            return (tally, true);
        }
    }
    (tally, false)
}
