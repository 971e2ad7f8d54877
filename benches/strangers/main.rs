//! How much ten clients can take from the others: strangers without a key, and a key of low weight.
//!
//!     cargo bench --bench strangers
//!     STRANGERS_SECONDS=5 STRANGERS_EACH=true cargo bench --bench strangers     # to find a cause
//!
//! The daemon has core 0 and the echo engine, with everything that is always on. Ten processes on
//! core 1 do one attack of [`attacks`] each, all at once, at the lowest priority that the kernel has
//! (SCHED_IDLE), and the measured client has a real-time priority: otherwise it waits for its own
//! core, up to a tick, and that counts as the daemon's time. Without the right to such a priority
//! (CAP_SYS_NICE) the bench says so. That client has another key, and sends on core 1, every ten
//! milliseconds, a request for `/api/v1/languages`, one for a generation, and one for `/livez` on a
//! new connection. It does the same before and after the attack, alone. The attack has three parts: without a key in clear
//! text, the same over TLS 1.3, and with a key of low weight.
//!
//! The bench fails unless each 99th percentile is at most twice as long as alone, plus 2 ms; each
//! new connection is served within a second; no request of the client fails; and the daemon's
//! memory (`RssAnon`) grows by at most 64 MiB.
//!
//! * `STRANGERS_SECONDS` (60) is the length of a part, and a sixth of it the time alone, twice.
//! * `STRANGERS_PARTS` (`clear,tls,key`) chooses parts.
//! * `STRANGERS_EACH=true` lets all ten processes do the same attack, one attack after the other.
//! * `STRANGERS_ONLY` is a part of the names of the attacks that are run.
//! * `AUTOGLMD_TEST_BINARY` measures another binary, such as one of an earlier commit.

mod attacks;
#[allow(dead_code)]
#[path = "../../src/http/compress/testing.rs"]
mod code_tables;
#[path = "../../tests/common/mod.rs"]
mod common;
mod line;
#[path = "../support/mod.rs"]
mod support;

use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tempfile::TempDir;

use attacks::{ATTACKS, Attack, Attacker};
use common::process::{Process, allow_descriptors};
use common::tls::{Authority, without_resumption};
use common::{Connection, Daemon, Options, request};
use support::{parameter, percentile};

/// The attackers of a part: as many connections.
const ATTACKERS: usize = 10;

/// The pace of each of the client's three kinds of requests.
const INTERVAL: Duration = Duration::from_millis(10);

/// The bounds that the bench checks.
const SLOWER_MOST: f64 = 2.0;
const LONGER_MOST_MS: f64 = 2.0;
const CONNECTION_MOST_MS: f64 = 1_000.0;
const GROWTH_MOST_BYTES: u64 = 64 << 20;

/// How attackers reach the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Clear,
    Tls,
    Key,
}

impl Part {
    fn parse(name: &str) -> Part {
        match name.trim() {
            "clear" => Part::Clear,
            "tls" => Part::Tls,
            "key" => Part::Key,
            other => panic!("STRANGERS_PARTS: {other:?} is none of clear, tls, key"),
        }
    }

    fn title(self) -> &'static str {
        match self {
            Part::Clear => "without a key, clear text",
            Part::Tls => "without a key, TLS",
            Part::Key => "a key of low weight",
        }
    }
}

