//! The table of paths: which exist, which methods they allow, and who may use them.
//!
//! Owns one constant table. A route is closed unless its row opens it: a row without
//! [`Access::Public`] or [`Access::PublicOnLoopback`] cannot be reached without a key, and a test
//! walks the table to prove it. A path may have one parameter, `{id}`, which stands for one segment
//! that is not empty. Paths are compared byte by byte: `/livez/`, `//livez` and
//! `/%6civez` differ from `/livez`, and nothing is served there. So a proxy in front and the daemon
//! cannot disagree about which rule applies.

use crate::http::Method;
use crate::keys::Scopes;
use crate::limits::service as limits;

/// A service of the daemon. The discriminant is the index of the route's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Route {
    Generate,
    /// All jobs of a key.
    Jobs,
    /// One job.
    Job,
    JobEvents,
    RpcGenerate,
    RpcGenerateStream,
    RpcSubmitJob,
    RpcGetJob,
    RpcWatchJob,
    RpcCancelJob,
    HealthCheck,
    HealthWatch,
    Reflection,
    Generations,
    Models,
    Languages,
    Live,
    Ready,
    Metrics,
    AdminCache,
    Index,
    /// A path without a service.
    Unknown,
    /// The request could not be read as far as its path.
    Unread,
}

impl Route {
    pub const COUNT: usize = Route::Unread as usize + 1;

    /// Whether a request of this route becomes a job of the engine.
    pub const fn is_generation(self) -> bool {
        matches!(
            self,
            Route::Generate | Route::RpcGenerate | Route::RpcGenerateStream
        )
    }

    /// Returns the label of metrics and access lines: a closed set, whatever clients ask for.
    pub const fn label(self) -> &'static str {
        match self {
            Route::Generate => "generate",
            Route::Jobs => "jobs",
            Route::Job => "job",
            Route::JobEvents => "job_events",
            Route::RpcGenerate => "grpc_generate",
            Route::RpcGenerateStream => "grpc_generate_stream",
            Route::RpcSubmitJob => "grpc_submit_job",
            Route::RpcGetJob => "grpc_get_job",
            Route::RpcWatchJob => "grpc_watch_job",
            Route::RpcCancelJob => "grpc_cancel_job",
            Route::HealthCheck => "grpc_health_check",
            Route::HealthWatch => "grpc_health_watch",
            Route::Reflection => "grpc_reflection",
            Route::Generations => "generations",
            Route::Models => "models",
            Route::Languages => "languages",
            Route::Live => "livez",
            Route::Ready => "readyz",
            Route::Metrics => "metrics",
            Route::AdminCache => "admin_cache",
            Route::Index => "index",
            Route::Unknown => "unknown",
            Route::Unread => "unread",
        }
    }
}

/// The clients that may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Public,
    /// Clients on loopback need no key if `metrics.public_on_loopback` is on; otherwise like
    /// `Scope`.
    PublicOnLoopback(Scopes),
    /// Holders of a valid key with this scope.
    Scope(Scopes),
    /// Holders of any valid key.
    AnyKey,
}

/// The API that a path belongs to: how its requests are read and its responses written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// REST, in JSON or in Protobuf.
    Native,
    /// Methods of gRPC: POST of messages over HTTP/2.
    Grpc,
}

/// The methods that a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbs {
    /// GET and HEAD; a body is refused.
    Read,
    /// GET alone, of a stream; a body is refused.
    Follow,
    /// POST with a body.
    Post,
    /// GET and HEAD without a body, and POST with one.
    ReadPost,
    /// GET, HEAD and DELETE; a body is refused.
    ReadDelete,
}

impl Verbs {
    /// `OPTIONS` is served before this is called.
    pub const fn include(self, method: Method) -> bool {
        match self {
            Verbs::Read => matches!(method, Method::Get | Method::Head),
            Verbs::Follow => matches!(method, Method::Get),
            Verbs::Post => matches!(method, Method::Post),
            Verbs::ReadPost => matches!(method, Method::Get | Method::Head | Method::Post),
            Verbs::ReadDelete => matches!(method, Method::Get | Method::Head | Method::Delete),
        }
    }

