//! The representations in which a request is read and its response written, decided by its head.
//!
//! Over REST, `Accept` chooses the response's; if that leaves a choice, the request's own type
//! decides. A gRPC method's request, or one of an unknown path with `application/grpc`, gets gRPC's
//! status in trailers, even if no message comes before them: a gRPC client reads nothing else. The
//! head decides, so a refusal has its representation too.

use crate::grpc::{Encoding, Terms, terms};
use crate::http::negotiate::{ContentType, MediaType, choose, content_type};
use crate::http::{Method, Request, Version};

use super::router::{BodyBound, Route, Row, Surface};

/// Possible types of a generation's response. A client that accepts anything gets the first.
const OFFERS: &[MediaType] = &[MediaType::Json, MediaType::EventStream, MediaType::Protobuf];

/// The same for a client that itself sends Protobuf.
const PROTOBUF_OFFERS: &[MediaType] =
    &[MediaType::Protobuf, MediaType::Json, MediaType::EventStream];

/// A durable job is described in JSON, whatever its request was written in.
const JOB_OFFERS: &[MediaType] = &[MediaType::Json];

/// The media types of a request's body and of the response that it accepts. Read once per request,
/// and only if a route takes a body.
#[derive(Clone, Copy, Debug)]
pub struct Media {
    pub sent: ContentType,
    /// `None`: the client accepts nothing that can be produced here.
    pub accepted: Option<MediaType>,
}

impl Default for Media {
    fn default() -> Media {
        Media {
            sent: ContentType::Absent,
            accepted: Some(MediaType::Json),
        }
    }
}

impl Media {
    pub fn of(request: &Request<'_>, row: Option<&Row>) -> Media {
        let takes_body =
            |row: &Row| row.surface == Surface::Native && row.verbs.include(Method::Post);
        let Some(row) = row.filter(|row| takes_body(row) && request.method == Method::Post) else {
            return Media::default();
        };
        let sent = content_type(request);
        let offers = match sent {
            _ if row.route == Route::Jobs => JOB_OFFERS,
            ContentType::Known(MediaType::Protobuf) => PROTOBUF_OFFERS,
            _ => OFFERS,
        };
        let accepted = choose(request, offers);
        Media { sent, accepted }
    }
}

/// The representation of a response: see the file's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Representation {
    #[default]
    Json,
    Protobuf,
    Grpc(Terms),
}

impl Representation {
    /// gRPC's terms are read later, by its dialect: errors in them need a representation too.
    pub fn of(request: &Request<'_>, row: Option<&Row>, media: &Media) -> Representation {
        match row.map(|row| row.surface) {
            Some(Surface::Native) if media.accepted == Some(MediaType::Protobuf) => {
                Representation::Protobuf
            }
            Some(Surface::Native) => Representation::Json,
            Some(Surface::Grpc) | None => {
                if request.version == Version::Http2 && terms::is_grpc(request) {
                    Representation::Grpc(Terms::default())
                } else {
                    Representation::Json
                }
            }
        }
    }

    /// Returns the terms of a gRPC request; the default ones of any other.
    pub fn terms(self) -> Terms {
        match self {
            Representation::Grpc(terms) => terms,
            Representation::Json | Representation::Protobuf => Terms::default(),
        }
    }

    pub const fn is_grpc(self) -> bool {
        matches!(self, Representation::Grpc(_))
    }
}

/// The facts of a head that decide the form of its body and of the response. Plain data: a worker
/// reads long bodies and writes long responses.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    pub row: Option<&'static Row>,
    pub media: Media,
    pub representation: Representation,
}

impl Form {
    /// Returns the compression of a gRPC response's messages. A route that accepts no compressed
    /// messages sends none.
    pub fn response_encoding(self) -> Encoding {
        match self.row.map(|row| row.body) {
            Some(BodyBound::MaxBody) => self.representation.terms().encoding,
            _ => Encoding::Identity,
        }
    }
}
