//! Finds the end of a request's head, even if its bytes arrive one by one.
//!
//! This file owns the search and must never interpret: the head is read once it is whole. The bytes
//! that the search passes are used only to refuse early.
//!
//! 1. Every LF of the head must follow a CR; the scanner looks for the LF.
//! 2. At most one empty line precedes the request line (RFC 9112, section 2.2).
//! 3. A byte is searched once however the head is cut, so the total work is linear.
//! 4. A bound is applied as soon as the bytes show that it is exceeded, not at the head's end.

use super::head::TOO_MANY;
use super::{Bounds, Malformed, is_token_byte};
use crate::error::ErrorCode;
use crate::limits::http1 as limits;

const TOO_LARGE: Malformed = Malformed::new(
    ErrorCode::HeadersTooLarge,
    "the head of the request is larger than limits.max_head",
);

/// Finds the end of a head, looking only at new bytes. Positions count from the start of the input.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadScanner {
    /// Bytes that were searched.
    scanned: u32,
    /// Where the line that is not complete yet begins.
    line_start: u32,
    /// Where the request line begins: after an empty line, if one came first.
    start: u32,
    /// Complete lines, the request line included.
    lines: u32,
}

/// The position of a whole head in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadPlace {
    pub start: u32,
    pub end: u32,
}

impl HeadScanner {
    /// Returns whether no byte has been looked at yet.
    pub const fn is_untouched(&self) -> bool {
        self.scanned == 0
    }

    /// `input` must begin with the input of the last call. `None`: the head has not ended yet.
    pub fn poll(&mut self, input: &[u8], bounds: &Bounds) -> Result<Option<HeadPlace>, Malformed> {
        loop {
            // Bytes beyond the bound are never searched: they may be megabytes of body.
            let window = &input[..input.len().min(self.window_end(bounds))];
            self.check_first_byte(window)?;
            // A reload may have lowered the bound below the bytes that were searched already.
            let unscanned = window.get(self.scanned as usize..).ok_or(TOO_LARGE)?;
            let Some(offset) = memchr::memchr(b'\n', unscanned) else {
                return self.handle_partial_line(window, input, bounds);
            };
            let line_feed = self.scanned as usize + offset;
            let line = window[self.line_start as usize..line_feed]
                .strip_suffix(b"\r")
                .ok_or(Malformed::bad("a line of the head ends without CR"))?;
            self.scanned = line_feed as u32 + 1;
            self.line_start = self.scanned;
            if let Some(place) = self.handle_line(line, bounds)? {
                return Ok(Some(place));
            }
        }
    }

    /// Checks a line that has begun. All of `window`, which is `input` up to the bound, was
    /// searched.
    fn handle_partial_line(
        &mut self,
        window: &[u8],
        input: &[u8],
        bounds: &Bounds,
    ) -> Result<Option<HeadPlace>, Malformed> {
        self.scanned = window.len() as u32;
        let line = &window[self.line_start as usize..];
        // Below this length nothing can be too long. Checking again at each byte would cost the
        // square of the length of a line that drips in.
        if self.lines == 0 && line.len() > bounds.uri_bytes_max {
            check_request_line(line, bounds)?;
        }
        match window.len() < input.len() {
            true => Err(TOO_LARGE),
            false => Ok(None),
        }
    }

    /// Checks one complete line, given without its CRLF.
    fn handle_line(
        &mut self,
        line: &[u8],
        bounds: &Bounds,
    ) -> Result<Option<HeadPlace>, Malformed> {
        if line.is_empty() && self.lines == 0 {
            if self.start != 0 {
                return Err(Malformed::bad("more than one empty line before a request"));
            }
            self.start = self.line_start;
            return Ok(None);
        }
        if line.is_empty() {
            return Ok(Some(HeadPlace {
                start: self.start,
                end: self.line_start,
            }));
        }
        if self.lines == 0 {
            check_request_line(line, bounds)?;
        }
        self.lines += 1;
        match self.lines as usize - 1 > bounds.fields_max.min(limits::FIELDS_MAX) {
            true => Err(TOO_MANY),
            false => Ok(None),
        }
    }

    fn window_end(&self, bounds: &Bounds) -> usize {
        self.start as usize + bounds.head_bytes_max.min(limits::HEAD_BYTES_MAX)
    }

    /// Refuses a TLS handshake on a clear-text port by its first byte; it need not wait for the
    /// header deadline.
    fn check_first_byte(&self, window: &[u8]) -> Result<(), Malformed> {
        match window.get(self.start as usize) {
            Some(&byte) if self.lines == 0 && !is_token_byte(byte) && byte != b'\r' => {
                Err(Malformed::bad("the request does not begin with a method"))
            }
            _ => Ok(()),
        }
    }
}

/// Checks the bounded parts of a request line. `line` may be only its beginning.
fn check_request_line(line: &[u8], bounds: &Bounds) -> Result<(), Malformed> {
    // " HTTP/1.1" and the CR that a partial line may end with.
    const AFTER_TARGET_BYTES_MAX: usize = 10;
    let method_window = &line[..line.len().min(limits::METHOD_BYTES_MAX + 1)];
    let Some(method_end) = find_space(method_window) else {
        return match line.len() > limits::METHOD_BYTES_MAX {
            // RFC 9112, section 3: a method longer than any that is implemented gets 501.
            true => Err(Malformed::new(
                ErrorCode::NotImplemented,
                "the method is longer than any that HTTP defines",
            )),
            false => Ok(()),
        };
    };
    let rest = &line[method_end + 1..];
    let target_bytes = find_space(rest).unwrap_or(rest.len());
    if target_bytes > bounds.uri_bytes_max {
        return Err(Malformed::new(
            ErrorCode::UriTooLong,
            "the request target is longer than limits.max_uri",
        ));
    }
    match rest.len() - target_bytes > AFTER_TARGET_BYTES_MAX {
        true => Err(Malformed::bad(
            "the request line does not end with an HTTP version",
        )),
        false => Ok(()),
    }
}

