//! How a command ends: with the codes of sysexits(3), so that scripts can distinguish causes.
//!
//! Two rules go beyond that table. `check` is a question, so it exits with 1 for "no", as grep(1)
//! does. Interrupted commands do not end by a code of ours at all: SIGINT keeps its default action.
//! A shell shows that as 130 and stops its own loop, which it would not do if we caught the signal
//! and exited with a number.

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use crate::store::{Fault, StoreError};

/// An exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u8);

pub const OK: Code = Code(0);
/// No: `check` on a bad file, `model verify` on a damaged one.
pub const NO: Code = Code(1);
/// Wrong flags or arguments.
pub const USAGE: Code = Code(64);
/// The input is not as it should be: a prompt that is refused, a file that is damaged.
pub const DATA: Code = Code(65);
/// A named file or object does not exist.
pub const NO_INPUT: Code = Code(66);
/// The daemon, a server or a program that is needed cannot be reached.
pub const UNAVAILABLE: Code = Code(69);
/// A bug, here or in the daemon.
pub const SOFTWARE: Code = Code(70);
/// The system refuses something basic, such as random bytes or a thread.
pub const OS_ERROR: Code = Code(71);
/// A file cannot be made.
pub const CANT_CREATE: Code = Code(73);
/// Reading or writing failed.
pub const IO: Code = Code(74);
/// A retry may succeed later: a full queue, a limit, a timeout.
pub const TEMPORARY: Code = Code(75);
/// Not allowed: a missing or refused key, a file of another user.
pub const NO_PERMISSION: Code = Code(77);
/// The configuration is wrong.
pub const CONFIG: Code = Code(78);
/// `generate --run` ended the program at its time limit; timeout(1) exits with the same code.
pub const OUT_OF_TIME: Code = Code(124);
/// `generate --run` ended the program at another limit. A shell shows this for SIGKILL.
pub const KILLED: Code = Code(128 + 9);
/// The reader of our output is gone. A shell shows this for a program that SIGPIPE ended.
pub const CLOSED_PIPE: Code = Code(128 + 13);

impl From<Code> for ExitCode {
    fn from(code: Code) -> ExitCode {
        ExitCode::from(code.0)
    }
}

/// Returns the code for a file that cannot be used.
pub fn of_file(error: &io::Error) -> Code {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => NO_PERMISSION,
        ErrorKind::NotFound => NO_INPUT,
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => CANT_CREATE,
        _ => IO,
    }
}

/// Returns the code for a key store that cannot be used.
pub fn of_store(error: &StoreError) -> Code {
    match error {
        StoreError::File(_, error) => match of_file(error) {
            NO_INPUT => CANT_CREATE,
            code => code,
        },
        StoreError::Database { fault, .. } => match fault {
            Fault::Busy | Fault::Conflict => TEMPORARY,
            Fault::Empty => NO_INPUT,
            Fault::Damaged => DATA,
            Fault::Unreachable => UNAVAILABLE,
            Fault::Denied => NO_PERMISSION,
            Fault::Full | Fault::Other => IO,
        },
        StoreError::UnknownKey(_) => NO_INPUT,
        StoreError::TooNew { .. } | StoreError::RevokedKey(_) => DATA,
        StoreError::Panicked => SOFTWARE,
        StoreError::Random(_) | StoreError::Thread(_) => OS_ERROR,
    }
}
