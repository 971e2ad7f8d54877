//! Callbacks of durable jobs, from the receiver's side: signed, repeated, given up, refused, and
//! delivered after a SIGKILL.
//!
//! The receiver is this file's own and speaks HTTP byte by byte. It checks signatures by HMAC
//! written out here (RFC 2104), not by the crate that the daemon signs with.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use autoglmd::grpc::messages::{Message, autoglm};
use autoglmd::grpc::{Encoding, frame};
use common::http2::{self, Peer, Target, hpack};
use common::{Answer, Daemon, Options, PATIENCE, eventually};

// ---- the receiver ---------------------------------------------------------------------------

/// A request that has come.
struct Received {
    head: Vec<String>,
    body: Vec<u8>,
}

impl Received {
    fn field(&self, name: &str) -> &str {
        let mut fields = self.head.iter().filter_map(|line| line.split_once(": "));
        let found = fields.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.head))
            .1
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Returns which of the secrets have signed it, after a check of its time.
    fn signers<'a>(&self, secrets: &[&'a str]) -> Vec<&'a str> {
        let seconds = self.field("webhook-timestamp");
        let sent = Duration::from_secs(seconds.parse().expect("seconds"));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let age = now.expect("after 1970").abs_diff(sent);
        assert!(age < Duration::from_secs(300), "it is an old one: {age:?}");
        let mut signed = format!("{}.{seconds}.", self.field("webhook-id")).into_bytes();
        signed.extend_from_slice(&self.body);
        let shown: Vec<&str> = self.field("webhook-signature").split(' ').collect();
        let has_signed = |secret: &&&str| {
            let key = secret.strip_prefix("whsec_").expect("its prefix");
            let key = STANDARD.decode(key).expect("base64");
            let expected = format!("v1,{}", STANDARD.encode(hmac(&key, &signed)));
            shown.contains(&expected.as_str())
        };
        secrets.iter().filter(has_signed).copied().collect()
    }
}

/// HMAC-SHA-256 by RFC 2104, for keys of at most a block.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64);
    let pad = |byte: u8| -> Vec<u8> {
        let padded = key.iter().copied().chain(std::iter::repeat(0));
        padded.take(64).map(|key| key ^ byte).collect()
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text);
    let outer = Sha256::new().chain_update(pad(0x5c));
    outer.chain_update(inner.finalize()).finalize().to_vec()
}

/// Listens, passes on each request, and responds with the next of these texts; to the last one it
/// keeps. An empty text: the connection is closed without a response. `"hang"` at the end: it stays
/// open.
struct Receiver {
    port: u16,
    requests: mpsc::Receiver<Received>,
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

const HANG: &str = "hang";

impl Receiver {
    fn new(responses: Vec<String>) -> Receiver {
        Receiver::over(responses, None)
    }

    fn over(responses: Vec<String>, tls: Option<Arc<ServerConfig>>) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || {
            let mut kept = Vec::new();
            let mut responses = responses.into_iter();
            let mut response = responses.next().expect("a response");
            for stream in listener.incoming() {
                let stream: TcpStream = stream.expect("a connection");
                if let Some(stream) = serve(stream, tls.as_ref(), &response, &sender) {
                    kept.push(stream);
                }
                if let Some(next) = responses.next() {
                    response = next;
                }
            }
        });
        Receiver { port, requests }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/done?a=b", self.port)
    }

    fn next(&self) -> Received {
        self.requests.recv_timeout(PATIENCE).expect("a callback")
    }
}

/// Returns the connection if it is to stay open.
fn serve(
    stream: TcpStream,
    tls: Option<&Arc<ServerConfig>>,
    response: &str,
    requests: &mpsc::Sender<Received>,
) -> Option<TcpStream> {
    let kept = stream.try_clone().expect("a copy");
    let received = match tls {
        None => receive(stream, response),
        Some(config) => {
            let session = ServerConnection::new(config.clone()).expect("a session");
            receive(StreamOwned::new(session, stream), response)
        }
    };
    if let Some(received) = received {
        // A test that has ended does not wait for it.
        let _ = requests.send(received);
    }
    response.ends_with(HANG).then_some(kept)
}

