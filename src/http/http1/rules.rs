//! The rules that all parts of the codec share: its bounds, its refusals, and which bytes may be
//! where.

use crate::error::{ApiError, ErrorCode};
use crate::limits::http1 as limits;

/// The bounds of a request, from the configuration; [`crate::limits`] caps each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Request line and fields with their line ends; a larger head gets 431.
    pub head_bytes_max: usize,
    /// The request target; a longer one gets 414.
    pub uri_bytes_max: usize,
    /// Field lines; more get 431.
    pub fields_max: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            head_bytes_max: limits::HEAD_BYTES_DEFAULT,
            uri_bytes_max: limits::URI_BYTES_DEFAULT,
            fields_max: limits::FIELDS_DEFAULT,
        }
    }
}

/// Why a request cannot be received. The client gets one response, and the connection is closed:
/// after such bytes it is unknown where the next request would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub code: ErrorCode,
    pub message: &'static str,
}

impl Malformed {
    pub const fn new(code: ErrorCode, message: &'static str) -> Malformed {
        Malformed { code, message }
    }

    /// 400: the bytes are not HTTP, or could be read in two ways.
    pub const fn bad(message: &'static str) -> Malformed {
        Malformed::new(ErrorCode::MalformedHttp, message)
    }
}

impl From<Malformed> for ApiError {
    fn from(malformed: Malformed) -> ApiError {
        ApiError::new(malformed.code, malformed.message)
    }
}

/// Returns whether a byte is allowed in a token (RFC 9110, section 5.6.2): methods and field names.
pub(crate) const fn is_token_byte(byte: u8) -> bool {
    const TABLE: [bool; 256] = byte_table(b"!#$%&'*+-.^_`|~");
    TABLE[byte as usize]
}

/// Marks the ASCII letters, the digits and `marks`.
pub(super) const fn byte_table(marks: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut index = 0;
    while index < marks.len() {
        table[marks[index] as usize] = true;
        index += 1;
    }
    table
}

/// Returns whether a byte is allowed in a field's value (RFC 9110, section 5.5): all but controls.
pub(crate) const fn is_value_byte(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || byte == b'\t'
}
