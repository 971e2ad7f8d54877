//! Three daemons with one PostgreSQL database behind HAProxy, with Redis or without.
//!
//! Mutations, each caught by the test named:
//! * reports of taken requests that are not sent: `a_limit_holds_behind_a_balancer`
//! * `announce` without the notices: `a_revoked_key_is_refused_by_all_within_a_second`, which then
//!   waits for the next look at the store each time, and the same by gossip
//! * a claim without a lease that runs out: `jobs_spread_and_outlive_a_daemon`
//! * a cache key of the daemon's own: `one_computes_and_the_others_send_it`

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use common::haproxy::HaProxy;
use common::postgres::{Postgres, Way};
use common::redis::Server;
use common::{Connection, Daemon, Options, eventually, request, udp_addresses, within};

const DAEMONS: usize = 3;

/// The bound of the daemon's promise for one revocation.
const REVOCATION: Duration = Duration::from_secs(1);

struct Cluster {
    daemons: Vec<Daemon>,
    proxy: HaProxy,
    database: String,
    postgres: Arc<Postgres>,
}

impl Cluster {
    /// `set` makes the options of the daemon with this number and folder.
    fn start(set: impl Fn(Options, usize, &Path) -> Options) -> Cluster {
        let postgres = Postgres::shared();
        let database = postgres.database();
        let mut daemons: Vec<Daemon> = Vec::new();
        for number in 0..DAEMONS {
            let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
            // The first daemon of all makes the key; the others find it in the database.
            if let Some(first) = daemons.first() {
                std::fs::create_dir(folder.path().join("state")).expect("a folder");
                let key = first.state_folder().join("bootstrap-key");
                let copy = folder.path().join("state/bootstrap-key");
                std::fs::copy(key, copy).expect("a file");
            }
            let url = postgres.url(&database, Way::Socket);
            let options = set(
                Options::echo().set("store.url", &url),
                number,
                folder.path(),
            );
            daemons.push(options.in_folder(Arc::new(folder)).start());
        }
        // Without a time for the response `inter` would be one, and a busy daemon would be down. A
        // killed one is found by its refusal to connect.
        let mut lines = "  option httpchk GET /readyz\n  timeout check 30s\n  \
                         balance roundrobin\n"
            .to_owned();
        for (number, daemon) in daemons.iter().enumerate() {
            let address = daemon.address();
            lines += &format!("  server d{number} {address} check inter 1s fall 1 rise 1\n");
        }
        let proxy = HaProxy::with_backend(daemons[0].folder().path(), "http", &lines);
        Cluster {
            daemons,
            proxy,
            database,
            postgres,
        }
    }

    fn with_redis(redis: &Server, set: impl Fn(Options) -> Options) -> Cluster {
        // Redis stays. A daemon that took a late response for a loss would go on alone.
        let cluster = Cluster::start(|options, _, _| {
            set(options
                .set("cache.shared.url", &redis.url())
                .set("cache.shared.timeout", "5s"))
        });
        for gauge in ["autoglmd_redis_up", "autoglmd_bus_up"] {
            cluster.wait_for(gauge, 1.0);
        }
        cluster
    }

    fn with_gossip() -> Cluster {
        let addresses = udp_addresses::<DAEMONS>();
        let cluster = Cluster::start(|options, number, folder| {
            let secret = folder.join("secret");
            std::fs::write(&secret, "a secret of one cluster, for tests").expect("a file");
            let peers: Vec<String> = addresses.iter().map(|one| format!("\"{one}\"")).collect();
            options
                .set("bus.kind", "gossip")
                .set("bus.listen", &addresses[number].to_string())
                .set_raw("bus.peers", &format!("[{}]", peers.join(", ")))
                .set("bus.secret_file", secret.to_str().expect("a plain path"))
        });
        cluster.wait_for("autoglmd_bus_members", (DAEMONS - 1) as f64);
        cluster
    }

    fn wait_for(&self, gauge: &str, value: f64) {
        for daemon in &self.daemons {
            eventually(gauge, || {
                (daemon.metrics().sum(gauge, &[]) == value).then_some(())
            });
        }
    }

