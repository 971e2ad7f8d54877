//! The `Date` field's value, formatted once per second instead of once per response.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::core::Moment;
use crate::http::http1::encode;

/// The text, and how long it is valid.
pub struct DateCache {
    text: [u8; 29],
    valid_until: Moment,
}

impl DateCache {
    pub const fn new() -> DateCache {
        DateCache {
            text: [b' '; 29],
            valid_until: Moment::ZERO,
        }
    }

    /// Returns the wall clock's second at `now`, in the format of RFC 9110, section 5.6.7.
    pub fn at(&mut self, now: Moment) -> &[u8; 29] {
        if now >= self.valid_until {
            let since_1970 = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            self.text = encode::http_date(since_1970.as_secs());
            let rest_of_second = 1_000_000_000 - since_1970.subsec_nanos();
            self.valid_until = now + Duration::from_nanos(u64::from(rest_of_second));
        }
        &self.text
    }
}
