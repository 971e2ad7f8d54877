//! The kernel's data about a process, and the few system calls that tests need.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use socket2::SockRef;

/// A process, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process(pub u32);

impl Process {
    /// Returns resident memory in bytes.
    pub fn resident_bytes(self) -> u64 {
        self.status_number("VmRSS") * 1024
    }

    /// Returns the most resident memory that the process has had so far.
    pub fn peak_bytes(self) -> u64 {
        self.status_number("VmHWM") * 1024
    }

    /// Returns the resident memory that is the process's own: heap, stacks and page tables'
    /// contents, without mapped files such as the model and the program.
    pub fn anonymous_bytes(self) -> u64 {
        self.status_number("RssAnon") * 1024
    }

    pub fn threads(self) -> u64 {
        self.status_number("Threads")
    }

    pub fn descriptors(self) -> usize {
        std::fs::read_dir(self.proc("fd"))
            .expect("the process lives")
            .count()
    }

    /// Returns the user and system time used so far, in steps of 10 ms.
    pub fn cpu_time(self) -> Duration {
        let (user, system) = self.times();
        user + system
    }

    /// Returns the same in two parts: in the program, and in the kernel for it.
    pub fn times(self) -> (Duration, Duration) {
        let text = std::fs::read_to_string(self.proc("stat")).expect("the process lives");
        // The second field is the name in parentheses and may hold spaces; `utime` and `stime`
        // are the 14th and 15th (proc_pid_stat(5)).
        let (_, after_name) = text.rsplit_once(')').expect("a stat line has a name");
        let mut fields = after_name.split_whitespace().skip(11);
        let mut time = || {
            let ticks: u64 = fields
                .next()
                .and_then(|field| field.parse().ok())
                .expect("ticks are a number");
            // USER_HZ is 100 on every architecture that Linux presents to user space.
            Duration::from_millis(ticks * 10)
        };
        (time(), time())
    }

    /// Returns name and niceness of each thread.
    pub fn niceness_of_threads(self) -> Vec<(String, i32)> {
        let threads = std::fs::read_dir(self.proc("task")).expect("the process lives");
        let read = |folder: PathBuf| -> Option<(String, i32)> {
            let name = std::fs::read_to_string(folder.join("comm")).ok()?;
            let text = std::fs::read_to_string(folder.join("stat")).ok()?;
            // The 19th field, of which the second is the name: see `times`.
            let (_, after_name) = text.rsplit_once(')')?;
            let niceness = after_name.split_whitespace().nth(16)?.parse().ok()?;
            Some((name.trim().to_owned(), niceness))
        };
        // A thread that has ended meanwhile has no files.
        threads
            .filter_map(|entry| read(entry.ok()?.path()))
            .collect()
    }

    pub fn is_alive(self) -> bool {
        self.proc("stat").exists()
    }

    pub fn signal(self, signal: i32) {
        // SAFETY: kill(2) reads no memory of ours; the id is that of a child not yet waited for.
        let result = unsafe { libc::kill(self.0 as i32, signal) };
        assert_eq!(result, 0, "kill: {}", io::Error::last_os_error());
    }

    /// Sets the soft and hard limit of open descriptors of a running process.
    pub fn limit_descriptors(self, count: u64) {
        let limit = libc::rlimit {
            rlim_cur: count,
            rlim_max: count,
        };
        // SAFETY: the new limit outlives the call, and a null old limit is allowed.
        let result = unsafe {
            libc::prlimit(
                self.0 as i32,
                libc::RLIMIT_NOFILE,
                &raw const limit,
                std::ptr::null_mut(),
            )
        };
        assert_eq!(result, 0, "prlimit: {}", io::Error::last_os_error());
    }

    fn status_number(self, name: &str) -> u64 {
        let text = std::fs::read_to_string(self.proc("status")).expect("the process lives");
        let line = text
            .lines()
            .find(|line| line.split(':').next() == Some(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1));
        value
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("no {name}"))
    }

    fn proc(self, entry: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{entry}", self.0))
    }
}

/// How many of a process's connected TCP sockets have `TCP_NODELAY` set, and how many not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoDelay {
    pub set: usize,
    pub unset: usize,
}

/// Inspects the sockets of another process through duplicates of its descriptors.
pub fn count_nodelay(process: Process) -> io::Result<NoDelay> {
    // SAFETY: pidfd_open(2) takes two integers and returns a new descriptor or -1.
    let process_descriptor = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, process.0, 0) })?;
    let mut count = NoDelay::default();
    for entry in std::fs::read_dir(process.proc("fd"))? {
        let entry = entry?;
        let is_socket = std::fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        let number: Option<i32> = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|_| is_socket) else {
            continue;
        };
        let raw = process_descriptor.as_raw_fd();
        // SAFETY: pidfd_getfd(2) takes three integers and returns a new descriptor or -1.
        let socket = owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, raw, number, 0) })?;
        let socket = SockRef::from(&socket);
        if socket
            .peer_addr()
            .is_ok_and(|peer| peer.is_ipv4() || peer.is_ipv6())
        {
            match socket.tcp_nodelay()? {
                true => count.set += 1,
                false => count.unset += 1,
            }
        }
    }
    Ok(count)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(result).ok().filter(|number| *number >= 0);
    let descriptor = descriptor.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just created this descriptor for us, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Sets this process's limit of open descriptors to at least `count`, or panics with the reason.
pub fn allow_descriptors(count: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the kernel to write to.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0, "getrlimit: {}", io::Error::last_os_error());
    if limit.rlim_cur >= count {
        return;
    }
    assert!(
        limit.rlim_max >= count,
        "needs `ulimit -Hn` of {count}, has {}",
        limit.rlim_max
    );
    limit.rlim_cur = count;
    // SAFETY: `limit` is initialised and outlives the call.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0, "setrlimit: {}", io::Error::last_os_error());
}

/// Restricts this process, and the children that it starts from now on, to these cores.
pub fn pin_to_cores(process: Process, cores: &[usize]) -> io::Result<()> {
    // SAFETY: a `cpu_set_t` is plain bits; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores {
        // SAFETY: CPU_SET writes inside `set` for any core below CPU_SETSIZE.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    // SAFETY: the set outlives the call and its size is passed along.
    let result = unsafe {
        libc::sched_setaffinity(
            process.0 as i32,
            size_of::<libc::cpu_set_t>(),
            &raw const set,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
