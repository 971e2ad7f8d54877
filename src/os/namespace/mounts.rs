//! The file system of a sandbox, built by init step by step.
//!
//! Makes only system calls, see invariant 1 of the module.

use std::ffi::{CStr, CString};

use libc::c_int;

use super::calls::{Done, check, errno};
use super::ids;
use super::plan::{MACHINE, Step};

/// Mounts an empty tmpfs as root, with the machine's root at [`MACHINE`].
pub(super) unsafe fn new_root() -> Done {
    const PIVOT: &CStr = c"/tmp";
    // SAFETY: strings with their terminators.
    unsafe {
        let nothing = std::ptr::null();
        let private = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(
            nothing,
            c"/".as_ptr(),
            nothing,
            private,
            std::ptr::null(),
        ))?;
        check(libc::mount(
            c"tmpfs".as_ptr(),
            PIVOT.as_ptr(),
            c"tmpfs".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV,
            c"size=1m,nr_inodes=2k,mode=755".as_ptr().cast(),
        ))?;
        check(libc::chdir(PIVOT.as_ptr()))?;
        check(libc::mkdir(c"machine".as_ptr(), 0o755))?;
        let (new, old) = (c".".as_ptr(), c"machine".as_ptr());
        check(libc::syscall(libc::SYS_pivot_root, new, old))?;
        check(libc::chdir(c"/".as_ptr()))
    }
}

pub(super) unsafe fn take_step(step: &Step) -> Done {
    // SAFETY: strings with their terminators, and a buffer with its length.
    unsafe {
        match step {
            Step::Folder(path) => match libc::mkdir(path.as_ptr(), 0o755) {
                0 => Ok(()),
                _ if errno() == libc::EEXIST => Ok(()),
                _ => Err(errno()),
            },
            Step::Link { path, target } => check(libc::symlink(target.as_ptr(), path.as_ptr())),
            Step::Show { from, to } => show(from, to, READ_ONLY | NO_SETUID | NO_DEVICES),
            Step::Device { from, to } => show(from, to, NO_SETUID),
            Step::Tmpfs { path, options } => check(libc::mount(
                c"tmpfs".as_ptr(),
                path.as_ptr(),
                c"tmpfs".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )),
            Step::Proc(path) => check(libc::mount(
                c"proc".as_ptr(),
                path.as_ptr(),
                c"proc".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY,
                c"subset=pid".as_ptr().cast(),
            )),
            Step::File { path, bytes } => write_file(path, bytes),
            Step::Become => {
                // Files created from here on belong to the program. Init keeps its capabilities.
                libc::syscall(libc::SYS_setfsgid, ids::INSIDE);
                libc::syscall(libc::SYS_setfsuid, ids::INSIDE);
                Ok(())
            }
            Step::Seal => {
                debug_assert_eq!(MACHINE, "/machine");
                check(libc::umount2(c"/machine".as_ptr(), libc::MNT_DETACH))?;
                check(libc::rmdir(c"/machine".as_ptr()))?;
                set_attributes(c"/", READ_ONLY | NO_SETUID | NO_DEVICES, 0)
            }
        }
    }
}

// mount_setattr(2)
const READ_ONLY: u64 = 0x1;
const NO_SETUID: u64 = 0x2;
const NO_DEVICES: u64 = 0x4;

/// Makes a bind mount. If `from` is a folder, `to` must exist; for a file, an empty file is
/// created.
unsafe fn show(from: &CStr, to: &CStr, attributes: u64) -> Done {
    // SAFETY: strings with their terminators, and a `stat` to be written.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::stat(from.as_ptr(), &mut stat))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC;
            let file = libc::open(to.as_ptr(), flags, 0o644);
            check(file)?;
            libc::close(file);
        }
        let nothing = std::ptr::null();
        let flags = libc::MS_BIND | libc::MS_REC;
        check(libc::mount(
            from.as_ptr(),
            to.as_ptr(),
            nothing,
            flags,
            std::ptr::null(),
        ))?;
        set_attributes(to, attributes, libc::AT_RECURSIVE)
    }
}

/// Sets attributes of a mount, and of those below it with `AT_RECURSIVE`. MS_REMOUNT could not: it
/// changes only the topmost mount, and leaves a writable one below a read-only one.
unsafe fn set_attributes(path: &CStr, attributes: u64, flags: c_int) -> Done {
    // attr_set, attr_clr, propagation, userns_fd
    let attributes: [u64; 4] = [attributes, 0, 0, 0];
    // SAFETY: a string with its terminator, and the structure with its length.
    unsafe {
        check(libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            attributes.as_ptr(),
            std::mem::size_of_val(&attributes),
        ))
    }
}

unsafe fn write_file(path: &CString, mut bytes: &[u8]) -> Done {
    // SAFETY: a string with its terminator, and a buffer with its length.
    unsafe {
        let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC | libc::O_CLOEXEC;
        let file = libc::open(path.as_ptr(), flags, 0o755);
        check(file)?;
        while !bytes.is_empty() {
            let written = libc::write(file, bytes.as_ptr().cast(), bytes.len());
            let Ok(written) = usize::try_from(written) else {
                return Err(errno());
            };
            bytes = bytes.get(written..).unwrap_or(&[]);
        }
        check(libc::close(file))
    }
}
