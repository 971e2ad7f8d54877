//! How a response ends: three fields after its messages, or in its head if there are none.
//!
//! `grpc-status` is the number from the error catalogue and `grpc-message` its sentence.
//! `grpc-status-details-bin` holds both again as `google.rpc.Status`, with `ErrorInfo`, whose
//! reason is the catalogue's code, and `RetryInfo` if waiting helps. The same message is the body
//! of an error sent as `application/x-protobuf`.

use std::collections::HashMap;
use std::time::Duration;

use prost_types::Any;

use crate::error::ApiError;
use crate::http::Fields;
use crate::limits::grpc as limits;

use super::messages::Message;
use super::messages::rpc::{ErrorInfo, RetryInfo, Status};

/// The domain that defines the reasons.
pub const DOMAIN: &str = "autoglmd";

/// Returns an error as a message.
pub fn status_of(error: &ApiError, request_id: &str) -> Status {
    let mut metadata = HashMap::from([
        ("request_id".to_owned(), request_id.to_owned()),
        ("type".to_owned(), error.code.family().as_str().to_owned()),
    ]);
    for (name, value) in [("param", &error.param), ("partial", &error.partial)] {
        if let Some(value) = value {
            metadata.insert(name.to_owned(), value.clone());
        }
    }
    let info = ErrorInfo {
        reason: error.code.as_str().to_owned(),
        domain: DOMAIN.to_owned(),
        metadata,
    };
    let mut details = vec![detail("ErrorInfo", &info)];
    if let Some(milliseconds) = error.retry_after_ms {
        let retry_delay = prost_types::Duration::try_from(Duration::from_millis(milliseconds));
        let retry_delay = retry_delay.ok();
        details.push(detail("RetryInfo", &RetryInfo { retry_delay }));
    }
    Status {
        code: error.code.grpc_status().into(),
        message: error.message.clone(),
        details,
    }
}

/// Adds the fields of a successful response.
pub fn push_ok(fields: &mut Fields) {
    fields.push("grpc-status", "0");
}

/// Adds the fields of an error.
pub fn push_error(fields: &mut Fields, error: &ApiError, request_id: &str) {
    fields.push_number("grpc-status", error.code.grpc_status().into());
    let message = beginning(&error.message, limits::STATUS_MESSAGE_BYTES_MAX);
    fields.push("grpc-message", &percent_encoded(message));
    let mut status = status_of(error, request_id);
    status.message = message.to_owned();
    if status.encoded_len() > limits::STATUS_DETAILS_BYTES_MAX {
        // Clients accept some kilobytes of trailers, and half a program is of no use.
        let short = ApiError {
            partial: None,
            message: message.to_owned(),
            ..error.clone()
        };
        status = status_of(&short, request_id);
    }
    let details = base64(&status.encode_to_vec());
    fields.push("grpc-status-details-bin", &details);
    if let Some(milliseconds) = error.retry_after_ms {
        // For clients whose service configuration has a retry policy (proposal A6).
        fields.push_number("grpc-retry-pushback-ms", milliseconds);
    }
}

fn detail(name: &str, message: &impl Message) -> Any {
    Any {
        type_url: format!("type.googleapis.com/google.rpc.{name}"),
        value: message.encode_to_vec(),
    }
}

/// Encodes all but visible ASCII and the space, and the percent sign itself, as `%XX`.
fn percent_encoded(text: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => {
                encoded.push('%');
                encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
                encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
    encoded
}

/// Encodes by RFC 4648, section 4, without padding, as binary fields should be sent.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for place in 0..=chunk.len() {
            let digit = word >> (18 - 6 * place) & 63;
            encoded.push(char::from(DIGITS[digit as usize]));
        }
    }
    encoded
}

/// Returns as many whole characters from the start as fit into `bytes`.
fn beginning(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    // Position 0 is a boundary.
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use proptest::prelude::*;

    #[test]
    fn base64_is_the_standards() {
        for (bytes, expected) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encoded("100 % ~`é\n"), "100 %25 ~`%C3%A9%0A");
    }

    #[test]
    fn an_error_has_its_status_its_sentence_and_its_details() {
        let error = ApiError::new(ErrorCode::QueueFull, "full")
            .with_param("p")
            .with_retry_after(Duration::from_millis(1_500));
        let mut fields = Fields::new();
        push_error(&mut fields, &error, "r-1");
        let names: Vec<_> = fields.iter().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(
            names,
            [
                "grpc-status",
                "grpc-message",
                "grpc-status-details-bin",
                "grpc-retry-pushback-ms"
            ]
        );
        let status = status_of(&error, "r-1");
        assert_eq!((status.code, status.message.as_str()), (14, "full"));
        let info = ErrorInfo::decode(&*status.details[0].value).unwrap();
        assert_eq!(info.reason, "queue_full");
        assert_eq!(info.domain, DOMAIN);
        assert_eq!(info.metadata["request_id"], "r-1");
        assert_eq!(info.metadata["param"], "p");
        assert_eq!(info.metadata["type"], "overloaded_error");
        let retry = RetryInfo::decode(&*status.details[1].value).unwrap();
        let delay = retry.retry_delay.unwrap();
        assert_eq!((delay.seconds, delay.nanos), (1, 500_000_000));
    }

    #[test]
    fn trailers_are_bounded_whatever_was_written() {
        let error = ApiError::new(ErrorCode::GenerationTimeout, "é".repeat(10_000))
            .with_partial("x".repeat(100_000));
        let mut fields = Fields::new();
        push_error(&mut fields, &error, "r-1");
        assert!(fields.lines().len() < 8 * 1024, "{}", fields.lines().len());
        let short = ApiError::new(ErrorCode::GenerationTimeout, "late").with_partial("x = 1");
        let info = status_of(&short, "").details.remove(0);
        let info = ErrorInfo::decode(&*info.value).unwrap();
        assert_eq!(info.metadata["partial"], "x = 1");
    }

    proptest! {
        #[test]
        fn encoded_messages_are_visible_ascii(text: String) {
            let encoded = percent_encoded(&text);
            prop_assert!(encoded.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            let cut = beginning(&text, 5);
            prop_assert!(text.starts_with(cut) && cut.len() <= 5);
        }
    }
}
