//! JSON bodies, read strictly and without recursion.
//!
//! Owns the way from a hostile body to the members of an object. The body is scanned once, which
//! finds every error of syntax with its line and column, and each member's value stays text;
//! [`super::request`] then reads each as the type that its name requires. An object within a value
//! is read in the same way. Must never recurse: a thousand brackets cost a thousand bytes of
//! scratch in the scan and no stack, so a nested body is only refused.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{ApiError, ErrorCode};
use crate::limits::service as limits;
use crate::service::excerpt::excerpt;

/// One member of an object; its value is still text.
#[derive(Debug)]
pub struct Member<'a> {
    pub name: Cow<'a, str>,
    pub value: Value<'a>,
}

/// The text of a JSON value, without white space around it. It is known to be well-formed, except
/// for escapes in strings that represent no character.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a>(&'a str);

/// The kind of a value; displayed with its article, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    String,
    Number,
    Boolean,
    Null,
    List,
    Object,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::String => "a string",
            Kind::Number => "a number",
            Kind::Boolean => "a boolean",
            Kind::Null => "null",
            Kind::List => "a list",
            Kind::Object => "an object",
        }
    }
}

impl<'a> Value<'a> {
    pub fn kind(self) -> Kind {
        match self.0.as_bytes().first() {
            Some(b'"') => Kind::String,
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::List,
            Some(b't' | b'f') => Kind::Boolean,
            Some(b'n') => Kind::Null,
            _ => Kind::Number,
        }
    }

    pub const fn text(self) -> &'a str {
        self.0
    }

    /// Reads the value as a scalar type. `None` if it is not of that type.
    pub fn read<T: Deserialize<'a>>(self) -> Option<T> {
        serde_json::from_str(self.0).ok()
    }

    /// Reads the value as an integer of 64 bits, however it is written: JSON has one type of
    /// number, so `10.0` and `1e1` are the integer 10 (RFC 8259, section 6; JSON Schema, section
    /// 6.1.1). Exact, unlike a detour through `f64`. `None` if the value is not a number, not an
    /// integer, or does not fit.
    pub fn read_integer(self) -> Option<i64> {
        match self.kind() {
            Kind::Number => integer_of(self.0),
            _ => None,
        }
    }

    /// Reads the value as a string, which borrows the client's text if it has no escapes.
    pub fn read_text(self) -> Option<Cow<'a, str>> {
        self.read().map(|Name(text)| text)
    }

    /// Returns the values of a list, at most `bound` of them.
    pub fn list(self, bound: usize) -> Result<Vec<Value<'a>>, ListError> {
        if self.kind() != Kind::List {
            return Err(ListError::OtherKind);
        }
        let items: Vec<&RawValue> = self.read().ok_or(ListError::OtherKind)?;
        if items.len() > bound {
            return Err(ListError::TooLong);
        }
        Ok(items.into_iter().map(|item| Value(item.get())).collect())
    }

    /// Returns the members of an object, in their order. `None` if it is not an object, has a
    /// member twice or more members than any object here can need.
    pub fn members(self) -> Option<Vec<Member<'a>>> {
        let Members(members) = serde_json::from_str(self.0).ok()?;
        duplicate(&members).is_none().then_some(members)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListError {
    OtherKind,
    TooLong,
}

/// Returns the members of the object in a body.
pub fn members(body: &[u8]) -> Result<Vec<Member<'_>>, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let place = error.valid_up_to();
        invalid_json(if is_utf16(body) {
            "the body is UTF-16; send it in UTF-8".to_owned()
        } else {
            format!("the body is not UTF-8 at byte {place}; send it in UTF-8")
        })
    })?;
    // RFC 8259, section 8.1: a parser may ignore a byte order mark, and tools on Windows write one.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let first = text.trim_ascii_start().bytes().next();
    let Members(members) = serde_json::from_str(text).map_err(|error| {
        if error.is_data() {
            shape_error(first)
        } else if first.is_none() {
            invalid_json("the body is empty; send one JSON object".to_owned())
        } else {
            invalid_json(format!("the body is not valid JSON: {error}"))
        }
    })?;
    match duplicate(&members) {
        Some(name) => {
            let message = format!("`{}` is given twice", excerpt(name));
            Err(ApiError::new(ErrorCode::InvalidParameter, message).with_param(excerpt(name)))
        }
        None => Ok(members),
    }
}