fn receive<S: Read + Write>(stream: S, response: &str) -> Option<Received> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        // A client that does not trust the certificate leaves.
        reader
            .read_line(&mut line)
            .ok()
            .filter(|bytes| *bytes > 0)?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let mut received = Received {
        head,
        body: Vec::new(),
    };
    let length = received.field("content-length").parse().expect("a length");
    received.body = vec![0; length];
    reader.read_exact(&mut received.body).ok()?;
    let response = response.strip_suffix(HANG).unwrap_or(response);
    // A client that was killed does not read it.
    let _ = reader.get_mut().write_all(response.as_bytes());
    let _ = reader.get_mut().flush();
    Some(received)
}

fn status(line: &str) -> String {
    format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

// ---- the daemon ------------------------------------------------------------------------------

/// Callbacks may go to loopback, and come back soon. No attempt ends by its time, however busy the
/// machine is, so attempts can be counted.
fn options() -> Options {
    Options::echo()
        .set_raw("jobs.callback_networks", r#"["127.0.0.0/8", "::1"]"#)
        .set("jobs.callback_pause", "100ms")
        .set("jobs.callback_timeout", "20s")
}

fn make_secret(daemon: &Daemon) -> String {
    let made = daemon.run(&["key", "webhook-secret", "bootstrap"]);
    let notes = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success(), "{notes}");
    let secret = String::from_utf8(made.stdout).expect("text");
    assert!(!notes.contains(secret.trim()), "it is shown once: {notes}");
    secret.trim().to_owned()
}

fn submit(daemon: &Daemon, url: &str) -> Answer {
    let body = json!({"prompt": "greet", "callback_url": url}).to_string();
    daemon.exchange(&daemon.request("POST", "/api/v1/jobs", body.as_bytes()))
}

fn accepted(daemon: &Daemon, url: &str) -> String {
    let job = submit(daemon, url).expect(202).json();
    assert_eq!(job["callback"]["url"], url);
    job["id"].as_str().expect("an id").to_owned()
}

/// Waits until the callback of a job has this status.
fn reach(daemon: &Daemon, id: &str, status: &str) -> Value {
    let what = format!("the callback of {id} is {status}");
    let shown = || {
        let job = daemon.get(&format!("/api/v1/jobs/{id}")).expect(200).json();
        let callback = job["callback"].clone();
        Some(callback).filter(|callback| callback["status"] == status)
    };
    eventually(&what, shown).0
}

// ---- tests -----------------------------------------------------------------------------------

/// Mutations: a body that is signed before it is complete; the old secret left out of
/// `webhook_secrets`; `callback_body` with the state of the callback.
#[test]
fn a_callback_is_signed_by_each_valid_secret() {
    let daemon = options().start();
    let receiver = Receiver::new(vec![OK.to_owned()]);
    let first = make_secret(&daemon);
    let id = accepted(&daemon, &receiver.url());
    let received = receiver.next();
    assert_eq!(received.head[0], "POST /done?a=b HTTP/1.1");
    assert_eq!(received.field("content-type"), "application/json");
    assert_eq!(received.field("webhook-id"), id);
    assert_eq!(received.signers(&[&first]), [&first]);
    let body = received.json();
    assert_eq!(body["type"], "job.completed");
    assert!(body["timestamp"].as_str().expect("a time").ends_with('Z'));
    let callback = reach(&daemon, &id, "delivered");
    assert_eq!(
        (
            &callback["attempts"],
            &callback["error"],
            &callback["next_attempt_at"]
        ),
        (&json!(1), &Value::Null, &Value::Null)
    );
    let mut job = daemon.get(&format!("/api/v1/jobs/{id}")).expect(200).json();
    job.as_object_mut().expect("an object").remove("callback");
    assert_eq!(body["data"], job);

    let second = make_secret(&daemon);
    accepted(&daemon, &receiver.url());
    let both = receiver.next();
    assert_eq!(both.signers(&[&first, &second]), [&first, &second]);
    let retired = daemon.run(&["key", "webhook-secret", "bootstrap", "--retire"]);
    assert!(retired.status.success() && retired.stdout.is_empty());
    accepted(&daemon, &receiver.url());
    assert_eq!(receiver.next().signers(&[&first, &second]), [&second]);
    eventually("no callback is under way", || {
        let under_way = daemon.metrics().value("autoglmd_job_callbacks_under_way");
        (under_way == 0.0).then_some(())
    });
}

/// Mutations: `outcome_of` that takes 302 for a success; one without `Retry-After`; `retry_after`
/// without the date; redirects that are followed.
#[test]
fn a_receiver_that_fails_is_asked_again_and_a_redirect_is_not_followed() {
    let daemon = options().start();
    make_secret(&daemon);
    let other = Receiver::new(vec![OK.to_owned()]);
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nlocation: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        other.url()
    );
    let busy =
        "HTTP/1.1 429 No\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    // Its clock differs from ours, and counts.
    let dated = "HTTP/1.1 503 No\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                 retry-after: Sun, 06 Nov 1994 08:49:41 GMT\r\n\
                 content-length: 0\r\nconnection: close\r\n\r\n";
    let receiver = Receiver::new(vec![
        String::new(),
        status("500 No"),
        redirect,
        busy.to_owned(),
        dated.to_owned(),
        OK.to_owned(),
    ]);
    let id = accepted(&daemon, &receiver.url());
    let attempts: Vec<Received> = (0..5).map(|_| receiver.next()).collect();
    let seconds = |received: &Received| -> u64 {
        let seconds = received.field("webhook-timestamp");
        seconds.parse().expect("seconds")
    };
    let last = receiver.next();
    assert!(
        seconds(&attempts[4]) > seconds(&attempts[3]),
        "without `Retry-After` the pause would be at most 800 ms"
    );
    assert!(
        seconds(&last) >= seconds(&attempts[4]) + 4,
        "without the date the pause would be at most 1.6 s"
    );
    for received in attempts.iter().chain([&last]) {
        assert_eq!(received.field("webhook-id"), id, "the same callback");
        assert_eq!(received.body, last.body);
    }
    assert_eq!(reach(&daemon, &id, "delivered")["attempts"], 6);
    assert!(
        other.requests.try_recv().is_err(),
        "the redirect was followed"
    );
}

