//! The tasks of a sandbox's init, and its reports.

use std::ffi::CString;
use std::io;
use std::time::Duration;

use super::ids::Ids;

/// Everything that init and the program need, prepared before the clone.
pub struct Plan {
    /// How the file system is built, in this order.
    pub steps: Vec<Step>,
    /// The program's path inside.
    pub program: CString,
    pub arguments: Vec<CString>,
    pub environment: Vec<CString>,
    /// The working folder inside.
    pub folder: CString,
    /// `RLIMIT_*` and its value, soft and hard.
    pub limits: Vec<(libc::c_uint, u64)>,
    /// CPU time of all processes together.
    pub cpu: Duration,
    /// Memory of all processes together, not counting files.
    pub memory_bytes: u64,
    pub ids: Ids,
}

/// One step of building the file system. Paths are those inside, except where noted.
pub enum Step {
    Folder(CString),
    Link {
        path: CString,
        target: CString,
    },
    /// Shows a file or folder of the machine, read-only.
    Show {
        /// Below [`MACHINE`].
        from: CString,
        to: CString,
    },
    /// Shows a device of the machine. Writing to it is allowed.
    Device {
        /// Below [`MACHINE`].
        from: CString,
        to: CString,
    },
    Tmpfs {
        path: CString,
        options: CString,
    },
    Proc(CString),
    File {
        path: CString,
        bytes: Vec<u8>,
    },
    /// From here on, files are created as the program's user.
    Become,
    /// Hides the machine's files and makes the root read-only.
    Seal,
}

/// Where the machine's root is while the steps run; [`Step::Seal`] removes it.
pub const MACHINE: &str = "/machine";

/// A report of init.
#[derive(Debug)]
pub enum Notice {
    /// A step before the program failed.
    Refused {
        stage: String,
        error: io::Error,
    },
    /// The program itself cannot be executed.
    NotStarted(io::Error),
    /// The program ended, with a status as wait(2) returns it.
    Ended(i32),
    OutOfTime,
    OutOfMemory,
    /// Init was killed before it could report.
    Vanished,
}
