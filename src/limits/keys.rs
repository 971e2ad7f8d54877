//! Bounds of API keys.

use std::time::Duration;

/// Random bytes in a key: 256 bits, beyond any search.
pub const RANDOM_BYTES: usize = 32;

/// Bytes of a key's text: `agk_`, then 32 bytes as base64url without padding.
pub const TEXT_BYTES: usize = 4 + (RANDOM_BYTES * 4).div_ceil(3);

const _: () = assert!(TEXT_BYTES == 47);

/// Random bytes in a key's public id: 48 bits make a clash among a million keys unlikely (one in
/// five hundred), and the store refuses a second one.
pub const ID_RANDOM_BYTES: usize = 6;

/// Shards of each index of the ring: one for each value of a byte. A change copies one shard of
/// each index: 4,000 pointers of a million. Shards that are empty are one.
pub const RING_SHARDS: usize = 256;

/// The weight of a key that was given none.
pub const WEIGHT_DEFAULT: u16 = 1;

/// The largest weight of a key. A hundred times the share of another key is as good as all of the
/// engine; more would only make the other key wait longer for its turn.
pub const WEIGHT_MAX: u16 = 100;

/// Characters of a key's own name: it must fit into a line of `key list`.
pub const NAME_CHARACTERS_MAX: usize = 64;

/// How long the webhook secret before a rotation signs as well: a day, so that receivers can be
/// given the new one at their owners' times.
pub const WEBHOOK_GRACE: Duration = Duration::from_secs(24 * 3_600);
