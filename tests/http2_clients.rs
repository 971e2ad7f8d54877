//! HTTP/2 as real clients speak it: curl, nghttp and Python's `h2`; and the client's view of a
//! drain, of a cancelled stream and of a slow neighbour.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use common::http2::frame::code::{CANCEL, NO_ERROR};
use common::http2::frame::{reset, setting, window_update};
use common::http2::{Peer, Target};
use common::tls::Authority;
use common::{Daemon, Options, python};

// ---- the same answer from one port -----------------------------------------------------------

/// A daemon that serves TLS and clear text on its one port.
struct House {
    daemon: Daemon,
    roots: PathBuf,
    _files: TempDir,
}

impl House {
    fn new() -> House {
        let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let authority = Authority::new("the clients' authority");
        let site = files.path().join("site.pem");
        authority.server("localhost").save_together(&site);
        let roots = files.path().join("roots.pem");
        std::fs::write(&roots, authority.certificate.pem()).expect("the folder is ours");
        let list = format!("[{:?}]", site.to_str().expect("a plain path"));
        let options = Options::echo().set_raw("server.tls.certificates", &list);
        House {
            daemon: options.start(),
            roots,
            _files: files,
        }
    }

    fn url(&self, scheme: &str) -> String {
        format!(
            "{scheme}://localhost:{}/api/v1/languages",
            self.daemon.address().port()
        )
    }

    /// Returns the page as curl gets it, and the version that it used.
    fn curl(&self, scheme: &str, arguments: &[&str]) -> (Vec<u8>, String) {
        let port = self.daemon.address().port();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--cacert"])
            .arg(&self.roots)
            .args(["--resolve", &format!("localhost:{port}:127.0.0.1")])
            .args([
                "--header",
                &format!("authorization: {}", self.daemon.authorization()),
            ])
            .args(["--write-out", "%{stderr}HTTP/%{http_version}"])
            .args(arguments)
            .arg(self.url(scheme))
            .output()
            .expect("curl; on Debian and Ubuntu: apt-get install curl");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "curl {arguments:?}: {said}");
        (output.stdout, said)
    }

    fn nghttp(&self, scheme: &str) -> Vec<u8> {
        let output = Command::new("nghttp")
            .args([
                "--header",
                &format!("authorization: {}", self.daemon.authorization()),
            ])
            .arg(self.url(scheme).replace("localhost", "127.0.0.1"))
            .output()
            .expect("nghttp; on Debian and Ubuntu: apt-get install nghttp2-client");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nghttp: {said}");
        output.stdout
    }
}

#[test]
fn every_client_gets_the_same_answer_from_one_port() {
    let house = House::new();
    let wanted = house.daemon.get("/api/v1/languages").expect(200).body;
    let check = |what: &str, body: &[u8]| {
        let (got, expected) = (
            String::from_utf8_lossy(body),
            String::from_utf8_lossy(&wanted),
        );
        assert_eq!(got, expected, "{what}");
    };
    for (scheme, arguments, version) in [
        ("http", &["--http1.1"][..], "HTTP/1.1"),
        ("http", &["--http2-prior-knowledge"], "HTTP/2"),
        // Asks for an upgrade, which HTTP/2 no longer has: the response stays HTTP/1.1.
        ("http", &["--http2"], "HTTP/1.1"),
        ("https", &["--http1.1", "--tls-max", "1.2"], "HTTP/1.1"),
        ("https", &["--http1.1", "--tlsv1.3"], "HTTP/1.1"),
        ("https", &["--http2", "--tls-max", "1.2"], "HTTP/2"),
        ("https", &["--http2", "--tlsv1.3"], "HTTP/2"),
        (
            "https",
            &["--http2-prior-knowledge", "--tls-max", "1.2"],
            "HTTP/2",
        ),
        ("https", &["--http2-prior-knowledge", "--tlsv1.3"], "HTTP/2"),
    ] {
        let (body, said) = house.curl(scheme, arguments);
        check(&format!("{scheme} {arguments:?}"), &body);
        assert_eq!(said, version, "{scheme} {arguments:?}");
    }
    for scheme in ["http", "https"] {
        check(&format!("nghttp {scheme}"), &house.nghttp(scheme));
    }
    for roots in [None, Some(house.roots.as_path())] {
        let mut client = start_python(&house.daemon, roots, "page");
        let mut body = Vec::new();
        let stdout = client.stdout.as_mut().expect("it is piped");
        stdout.read_to_end(&mut body).expect("the page");
        check("Python's h2", &body);
        assert!(client.wait().expect("it is ours").success());
    }
    let target = Target::of(&house.daemon);
    let mut peer = Peer::open(&target).expect("it answers");
    peer.headers(1, &target.get_page());
    check(
        "raw frames",
        &peer.answer_of(1, 200).expect("the page").body,
    );
}