fn main() {
    if let Some(name) = std::env::var_os("STRANGERS_ATTACK") {
        attack(&name.to_string_lossy());
    }
    let seconds: u64 = parameter("STRANGERS_SECONDS", 60);
    let parts: String = parameter("STRANGERS_PARTS", "clear,tls,key".to_owned());
    let only: String = parameter("STRANGERS_ONLY", String::new());
    let one_by_one: bool = parameter("STRANGERS_EACH", false);
    allow_descriptors(4_096);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cores >= 2, "a core for the daemon and one for its clients");
    println!("{}; {seconds} s for each part\n", support::machine());
    if !std::thread::scope(|scope| scope.spawn(support::go_first).join().expect("a question")) {
        println!("the client has no real-time priority: it waits for its own core as well\n");
    }
    println!(
        "| attack | what | alone p50, ms | p99 | beside it p50, ms | p99 | worst | failed | \
         memory, MiB more | after |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut missed = Vec::new();
    for part in parts.split(',').map(Part::parse) {
        let chosen = ATTACKS
            .iter()
            .filter(|attack| attack.is_keyed == (part == Part::Key))
            .filter(|attack| attack.name.contains(&only));
        let chosen: Vec<&Attack> = chosen.collect();
        match one_by_one {
            true => {
                for attack in chosen {
                    let name = format!("{}: {}", part.title(), attack.name);
                    run(part, &name, &[attack], seconds, &mut missed);
                }
            }
            false => run(part, part.title(), &chosen, seconds, &mut missed),
        }
    }
    if !missed.is_empty() {
        println!("\nmissed:\n* {}", missed.join("\n* "));
        std::process::exit(1);
    }
}

// ---- an attacker's process ---------------------------------------------------------------------

/// Attacks until it is killed. The end of a connection, in whatever way, is followed by the next.
fn attack(name: &str) -> ! {
    let attack = ATTACKS.iter().find(|attack| attack.name == name);
    let attack = attack.unwrap_or_else(|| panic!("no attack {name:?}"));
    let address: String = parameter("STRANGERS_ADDRESS", String::new());
    let authority: String = parameter("STRANGERS_AUTHORITY", String::new());
    let is_secure: bool = parameter("STRANGERS_TLS", false);
    let any_tls = client_config(Path::new(&authority));
    let attacker = Attacker {
        address: address.parse().expect("an address"),
        tls: is_secure.then(|| any_tls.clone()),
        any_tls,
        key: parameter("STRANGERS_KEY", String::new()),
    };
    loop {
        // Every attack ends with an error, when the daemon closes the connection at the latest.
        if let Err(error) = (attack.run)(&attacker)
            && std::env::var_os("STRANGERS_VERBOSE").is_some()
        {
            eprintln!("{name}: {error}");
        }
    }
}

fn client_config(authority: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_file(authority).expect("the authority's file");
    roots.add(certificate).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a known version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    without_resumption(config)
}

/// A running attack; it ends with this value.
struct Attackers(Vec<Child>);

impl Attackers {
    fn start(attacks: &[&Attack], part: Part, daemon: &Daemon, site: &Site, key: &str) -> Self {
        let program = std::env::current_exe().expect("this program has a file");
        let start = |number: usize| {
            let attack = attacks[number % attacks.len()];
            let mut command = Command::new("chrt");
            command
                .args(["--idle", "0", "taskset", "-c"])
                .arg(support::LOAD_CORE.to_string())
                .arg(&program)
                .env("STRANGERS_ATTACK", attack.name)
                .env("STRANGERS_ADDRESS", daemon.address().to_string())
                .env("STRANGERS_AUTHORITY", &site.authority)
                .env("STRANGERS_TLS", (part == Part::Tls).to_string())
                .env("STRANGERS_KEY", if attack.is_keyed { key } else { "" })
                .stdin(Stdio::null());
            // SAFETY: prctl(2) is a system call without memory of ours, so it is safe after fork.
            unsafe {
                command.pre_exec(|| {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    Ok(())
                });
            }
            command.spawn().expect("chrt and taskset are installed")
        };
        Attackers((0..ATTACKERS).map(start).collect())
    }

    fn check(&mut self) {
        for child in &mut self.0 {
            let ended = child.try_wait().expect("the child is ours");
            assert!(ended.is_none(), "an attacker has ended: {ended:?}");
        }
    }
}

impl Drop for Attackers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Fails only if it has ended by itself, and then there is nothing to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

