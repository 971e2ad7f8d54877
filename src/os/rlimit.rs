//! The bound on open descriptors: `RLIMIT_NOFILE` (getrlimit(2)).
//!
//! The soft bound is 1,024 nearly everywhere, for the sake of programs that use select(2). The
//! daemon does not use it, so it raises the soft bound to the hard one.

use std::io;

/// The bounds after raising.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// In force now.
    pub soft: u64,
    /// The highest soft bound that needs no privilege.
    pub hard: u64,
    /// The soft bound that the process was started with.
    pub before: u64,
}

/// Raises the soft bound to the hard one. If that fails, the result still reports the bound in
/// force.
pub fn raise_descriptor_limit() -> io::Result<DescriptorLimit> {
    let before = read()?;
    let wanted = libc::rlimit {
        rlim_cur: before.rlim_max,
        rlim_max: before.rlim_max,
    };
    // SAFETY: setrlimit(2) only reads the structure, which lives until it returns.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } == 0;
    let soft = if raised {
        wanted.rlim_cur
    } else {
        before.rlim_cur
    };
    Ok(DescriptorLimit {
        soft,
        hard: before.rlim_max,
        before: before.rlim_cur,
    })
}

fn read() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: getrlimit(2) writes the structure, which lives until it returns.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raising_twice_finds_the_bound_raised() {
        let first = raise_descriptor_limit().unwrap();
        let second = raise_descriptor_limit().unwrap();
        assert_eq!(first.soft, first.hard);
        assert_eq!(second.before, first.hard);
        assert_eq!(read().unwrap().rlim_cur, first.hard);
    }
}
