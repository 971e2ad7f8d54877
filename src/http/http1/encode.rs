//! Responses as bytes (RFC 9112): status line, fields, chunks.
//!
//! This file owns the fields that the protocol itself makes: `Content-Length`, `Transfer-Encoding`,
//! `Connection` and `Date`. It appends to a buffer that the connection keeps, so nothing is
//! allocated once that buffer has grown. No `Server` field is sent: it would only help someone
//! scanning for vulnerable versions.

use crate::http::{Fields, ResponseHead, Version};

/// How the client learns where a response's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// By `Content-Length`. For HEAD: the length that GET would have, and no body follows.
    Length(u64),
    /// By chunks; HTTP/1.1 only.
    Chunked,
    /// By the end of the connection: a stream to an HTTP/1.0 client.
    UntilClose,
    /// No framing field and no body, as for HEAD on a stream.
    None,
}

impl BodyFraming {
    /// Returns how a body of unknown length is framed for a client of this version.
    pub const fn stream(version: Version) -> BodyFraming {
        match version {
            Version::Http10 => BodyFraming::UntilClose,
            _ => BodyFraming::Chunked,
        }
    }
}

/// The interim response for an HTTP/1.1 client that holds its body back (RFC 9110, section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The empty chunk, after which trailers may follow.
const LAST_CHUNK: &[u8] = b"0\r\n";

/// Returns whether a response of this status never has a body (RFC 9110, section 6.4.1).
pub const fn is_bodiless(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

/// Appends the head of a response. `date` comes from [`http_date`]; the caller keeps it for a
/// second. The caller decides whether the connection goes on, except that a body framed by the end
/// of the connection always closes it.
pub fn response_head(
    out: &mut Vec<u8>,
    answer: &ResponseHead<'_>,
    framing: BodyFraming,
    version: Version,
    keep_alive: bool,
    date: &[u8; 29],
) {
    out.reserve(256);
    status_line(out, answer.status);
    out.extend_from_slice(b"date: ");
    out.extend_from_slice(date);
    out.extend_from_slice(b"\r\n");
    if let Some(content_type) = answer.content_type {
        field(out, "content-type", content_type.as_bytes());
    }
    match framing {
        _ if is_bodiless(answer.status) => {}
        BodyFraming::Length(bytes) => {
            let mut digits = itoa::Buffer::new();
            field(out, "content-length", digits.format(bytes).as_bytes());
        }
        BodyFraming::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        BodyFraming::UntilClose | BodyFraming::None => {}
    }
    let ends_with_connection = framing == BodyFraming::UntilClose && !is_bodiless(answer.status);
    if !keep_alive || ends_with_connection {
        out.extend_from_slice(b"connection: close\r\n");
    } else if version == Version::Http10 {
        out.extend_from_slice(b"connection: keep-alive\r\n");
    }
    debug_assert!(
        answer.headers.iter().all(|(name, _)| !is_made_here(name)),
        "the encoder itself writes one of {:?}",
        answer.headers
    );
    out.extend_from_slice(answer.headers.lines());
    out.extend_from_slice(b"\r\n");
}

/// Appends one chunk. Appends nothing for empty data: an empty chunk would end the body.
pub fn chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    out.reserve(data.len() + 20);
    let mut digits = [0; 16];
    out.extend_from_slice(hexadecimal(data.len() as u64, &mut digits));
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the empty chunk, the trailer section (RFC 9112, section 7.1.2), and the end.
pub fn last_chunk(out: &mut Vec<u8>, trailers: &Fields) {
    out.extend_from_slice(LAST_CHUNK);
    out.extend_from_slice(trailers.lines());
    out.extend_from_slice(b"\r\n");
}

/// Formats seconds since 1970 as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7), as far
/// as a year of four digits allows.
pub fn http_date(unix_seconds: u64) -> [u8; 29] {
    const WEEKDAYS: &[u8] = b"ThuFriSatSunMonTueWed";
    const MONTHS: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    const LAST_SECOND_OF_9999: u64 = 253_402_300_799;
    let unix_seconds = unix_seconds.min(LAST_SECOND_OF_9999);
    let days = unix_seconds / 86_400;
    let second_of_day = unix_seconds % 86_400;
    let (year, month, day) = civil_date(days);

    let mut date = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let weekday = (days % 7) as usize * 3;
    let month_name = (month as usize - 1) * 3;
    date[0..3].copy_from_slice(&WEEKDAYS[weekday..weekday + 3]);
    two_digits(&mut date[5..7], day);
    date[8..11].copy_from_slice(&MONTHS[month_name..month_name + 3]);
    two_digits(&mut date[12..14], year / 100);
    two_digits(&mut date[14..16], year % 100);
    two_digits(&mut date[17..19], second_of_day / 3_600);
    two_digits(&mut date[20..22], second_of_day / 60 % 60);
    two_digits(&mut date[23..25], second_of_day % 60);
    date
}

/// Returns year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is a year's last day and month lengths follow
/// a straight line: every five months have 153 days.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_FROM_MARCH_0000: u64 = 719_468;
    const DAYS_OF_ERA: u64 = 146_097; // 400 years
    let days = days + DAYS_FROM_MARCH_0000;
    let era = days / DAYS_OF_ERA;
    let day_of_era = days % DAYS_OF_ERA;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let (month, year_offset) = match march_month < 10 {
        true => (march_month + 3, 0),
        false => (march_month - 9, 1),
    };
    (era * 400 + year_of_era + year_offset, month, day)
}