// ---- the measured client -----------------------------------------------------------------------

/// The daemon's certificate, and its authority's for clients.
struct Site {
    authority: PathBuf,
    _folder: TempDir,
}

/// One kind of request of the measured client.
struct Kind {
    what: &'static str,
    bytes: Vec<u8>,
    /// Each request has a connection of its own.
    connects: bool,
}

/// What one kind of request took, in milliseconds.
#[derive(Default)]
struct Times {
    took_ms: Vec<f64>,
    failed: usize,
}

impl Times {
    fn at(&self, share: f64) -> f64 {
        match self.took_ms.is_empty() {
            true => f64::NAN,
            false => percentile(&self.took_ms, share),
        }
    }
}

/// Measures one attack and prints its rows.
fn run(part: Part, name: &str, attacks: &[&Attack], seconds: u64, missed: &mut Vec<String>) {
    assert!(!attacks.is_empty(), "STRANGERS_ONLY leaves no attack");
    let (daemon, site) = start();
    let low = low_key(&daemon);
    let process = daemon.process();
    let kinds = kinds(&daemon);
    let alone_for = Duration::from_secs_f64((seconds as f64 / 6.0).max(1.0));
    let mut alone = measure(&daemon, &kinds, alone_for, |_| ());
    let before = process.anonymous_bytes();
    let mut attackers = Attackers::start(attacks, part, &daemon, &site, &low);
    let mut most = before;
    let beside = measure(&daemon, &kinds, Duration::from_secs(seconds), |process| {
        most = most.max(process.anonymous_bytes());
    });
    attackers.check();
    drop(attackers);
    let later = measure(&daemon, &kinds, alone_for, |_| ());
    for (times, more) in alone.iter_mut().zip(later) {
        times.took_ms.extend(more.took_ms);
        times.failed += more.failed;
    }
    let growth = most - before;
    let left = process.anonymous_bytes().saturating_sub(before);
    for ((kind, alone), beside) in kinds.iter().zip(&alone).zip(&beside) {
        println!(
            "| {name} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {} of {} | {} | {} |",
            kind.what,
            alone.at(0.5),
            alone.at(0.99),
            beside.at(0.5),
            beside.at(0.99),
            beside.at(1.0),
            beside.failed + alone.failed,
            beside.took_ms.len() + beside.failed,
            growth >> 20,
            left >> 20
        );
        let miss = |what: String| format!("{name}, {}: {what}", kind.what);
        let bound_ms = alone.at(0.99) * SLOWER_MOST + LONGER_MOST_MS;
        let bound_ms = match kind.connects {
            true => CONNECTION_MOST_MS,
            false => bound_ms,
        };
        let took_ms = beside.at(if kind.connects { 1.0 } else { 0.99 });
        if took_ms.is_nan() || took_ms > bound_ms {
            missed.push(miss(format!("{took_ms:.2} ms, at most {bound_ms:.2}")));
        }
        if beside.failed + alone.failed > 0 {
            missed.push(miss("requests failed".to_owned()));
        }
    }
    if growth > GROWTH_MOST_BYTES {
        missed.push(format!("{name}: {} MiB more memory", growth >> 20));
    }
    if std::env::var_os("STRANGERS_VERBOSE").is_some() {
        let metrics = daemon.get("/metrics").expect(200);
        let told = ["autoglmd_errors", "autoglmd_http_requests", "closed_total"];
        let lines = metrics.text().lines();
        let lines = lines.filter(|line| told.iter().any(|name| line.contains(name)));
        for line in lines.filter(|line| !line.starts_with('#') && !line.ends_with(" 0")) {
            eprintln!("{line}");
        }
    }
}

