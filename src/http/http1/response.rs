//! Parses the head of a response, for the parts of this program that are clients.
//!
//! Owns the meaning of the head, and keeps no byte of it; `httparse` does the parsing. Must never
//! wait, or know where the bytes come from. The body is decoded elsewhere, by the [`Framing`] that
//! is found here and, for the chunked coding, by [`super::chunked`].
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
}

impl fmt::Display for BadResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadResponse::NotHttp(error) => write!(f, "the response is not HTTP: {error}"),
            BadResponse::ContentLength => f.write_str("content-length is not a number"),
            BadResponse::TransferCoding => {
                f.write_str("transfer-encoding is not \"chunked\", and no other was asked for")
            }
            BadResponse::TwoFramings => {
                f.write_str("the response has both content-length and transfer-encoding")
            }
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
    let (mut content_type, mut content_length, mut is_chunked) = (String::new(), None, false);
    for field in response.headers.iter() {
        let value = str::from_utf8(field.value).unwrap_or("").trim();
        if field.name.eq_ignore_ascii_case("content-type") {
            value.clone_into(&mut content_type);
        } else if field.name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().map_err(|_| BadResponse::ContentLength)?;
            content_length = Some(length);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            is_chunked = value.eq_ignore_ascii_case("chunked");
            if !is_chunked {
                return Err(BadResponse::TransferCoding);
            }
        }
    }
    Ok(Some(ResponseHead {
        status,
        content_type,
        framing: framing(status, content_length, is_chunked)?,
        len,
    }))
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

    #[test]
    fn nonsense_is_refused() {
        let bad = |head: &str| parse(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n").as_bytes());
        assert_eq!(bad("content-length: five"), Err(BadResponse::ContentLength));
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
