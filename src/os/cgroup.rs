//! How much memory the kernel lets this process have, apart from the machine's own limit.
//!
//! Reads the limits of the process's control group and of all groups above it, of version 2
//! (`memory.max`, `memory.high`) and version 1 (`memory.limit_in_bytes`). A container, a unit with
//! `MemoryMax=` and a pod are such groups: a process beyond its limit is killed, however much
//! memory the machine has left. [`room`] is what is left of the tightest limit now, [`limit`] the
//! lowest limit itself. Owns nothing; reads files below a root that is an argument.
//!
//! Used memory is the group's usage less its inactive file pages, as container managers count it:
//! the kernel frees those pages before it kills anything.
//!
//! Mutations that the tests below catch: the own group alone (`a_parents_limit_counts`), usage with
//! its file pages (`pages_of_files_that_are_not_used_are_room`).

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Returns the bytes that may still be taken within every limit; `None` without a limit.
pub fn room() -> Option<u64> {
    least(Path::new(MOUNT), &own_groups()?, Group::room)
}

/// Returns the lowest limit; `None` without one.
pub fn limit() -> Option<u64> {
    least(Path::new(MOUNT), &own_groups()?, |group| {
        Some(group.limit_and_used()?.0)
    })
}

const MOUNT: &str = "/sys/fs/cgroup";

fn own_groups() -> Option<String> {
    fs::read_to_string("/proc/self/cgroup").ok()
}

/// Returns the least that `look` finds in a group of a process in the groups that `own` lists, one
/// `number:controllers:path` per line (cgroups(7)), with the file system at `root`.
fn least(root: &Path, own: &str, look: fn(&Group) -> Option<u64>) -> Option<u64> {
    let found = own.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or("/"));
        let (version, mounts) = match controllers {
            // Where both versions are mounted, version 2 has its own folder.
            "" => (&V2, vec![root.to_owned(), root.join("unified")]),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (&V1, vec![root.join("memory")])
            }
            _ => return None,
        };
        let groups = mounts.iter().flat_map(|mount| groups(mount, path));
        let found = groups.filter_map(|folder| look(&Group { folder, version }));
        found.min()
    });
    found.min()
}

/// The file names of one version of control groups.
struct Version {
    limits: &'static [&'static str],
    used: &'static str,
    /// The line of `memory.stat` with the file pages that the kernel frees first.
    inactive: &'static str,
}

const V2: Version = Version {
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    inactive: "inactive_file",
};

const V1: Version = Version {
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    inactive: "total_inactive_file",
};

struct Group {
    folder: PathBuf,
    version: &'static Version,
}

impl Group {
    fn room(&self) -> Option<u64> {
        let (limit, used) = self.limit_and_used()?;
        Some(limit.saturating_sub(used))
    }

    fn limit_and_used(&self) -> Option<(u64, u64)> {
        let limits = self.version.limits.iter();
        let limits = limits.filter_map(|name| number(&self.folder.join(name)));
        // Version 2 writes "max", which does not parse; version 1 the largest number of pages.
        let limit = limits.filter(|&limit| limit < i64::MAX as u64 / 2).min()?;
        let used = number(&self.folder.join(self.version.used)).unwrap_or(0);
        Some((limit, used.saturating_sub(self.inactive())))
    }

    fn inactive(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(key, _)| *key == self.version.inactive);
        found.and_then(|(_, bytes)| bytes.parse().ok()).unwrap_or(0)
    }
}

