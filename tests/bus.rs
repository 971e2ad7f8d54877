//! Several daemons on one store: notices of changed keys, and limits that hold for all together.

mod common;

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use autoglmd::bus::gossip::GossipSettings;
use autoglmd::bus::gossip::members::notice_payload;
use autoglmd::bus::gossip::seal::{SealKey, Sealer};
use autoglmd::bus::redis;
use autoglmd::bus::{Invalidation, Notice};
use autoglmd::config::{BusKind, Config, RedisUrl};
use autoglmd::core::UnixMillis;
use autoglmd::redis::{Link, Settings};
use autoglmd::telemetry::metrics::Metrics;

use common::redis::Server;
use common::{Daemon, Options, PATIENCE, eventually, request, udp_addresses, within};
use serde_json::json;

/// A daemon that took a late response for the loss of Redis would apply limits alone and miss
/// notices.
fn options(server: &Server) -> Options {
    Options::echo()
        .set("cache.shared.url", &server.url())
        .set("cache.shared.timeout", "5s")
}

/// Two daemons on one database and one Redis.
struct Pair {
    daemons: [Daemon; 2],
}

impl Pair {
    fn start(server: &Server, set: impl Fn(Options) -> Options) -> Pair {
        let options = || set(options(server));
        let first = options().start();
        let second = options().in_folder(first.folder()).start();
        let pair = Pair {
            daemons: [first, second],
        };
        pair.wait_for("autoglmd_redis_up", 1.0);
        pair.wait_for("autoglmd_bus_up", 1.0);
        pair
    }

    fn wait_for(&self, gauge: &str, value: f64) {
        for daemon in &self.daemons {
            eventually(gauge, || {
                (daemon.metrics().sum(gauge, &[]) == value).then_some(())
            });
        }
    }

    fn wait_for_in_log(&self, text: &str) {
        for daemon in &self.daemons {
            daemon.wait_for_log(0, text);
        }
    }

    fn create_key(&self) -> (String, String) {
        create_key(&self.daemons[0], &self.daemons)
    }

    fn revoke(&self, id: &str, key: &str) -> Duration {
        revoke(&self.daemons[0], &self.daemons, id, key)
    }
}

/// Creates a key, and returns its id and its text once all daemons accept it.
fn create_key(first: &Daemon, daemons: &[Daemon]) -> (String, String) {
    let output = first.run(&["key", "create"]);
    let key = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let said = String::from_utf8(output.stderr).unwrap();
    let (id, _) = said.split_once(':').expect("the id is shown");
    for daemon in daemons {
        eventually("the key is accepted", || {
            (models(daemon, &key) == 200).then_some(())
        });
    }
    (id.to_owned(), key)
}

/// Revokes a key, and returns how long the daemons accepted it after the command's end.
fn revoke(first: &Daemon, daemons: &[Daemon], id: &str, key: &str) -> Duration {
    let config = first.configuration_file();
    let config = config.to_str().unwrap();
    let output = first.run(&["key", "revoke", id, "--config", config]);
    assert!(output.status.success(), "{output:?}");
    let start = Instant::now();
    for daemon in daemons {
        eventually("the key is refused", || {
            (models(daemon, key) == 401).then_some(())
        });
    }
    start.elapsed()
}

fn models(daemon: &Daemon, key: &str) -> u16 {
    let authorization = format!("Bearer {key}");
    let fields = [("authorization", authorization.as_str())];
    let answer = daemon.exchange(&request("GET", "/api/v1/models", &fields, b""));
    answer.status()
}

/// The bound is the daemon's promise: a second. By polling alone ten revocations take about as many
/// seconds, because each follows a look at once.
///
/// Mutations: `announce` without the notices; `on_notice` that does not ask for a look.
#[test]
fn a_key_revoked_on_one_machine_is_refused_by_all_at_once() {
    let server = Server::start();
    let pair = Pair::start(&server, |options| options);
    let what = "10 revocations on two daemons";
    within(Duration::from_secs(5), what, || {
        let revoke_one = |_| {
            let (id, key) = pair.create_key();
            pair.revoke(&id, &key)
        };
        (0..10).map(revoke_one).sum()
    });
    for daemon in &pair.daemons {
        let received = daemon
            .metrics()
            .sum("autoglmd_bus_notices_received_total", &[]);
        assert!(received >= 10.0, "{received} notices");
    }
}

