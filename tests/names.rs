//! Names that the daemon resolves for its own requests, from the side of a name server of this
//! file's own, which is silent about some of them.
//!
//! `getaddrinfo(3)` asks port 53 of the servers in /etc/resolv.conf. So each test runs this
//! executable again in namespaces of its own (`unshare`): a network that is a loopback and nothing
//! else, in which port 53 is free, and a resolv.conf that names it. The daemon, the receivers of
//! callbacks and the collector of metrics all run in there.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use autoglmd::limits::outbound::RESOLVER_THREADS;
use serde_json::{Value, json};

use common::{Daemon, Options, eventually, request};

// ---- namespaces -----------------------------------------------------------------------------

const INSIDE: &str = "AUTOGLMD_TEST_INSIDE";

/// `$0` is a folder, `$1` this executable, `$2` the test.
const SCRIPT: &str = r#"
    set -e
    ip link set lo up
    mount --bind "$0/resolv.conf" /etc/resolv.conf
    mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf
    exec "$1" --exact "$2" --nocapture
"#;

/// Runs a test inside its namespaces: calls `test` if this process is in there, and otherwise
/// starts the one that is.
fn inside(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = tempfile::TempDir::new_in(base).expect("the target folder can be written");
    for (file, text) in [
        ("resolv.conf", "nameserver 127.0.0.1\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
    ] {
        std::fs::write(folder.path().join(file), text).expect("a file");
    }
    let mut command = Command::new("unshare");
    command.args(["-rmn", "sh", "-c", SCRIPT]);
    command.arg(folder.path());
    command.arg(std::env::current_exe().expect("this executable"));
    command.arg(name).env(INSIDE, "1");
    let status = command.status().expect("unshare, of util-linux");
    assert!(
        status.success(),
        "failed inside; `ip` is of iproute2, and the machine must allow user namespaces"
    );
}

// ---- the name server ------------------------------------------------------------------------

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// Knows the names below; reads questions about `silent.test`, and does not respond to them.
struct NameServer {
    /// Each question that has come: its name and type.
    asked: Arc<Mutex<Vec<(String, u16)>>>,
}

/// Returns the addresses of a name. `None`: the name does not exist.
fn addresses(name: &str, kind: u16) -> Option<Vec<Vec<u8>>> {
    let v4 = |addresses: &[[u8; 4]]| -> Vec<Vec<u8>> {
        let records = addresses.iter().filter(|_| kind == TYPE_A);
        records.map(|address| address.to_vec()).collect()
    };
    Some(match name {
        "good.test" | "collector.test" => v4(&[[127, 0, 0, 1]]),
        // Nothing leads to the public one from in here.
        "mixed.test" => v4(&[[8, 8, 8, 8], [127, 0, 0, 1]]),
        "mapped.test" if kind == TYPE_AAAA => {
            let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
            vec![mapped.octets().to_vec()]
        }
        "mapped.test" => Vec::new(),
        _ => return None,
    })
}

impl NameServer {
    fn start() -> NameServer {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).expect("port 53, inside");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all = asked.clone();
        // Ends with the process.
        thread::spawn(move || {
            let mut packet = [0; 512];
            loop {
                let (length, client) = socket.recv_from(&mut packet).expect("a question");
                let (name, kind, end) = question(&packet[..length]);
                all.lock().expect("its owner").push((name.clone(), kind));
                if !name.ends_with("silent.test") {
                    let response = response(&packet[..end], addresses(&name, kind));
                    socket.send_to(&response, client).expect("a response");
                }
            }
        });
        NameServer { asked }
    }

    /// Returns how often each silent name was asked for, by its IPv4 address.
    fn silent(&self) -> Vec<String> {
        let asked = self.asked.lock().expect("its owner");
        let silent = asked
            .iter()
            .filter(|(name, kind)| *kind == TYPE_A && name.ends_with("silent.test"));
        silent.map(|(name, _)| name.clone()).collect()
    }

    fn silent_names(&self) -> usize {
        self.silent().into_iter().collect::<BTreeSet<_>>().len()
    }
}

/// Reads a question (RFC 1035, section 4.1.2): its name, its type, and where it ends.
fn question(packet: &[u8]) -> (String, u16, usize) {
    let (mut at, mut labels) = (12, Vec::new());
    while packet[at] > 0 {
        let end = at + 1 + usize::from(packet[at]);
        labels.push(String::from_utf8_lossy(&packet[at + 1..end]).into_owned());
        at = end;
    }
    let kind = u16::from_be_bytes([packet[at + 1], packet[at + 2]]);
    (labels.join("."), kind, at + 5)
}

