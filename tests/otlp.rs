//! Metrics pushed by OTLP: the real binary, and a collector of this file's own that is down, slow,
//! or responds with anything but success. The payload is decoded by `opentelemetry-proto`.
//!
//! The collector of a test writes down each request before it responds. Backoff is shown by the
//! daemon's own numbers, since a busy machine makes any clock of a test wrong.
//!
//! Mutations: `Push::drain` without its wait (`the_last_push_has_the_last_numbers`); `back_off`
//! that does nothing (`nothing_is_lost_within_the_spools_bound_while_the_collector_is_away`); a
//! batch that is sent again after 400, or not after 429 (`each_response_has_its_meaning`); a token
//! or a header that is not sent, a body without gzip (`the_payload_is_what_the_protocol_says`); a
//! header that is not checked (`check_finds_wrong_urls_and_headers_and_shows_no_value`).

mod common;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use common::tls::Authority;
use common::{Daemon, Options, eventually};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    HistogramDataPoint, Metric, metric, number_data_point,
};
use prost::Message as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;
use socket2::{Domain, Socket, Type};

/// How the collector responds to one request.
#[derive(Clone, Debug)]
enum Act {
    Take,
    /// A status, and more lines of the head.
    Status(u16, &'static str),
    Partial(i64),
    Garbage,
    /// Sends these bytes and closes the connection, which may be in the middle of the response.
    Raw(String),
    /// Reads the request and never responds.
    Silence,
}

struct Received {
    head: String,
    /// Still compressed.
    body: Vec<u8>,
}

impl Received {
    fn decode(&self) -> ExportMetricsServiceRequest {
        let mut plain = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(&self.body[..]);
        decoder.read_to_end(&mut plain).expect("gzip");
        ExportMetricsServiceRequest::decode(&plain[..]).expect("the protocol's message")
    }

    fn metrics(&self) -> Vec<Metric> {
        let resources = self.decode().resource_metrics;
        let scopes = resources
            .into_iter()
            .flat_map(|resource| resource.scope_metrics);
        scopes.flat_map(|scope| scope.metrics).collect()
    }

    /// The points of a histogram for one route.
    fn histogram(&self, name: &str, route: &str) -> Option<HistogramDataPoint> {
        let metric = self
            .metrics()
            .into_iter()
            .find(|metric| metric.name == name)?;
        let Some(metric::Data::Histogram(histogram)) = metric.data else {
            panic!("{name} is a histogram");
        };
        assert_eq!(histogram.aggregation_temporality, 2, "cumulative");
        let of_route = |point: &HistogramDataPoint| text(&point.attributes, "autoglmd.route");
        let mut points = histogram.data_points.into_iter();
        points.find(|point| of_route(point).as_deref() == Some(route))
    }

    /// The time of the whole interval.
    fn time(&self) -> u64 {
        let point = self
            .metrics()
            .into_iter()
            .find_map(|metric| match metric.data {
                Some(metric::Data::Sum(sum)) => sum.data_points.first().cloned(),
                _ => None,
            });
        point.expect("a sum").time_unix_nano
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|pair| pair.key == key)?;
    match found.value.clone()?.value? {
        any_value::Value::StringValue(text) => Some(text),
        other => panic!("{key} is {other:?}"),
    }
}

#[derive(Clone, Default)]
struct Collector {
    /// Responses to the next requests. All later ones get [`Act::Take`].
    script: Arc<Mutex<VecDeque<Act>>>,
    received: Arc<Mutex<Vec<Received>>>,
    /// Connections that get no response stay open.
    silent: Arc<Mutex<Vec<TcpStream>>>,
}

impl Collector {
    fn new(script: &[Act]) -> Collector {
        let collector = Collector::default();
        collector
            .script
            .lock()
            .unwrap()
            .extend(script.iter().cloned());
        collector
    }

    fn start(script: &[Act]) -> (Collector, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let collector = Collector::new(script);
        collector.clone().accept(listener, None);
        (collector, address)
    }