/// Returns whether the body begins with a byte order mark of UTF-16, in either order.
fn is_utf16(body: &[u8]) -> bool {
    body.starts_with(b"\xff\xfe") || body.starts_with(b"\xfe\xff")
}

/// Returns the integer that equals a JSON number, if it has 64 bits.
fn integer_of(number: &str) -> Option<i64> {
    let (is_negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number),
    };
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent_of(exponent)),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = || whole.bytes().chain(fraction.bytes());
    // How many of the digits are before the point once the exponent has moved it.
    let whole_digits = i64::try_from(whole.len()).ok()?.saturating_add(exponent);
    let split = usize::try_from(whole_digits.max(0)).ok()?;
    if digits().all(|digit| digit == b'0') {
        return Some(0);
    }
    if digits().skip(split).any(|digit| digit != b'0') {
        return None;
    }
    let written = whole.len() + fraction.len();
    let zeros = split.saturating_sub(written);
    // Longer than any integer that fits: no loop over the zeros of a large exponent.
    if zeros > INTEGER_DIGITS_MAX {
        return None;
    }
    let digits = digits().take(split).chain(std::iter::repeat_n(b'0', zeros));
    let mut integer: i64 = 0;
    for digit in digits {
        let digit = i64::from(digit - b'0');
        integer = integer.checked_mul(10)?;
        integer = if is_negative {
            integer.checked_sub(digit)?
        } else {
            integer.checked_add(digit)?
        };
    }
    Some(integer)
}

/// Decimal digits of the largest integer of 64 bits.
const INTEGER_DIGITS_MAX: usize = 19;

/// Parses an exponent; one that does not fit moves the point as far as possible.
fn exponent_of(text: &str) -> i64 {
    let most = if text.starts_with('-') {
        i64::MIN / 2
    } else {
        i64::MAX / 2
    };
    text.parse::<i64>()
        .unwrap_or(most)
        .clamp(i64::MIN / 2, i64::MAX / 2)
}

/// Returns the error of a body that is JSON, but not an object of reasonable size.
fn shape_error(first: Option<u8>) -> ApiError {
    let message = if first == Some(b'{') {
        format!(
            "the body has more than {} members, which is the limit",
            limits::JSON_MEMBERS_MAX
        )
    } else {
        "the body must be a JSON object, such as {\"prompt\": \"...\"}".to_owned()
    };
    ApiError::new(ErrorCode::InvalidRequest, message)
}

fn invalid_json(message: String) -> ApiError {
    ApiError::new(ErrorCode::InvalidJson, message)
}

/// Returns the first name that occurs twice. Quadratic, in at most `JSON_MEMBERS_MAX` members; a
/// name that no field can have is not compared, because it may be as long as the body.
fn duplicate<'m>(members: &'m [Member<'_>]) -> Option<&'m str> {
    let short = members
        .iter()
        .enumerate()
        .filter(|(_, member)| member.name.len() <= limits::SUGGESTION_NAME_BYTES_MAX);
    short.into_iter().find_map(|(index, member)| {
        members[..index]
            .iter()
            .any(|earlier| earlier.name == member.name)
            .then_some(&*member.name)
    })
}

/// Deserializes an object and keeps its members' values as text.
struct Members<'a>(Vec<Member<'a>>);

