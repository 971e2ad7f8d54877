//! The parameters of a request's query, and which of them each route knows.
//!
//! Owns the check that comes before anything reads a query, and the reading itself. A parameter
//! that nothing reads is refused, like an unknown field of a body: a filter that is ignored shows
//! another list than the one that was asked for, and a purge that overlooks its `key` removes
//! everything. So is one that is given twice, because programs disagree about which of the two
//! counts, and one without a value, which is most often a script's variable that was never set.
//!
//! Names and values are compared as they are sent: nothing is percent-decoded here. The query of
//! `OPTIONS` is not looked at, because a browser asks by the whole URL of the request to come.
//!
//! Invariant: [`value`] reads only what [`check`] accepts on the same route. No other code looks
//! into [`Request::query`].

use crate::error::{ApiError, ErrorCode};
use crate::http::{Method, Request};

use super::excerpt::excerpt;
use super::router::{Route, Row};

/// A parameter that some route knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Parameter {
    Cursor,
    Fields,
    Key,
    Limit,
    Since,
    Status,
}

impl Parameter {
    pub const fn name(self) -> &'static str {
        match self {
            Parameter::Cursor => "cursor",
            Parameter::Fields => "fields",
            Parameter::Key => "key",
            Parameter::Limit => "limit",
            Parameter::Since => "since",
            Parameter::Status => "status",
        }
    }
}

/// Returns the parameters that a route knows with this method.
const fn known(route: Route, method: Method) -> &'static [Parameter] {
    use Parameter::{Cursor, Fields, Key, Limit, Since, Status};
    match (route, method) {
        (Route::Generate, _) => &[Fields],
        (Route::Jobs, Method::Get | Method::Head) => &[Status, Cursor, Limit],
        (Route::Generations, _) => &[Status, Since, Cursor, Limit],
        (Route::AdminCache, Method::Delete) => &[Key],
        _ => &[],
    }
}

/// Refuses a query that the route would not read as it is meant.
pub fn check(row: &Row, request: &Request<'_>) -> Result<(), ApiError> {
    let Some(query) = request.query else {
        return Ok(());
    };
    let known = known(row.route, request.method);
    let mut seen = 0_u32;
    for (name, value) in pairs(query) {
        let Some(&parameter) = known.iter().find(|known| known.name() == name) else {
            return Err(unknown(name, known, row, request.method));
        };
        let bit = 1 << parameter as u8;
        if seen & bit != 0 {
            return Err(invalid(
                parameter,
                format!("`{name}` is given twice; send one"),
            ));
        }
        if value.is_empty() {
            let message = format!("`{name}` has no value; send one, or leave the parameter out");
            return Err(invalid(parameter, message));
        }
        seen |= bit;
    }
    Ok(())
}

/// Returns the value of a parameter that the route knows; `None`: it was not sent.
pub fn value<'a>(request: &Request<'a>, parameter: Parameter) -> Option<&'a str> {
    let mut pairs = pairs(request.query?);
    let found = pairs.find(|(name, _)| *name == parameter.name());
    found.map(|(_, value)| value)
}

/// Reads a number that is written in digits alone.
pub fn number(text: &str) -> Option<u64> {
    // `parse` also takes a plus, which stands for a space in a query.
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok())?
}

/// Reads how many entries a page may have.
pub fn page_limit(request: &Request<'_>, default: u32, most: u32) -> Result<u32, ApiError> {
    let Some(text) = value(request, Parameter::Limit) else {
        return Ok(default);
    };
    let limit = number(text).and_then(|limit| u32::try_from(limit).ok());
    limit
        .filter(|limit| (1..=most).contains(limit))
        .ok_or_else(|| {
            let message = format!("`limit` must be a whole number from 1 to {most}");
            invalid(Parameter::Limit, message)
        })
}

/// The error of a cursor that is not one.
pub fn no_cursor() -> ApiError {
    let message = "`cursor` must be the `next_cursor` of the page before";
    invalid(Parameter::Cursor, message)
}

