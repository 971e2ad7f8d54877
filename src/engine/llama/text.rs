//! Turns a sequence's bytes into text: whole characters only, and never a part of a stop string.
//!
//! Owns the text that has been generated and not yet taken. Knows no token and no job.
//!
//! ```text
//!   bytes ─> incomplete (up to 3) ─> held (may become a stop string) ─> ready ─> take()
//! ```
//!
//! Invariants:
//!  1. `ready` is final: it never ends within a character and never contains, or begins, a stop
//!     string that ends the output.
//!  2. Once stopped, it takes in nothing more.
//!  3. The taken pieces concatenate to the same text, whenever they are taken.

/// A string that ends the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub text: String,
    /// Whether it is part of the output.
    pub is_kept: bool,
}

#[derive(Debug, Default)]
pub struct Text {
    stops: Vec<Stop>,
    /// The first bytes of a character whose last bytes have not come yet.
    incomplete: Vec<u8>,
    held: String,
    ready: String,
    is_stopped: bool,
}

impl Text {
    /// The output begins with `opening`, in which no stop string is searched.
    pub fn new(opening: String, stops: Vec<Stop>) -> Text {
        let stops = stops
            .into_iter()
            .filter(|stop| !stop.text.is_empty())
            .collect();
        Text {
            stops,
            ready: opening,
            ..Text::default()
        }
    }

    /// Adds the bytes of a token. Returns whether a stop string is complete.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        if self.is_stopped {
            return true;
        }
        self.incomplete.extend_from_slice(bytes);
        let whole = whole_characters(&self.incomplete);
        let text = String::from_utf8_lossy(&self.incomplete[..whole]);
        self.held.push_str(&text);
        self.incomplete.drain(..whole);
        match first_stop(&self.held, &self.stops) {
            Some((start, stop)) => {
                let end = if stop.is_kept {
                    start + stop.text.len()
                } else {
                    start
                };
                self.ready.push_str(&self.held[..end]);
                self.held.clear();
                self.incomplete.clear();
                self.is_stopped = true;
            }
            None => {
                let keep = possible_stop(&self.held, &self.stops);
                let certain = self.held.len() - keep;
                self.ready.push_str(&self.held[..certain]);
                self.held.drain(..certain);
            }
        }
        self.is_stopped
    }

    /// The output is complete: the held text belongs to it, because no stop string came of it.
    pub fn finish(&mut self) {
        self.ready.push_str(&self.held);
        self.ready
            .push_str(&String::from_utf8_lossy(&self.incomplete));
        self.held.clear();
        self.incomplete.clear();
        self.is_stopped = true;
    }

    /// Returns whether there is text to take.
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Returns all text that is final and has not been taken before.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.ready)
    }
}

/// Returns how many of the bytes come before a character that is still incomplete.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has at most four bytes, so at most the last three can be incomplete.
    let tail = bytes.len().saturating_sub(3);
    let start = (tail..bytes.len())
        .rev()
        .find(|index| bytes[*index] & 0xC0 != 0x80);
    let Some(start) = start else {
        return bytes.len();
    };
    let length = match bytes[start] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        // A single byte, or one that begins nothing: it will be replaced.
        _ => 1,
    };
    if bytes.len() - start < length {
        start
    } else {
        bytes.len()
    }
}

/// Returns the stop string that is complete first, and where it begins; the longest of several that
/// end at the same place. The one that begins first does not count: it may never be completed.
fn first_stop<'a>(text: &str, stops: &'a [Stop]) -> Option<(usize, &'a Stop)> {
    stops
        .iter()
        .filter_map(|stop| text.find(&stop.text).map(|start| (start, stop)))
        .min_by_key(|(start, stop)| (start + stop.text.len(), *start))
}

/// Returns the length of the longest end of `text` that begins a stop string.
fn possible_stop(text: &str, stops: &[Stop]) -> usize {
    let longest = |stop: &Stop| {
        (1..stop.text.len().min(text.len() + 1))
            .rev()
            .filter(|length| stop.text.is_char_boundary(*length))
            .find(|length| text.ends_with(&stop.text[..*length]))
            .unwrap_or(0)
    };
    stops.iter().map(longest).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stop(text: &str) -> Stop {
        Stop {
            text: text.to_owned(),
            is_kept: false,
        }
    }

    #[test]
    fn character_over_several_tokens_comes_whole() {
        let mut text = Text::new(String::new(), Vec::new());
        let bytes = "快😀".as_bytes();
        let mut taken = Vec::new();
        for byte in bytes {
            text.push(&[*byte]);
            if text.is_ready() {
                taken.push(text.take());
            }
        }
        assert_eq!(taken, ["快", "😀"]);
    }

    #[test]
    fn broken_bytes_become_replacement_characters() {
        let mut text = Text::new(String::new(), Vec::new());
        text.push(b"a\xFFb\xE5\xBF");
        text.push(b"c\xE5");
        text.finish();
        assert_eq!(text.take(), "a\u{FFFD}b\u{FFFD}c\u{FFFD}");
    }

    #[test]
    fn stop_string_never_leaks_and_what_is_none_is_not_lost() {
        let mut text = Text::new("open ".to_owned(), vec![stop("END"), stop("E!")]);
        assert!(!text.push(b"a E"));
        assert_eq!(text.take(), "open a ");
        assert!(!text.push(b"N"));
        assert_eq!(text.take(), "");
        assert!(!text.push(b"d E"));
        assert_eq!(text.take(), "ENd ");
        assert!(text.push(b"NDless"));
        assert_eq!(text.take(), "");
        assert!(text.push(b"more"));
        text.finish();
        assert_eq!(text.take(), "");
    }

    #[test]
    fn kept_stop_string_is_part_of_the_answer_and_its_followers_are_not() {
        let closing = Stop {
            text: "\n```".to_owned(),
            is_kept: true,
        };
        let mut text = Text::new("```c\n".to_owned(), vec![closing]);
        assert!(!text.push(b"x\n"));
        assert!(text.push(b"```\nprose"));
        assert_eq!(text.take(), "```c\nx\n```");
    }

    #[test]
    fn what_was_held_at_the_end_is_part_of_the_answer() {
        let mut text = Text::new(String::new(), vec![stop("END")]);
        text.push(b"the EN");
        text.finish();
        assert_eq!(text.take(), "the EN");
    }

    proptest! {
        #[test]
        fn text_ends_before_the_first_stop_however_it_is_cut(
            whole in "[ab快]{0,24}",
            stops in prop::collection::vec("[ab快]{1,3}", 0..3),
            cuts in any::<u64>(),
        ) {
            let places = stops.iter().filter_map(|stop| {
                whole.find(stop.as_str()).map(|start| (start + stop.len(), start))
            });
            let first = places.min().map(|(_, start)| start);
            let expected = &whole[..first.unwrap_or(whole.len())];
            let stops = stops.iter().map(|text| stop(text)).collect();
            let mut text = Text::new(String::new(), stops);
            let mut taken = String::new();
            let mut piece = Vec::new();
            for (index, byte) in whole.bytes().enumerate() {
                piece.push(byte);
                if cuts >> (index % 64) & 1 == 1 {
                    text.push(&piece);
                    piece.clear();
                    taken.push_str(&text.take());
                    prop_assert!(expected.starts_with(&taken));
                }
            }
            text.push(&piece);
            text.finish();
            taken.push_str(&text.take());
            prop_assert_eq!(taken, expected);
        }
    }
}