    /// Serves in a thread that ends with the process.
    fn accept(self, listener: TcpListener, tls: Option<Arc<ServerConfig>>) {
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                let (collector, tls) = (self.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => {
                        let socket = stream.try_clone().expect("a descriptor");
                        collector.serve(stream, &socket);
                    }
                    Some(config) => {
                        let socket = stream.try_clone().expect("a descriptor");
                        let session = ServerConnection::new(config).expect("a session");
                        collector.serve(StreamOwned::new(session, stream), &socket);
                    }
                });
            }
        });
    }

    fn serve(&self, mut stream: impl Read + Write, socket: &TcpStream) {
        let Some(received) = read_request(&mut stream) else {
            return;
        };
        self.received.lock().unwrap().push(received);
        let act = self.script.lock().unwrap().pop_front().unwrap_or(Act::Take);
        let response = match act {
            Act::Take => respond(200, "", b""),
            Act::Status(status, more) => respond(status, more, b"odd"),
            Act::Partial(rejected) => {
                let response = ExportMetricsServiceResponse {
                    partial_success: Some(ExportMetricsPartialSuccess {
                        rejected_data_points: rejected,
                        error_message: "too old".to_owned(),
                    }),
                };
                respond(200, "", &response.encode_to_vec())
            }
            Act::Garbage => b"\x16\x03 no response of HTTP\r\n\r\n".to_vec(),
            Act::Raw(text) => text.into_bytes(),
            Act::Silence => {
                let socket = socket.try_clone().expect("a descriptor");
                return self.silent.lock().unwrap().push(socket);
            }
        };
        // The daemon may have given up.
        let _ = stream.write_all(&response).and_then(|()| stream.flush());
    }

    fn count(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    /// Waits for a request that has what `probe` looks for.
    fn wait_for<T>(&self, what: &str, probe: impl Fn(&Received) -> Option<T>) -> T {
        let found = || self.received.lock().unwrap().iter().rev().find_map(&probe);
        eventually(what, found).0
    }
}

fn respond(status: u16, more: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} Word\r\nconnection: close\r\ncontent-length: {length}\r\n{more}\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn read_request(stream: &mut impl Read) -> Option<Received> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8_192];
    loop {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8(bytes[..end].to_vec())
                .expect("ASCII")
                .to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.expect("a length").parse().expect("a number");
            if bytes.len() >= end + 4 + length {
                let body = bytes.split_off(end + 4);
                return Some(Received { head, body });
            }
        }
        match stream.read(&mut chunk) {
            Ok(read @ 1..) => bytes.extend_from_slice(&chunk[..read]),
            _ => return None,
        }
    }
}

/// A daemon that pushes ten times per second.
fn pushing(address: SocketAddr) -> Options {
    let url = format!("http://{address}/v1/metrics?a=b");
    Options::echo()
        .set("metrics.push.url", &url)
        .set("metrics.push.interval", "100ms")
}

fn generate(daemon: &Daemon) {
    daemon.generate(&json!({"prompt": "add"})).expect(200);
}

fn attempts(daemon: &Daemon, outcome: &str) -> f64 {
    let labels = [("outcome", outcome)];
    daemon
        .metrics()
        .sum("autoglmd_metrics_push_attempts_total", &labels)
}

fn points(daemon: &Daemon, outcome: &str) -> f64 {
    let labels = [("outcome", outcome)];
    daemon
        .metrics()
        .sum("autoglmd_metrics_push_points_total", &labels)
}

/// A port that refuses connections until [`listen`].
fn closed_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).expect("a port");
    let address = socket.local_addr().expect("an address").as_socket();
    (socket, address.expect("an IPv4 address"))
}

fn listen(socket: Socket) -> TcpListener {
    socket.listen(128).expect("it is bound");
    socket.into()
}

