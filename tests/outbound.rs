//! Requests of the daemon's own, over real sockets: a reactor connects, sends and receives, and
//! servers of this file's own respond, refuse, or stay silent.
//!
//! The simulation tries every order of events; this file shows that the kernel keeps the contract
//! that the simulation assumes: `EINPROGRESS`, the writable edge, `SO_ERROR`.
//!
//! Mutations: `connect` that does not register its socket (no fetch ends); `is_connected` without
//! `SO_ERROR` (a refused port is a broken connection); a connector without roots of a file.

#[allow(dead_code, reason = "each test uses a part")]
#[path = "common/reactors.rs"]
mod reactors;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use autoglmd::core::address_policy::AddressPolicy;
use autoglmd::core::network::Network;
use autoglmd::http::http1::response_reader::ResponseBounds;
use autoglmd::http::origin::Origin;
use autoglmd::http::{Fields, Method};
use autoglmd::offload::fetch::{
    Fetch, FetchError, FetchSink, Fetcher, Request, Response, Stage, Timeouts,
};
use autoglmd::tls::Connector;
use reactors::Reactors;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome = Result<Response, FetchError>;

struct Sent(mpsc::Sender<Outcome>);

impl FetchSink for Sent {
    fn finish(self: Box<Self>, result: Outcome) {
        // A test that has failed does not wait for it.
        let _ = self.0.send(result);
    }
}

fn fetch(url: &str, sink: &mpsc::Sender<Outcome>) -> Fetch {
    let (origin, target) = Origin::parse(url).expect("a URL");
    let mut fields = Fields::new();
    fields.push("content-type", "text/plain");
    Fetch {
        tenant: 1,
        origin,
        request: Request {
            method: Method::Post,
            target,
            fields,
            body: vec![b'x'; 100_000].into(),
            is_idempotent: true,
        },
        timeouts: Timeouts {
            connect: PATIENCE,
            first_byte: PATIENCE,
            whole: PATIENCE,
        },
        bounds: ResponseBounds {
            head_bytes: 4_096,
            body_bytes: 1 << 20,
            status_is_enough: false,
        },
        policy: AddressPolicy::Any,
        sink: Box::new(Sent(sink.clone())),
    }
}

fn call(fetcher: &Fetcher, url: &str, adjust: impl FnOnce(&mut Fetch)) -> Outcome {
    let (sender, outcome) = mpsc::channel();
    let mut fetch = fetch(url, &sender);
    adjust(&mut fetch);
    assert!(fetcher.submit(fetch).is_ok(), "there is room");
    outcome
        .recv_timeout(2 * PATIENCE)
        .expect("each fetch has a result")
}

/// A server that responds with what it has received, and counts its connections.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Server {
    fn start(tls: Option<Arc<ServerConfig>>) -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        // Ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("a connection");
                counted.fetch_add(1, Ordering::Relaxed);
                let tls = tls.clone();
                thread::spawn(move || match tls {
                    None => serve(stream),
                    Some(config) => {
                        let session = ServerConnection::new(config).expect("a session");
                        serve(StreamOwned::new(session, stream));
                    }
                });
            }
        });
        Server {
            address,
            connections,
        }
    }
}

/// Serves requests until the client leaves, one byte of each response at a time.
fn serve(mut stream: impl Read + Write) {
    let mut received = Vec::new();
    let mut chunk = [0; 8_192];
    loop {
        let text = String::from_utf8_lossy(&received).into_owned();
        let end = text.find("\r\n\r\n").map(|at| at + 4);
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |digits| digits.parse().expect("a number"));
        if let Some(end) = end
            && received.len() >= end + length
        {
            let body = format!(
                "{} bytes for {}",
                length,
                text.lines().next().unwrap_or_default()
            );
            let length = body.len();
            let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            received.clear();
            for byte in response.bytes() {
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
            }
            let _ = stream.flush();
            continue;
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => received.extend_from_slice(&chunk[..count]),
        }
    }
}

fn text(outcome: &Outcome) -> String {
    let response = outcome.as_ref().expect("a response");
    assert_eq!(response.status, 200);
    String::from_utf8_lossy(&response.body).into_owned()
}

