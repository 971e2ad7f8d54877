//! The JSON object that every error of the native API has.

use serde::Serialize;

use crate::error::ApiError;
use crate::service::call::Call;

/// The body of an error response.
#[derive(Serialize)]
pub struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

impl<'a> ErrorBody<'a> {
    pub fn new(error: &'a ApiError, call: &'a Call) -> ErrorBody<'a> {
        let error = ErrorObject {
            message: &error.message,
            r#type: error.code.family().as_str(),
            param: error.param.as_deref(),
            code: error.code.as_str(),
            request_id: call.request_id.as_str(),
            retry_after_ms: error.retry_after_ms,
            partial: error.partial.as_deref(),
        };
        ErrorBody { error }
    }
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partial: Option<&'a str>,
}
