//! Parses the head of a response, for the parts of this program that are clients.
//!
//! Owns the meaning of the head, and keeps no byte of it; `httparse` does the parsing. Must never
//! wait, or know where the bytes come from. The body is decoded elsewhere, by the [`Framing`] that
//! is found here: see [`super::response_reader`].
//!
//! A response whose end two readers could see in different places is refused: on a kept connection
//! the rest would count as the response to the next request.
//!
//! Mutations that the tests below catch: no comparison with 204 in `framing`
//! (`a_head_decides_how_the_body_ends`), both framings accepted (`nonsense_is_refused`).

use std::fmt;

use crate::limits::http1 as limits;

/// A parsed head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    pub content_type: String,
    pub framing: Framing,
    /// Whether the server leaves the connection open after the body.
    pub keeps_alive: bool,
    /// Bytes of the head, including the empty line at its end.
    pub len: usize,
}

/// Where the body of a response ends (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// At the end of the connection.
    UntilClose,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadResponse {
    NotHttp(httparse::Error),
    ContentLength,
    TransferCoding,
    TwoFramings,
    /// 101, which nothing had asked for.
    Upgrade,
    /// More interim responses than a client reads.
    Interim,
    /// More bytes of head or body than the client has room for.
    TooLarge,
    /// A fault in the chunked coding.
    Chunks,
    /// The connection ended before the response did.
    CutOff,
}

impl fmt::Display for BadResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadResponse::NotHttp(error) => write!(f, "the response is not HTTP: {error}"),
            BadResponse::ContentLength => f.write_str("content-length is not one number"),
            BadResponse::TransferCoding => {
                f.write_str("transfer-encoding is not \"chunked\", and no other was asked for")
            }
            BadResponse::TwoFramings => {
                f.write_str("the response has both content-length and transfer-encoding")
            }
            BadResponse::Upgrade => f.write_str("the server switches protocols unasked"),
            BadResponse::Interim => f.write_str("too many interim responses"),
            BadResponse::TooLarge => f.write_str("the response is larger than its bound"),
            BadResponse::Chunks => f.write_str("the chunked coding is malformed"),
            BadResponse::CutOff => f.write_str("the connection ended within the response"),
        }
    }
}

impl std::error::Error for BadResponse {}

/// Parses the head at the beginning of `bytes`. Returns `None` while its end is still to come.
pub fn parse(bytes: &[u8]) -> Result<Option<ResponseHead>, BadResponse> {
    let mut fields = [httparse::EMPTY_HEADER; limits::RESPONSE_FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let len = match response.parse(bytes).map_err(BadResponse::NotHttp)? {
        httparse::Status::Complete(len) => len,
        httparse::Status::Partial => return Ok(None),
    };
    // The parser sets the status whenever it reports a complete head.
    let status = response.code.unwrap_or(0);
    // HTTP/1.1 keeps a connection unless a party declines, HTTP/1.0 only if both ask for it. The
    // word `close` wins, in whichever of several fields it is (RFC 9112, section 9.3).
    let (mut asks_to_stay, mut closes) = (response.version == Some(1), false);
    let (mut content_type, mut content_length, mut is_chunked) = (String::new(), None, false);
    for field in response.headers.iter() {
        let value = str::from_utf8(field.value).unwrap_or("").trim();
        if field.name.eq_ignore_ascii_case("content-type") {
            value.clone_into(&mut content_type);
        } else if field.name.eq_ignore_ascii_case("content-length") {
            let length = length_of(value).ok_or(BadResponse::ContentLength)?;
            if content_length.is_some_and(|other| other != length) {
                return Err(BadResponse::ContentLength);
            }
            content_length = Some(length);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            // Twice would mean coded twice, and HTTP/1.0 has no such field.
            let is_one = !is_chunked && response.version == Some(1);
            is_chunked = value.eq_ignore_ascii_case("chunked");
            if !is_chunked || !is_one {
                return Err(BadResponse::TransferCoding);
            }
        } else if field.name.eq_ignore_ascii_case("connection") {
            let has = |wanted| {
                value
                    .split(',')
                    .any(|it| it.trim().eq_ignore_ascii_case(wanted))
            };
            asks_to_stay |= has("keep-alive");
            closes |= has("close");
        }
    }
    let framing = framing(status, content_length, is_chunked)?;
    Ok(Some(ResponseHead {
        status,
        content_type,
        framing,
        keeps_alive: asks_to_stay && !closes && framing != Framing::UntilClose,
        len,
    }))
}

/// `parse` alone would accept `+5`.
fn length_of(value: &str) -> Option<u64> {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| is_number)
}

