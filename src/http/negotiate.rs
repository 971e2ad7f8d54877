//! Media types: which one the client wants (`Accept`) and which one it sent (`Content-Type`).
//! Content codings are in `coding.rs` beside it, and the grammar of both in `fields.rs`.
//!
//! This file owns the reading of RFC 9110, sections 8.3 and 12.5.1, for the few types that the
//! daemon knows. It never refuses by itself: it returns `None`, and the service responds with 406
//! or 415.
//!
//! 1. Types, subtypes and parameter names are compared without case.
//! 2. For each offer the most specific range that covers it decides its weight; weight 0 excludes
//!    it, and an offer that no range covers is excluded too.
//! 3. Of equal weights the server's first offer wins: for `*/*`, which browsers send, that is the
//!    server's own preference.
//! 4. Unreadable ranges are skipped. A request without any readable range accepts anything.

mod coding;
mod fields;

use crate::http::Request;
use crate::limits::http as limits;

use fields::{Weight, field_values, parameter, split_unquoted};

pub use coding::{AcceptEncoding, BodyCodingError, body_coding};

/// A media type that the daemon produces or consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaType {
    Json,
    EventStream,
    PlainText,
    Html,
    Protobuf,
    OpenMetrics,
}

impl MediaType {
    const ALL: [MediaType; 6] = [
        MediaType::Json,
        MediaType::EventStream,
        MediaType::PlainText,
        MediaType::Html,
        MediaType::Protobuf,
        MediaType::OpenMetrics,
    ];

    /// Type and subtype, lower case.
    pub const fn name(self) -> &'static str {
        match self {
            MediaType::Json => "application/json",
            MediaType::EventStream => "text/event-stream",
            MediaType::PlainText => "text/plain",
            MediaType::Html => "text/html",
            MediaType::Protobuf => "application/x-protobuf",
            MediaType::OpenMetrics => "application/openmetrics-text",
        }
    }

    /// The value of a response's `Content-Type`. JSON and event streams are UTF-8 by definition.
    pub const fn content_type(self) -> &'static str {
        match self {
            MediaType::PlainText => "text/plain; charset=utf-8",
            MediaType::Html => "text/html; charset=utf-8",
            MediaType::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            _ => self.name(),
        }
    }

    /// How closely a range such as `text/*` covers this type; `None` if it does not.
    fn specificity_under(self, range: &str) -> Option<Specificity> {
        let name = self.name();
        if range.eq_ignore_ascii_case(name) {
            return Some(Specificity::Subtype);
        }
        if range == "*/*" {
            return Some(Specificity::Anything);
        }
        let wanted_type = range.strip_suffix("/*")?;
        let (own_type, _) = name.split_once('/')?;
        wanted_type
            .eq_ignore_ascii_case(own_type)
            .then_some(Specificity::Type)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Specificity {
    Anything,
    Type,
    Subtype,
}

/// Returns the client's favourite among `offers`, which are in the server's order of preference.
/// `None` if it accepts none of them (406).
pub fn choose(request: &Request<'_>, offers: &[MediaType]) -> Option<MediaType> {
    choose_from(accept_values(request), offers)
}

/// Returns whether the client asks for this type by name: `*/*` does not mean an event stream.
pub fn names(request: &Request<'_>, wanted: MediaType) -> bool {
    ranges(accept_values(request)).any(|(range, weight)| {
        wanted.specificity_under(range) == Some(Specificity::Subtype) && weight > Weight(0)
    })
}

/// The type that a request declares for its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// No type is declared.
    Absent,
    Known(MediaType),
    /// Unreadable, of a type unknown here, in a character set other than UTF-8, or declared twice.
    Unsupported,
}

/// Returns the media type of a request's body.
pub fn content_type(request: &Request<'_>) -> ContentType {
    let mut values = field_values(request, "content-type");
    match (values.next(), values.next()) {
        (None, _) => ContentType::Absent,
        // A short cut for nearly all requests.
        (Some("application/json"), None) => ContentType::Known(MediaType::Json),
        (Some(value), None) => {
            parse_content_type(value).map_or(ContentType::Unsupported, ContentType::Known)
        }
        (Some(_), Some(_)) => ContentType::Unsupported,
    }
}

/// Parses `type/subtype; parameters`. ASCII is a part of UTF-8, so both names pass as a `charset`;
/// other parameters do not matter for these types and are ignored.
fn parse_content_type(value: &str) -> Option<MediaType> {
    let mut parts = split_unquoted(value, b';');
    let name = parts.next()?;
    let known = MediaType::ALL
        .into_iter()
        .find(|known| name.eq_ignore_ascii_case(known.name()))?;
    let is_utf8 = |charset: &str| {
        ["utf-8", "utf8", "us-ascii"]
            .iter()
            .any(|name| name.eq_ignore_ascii_case(charset))
    };
    parts
        .filter_map(parameter)
        .filter(|(name, _)| name.eq_ignore_ascii_case("charset"))
        .all(|(_, charset)| is_utf8(charset))
        .then_some(known)
}

