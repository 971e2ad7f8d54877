//! HTTP/2's protocol: any bytes behind the preface. The first byte decides where the rest is cut.
//!
//! Checks that nothing panics, that the invariants hold after every frame, that events and output
//! do not depend on the cuts, and that the output exceeds its room by no more than one frame and
//! the frames that are due as a mere consequence of others.

#![no_main]

use autoglmd::http::http2::connection::{Connection, Event};
use autoglmd::http::http2::frame::FrameReader;
use autoglmd::http::sniff::PREFACE;
use autoglmd::http::{Fields, ResponseHead};
use libfuzzer_sys::fuzz_target;

const ROOM_BYTES: usize = 64 * 1024;
const DATE: &[u8; 29] = b"Sun, 06 Nov 1994 08:49:37 GMT";

fuzz_target!(|input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first() else {
        return;
    };
    let size = usize::from(cut).max(1);
    assert_eq!(run([bytes]), run(bytes.chunks(size)));
});

/// Responds to every request at once. Returns the bytes of all responses and other frames.
fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut reader, mut connection) = (FrameReader::default(), Connection::new());
    connection.set_room(ROOM_BYTES);
    connection.begin_batch();
    for piece in [PREFACE.as_slice()].into_iter().chain(pieces) {
        let mut rest = piece;
        while !connection.is_closed() {
            match reader.next(rest) {
                Ok((used, Some(frame))) => {
                    rest = &rest[used..];
                    if let Event::Request { stream, .. } = connection.handle_frame(&frame) {
                        let head = ResponseHead {
                            status: 200,
                            content_type: None,
                            headers: &Fields::new(),
                        };
                        connection.respond(stream, &head, &[b'x'; 300], DATE);
                    }
                    connection.write_waiting();
                    connection.check_invariants();
                }
                Ok((_, None)) => break,
                Err(reason) => connection.close(reason),
            }
        }
    }
    std::mem::take(connection.output_mut())
}