// ---- Python's h2 -----------------------------------------------------------------------------

#[test]
fn python_h2_is_answered_in_every_way() {
    in_both_ways("answers");
}

#[test]
fn python_h2_gets_a_hundred_streams_at_once() {
    in_both_ways("streams");
}

#[test]
fn python_h2_uploads_more_than_the_windows() {
    in_both_ways("upload");
}

#[test]
fn python_h2_resets_a_stream() {
    in_both_ways("reset");
}

#[test]
fn python_h2_changes_its_settings_under_way() {
    in_both_ways("windows");
}

#[test]
fn python_h2_leaves_when_the_daemon_goes() {
    let mut daemon = Daemon::echo();
    let mut client = start_python(&daemon, None, "drain");
    let stdout = client.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(stdout)
        .lines()
        .map(|line| line.expect("text"));
    assert_eq!(lines.next().as_deref(), Some("ready"));
    daemon.process().signal(libc::SIGTERM);
    assert_eq!(
        lines.next().as_deref(),
        Some("done"),
        "it found what it asserts"
    );
    assert!(daemon.wait().success());
    client.wait().expect("it is ours");
}

/// Runs a check of the Python client, in clear text and over TLS.
fn in_both_ways(check: &str) {
    let house = House::new();
    for roots in [None, Some(house.roots.as_path())] {
        let client = start_python(&house.daemon, roots, check);
        let output = client.wait_with_output().expect("it is ours");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said == "done\n",
            "{check}, TLS {roots:?}: {said}"
        );
    }
}

fn start_python(daemon: &Daemon, roots: Option<&Path>, check: &str) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/h2_client.py");
    let mut command = Command::new(python::interpreter());
    command
        .arg(script)
        .arg(daemon.address().ip().to_string())
        .arg(daemon.address().port().to_string())
        .args([daemon.key(), check])
        .stdout(Stdio::piped());
    if let Some(roots) = roots {
        command.env("ROOTS", roots);
    }
    command.spawn().expect("the interpreter runs")
}

// ---- streams beside each other ---------------------------------------------------------------

#[test]
fn a_slow_stream_does_not_hold_up_its_neighbours() {
    let daemon = Daemon::echo();
    let target = Target::of(&daemon);
    let mut peer = Peer::open_with(&target, &[(setting::INITIAL_WINDOW_SIZE, 0)]).expect("open");
    // Half of the possible streams wait for window all the time.
    for number in 0..50 {
        peer.headers(2 * number + 1, &target.get_page());
    }
    peer.alive().expect("waiting is no error");
    for number in 50..100 {
        let stream = 2 * number + 1;
        peer.headers(stream, &target.get_page());
        peer.send(window_update(stream, 65_535));
        // The slow streams go on only after it: behind them it would wait for ever.
        peer.answer_of(stream, 200).expect("its own window is open");
    }
    for number in 0..50 {
        let stream = 2 * number + 1;
        assert!(
            peer.so_far(stream).body.is_empty(),
            "stream {stream} had no window"
        );
        peer.send(window_update(stream, 65_535));
        peer.answer_of(stream, 200).expect("now it has one");
    }
}

// ---- going -----------------------------------------------------------------------------------