fn start() -> (Daemon, Site) {
    let authority = Authority::new("the bench");
    let folder = TempDir::new().expect("a folder for the certificate");
    let (certificate, key) = authority.server("localhost").save(folder.path(), "site");
    let file = folder.path().join("authority.pem");
    std::fs::write(&file, authority.certificate.pem()).expect("a fresh folder");
    let options = Options::echo()
        .set_raw("server.tls.certificates", &format!("{:?}", [&certificate]))
        .set_raw("server.tls.keys", &format!("{:?}", [&key]));
    let site = Site {
        authority: file,
        _folder: folder,
    };
    (support::measured_daemon(options), site)
}

/// Creates the attackers' key, of low weight where keys have one.
fn low_key(daemon: &Daemon) -> String {
    let create = ["key", "create", "--name", "stranger"];
    let mut output = daemon.run(&[&create[..], &["--weight", "1"]].concat());
    if !output.status.success() {
        output = daemon.run(&create);
    }
    assert!(output.status.success(), "{output:?}");
    let key = String::from_utf8(output.stdout).expect("a key is ASCII");
    let key = key.trim().to_owned();
    common::eventually("the daemon knows the key", || {
        let authorization = format!("Bearer {key}");
        let fields = [("authorization", authorization.as_str())];
        let bytes = request("GET", "/api/v1/models", &fields, b"");
        (daemon.exchange(&bytes).status() == 200).then_some(())
    });
    key
}

fn kinds(daemon: &Daemon) -> [Kind; 3] {
    let body = json!({"prompt": "实现快速排序算法", "language": "python", "timeout": 10000});
    [
        Kind {
            what: "/api/v1/languages",
            bytes: daemon.request("GET", "/api/v1/languages", b""),
            connects: false,
        },
        Kind {
            what: "a generation",
            bytes: daemon.generate_request(&body),
            connects: false,
        },
        Kind {
            what: "a new connection",
            bytes: request("GET", "/livez", &[("connection", "close")], b""),
            connects: true,
        },
    ]
}

/// Sends each kind of request at its pace for this long, and calls `meanwhile` again and again.
fn measure(
    daemon: &Daemon,
    kinds: &[Kind; 3],
    time: Duration,
    mut meanwhile: impl FnMut(Process),
) -> [Times; 3] {
    let is_over = AtomicBool::new(false);
    let (address, is_over) = (daemon.address(), &is_over);
    std::thread::scope(|scope| {
        let clients = kinds.each_ref().map(|kind| {
            scope.spawn(move || {
                support::move_to_load_core();
                let _ = support::go_first();
                ask(address, kind, is_over)
            })
        });
        let end = Instant::now() + time;
        while Instant::now() < end {
            meanwhile(daemon.process());
            std::thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
        clients.map(|client| client.join().expect("a client"))
    })
}

/// Sends a request in each interval. One that is due before the last one has its response counts
/// from when it was due, as its user would.
fn ask(address: SocketAddr, kind: &Kind, is_over: &AtomicBool) -> Times {
    let mut times = Times::default();
    let mut kept = None;
    let mut due = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        let now = Instant::now();
        let start = match now.checked_duration_since(due) {
            Some(late) if late > INTERVAL => due,
            _ => {
                std::thread::sleep(due.saturating_duration_since(now));
                Instant::now()
            }
        };
        match exchange(address, kind, &mut kept) {
            Ok(()) => times.took_ms.push(start.elapsed().as_secs_f64() * 1e3),
            Err(error) => {
                if times.failed == 0 {
                    eprintln!("{}: {error}", kind.what);
                }
                times.failed += 1;
                kept = None;
            }
        }
        due += INTERVAL;
    }
    times
}

fn exchange(address: SocketAddr, kind: &Kind, kept: &mut Option<Connection>) -> io::Result<()> {
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::tcp(address)?,
    };
    connection.try_send(&kind.bytes)?;
    let answer = connection.try_answer()?;
    if answer.status() != 200 {
        return Err(io::Error::other(answer.to_string()));
    }
    if !kind.connects {
        *kept = Some(connection);
    }
    Ok(())
}