/// Mutation: no `Notice::All` after a connect.
#[test]
fn the_store_is_read_whenever_notices_may_have_been_missed() {
    let mut server = Server::start();
    let mut config = Config::default();
    config.cache_shared.url = RedisUrl::parse(&server.url());
    config.cache_shared.timeout = Duration::from_secs(5);
    let settings = Settings::of(&config.cache_shared, None).expect("no password");
    let settings = settings.expect("a URL");
    let metrics = Metrics::new("echo");
    let (_link, handle) = Link::start(settings.clone(), metrics.series()).expect("it starts");
    let (sender, notices) = mpsc::channel();
    let on_notice = Box::new(move |notice| sender.send(notice).expect("the test listens"));
    let started = redis::start(settings, handle, metrics.series(), on_notice);
    let (thread, bus) = started.expect("the bus starts");
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::All));
    server.kill();
    eventually("the loss", || (!bus.is_connected()).then_some(()));
    server.restart();
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::All));
    drop(thread);
}

/// Mutations: `note(false)` left out; a loss that is logged at each attempt; the first one alone.
#[test]
fn a_lost_bus_is_reported_and_the_store_is_polled() {
    let mut server = Server::start();
    let pair = Pair::start(&server, |options| options);
    let (id, key) = pair.create_key();
    server.kill();
    pair.wait_for("autoglmd_bus_up", 0.0);
    pair.wait_for("autoglmd_redis_up", 0.0);
    for daemon in &pair.daemons {
        daemon.wait_for_log(0, "the bus is lost");
        let ready = daemon.get("/readyz").expect(200);
        assert!(ready.text().contains("Redis is lost"), "{}", ready.text());
    }
    println!("revoked without a bus: {:?}", pair.revoke(&id, &key));
    let (id, key) = pair.create_key();
    server.restart();
    pair.wait_for("autoglmd_bus_up", 1.0);
    pair.wait_for("autoglmd_redis_up", 1.0);
    pair.revoke(&id, &key);
    let ready = pair.daemons[0].get("/readyz").expect(200);
    assert!(!ready.text().contains("Redis"), "{}", ready.text());
    server.kill();
    pair.wait_for("autoglmd_bus_up", 0.0);
    pair.wait_for("autoglmd_redis_up", 0.0);
    let positions = pair.daemons.each_ref().map(Daemon::log_position);
    server.restart();
    for (daemon, position) in pair.daemons.iter().zip(positions) {
        for words in [
            ["the bus is lost", "the bus is back"],
            ["going on without it", "connected to redis://"],
        ] {
            daemon.wait_for_log(position, words[1]);
            let lines = daemon.log_lines();
            let kind = |line: &String| words.iter().position(|word| line.contains(word));
            let kinds: Vec<usize> = lines.iter().filter_map(kind).collect();
            let is_in_turn = kinds.windows(2).all(|pair| pair[0] != pair[1]);
            assert!(is_in_turn, "once, however many attempts: {lines:#?}");
        }
    }
}

/// Mutation: no PING on a silent connection.
#[test]
fn a_stopped_redis_is_noticed_and_holds_no_request_up() {
    let server = Server::start();
    // The test's own questions for metrics take from the limits, too. The lease is a whole burst: a
    // smaller one would end before the loss is noticed.
    let pair = Pair::start(&server, |options| {
        options
            .set("cache.shared.timeout", "300ms")
            .set_raw("rate_limit.enabled", "true")
            .set_raw("rate_limit.requests_per_minute", "600000")
            .set_raw("rate_limit.burst", "100000")
            .set_raw("rate_limit.lease", "100")
    });
    server.pause();
    for daemon in &pair.daemons {
        for _ in 0..50 {
            let answer = daemon.generate(&json!({"prompt": "a"}));
            assert_eq!(answer.status(), 200, "{}", answer.text());
        }
    }
    pair.wait_for("autoglmd_bus_up", 0.0);
    pair.wait_for("autoglmd_redis_up", 0.0);
    let (id, key) = pair.create_key();
    pair.revoke(&id, &key);
    server.resume();
    pair.wait_for("autoglmd_bus_up", 1.0);
    pair.wait_for("autoglmd_redis_up", 1.0);
}