    /// Returns the value of `Allow`.
    pub const fn allow(self) -> &'static str {
        match self {
            Verbs::Read => "GET, HEAD, OPTIONS",
            Verbs::Follow => "GET, OPTIONS",
            Verbs::Post => "POST, OPTIONS",
            Verbs::ReadPost => "GET, HEAD, POST, OPTIONS",
            Verbs::ReadDelete => "GET, HEAD, DELETE, OPTIONS",
        }
    }
}

/// How large a body a route accepts, and whether it may be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyBound {
    /// No body.
    None,
    /// At most this many bytes, and never compressed: a route that needs no key must cost next to
    /// nothing to receive and to read.
    Bytes(usize),
    /// `limits.max_body`, both before and after inflating.
    MaxBody,
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    pub path: &'static str,
    pub surface: Surface,
    pub route: Route,
    pub verbs: Verbs,
    pub access: Access,
    pub body: BodyBound,
    /// For the listing at `/`.
    pub summary: &'static str,
}

/// The parameter in a row's path.
const PARAMETER: &str = "{id}";

impl Row {
    /// Returns the segment of a path that stands in the place of this row's parameter. `None`: the
    /// row has none, or it is the row of another path.
    pub fn parameter<'p>(&self, path: &'p str) -> Option<&'p str> {
        let (before, after) = self.path.split_once(PARAMETER)?;
        let segment = path.strip_prefix(before)?.strip_suffix(after)?;
        (!segment.is_empty() && !segment.contains('/')).then_some(segment)
    }
}