#[test]
fn a_connection_is_made_without_waiting_and_serves_several_requests() {
    let reactors = Reactors::start(vec![Vec::new()], false, |_| ());
    let server = Server::start(None);
    let url = format!("http://{}/hook", server.address);
    for _ in 0..3 {
        let outcome = call(reactors.fetcher(), &url, |_| {});
        assert_eq!(text(&outcome), "100000 bytes for POST /hook HTTP/1.1");
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
    // A name, which other threads resolve; it may lead to ::1 first, where nothing listens.
    let url = format!("http://localhost:{}/named", server.address.port());
    let outcome = call(reactors.fetcher(), &url, |_| {});
    assert_eq!(text(&outcome), "100000 bytes for POST /named HTTP/1.1");
    assert_eq!(reactors.fetcher().pending(), 0);
}

#[test]
fn a_refused_a_silent_and_a_forbidden_address_are_told_apart() {
    let reactors = Reactors::start(vec![Vec::new()], false, |_| ());
    let fetcher = reactors.fetcher();
    // The listener is closed again before the fetch.
    let closed = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.local_addr().expect("an address")
    };
    let refused = call(fetcher, &format!("http://{closed}/"), |_| {});
    let refusal = FetchError::Unreachable(std::io::ErrorKind::ConnectionRefused);
    assert_eq!(refused.unwrap_err(), refusal);
    let (address, _full) = silent();
    let silent = call(fetcher, &format!("http://{address}/"), |fetch| {
        fetch.timeouts.connect = Duration::from_millis(300);
    });
    assert_eq!(silent.unwrap_err(), FetchError::TimedOut(Stage::Connect));
    let server = Server::start(None);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{}/", server.address.port());
        let forbidden = call(fetcher, &url, |fetch| {
            fetch.policy = AddressPolicy::PublicAnd(Arc::new([]));
        });
        assert_eq!(forbidden.unwrap_err(), FetchError::Forbidden, "{host}");
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 0);
    let url = format!("http://127.0.0.1:{}/", server.address.port());
    let allowed = call(fetcher, &url, |fetch| {
        let network = Network::parse("127.0.0.0/8").expect("a network");
        fetch.policy = AddressPolicy::PublicAnd(Arc::new([network]));
    });
    assert!(allowed.is_ok());
}

/// Returns an address whose backlog is full, so that the kernel drops each further SYN: a connect
/// stays in progress. The sockets keep it so.
fn silent() -> (SocketAddr, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    listener
        .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .expect("a port");
    listener.listen(0).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        client.set_nonblocking(true).expect("an option");
        // In progress, like that of the daemon.
        let _ = client.connect(&address);
        sockets.push(client);
    }
    (address.as_socket().expect("TCP"), sockets)
}

#[test]
fn a_servers_certificate_is_checked_against_the_authorities_of_a_file() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let params = rcgen::CertificateParams::new(names).expect("names");
    let certificate = params.self_signed(&key).expect("a certificate");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, certificate.pem()).expect("a file");
    let der = CertificateDer::from(certificate.der().to_vec());
    let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![der], private)
        .expect("a certificate");
    let server = Server::start(Some(Arc::new(config)));
    let url = format!("https://{}/secret", server.address);
    let trusting = Connector::load(Some(&file), None).expect("authorities");
    let reactors = Reactors::start_with(trusting, vec![Vec::new()], false, |_| ());
    for _ in 0..2 {
        let outcome = call(reactors.fetcher(), &url, |_| {});
        assert_eq!(text(&outcome), "100000 bytes for POST /secret HTTP/1.1");
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
    let others = Reactors::start(vec![Vec::new()], false, |_| ());
    let refused = call(others.fetcher(), &url, |_| {}).unwrap_err();
    assert_eq!(refused.as_str(), "tls_failed", "{refused}");
}

#[test]
fn at_the_end_of_the_reactors_each_fetch_gets_its_result() {
    let reactors = Reactors::start(vec![Vec::new()], false, |_| ());
    let fetcher = reactors.fetcher().clone();
    let (address, _full) = silent();
    let (sender, outcomes) = mpsc::channel();
    for _ in 0..10 {
        assert!(
            fetcher
                .submit(fetch(&format!("http://{address}/"), &sender))
                .is_ok()
        );
    }
    drop(reactors);
    assert!(
        fetcher
            .submit(fetch(&format!("http://{address}/"), &sender))
            .is_ok()
    );
    drop(sender);
    let errors: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.unwrap_err())
        .collect();
    assert_eq!(errors, vec![FetchError::Ended; 11]);
    assert_eq!(fetcher.pending(), 0);
}
