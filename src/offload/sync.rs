//! The primitives that [`super::mailbox`] and [`super::workers`] are built from, named in one place
//! so that their model tests can compile the same files against loom's.

pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