/// Writes the response to the question at the front of a packet.
fn response(packet: &[u8], found: Option<Vec<Vec<u8>>>) -> Vec<u8> {
    let no_such_name = u8::from(found.is_none()) * 3;
    let found = found.unwrap_or_default();
    let mut response = packet[..2].to_vec();
    // A response, recursion desired and available; one question, some records, nothing else.
    response.extend([
        0x81,
        0x80 | no_such_name,
        0,
        1,
        0,
        found.len() as u8,
        0,
        0,
        0,
        0,
    ]);
    response.extend(&packet[12..]);
    for address in found {
        let kind = if address.len() == 4 {
            TYPE_A
        } else {
            TYPE_AAAA
        };
        // The name of the question; class IN; a TTL of 0.
        response.extend([
            0xc0,
            12,
            0,
            kind as u8,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            address.len() as u8,
        ]);
        response.extend(address);
    }
    response
}

// ---- servers --------------------------------------------------------------------------------

/// A server that responds with 200 to each request, and closes the connection: the next request
/// resolves the name again.
struct Server {
    port: u16,
    requests: mpsc::Receiver<()>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if read_request(stream.expect("a connection")).is_some() {
                    // A test that has ended does not wait for it.
                    let _ = sender.send(());
                }
            }
        });
        Server { port, requests }
    }

    fn next(&self) {
        let request = self.requests.recv_timeout(common::PATIENCE);
        request.expect("a request");
    }
}