/// Yields the group's folder and all above it, up to the mount. In a container the path may be that
/// of the host, whose folders do not exist here: the mount is then the container's own group.
fn groups(mount: &Path, path: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let names: Vec<_> = Path::new(path)
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            _ => None,
        })
        .collect();
    let mount = mount.to_owned();
    (0..=names.len()).map(move |depth| {
        let parts = names[..depth].iter();
        parts.fold(mount.clone(), |path, name| path.join(name))
    })
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Tree {
            Tree(tempfile::tempdir().unwrap())
        }

        fn write(&self, group: &str, file: &str, text: impl ToString) {
            let folder = self.0.path().join(group);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), text.to_string() + "\n").unwrap();
        }

        fn room(&self, own: &str) -> Option<u64> {
            least(self.0.path(), own, Group::room)
        }

        fn limit(&self, own: &str) -> Option<u64> {
            least(self.0.path(), own, |group| Some(group.limit_and_used()?.0))
        }
    }

    #[test]
    fn without_a_limit_the_machine_is_the_limit() {
        let tree = Tree::new();
        assert_eq!(tree.room(""), None);
        assert_eq!(tree.room("0::/system.slice/autoglmd.service\n"), None);
        tree.write("a", "memory.max", "max");
        tree.write("a", "memory.high", "max");
        tree.write(
            "memory/a",
            "memory.limit_in_bytes",
            9_223_372_036_854_771_712_u64,
        );
        assert_eq!(tree.room("1:memory:/a\n0::/a\n"), None);
        assert_eq!(tree.limit("1:memory:/a\n0::/a\n"), None);
    }

    #[test]
    fn a_units_limit_counts_less_what_it_uses() {
        let tree = Tree::new();
        tree.write("a/b", "memory.max", 1000 * MIB);
        tree.write("a/b", "memory.current", 300 * MIB);
        assert_eq!(tree.room("0::/a/b\n"), Some(700 * MIB));
        tree.write("a/b", "memory.high", 500 * MIB);
        assert_eq!(tree.room("0::/a/b\n"), Some(200 * MIB));
        tree.write("a/b", "memory.current", 900 * MIB);
        assert_eq!(tree.room("0::/a/b\n"), Some(0));
    }

    #[test]
    fn a_parents_limit_counts() {
        let tree = Tree::new();
        tree.write("a/b", "memory.max", 1000 * MIB);
        tree.write("a", "memory.max", 400 * MIB);
        tree.write("a", "memory.current", 350 * MIB);
        assert_eq!(tree.room("0::/a/b\n"), Some(50 * MIB));
        assert_eq!(tree.limit("0::/a/b\n"), Some(400 * MIB));
    }

    #[test]
    fn pages_of_files_that_are_not_used_are_room() {
        let tree = Tree::new();
        tree.write("a", "memory.max", 1000 * MIB);
        tree.write("a", "memory.current", 900 * MIB);
        let stat = format!("anon 1\ninactive_file {}\nactive_file 5", 600 * MIB);
        tree.write("a", "memory.stat", stat);
        assert_eq!(tree.room("0::/a\n"), Some(700 * MIB));
    }

    #[test]
    fn version_1_is_read_as_well_and_the_smallest_room_wins() {
        let tree = Tree::new();
        tree.write("memory/docker/x", "memory.limit_in_bytes", 500 * MIB);
        tree.write("memory/docker/x", "memory.usage_in_bytes", 450 * MIB);
        let stat = format!("inactive_file 0\ntotal_inactive_file {}", 100 * MIB);
        tree.write("memory/docker/x", "memory.stat", stat);
        let own = "5:cpu,cpuacct:/docker/x\n4:hugetlb,memory:/docker/x\n0::/init\n";
        assert_eq!(tree.room(own), Some(150 * MIB));
        tree.write("unified/init", "memory.max", 100 * MIB);
        assert_eq!(tree.room(own), Some(100 * MIB));
    }

    /// A container sees its own group at the mount, but the host's path in `/proc`.
    #[test]
    fn a_path_of_the_outside_leads_to_the_mount() {
        let tree = Tree::new();
        tree.write("memory", "memory.limit_in_bytes", 64 * MIB);
        assert_eq!(tree.room("4:memory:/docker/elsewhere\n"), Some(64 * MIB));
        tree.write("", "memory.max", 32 * MIB);
        assert_eq!(tree.room("0::/../../x\n"), Some(32 * MIB));
    }
}
