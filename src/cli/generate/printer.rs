//! Shows a program while it is written: on stdout or stderr, in colours on a terminal.
//!
//! Keeps the program for later use in a file or a run. Except on a terminal, every byte passes
//! unchanged.

use std::env;
use std::io::{self, IsTerminal};

use super::highlight::Highlighter;
use crate::console::exit::Code;
use crate::console::{printable, put, show};

/// Where to show a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    /// If stdout is used for something else: the output of the program.
    Stderr,
    Nowhere,
}

impl Stream {
    fn is_terminal(self) -> bool {
        match self {
            Stream::Stdout => io::stdout().is_terminal(),
            Stream::Stderr => io::stderr().is_terminal(),
            Stream::Nowhere => false,
        }
    }
}

/// Shows a program in pieces.
pub struct Printer {
    stream: Stream,
    is_terminal: bool,
    highlighter: Option<Highlighter>,
    /// Everything so far, as it came.
    program: String,
}

impl Printer {
    /// `language` is its canonical name, if it is known.
    pub fn new(stream: Stream, language: Option<&str>) -> Printer {
        let is_terminal = stream.is_terminal();
        let language = language.filter(|_| is_terminal && wants_colour());
        Printer {
            stream,
            is_terminal,
            highlighter: language.and_then(Highlighter::of),
            program: String::new(),
        }
    }

    /// Shows the next piece of the program.
    pub fn push(&mut self, text: &str) -> Result<(), Code> {
        self.program.push_str(text);
        // A terminal would obey control characters, and the text comes from others.
        match (&mut self.highlighter, self.is_terminal) {
            (Some(highlighter), _) => {
                let coloured = highlighter.push(&printable(text));
                self.write(&coloured)
            }
            (None, true) => self.write(&printable(text)),
            (None, false) => self.write(text),
        }
    }

    /// Shows the rest, and ends the last line if there is one.
    pub fn finish(&mut self) -> Result<(), Code> {
        if let Some(highlighter) = &mut self.highlighter {
            let rest = highlighter.finish();
            self.write(&rest)?;
        }
        if !self.program.is_empty() && !self.program.ends_with('\n') {
            self.program.push('\n');
            self.write("\n")?;
        }
        Ok(())
    }

    /// Returns the whole program, with its last line ended.
    pub fn program(&self) -> &str {
        &self.program
    }

    fn write(&self, text: &str) -> Result<(), Code> {
        match self.stream {
            Stream::Stdout => put(text),
            Stream::Stderr => {
                show(text);
                Ok(())
            }
            Stream::Nowhere => Ok(()),
        }
    }
}

/// Returns whether the user accepts colours: <https://no-color.org>, and terminals without colours.
fn wants_colour() -> bool {
    let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    !refused && !is_dumb
}
