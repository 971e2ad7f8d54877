//! How a short-lived child process confines itself: it ends with its parent, takes a bounded time,
//! leaves no core file, and is the first to be killed when memory runs out.

use std::fs;
use std::io;

/// Confines this process. Safe to call when it has just started.
pub fn confine(cpu_seconds: u64) -> io::Result<()> {
    // SAFETY: prctl(2) takes numbers here. The kernel sends the signal when the thread of the
    // parent that started this process ends; that thread waits for this process.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit(libc::RLIMIT_CORE, 0)?;
    limit(libc::RLIMIT_CPU, cpu_seconds)?;
    // Raising it needs no privilege. Without /proc the kernel chooses by size, which is as good.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

fn limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: setrlimit(2) only reads the structure, which lives until it returns.
    match unsafe { libc::setrlimit(resource, &raw const limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