/// Mutations: 410 that is tried again; attempts without a bound.
#[test]
fn a_receiver_that_is_gone_is_asked_once_and_one_that_fails_a_bounded_number_of_times() {
    let daemon = options().set_raw("jobs.callback_attempts", "2").start();
    make_secret(&daemon);
    let gone = Receiver::new(vec![status("410 Gone")]);
    let id = accepted(&daemon, &gone.url());
    let callback = reach(&daemon, &id, "failed");
    assert_eq!(callback["attempts"], 1);
    assert_eq!(callback["error"], "the receiver responded with 410");
    let failing = Receiver::new(vec![status("503 No")]);
    let id = accepted(&daemon, &failing.url());
    let callback = reach(&daemon, &id, "failed");
    assert_eq!(callback["attempts"], 2);
    assert_eq!(callback["error"], "the receiver responded with 503");
}

#[test]
fn a_receiver_that_is_slow_costs_the_time_of_an_attempt_and_other_jobs_nothing() {
    let options = options().set_raw("jobs.callback_attempts", "1");
    let daemon = options.set("jobs.callback_timeout", "10s").start();
    make_secret(&daemon);
    let silent = Receiver::new(vec![HANG.to_owned()]);
    let slow = accepted(&daemon, &silent.url());
    silent.next();
    let healthy = Receiver::new(vec![OK.to_owned()]);
    let id = accepted(&daemon, &healthy.url());
    assert_eq!(reach(&daemon, &id, "delivered")["attempts"], 1);
    let error = reach(&daemon, &slow, "failed")["error"].clone();
    assert!(
        error.as_str().expect("a reason").ends_with("in time"),
        "{error}"
    );
}

/// Mutations: `status_is_enough` that is false; `expired` that names the whole in each step.
#[test]
fn each_response_leads_to_its_state_and_a_clear_message() {
    let daemon = options()
        .set_raw("jobs.callback_attempts", "1")
        .set("jobs.callback_timeout", "10s")
        .start();
    make_secret(&daemon);
    let delivered = |text: &str| (text.to_owned(), "delivered", "");
    let failed = |text: &str, error| (text.to_owned(), "failed", error);
    let long = "x".repeat(100_000);
    let cases = [
        // A status is enough, whatever becomes of the body.
        delivered("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut"),
        delivered("HTTP/1.1 202 OK\r\ncontent-length: 9\r\n\r\nslow hang"),
        delivered(&format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{long}"
        )),
        delivered(&format!("HTTP/1.1 200 OK\r\n\r\n{long}")),
        failed(
            "HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nslow hang",
            "the receiver responded with 500",
        ),
        failed(
            "HTTP/1.1 308 There\r\nlocation: /done\r\n\r\n",
            "the receiver responded with 308; redirects are not followed",
        ),
        failed(
            &"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20),
            "too many interim responses",
        ),
        failed(
            "HTTP/1.1 100 Continue\r\n\r\nhang",
            "no whole response in time",
        ),
        failed("hang", "no response in time"),
        failed("HTTP/1.1 20", "the connection broke"),
        failed(
            &format!("HTTP/1.1 200 OK\r\nx: {long}"),
            "the response is larger than its bound",
        ),
        failed(
            &format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(2_000)),
            "the response is not HTTP: too many headers",
        ),
        failed(
            "SSH-2.0-OpenSSH_9.2\r\n",
            "the response is not HTTP: invalid HTTP version",
        ),
        failed(
            "HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n",
            "the server switches protocols unasked",
        ),
    ];
    let begun: Vec<_> = cases
        .into_iter()
        .map(|(text, status, error)| {
            let receiver = Receiver::new(vec![text]);
            let id = accepted(&daemon, &receiver.url());
            (receiver, id, status, error)
        })
        .collect();
    for (_, id, status, error) in &begun {
        let callback = reach(&daemon, id, status);
        assert_eq!(callback["error"].as_str().unwrap_or(""), *error);
        assert_eq!(callback["attempts"], 1);
    }
}

