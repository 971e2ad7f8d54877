//! The bounds of a generation's fields, and the errors of values outside them.
//!
//! Shared by the JSON form and the Protobuf form of a request, so that both have the same bounds
//! and the same messages.

use std::time::Duration;

use crate::config::Limits;
use crate::engine::language::{LANGUAGES, Language, language};
use crate::error::{ApiError, ErrorCode};
use crate::service::excerpt::excerpt;
use crate::service::router::{Route, Row};

/// Returns the bounds of a durable job. No client waits for it, so without a `timeout` it may take
/// as long as any.
pub fn of_jobs(limits: &Limits) -> Limits {
    Limits {
        default_request_timeout: limits.max_request_timeout,
        ..limits.clone()
    }
}

/// Refuses a callback of a request that has its response anyway.
pub fn check_callback_url(url: Option<&str>, row: Option<&Row>) -> Result<(), ApiError> {
    match row.map(|row| row.route) {
        Some(Route::Jobs | Route::RpcSubmitJob) => Ok(()),
        _ if url.is_none() => Ok(()),
        _ => {
            let problem = "is for durable jobs: send it to `POST /api/v1/jobs` or `SubmitJob`";
            Err(wrong("callback_url", problem))
        }
    }
}

pub fn no_prompt() -> ApiError {
    wrong("prompt", "is required")
}

/// An interval of numbers.
pub struct Interval {
    low: f64,
    /// Whether `low` itself is excluded.
    low_is_excluded: bool,
    high: f64,
}

pub const TEMPERATURE: Interval = Interval::closed(0.0, 2.0);
pub const MIN_P: Interval = Interval::closed(0.0, 1.0);
pub const PENALTY: Interval = Interval::closed(-2.0, 2.0);
pub const TOP_P: Interval = Interval::above(0.0, 1.0);
pub const REPEAT_PENALTY: Interval = Interval::above(0.0, 2.0);

impl Interval {
    const fn closed(low: f64, high: f64) -> Interval {
        Interval {
            low,
            low_is_excluded: false,
            high,
        }
    }

    const fn above(low: f64, high: f64) -> Interval {
        Interval {
            low,
            low_is_excluded: true,
            high,
        }
    }

    pub fn contains(&self, number: f64) -> bool {
        let above_low = if self.low_is_excluded {
            number > self.low
        } else {
            number >= self.low
        };
        above_low && number <= self.high
    }
}

/// The error of a number outside its interval.
pub fn out_of_interval(field: &str, interval: &Interval, given: &str) -> ApiError {
    let low = if interval.low_is_excluded {
        "above"
    } else {
        "from"
    };
    let Interval {
        low: from, high, ..
    } = interval;
    let problem = format!("must be {low} {from} to {high}, not {given}");
    wrong(field, &problem)
}

/// Maps the value that some clients send for "choose one" to no seed.
pub fn known_seed(seed: i64) -> Option<i64> {
    (seed != -1).then_some(seed)
}

/// The error of an integer outside its range.
pub fn out_of_range<T: std::fmt::Display>(field: &str, low: T, high: T, given: &str) -> ApiError {
    let problem = format!("must be an integer from {low} to {high}, not {given}");
    wrong(field, &problem)
}

pub fn check_text(field: &str, text: &str, low: usize, high: usize) -> Result<(), ApiError> {
    if text.len() > high {
        let problem = format!("is {} bytes long; at most {high} are accepted", text.len());
        return Err(wrong(field, &problem));
    }
    if low > 0 && text.trim_start().is_empty() {
        return Err(wrong(field, "must not be empty"));
    }
    Ok(())
}

/// Returns a timeout within its range; `given` is the client's text.
pub fn checked_timeout(
    field: &str,
    milliseconds: Option<u32>,
    limits: &Limits,
    given: impl FnOnce() -> String,
) -> Result<Duration, ApiError> {
    let most = u32::try_from(limits.max_request_timeout.as_millis()).unwrap_or(u32::MAX);
    match milliseconds {
        Some(milliseconds) if (1..=most).contains(&milliseconds) => {
            Ok(Duration::from_millis(milliseconds.into()))
        }
        _ => {
            let given = given();
            let problem = format!(
                "must be an integer of milliseconds from 1 to {most} \
                 (`limits.max_request_timeout`), not {given}"
            );
            Err(wrong(field, &problem))
        }
    }
}

pub fn language_of(name: &str) -> Result<&'static Language, ApiError> {
    language(name.trim()).ok_or_else(|| {
        let names: Vec<_> = LANGUAGES.iter().map(|language| language.name).collect();
        let (name, names) = (excerpt(name), names.join(", "));
        let problem = format!("must be one of {names}, not `{name}`");
        wrong("language", &problem)
    })
}

pub fn empty_stop(field: &str) -> ApiError {
    wrong(
        field,
        "must not be empty, because it would end every response at once",
    )
}

pub fn too_many(field: &str, most: usize) -> ApiError {
    wrong(field, &format!("has more than {most} items"))
}

pub fn wrong(field: &str, problem: &str) -> ApiError {
    let message = format!("`{field}` {problem}");
    ApiError::new(ErrorCode::InvalidParameter, message).with_param(field)
}
