//! Reports when one of several files may have changed: inotify(7) on the folders that lead to it.
//!
//! A watch on the file itself would follow the inode, and most programs that save a file put a new
//! inode in its place: editors and package managers rename, and Kubernetes swaps a symbolic link
//! two folders up. So this module watches each folder that contains a name on the way to the file.
//!
//! Invariants:
//!  1. Writing, replacing or removing the file, a link on the way to it or the folder that holds it
//!     is reported at least once. A report does not promise that something differs: the caller must
//!     debounce and compare. (Renaming a folder further up is not reported.)
//!  2. The set of watches follows the links: it is rebuilt after each change.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{self, Component, Path, PathBuf};

use crate::limits::os as limits;

/// Watches a few paths.
#[derive(Debug)]
pub struct FileWatch {
    inotify: OwnedFd,
    /// Absolute, links not resolved.
    paths: Vec<PathBuf>,
    places: HashMap<libc::c_int, Place>,
}

/// A watched folder and the names in it that matter.
#[derive(Debug)]
struct Place {
    folder: PathBuf,
    names: Vec<OsString>,
}

/// Written and closed, renamed into the place, created (a link), removed, permission changed; and
/// the folder itself moved or removed.
const MASK: u32 = libc::IN_CLOSE_WRITE
    | libc::IN_MOVED_TO
    | libc::IN_CREATE
    | libc::IN_DELETE
    | libc::IN_ATTRIB
    | libc::IN_DELETE_SELF
    | libc::IN_MOVE_SELF
    | libc::IN_ONLYDIR;

impl FileWatch {
    /// Neither the files nor their folders need to exist: the creation of a missing one is
    /// reported.
    pub fn new(paths: &[PathBuf]) -> io::Result<FileWatch> {
        // SAFETY: inotify_init1(2) takes flags only.
        let descriptor = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut watch = FileWatch {
            // SAFETY: the kernel has just created this descriptor for us, and nothing else owns it.
            inotify: unsafe { OwnedFd::from_raw_fd(descriptor) },
            paths: Vec::new(),
            places: HashMap::new(),
        };
        watch.watch(paths)?;
        Ok(watch)
    }

    /// Watches these paths from now on, and no others.
    pub fn watch(&mut self, paths: &[PathBuf]) -> io::Result<()> {
        let paths: io::Result<Vec<_>> = paths.iter().map(path::absolute).collect();
        self.paths = paths?;
        self.follow()
    }

