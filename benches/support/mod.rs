//! Shared by the comparing benches: nginx as the peer, wrk as the load, numbers, tables.

// Each bench compiles this module for itself and uses only a part of it.
#![allow(dead_code)]

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tempfile::TempDir;

use crate::common::process::Process;
use crate::common::{Connection, Daemon, Options, eventually, request};

/// The core of the measured server alone, and the core of its load.
pub const SERVER_CORE: usize = 0;
pub const LOAD_CORE: usize = 1;

/// Returns a parameter of a bench: `name` in the environment, or its default.
pub fn parameter<T: std::str::FromStr>(name: &str, default: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// Returns the median; the mean of the two middle values of an even number.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => (values[even / 2 - 1] + values[even / 2]) / 2.0,
    }
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Returns the smallest value that this share (0 to 1) of all does not exceed.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

/// Moves the calling thread to the load's core, away from the server's.
pub fn move_to_load_core() {
    // SAFETY: both calls fill or read a set on this stack, and are given its size.
    let moved = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(LOAD_CORE, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    assert_eq!(moved, 0, "the load's core is there");
}

/// Sets a real-time priority for the calling thread. Without it, the thread waits for other load on
/// its own core, up to the kernel's next tick. Returns whether the user may set one.
pub fn go_first() -> bool {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads a parameter on this stack.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) == 0 }
}

/// Debian's nginx, one process, responding to every request with the same bytes.
pub struct Nginx {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

/// The fields that nginx writes by itself.
const NGINX_FIELDS: [&str; 4] = ["date", "content-type", "content-length", "connection"];

/// The protocol of nginx's one port. In clear text 1.22 cannot distinguish HTTP/2 from HTTP/1.
#[derive(Clone, Copy, Debug)]
pub enum Speaks<'a> {
    Http1,
    Http2,
    Tls {
        certificate: &'a Path,
        key: &'a Path,
        http2: bool,
    },
}

impl Speaks<'_> {
    fn flags(&self) -> &'static str {
        match self {
            Speaks::Http1 => "",
            Speaks::Http2 => "http2",
            Speaks::Tls { http2: false, .. } => "ssl",
            Speaks::Tls { http2: true, .. } => "ssl http2",
        }
    }

    fn lines(&self) -> String {
        let Speaks::Tls {
            certificate, key, ..
        } = self
        else {
            return String::new();
        };
        format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_protocols TLSv1.2 TLSv1.3; \
             ssl_session_cache shared:SSL:10m;",
            certificate.display(),
            key.display()
        )
    }
}

/// Starts a daemon for measuring: on the server's core, with everything that is always on, without
/// refusing requests, and without access lines, because nginx writes none either.
pub fn measured_daemon(options: Options) -> Daemon {
    logging_daemon(options.set_raw("log.access", "false"))
}

/// The same with access lines.
pub fn logging_daemon(options: Options) -> Daemon {
    options
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.requests_per_minute", "100000000")
        .set_raw("rate_limit.burst", "100000000")
        .set_raw("rate_limit.concurrency", "0")
        .wrapped_in(&["taskset", "-c", &SERVER_CORE.to_string()])
        .descriptors(4_096)
        .start()
}

impl Nginx {
    /// `body` must not contain `$`, which nginx would take for a variable. `fields` go with each
    /// response.
    pub fn start(body: &str, fields: &[(String, String)], connections: usize) -> Nginx {
        let nginx = Nginx::start_with(body, fields, connections, &Speaks::Http1);
        let connection = Connection::tcp(nginx.address).expect("it listens");
        nginx.check(connection, body);
        nginx
    }

    /// Starts nginx with TLS, with OpenSSL's defaults and a session cache, which is usual.
    pub fn start_tls(
        body: &str,
        fields: &[(String, String)],
        connections: usize,
        (certificate, key): (&Path, &Path),
        client: &Arc<ClientConfig>,
    ) -> Nginx {
        let speaks = Speaks::Tls {
            certificate,
            key,
            http2: false,
        };
        let nginx = Nginx::start_with(body, fields, connections, &speaks);
        let connection = Connection::tls(nginx.address, client, "localhost").expect("TLS");
        nginx.check(connection, body);
        nginx
    }

    pub fn start_with(
        body: &str,
        fields: &[(String, String)],
        connections: usize,
        speaks: &Speaks<'_>,
    ) -> Nginx {
        let text = |address, _: &Path| {
            let origin = origin(body, fields);
            configuration(
                &format!("listen {address} {}", speaks.flags()),
                speaks,
                connections,
                "",
                &origin,
            )
        };
        Nginx::launch(body, text)
    }

    /// Starts nginx with an access log of its usual form, in a file.
    pub fn start_logging(body: &str, fields: &[(String, String)], connections: usize) -> Nginx {
        let text = |address, _: &Path| {
            let location = format!("access_log access.log combined; {}", origin(body, fields));
            let listen = format!("listen {address}");
            configuration(&listen, &Speaks::Http1, connections, "", &location)
        };
        Nginx::launch(body, text)
    }