/// Mutations: reports that are not sent; `take` that never asks for the common count.
#[test]
fn daemons_share_the_limit_of_a_key() {
    let mut server = Server::start();
    let pair = Pair::start(&server, |options| {
        options
            .set_raw("rate_limit.enabled", "true")
            .set_raw("rate_limit.requests_per_minute", "60")
            .set_raw("rate_limit.burst", "20")
            .set_raw("rate_limit.lease", "10")
    });
    let (_, key) = pair.create_key();
    let start = Instant::now();
    let mut accepted = 0;
    for turn in 0..80 {
        let daemon = &pair.daemons[turn % 2];
        accepted += u32::from(models(daemon, &key) == 200);
    }
    // A unit per second is earned. `create_key` has taken some before.
    let earned = start.elapsed().as_secs() as u32 + 1;
    println!("{accepted} of 80 accepted, {earned} earned");
    assert!(accepted <= 20 + earned + 2 * 2, "{accepted} accepted");
    assert!(accepted >= 10, "{accepted} accepted");
    // Without Redis each applies the limit alone, and says so.
    server.kill();
    pair.wait_for_in_log("is lost");
    let (_, other) = pair.create_key();
    let alone: Vec<usize> = pair
        .daemons
        .iter()
        .map(|daemon| (0..40).filter(|_| models(daemon, &other) == 200).count())
        .collect();
    assert!(alone.iter().all(|count| *count >= 15), "{alone:?}");
}

/// Mutation: `take_tokens` that takes from the daemon's own bucket alone.
#[test]
fn durable_jobs_take_from_the_tokens_that_daemons_share() {
    let server = Server::start();
    let limited = || {
        options(&server)
            .set_raw("rate_limit.enabled", "true")
            .set_raw("rate_limit.requests_per_minute", "600000")
            .set_raw("rate_limit.burst", "10000")
            .set_raw("rate_limit.tokens_per_minute", "6000")
            .set_raw("rate_limit.lease", "1")
    };
    let first = limited().start();
    let second = limited()
        .set_raw("jobs.enabled", "false")
        .in_folder(first.folder())
        .start();
    let pair = Pair {
        daemons: [first, second],
    };
    pair.wait_for("autoglmd_redis_up", 1.0);
    let [first, second] = &pair.daemons;
    // Some 130 tokens each, 8,000 together.
    let long = json!({"prompt": "word ".repeat(100), "max_tokens": 10}).to_string();
    for _ in 0..60 {
        let submitted = first.request("POST", "/api/v1/jobs", long.as_bytes());
        let answer = first.exchange(&submitted);
        assert_eq!(answer.status(), 202, "{}", answer.text());
    }
    eventually("the jobs have taken all tokens", || {
        let name = "autoglmd_job_attempts_total";
        let released = first.metrics().sum(name, &[("outcome", "released")]);
        (released >= 1.0).then_some(())
    });
    let short = json!({"prompt": "a", "max_tokens": 10});
    let start = Instant::now();
    let accepted = (0..200).filter(|_| second.generate(&short).status() == 200);
    let accepted = accepted.count() as u64;
    // Each uses 8 tokens. A lease is 60 tokens, and a hundred are earned per second.
    let earned = 100 * (start.elapsed().as_secs() + 1);
    assert!(
        8 * accepted <= 60 + 10 + earned,
        "{accepted} of 200 accepted"
    );
}

// ---- gossip ----

/// Mutation: an error without its key.
#[test]
fn an_unusable_secret_is_refused_with_its_key_and_its_file() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("secret");
    let mut config = Config::default();
    config.bus.kind = BusKind::Gossip;
    config.bus.listen = Some(([127, 0, 0, 1], 7946).into());
    config.bus.secret_file = Some(path.clone());
    let refused = || {
        GossipSettings::of(&config.bus, None)
            .err()
            .expect("refused")
    };
    let start = format!("bus.secret_file: {}", path.display());
    assert!(refused().starts_with(&start), "{}", refused());
    std::fs::write(&path, "short").unwrap();
    assert!(refused().starts_with(&start), "{}", refused());
    assert!(refused().contains("less than 16 bytes"), "{}", refused());
}

/// Three daemons on one database, without any server.
struct Cluster {
    daemons: Vec<Daemon>,
    addresses: [SocketAddr; 3],
}

const SECRET: &str = "a secret of one cluster, for tests";

