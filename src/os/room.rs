//! How much memory and disk space this process may still take.
//!
//! Owns the reading of `/proc/meminfo` and of statvfs(3). A container's bound ([`cgroup`]) counts
//! as much as the machine's memory: the kernel kills a process that exceeds either.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::cgroup;

/// Returns the bytes available without swapping and without being killed for taking them; `None` if
/// the kernel does not report them.
pub fn available_memory() -> Option<u64> {
    of_machine("MemAvailable:")
        .into_iter()
        .chain(cgroup::room())
        .min()
}

/// Returns the bytes that the process could have if it were alone on the machine and in its groups.
pub fn allowed_memory() -> Option<u64> {
    of_machine("MemTotal:")
        .into_iter()
        .chain(cgroup::limit())
        .min()
}

/// Returns the bytes that an unprivileged process can still write below `folder`, or below its
/// nearest parent that exists.
pub fn free_disk(folder: &Path) -> Option<u64> {
    let existing = folder.ancestors().find(|path| path.exists())?;
    statvfs(existing).ok()
}

fn of_machine(name: &str) -> Option<u64> {
    meminfo(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes = line.trim().strip_suffix(" kB")?;
    Some(kibibytes.parse::<u64>().ok()? * 1024)
}

fn statvfs(path: &Path) -> io::Result<u64> {
    let c_path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in NUL; the structure is written before it is read.
    if unsafe { libc::statvfs(c_path.as_ptr(), found.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs(3) has succeeded, so it has written all of the structure.
    let found = unsafe { found.assume_init() };
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_and_disk_have_something_left() {
        assert!(available_memory().unwrap() > 1 << 20);
        assert!(available_memory() <= allowed_memory());
        assert!(free_disk(Path::new("/tmp/not/there/yet")).unwrap() > 0);
        let text = "MemTotal: 20 kB\nMemAvailable:   12 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:"), Some(12 * 1024));
        assert_eq!(meminfo(text, "MemTotal:"), Some(20 * 1024));
        assert_eq!(meminfo(text, "MemFree:"), None);
    }
}
