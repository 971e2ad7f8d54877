//! Why a program was not run.

use std::fmt;
use std::io;

/// Why a program was not run. A program that ran and failed is a report, not an error.
#[derive(Debug)]
pub enum SandboxError {
    /// The kernel forbids a part of the sandbox.
    Refused { step: String, source: io::Error },
    /// No program of this name is installed where the sandbox can show it.
    NoProgram { name: String },
    /// The program exists but cannot be executed.
    NotStarted { program: String, source: io::Error },
    /// A file's name is not a relative path without `..`, or a word holds a zero byte.
    BadTask { reason: String },
    Io {
        doing: &'static str,
        source: io::Error,
    },
}

impl SandboxError {
    /// Explains a failed clone(2), which may lack memory as well as permission.
    pub(super) fn of_spawn(source: io::Error) -> SandboxError {
        match source.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => SandboxError::Io {
                doing: "starting the sandbox",
                source,
            },
            _ => SandboxError::Refused {
                step: "creating namespaces".to_owned(),
                source,
            },
        }
    }
}

impl fmt::Display for SandboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SandboxError::Refused { step, source } => write!(
                f,
                "the kernel refused to set up the sandbox: {step}: {source}. It needs Linux 5.14 \
                 or later and user namespaces; check the sysctls user.max_user_namespaces and, on \
                 Ubuntu, kernel.apparmor_restrict_unprivileged_userns, and whether the container \
                 allows them"
            ),
            SandboxError::NoProgram { name } => {
                write!(f, "{name} is not installed or not in a folder of $PATH")
            }
            SandboxError::NotStarted { program, source } => {
                write!(f, "cannot execute {program}: {source}")
            }
            SandboxError::BadTask { reason } => write!(f, "{reason}"),
            SandboxError::Io { doing, source } => write!(f, "{doing}: {source}"),
        }
    }
}

impl std::error::Error for SandboxError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SandboxError::Refused { source, .. }
            | SandboxError::NotStarted { source, .. }
            | SandboxError::Io { source, .. } => Some(source),
            SandboxError::NoProgram { .. } | SandboxError::BadTask { .. } => None,
        }
    }
}