impl Cluster {
    fn start() -> Cluster {
        let mut cluster = Cluster {
            daemons: Vec::new(),
            addresses: udp_addresses(),
        };
        for number in 0..3 {
            let daemon = cluster.start_member(number);
            cluster.daemons.push(daemon);
        }
        cluster.wait_for_members(2.0);
        cluster
    }

    fn start_member(&self, number: usize) -> Daemon {
        let peers: Vec<String> = self
            .addresses
            .iter()
            .map(|one| format!("\"{one}\""))
            .collect();
        let base = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = match self.daemons.first() {
            Some(daemon) => daemon.folder(),
            None => Arc::new(tempfile::TempDir::new_in(base).expect("a folder")),
        };
        let secret = folder.path().join("secret");
        std::fs::write(&secret, SECRET).expect("the folder can be written");
        Options::echo()
            .set("bus.kind", "gossip")
            .set("bus.listen", &self.addresses[number].to_string())
            .set_raw("bus.peers", &format!("[{}]", peers.join(", ")))
            .set(
                "bus.secret_file",
                secret.to_str().expect("the path is plain"),
            )
            .in_folder(folder)
            .start()
    }

    fn wait_for_members(&self, count: f64) {
        for daemon in &self.daemons {
            eventually("the members are known", || {
                (daemon.metrics().sum("autoglmd_bus_members", &[]) == count).then_some(())
            });
        }
    }
}

/// Mutation: `publish` of the command without its datagrams; `handle_effects` that drops notices.
#[test]
fn gossip_carries_a_revocation_to_all_daemons() {
    let cluster = Cluster::start();
    let first = &cluster.daemons[0];
    let what = "10 revocations on three daemons, by gossip";
    within(Duration::from_secs(5), what, || {
        let revoke_one = |_| {
            let (id, key) = create_key(first, &cluster.daemons);
            revoke(first, &cluster.daemons, &id, &key)
        };
        (0..10).map(revoke_one).sum()
    });
    for daemon in &cluster.daemons {
        let received = daemon
            .metrics()
            .sum("autoglmd_bus_notices_received_total", &[]);
        assert!(received >= 10.0, "{received} notices");
    }
}

/// Mutation: a restarted member that keeps its identity.
#[test]
fn gossip_misses_a_killed_daemon_and_finds_it_again() {
    let mut cluster = Cluster::start();
    cluster.daemons.pop().expect("the third one").kill();
    cluster.wait_for_members(1.0);
    let third = cluster.start_member(2);
    cluster.daemons.push(third);
    cluster.wait_for_members(2.0);
    let (id, key) = create_key(&cluster.daemons[2], &cluster.daemons);
    revoke(&cluster.daemons[2], &cluster.daemons, &id, &key);
}

/// Mutation: datagrams that are not opened, or taken twice.
#[test]
fn gossip_refuses_strangers_and_repetitions() {
    let cluster = Cluster::start();
    let (daemon, to) = (&cluster.daemons[0], cluster.addresses[0]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let count = |name: &str| daemon.metrics().sum(name, &[]) as u64;
    let (refused, received) = (
        count("autoglmd_bus_messages_refused_total"),
        count("autoglmd_bus_notices_received_total"),
    );
    let payload = |id| notice_payload([id; 16], b"1 all");
    let mut stranger = Sealer::new(SealKey::new(b"another secret, of a stranger"), 1);
    let mut member = Sealer::new(SealKey::new(SECRET.as_bytes()), 2);
    let now = UnixMillis::now().as_u64();
    let genuine = member.seal(&payload(2), now);
    let old = member.seal(&payload(3), now - 60_000);
    for datagram in [
        &stranger.seal(&payload(1), now)[..],
        b"",
        &[0; 2_000],
        &genuine,
        &genuine,
        &old,
    ] {
        socket.send_to(datagram, to).unwrap();
    }
    eventually("five are refused", || {
        (count("autoglmd_bus_messages_refused_total") >= refused + 5).then_some(())
    });
    eventually("one notice arrives", || {
        (count("autoglmd_bus_notices_received_total") > received).then_some(())
    });
    assert_eq!(count("autoglmd_bus_notices_received_total"), received + 1);
    assert_eq!(count("autoglmd_bus_messages_refused_total"), refused + 5);
}