/// Mutations: `AddressPolicy::Any` in `fetch`; `check_callback` without the policy; `accept` without
/// the secrets.
#[test]
fn addresses_that_are_not_public_are_refused_by_address_and_by_name() {
    let daemon = Daemon::echo();
    let refused = |url: &str| -> String {
        let error = submit(&daemon, url).expect(400).json()["error"].clone();
        assert_eq!(error["code"], "invalid_parameter", "{url}");
        assert_eq!(error["param"], "callback_url", "{url}");
        error["message"].as_str().expect("a message").to_owned()
    };
    let message = refused("https://example.com/");
    assert!(
        message.contains("autoglmd key webhook-secret key_"),
        "{message}"
    );
    make_secret(&daemon);
    for url in [
        "http://127.0.0.1/",
        "http://[::1]:8080/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:192.168.0.1]/",
    ] {
        assert!(refused(url).contains("not public"), "{url}");
    }
    for url in [
        "ftp://example.com/",
        "https://user@example.com/",
        "https://example.com:0/",
        "http://2130706433/",
        "https://",
    ] {
        refused(url);
    }
    refused(&format!("https://example.com/{}", "x".repeat(2_048)));
    let body = json!({"prompt": "greet", "callback_url": "https://example.com/"});
    let error = daemon.generate(&body).expect(400).json()["error"].clone();
    assert_eq!(error["param"], "callback_url", "of durable jobs alone");

    let receiver = Receiver::new(vec![OK.to_owned()]);
    let id = accepted(&daemon, &format!("http://localhost:{}/", receiver.port));
    let callback = reach(&daemon, &id, "failed");
    assert_eq!(callback["attempts"], 1);
    assert_eq!(
        callback["error"],
        "its address is not public, and not allowed"
    );
    assert!(receiver.requests.try_recv().is_err());
}

/// Mutations: `read_request` without `callback_url`; `job_message` without the callback;
/// `check_callback_url` that lets each route pass.
#[test]
fn a_callback_is_named_and_shown_in_protobuf_and_over_grpc_too() {
    let daemon = options().start();
    let secret = make_secret(&daemon);
    let receiver = Receiver::new(vec![OK.to_owned()]);
    let asked = autoglm::GenerateRequest {
        prompt: "greet".to_owned(),
        callback_url: receiver.url(),
        ..Default::default()
    };
    let protobuf = [("content-type", "application/x-protobuf")];
    let post = |path| {
        let body = asked.encode_to_vec();
        daemon.exchange(&daemon.request_with("POST", path, &protobuf, &body))
    };
    let error = post("/api/v1/generate").expect(400);
    let text = String::from_utf8_lossy(&error.body);
    assert!(
        text.contains("`callback_url` is for durable jobs"),
        "{text}"
    );
    let job = post("/api/v1/jobs").expect(202).json();
    assert_eq!(job["callback"]["url"], receiver.url());
    let id = job["id"].as_str().expect("an id").to_owned();
    let received = receiver.next();
    assert_eq!(received.field("webhook-id"), id);
    assert_eq!(received.signers(&[&secret]), [&secret]);

    let mut calls = Calls::open(&daemon);
    let refused = calls.call("/AutoGLMService/Generate", &asked);
    assert_eq!(refused.field("grpc-status"), Some("3"), "{refused:?}");
    let job: autoglm::Job = calls.message("/AutoGLMJobService/SubmitJob", &asked);
    let callback = job.callback.as_ref().expect("it is shown");
    assert_eq!(callback.status(), autoglm::JobCallbackStatus::Waiting);
    assert_eq!(callback.url, receiver.url());
    assert_eq!(receiver.next().field("webhook-id"), job.id);
    let delivered = reach(&daemon, &job.id, "delivered");
    assert_eq!(delivered["url"], receiver.url());
    let asked = autoglm::GetJobRequest { id: job.id };
    let job: autoglm::Job = calls.message("/AutoGLMJobService/GetJob", &asked);
    let callback = job.callback.expect("it is shown");
    assert_eq!(callback.status(), autoglm::JobCallbackStatus::Delivered);
    assert_eq!((callback.attempts, callback.next_attempt_at_ms), (1, None));
    assert_eq!(callback.error, "");
}

