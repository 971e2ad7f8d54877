//! Finds the key of a request.
//!
//! Owns the way from header fields to a key's holder. Must never put a presented key into a message
//! or a log line: a key sent by mistake is often a valid secret of another service.

use std::sync::Arc;

use crate::config::{ClientIdentity, ClientKey};
use crate::core::UnixMillis;
use crate::error::{ApiError, ErrorCode};
use crate::http::Request;
use crate::keys::{Holder, KeyRecord, KeyRing, Scopes, Standing};

/// Returns the holder of the valid key that a request presents or, if it presents none, of the key
/// that its client's certificate stands for.
pub fn authenticate<'r>(
    request: &Request<'_>,
    client: Option<&ClientIdentity>,
    known: &[ClientKey],
    keys: &'r KeyRing,
    wall_clock: fn() -> UnixMillis,
) -> Result<&'r Arc<Holder>, ApiError> {
    let holder = match credentials(request) {
        Ok(presented) => keys.find(presented).ok_or_else(|| {
            let message = "unknown key; create one with `autoglmd key create`";
            ApiError::new(ErrorCode::InvalidKey, message)
        })?,
        // A key that was sent but cannot be read is an error, even with a certificate.
        Err(missing) if sends_credentials(request) => return Err(missing),
        Err(missing) => match client.and_then(|client| key_of_client(client, known, keys)) {
            Some(holder) => holder,
            None => return Err(missing),
        },
    };
    let record = &holder.record;
    // Most keys never expire, so most requests need no clock.
    let now = record
        .expires_at
        .map_or(0, |_| wall_clock().as_seconds().as_u64());
    match record.standing(now) {
        Standing::Valid => Ok(holder),
        Standing::Revoked => {
            let message = "the key was revoked; create one with `autoglmd key create`";
            Err(ApiError::new(ErrorCode::InvalidKey, message))
        }
        Standing::Expired => {
            let message = "the key has expired; run `autoglmd key rotate`";
            Err(ApiError::new(ErrorCode::ExpiredKey, message))
        }
    }
}

/// Refuses a key that lacks a scope.
pub fn require(record: &KeyRecord, scope: Scopes) -> Result<(), ApiError> {
    if record.scopes.contains(scope) {
        return Ok(());
    }
    let held = record.scopes;
    let message = format!("this route needs the scope `{scope}`, but the key has `{held}`");
    Err(ApiError::new(ErrorCode::InsufficientScope, message))
}

/// Returns the key that `server.tls.client_keys` assigns to this client. Looked up for each
/// request, so that a reload also applies to open connections.
fn key_of_client<'r>(
    client: &ClientIdentity,
    known: &[ClientKey],
    keys: &'r KeyRing,
) -> Option<&'r Arc<Holder>> {
    let pair = known.iter().find(|pair| pair.fits(client))?;
    keys.find_named(&pair.key)
}

/// Returns whether the request carries a key, or tries to.
pub fn sends_credentials(request: &Request<'_>) -> bool {
    request.header("authorization").is_some() || request.header("x-api-key").is_some()
}

/// Returns the key in `Authorization: Bearer KEY` (RFC 6750, section 2.1; schemes are compared
/// without case), otherwise the one in `x-api-key`.
fn credentials<'a>(request: &Request<'a>) -> Result<&'a str, ApiError> {
    let missing = |message: &str| ApiError::new(ErrorCode::MissingCredentials, message);
    let key = match request.header("authorization") {
        Some(value) => match value.trim().split_once([' ', '\t']) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Some(key.trim()),
            _ => request.header("x-api-key").map(str::trim),
        },
        None => request.header("x-api-key").map(str::trim),
    };
    match key {
        Some(key) if !key.is_empty() => Ok(key),
        _ if request.header("authorization").is_some() => Err(missing(
            "malformed `Authorization`; send `Authorization: Bearer KEY`",
        )),
        _ => Err(missing("no key was sent; send `Authorization: Bearer KEY`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::headers;
    use crate::http::{Method, Version};

    fn key_of(fields: &[(&str, &str)]) -> Result<String, ErrorCode> {
        let headers = headers(fields);
        let request = Request {
            method: Method::Get,
            authority: None,
            path: "/",
            query: None,
            version: Version::Http11,
            headers: &headers,
        };
        credentials(&request)
            .map(str::to_owned)
            .map_err(|error| error.code)
    }

    #[test]
    fn a_key_is_found_in_either_field() {
        for fields in [
            [("Authorization", "Bearer agk_1")],
            [("authorization", "bearer   agk_1 ")],
            [("AUTHORIZATION", "BEARER\tagk_1")],
            [("X-Api-Key", "agk_1")],
        ] {
            assert_eq!(key_of(&fields).as_deref(), Ok("agk_1"), "{fields:?}");
        }
        let both = [("authorization", "Bearer agk_1"), ("x-api-key", "agk_2")];
        assert_eq!(key_of(&both).as_deref(), Ok("agk_1"));
        let proxy = [("authorization", "Basic dTpw"), ("x-api-key", "agk_2")];
        assert_eq!(key_of(&proxy).as_deref(), Ok("agk_2"));
    }

    #[test]
    fn malformed_keys_count_as_missing_credentials() {
        for fields in [
            &[][..],
            &[("authorization", "")],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer ")],
            &[("authorization", "agk_1")],
            &[("authorization", "Basic dTpw")],
            &[("x-api-key", " ")],
        ] {
            let expected = Err(ErrorCode::MissingCredentials);
            assert_eq!(key_of(fields), expected, "{fields:?}");
        }
    }
}
