//! Why the daemon cannot start.

use std::fmt;
use std::io;

use crate::console::exit::{self, Code};

/// What keeps the daemon from starting: what it tried, why that failed, what to do.
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