/// Calls of gRPC on one connection.
struct Calls {
    peer: Peer,
    authorization: String,
    stream: u32,
}

impl Calls {
    fn open(daemon: &Daemon) -> Calls {
        Calls {
            peer: Peer::open(&Target::of(daemon)).expect("HTTP/2"),
            authorization: daemon.authorization(),
            stream: 1,
        }
    }

    fn call(&mut self, path: &str, message: &impl Message) -> http2::Answer {
        let block = hpack::fields(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("authorization", &self.authorization),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]);
        let mut body = Vec::new();
        frame::append(&mut body, message, Encoding::Identity);
        let stream = self.stream;
        self.stream += 2;
        self.peer.headers_open(stream, &block);
        self.peer.data_end(stream, &body);
        self.peer.answer(stream).expect("a response")
    }

    fn message<M: Message + Default>(&mut self, path: &str, message: &impl Message) -> M {
        let answer = self.call(path, message);
        let body = answer.body.get(frame::PREFIX_BYTES..);
        let body = body.unwrap_or_else(|| panic!("no message: {answer:?}"));
        M::decode(body).expect("its message")
    }
}

/// Mutation: a claim whose lease does not end.
#[test]
fn a_callback_survives_a_sigkill_during_its_delivery() {
    // The lease of a claim has twice the time of an attempt.
    let mut daemon = options().set("jobs.callback_timeout", "2s").start();
    make_secret(&daemon);
    let folder = daemon.folder();
    let receiver = Receiver::new(vec![HANG.to_owned(), OK.to_owned()]);
    let id = accepted(&daemon, &receiver.url());
    assert_eq!(receiver.next().field("webhook-id"), id);
    daemon.kill();
    drop(daemon);
    let daemon = options().in_folder(folder).start();
    assert_eq!(receiver.next().field("webhook-id"), id, "at least once");
    assert_eq!(reach(&daemon, &id, "delivered")["attempts"], 2);
}

/// Mutation: `outbound.ca` that is not read.
#[test]
fn a_receiver_is_checked_against_the_authorities_of_the_configuration() {
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
    let chain = vec![CertificateDer::from(issued.cert.der().to_vec())];
    let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder
        .with_safe_default_protocol_versions()
        .expect("versions");
    let tls = builder.with_no_client_auth().with_single_cert(chain, key);
    let tls = Arc::new(tls.expect("a certificate"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, issued.cert.pem()).expect("a file");

    let deliver = |options: Options, host: &str, status: &str| {
        let daemon = options.start();
        make_secret(&daemon);
        let receiver = Receiver::over(vec![OK.to_owned()], Some(tls.clone()));
        let id = accepted(&daemon, &format!("https://{host}:{}/", receiver.port));
        reach(&daemon, &id, status)
    };
    let strict = options().set_raw("jobs.callback_attempts", "1");
    let trusting = strict
        .clone()
        .set("outbound.ca", file.to_str().expect("plain"));
    let delivered = deliver(trusting.clone(), "localhost", "delivered");
    assert_eq!(delivered["attempts"], 1);
    for (options, host, expected) in [
        (strict, "localhost", "UnknownIssuer"),
        (
            trusting,
            "127.0.0.1",
            "certificate not valid for name \"127.0.0.1\"",
        ),
    ] {
        let callback = deliver(options, host, "failed");
        let error = callback["error"].as_str().expect("a reason");
        let why = error.strip_prefix("TLS failed: ").expect(error);
        assert!(why.contains(expected), "{error}");
    }
}
