//! The program's view: the steps by which init builds its file system, and its environment.
//!
//! ```text
//! /usr /bin /lib ...    the machine's, read-only
//! /etc                  the linker's cache, alternatives, a passwd of one user
//! /dev                  null, zero, full, random, urandom
//! /proc                 of its own processes only
//! /scratch/work         the working folder
//! /scratch/tmp          /tmp is a link to it; one tmpfs with the working folder, so one bound
//! ```
//!
//! and the installations that [`Tools`] has found, at their paths on the machine.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::tools::{SYSTEM_FOLDERS, Tools};
use super::{SandboxError, Task};
use crate::limits::sandbox as limits;
use crate::os::namespace::{MACHINE, Step};

const WORK: &str = "/scratch/work";

/// Files and folders of `/etc` without which programs cannot be found, linked and compiled.
const SHOWN_OF_ETC: &[&str] = &[
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/perl",
    "/etc/php",
];

const WRITTEN_TO_ETC: &[(&str, &str)] = &[
    (
        "/etc/passwd",
        "sandbox:x:1000:1000:sandbox:/scratch/work:/bin/sh\n",
    ),
    ("/etc/group", "sandbox:x:1000:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n"),
    (
        "/etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\n",
    ),
];

const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

const LINKS: &[(&str, &str)] = &[
    ("/tmp", "/scratch/tmp"),
    ("/dev/shm", "/scratch/shm"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// All variables except PATH. None of the caller's environment is passed: it may hold secrets.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("HOME", WORK),
    ("USER", "sandbox"),
    ("LOGNAME", "sandbox"),
    ("LANG", "C.UTF-8"),
    ("TMPDIR", "/tmp"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("GOCACHE", "/tmp/go-build"),
    ("GOPATH", "/tmp/go"),
    ("GOTOOLCHAIN", "local"),
    ("GOFLAGS", "-mod=mod"),
    ("CGO_ENABLED", "0"),
];

/// The file system, command and environment of a task.
pub(super) struct View {
    pub steps: Vec<Step>,
    pub program: CString,
    pub arguments: Vec<CString>,
    pub environment: Vec<CString>,
    pub folder: CString,
}

impl View {
    pub fn of(task: &Task<'_>) -> Result<View, SandboxError> {
        let tools = Tools::of_machine();
        let mut steps = Vec::new();
        add_system(&mut steps);
        add_installations(&mut steps, &tools.installations);
        add_scratch(&mut steps, task)?;
        let (program, arguments) = command(task.command, tools)?;
        Ok(View {
            steps,
            program,
            arguments,
            environment: environment(tools),
            folder: text(WORK),
        })
    }
}

fn add_system(steps: &mut Vec<Step>) {
    for folder in SYSTEM_FOLDERS {
        let path = Path::new(folder);
        match fs::read_link(path) {
            // A link into /usr, on systems that have merged them.
            Ok(target) => steps.push(Step::Link {
                path: text(folder),
                target: text(&target),
            }),
            Err(_) => add_shown(steps, path),
        }
    }
    for folder in ["/etc", "/dev", "/proc"] {
        steps.push(Step::Folder(text(folder)));
    }
    for path in SHOWN_OF_ETC {
        add_shown(steps, Path::new(path));
    }
    for (path, content) in WRITTEN_TO_ETC {
        steps.push(Step::File {
            path: text(path),
            bytes: content.as_bytes().to_vec(),
        });
    }
    for device in DEVICES {
        steps.push(Step::Device {
            from: on_machine(Path::new(device)),
            to: text(device),
        });
    }
    for (path, target) in LINKS {
        steps.push(Step::Link {
            path: text(path),
            target: text(target),
        });
    }
    steps.push(Step::Proc(text("/proc")));
}

fn add_installations(steps: &mut Vec<Step>, installations: &[PathBuf]) {
    for installation in installations {
        let above: Vec<&Path> = installation.ancestors().skip(1).collect();
        for folder in above
            .iter()
            .rev()
            .filter(|folder| folder.parent().is_some())
        {
            steps.push(Step::Folder(text(folder)));
        }
        add_shown(steps, installation);
    }
}

/// Adds the tmpfs that the program can write to, with the task's files.
fn add_scratch(steps: &mut Vec<Step>, task: &Task<'_>) -> Result<(), SandboxError> {
    steps.push(Step::Folder(text("/scratch")));
    let bytes = task.limits.disk_bytes;
    steps.push(Step::Tmpfs {
        path: text("/scratch"),
        options: text(&format!(
            "size={bytes},nr_inodes={most},mode=755,uid=1000,gid=1000",
            most = limits::INODES_MAX
        )),
    });
    steps.push(Step::Seal);
    steps.push(Step::Become);
    for folder in [WORK, "/scratch/tmp", "/scratch/shm"] {
        steps.push(Step::Folder(text(folder)));
    }
    for (name, bytes) in task.files {
        let path = Path::new(name);
        if !is_plain(path) {
            let reason = format!("{name:?} must be a relative path without `..`");
            return Err(SandboxError::BadTask { reason });
        }
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for folder in above
            .iter()
            .rev()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            steps.push(Step::Folder(text(&Path::new(WORK).join(folder))));
        }
        steps.push(Step::File {
            path: text(&Path::new(WORK).join(path)),
            bytes: bytes.to_vec(),
        });
    }
    Ok(())
}

/// Shows a file or folder at its own path. Paths that the machine lacks are left out.
fn add_shown(steps: &mut Vec<Step>, path: &Path) {
    let Ok(metadata) = path.metadata() else {
        return;
    };
    if metadata.is_dir() {
        steps.push(Step::Folder(text(path)));
    }
    // Links are followed here, because init would look up an absolute target in the wrong root.
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    steps.push(Step::Show {
        from: on_machine(&real),
        to: text(path),
    });
}

/// Returns whether a name stays in the folder that it is relative to.
fn is_plain(path: &Path) -> bool {
    let is_name = |part| matches!(part, Component::Normal(_));
    let has_zero = path.as_os_str().as_bytes().contains(&0);
    !has_zero && path.components().count() > 0 && path.components().all(is_name)
}

fn command(words: &[&str], tools: &Tools) -> Result<(CString, Vec<CString>), SandboxError> {
    let bad = |reason: &str| SandboxError::BadTask {
        reason: reason.to_owned(),
    };
    let Some(name) = words.first() else {
        return Err(bad("the command is empty"));
    };
    if words.iter().map(|word| word.len()).sum::<usize>() > limits::COMMAND_BYTES_MAX {
        return Err(bad(&format!(
            "the command is longer than {most} bytes",
            most = limits::COMMAND_BYTES_MAX
        )));
    }
    let arguments: Result<Vec<CString>, _> = words.iter().map(|word| CString::new(*word)).collect();
    let arguments = arguments.map_err(|_| bad("the command contains a zero byte"))?;
    let program = match name.contains('/') {
        true => PathBuf::from(name),
        false => tools.locate(name).ok_or_else(|| SandboxError::NoProgram {
            name: (*name).to_owned(),
        })?,
    };
    Ok((text(&program), arguments))
}

fn environment(tools: &Tools) -> Vec<CString> {
    let folders: Vec<String> = tools
        .search_path()
        .map(|folder| folder.display().to_string())
        .collect();
    let path = format!("PATH={}", folders.join(":"));
    let others = ENVIRONMENT
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    [path]
        .into_iter()
        .chain(others)
        .map(|line| text(&line))
        .collect()
}

/// Returns the path at which init reaches this path of the machine while it builds.
fn on_machine(path: &Path) -> CString {
    let relative = path.strip_prefix("/").unwrap_or(path);
    text(&Path::new(MACHINE).join(relative))
}

/// Converts paths of the machine and our own words, neither of which holds a zero byte.
fn text(value: &(impl AsRef<OsStr> + ?Sized)) -> CString {
    CString::new(value.as_ref().as_bytes()).expect("no zero byte")
}