fn find_space(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n";

    #[test]
    fn every_way_of_cutting_finds_the_same_end_and_no_early_one() {
        let bounds = Bounds::default();
        let text = format!("\r\n{PLAIN}GET /next HTTP/1.1\r\n");
        let input = text.as_bytes();
        let place = HeadPlace {
            start: 2,
            end: 2 + PLAIN.len() as u32,
        };
        let whole = Some(place);
        for cut in 0..=input.len() {
            let mut scanner = HeadScanner::default();
            let first = scanner.poll(&input[..cut], &bounds).unwrap();
            if cut < 2 + PLAIN.len() {
                assert_eq!(first, None, "cut at {cut}");
                assert_eq!(scanner.poll(input, &bounds).unwrap(), whole, "cut at {cut}");
            } else {
                assert_eq!(first, whole, "cut at {cut}");
            }
        }
        let mut scanner = HeadScanner::default();
        let found = (0..=input.len()).find_map(|end| {
            scanner
                .poll(&input[..end], &bounds)
                .unwrap()
                .map(|place| (end, place))
        });
        assert_eq!(found, Some((2 + PLAIN.len(), place)));
    }

    /// Feeds `text` byte by byte; returns how many bytes were needed for a refusal.
    fn bytes_until_refused(text: &str, bounds: &Bounds) -> (usize, ErrorCode) {
        let mut scanner = HeadScanner::default();
        for end in 1..=text.len() {
            if let Err(malformed) = scanner.poll(&text.as_bytes()[..end], bounds) {
                return (end, malformed.code);
            }
        }
        panic!("not refused: {text:?}");
    }

    #[test]
    fn bounds_are_applied_as_soon_as_they_are_exceeded() {
        let bounds = Bounds {
            head_bytes_max: 100,
            uri_bytes_max: 50,
            fields_max: 3,
        };
        let uri = format!("GET /{}", "u".repeat(90));
        let uri_bytes = "GET ".len() + 51;
        assert_eq!(
            bytes_until_refused(&uri, &bounds),
            (uri_bytes, ErrorCode::UriTooLong)
        );
        let head = format!("GET / HTTP/1.1\r\na: {}", "v".repeat(200));
        assert_eq!(
            bytes_until_refused(&head, &bounds),
            (101, ErrorCode::HeadersTooLarge)
        );
        let fields = format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(9));
        let four_fields = "GET / HTTP/1.1\r\n".len() + 4 * "a: b\r\n".len();
        let many = (four_fields, ErrorCode::HeadersTooLarge);
        assert_eq!(bytes_until_refused(&fields, &bounds), many);
        let method = "M".repeat(90);
        assert_eq!(
            bytes_until_refused(&method, &bounds),
            (51, ErrorCode::NotImplemented)
        );
        let version = format!("GET / {}", "H".repeat(90));
        assert_eq!(
            bytes_until_refused(&version, &bounds),
            (51, ErrorCode::MalformedHttp)
        );
        assert_eq!(
            bytes_until_refused("\u{16}", &bounds),
            (1, ErrorCode::MalformedHttp)
        );
        assert_eq!(
            bytes_until_refused("\r\n\r\n", &bounds),
            (4, ErrorCode::MalformedHttp)
        );
    }

    #[test]
    fn bounds_hold_exactly() {
        let fields = "a: b\r\n".repeat(2);
        let text = format!("GET /1234 HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let exact = Bounds {
            head_bytes_max: text.len(),
            uri_bytes_max: 5,
            fields_max: 3,
        };
        let scan = |bounds: &Bounds| HeadScanner::default().poll(text.as_bytes(), bounds);
        assert!(scan(&exact).unwrap().is_some());
        for smaller in [
            Bounds {
                head_bytes_max: text.len() - 1,
                ..exact
            },
            Bounds {
                uri_bytes_max: 4,
                ..exact
            },
            Bounds {
                fields_max: 2,
                ..exact
            },
        ] {
            assert!(scan(&smaller).is_err(), "{smaller:?}");
        }
        // However many fields the configuration allows, the storage holds this many.
        let fields = "a: b\r\n".repeat(limits::FIELDS_MAX);
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let generous = Bounds {
            fields_max: usize::MAX,
            ..Bounds::default()
        };
        assert_eq!(
            HeadScanner::default().poll(text.as_bytes(), &generous),
            Err(TOO_MANY)
        );
    }

    #[test]
    fn a_bound_that_a_reload_lowers_in_the_middle_of_a_head_refuses_it() {
        let mut scanner = HeadScanner::default();
        let input = b"GET / HTTP/1.1\r\nHost: h\r\na: b";
        assert_eq!(scanner.poll(input, &Bounds::default()), Ok(None));
        let lowered = Bounds {
            head_bytes_max: 10,
            ..Bounds::default()
        };
        assert_eq!(scanner.poll(input, &lowered), Err(TOO_LARGE));
    }
}