fn two_digits(out: &mut [u8], number: u64) {
    out[0] = b'0' + (number / 10 % 10) as u8;
    out[1] = b'0' + (number % 10) as u8;
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn is_made_here(name: &str) -> bool {
    matches!(
        name,
        "content-length" | "transfer-encoding" | "connection" | "date" | "content-type"
    )
}

/// Writes the number without leading zeros at the end of `digits`, and returns that part.
fn hexadecimal(number: u64, digits: &mut [u8; 16]) -> &[u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut rest = number;
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = DIGITS[(rest & 0xf) as usize];
        rest >>= 4;
        if rest == 0 {
            return &digits[start..];
        }
    }
}

macro_rules! status_lines {
    ($($status:literal $reason:literal),+ $(,)?) => {
        /// Returns the whole status line for every status that the daemon sends.
        const fn known_status_line(status: u16) -> Option<&'static str> {
            match status {
                $($status => Some(concat!("HTTP/1.1 ", $status, " ", $reason, "\r\n")),)+
                _ => None,
            }
        }
    };
}

status_lines! {
    100 "Continue",
    200 "OK",
    201 "Created",
    202 "Accepted",
    204 "No Content",
    206 "Partial Content",
    301 "Moved Permanently",
    302 "Found",
    303 "See Other",
    304 "Not Modified",
    307 "Temporary Redirect",
    308 "Permanent Redirect",
    400 "Bad Request",
    401 "Unauthorized",
    403 "Forbidden",
    404 "Not Found",
    405 "Method Not Allowed",
    406 "Not Acceptable",
    408 "Request Timeout",
    409 "Conflict",
    410 "Gone",
    411 "Length Required",
    412 "Precondition Failed",
    413 "Content Too Large",
    414 "URI Too Long",
    415 "Unsupported Media Type",
    417 "Expectation Failed",
    422 "Unprocessable Content",
    426 "Upgrade Required",
    429 "Too Many Requests",
    431 "Request Header Fields Too Large",
    499 "Client Closed Request",
    500 "Internal Server Error",
    501 "Not Implemented",
    502 "Bad Gateway",
    503 "Service Unavailable",
    504 "Gateway Timeout",
    505 "HTTP Version Not Supported",
}