#[test]
fn the_payload_is_what_the_protocol_says() {
    let (collector, address) = Collector::start(&[]);
    let folder = tempfile::tempdir().expect("a folder");
    let token = folder.path().join("token");
    std::fs::write(&token, "secret-word\n").expect("a file");
    let key = folder.path().join("key");
    std::fs::write(&key, "other secret\n").expect("a file");
    let headers = format!(
        r#"["X-Scope-OrgID=team%20a", "x-key=file:{}"]"#,
        key.display()
    );
    let daemon = pushing(address)
        .set("metrics.push.token_file", token.to_str().expect("plain"))
        .set_raw("metrics.push.headers", &headers)
        .start();
    for _ in 0..3 {
        generate(&daemon);
    }
    let name = "http.server.request.duration";
    let point = collector.wait_for("three requests are counted", |received| {
        let point = received.histogram(name, "generate");
        point.filter(|point| point.count == 3)
    });
    assert_eq!(point.bucket_counts.iter().sum::<u64>(), 3);
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    assert_eq!(
        point.explicit_bounds[..2],
        [0.0005, 0.001],
        "those of /metrics"
    );
    assert!(
        point.sum.is_some(),
        "echo may take less than a tick of the reactor's clock"
    );
    assert!(point.start_time_unix_nano < point.time_unix_nano);

    let received = collector.received.lock().unwrap();
    let last = received.last().expect("some came");
    let head = &last.head;
    assert!(
        head.starts_with("post /v1/metrics?a=b http/1.1\r\n"),
        "{head}"
    );
    for line in [
        "content-type: application/x-protobuf",
        "content-encoding: gzip",
        "authorization: bearer secret-word",
        "x-scope-orgid: team a",
        "x-key: other secret",
    ] {
        assert!(head.lines().any(|found| found == line), "{line} in {head}");
    }
    let resource = last
        .decode()
        .resource_metrics
        .remove(0)
        .resource
        .expect("a resource");
    let attribute = |key| text(&resource.attributes, key).expect(key);
    assert_eq!(attribute("service.name"), "autoglmd");
    assert_eq!(attribute("service.version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(attribute("service.instance.id").len(), 36);
    let requests = last.histogram(name, "generate").expect("requests");
    let route = text(&requests.attributes, "http.route");
    assert_eq!(route.as_deref(), Some("/api/v1/generate"));
    let generation = last.histogram("gen_ai.server.request.duration", "generate");
    let generation = generation.expect("the convention for generations");
    assert_eq!(generation.count, 3);
    let operation = text(&generation.attributes, "gen_ai.operation.name");
    assert_eq!(operation.as_deref(), Some("text_completion"));
    let metrics = last.metrics();
    let find = |name: &str| metrics.iter().find(|metric| metric.name == name);
    let memory = find("process.memory.usage").expect("the kernel's numbers too");
    assert_eq!(memory.unit, "By");
    let responses = find("autoglmd.http.server.request").expect("a counter");
    let Some(metric::Data::Sum(sum)) = &responses.data else {
        panic!("a sum");
    };
    assert!(sum.is_monotonic);
    let is_its = |pair: &KeyValue| {
        let value = pair.value.clone().and_then(|value| value.value);
        pair.key == "http.response.status_code" && value == Some(any_value::Value::IntValue(200))
    };
    let mut points = sum.data_points.iter();
    let point = points.find(|point| point.attributes.iter().any(is_its));
    let value = point.expect("status 200").value;
    assert!(
        matches!(value, Some(number_data_point::Value::AsInt(3..))),
        "{value:?}"
    );
}

#[test]
fn nothing_is_lost_within_the_spools_bound_while_the_collector_is_away() {
    let (socket, address) = closed_port();
    let daemon = pushing(address).start();
    let away = || {
        generate(&daemon);
        let metrics = daemon.metrics();
        let intervals = metrics.value("autoglmd_metrics_push_intervals_total");
        let failed = attempts(&daemon, "failed");
        (intervals >= 20.0 && failed >= 3.0).then_some((intervals, failed))
    };
    let (intervals, failed) = eventually("intervals wait in the spool", away).0;
    assert!(
        failed <= intervals / 2.0,
        "no backoff: {failed} of {intervals}"
    );
    let metrics = daemon.metrics();
    assert!(metrics.value("autoglmd_metrics_push_wait_seconds") >= 1.0);
    assert!(metrics.value("autoglmd_metrics_push_spool_bytes") > 0.0);
    assert_eq!(attempts(&daemon, "taken"), 0.0);
    daemon.wait_for_log(0, "metrics.push: 1 pushes to http://");

    let collector = Collector::new(&[]);
    collector.clone().accept(listen(socket), None);
    let is_through = || {
        let metrics = daemon.metrics();
        let is_empty = metrics.value("autoglmd_metrics_push_spool_bytes") == 0.0;
        (attempts(&daemon, "taken") >= intervals && is_empty).then_some(())
    };
    eventually("the spool is empty", is_through);
    for outcome in ["dropped", "rejected", "refused"] {
        assert_eq!(points(&daemon, outcome), 0.0, "{outcome}");
    }
    let received = collector.received.lock().unwrap();
    let times: Vec<u64> = received.iter().map(Received::time).collect();
    assert!(times.len() as f64 >= intervals, "each interval is there");
    assert!(
        times.is_sorted_by(|one, next| one < next),
        "in order, each once"
    );
    let counts = received.iter().filter_map(|received| {
        let point = received.histogram("http.server.request.duration", "generate");
        point.map(|point| point.count)
    });
    assert!(counts.is_sorted(), "totals never fall");
    let lines = daemon.log_lines();
    let told = lines.iter().filter(|line| line.contains("metrics.push:"));
    assert!(told.count() <= 2, "one line per minute");
}

#[test]
fn a_full_spool_drops_the_oldest_intervals() {
    let (socket, address) = closed_port();
    let daemon = pushing(address).set("metrics.push.spool", "64KiB").start();
    let dropping = || {
        let dropped = points(&daemon, "dropped");
        assert!(daemon.metrics().value("autoglmd_metrics_push_spool_bytes") <= 65_536.0);
        (dropped > 0.0).then_some(())
    };
    eventually("the spool is full", dropping);
    let collector = Collector::new(&[]);
    collector.clone().accept(listen(socket), None);
    let first = collector.wait_for("a push", |received| Some(received.time()));
    let start = collector.wait_for("a push", |received| {
        let point = received.histogram("http.server.request.duration", "metrics")?;
        Some(point.start_time_unix_nano)
    });
    let received = collector.received.lock().unwrap();
    let oldest = received.first().expect("some came").time();
    assert!(oldest <= first);
    let second = 1_000_000_000;
    assert!(oldest > start + second / 5, "the first interval is gone");
}

#[test]
fn each_response_has_its_meaning() {
    let raw = |text: &str| Act::Raw(text.to_owned());
    let long = "x".repeat(1_000_000);
    let script = [
        Act::Status(
            429,
            "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             retry-after: Sun, 06 Nov 1994 08:49:40 GMT\r\n",
        ),
        Act::Status(503, ""),
        Act::Status(400, ""),
        Act::Garbage,
        raw("HTTP/1.1 200 OK\r\ncontent-"),
        Act::Partial(7),
        Act::Status(500, ""),
        // A status is enough: sent again, the batch would meet the same response, without end.
        raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal"),
        raw(&format!("HTTP/1.1 200 OK\r\n\r\n{long}")),
        Act::Status(307, "location: /v1/metrics\r\n"),
        raw(&"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20)),
        raw(&format!("HTTP/1.1 200 OK\r\nx: {long}")),
    ];
    let (collector, address) = Collector::start(&script);
    let daemon = pushing(address).start();
    let asked =
        || (daemon.metrics().value("autoglmd_metrics_push_wait_seconds") == 3.0).then_some(());
    eventually("it waits until the collector's date", asked);
    generate(&daemon);
    let is_over = || (attempts(&daemon, "taken") >= 3.0).then_some(());
    eventually("a push succeeds", is_over);
    for (outcome, expected) in [
        ("again", 2.0),
        ("refused", 3.0),
        ("failed", 4.0),
        ("partial", 1.0),
    ] {
        assert_eq!(attempts(&daemon, outcome), expected, "{outcome}");
    }
    assert_eq!(points(&daemon, "rejected"), 7.0);
    assert_eq!(points(&daemon, "dropped"), 0.0);
    assert!(points(&daemon, "refused") > 0.0);
    let received = collector.received.lock().unwrap();
    let body = |at: usize| &received[at].body;
    assert_eq!(
        (body(0), body(1)),
        (body(1), body(2)),
        "429 and 503 are tried again"
    );
    assert_ne!(body(2), body(3), "400 is final");
    assert_eq!(
        (body(3), body(4)),
        (body(4), body(5)),
        "no response is tried again"
    );
    assert_ne!(body(5), body(6), "a partial success is a success");
    assert_ne!(body(6), body(7), "500 is final");
    assert_ne!(body(7), body(8), "a body that is cut off changes nothing");
    assert_ne!(body(8), body(9), "nor does a long one");
    assert_ne!(body(9), body(10), "a redirect is final");
    assert_eq!(
        (body(10), body(11)),
        (body(11), body(12)),
        "half a head is tried again"
    );
}

#[test]
fn a_silent_collector_costs_no_request_anything_and_no_drain_more_than_its_bound() {
    let (collector, address) = Collector::start(&vec![Act::Silence; 1_000]);
    let mut daemon = pushing(address)
        .set("metrics.push.timeout", "300ms")
        .start();
    let failing = || {
        generate(&daemon);
        (attempts(&daemon, "failed") >= 2.0).then_some(())
    };
    eventually("pushes time out", failing);
    assert!(collector.count() >= 2, "each attempt has reached it");
    daemon.process().signal(libc::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn the_last_push_has_the_last_numbers() {
    let (collector, address) = Collector::start(&[]);
    let mut daemon = pushing(address).set("metrics.push.interval", "1h").start();
    generate(&daemon);
    assert_eq!(collector.count(), 0, "an hour has not passed");
    daemon.process().signal(libc::SIGTERM);
    assert!(daemon.wait().success());
    let received = collector.received.lock().unwrap();
    let [last] = &received[..] else {
        panic!("one push, not {}", received.len());
    };
    let point = last.histogram("http.server.request.duration", "generate");
    assert_eq!(point.expect("a point").count, 1);
}

#[test]
fn a_collector_with_tls_is_checked_against_the_authorities() {
    let authority = Authority::new("the collector's");
    let issued = authority.issue(&common::tls::Wanted {
        hosts: &["127.0.0.1"],
        ..common::tls::Wanted::default()
    });
    let chain = vec![CertificateDer::from(issued.certificate.der().to_vec())];
    let key = PrivateKeyDer::try_from(issued.key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let url = format!(
        "https://{}/v1/metrics",
        listener.local_addr().expect("an address")
    );
    let collector = Collector::new(&[]);
    collector.clone().accept(listener, Some(Arc::new(config)));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("authorities.pem");
    std::fs::write(&file, authority.certificate.pem()).expect("a file");
    let push = |options: Options| {
        options
            .set("metrics.push.url", &url)
            .set("metrics.push.interval", "100ms")
            .start()
    };
    let trusting = push(Options::echo().set("outbound.ca", file.to_str().expect("plain")));
    eventually("a push succeeds", || {
        (attempts(&trusting, "taken") >= 1.0).then_some(())
    });
    let before = collector.count();
    assert!(before > 0);
    drop(trusting);
    let strict = push(Options::echo());
    eventually("a push fails", || {
        (attempts(&strict, "failed") >= 1.0).then_some(())
    });
    assert_eq!(attempts(&strict, "taken"), 0.0);
    strict.wait_for_log(0, "TLS failed");
}

#[test]
fn check_finds_wrong_urls_and_headers_and_shows_no_value() {
    let daemon = Daemon::echo();
    let check = |lines: &str| {
        let file = daemon.folder().path().join("other.toml");
        let url = "url = \"http://localhost:4318/v1/metrics\"\n";
        let url = if lines.contains("url") { "" } else { url };
        std::fs::write(&file, format!("[metrics.push]\n{url}{lines}\n")).expect("a file");
        let output = daemon.run(&["check", "--config", file.to_str().expect("plain")]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), told)
    };
    let (is_good, told) = check("headers = [\"a=b\", \"authorization=Basic%20dTpw\"]");
    assert!(is_good, "{told}");
    for (bad, expected) in [
        ("localhost:4318", "http://HOST"),
        ("ftp://localhost/", "http://HOST"),
        (
            "http://user:hunter2@localhost/",
            "a URL without a user and a password",
        ),
    ] {
        let (is_good, told) = check(&format!("url = {bad:?}"));
        assert!(!is_good && told.contains(expected), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    for (bad, expected) in [
        ("Host=hunter2", "host is set by the daemon"),
        (
            "content-length=hunter2",
            "content-length is set by the daemon",
        ),
        (
            "x-key=hunter2%0d%0ax: y",
            "expected a value of visible ASCII",
        ),
        ("Authorization: Basic hunter2=", "expected NAME=VALUE"),
        ("x-key=file:/nonexistent/key", "/nonexistent/key"),
    ] {
        let (is_good, told) = check(&format!("headers = [\"a=b\", {bad:?}]"));
        let key = "other.toml:3: metrics.push.headers";
        assert!(!is_good && told.contains(key), "{told}");
        assert!(
            told.contains(expected) && !told.contains("hunter2"),
            "{told}"
        );
    }
    let both = "token_file = \"/dev/null\"\nheaders = [\"authorization=hunter2\"]";
    let (is_good, told) = check(both);
    assert!(
        !is_good && told.contains("is set by metrics.push.token_file"),
        "{told}"
    );
}