fn read_request(stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(digits) = line.strip_prefix("content-length: ") {
            length = digits.parse().expect("a number");
        }
        if line.is_empty() {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    reader.get_mut().write_all(response).ok()
}

// ---- the daemon -----------------------------------------------------------------------------

fn options() -> Options {
    Options::echo()
        .set_raw("jobs.callback_networks", r#"["127.0.0.0/8"]"#)
        .set_raw("jobs.callback_attempts", "1")
        .set("jobs.callback_timeout", "60s")
}

/// Makes another key. Returns it and its id.
fn make_key(daemon: &Daemon) -> (String, String) {
    let output = daemon.run(&["key", "create"]);
    let key = String::from_utf8(output.stdout).expect("text");
    let notes = String::from_utf8(output.stderr).expect("text");
    let (id, _) = notes.split_once(':').expect("the id is shown");
    (key.trim().to_owned(), id.to_owned())
}

fn make_secret(daemon: &Daemon, key: &str) {
    let made = daemon.run(&["key", "webhook-secret", key]);
    assert!(made.status.success(), "{made:?}");
}

/// Submits a job with this callback; waits until the daemon knows the key.
fn submit(daemon: &Daemon, key: &str, url: &str) -> String {
    let authorization = format!("Bearer {key}");
    let fields = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
    ];
    let body = json!({"prompt": "greet", "callback_url": url}).to_string();
    let accepted = || {
        let answer = daemon.exchange(&request("POST", "/api/v1/jobs", &fields, body.as_bytes()));
        (answer.status() != 401).then_some(answer)
    };
    let (answer, _) = eventually("the key is accepted", accepted);
    let job = answer.expect(202).json();
    job["id"].as_str().expect("an id").to_owned()
}

/// Returns a job's callback.
fn callback(daemon: &Daemon, key: &str, id: &str) -> Value {
    let authorization = format!("Bearer {key}");
    let fields = [("authorization", authorization.as_str())];
    let path = format!("/api/v1/jobs/{id}");
    let job = daemon.exchange(&request("GET", &path, &fields, b""));
    job.expect(200).json()["callback"].clone()
}

/// Waits until the callback has ended.
fn ended(daemon: &Daemon, key: &str, id: &str) -> Value {
    let (ended, _) = eventually("the callback has ended", || {
        let callback = callback(daemon, key, id);
        let has_ended = ["delivered", "failed"]
            .map(Value::from)
            .contains(&callback["status"]);
        has_ended.then_some(callback)
    });
    ended
}

// ---- tests ----------------------------------------------------------------------------------

/// Mutations: `Shares::admits` that is always true; the daemon's own place not kept.
#[test]
fn a_silent_name_server_holds_up_its_own_keys_callbacks_alone() {
    inside(
        "a_silent_name_server_holds_up_its_own_keys_callbacks_alone",
        || {
            let names = NameServer::start();
            let (collector, receiver) = (Server::start(), Server::start());
            let url = format!("http://collector.test:{}/v1/metrics", collector.port);
            // A look-up takes longer than this test.
            let daemon = options()
                .environment("RES_OPTIONS", "timeout:30 attempts:5")
                .set("metrics.push.url", &url)
                .set("metrics.push.interval", "1s")
                .start();
            let keys: Vec<(String, String)> = (0..3).map(|_| make_key(&daemon)).collect();
            for (_, id) in &keys {
                make_secret(&daemon, id);
            }
            let flood = |key: usize| -> Vec<String> {
                let url = |number| format!("http://host-{key}-{number}.silent.test/");
                (0..8)
                    .map(|number| submit(&daemon, &keys[key].0, &url(number)))
                    .collect()
            };
            let wait_for = |count| {
                eventually("the name server was asked", || {
                    (names.silent_names() >= count).then_some(())
                });
            };
            // The share of one key, and of a second one.
            flood(0);
            let others = RESOLVER_THREADS - 1;
            wait_for(others.div_ceil(2));
            let good = format!("http://good.test:{}/", receiver.port);
            let delivered = || {
                let (key, _) = &keys[2];
                let id = submit(&daemon, key, &good);
                receiver.next();
                assert_eq!(ended(&daemon, key, &id)["status"], "delivered");
            };
            delivered();
            flood(1);
            wait_for(others - 1);
            delivered();
            // Pushes that began before do not count.
            while collector.requests.try_recv().is_ok() {}
            (0..3).for_each(|_| collector.next());
            assert_eq!(names.silent_names(), others - 1, "each has its share alone");
            // Now and then a push has another one.
            eventually("all of them are in the metrics", || {
                let metrics = daemon.metrics();
                let busy = metrics.value("autoglmd_resolver_threads_busy");
                let waiting = metrics.value("autoglmd_resolver_names_waiting");
                (busy == (others - 1) as f64 && waiting == (2 * 8 - (others - 1)) as f64)
                    .then_some(())
            });
        },
    );
}

/// Mutations: `set_resolver_options` left out; `EAI_AGAIN` taken for a name that does not exist.
#[test]
fn a_look_up_of_a_silent_name_server_ends_soon() {
    inside("a_look_up_of_a_silent_name_server_ends_soon", || {
        let names = NameServer::start();
        let mut before = 0;
        // The daemon's own options, and those that the environment has.
        for (environment, expected) in [(None, 3), (Some("timeout:1 attempts:1"), 1)] {
            let daemon = match environment {
                None => options().start(),
                Some(text) => options().environment("RES_OPTIONS", text).start(),
            };
            make_secret(&daemon, "bootstrap");
            let id = submit(&daemon, daemon.key(), "http://host.silent.test/");
            let callback = ended(&daemon, daemon.key(), &id);
            assert_eq!(callback["error"], "its name has no address");
            let asked = names.silent().len();
            assert_eq!(asked - before, expected, "questions");
            before = asked;
            let silent = [("outcome", "no_response")];
            let look_ups = daemon.metrics();
            let look_ups = look_ups.sum("autoglmd_resolver_look_ups_total", &silent);
            assert_eq!(look_ups, 1.0);
        }
    });
}

/// Mutations: `dial` without its filter, with `connect` without its look; `permits` without
/// `to_canonical`.
#[test]
fn a_name_leads_to_no_address_that_is_not_public() {
    inside("a_name_leads_to_no_address_that_is_not_public", || {
        NameServer::start();
        let receiver = Server::start();
        let daemon = options().set_raw("jobs.callback_networks", "[]").start();
        make_secret(&daemon, "bootstrap");
        for (name, error) in [
            ("good.test", "its address is not public, and not allowed"),
            ("mapped.test", "its address is not public, and not allowed"),
            // The public address is tried, and nothing leads there.
            ("mixed.test", "no connection: network unreachable"),
            ("unknown.test", "its name has no address"),
        ] {
            let url = format!("http://{name}:{}/", receiver.port);
            let id = submit(&daemon, daemon.key(), &url);
            assert_eq!(ended(&daemon, daemon.key(), &id)["error"], error, "{name}");
        }
        let metrics = daemon.metrics();
        for (outcome, expected) in [("found", 3.0), ("not_found", 1.0), ("no_response", 0.0)] {
            let labels = [("outcome", outcome)];
            let look_ups = metrics.sum("autoglmd_resolver_look_ups_total", &labels);
            assert_eq!(look_ups, expected, "{outcome}");
        }
        assert!(receiver.requests.try_recv().is_err(), "it was reached");
    });
}
