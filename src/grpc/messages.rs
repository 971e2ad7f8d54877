//! The code that `build.rs` generates from `src/proto/`, and the bound that hostile bytes meet
//! before they become messages.
//!
//! Protobuf is dense: two bytes can stand for an empty string in a list, which takes 24 bytes of
//! memory and more. So the fields are counted before any message is built. Unknown fields are
//! skipped, as every client of a newer schema expects.

use prost::encoding::{DecodeContext, decode_key, skip_field};

use crate::error::{ApiError, ErrorCode};
use crate::limits::grpc as limits;

pub use prost::Message;

#[allow(clippy::all)]
pub mod autoglm {
    include!(concat!(env!("OUT_DIR"), "/autoglm.rs"));
}

#[allow(clippy::all)]
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

/// Used for v1alpha too: its messages are the same.
#[allow(clippy::all)]
pub mod reflection {
    include!(concat!(env!("OUT_DIR"), "/grpc.reflection.v1.rs"));
}

#[allow(clippy::all)]
pub mod rpc {
    include!(concat!(env!("OUT_DIR"), "/google.rpc.rs"));
}

/// A `google.protobuf.FileDescriptorSet` of all files, each after those that it imports.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Decodes a message. Errors name its type as `name`.
pub fn decode<M: Message + Default>(bytes: &[u8], name: &str) -> Result<M, ApiError> {
    let wrong = |problem: String| {
        let message = format!("the body is not the Protobuf message {name}: {problem}");
        ApiError::new(ErrorCode::InvalidProtobuf, message)
    };
    let fields = count_fields(bytes).map_err(|error| wrong(error.to_string()))?;
    if fields > limits::PROTOBUF_FIELDS_MAX {
        let most = limits::PROTOBUF_FIELDS_MAX;
        return Err(wrong(format!(
            "it has more than {most} fields, which is the limit"
        )));
    }
    M::decode(bytes).map_err(|error| wrong(error.to_string()))
}

/// Counts the fields at the top level, up to one above the bound.
fn count_fields(mut bytes: &[u8]) -> Result<usize, prost::DecodeError> {
    let mut fields = 0;
    while !bytes.is_empty() && fields <= limits::PROTOBUF_FIELDS_MAX {
        let (tag, wire_type) = decode_key(&mut bytes)?;
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default())?;
        fields += 1;
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::autoglm::{GenerateRequest, GenerateResponse};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_two_fields_are_these_bytes() {
        let request = GenerateRequest {
            prompt: "ab".into(),
            temperature: 0.5,
            ..Default::default()
        };
        let bytes = [0x0a, 2, b'a', b'b', 0x15, 0, 0, 0, 0x3f];
        assert_eq!(request.encode_to_vec(), bytes);
        assert_eq!(decode::<GenerateRequest>(&bytes, "").unwrap(), request);
        let response = GenerateResponse {
            text: "x".into(),
            latency: 1.5,
            ..Default::default()
        };
        let bytes = [0x0a, 1, b'x', 0x15, 0, 0, 0xc0, 0x3f];
        assert_eq!(response.encode_to_vec(), bytes);
    }

    #[test]
    fn fields_of_a_newer_schema_are_skipped() {
        let bytes = [0x0a, 1, b'a', 0xf8, 0x07, 1, 0x82, 0x08, 1, b'z'];
        let request: GenerateRequest = decode(&bytes, "").unwrap();
        assert_eq!(request.prompt, "a");
    }

    #[test]
    fn a_malformed_message_is_named() {
        for bytes in [
            &b"{\"prompt\": \"x\"}"[..],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
            &[0x0a, 2, b'a'],
            &[0x0a, 1, 0xff],
            &[0x08, 1],
        ] {
            let error = decode::<GenerateRequest>(bytes, "GenerateRequest").unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidProtobuf, "{bytes:?}");
            assert!(error.message.contains("GenerateRequest"));
        }
    }

    #[test]
    fn a_message_of_countless_fields_is_refused_before_it_is_made() {
        let bytes = [0x4a, 0].repeat(limits::PROTOBUF_FIELDS_MAX + 1);
        let error = decode::<GenerateRequest>(&bytes, "GenerateRequest").unwrap_err();
        assert!(error.message.contains("fields"), "{}", error.message);
        let fewer = &bytes[2..];
        assert!(decode::<GenerateRequest>(fewer, "GenerateRequest").is_ok());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let _ = decode::<GenerateRequest>(&bytes, "GenerateRequest");
            let _ = decode::<super::reflection::ServerReflectionRequest>(&bytes, "");
        }
    }
}