/// Every path. The busiest come first, because the search goes from the top.
pub const ROUTES: &[Row] = &[
    Row {
        path: "/api/v1/generate",
        surface: Surface::Native,
        route: Route::Generate,
        verbs: Verbs::Post,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::MaxBody,
        summary: "write a program",
    },
    Row {
        path: "/api/v1/jobs",
        surface: Surface::Native,
        route: Route::Jobs,
        verbs: Verbs::ReadPost,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::MaxBody,
        summary: "POST: write a program later; GET: this key's jobs",
    },
    Row {
        path: "/api/v1/jobs/{id}",
        surface: Surface::Native,
        route: Route::Job,
        verbs: Verbs::ReadDelete,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::None,
        summary: "a job and its result; DELETE cancels it",
    },
    Row {
        path: "/api/v1/jobs/{id}/events",
        surface: Surface::Native,
        route: Route::JobEvents,
        verbs: Verbs::Follow,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::None,
        summary: "the events of a job, as they come",
    },
    Row {
        path: "/AutoGLMService/Generate",
        surface: Surface::Grpc,
        route: Route::RpcGenerate,
        verbs: Verbs::Post,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::MaxBody,
        summary: "write a program",
    },
    Row {
        path: "/AutoGLMService/GenerateStream",
        surface: Surface::Grpc,
        route: Route::RpcGenerateStream,
        verbs: Verbs::Post,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::MaxBody,
        summary: "the same, piece by piece",
    },
    Row {
        path: "/AutoGLMJobService/SubmitJob",
        surface: Surface::Grpc,
        route: Route::RpcSubmitJob,
        verbs: Verbs::Post,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::MaxBody,
        summary: "write a program later",
    },
    Row {
        path: "/AutoGLMJobService/GetJob",
        surface: Surface::Grpc,
        route: Route::RpcGetJob,
        verbs: Verbs::Post,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::Bytes(limits::JOB_QUESTION_BYTES_MAX),
        summary: "a job and its result",
    },
    Row {
        path: "/AutoGLMJobService/WatchJob",
        surface: Surface::Grpc,
        route: Route::RpcWatchJob,
        verbs: Verbs::Post,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::Bytes(limits::JOB_QUESTION_BYTES_MAX),
        summary: "the events of a job, as they come",
    },
    Row {
        path: "/AutoGLMJobService/CancelJob",
        surface: Surface::Grpc,
        route: Route::RpcCancelJob,
        verbs: Verbs::Post,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::Bytes(limits::JOB_QUESTION_BYTES_MAX),
        summary: "end a job",
    },
    Row {
        path: "/api/v1/generations",
        surface: Surface::Native,
        route: Route::Generations,
        verbs: Verbs::Read,
        access: Access::Scope(Scopes::GENERATE),
        body: BodyBound::None,
        summary: "past generations of this key",
    },
    Row {
        path: "/livez",
        surface: Surface::Native,
        route: Route::Live,
        verbs: Verbs::Read,
        access: Access::Public,
        body: BodyBound::None,
        summary: "200 while the daemon runs",
    },
    Row {
        path: "/healthz",
        surface: Surface::Native,
        route: Route::Live,
        verbs: Verbs::Read,
        access: Access::Public,
        body: BodyBound::None,
        summary: "the same",
    },
    Row {
        path: "/readyz",
        surface: Surface::Native,
        route: Route::Ready,
        verbs: Verbs::Read,
        access: Access::Public,
        body: BodyBound::None,
        summary: "200 if the model is loaded, else 503",
    },
    Row {
        path: "/metrics",
        surface: Surface::Native,
        route: Route::Metrics,
        verbs: Verbs::Read,
        access: Access::PublicOnLoopback(Scopes::METRICS),
        body: BodyBound::None,
        summary: "metrics for Prometheus, as text",
    },
    Row {
        path: "/api/v1/models",
        surface: Surface::Native,
        route: Route::Models,
        verbs: Verbs::Read,
        access: Access::AnyKey,
        body: BodyBound::None,
        summary: "the loaded model",
    },
    Row {
        path: "/api/v1/languages",
        surface: Surface::Native,
        route: Route::Languages,
        verbs: Verbs::Read,
        access: Access::AnyKey,
        body: BodyBound::None,
        summary: "the languages that programs can be written in",
    },
    Row {
        path: "/api/v1/admin/cache",
        surface: Surface::Native,
        route: Route::AdminCache,
        verbs: Verbs::ReadDelete,
        access: Access::Scope(Scopes::ADMIN),
        body: BodyBound::None,
        summary: "the cache; DELETE purges it",
    },
    Row {
        path: "/grpc.health.v1.Health/Check",
        surface: Surface::Grpc,
        route: Route::HealthCheck,
        verbs: Verbs::Post,
        access: Access::Public,
        body: BodyBound::Bytes(limits::HEALTH_REQUEST_BYTES_MAX),
        summary: "SERVING if the model is loaded",
    },
    Row {
        path: "/grpc.health.v1.Health/Watch",
        surface: Surface::Grpc,
        route: Route::HealthWatch,
        verbs: Verbs::Post,
        access: Access::Public,
        body: BodyBound::Bytes(limits::HEALTH_REQUEST_BYTES_MAX),
        summary: "the same, sent at each change",
    },
    Row {
        path: "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        surface: Surface::Grpc,
        route: Route::Reflection,
        verbs: Verbs::Post,
        access: Access::AnyKey,
        body: BodyBound::Bytes(limits::REFLECTION_QUESTION_BYTES_MAX),
        summary: "the schema",
    },
    Row {
        path: "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        surface: Surface::Grpc,
        route: Route::Reflection,
        verbs: Verbs::Post,
        access: Access::AnyKey,
        body: BodyBound::Bytes(limits::REFLECTION_QUESTION_BYTES_MAX),
        summary: "the same",
    },
    Row {
        path: "/",
        surface: Surface::Native,
        route: Route::Index,
        verbs: Verbs::Read,
        access: Access::AnyKey,
        body: BodyBound::None,
        summary: "this list",
    },
];

