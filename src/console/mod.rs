//! The terminal's side of a command: its output, and its exit code. The commands and the supervisor
//! share it, so neither needs the other for this.
//!
//! In reading order:
//!
//! * [`exit`]: the exit codes, and which error has which;
//! * [`mod@print`]: results to stdout, everything for a person to stderr;
//! * [`progress`]: shows the progress of long work.
//!
//! Must never: know a command or a flag.

pub mod exit;
pub mod print;
pub mod progress;

pub use print::{fail, note, printable, put, show, stdout_is_discarded, table, unwritten};
