//! Maps a sandbox's user to a user of the machine (user_namespaces(7)).
//!
//! An unprivileged caller can map only its own user. A caller that is root maps the program to
//! `nobody`: root's files stay closed to it, and the kernel exempts root from `RLIMIT_NPROC`.

use std::fs;
use std::io;

/// The program's user and group inside.
pub const INSIDE: u32 = 1000;

/// `nobody` and `nogroup`.
const NOBODY: u32 = 65_534;

/// How users inside are mapped to users of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// The caller's own user, which is not root.
    Own { user: u32, group: u32 },
    /// Root, for building the file system, and `nobody` for the program.
    Nobody,
}

impl Ids {
    /// Returns the mapping that this process can make.
    pub fn of_process() -> Ids {
        // SAFETY: both calls return a number and cannot fail.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        match user {
            0 => Ids::Nobody,
            _ => Ids::Own { user, group },
        }
    }

    /// Returns whether supplementary groups can be dropped: not after "deny".
    pub(super) fn can_drop_groups(self) -> bool {
        self == Ids::Nobody
    }

    /// Writes the maps of `process`, which waits in its new user namespace.
    pub(super) fn map(self, process: libc::pid_t) -> io::Result<()> {
        let write = |name: &str, text: String| fs::write(format!("/proc/{process}/{name}"), text);
        match self {
            Ids::Own { user, group } => {
                write("setgroups", "deny".to_owned())?;
                write("uid_map", format!("{INSIDE} {user} 1\n"))?;
                write("gid_map", format!("{INSIDE} {group} 1\n"))
            }
            Ids::Nobody => {
                write("uid_map", format!("0 0 1\n{INSIDE} {NOBODY} 1\n"))?;
                write("gid_map", format!("0 0 1\n{INSIDE} {NOBODY} 1\n"))
            }
        }
    }
}
