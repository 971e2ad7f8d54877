//! Numbers that look random: enough to make ids unique, and not to guard anything.

use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and a mix for each number, full period.
#[derive(Clone, Debug)]
pub struct SplitMix64 {
    state: u64,
    /// Added to every number: two threads' sequences differ even if their states meet.
    stream: u64,
}

impl SplitMix64 {
    /// The same seeds produce the same numbers.
    pub const fn new(state: u64, stream: u64) -> SplitMix64 {
        SplitMix64 { state, stream }
    }

    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state ^ self.stream;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// Draws a seed from the kernel. Its source fails only if a sandbox forbids both getrandom(2) and
/// /dev/urandom; then the time and a stack address distinguish generators.
pub fn random_seed() -> u64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let fallback = elapsed.as_nanos() as u64 ^ (&raw const elapsed as u64).rotate_left(32);
    getrandom::u64().unwrap_or(fallback)
}
