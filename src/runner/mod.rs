//! Runs durable jobs: claims them in the store, hands them to the engine, saves what they write.
//!
//! In reading order:
//!
//! * [`change`]: each change of a job in the store, as one unit of work.

pub mod change;
