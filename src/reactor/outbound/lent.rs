//! The data that a reactor lends its outbound side for one call. None of it may be kept.

use crate::core::Moment;
use crate::core::buffered::Account;
use crate::core::pool::BufferPool;

/// See the file's head.
pub struct Lent<'a, S> {
    pub system: &'a mut S,
    pub pool: &'a mut BufferPool,
    pub account: &'a Account,
    pub scratch: &'a mut [u8],
    /// Remaining handshake steps in this turn of the loop.
    pub handshake_steps: &'a mut u32,
    pub now: Moment,
}
