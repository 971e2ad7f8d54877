//! System calls as the child makes them: the result is `errno`, because nothing may allocate here.

use libc::{c_int, c_long};

/// The result of a system call, or its `errno`.
pub(super) type Done = Result<(), c_int>;

pub(super) fn check(result: impl Into<c_long>) -> Done {
    match result.into() {
        result if result < 0 => Err(errno()),
        _ => Ok(()),
    }
}

pub(super) fn errno() -> c_int {
    // SAFETY: the C library returns the address of this thread's variable.
    unsafe { *libc::__errno_location() }
}
