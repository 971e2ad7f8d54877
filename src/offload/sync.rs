//! The primitives that [`super::mailbox`] is built from, named in one place so that its model test
//! can compile the same file against loom's.

pub use std::sync::{Arc, Mutex, MutexGuard};
