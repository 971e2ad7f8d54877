//! How much memory and disk space this process may still take.
//!
//! Owns the reading of `/proc/meminfo`, of control groups (versions 1 and 2, the process's own
//! group and its parents) and of statvfs(3). A container's bound counts as much as the machine's
//! memory: the kernel kills a process that exceeds either.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Returns the bytes available without swapping, or `None` if the kernel does not report them.
pub fn available_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok();
    let machine = meminfo.as_deref().and_then(meminfo_available);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_available(&groups, Path::new("/sys/fs/cgroup"));
    machine.into_iter().chain(group).min()
}

/// Returns the bytes that an unprivileged process can still write below `folder`, or below its
/// nearest parent that exists.
pub fn free_disk(folder: &Path) -> Option<u64> {
    let existing = folder.ancestors().find(|path| path.exists())?;
    statvfs(existing).ok()
}

fn meminfo_available(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes = line.trim().strip_suffix(" kB")?;
    Some(kibibytes.parse::<u64>().ok()? * 1024)
}

/// Returns the least that one of the process's groups has left. `groups` is `/proc/self/cgroup`.
fn group_available(groups: &str, root: &Path) -> Option<u64> {
    let lefts = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        match controllers {
            "" => least_left(root, path, &V2),
            _ if controllers.split(',').any(|name| name == "memory") => {
                least_left(&root.join("memory"), path, &V1)
            }
            _ => None,
        }
    });
    lefts.min()
}

/// The file names of one version of control groups.
struct Files {
    limit: &'static str,
    used: &'static str,
    /// The line of `memory.stat` with the file pages that the kernel drops first.
    droppable: &'static str,
}

const V2: Files = Files {
    limit: "memory.max",
    used: "memory.current",
    droppable: "inactive_file ",
};

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    droppable: "total_inactive_file ",
};

/// Returns the least that the group at `path` or one of its parents has left. In a container the
/// path is often that of the host and does not exist here; the container's own group is the root
/// then.
fn least_left(root: &Path, path: &str, files: &Files) -> Option<u64> {
    let mut group = PathBuf::from(path.trim_start_matches('/'));
    if !root.join(&group).is_dir() {
        group = PathBuf::new();
    }
    let groups = group.ancestors().map(|group| root.join(group));
    groups.filter_map(|group| left_in(&group, files)).min()
}

fn left_in(group: &Path, files: &Files) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        fs::read_to_string(group.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    // `max` in version 2 does not parse as a number; version 1 writes one larger than any machine.
    let limit = number(files.limit)?;
    let used = number(files.used)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let droppable = stat
        .lines()
        .find_map(|line| line.strip_prefix(files.droppable)?.trim().parse().ok());
    Some(limit.saturating_sub(used.saturating_sub(droppable.unwrap_or(0))))
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
        assert!(free_disk(Path::new("/tmp/not/there/yet")).unwrap() > 0);
        assert_eq!(
            meminfo_available("MemAvailable:   12 kB\n"),
            Some(12 * 1024)
        );
        assert_eq!(meminfo_available("MemTotal: 12 kB\n"), None);
    }

    /// Mutations that this test catches: parents that are not read, the greatest instead of the
    /// least, droppable pages counted as used.
    #[test]
    fn the_tightest_group_counts() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |group: &str, file: &str, text: &str| {
            fs::create_dir_all(root.join(group)).unwrap();
            fs::write(root.join(group).join(file), text).unwrap();
        };
        write("a/b", "memory.max", "max\n");
        write("a/b", "memory.current", "50\n");
        assert_eq!(group_available("0::/a/b\n", root), None);
        write("a", "memory.max", "1000\n");
        write("a", "memory.current", "700\n");
        assert_eq!(group_available("0::/a/b\n", root), Some(300));
        write("a", "memory.stat", "anon 1\ninactive_file 200\n");
        assert_eq!(group_available("0::/a/b\n", root), Some(500));
        write("a/b", "memory.max", "60\n");
        assert_eq!(group_available("0::/a/b\n", root), Some(10));
        // The host's path, seen from within a container.
        write("", "memory.max", "40\n");
        write("", "memory.current", "50\n");
        assert_eq!(group_available("0::/host/only\n", root), Some(0));
        // Version 1.
        write("memory/c", "memory.limit_in_bytes", "100\n");
        write("memory/c", "memory.usage_in_bytes", "90\n");
        write("memory/c", "memory.stat", "total_inactive_file 5\n");
        assert_eq!(group_available("4:cpu:/c\n5:memory:/c\n", root), Some(15));
    }
}
