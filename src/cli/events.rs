//! Server-sent events, read from a stream (HTML Living Standard, section 9.2).
//!
//! Owns the cutting of bytes into lines and lines into events. Comments, which the daemon sends
//! while one waits, are passed over.

use std::io::{self, BufRead, Read};

use crate::limits::CLIENT_EVENT_BYTES;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// `message` where the server gives no name.
    pub name: String,
    pub data: String,
}

/// The events of a stream, in order.
pub struct Events<R> {
    stream: R,
    line: Vec<u8>,
}

impl<R: BufRead> Events<R> {
    pub fn new(stream: R) -> Events<R> {
        Events {
            stream,
            line: Vec::new(),
        }
    }

    /// Waits for the next event. `None`: the stream has ended. An event without its closing empty
    /// line is dropped, as the standard says: it may be half of one.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        let mut event = Event::default();
        let mut data: Option<String> = None;
        while self.read_line()? {
            let line = str::from_utf8(&self.line).map_err(io::Error::other)?;
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut event.name),
                "data" => match &mut data {
                    None => data = Some(value.to_owned()),
                    Some(data) if data.len() + value.len() < CLIENT_EVENT_BYTES => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    Some(_) => return Err(too_long()),
                },
                "" if line.is_empty() => {
                    if let Some(data) = data.take() {
                        if event.name.is_empty() {
                            "message".clone_into(&mut event.name);
                        }
                        return Ok(Some(Event { data, ..event }));
                    }
                    event.name.clear();
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// Reads one line without its end. `false`: there is none.
    fn read_line(&mut self) -> io::Result<bool> {
        self.line.clear();
        let mut bounded = self.stream.by_ref().take(CLIENT_EVENT_BYTES as u64);
        let count = bounded.read_until(b'\n', &mut self.line)?;
        match self.line.last() {
            Some(b'\n') => {}
            Some(_) if count == CLIENT_EVENT_BYTES => return Err(too_long()),
            _ => return Ok(false),
        }
        self.line.pop();
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        Ok(true)
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an event has no end")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Vec<(String, String)> {
        let mut events = Events::new(text.as_bytes());
        let next = || {
            events
                .next_event()
                .unwrap()
                .map(|event| (event.name, event.data))
        };
        std::iter::from_fn(next).collect()
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
    fn half_an_event_is_none() {
        assert_eq!(events("event: done\ndata: {}\n"), []);
        assert_eq!(events("event: done\ndata: {}"), []);
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let line = format!("data: {}\n", "x".repeat(CLIENT_EVENT_BYTES));
        let lines = format!("data: {}\n", "x".repeat(1_000)).repeat(CLIENT_EVENT_BYTES / 1_000 + 1);
        for text in [line, lines] {
            let error = Events::new(text.as_bytes()).next_event().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