fn choose_from<'a>(
    values: impl Iterator<Item = &'a str> + Clone,
    offers: &[MediaType],
) -> Option<MediaType> {
    // A short cut for what most clients send: if anything is accepted, the first offer wins.
    let mut all = values.clone();
    let takes_anything = matches!((all.next(), all.next()), (Some("*/*"), None));
    if takes_anything || ranges(values.clone()).next().is_none() {
        return offers.first().copied();
    }
    let mut best: Option<(Weight, MediaType)> = None;
    for &offer in offers {
        let covering = ranges(values.clone())
            .filter_map(|(range, weight)| Some((offer.specificity_under(range)?, weight)));
        let Some((_, weight)) = covering.max() else {
            continue;
        };
        if weight > Weight(0) && best.is_none_or(|(most, _)| weight > most) {
            best = Some((weight, offer));
        }
    }
    best.map(|(_, offer)| offer)
}

/// Yields the readable media ranges with their weights, up to a bound. Parameters other than the
/// weight are ignored: Prometheus asks for `text/plain;version=0.0.4`.
fn ranges<'a>(values: impl Iterator<Item = &'a str>) -> impl Iterator<Item = (&'a str, Weight)> {
    values
        .flat_map(|value| split_unquoted(value, b','))
        .take(limits::ACCEPT_RANGES_MAX)
        .filter_map(|element| {
            let mut parts = split_unquoted(element, b';');
            let range = parts.next()?;
            let weight = parts
                .filter_map(parameter)
                .find(|(name, _)| name.eq_ignore_ascii_case("q"))
                .map_or(Some(Weight::MOST), |(_, weight)| Weight::parse(weight))?;
            range.contains('/').then_some((range, weight))
        })
}

fn accept_values<'a>(request: &Request<'a>) -> impl Iterator<Item = &'a str> + Clone {
    field_values(request, "accept")
}

#[cfg(test)]
mod tests {
    use super::*;
    use MediaType::{EventStream, Json, PlainText};

    fn chosen(accept: &[&str], offers: &[MediaType]) -> Option<MediaType> {
        choose_from(accept.iter().copied(), offers)
    }

    #[test]
    fn accept_decides_by_specificity_then_weight_then_our_order() {
        let offers = [Json, EventStream, PlainText];
        let cases: &[(&[&str], Option<MediaType>)] = &[
            (&[], Some(Json)),
            (&[""], Some(Json)),
            (&["*/*"], Some(Json)),
            (&["text/*"], Some(EventStream)),
            (&["TEXT/Plain"], Some(PlainText)),
            (&["text/html, */*;q=0.8"], Some(Json)),
            (
                &["application/json;q=0.5, text/event-stream"],
                Some(EventStream),
            ),
            (&["text/*;q=0.9, text/event-stream;q=0.1"], Some(PlainText)),
            (&["*/*, application/json;q=0"], Some(EventStream)),
            (
                &["text/event-stream;q=0.3", "text/plain;q=0.4"],
                Some(PlainText),
            ),
            (
                &["text/plain;version=0.0.4;q=0.3,*/*;q=0.1"],
                Some(PlainText),
            ),
            (
                &["text/plain;note=\"a, application/json\""],
                Some(PlainText),
            ),
            (&["application/json ; Q=1.000"], Some(Json)),
            (&["image/png"], None),
            (&["application/json;q=0"], None),
            (&["*/*;q=0"], None),
        ];
        for (accept, expected) in cases {
            assert_eq!(chosen(accept, &offers), *expected, "{accept:?}");
        }
    }

    #[test]
    fn unreadable_ranges_are_skipped() {
        assert_eq!(chosen(&["json"], &[Json]), Some(Json));
        assert_eq!(
            chosen(&["json, text/plain"], &[Json, PlainText]),
            Some(PlainText)
        );
        for weight in ["2", "1.001", "0.1234", "-1", "+1", "", ".5", "0,5", "1.0.0"] {
            assert_eq!(Weight::parse(weight), None, "{weight}");
        }
        let many = "image/png,".repeat(limits::ACCEPT_RANGES_MAX) + "application/json";
        assert_eq!(
            chosen(&[&many], &[Json]),
            None,
            "ranges beyond the bound are not read"
        );
    }

    #[test]
    fn content_types() {
        for value in [
            "application/json",
            "Application/JSON",
            "application/json;charset=utf-8",
            "application/json ; charset=\"UTF-8\"",
            "application/json; charset=us-ascii; x=y",
            "application/json;",
        ] {
            assert_eq!(parse_content_type(value), Some(Json), "{value}");
        }
        for value in [
            "",
            "json",
            "application/jsonp",
            "application/x-www-form-urlencoded",
            "application/json; charset=latin1",
            "application/json; charset=utf-16",
            "application/json, text/plain",
        ] {
            assert_eq!(parse_content_type(value), None, "{value}");
        }
    }

    #[test]
    fn fields_of_a_request_are_found_and_a_doubled_content_type_is_not_believed() {
        let field = |name, value| httparse::Header { name, value };
        let json: &[u8] = b"application/json";
        let headers = [
            field("ACCEPT", b"image/png".as_slice()),
            field("Content-Type", json),
            field("accept", b"text/event-stream".as_slice()),
            field("content-type", json),
        ];
        let mut request = Request {
            method: crate::http::Method::Post,
            authority: None,
            path: "/",
            query: None,
            version: crate::http::Version::Http11,
            headers: &headers,
        };
        assert_eq!(choose(&request, &[Json, EventStream]), Some(EventStream));
        assert!(names(&request, EventStream) && !names(&request, Json));
        assert_eq!(content_type(&request), ContentType::Unsupported);
        request.headers = &headers[..3];
        assert_eq!(content_type(&request), ContentType::Known(Json));
        request.headers = &[];
        assert_eq!(content_type(&request), ContentType::Absent);
        assert!(!names(&request, EventStream));
    }
}
