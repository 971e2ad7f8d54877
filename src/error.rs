//! The error catalogue: every way in which the daemon refuses or fails, in one table.
//!
//! A code is a stable word. The same word is in the JSON response, the log field, the metric label
//! and (as its reason) in a gRPC status, so that what a user reports can be found in every other
//! place. `docs/errors.md` is generated from this table and a test keeps the two equal.

use std::fmt;
use std::time::Duration;

/// The families in the `type` member of an error object, in the OpenAI API's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    InvalidRequest,
    Authentication,
    Permission,
    NotFound,
    RateLimit,
    Server,
    Overloaded,
    Timeout,
}

impl Family {
    pub const fn as_str(self) -> &'static str {
        match self {
            Family::InvalidRequest => "invalid_request_error",
            Family::Authentication => "authentication_error",
            Family::Permission => "permission_error",
            Family::NotFound => "not_found_error",
            Family::RateLimit => "rate_limit_error",
            Family::Server => "server_error",
            Family::Overloaded => "overloaded_error",
            Family::Timeout => "timeout_error",
        }
    }
}

macro_rules! catalogue {
    ($(
        $(#[doc = $help:literal])+
        $name:ident = $word:literal, $status:literal, $grpc:literal, $family:ident;
    )+) => {
        /// One row of the catalogue.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ErrorCode { $($(#[doc = $help])+ $name),+ }

        impl ErrorCode {
            /// Every code, in the order of the table; `code as usize` is its index.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name),+];

            /// Returns the stable word.
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $word),+ }
            }

            /// Returns the HTTP status code (RFC 9110, section 15).
            pub const fn status(self) -> u16 {
                match self { $(ErrorCode::$name => $status),+ }
            }

            /// Returns the gRPC status code (grpc/grpc `doc/statuscodes.md`).
            pub const fn grpc_status(self) -> u8 {
                match self { $(ErrorCode::$name => $grpc),+ }
            }

            pub const fn family(self) -> Family {
                match self { $(ErrorCode::$name => Family::$family),+ }
            }

            /// Returns what happened and what the client can do: the text of `docs/errors.md`.
            pub const fn help(self) -> &'static str {
                match self { $(ErrorCode::$name => concat!($($help),+)),+ }
            }
        }
    };
}

