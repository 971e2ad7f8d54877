//! The failure of a start.

use std::fmt;
use std::io;

use crate::console::exit::{self, Code};

/// The reason why the daemon cannot start: the step that failed, its error, and a remedy if one is
/// known.
pub struct Failure {
    message: String,
    pub code: Code,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            code,
        }
    }

    pub fn os(what: &str, error: &io::Error) -> Failure {
        Failure::new(exit::OS_ERROR, format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