    /// Starts nginx with a cache in front of such a server, which it asks once. The cache's key is of
    /// the client's key, the path and the body.
    pub fn start_caching(
        body: &str,
        fields: &[(String, String)],
        connections: usize,
        speaks: &Speaks<'_>,
    ) -> Nginx {
        let text = |address, folder: &Path| {
            let socket = folder.join("behind.sock");
            let socket = socket.display();
            let behind = format!(
                "proxy_cache_path cache levels=1:2 keys_zone=hits:16m;
    server {{ listen unix:{socket}; location / {{ {} }} }}",
                origin(body, fields)
            );
            let cached = format!(
                "proxy_pass http://unix:{socket}:;
            proxy_cache hits; proxy_cache_methods POST; proxy_cache_valid 200 1h;
            proxy_cache_key $http_authorization$request_uri$request_body;
            proxy_ignore_headers Cache-Control Vary; add_header x-nginx $upstream_cache_status;"
            );
            configuration(
                &format!("listen {address} {}", speaks.flags()),
                speaks,
                connections,
                &behind,
                &cached,
            )
        };
        Nginx::launch(body, text)
    }

    fn launch(body: &str, configuration: impl FnOnce(SocketAddr, &Path) -> String) -> Nginx {
        assert!(!body.contains('$'), "nginx cannot return a dollar sign");
        let folder = TempDir::new().expect("a folder for nginx");
        // nginx does not accept port 0. Between this line and its start another process may take
        // the port; then nginx reports it and the bench must be run again.
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port of the kernel's choice");
        let file = folder.path().join("nginx.conf");
        fs::write(&file, configuration(address, folder.path())).expect("a fresh folder");
        let core = SERVER_CORE.to_string();
        let mut child = Command::new("taskset")
            .args(["-c", &core, "nginx", "-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .args(["-e", "stderr"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx and taskset are installed");
        eventually("nginx listens", || {
            let ended = child.try_wait().expect("the child is ours");
            assert!(ended.is_none(), "nginx has ended: {ended:?}");
            Connection::tcp(address).ok()
        });
        Nginx {
            child,
            address,
            _folder: folder,
        }
    }

    fn check(&self, mut connection: Connection, body: &str) {
        let bytes = request("POST", "/api/v1/generate", &[], b"{}");
        let answer = connection.exchange(&bytes);
        assert_eq!(answer.expect(200).text(), body, "nginx returns other bytes");
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    pub fn version() -> String {
        let output = Command::new("nginx")
            .arg("-v")
            .output()
            .expect("nginx is installed");
        String::from_utf8_lossy(&output.stderr)
            .trim()
            .replace("nginx version: ", "")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Fails only if it has ended by itself, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the lines of a location that returns these bytes.
fn origin(body: &str, fields: &[(String, String)]) -> String {
    let quoted = body.replace('\\', "\\\\").replace('"', "\\\"");
    let added: String = fields
        .iter()
        .filter(|(name, _)| !NGINX_FIELDS.contains(&name.as_str()))
        .map(|(name, value)| format!("add_header {name} \"{value}\"; "))
        .collect();
    format!("default_type application/json; {added} return 200 \"{quoted}\";")
}

fn configuration(
    listen: &str,
    speaks: &Speaks<'_>,
    connections: usize,
    before: &str,
    location: &str,
) -> String {
    format!(
        r#"daemon off;
master_process off;
pid nginx.pid;
worker_rlimit_nofile {descriptors};
events {{ worker_connections {connections}; multi_accept on; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_header_timeout 600s;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    tcp_nodelay on;
    {before}
    server {{
        {listen} backlog=4096;
        {tls}
        location / {{
            {location}
        }}
    }}
}}
"#,
        descriptors = connections + 64,
        tls = speaks.lines(),
    )
}

/// The results of wrk in one run.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub requests: u64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Runs one thread of wrk on the load's core, posting `body` with `key` over kept connections.
pub fn wrk(
    address: SocketAddr,
    key: &str,
    body: &str,
    connections: usize,
    duration: Duration,
) -> Load {
    wrk_at(
        &format!("http://{address}"),
        key,
        body,
        connections,
        duration,
    )
}

/// Like [`wrk`], for a server at `origin`, which may use TLS.
pub fn wrk_at(origin: &str, key: &str, body: &str, connections: usize, duration: Duration) -> Load {
    let folder = TempDir::new().expect("a folder for wrk's script");
    let script = folder.path().join("post.lua");
    fs::write(&script, wrk_script(key, body)).expect("a fresh folder");
    let output = Command::new("taskset")
        .args(["-c", &LOAD_CORE.to_string(), "wrk", "-t1"])
        .arg(format!("-c{connections}"))
        .arg(format!("-d{}s", duration.as_secs()))
        .args(["--timeout", "30s", "-s"])
        .arg(&script)
        .arg(format!("{origin}/api/v1/generate"))
        .output()
        .expect("wrk and taskset are installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    parse_wrk(&text).unwrap_or_else(|| {
        panic!(
            "wrk said:\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// Runs one thread of h2load on the load's core, with `streams` on each of `connections`. A run
/// with a failed request measures nothing.
pub fn h2load(
    origin: &str,
    key: &str,
    body: &str,
    (connections, streams): (usize, usize),
    duration: Duration,
) -> Load {
    let folder = TempDir::new().expect("a folder for the body");
    let file = folder.path().join("body.json");
    fs::write(&file, body).expect("a fresh folder");
    let output = Command::new("taskset")
        .args(["-c", &LOAD_CORE.to_string(), "h2load", "-t1"])
        .args(["-c", &connections.to_string(), "-m", &streams.to_string()])
        .args(["-D", &duration.as_secs().to_string(), "--warm-up-time=1"])
        .arg("-d")
        .arg(&file)
        .args(["-H", "content-type: application/json"])
        .args(["-H", &format!("authorization: Bearer {key}")])
        .arg(format!("{origin}/api/v1/generate"))
        .output()
        .expect("h2load and taskset are installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    parse_h2load(&text, duration).unwrap_or_else(|| {
        panic!(
            "h2load said:\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// Like [`h2load`], with percentiles: each request is logged, which costs the load's core more.
pub fn h2load_timed(
    origin: &str,
    key: &str,
    body: &str,
    (connections, streams): (usize, usize),
    duration: Duration,
) -> Load {
    let folder = TempDir::new().expect("a folder for the body");
    let (file, log) = (folder.path().join("body.json"), folder.path().join("log"));
    fs::write(&file, body).expect("a fresh folder");
    let output = Command::new("taskset")
        .args(["-c", &LOAD_CORE.to_string(), "h2load", "-t1"])
        .args(["-c", &connections.to_string(), "-m", &streams.to_string()])
        .args(["-D", &duration.as_secs().to_string(), "--warm-up-time=1"])
        .arg(format!("--log-file={}", log.display()))
        .arg("-d")
        .arg(&file)
        .args(["-H", "content-type: application/json"])
        .args(["-H", &format!("authorization: Bearer {key}")])
        .arg(format!("{origin}/api/v1/generate"))
        .output()
        .expect("h2load and taskset are installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // A line is the start, the status and the time in microseconds.
    let lines = fs::read_to_string(&log).unwrap_or_default();
    let times: Vec<f64> = lines
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse().ok())
        .collect();
    let load = parse_h2load(&text, duration).filter(|_| !times.is_empty());
    let load = load.unwrap_or_else(|| {
        panic!(
            "h2load said:\n{text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    });
    Load {
        p50_us: percentile(&times, 0.5),
        p99_us: percentile(&times, 0.99),
        ..load
    }
}

/// h2load reports a mean and no percentiles.
fn parse_h2load(text: &str, duration: Duration) -> Option<Load> {
    let line = text
        .lines()
        .find(|line| line.starts_with("status codes:"))?;
    let mut numbers = line.split([' ', ',']).filter_map(|word| word.parse().ok());
    let (good, others): (u64, Vec<u64>) = (numbers.next()?, numbers.collect());
    (good > 0 && others.iter().all(|&count| count == 0)).then_some(Load {
        requests: good,
        seconds: duration.as_secs_f64(),
        p50_us: f64::NAN,
        p99_us: f64::NAN,
    })
}

fn wrk_script(key: &str, body: &str) -> String {
    format!(
        r#"wrk.method = "POST"
wrk.body = [==[{body}]==]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
wrk.headers["Accept"] = "*/*"
wrk.headers["User-Agent"] = "python-requests/2.32.3"
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("result %d %d %.1f %.1f %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), failed))
end
"#
    )
}

/// Parses the line that the script wrote. A run with a failed request measures nothing.
fn parse_wrk(text: &str) -> Option<Load> {
    let line = text.lines().find_map(|line| line.strip_prefix("result "))?;
    let numbers: Vec<f64> = line
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [requests, microseconds, p50_us, p99_us, failed] = numbers[..] else {
        return None;
    };
    (failed == 0.0 && requests > 0.0).then_some(Load {
        requests: requests as u64,
        seconds: microseconds / 1e6,
        p50_us,
        p99_us,
    })
}

/// Returns a description of the machine, for the head of a report.
pub fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| {
        line.strip_prefix("model name")
            .and_then(|rest| rest.split(": ").nth(1))
    });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{}, {cores} cores, Linux {}",
        model.unwrap_or("unknown CPU"),
        kernel.trim()
    )
}

/// Requires a program to be installed, and names the command that installs it.
pub fn require(program: &str, package: &str) {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| is_file(&folder.join(program)))
    });
    assert!(
        found,
        "this bench needs `{program}`: apt-get install {package}"
    );
}

fn is_file(path: &Path) -> bool {
    path.is_file()
}