catalogue! {
    /// The body is not valid JSON; the message has line and column. Send one JSON object in UTF-8.
    InvalidJson = "invalid_json", 400, 3, InvalidRequest;
    /// The body is not the Protobuf message that the route expects; `src/proto/` has the schema.
    InvalidProtobuf = "invalid_protobuf", 400, 3, InvalidRequest;
    /// The request as a whole is wrong: for example, it has a body on a route that expects none.
    InvalidRequest = "invalid_request", 400, 3, InvalidRequest;
    /// A field has the wrong type, an unknown name or a value out of range; `param` names it.
    InvalidParameter = "invalid_parameter", 400, 3, InvalidRequest;
    /// Prompt and `max_tokens` together exceed the model's context. Shorten one of them.
    ContextLengthExceeded = "context_length_exceeded", 400, 3, InvalidRequest;
    /// The bytes are not valid HTTP (RFC 9112); the connection is closed.
    MalformedHttp = "malformed_http", 400, 3, InvalidRequest;
    /// The bytes are not valid gRPC: a broken message prefix, too few or too many messages, or an
    /// invalid `grpc-timeout`.
    MalformedGrpc = "malformed_grpc", 400, 13, InvalidRequest;
    /// No key was sent. Send `Authorization: Bearer KEY`.
    MissingCredentials = "missing_credentials", 401, 16, Authentication;
    /// The key is unknown or revoked. Create one with `autoglmd key create`.
    InvalidKey = "invalid_key", 401, 16, Authentication;
    /// The key has expired. Replace it with `autoglmd key rotate`.
    ExpiredKey = "expired_key", 401, 16, Authentication;
    /// The key lacks the scope that this route needs; the message names it.
    InsufficientScope = "insufficient_scope", 403, 7, Permission;
    /// The request has no key and needs none, but its host is neither this machine nor in
    /// `server.hosts`, or a page of another site sent it. Use `localhost`, or add the host to
    /// `server.hosts`.
    ForbiddenOrigin = "forbidden_origin", 403, 7, Permission;
    /// Nothing is served at this path.
    NotFound = "not_found", 404, 5, NotFound;
    /// No model of this name is loaded; `GET /api/v1/models` lists them.
    ModelNotFound = "model_not_found", 404, 5, NotFound;
    /// The path exists but does not accept this method; `Allow` lists the methods that it accepts.
    MethodNotAllowed = "method_not_allowed", 405, 12, InvalidRequest;
    /// The daemon can produce none of the media types in `Accept` or none of the codings in
    /// `Accept-Encoding`.
    NotAcceptable = "not_acceptable", 406, 3, InvalidRequest;
    /// The request did not arrive in time; see `limits.header_timeout` and `limits.body_timeout`.
    RequestTimeout = "request_timeout", 408, 4, Timeout;
    /// Another request was sent with the same `Idempotency-Key`. Use a new key for each request.
    Conflict = "conflict", 409, 10, InvalidRequest;
    /// The body is larger than `limits.max_body`, before or after inflating it, or it inflates to
    /// more than `limits.max_inflate_ratio` times its size.
    BodyTooLarge = "body_too_large", 413, 8, InvalidRequest;
    /// The request target is longer than `limits.max_uri`.
    UriTooLong = "uri_too_long", 414, 3, InvalidRequest;
    /// The body's `Content-Type` or `Content-Encoding` is not supported; the response's
    /// `Accept-Encoding` lists the codings that are.
    UnsupportedMediaType = "unsupported_media_type", 415, 3, InvalidRequest;
    /// `Expect` has a value other than `100-continue`, the only one that is supported.
    ExpectationFailed = "expectation_failed", 417, 3, InvalidRequest;
    /// The head is larger than `limits.max_head` or has more than `limits.max_headers` fields.
    HeadersTooLarge = "headers_too_large", 431, 8, InvalidRequest;
    /// The key or the address has used up its requests per minute; wait for `Retry-After`.
    RateLimited = "rate_limited", 429, 8, RateLimit;
    /// The key has used up its tokens per minute; wait for `Retry-After`.
    TokenBudgetExceeded = "token_budget_exceeded", 429, 8, RateLimit;
    /// The key has reached its limit of concurrent requests; wait for one to end.
    TooManyConcurrent = "too_many_concurrent", 429, 8, RateLimit;
    /// A bug in the daemon. Find its log lines by the request id.
    Internal = "internal", 500, 13, Server;
    /// The model's engine failed on this request. Send the request again.
    EngineFailed = "engine_failed", 500, 13, Server;
    /// The request uses a feature of HTTP that this daemon does not implement.
    NotImplemented = "not_implemented", 501, 12, InvalidRequest;
    /// gRPC needs HTTP/2, but the request came over HTTP/1.
    HttpVersionNotSupported = "http_version_not_supported", 505, 12, InvalidRequest;
    /// Reserved; this version does not send it. An upstream server failed or sent an invalid
    /// response.
    UpstreamFailed = "upstream_failed", 502, 14, Server;
    /// The engine's queue is full; `Retry-After` is computed from its measured speed.
    QueueFull = "queue_full", 503, 14, Overloaded;
    /// The memory for incomplete requests and unread responses is in use (`limits.max_buffered`);
    /// wait for `Retry-After`. A request that arrives in one piece needs none of it.
    BuffersFull = "buffers_full", 503, 14, Overloaded;
    /// The daemon's store fails, or does not respond in time. `/readyz` names the cause; wait for
    /// `Retry-After`.
    StoreUnavailable = "store_unavailable", 503, 14, Overloaded;
    /// The model is still loading; `/readyz` reports when it is ready.
    ModelLoading = "model_loading", 503, 14, Overloaded;
    /// The daemon is stopping and accepts no new work. Send the request elsewhere.
    Draining = "draining", 503, 14, Overloaded;
    /// A stream that is not a generation reached its maximum duration. Open a new one.
    StreamExpired = "stream_expired", 503, 14, Overloaded;
    /// At the engine's measured speed the response cannot begin within `timeout`.
    DeadlineUnmeetable = "deadline_unmeetable", 503, 14, Overloaded;
    /// `timeout` expired during generation; `partial` holds the text written until then.
    GenerationTimeout = "generation_timeout", 504, 4, Timeout;
    /// Reserved; this version does not send it. An upstream server did not respond in time.
    UpstreamTimeout = "upstream_timeout", 504, 4, Timeout;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error on its way to a client: a code, and the details of its case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub code: ErrorCode,
    /// One or two sentences: what was wrong, what is accepted, what to do.
    pub message: String,
    /// The field of the request that caused it, as a JSON path such as `context[2].path`.
    pub param: Option<String>,
    /// When a retry may succeed, in milliseconds from now; also sent as `Retry-After`.
    pub retry_after_ms: Option<u64>,
    /// The text generated until the failure, for `generation_timeout`.
    pub partial: Option<String>,
}

/// Whole milliseconds, rounded up: a client that waits this long has waited long enough.
pub fn milliseconds_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        let message = message.into();
        ApiError {
            code,
            message,
            param: None,
            retry_after_ms: None,
            partial: None,
        }
    }

    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> ApiError {
        self.param = Some(param.into());
        self
    }

    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> ApiError {
        self.retry_after_ms = Some(milliseconds_up(wait));
        self
    }

    #[must_use]
    pub fn with_partial(mut self, partial: impl Into<String>) -> ApiError {
        self.partial = Some(partial.into());
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_of_a_code_is_its_discriminant_and_words_are_unique() {
        let mut words = std::collections::HashSet::new();
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(*code as usize, index);
            assert!(
                words.insert(code.as_str()),
                "{code} stands twice in the table"
            );
            assert!((400..600).contains(&code.status()));
            assert!(!code.help().is_empty());
        }
    }
}
