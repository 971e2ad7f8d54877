//! Bounds of what commands print.

/// Bytes between two lines of progress where the total is not known.
pub const PROGRESS_LINE_BYTES: u64 = 64 * 1024 * 1024;