fn status_line(out: &mut Vec<u8>, status: u16) {
    debug_assert!(
        (100..1000).contains(&status),
        "{status} is not an HTTP status"
    );
    match known_status_line(status) {
        Some(line) => out.extend_from_slice(line.as_bytes()),
        None => {
            // RFC 9112, section 4: the reason may be empty, the space before it may not.
            out.extend_from_slice(b"HTTP/1.1 ");
            out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
            out.extend_from_slice(b" \r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use crate::http::Fields;

    const DATE: &[u8; 29] = b"Sun, 06 Nov 1994 08:49:37 GMT";

    fn head(status: u16, framing: BodyFraming, version: Version, keep_alive: bool) -> String {
        let mut headers = Fields::new();
        headers.push("x-request-id", "a\r\nb: c");
        let answer = ResponseHead {
            status,
            content_type: Some("application/json"),
            headers: &headers,
        };
        let mut out = Vec::new();
        response_head(&mut out, &answer, framing, version, keep_alive, DATE);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_bytes_of_a_head_and_no_way_to_split_it() {
        assert_eq!(
            head(200, BodyFraming::Length(42), Version::Http11, true),
            "HTTP/1.1 200 OK\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             content-type: application/json\r\ncontent-length: 42\r\n\
             x-request-id: a  b: c\r\n\r\n"
        );
    }

    #[test]
    fn framing_and_persistence_are_announced_as_the_version_allows() {
        let v10 = Version::Http10;
        let v11 = Version::Http11;
        assert_eq!(BodyFraming::stream(v11), BodyFraming::Chunked);
        assert_eq!(BodyFraming::stream(v10), BodyFraming::UntilClose);
        let chunked = head(200, BodyFraming::Chunked, v11, true);
        assert!(chunked.contains("\r\ntransfer-encoding: chunked\r\n"));
        assert!(!chunked.contains("content-length") && !chunked.contains("connection"));
        let closing = head(200, BodyFraming::Length(1), v11, false);
        assert!(closing.contains("\r\nconnection: close\r\n"));
        let kept = head(200, BodyFraming::Length(1), v10, true);
        assert!(kept.contains("\r\nconnection: keep-alive\r\n"));
        let until_close = head(200, BodyFraming::UntilClose, v10, true);
        assert!(until_close.contains("\r\nconnection: close\r\n"));
    }

    #[test]
    fn statuses_without_a_body_announce_none() {
        for status in [100, 204, 304] {
            for framing in [
                BodyFraming::Length(0),
                BodyFraming::Chunked,
                BodyFraming::UntilClose,
            ] {
                let text = head(status, framing, Version::Http11, true);
                assert!(!text.contains("content-length"), "{text}");
                assert!(!text.contains("transfer-encoding"), "{text}");
                assert!(!text.contains("connection"), "{text}");
            }
        }
    }

    #[test]
    fn every_status_of_the_catalogue_has_its_line_and_others_are_made() {
        for code in ErrorCode::ALL {
            assert!(known_status_line(code.status()).is_some(), "{code}");
        }
        let text = head(299, BodyFraming::Length(0), Version::Http11, true);
        assert!(text.starts_with("HTTP/1.1 299 \r\n"));
    }

    #[test]
    fn chunks() {
        let mut out = Vec::new();
        chunk(&mut out, b"");
        assert!(out.is_empty(), "an empty chunk would end the body");
        chunk(&mut out, b"hello");
        chunk(&mut out, &[b'x'; 0x1a0]);
        last_chunk(&mut out, &Fields::new());
        assert!(out.starts_with(b"5\r\nhello\r\n1a0\r\nx"));
        assert!(out.ends_with(b"x\r\n0\r\n\r\n"));
    }

    #[test]
    fn trailers_stand_between_the_last_chunk_and_the_end() {
        let mut trailers = Fields::new();
        trailers.push("grpc-status", "0");
        let mut out = Vec::new();
        last_chunk(&mut out, &trailers);
        assert_eq!(out, b"0\r\ngrpc-status: 0\r\n\r\n");
    }

    #[test]
    fn dates() {
        let cases = [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_827_696, "Tue, 29 Feb 2000 12:34:56 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (1_709_251_200, "Fri, 01 Mar 2024 00:00:00 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(std::str::from_utf8(&http_date(seconds)), Ok(expected));
        }
    }

    #[test]
    fn a_used_buffer_is_not_allocated_again() {
        let headers = Fields::new();
        let answer = ResponseHead {
            status: 200,
            content_type: None,
            headers: &headers,
        };
        let mut out = Vec::with_capacity(4096);
        let before = out.as_ptr();
        for _ in 0..100 {
            out.clear();
            let framing = BodyFraming::Length(1);
            response_head(&mut out, &answer, framing, Version::Http11, true, DATE);
            chunk(&mut out, b"abc");
        }
        assert_eq!(out.as_ptr(), before);
    }
}