/// RFC 9112, section 6.3: the chunked coding, otherwise the length, otherwise the connection's end.
fn framing(
    status: u16,
    content_length: Option<u64>,
    is_chunked: bool,
) -> Result<Framing, BadResponse> {
    match (is_chunked, content_length) {
        _ if matches!(status, 100..=199 | 204 | 304) => Ok(Framing::Empty),
        (true, Some(_)) => Err(BadResponse::TwoFramings),
        (true, None) => Ok(Framing::Chunked),
        (false, Some(0)) => Ok(Framing::Empty),
        (false, Some(length)) => Ok(Framing::Length(length)),
        (false, None) => Ok(Framing::UntilClose),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Result<(u16, Framing), BadResponse> {
        let text = format!("HTTP/1.1 {head}\r\n\r\nbody");
        let whole = text.len() - "body".len();
        for cut in 0..whole {
            assert_eq!(parse(&text.as_bytes()[..cut]), Ok(None), "{head} at {cut}");
        }
        let found = parse(text.as_bytes())?.expect("the whole head is there");
        assert_eq!(found.len, whole);
        Ok((found.status, found.framing))
    }

    #[test]
    fn a_head_decides_how_the_body_ends() {
        for (head, status, framing) in [
            ("200 OK\r\nContent-Length: 5", 200, Framing::Length(5)),
            ("200 OK\r\ncontent-length: 0", 200, Framing::Empty),
            (
                "200 OK\r\nTransfer-Encoding: Chunked",
                200,
                Framing::Chunked,
            ),
            ("503 Busy", 503, Framing::UntilClose),
            ("204 No Content", 204, Framing::Empty),
            ("304 Not Modified\r\ncontent-length: 9", 304, Framing::Empty),
            ("100 Continue", 100, Framing::Empty),
        ] {
            assert_eq!(read(head), Ok((status, framing)), "{head}");
        }
        let json = parse(b"HTTP/1.1 200 OK\r\nContent-Type: application/json \r\n\r\n");
        let head = json.unwrap().expect("a whole head");
        assert_eq!(head.content_type, "application/json");
    }

    /// Mutations that this test catches: `keeps_alive` without its version; a field that forgets
    /// those before it.
    #[test]
    fn a_connection_goes_on_only_if_both_sides_know_it() {
        for (head, goes_on) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 1", true),
            ("HTTP/1.1 204 No", true),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: Close",
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: x, close",
                false,
            ),
            (
                "HTTP/1.1 204 No\r\nconnection: close\r\nconnection: keep-alive",
                false,
            ),
            (
                "HTTP/1.1 204 No\r\nconnection: keep-alive\r\nconnection: close",
                false,
            ),
            ("HTTP/1.1 200 OK", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1", false),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive",
                true,
            ),
            ("HTTP/1.0 200 OK\r\nconnection: keep-alive", false),
        ] {
            let parsed = parse(format!("{head}\r\n\r\n").as_bytes());
            let parsed = parsed.unwrap().expect("a whole head");
            assert_eq!(parsed.keeps_alive, goes_on, "{head}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = |head: &str| parse(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes());
        assert_eq!(bad("content-length: five"), Err(BadResponse::ContentLength));
        assert_eq!(bad("content-length: +5"), Err(BadResponse::ContentLength));
        assert_eq!(bad("content-length: 5, 5"), Err(BadResponse::ContentLength));
        assert_eq!(
            bad("content-length: 5\r\ncontent-length: 6"),
            Err(BadResponse::ContentLength)
        );
        assert_eq!(
            bad("transfer-encoding: chunked\r\ntransfer-encoding: chunked"),
            Err(BadResponse::TransferCoding)
        );
        let old = parse(b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
        assert_eq!(old, Err(BadResponse::TransferCoding));
        assert_eq!(
            bad("transfer-encoding: gzip"),
            Err(BadResponse::TransferCoding)
        );
        assert_eq!(
            bad("transfer-encoding: chunked\r\ncontent-length: 1"),
            Err(BadResponse::TwoFramings)
        );
        let other = parse(b"SSH-2.0-OpenSSH_9.2\r\n");
        assert!(matches!(other, Err(BadResponse::NotHttp(_))), "{other:?}");
    }
}