/// The error of a parameter's value.
pub fn invalid(parameter: Parameter, message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::InvalidParameter, message).with_param(parameter.name())
}

/// An empty pair, as between `&&`, names no parameter.
fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn unknown(name: &str, known: &[Parameter], row: &Row, method: Method) -> ApiError {
    let (name, method, path) = (excerpt(name), method.as_str(), row.path);
    let names: Vec<_> = known.iter().map(|known| known.name()).collect();
    let known = match names.is_empty() {
        true => "no parameters".to_owned(),
        false => names.join(", "),
    };
    let message = format!("unknown parameter `{name}`; {method} {path} takes {known}");
    ApiError::new(ErrorCode::InvalidParameter, message).with_param(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Version;
    use crate::service::router::{ROUTES, find};

    fn request<'a>(method: Method, path: &'a str, query: &'a str) -> Request<'a> {
        Request {
            method,
            authority: None,
            path,
            query: Some(query),
            version: Version::Http11,
            headers: &[],
        }
    }

    fn checked(method: Method, path: &str, query: &str) -> Result<(), ApiError> {
        check(find(path).unwrap(), &request(method, path, query))
    }

    /// Mutation: a route of its own in `check` that lets everything pass.
    #[test]
    fn each_route_refuses_what_it_does_not_know_with_each_of_its_methods() {
        let methods = [Method::Get, Method::Head, Method::Post, Method::Delete];
        for row in ROUTES {
            let path = row.path.replace("{id}", "1");
            for method in methods.into_iter().filter(|it| row.verbs.include(*it)) {
                let error = checked(method, &path, "statu=done").unwrap_err();
                assert_eq!(error.param.as_deref(), Some("statu"), "{method:?} {path}");
                let names = known(row.route, method).iter().map(|known| known.name());
                for name in names {
                    assert!(error.message.contains(name), "{}", error.message);
                }
                assert_eq!(checked(method, &path, ""), Ok(()));
            }
        }
    }

    #[test]
    fn a_method_does_not_know_the_parameters_of_another() {
        for (method, path, query) in [
            (Method::Get, "/api/v1/admin/cache", "key=key_1"),
            (Method::Post, "/api/v1/jobs", "status=queued"),
            (Method::Post, "/api/v1/jobs", "fields=id"),
            (Method::Get, "/api/v1/jobs/1", "fields=id"),
            (Method::Post, "/AutoGLMService/Generate", "fields=id"),
            (Method::Get, "/readyz", "verbose"),
        ] {
            let error = checked(method, path, query).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParameter, "{path}?{query}");
        }
    }

    /// Mutations: `check` without `seen`, or without the value.
    #[test]
    fn a_parameter_is_given_once_and_with_a_value() {
        const PATH: &str = "/api/v1/generations";
        for query in [
            "status=done&limit=3",
            "&limit=3&&status=done&",
            "cursor=a=b",
        ] {
            assert_eq!(checked(Method::Get, PATH, query), Ok(()), "{query}");
        }
        for (query, param) in [
            ("limit=3&status=done&limit=3", "limit"),
            ("limit=3&status", "status"),
            ("status=&limit=3", "status"),
            ("Status=done", "Status"),
            ("st%61tus=done", "st%61tus"),
            (" status=done", " status"),
            ("=done", ""),
        ] {
            let error = checked(Method::Get, PATH, query).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{query}");
        }
        let long = "x".repeat(10_000);
        let error = checked(Method::Get, PATH, &long).unwrap_err();
        assert!(error.message.len() < 1_000 && error.param.unwrap().len() < 1_000);
    }

    #[test]
    fn numbers_are_digits() {
        assert_eq!((number("0"), number("17")), (Some(0), Some(17)));
        for odd in ["", "+1", "-1", "1.0", "1e3", " 1", "18446744073709551616"] {
            assert_eq!(number(odd), None, "{odd:?}");
        }
    }
}
