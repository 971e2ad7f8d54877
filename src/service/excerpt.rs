//! Beginnings of clients' texts, short enough for a message or a log line.

use crate::limits::service as limits;

/// Cuts a text to a length that fits a message and a log line.
pub fn excerpt(text: &str) -> String {
    let start = beginning(text, limits::EXCERPT_BYTES_MAX);
    if start.len() == text.len() {
        return text.to_owned();
    }
    format!("{start}...")
}

/// Returns as many whole characters from the start as fit into `bytes`.
pub fn beginning(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    // Position 0 is a boundary, and no character is longer than four bytes.
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
