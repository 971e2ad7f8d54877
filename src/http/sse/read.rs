//! Reads server-sent events: turns the bytes of a stream into events.
//!
//! Owns the bytes of an incomplete line, and the fields of an event whose closing empty line is
//! still to come. Comments, which the daemon sends while a client waits, are skipped.
//!
//! ```text
//!   handle_bytes --> bytes --> lines --> name, data --> next_event
//! ```
//!
//! Must never wait, or know where the bytes come from.
//!
//! Invariants:
//!  1. The events do not depend on how the stream was cut into pieces.
//!  2. A line has at most `limits::EVENT_BYTES_MAX`, and so has the data of an event.
//!  3. An event without its closing empty line is not returned: it may be half of one.
//!
//! A line ends with LF or CRLF. The standard also allows a lone CR, which no known server writes;
//! it is read as a part of the line.
//!
//! Mutations that the tests below catch: `searched` not moved with `next` in `handle_bytes`
//! (`events_do_not_depend_on_the_pieces`), no bound in `next_line`
//! (`an_event_without_end_is_refused`).

use std::fmt;
use std::ops::Range;

use crate::limits::http as limits;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `message` if the server sends no name.
    pub name: String,
    pub data: String,
}

/// Why a stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadStream {
    NotUtf8,
    TooLong,
}

impl fmt::Display for BadStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadStream::NotUtf8 => f.write_str("an event is not UTF-8"),
            BadStream::TooLong => {
                let most = limits::EVENT_BYTES_MAX;
                write!(f, "an event has more than {most} bytes")
            }
        }
    }
}

impl std::error::Error for BadStream {}

/// Reads the events of one stream, in order.
#[derive(Debug, Default)]
pub struct Reader {
    /// Received but unread bytes, from `next` on.
    bytes: Vec<u8>,
    next: usize,
    /// There is no line end before this position.
    searched: usize,
    name: String,
    data: Option<String>,
}

impl Reader {
    pub fn new() -> Reader {
        Reader::default()
    }

    /// Takes in the next bytes of the stream. [`Reader::next_event`] must then be called until it
    /// returns none.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.next);
        self.searched -= self.next;
        self.next = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next event that is complete.
    pub fn next_event(&mut self) -> Result<Option<Event>, BadStream> {
        while let Some(line) = self.next_line()? {
            let line = str::from_utf8(&self.bytes[line]).map_err(|_| BadStream::NotUtf8)?;
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.name),
                "data" => match &mut self.data {
                    None => self.data = Some(value.to_owned()),
                    Some(data) if data.len() + value.len() < limits::EVENT_BYTES_MAX => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    Some(_) => return Err(BadStream::TooLong),
                },
                "" if line.is_empty() => {
                    let name = std::mem::take(&mut self.name);
                    if let Some(data) = self.data.take() {
                        let name = match name.is_empty() {
                            true => "message".to_owned(),
                            false => name,
                        };
                        return Ok(Some(Event { name, data }));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Returns the range of the next whole line, without its end.
    fn next_line(&mut self) -> Result<Option<Range<usize>>, BadStream> {
        let start = self.next;
        let found = memchr::memchr(b'\n', &self.bytes[self.searched..]);
        let end = found.map(|offset| self.searched + offset);
        self.searched = end.map_or(self.bytes.len(), |end| end + 1);
        let is_too_long = match end {
            Some(_) => self.searched - start > limits::EVENT_BYTES_MAX,
            None => self.searched - start >= limits::EVENT_BYTES_MAX,
        };
        if is_too_long {
            return Err(BadStream::TooLong);
        }
        Ok(end.map(|end| {
            self.next = end + 1;
            let has_return = self.bytes[start..end].last() == Some(&b'\r');
            start..end - usize::from(has_return)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::sse;
    use proptest::prelude::*;

    /// Returns the events of a text that comes in pieces of `size` bytes.
    fn read(text: &[u8], size: usize) -> Result<Vec<Event>, BadStream> {
        let mut reader = Reader::new();
        let mut events = Vec::new();
        for piece in text.chunks(size) {
            reader.handle_bytes(piece);
            while let Some(event) = reader.next_event()? {
                events.push(event);
            }
        }
        Ok(events)
    }

    fn events(text: &str) -> Vec<(String, String)> {
        let events = read(text.as_bytes(), 1 << 20).unwrap();
        let pairs = events.into_iter().map(|event| (event.name, event.data));
        pairs.collect()
    }

    #[test]
    fn events_are_cut_at_empty_lines() {
        let text = ": ping\n\nevent: delta\ndata: {\"text\":\"a\"}\n\n\
                    : ping\r\nevent: done\r\ndata: one\r\ndata:two\r\nid: 7\r\n\r\n";
        let own = |name: &str, data: &str| (name.to_owned(), data.to_owned());
        assert_eq!(
            events(text),
            [own("delta", "{\"text\":\"a\"}"), own("done", "one\ntwo")]
        );
        assert_eq!(
            events("data\n\nevent: x\n\ndata: y\n\n"),
            [own("message", ""), own("message", "y")]
        );
    }

    #[test]
    fn half_an_event_is_not_returned() {
        assert_eq!(events("event: done\ndata: {}\n"), []);
        assert_eq!(events("event: done\ndata: {}"), []);
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_refused() {
        assert_eq!(read(b"data: \xff\n\n", 64), Err(BadStream::NotUtf8));
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let line = format!("data: {}", "x".repeat(limits::EVENT_BYTES_MAX));
        let ended = format!("{line}\n\n");
        let lines =
            format!("data: {}\n", "x".repeat(1_000)).repeat(limits::EVENT_BYTES_MAX / 1_000 + 1);
        for text in [line, ended, lines] {
            assert_eq!(read(text.as_bytes(), 1 << 16), Err(BadStream::TooLong));
        }
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_the_pieces(
            sent in prop::collection::vec(("[a-z]{1,8}", any::<String>()), 1..8),
            size in 1usize..40,
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (name, data) in sent {
                sse::comment(&mut stream, "ping");
                sse::event(&mut stream, &name, Some("7"), &data);
                // The writer ends each line of the data with LF, whatever ended it before.
                let data = data.replace("\r\n", "\n").replace('\r', "\n");
                expected.push(Event { name, data });
            }
            prop_assert_eq!(read(&stream, size), Ok(expected));
        }
    }
}
