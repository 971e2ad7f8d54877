//! Writes server-sent events: turns text into the lines of an event.
//!
//! This file owns only the encoding; the service decides when an event or a ping is sent.
//!
//! 1. A line of the format ends at CR, LF or CRLF, so each line of the data, however it ends, gets
//!    its own `data:`. The reader joins them with LF.
//! 2. One space follows each colon: the reader removes exactly one, and data may begin with one.
//! 3. No byte of a name, an id or a comment can end its line.

/// Appends one event. The client remembers the id and sends it as `Last-Event-ID` when it
/// reconnects.
pub fn event(out: &mut Vec<u8>, name: &str, id: Option<&str>, data: &str) {
    out.reserve(name.len() + data.len() + 32);
    line(out, b"event: ", name);
    if let Some(id) = id {
        line(out, b"id: ", id);
    }
    end_with_data(out, data);
}

/// Appends the lines of an event's data, and the empty line that ends the event.
fn end_with_data(out: &mut Vec<u8>, data: &str) {
    for data_line in lines(data) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(data_line.as_bytes());
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// Appends a comment, which every reader skips: it shows that the connection is alive.
pub fn comment(out: &mut Vec<u8>, text: &str) {
    line(out, b": ", text);
    out.push(b'\n');
}

/// Appends one line, whatever the text: a line end in it becomes a space. So does NUL, because a
/// reader ignores an id that holds one.
fn line(out: &mut Vec<u8>, field: &[u8], text: &str) {
    out.extend_from_slice(field);
    out.extend(text.bytes().map(|byte| match byte {
        b'\n' | b'\r' | 0 => b' ',
        byte => byte,
    }));
    out.push(b'\n');
}

/// Splits the data into lines by the format's definition: `str::lines` does not split at a lone CR
/// and drops an empty last line.
fn lines(data: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\r', '\n']) else {
            rest = None;
            return Some(text);
        };
        let line_end_bytes = if text[end..].starts_with("\r\n") {
            2
        } else {
            1
        };
        rest = Some(&text[end + line_end_bytes..]);
        Some(&text[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Default, PartialEq, Eq, Clone)]
    struct Event {
        name: String,
        data: String,
        last_id: String,
    }

    /// Plays the reader's part, from "Interpreting an event stream".
    fn interpret(stream: &[u8]) -> Vec<Event> {
        let text = std::str::from_utf8(stream).expect("the encoder keeps UTF-8");
        let mut events = Vec::new();
        let (mut name, mut data, mut last_id) = (String::new(), String::new(), String::new());
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let complete_lines = text
            .strip_suffix('\n')
            .expect("the stream ends with a line end");
        for line in complete_lines.split('\n') {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => {
                    if !data.is_empty() {
                        data.pop();
                        let (name, data) = (std::mem::take(&mut name), std::mem::take(&mut data));
                        let last_id = last_id.clone();
                        events.push(Event {
                            name,
                            data,
                            last_id,
                        });
                    }
                    name.clear();
                }
                "event" => name = value.to_owned(),
                "data" => {
                    data.push_str(value);
                    data.push('\n');
                }
                "id" if !value.contains('\0') => last_id = value.to_owned(),
                _ => {}
            }
        }
        events
    }

    #[test]
    fn the_bytes_of_an_event() {
        let mut out = Vec::new();
        event(&mut out, "delta", Some("7"), "{\"text\":\"a\"}");
        comment(&mut out, "ping");
        assert_eq!(
            out,
            b"event: delta\nid: 7\ndata: {\"text\":\"a\"}\n\n: ping\n\n"
        );
    }

    #[test]
    fn each_kind_of_line_end_gets_a_data_line_of_its_own() {
        let mut out = Vec::new();
        event(&mut out, "e", None, " a\nb\r\nc\rd\n\n");
        assert_eq!(
            out,
            b"event: e\ndata:  a\ndata: b\ndata: c\ndata: d\ndata: \ndata: \n\n"
        );
        assert_eq!(interpret(&out)[0].data, " a\nb\nc\nd\n\n");
    }

    #[test]
    fn names_ids_and_comments_cannot_break_out_of_their_line() {
        let mut out = Vec::new();
        comment(&mut out, "x\n\ndata: forged\n\n");
        event(&mut out, "a\ndata: forged", Some("1\r2\0"), "b");
        let events = interpret(&out);
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].name, "a data: forged");
        assert_eq!(events[0].last_id, "1 2 ");
        assert_eq!(events[0].data, "b");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            events in prop::collection::vec(("[a-z]{0,8}", "[a-z0-9]{0,8}", any::<String>()), 1..8),
        ) {
            let mut out = Vec::new();
            let mut expected = Vec::new();
            for (name, id, data) in &events {
                comment(&mut out, data);
                event(&mut out, name, Some(id), data);
                expected.push(Event {
                    name: name.clone(),
                    data: data.replace("\r\n", "\n").replace('\r', "\n"),
                    last_id: id.clone(),
                });
            }
            prop_assert_eq!(interpret(&out), expected);
        }
    }
}