    /// Runs a command as on one of the machines.
    fn run(&self, number: usize, arguments: &[&str]) -> (String, String) {
        let daemon = &self.daemons[number];
        let file = daemon.configuration_file().display().to_string();
        let output = daemon.run(&[arguments, &["--config", &file]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{err}");
        (out, err)
    }

    /// Creates a key, and returns it with its id once all daemons accept it.
    fn create_key(&self, number: usize, more: &[&str]) -> (String, String) {
        let (secret, message) = self.run(number, &[&["key", "create"], more].concat());
        let (id, _) = message.split_once(':').expect("the id is first");
        self.await_all(&secret, 200);
        (secret, id.to_owned())
    }

    fn await_all(&self, secret: &str, status: u16) {
        for daemon in &self.daemons {
            eventually("the key is accepted, or refused", || {
                (models(daemon.address(), secret) == status).then_some(())
            });
        }
    }

    /// Revokes keys on each machine in turn. All daemons refuse each of them within a second of the
    /// command, which takes longer itself, on average.
    fn revoke_some(&self) {
        let keys = 2 * DAEMONS;
        let what = format!("{keys} revocations on {DAEMONS} daemons");
        let rounds = within(REVOCATION * keys as u32, &what, || {
            (0..keys).map(|turn| self.revoke_one(turn)).sum()
        });
        for daemon in &self.daemons {
            let name = "autoglmd_bus_notices_received_total";
            let received = daemon.metrics().sum(name, &[]);
            assert!(received >= (rounds * keys) as f64, "{received} notices");
        }
    }

    /// Returns the time from the end of the command until all daemons refuse the key.
    fn revoke_one(&self, turn: usize) -> Duration {
        let (secret, id) = self.create_key(turn % DAEMONS, &[]);
        self.run((turn + 1) % DAEMONS, &["key", "revoke", &id]);
        let start = Instant::now();
        self.await_all(&secret, 401);
        assert_eq!(models(self.proxy.address, &secret), 401);
        start.elapsed()
    }

    fn attempts(&self, number: usize) -> f64 {
        let labels = [("outcome", "completed")];
        let metrics = self.daemons[number].metrics();
        metrics.sum("autoglmd_job_attempts_total", &labels)
    }

    fn sql(&self, statement: &str) -> String {
        self.postgres.sql(&self.database, statement)
    }
}

fn models(address: SocketAddr, secret: &str) -> u16 {
    let authorization = format!("Bearer {secret}");
    let fields = [("authorization", authorization.as_str())];
    let request = request("GET", "/api/v1/models", &fields, b"");
    let mut connection = Connection::tcp(address).expect("it accepts");
    connection.exchange(&request).status()
}

#[test]
fn a_limit_holds_behind_a_balancer() {
    const BURST: u32 = 30;
    const LEASE: u32 = 3;
    let redis = Server::start();
    let cluster = Cluster::with_redis(&redis, |options| {
        options
            .set_raw("rate_limit.enabled", "true")
            .set_raw("rate_limit.requests_per_minute", "60")
            .set_raw("rate_limit.burst", &BURST.to_string())
            .set_raw("rate_limit.lease", &(100 * LEASE / BURST).to_string())
    });
    let start = Instant::now();
    // The daemons' first responses to this key are from the same limit.
    let (secret, _) = cluster.create_key(0, &[]);
    let accepted = AtomicUsize::new(DAEMONS);
    std::thread::scope(|scope| {
        for _ in 0..DAEMONS {
            scope.spawn(|| {
                for _ in 0..40 {
                    if models(cluster.proxy.address, &secret) == 200 {
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let accepted = accepted.into_inner() as u32;
    let earned = start.elapsed().as_secs() as u32 + 1;
    println!("{accepted} of 123 accepted, {earned} earned");
    assert!(
        accepted <= BURST + earned + LEASE * DAEMONS as u32,
        "{accepted} accepted"
    );
    assert!(
        accepted >= BURST - LEASE * DAEMONS as u32,
        "{accepted} accepted"
    );
}

#[test]
fn a_revoked_key_is_refused_by_all_within_a_second() {
    let redis = Server::start();
    Cluster::with_redis(&redis, |options| options).revoke_some();
}

#[test]
fn a_revoked_key_is_refused_by_all_within_a_second_by_gossip() {
    Cluster::with_gossip().revoke_some();
}

/// One of them computes; the next one that HAProxy chooses has it from Redis.
#[test]
fn one_computes_and_the_others_send_it() {
    let redis = Server::start();
    let cluster = Cluster::with_redis(&redis, Options::with_cache);
    let first = &cluster.daemons[0];
    let mut verdicts = Vec::new();
    let mut results = Vec::new();
    for turn in 0..2 * DAEMONS {
        let body = json!({"prompt": "shared", "language": "python"});
        let mut connection = Connection::tcp(cluster.proxy.address).expect("it accepts");
        let answer = connection
            .exchange(&first.generate_request(&body))
            .expect(200);
        verdicts.push(answer.field("x-cache").expect("a verdict").to_owned());
        results.push(answer.json()["id"].clone());
        if turn == 0 {
            let mut direct = redis.connect();
            eventually("the result is in Redis", || {
                let count: usize = redis::cmd("DBSIZE").query(&mut direct).ok()?;
                (count > 0).then_some(())
            });
        }
    }
    verdicts.sort();
    assert_eq!(verdicts, ["hit", "hit", "hit", "miss", "shared", "shared"]);
    assert!(results.iter().all(|id| *id == results[0]), "{results:?}");
}

/// Clients that submit jobs through HAProxy until the test has enough.
struct Submitting<'a> {
    cluster: &'a Cluster,
    request: Vec<u8>,
    is_over: AtomicBool,
    accepted: Mutex<Vec<String>>,
}

impl Submitting<'_> {
    /// A response that is not 202 accepts nothing: HAProxy has lost the daemon, or it is full.
    fn run(&self) {
        let mut connection = None;
        while !self.is_over.load(Ordering::Relaxed) {
            let mut open = connection
                .take()
                .unwrap_or_else(|| Connection::tcp(self.cluster.proxy.address).expect("HAProxy"));
            if open.try_send(&self.request).is_err() {
                continue;
            }
            let Ok(answer) = open.try_answer() else {
                continue;
            };
            match answer.status() {
                202 => {
                    let id = answer.json()["id"].as_str().expect("an id").to_owned();
                    self.accepted.lock().expect("no panic").push(id);
                    connection = Some(open);
                }
                429 | 502 | 503 => {}
                _ => panic!("{answer}"),
            }
        }
    }

    fn count(&self) -> usize {
        self.accepted.lock().expect("no panic").len()
    }

    fn wait_for_more(&self, count: usize) {
        let enough = self.count() + count;
        eventually("jobs are accepted", || {
            (self.count() >= enough).then_some(())
        });
    }
}

struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn jobs_spread_and_outlive_a_daemon() {
    const JOBS: usize = 60;
    let mut cluster = Cluster::start(|options, _, _| options.set("jobs.lease", "1s"));
    let body = json!({"prompt": "x", "cache": "bypass"}).to_string();
    let request = cluster.daemons[0].request("POST", "/api/v1/jobs", body.as_bytes());
    let killed = cluster.daemons[0].process();
    let submitting = Submitting {
        cluster: &cluster,
        request,
        is_over: AtomicBool::new(false),
        accepted: Mutex::default(),
    };
    std::thread::scope(|scope| {
        let _end = EndOf(&submitting.is_over);
        for _ in 0..4 {
            scope.spawn(|| submitting.run());
        }
        submitting.wait_for_more(JOBS);
        eventually("each daemon has completed jobs", || {
            (0..DAEMONS)
                .all(|number| cluster.attempts(number) > 0.0)
                .then_some(())
        });
        killed.signal(libc::SIGKILL);
        submitting.wait_for_more(JOBS);
    });
    let ids = submitting.accepted.into_inner().expect("no panic");
    let unfinished = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')";
    eventually("all jobs have ended", || {
        (cluster.sql(unfinished) == "0").then_some(())
    });
    cluster.daemons[0].kill();
    for (index, id) in ids.iter().enumerate() {
        let daemon = &cluster.daemons[1 + index % 2];
        let job = daemon.get(&format!("/api/v1/jobs/{id}")).expect(200).json();
        assert_eq!(job["status"], "completed", "{job}");
    }
    let twice = "SELECT count(*) FROM (SELECT job FROM job_events WHERE kind = 'done'
                 GROUP BY job HAVING count(*) > 1) AS jobs";
    assert_eq!(cluster.sql(twice), "0");
    let again = "SELECT count(*) FROM jobs WHERE attempt > 1";
    let again = cluster.sql(again);
    println!("{} jobs, {again} of them ran again", ids.len());
}
