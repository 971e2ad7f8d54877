//! The operating system: the only `unsafe` beside the engine's FFI.
//!
//! Each file wraps one kernel or service manager interface in a safe type that owns its
//! descriptor. Nothing here knows HTTP, engines or configuration files.

pub mod activation;
mod cgroup;
pub mod epoll;
pub mod file;
pub mod memory;
pub mod names;
pub mod namespace;
pub mod notify;
pub mod process;
pub mod rlimit;
pub mod room;
pub mod signals;
pub mod slices;
pub mod socket;
pub mod wait;
pub mod watch;
pub mod worker;
