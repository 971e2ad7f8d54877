//! How the values of `Accept`, `Accept-Encoding` and `Content-Type` are read: lists, parameters,
//! quoted strings and weights (RFC 9110, sections 5.6 and 12.4.2).

use crate::http::Request;

/// A weight in thousandths: RFC 9110, section 12.4.2, allows three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Weight(pub(super) u16);

impl Weight {
    pub(super) const MOST: Weight = Weight(1000);

    /// Parses `0`, `0.` to `0.999`, `1`, `1.` to `1.000`.
    pub(super) fn parse(text: &str) -> Option<Weight> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        if decimals.len() > 3 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let mut thousandths = 0;
        for place in 0..3 {
            let digit = decimals.as_bytes().get(place).unwrap_or(&b'0') - b'0';
            thousandths = thousandths * 10 + u16::from(digit);
        }
        match whole {
            "0" => Some(Weight(thousandths)),
            "1" if thousandths == 0 => Some(Weight::MOST),
            _ => None,
        }
    }
}

/// Yields the values of all fields of this name that are ASCII.
pub(super) fn field_values<'a>(
    request: &Request<'a>,
    name: &'static str,
) -> impl Iterator<Item = &'a str> + Clone {
    request
        .headers
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .filter_map(|field| std::str::from_utf8(field.value).ok())
        .filter(|value| value.is_ascii())
}

/// Parses `name=value` or `name="value"`. A quoted value with an escape is not understood: no value
/// that matters here needs one.
pub(super) fn parameter(part: &str) -> Option<(&str, &str)> {
    let (name, value) = part.split_once('=')?;
    let value = match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => value,
    };
    Some((name, value))
}

/// Splits at separators outside quoted strings (RFC 9110, section 5.6.4). The parts come without
/// the white space around them; empty ones are left out (section 5.6.1).
pub(super) fn split_unquoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    let parts = std::iter::from_fn(move || {
        let text = rest?;
        let mut is_quoted = false;
        let mut is_escaped = false;
        let end = text.bytes().position(|byte| {
            let was_escaped = std::mem::take(&mut is_escaped);
            match byte {
                b'\\' if is_quoted && !was_escaped => is_escaped = true,
                b'"' if !was_escaped => is_quoted = !is_quoted,
                _ => {}
            }
            byte == separator && !is_quoted
        });
        // The separator is one ASCII byte, so both cuts fall between characters.
        rest = end.map(|end| &text[end + 1..]);
        Some(&text[..end.unwrap_or(text.len())])
    });
    parts
        .map(|part| part.trim_matches([' ', '\t']))
        .filter(|part| !part.is_empty())
}
