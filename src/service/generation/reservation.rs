//! Tokens taken out of a key's bucket before a job, and corrected after it.

use crate::config;
use crate::core::Moment;
use crate::core::bucket::Rate;
use crate::error::{ApiError, ErrorCode};
use crate::keys::KeyRecord;
use crate::leases::{Draw, Leases, Reservation, Unit};
use crate::limits::engine as engine_limits;
use crate::service::call::Call;

/// The possible cost of one job, taken in advance.
#[derive(Clone, Debug)]
pub struct Reserved(Reservation);

impl Reserved {
    /// Takes the possible cost of a prompt of `prompt_bytes` and a response of `max_tokens` out of
    /// the key's tokens per minute. `None` if those are not bounded.
    pub fn take(
        (leases, limits): (&Leases, &config::RateLimit),
        call: &mut Call,
        prompt_bytes: usize,
        max_tokens: u32,
        now: Moment,
    ) -> Result<Option<Reserved>, ApiError> {
        let Some(caller) = &call.caller else {
            return Ok(None);
        };
        let rate = token_rate(limits, &caller.record);
        if !rate.is_bounded() {
            return Ok(None);
        }
        let prompt_tokens = (prompt_bytes / engine_limits::BYTES_PER_TOKEN) as u32;
        let tokens = prompt_tokens.saturating_add(max_tokens);
        let draw = Draw {
            unit: Unit::Tokens,
            rate,
            units: tokens,
            percent: limits.lease,
        };
        match leases.reserve(caller, draw, now) {
            Ok((level, reservation)) => {
                call.tokens = Some(level);
                Ok(Some(Reserved(reservation)))
            }
            Err(exceeded) => {
                call.tokens = Some(exceeded.level);
                let message = format!(
                    "this request may use {tokens} tokens, but of {} per minute {} are left; wait \
                     for `Retry-After`, or lower `max_tokens`",
                    rate.per_minute, exceeded.level.remaining
                );
                Err(ApiError::new(ErrorCode::TokenBudgetExceeded, message)
                    .with_retry_after(exceeded.retry_after))
            }
        }
    }

    /// Replaces the reservation by the tokens used.
    pub fn reconcile(&self, call: &Call, used: u32, now: Moment) {
        if let Some(caller) = &call.caller {
            self.0.reconcile(caller, used, now);
        }
    }
}

/// Returns how many tokens per minute a key may use.
fn token_rate(limits: &config::RateLimit, record: &KeyRecord) -> Rate {
    let per_minute = if limits.enabled {
        record.tokens_per_minute.unwrap_or(limits.tokens_per_minute)
    } else {
        0
    };
    Rate::new(per_minute, per_minute)
}
