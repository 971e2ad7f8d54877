//! A refused or failed job as an error of the catalogue.
//!
//! Owns the messages of refusals, and the time after which a client should try again.

use crate::engine::{FailReason, Failed, Refused};
use crate::error::{ApiError, ErrorCode, Family, milliseconds_up};
use crate::limits::service as limits;
use crate::offload::CancelReason;

/// Returns the engine's refusal as an error of the catalogue.
pub fn refusal(refused: Refused) -> ApiError {
    let error = |code, message: &str| ApiError::new(code, message);
    match refused {
        Refused::QueueFull { retry_after } => {
            let message = "the engine's queue is full; wait for `Retry-After`";
            error(ErrorCode::QueueFull, message).with_retry_after(retry_after)
        }
        Refused::TooLong { context_length } => {
            let message = format!(
                "the prompt is too long for the model's context of {context_length} tokens; \
                 shorten it or raise engine.context"
            );
            error(ErrorCode::ContextLengthExceeded, &message)
        }
        Refused::DeadlineUnmeetable { estimated } => {
            let estimated_ms = milliseconds_up(estimated);
            let message = format!(
                "the response cannot begin within `timeout`: at the engine's measured speed it \
                 would take {estimated_ms} ms; raise `timeout` or try again later"
            );
            error(ErrorCode::DeadlineUnmeetable, &message).with_retry_after(estimated)
        }
        Refused::Loading => {
            let message = "the model is still loading; `/readyz` reports when it is ready";
            error(ErrorCode::ModelLoading, message).with_retry_after(limits::LOADING_RETRY_AFTER)
        }
        Refused::Unavailable(why) => {
            let message = format!("the engine is not available: {why}");
            error(ErrorCode::EngineFailed, &message).with_retry_after(limits::BUSY_RETRY_AFTER)
        }
        Refused::Draining => {
            let message = "the daemon is stopping; send the request elsewhere";
            error(ErrorCode::Draining, message).with_retry_after(limits::BUSY_RETRY_AFTER)
        }
    }
}

/// Returns a failed job as an error of the catalogue.
pub fn failure(failed: &Failed) -> ApiError {
    let code = match &failed.reason {
        FailReason::Refused(refused) => return refusal(refused.clone()),
        FailReason::Error(code) => *code,
        FailReason::CrowdedOut { .. } => ErrorCode::QueueFull,
        FailReason::Cancelled(CancelReason::Deadline) => ErrorCode::GenerationTimeout,
        FailReason::Cancelled(CancelReason::Drain) => ErrorCode::Draining,
        // For other reasons to cancel, the exchange is already gone, and no event finds it.
        FailReason::Cancelled(_) => ErrorCode::EngineFailed,
    };
    let error = ApiError::new(code, failed.message.as_str());
    if let FailReason::CrowdedOut { retry_after } = failed.reason {
        return error.with_retry_after(retry_after);
    }
    match code.family() {
        Family::Overloaded | Family::Timeout | Family::Server => {
            error.with_retry_after(limits::BUSY_RETRY_AFTER)
        }
        _ => error,
    }
}

/// Returns why a failed job counts as cancelled, if it does.
pub fn cancel_reason(reason: &FailReason, code: ErrorCode) -> Option<CancelReason> {
    match reason {
        FailReason::Cancelled(reason) => Some(*reason),
        FailReason::Error(_) => {
            (code == ErrorCode::GenerationTimeout).then_some(CancelReason::Deadline)
        }
        FailReason::CrowdedOut { .. } | FailReason::Refused(_) => None,
    }
}