#[test]
fn a_drain_sends_goaway_twice_and_closes_idle_connections() {
    // Idle connections that were waited for would be open for as long.
    let mut daemon = Options::echo().set("server.drain_timeout", "5m").start();
    let target = Target::of(&daemon);
    let mut used = Peer::open(&target).expect("it answers");
    used.works(1).expect("a request");
    let mut unused = Peer::open(&target).expect("it answers");
    daemon.process().signal(libc::SIGTERM);
    for (peer, last) in [(&mut used, 1), (&mut unused, 0)] {
        peer.closed().expect("the end");
        let expected = [((1 << 31) - 1, NO_ERROR), (last, NO_ERROR)];
        assert_eq!(peer.goaways(), expected, "{}", peer.seen());
    }
    assert!(daemon.wait().success());
}

/// A peer that does not acknowledge the PING after the first GOAWAY is not waited for without end.
#[test]
fn a_drain_does_not_wait_for_a_silent_peer() {
    let mut daemon = Options::echo().set("server.drain_timeout", "5m").start();
    let mut peer = Peer::open(&Target::of(&daemon)).expect("it answers");
    peer.works(1).expect("a request");
    peer.stop_acknowledging();
    daemon.process().signal(libc::SIGTERM);
    peer.closed().expect("the end");
    assert!(daemon.wait().success());
}

#[test]
fn a_request_on_its_way_during_a_drain_is_answered() {
    let mut daemon = Daemon::echo();
    let target = Target::of(&daemon);
    let mut peer = Peer::open(&target).expect("it answers");
    peer.headers_open(1, &target.post());
    peer.alive().expect("the head is there");
    daemon.process().signal(libc::SIGTERM);
    peer.until("the first GOAWAY", |peer| !peer.goaways().is_empty())
        .expect("a drain");
    peer.data_end(1, &target.body);
    // The engine takes no new work, and reports it; silence would be wrong.
    let answer = peer.answer(1).expect("an answer");
    assert!([200, 503].contains(&answer.status), "{}", answer.text());
    peer.closed().expect("the end");
    let last = peer.goaways().last().copied();
    assert_eq!(last, Some((1, NO_ERROR)), "{}", peer.seen());
    assert!(daemon.wait().success());
}

// ---- with a model ----------------------------------------------------------------------------

#[cfg(feature = "llama")]
mod model {
    use autoglmd::grpc::messages::{Message as _, autoglm};
    use serde_json::{Value, json};

    use super::*;
    use common::http2::hpack::{fields, indexed, literal_name};
    use common::http2::index;
    use common::{eventually, within};

    /// The body of a stream that does not end by itself.
    fn endless() -> Value {
        let mut body = common::model::endless("count to a thousand");
        body["stream"] = json!(true);
        body
    }

    /// Starts a stream of many tokens on stream 1.
    fn begin(daemon: &Daemon, body: &Value) -> Peer {
        let target = Target::of(daemon);
        let mut peer = Peer::open(&target).expect("it answers");
        peer.headers_open(1, &target.post());
        peer.data_end(1, body.to_string().as_bytes());
        let has_begun = |peer: &Peer| peer.so_far(1).text().contains("event: delta");
        peer.until("the first token", has_begun).expect("a stream");
        peer
    }

    fn running(daemon: &Daemon) -> f64 {
        daemon.metrics().value("autoglmd_engine_sequences_running")
    }

    #[test]
    fn a_reset_stream_stops_its_job_at_once() {
        let daemon = Options::llama().start();
        // One step of the model on a busy machine, and one reading of the metrics.
        let what = "idle after a reset";
        let rounds = within(Duration::from_secs(2), what, || {
            let mut peer = begin(&daemon, &endless());
            assert_eq!(running(&daemon), 1.0);
            peer.send(reset(1, CANCEL));
            let is_idle = || (running(&daemon) == 0.0).then_some(());
            let ((), elapsed) = eventually("the engine is idle", is_idle);
            peer.works(3).expect("the connection goes on");
            elapsed
        });
        let metrics = daemon.metrics();
        assert_eq!(
            metrics.sum("autoglmd_cancelled_total", &[("reason", "disconnect")]),
            rounds as f64
        );
    }