    /// Reads the queued events and returns whether a file may have changed. After an error (too
    /// many watches, or an unreadable folder) a file may have changed as well. Never blocks.
    pub fn changed(&mut self) -> io::Result<bool> {
        let mut changed = false;
        // Large enough for several events with the longest names; inotify(7) wants it aligned.
        let mut buffer = [0_u64; 512];
        loop {
            let descriptor = self.inotify.as_raw_fd();
            let size = size_of_val(&buffer);
            // SAFETY: the buffer has the given size and outlives the call.
            let length = unsafe { libc::read(descriptor, buffer.as_mut_ptr().cast(), size) };
            if length < 0 {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => break,
                    _ => return Err(error),
                }
            }
            // SAFETY: the kernel has written `length` bytes, at most the buffer's size, and any
            // byte is a valid `u8`.
            let bytes = unsafe {
                std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length as usize)
            };
            for event in (Events { rest: bytes }) {
                changed |= self.matters(&event);
            }
        }
        if changed {
            self.follow()?;
        }
        Ok(changed)
    }

    fn matters(&self, event: &Event<'_>) -> bool {
        if event.mask & libc::IN_Q_OVERFLOW != 0 {
            return true;
        }
        let Some(place) = self.places.get(&event.watch) else {
            return false;
        };
        if event.name.is_empty() {
            return event.mask & (libc::IN_DELETE_SELF | libc::IN_MOVE_SELF) != 0;
        }
        if !place.names.iter().any(|name| name == event.name) {
            return false;
        }
        // A new plain file has no content yet: the event of its closing follows. A link has its
        // content at once, and a folder may.
        event.mask & libc::IN_CREATE == 0
            || fs::symlink_metadata(place.folder.join(event.name))
                .is_ok_and(|found| !found.is_file() || found.nlink() > 1)
    }

    /// Watches each folder that holds a name on the way to a file, and no other.
    fn follow(&mut self) -> io::Result<()> {
        let mut places: HashMap<libc::c_int, Place> = HashMap::new();
        let mut names = Vec::new();
        for path in &self.paths {
            names.append(&mut names_on_the_way(path)?);
        }
        for (folder, name) in names {
            let watch = add_watch(self.inotify.as_raw_fd(), &folder)?;
            let names = Vec::new();
            places
                .entry(watch)
                .or_insert(Place { folder, names })
                .names
                .push(name);
        }
        for old in self.places.keys().filter(|old| !places.contains_key(old)) {
            // SAFETY: two numbers; removing a watch that is already gone returns an error and does
            // nothing.
            unsafe { libc::inotify_rm_watch(self.inotify.as_raw_fd(), *old) };
        }
        self.places = places;
        Ok(())
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Returns every folder and name whose change can change what `path` means: each symbolic link that
/// its resolution meets, and the file at its end or the first folder that is missing.
fn names_on_the_way(path: &Path) -> io::Result<Vec<(PathBuf, OsString)>> {
    let mut found = Vec::new();
    let mut folder = PathBuf::from("/");
    let mut rest: VecDeque<OsString> = components(path);
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            folder.pop();
            continue;
        }
        let place = folder.join(&name);
        let link = fs::read_link(&place).ok();
        if link.is_none() && !rest.is_empty() && place.exists() {
            folder = place;
            continue;
        }
        found.push((folder.clone(), name));
        if found.len() > limits::WATCH_LINKS_MAX {
            // Opening such a path fails with ELOOP too.
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let Some(link) = link else {
            break;
        };
        if link.is_absolute() {
            folder = PathBuf::from("/");
        }
        let mut target = components(&link);
        target.append(&mut rest);
        rest = target;
    }
    Ok(found)
}

fn components(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

fn add_watch(inotify: RawFd, folder: &Path) -> io::Result<libc::c_int> {
    let text = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: the text ends with a zero byte and outlives the call.
    let watch = unsafe { libc::inotify_add_watch(inotify, text.as_ptr(), MASK) };
    if watch < 0 {
        let error = io::Error::last_os_error();
        let message = format!("cannot watch {}: {error}", folder.display());
        return Err(io::Error::new(error.kind(), message));
    }
    Ok(watch)
}

/// One `struct inotify_event`.
struct Event<'a> {
    watch: libc::c_int,
    mask: u32,
    name: &'a OsStr,
}

