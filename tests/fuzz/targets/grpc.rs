//! gRPC's framing and messages: the first byte decides where the rest is cut.
//!
//! Nothing may panic, the pieces must have the result of the whole, and no message may exceed the
//! limit.

#![no_main]

use autoglmd::error::ErrorCode;
use autoglmd::grpc::messages::{Message, autoglm, decode, reflection};
use autoglmd::grpc::{Bounds, Decoder, Encoding, frame};
use libfuzzer_sys::fuzz_target;

const BOUNDS: Bounds = Bounds {
    bytes: 64 * 1024,
    inflate_ratio: Some(100),
};

fuzz_target!(|input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first() else {
        return;
    };
    let encoding = match cut & 1 {
        0 => Encoding::Identity,
        _ => Encoding::Gzip,
    };
    let size = usize::from(cut >> 1).max(1);
    let whole = messages(encoding, [bytes]);
    assert_eq!(whole, messages(encoding, bytes.chunks(size)));
    // A method that takes one message agrees with a stream that has one.
    if let Ok(only) = frame::only_message(bytes, encoding, BOUNDS) {
        assert_eq!(whole, (vec![only.into_owned()], None));
    }
    for message in &whole.0 {
        assert!(message.len() <= BOUNDS.bytes);
        let asked = decode::<autoglm::GenerateRequest>(message, "GenerateRequest");
        if let Ok(asked) = asked {
            // A message that was read can be written and read again.
            let again = decode(&asked.encode_to_vec(), "GenerateRequest");
            assert!(again == Ok(asked.clone()) || has_nan(&asked));
        }
        let asked = decode::<reflection::ServerReflectionRequest>(message, "");
        if let Ok(asked) = asked {
            autoglmd::grpc::reflection::answer(asked);
        }
    }
});

/// Returns the messages, and the error of the stream.
fn messages<'a>(
    encoding: Encoding,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Vec<u8>>, Option<ErrorCode>) {
    let mut decoder = Decoder::new(encoding, BOUNDS);
    let mut found = Vec::new();
    for piece in pieces {
        decoder.handle_data(piece);
        loop {
            match decoder.poll_message() {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(error) => return (found, Some(error.code)),
            }
        }
    }
    let end = decoder.finish().err().map(|error| error.code);
    (found, end)
}

/// A NaN is not equal to itself.
fn has_nan(asked: &autoglm::GenerateRequest) -> bool {
    let optional = [
        asked.top_p,
        asked.min_p,
        asked.frequency_penalty,
        asked.presence_penalty,
        asked.repeat_penalty,
    ];
    asked.temperature.is_nan() || optional.into_iter().flatten().any(f32::is_nan)
}