/// A string that borrows from the input if it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Members<'a>, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        // Allocates per request: members borrow from the body, so no list can be kept for the next.
        let mut members = Vec::with_capacity(limits::JSON_MEMBERS_TYPICAL);
        while let Some(Name(name)) = map.next_key()? {
            if members.len() == limits::JSON_MEMBERS_MAX {
                return Err(A::Error::custom("too many members"));
            }
            let value: &RawValue = map.next_value()?;
            let value = Value(value.get());
            members.push(Member { name, value });
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(body: &[u8]) -> ApiError {
        members(body).unwrap_err()
    }

    #[test]
    fn members_keep_their_order_and_their_text() {
        let body = br#" {"a" : "x\ny", "b\u0041": [1, {"c": null}], "d":-1.5e3} "#;
        let found = members(body).unwrap();
        let found: Vec<_> = found.iter().map(|m| (&*m.name, m.value.text())).collect();
        assert_eq!(
            found,
            [
                ("a", r#""x\ny""#),
                ("bA", r#"[1, {"c": null}]"#),
                ("d", "-1.5e3")
            ]
        );
    }

    #[test]
    fn syntax_errors_have_line_and_column() {
        for (body, place) in [
            ("{\"a\": 1,\n \"b\": }", "line 2 column 7"),
            ("{\"a\": 1", "line 1 column 7"),
            ("{\"a\": 1} x", "line 1 column 10"),
            ("{a: 1}", "line 1 column 2"),
            ("{\"a\": \"\n\"}", "line 1 column 7"),
            ("{\"a\": 01}", "line 1 column 8"),
            ("{\"a\": 'x'}", "line 1 column 7"),
            ("{\"a\": NaN}", "line 1 column 7"),
            ("{\"a\": 1,}", "line 1 column 9"),
        ] {
            let error = error(body.as_bytes());
            assert_eq!(error.code, ErrorCode::InvalidJson, "{body}");
            assert!(error.message.contains(place), "{body}: {}", error.message);
        }
    }

    #[test]
    fn a_body_that_is_not_an_object_is_refused_with_the_way_out() {
        for body in ["[]", "1", "\"x\"", "null", " true "] {
            let error = error(body.as_bytes());
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{body}");
            assert!(error.message.contains("must be a JSON object"), "{body}");
        }
        for body in [&b""[..], b"  \n", b"\xff", b"{\"a\": \"\xc3\x28\"}"] {
            assert_eq!(error(body).code, ErrorCode::InvalidJson);
        }
    }

    #[test]
    fn a_member_given_twice_is_named_however_it_is_written() {
        let error = error(br#"{"seed": 1, "x": 2, "s\u0065ed": 3}"#);
        assert_eq!(error.code, ErrorCode::InvalidParameter);
        assert_eq!(error.param.as_deref(), Some("seed"));
    }

    #[test]
    fn too_many_members_are_refused() {
        let body = |count: usize| {
            let members: Vec<_> = (0..count).map(|n| format!("\"m{n}\":{n}")).collect();
            format!("{{{}}}", members.join(","))
        };
        let most = limits::JSON_MEMBERS_MAX;
        assert_eq!(members(body(most).as_bytes()).unwrap().len(), most);
        assert_eq!(
            error(body(most + 1).as_bytes()).code,
            ErrorCode::InvalidRequest
        );
    }

    #[test]
    fn integers_are_read_however_they_are_written() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-0", Some(0)),
            ("-0.0e9", Some(0)),
            ("0e99999999999999999999", Some(0)),
            ("10.0", Some(10)),
            ("1e2", Some(100)),
            ("1E+2", Some(100)),
            ("1200e-2", Some(12)),
            ("1.50e1", Some(15)),
            ("-1.0", Some(-1)),
            ("9223372036854775807.000", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("0.00000000000000000001e20", Some(1)),
            ("9223372036854775808", None),
            ("1e19", None),
            ("1e99999999999999999999", None),
            ("1e-99999999999999999999", None),
            ("10.5", None),
            ("1e-1", None),
            ("15e-1", None),
            ("\"10\"", None),
            ("true", None),
        ] {
            assert_eq!(Value(text).read_integer(), expected, "{text}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_ignored_and_utf16_is_named() {
        let found = members(b"\xef\xbb\xbf {\"a\": 1}").unwrap();
        assert_eq!(found[0].value.text(), "1");
        // Once, and only at the start.
        for body in [&b"\xef\xbb\xbf\xef\xbb\xbf{}"[..], b" \xef\xbb\xbf{}"] {
            assert_eq!(error(body).code, ErrorCode::InvalidJson);
        }
        for body in [&b"\xff\xfe{\0}\0"[..], b"\xfe\xff\0{\0}"] {
            let error = error(body);
            assert_eq!(error.code, ErrorCode::InvalidJson);
            assert!(error.message.contains("UTF-16"), "{}", error.message);
        }
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let depth = 32 * 1024;
        let deep = format!("{{\"x\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        let found = members(deep.as_bytes()).unwrap();
        assert_eq!(found[0].value.list(8).unwrap()[0].kind(), Kind::List);
        // Only the opening half, as an attacker would send it.
        let open = "[".repeat(2 * depth);
        assert_eq!(error(open.as_bytes()).code, ErrorCode::InvalidRequest);
        let open = format!("{{\"x\": {open}");
        assert_eq!(error(open.as_bytes()).code, ErrorCode::InvalidJson);
    }

    #[test]
    fn excerpts_end_at_a_character() {
        let long = "é".repeat(limits::EXCERPT_BYTES_MAX);
        let short = excerpt(&long);
        assert!(short.len() <= limits::EXCERPT_BYTES_MAX + 3);
        assert!(short.ends_with("é..."));
        assert_eq!(excerpt("short"), "short");
    }
}