    /// Starts a stream over gRPC on stream 3.
    fn begin_call(peer: &mut Peer, daemon: &Daemon) {
        let block = [
            indexed(index::METHOD_POST),
            indexed(index::SCHEME_HTTP),
            literal_name(index::PATH, "/AutoGLMService/GenerateStream"),
            literal_name(index::AUTHORITY, "localhost"),
            fields(&[
                ("authorization", &*daemon.authorization()),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ]),
        ];
        // What `endless` asks for.
        let message = autoglm::GenerateRequest {
            prompt: common::model::endless_prompt("count to a thousand"),
            language: "python".to_owned(),
            max_tokens: Some(1_000_000),
            frequency_penalty: Some(-2.0),
            ..autoglm::GenerateRequest::default()
        };
        let message = message.encode_to_vec();
        let length = (message.len() as u32).to_be_bytes();
        peer.headers_open(3, &block.concat());
        peer.data_end(3, &[&[0], &length[..], &message].concat());
        let has_begun = |peer: &Peer| !peer.so_far(3).body.is_empty();
        peer.until("the first message", has_begun).expect("a call");
    }

    /// Streams over HTTP/1.1, HTTP/2 and gRPC, which a drain with little patience cuts off: each
    /// client gets the reason as the last thing. Mutation: `Connection::cut_off` without its part
    /// for the protocol.
    #[test]
    fn a_stream_that_the_drain_cuts_off_gets_its_error() {
        let options = Options::llama().set("server.drain_timeout", "100ms");
        let mut daemon = options.start();
        let body = endless();
        let mut old = daemon.connect();
        old.send(&daemon.generate_request(&body));
        old.head().expect("a stream");
        let mut peer = begin(&daemon, &body);
        begin_call(&mut peer, &daemon);
        daemon.process().signal(libc::SIGTERM);
        let events = old.events().all();
        let last = events.last().expect("events");
        assert_eq!(last.name, "error");
        assert_eq!(last.json()["error"]["code"], "draining");
        let text = peer.answer_of(1, 200).expect("the stream").text();
        let (_, last) = text.rsplit_once("event: ").expect("events");
        assert!(last.starts_with("error\ndata: "), "{last}");
        assert!(last.contains(r#""code":"draining""#), "{last}");
        let call = peer.answer_of(3, 200).expect("the call");
        let status = call.trailers.iter().find(|(name, _)| name == "grpc-status");
        assert_eq!(
            status.map(|(_, value)| value.as_str()),
            Some("14"),
            "UNAVAILABLE"
        );
        peer.closed().expect("the end");
        assert_eq!(
            peer.goaways().last(),
            Some(&(3, NO_ERROR)),
            "{}",
            peer.seen()
        );
        assert!(daemon.wait().success());
    }

    #[test]
    fn a_drain_lets_the_running_stream_end() {
        // A busy machine may need longer than the default of 30 s for the whole stream.
        let mut daemon = Options::llama().set("server.drain_timeout", "5m").start();
        let mut body = endless();
        body["max_tokens"] = json!(400);
        let mut peer = begin(&daemon, &body);
        daemon.process().signal(libc::SIGTERM);
        peer.until("the second GOAWAY", |peer| peer.goaways().len() == 2)
            .expect("a drain");
        assert!(
            !peer.so_far(1).is_ended,
            "the stream was too short to show anything"
        );
        let answer = peer.answer_of(1, 200).expect("the whole stream");
        assert!(answer.text().contains("event: done"), "{}", answer.text());
        peer.closed().expect("the end, when nothing runs any more");
        let expected = [((1 << 31) - 1, NO_ERROR), (1, NO_ERROR)];
        assert_eq!(peer.goaways(), expected, "{}", peer.seen());
        assert!(daemon.wait().success());
    }
}