/// Splits the bytes of one read into events.
struct Events<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        let (head, rest) = self.rest.split_first_chunk::<16>()?;
        // wd, mask, cookie, len: four numbers of 32 bits; then `len` bytes of name and zeros.
        let [watch, mask, _cookie, length] = [0, 4, 8, 12]
            .map(|at| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        let (name, rest) = rest.split_at_checked(length as usize)?;
        self.rest = rest;
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        Some(Event {
            watch: watch as libc::c_int,
            mask,
            name: OsStr::from_bytes(&name[..end]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// inotify queues an event before the system call that caused it returns, so no test waits.
    fn changed_by(watch: &mut FileWatch, action: impl FnOnce()) -> bool {
        assert!(!watch.changed().unwrap(), "nothing is left from before");
        action();
        watch.changed().unwrap()
    }

    #[test]
    fn saving_in_place_and_by_rename_is_seen_and_neighbours_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("autoglmd.toml");
        let temporary = folder.path().join("autoglmd.toml~");
        fs::write(&path, "1").unwrap();
        let mut watch = FileWatch::new(std::slice::from_ref(&path)).unwrap();
        assert!(changed_by(&mut watch, || fs::write(&path, "2").unwrap()));
        assert!(!changed_by(&mut watch, || fs::write(&temporary, "3").unwrap()));
        assert!(changed_by(&mut watch, || fs::rename(&temporary, &path).unwrap()));
        // The new inode is watched as the old one was.
        assert!(changed_by(&mut watch, || fs::write(&path, "4").unwrap()));
        assert!(changed_by(&mut watch, || fs::remove_file(&path).unwrap()));
        assert!(changed_by(&mut watch, || fs::write(&path, "5").unwrap()));
        assert!(!changed_by(&mut watch, || drop(fs::read(&path).unwrap())));
    }

    #[test]
    fn a_file_that_is_still_being_written_is_not_announced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("autoglmd.toml");
        let mut watch = FileWatch::new(std::slice::from_ref(&path)).unwrap();
        let file = fs::File::create(&path).unwrap();
        assert!(!watch.changed().unwrap());
        assert!(changed_by(&mut watch, || drop(file)));
    }

    /// How a ConfigMap is updated: a new folder is made, `..data` is swapped to it, the old one is
    /// removed.
    #[test]
    fn a_swap_of_kubernetes_links_is_seen_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let publish = |version: &str| {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("autoglmd.toml"), version).unwrap();
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        publish("..1");
        symlink("..data/autoglmd.toml", at("autoglmd.toml")).unwrap();
        let mut watch = FileWatch::new(&[at("autoglmd.toml")]).unwrap();
        assert!(changed_by(&mut watch, || publish("..2")));
        fs::remove_dir_all(at("..1")).unwrap();
        assert!(changed_by(&mut watch, || publish("..3")));
        assert_eq!(fs::read_to_string(at("autoglmd.toml")).unwrap(), "..3");
        // A write into the currently published folder counts too; one into an old folder does not.
        let current = at("..3").join("autoglmd.toml");
        assert!(changed_by(&mut watch, || fs::write(&current, "x").unwrap()));
        let old = at("..2").join("autoglmd.toml");
        assert!(!changed_by(&mut watch, || fs::write(&old, "x").unwrap()));
    }

    #[test]
    fn links_to_elsewhere_are_followed_and_circles_refused() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, file) = (here.path().join("link"), there.path().join("file"));
        fs::write(&file, "1").unwrap();
        symlink(&file, &link).unwrap();
        let mut watch = FileWatch::new(std::slice::from_ref(&link)).unwrap();
        assert!(changed_by(&mut watch, || fs::write(&file, "2").unwrap()));

        let circle = here.path().join("circle");
        symlink("circle", &circle).unwrap();
        let error = FileWatch::new(std::slice::from_ref(&circle)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_folder_may_come_and_go() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("folder");
        let path = folder.join("file");
        let mut watch = FileWatch::new(std::slice::from_ref(&path)).unwrap();
        for _ in 0..2 {
            assert!(changed_by(&mut watch, || fs::create_dir(&folder).unwrap()));
            assert!(changed_by(&mut watch, || fs::write(&path, "1").unwrap()));
            assert!(changed_by(&mut watch, || fs::remove_dir_all(&folder).unwrap()));
            // Events that were queued behind the removal.
            while watch.changed().unwrap() {}
        }
    }

    #[test]
    fn a_cut_event_ends_the_batch() {
        let mut bytes = Vec::new();
        for number in [1_u32, libc::IN_MOVED_TO, 0, 16] {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        bytes.extend_from_slice(b"name\0\0\0\0\0\0\0\0\0\0\0\0");
        let names = |bytes: &[u8]| -> Vec<OsString> {
            (Events { rest: bytes })
                .map(|event| event.name.to_owned())
                .collect()
        };
        assert_eq!(names(&bytes), ["name"]);
        for end in 0..bytes.len() {
            assert!(names(&bytes[..end]).is_empty());
        }
    }
}
