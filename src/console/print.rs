//! The output of commands. Results go to stdout, so that they can be piped; messages for people go
//! to stderr.
//!
//! `println!` panics when the reader is gone (`autoglmd key list | head -1`); these functions do
//! not.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::exit::{self, Code};

/// Writes a result to stdout, as it is.
pub fn put(text: &str) -> Result<(), Code> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| unwritten(&error))
}

/// Returns the code of a result that could not be written to stdout.
pub fn unwritten(error: &io::Error) -> Code {
    match error.kind() {
        // The reader of the pipe has what it wanted; the shell's own tools are silent too.
        ErrorKind::BrokenPipe => exit::CLOSED_PIPE,
        _ => fail(exit::IO, format_args!("stdout: {error}")),
    }
}

/// Returns whether output to stdout is discarded. That includes a closed stdout: Rust's runtime
/// opens `/dev/null` in its place before `main`.
pub fn stdout_is_discarded() -> bool {
    let descriptor = io::stdout().as_fd().try_clone_to_owned();
    let found = descriptor.and_then(|descriptor| File::from(descriptor).metadata());
    // Linux's number of the null device (Documentation/admin-guide/devices.txt).
    found.is_ok_and(|found| {
        found.file_type().is_char_device() && found.rdev() == libc::makedev(1, 3)
    })
}

/// Writes a line to stderr. If that fails, there is no reader left.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes to stderr, as it is.
pub fn show(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Prints why a command ends, and returns the code.
pub fn fail(code: Code, text: impl Display) -> Code {
    note(format_args!("error: {text}"));
    code
}

/// Formats a table: columns as wide as their widest cell, two spaces between them, none at a line's
/// end.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell_width =
        |row: &Vec<String>, column| row.get(column).map_or(0, |cell: &String| width(cell));
    let widest = |column| {
        rows.iter()
            .map(|row| cell_width(row, column))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(widest).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, &column_width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', column_width - width(cell) + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Removes control characters other than line ends and tabs: a terminal would obey them, and the
/// text comes from others.
pub fn printable(text: &str) -> String {
    let harmless = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().filter(harmless).collect()
}

/// Good enough for names; a character of two columns makes a row crooked, not wrong.
fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_without_trailing_spaces() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let rows = [
            row(&["ID", "NAME", "X"]),
            row(&["1", "größer", ""]),
            row(&["22", ""]),
        ];
        assert_eq!(table(&rows), "ID  NAME    X\n1   größer\n22\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        assert_eq!(
            printable("a\x1b]0;title\x07\n\tb\u{9b}1m\r"),
            "a]0;title\n\tb1m"
        );
    }
}