/// Returns the label of each route that has a path, and the path's template: the first one, where
/// several paths are one route.
pub fn templates() -> impl Iterator<Item = (&'static str, &'static str)> {
    let is_first = |at: usize| {
        let route = ROUTES[at].route;
        ROUTES[..at].iter().all(|row| row.route != route)
    };
    let first = ROUTES
        .iter()
        .enumerate()
        .filter(move |(at, _)| is_first(*at));
    first.map(|(_, row)| (row.route.label(), row.path))
}

/// Returns the row of a path. Rows with a parameter are looked at last, so that the other paths do
/// not pay for them. No request can ask for the text of such a row itself: `{` is not allowed in a
/// path (RFC 3986).
pub fn find(path: &str) -> Option<&'static Row> {
    let exact = ROUTES.iter().find(|row| row.path == path);
    exact.or_else(|| ROUTES.iter().find(|row| row.parameter(path).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn only_the_listed_routes_are_public() {
        let public = ROUTES.iter().filter(|row| row.access == Access::Public);
        let public: Vec<_> = public.map(|row| row.path).collect();
        let expected = [
            "/livez",
            "/healthz",
            "/readyz",
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Watch",
        ];
        assert_eq!(public, expected);
    }

    /// A body for a route without a key is small and is read as it is.
    #[test]
    fn what_is_open_without_a_key_takes_small_bodies_only() {
        for row in ROUTES {
            let is_small = match row.body {
                BodyBound::None => true,
                BodyBound::Bytes(bytes) => bytes <= limits::HEALTH_REQUEST_BYTES_MAX,
                BodyBound::MaxBody => false,
            };
            let needs_key = matches!(row.access, Access::Scope(_) | Access::AnyKey);
            assert!(is_small || needs_key, "{} is open", row.path);
            let takes_body = row.verbs.include(Method::Post);
            assert_eq!(row.body == BodyBound::None, !takes_body, "{}", row.path);
        }
    }

    /// Mutation: a template for each path, so that a route has two.
    #[test]
    fn a_route_with_a_path_has_one_template() {
        let found: Vec<_> = templates().collect();
        let labels: HashSet<_> = found.iter().map(|(label, _)| *label).collect();
        assert_eq!(labels.len(), found.len(), "{found:?}");
        assert_eq!(found.len(), Route::COUNT - 2, "all but unknown and unread");
        assert!(found.contains(&("job_events", "/api/v1/jobs/{id}/events")));
        assert!(found.contains(&("livez", "/livez")), "{found:?}");
    }

    #[test]
    fn paths_are_unique_and_compared_byte_by_byte() {
        let paths: HashSet<_> = ROUTES.iter().map(|row| row.path).collect();
        assert_eq!(paths.len(), ROUTES.len());
        assert_eq!(find("/livez").unwrap().route, Route::Live);
        for other in [
            "",
            "/livez/",
            "//livez",
            "/LIVEZ",
            "/%6civez",
            "/./livez",
            "*",
            "/api/v1/generate/",
            "/api/v1/generate\0",
        ] {
            assert!(find(other).is_none(), "{other} is served");
        }
    }

    /// Mutations: `parameter` that takes an empty segment, or several.
    #[test]
    fn a_parameter_is_one_segment_of_its_path() {
        let route = |path| find(path).map(|row| (row.route, row.parameter(path)));
        assert_eq!(route("/api/v1/jobs"), Some((Route::Jobs, None)));
        assert_eq!(route("/api/v1/jobs/x"), Some((Route::Job, Some("x"))));
        let events = route("/api/v1/jobs/job_1/events");
        assert_eq!(events, Some((Route::JobEvents, Some("job_1"))));
        assert_eq!(
            route("/api/v1/jobs/events"),
            Some((Route::Job, Some("events")))
        );
        for other in [
            "/api/v1/jobs/",
            "/api/v1/jobs/x/",
            "/api/v1/jobs//events",
            "/api/v1/jobs/x/y",
            "/api/v1/jobs/x/y/events",
            "/api/v1/jobs/x/events/",
            "/api/v1/jobsx",
        ] {
            assert_eq!(route(other), None, "{other}");
        }
    }
}
