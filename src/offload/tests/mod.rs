//! Tests beside the model tests, which compile the files themselves and so must not find tests in
//! them.

mod fair_queue;
mod shares;
mod workers;
