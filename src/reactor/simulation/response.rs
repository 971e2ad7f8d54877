//! Responses as a client reads them, and checks whether they are whole, expected and correct.

use super::engine::LINE;

/// The daemon's response to a client with too many glitches.
const TOO_ODD: &[u8] = b"too many chunks of a few bytes";

/// The daemon's response when it has no memory for the rest of a request, whose head may not be
/// complete.
const FULL: &[u8] = b"buffers_full";

/// The daemon's response to a request that a drain's end has cut off.
const CUT_OFF: &[u8] = b"the daemon has stopped before the request was complete";

/// A response that is due.
#[derive(Debug)]
pub struct Expected {
    pub request_id: String,
    pub statuses: &'static [u16],
    pub head_only: bool,
}

/// The first response in the bytes that a client has.
pub enum Received {
    Incomplete,
    /// An interim response.
    Continue {
        bytes: usize,
    },
    Final {
        bytes: usize,
    },
}

/// Reads the next response, and checks it once it is whole. `has_ended`: no further byte will come.
pub fn read(received: &[u8], expected: Option<&Expected>, has_ended: bool) -> Received {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let status = head.parse(received);
    let status = status.expect("the daemon's head is well formed");
    let httparse::Status::Complete(head_bytes) = status else {
        return Received::Incomplete;
    };
    let code = head.code.expect("a complete head has a status");
    if code == 100 {
        return Received::Continue { bytes: head_bytes };
    }
    let field = |name: &str| {
        let mut fields = head.headers.iter();
        let found = fields.find(|field| field.name.eq_ignore_ascii_case(name));
        found.map(|field| std::str::from_utf8(field.value).expect("fields are ASCII"))
    };
    let expected = expected.unwrap_or_else(|| {
        panic!(
            "no answer without a request: {:?}",
            String::from_utf8_lossy(received)
        )
    });
    let rest = &received[head_bytes..];
    let body = match field("content-length") {
        // A request whose head was not complete has no method yet.
        _ if expected.head_only && !matches!(code, 408 | 503) => Some((0, Vec::new())),
        Some(length) => with_length(rest, length.parse().expect("a length is a number")),
        None if field("transfer-encoding").is_some() => chunked(rest),
        None => has_ended.then(|| (rest.len(), rest.to_vec())),
    };
    let Some((body_bytes, body)) = body else {
        return Received::Incomplete;
    };
    // A request that was cut off by a timeout or by the end of a drain has lost its id, and perhaps
    // its method. The small chunks of a slow client may exceed its budget.
    let says = |text: &[u8]| body.windows(text.len()).any(|window| window == text);
    let is_cut_off = code == 408 || code == 503 && (says(FULL) || says(CUT_OFF));
    let is_last_straw = code == 400 && says(TOO_ODD);
    if !is_cut_off && !is_last_straw {
        let statuses = expected.statuses;
        assert!(statuses.contains(&code), "{code} instead of {expected:?}");
        if !expected.request_id.is_empty() {
            let (id, text) = (field("x-request-id"), String::from_utf8_lossy(&body));
            assert_eq!(id, Some(expected.request_id.as_str()), "{code}: {text}");
        }
    }
    if field("content-type").is_some_and(|media| media.starts_with("text/event-stream")) {
        check_stream(&body);
    }
    Received::Final {
        bytes: head_bytes + body_bytes,
    }
}

fn with_length(rest: &[u8], length: usize) -> Option<(usize, Vec<u8>)> {
    (rest.len() >= length).then(|| (length, rest[..length].to_vec()))
}

/// Returns a chunked body's length on the wire and its content, once it is whole.
fn chunked(rest: &[u8]) -> Option<(usize, Vec<u8>)> {
    let (mut position, mut chunks) = (0, Vec::new());
    loop {
        let mut lines = rest[position..].windows(2);
        let line = lines.position(|window| window == b"\r\n")?;
        let digits = std::str::from_utf8(&rest[position..position + line]).expect("ASCII");
        let size = usize::from_str_radix(digits, 16).expect("a chunk's size is hexadecimal");
        let start = position + line + 2;
        let end = start + size;
        if rest.len() < end + 2 {
            return None;
        }
        assert_eq!(&rest[end..end + 2], b"\r\n", "a chunk ends with CRLF");
        if size == 0 {
            return Some((end + 2, chunks.concat()));
        }
        chunks.push(&rest[start..end]);
        position = end + 2;
    }
}

/// Checks that a stream's pieces make up the program, and that its last event reports how it ended.
pub fn check_stream(body: &[u8]) {
    let text = std::str::from_utf8(body).expect("events are UTF-8");
    let mut program = String::new();
    let mut ending = None;
    for event in text.split_terminator("\n\n") {
        let Some(data) = event.strip_prefix("event: ") else {
            assert_eq!(event, ": ping", "neither an event nor a comment");
            continue;
        };
        assert_eq!(ending, None, "an event after the last one");
        let (name, data) = data.split_once("\ndata: ").expect("an event has data");
        let data: serde_json::Value = serde_json::from_str(data).expect("data are JSON");
        match name {
            "delta" => program.push_str(data["text"].as_str().expect("a delta has text")),
            "done" => assert_eq!(data["code"].as_str(), Some(program.as_str())),
            _ => assert!(data["error"]["code"].is_string(), "{data}"),
        }
        if name != "delta" {
            ending = Some(name);
        }
    }
    assert!(ending.is_some(), "a stream without an end: {text:?}");
    // A result that was kept is sent in pieces, so an error may come in the middle of a line.
    let (whole, rest) = match (ending, program.rsplit_once('\n')) {
        (Some("error"), Some((whole, rest))) => (whole, rest),
        _ => (program.as_str(), ""),
    };
    let mut lines = whole.lines();
    let is_right = lines.all(|line| line == LINE.trim_end()) && LINE.starts_with(rest);
    assert!(is_right, "{program:?}");
}
