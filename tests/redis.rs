//! Redis beside the daemon: one server, a set under Sentinel, a cluster.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use autoglmd::bus::{self, Invalidation, Notice};
use autoglmd::cache::shared::{EntryId, FoundEntry, RedisLevel, SharedLevel, SharedSeries};
use autoglmd::config::{CacheShared, RedisUrl};
use autoglmd::core::Moment;
use autoglmd::core::bucket::Rate;
use autoglmd::keys::{Account, Holder, KeyRecord, Scopes};
use autoglmd::leases::{Draw, Leases, Unit};
use autoglmd::limits::cache::SHARED_ENTRY_BYTES_MAX;
use autoglmd::limits::redis::{IDLE_CHECK_INTERVAL, RETRY_PAUSE_MAX, RETRY_PAUSE_MIN};
use autoglmd::redis::metrics::RedisSeries;
use autoglmd::redis::servers::Servers;
use autoglmd::redis::slots::slot_of;
use autoglmd::redis::{Dialer, Handle, Link, Reply, Request, Settings};
use autoglmd::telemetry::metrics::Metrics;
use crossbeam_channel::{Receiver, bounded};

use common::redis::{Cluster, SentinelSet, Server};
use common::{PATIENCE, eventually};

/// The harness itself: what the other tests rest on.
#[test]
fn a_server_is_stopped_killed_and_started_again() {
    let mut server = Server::start();
    let mut connection = server.connect();
    redis::cmd("SET")
        .arg("a")
        .arg(1)
        .exec(&mut connection)
        .unwrap();
    server.pause();
    server.resume();
    let found: Option<u32> = redis::cmd("GET").arg("a").query(&mut connection).unwrap();
    assert_eq!(found, Some(1));
    let port = server.port();
    server.kill();
    assert!(redis::cmd("PING").exec(&mut connection).is_err());
    server.restart();
    assert_eq!(server.port(), port);
    let found: Option<u32> = redis::cmd("GET")
        .arg("a")
        .query(&mut server.connect())
        .unwrap();
    assert_eq!(found, None, "nothing is saved");
}

#[test]
fn a_set_under_sentinel_and_a_cluster_start() {
    let set = SentinelSet::start();
    assert!(set.url().starts_with("redis+sentinel://127.0.0.1:"));
    let cluster = Cluster::start();
    assert_eq!(cluster.nodes.len(), 3);
}

// ---- the connection ----

/// The timeout of a test that stops its server and waits for the loss. A busy machine rarely stands
/// still for as long.
const STOPPED: Duration = Duration::from_secs(5);

/// The timeout of attempts that are to fail by it.
const SHORT: Duration = Duration::from_millis(300);

/// A connection of the daemon's own kind.
struct Client {
    _link: Link,
    handle: Handle,
    series: Arc<RedisSeries>,
    settings: Settings,
}

fn config_of(url: &str, timeout: Duration) -> CacheShared {
    CacheShared {
        url: RedisUrl::parse(url),
        timeout,
        ..CacheShared::default()
    }
}

fn settings_of(config: &CacheShared) -> Settings {
    Settings::of(config, None).unwrap().expect("a URL")
}

impl Client {
    fn to(url: &str, timeout: Duration) -> Client {
        Client::with(config_of(url, timeout))
    }

    fn with(config: CacheShared) -> Client {
        let settings = settings_of(&config);
        let series: Arc<RedisSeries> = Metrics::new("echo").series();
        let (link, handle) = Link::start(settings.clone(), Arc::clone(&series)).unwrap();
        Client {
            _link: link,
            handle,
            series,
            settings,
        }
    }

    fn connected(self) -> Client {
        eventually("a server is connected", || {
            self.handle.is_up().then_some(())
        });
        self
    }

    /// Submits a command; the reply arrives in the receiver.
    fn submit(&self, key: &str, words: &[&str]) -> Option<Receiver<Reply>> {
        let (sender, replies) = bounded(1);
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let request = Request::new(key, &words, Moment::NEVER, move |reply| {
            sender.send(reply).expect("the test waits for it");
        });
        self.handle.submit(request).ok().map(|()| replies)
    }

    fn ask(&self, key: &str, words: &[&str]) -> Reply {
        match self.submit(key, words) {
            Some(replies) => replies.recv_timeout(PATIENCE).expect("exactly one reply"),
            None => Reply::Failed,
        }
    }

    fn set(&self, key: &str, value: &str) -> bool {
        self.ask(key, &["SET", key, value]) == Reply::Nothing
    }

    fn get(&self, key: &str) -> Reply {
        self.ask(key, &["GET", key])
    }
}

fn bytes(text: &str) -> Reply {
    Reply::Bytes(text.as_bytes().to_owned())
}

/// Mutation: `serve` that takes one request. The server stands still until all wait.
#[test]
fn requests_that_wait_go_together() {
    let server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    let before = client.series.batches.get();
    server.pause();
    let replies: Vec<Receiver<Reply>> = (0..200)
        .map(|_| client.submit("n", &["INCR", "n"]).expect("there is room"))
        .collect();
    server.resume();
    for (number, reply) in (1..).zip(replies) {
        assert_eq!(reply.recv_timeout(PATIENCE), Ok(Reply::Number(number)));
    }
    let batches = client.series.batches.get() - before;
    assert!(batches <= 2, "200 requests went in {batches} pipelines");
}

/// Mutation: the bytes of a refused or served request are not given back.
#[test]
fn a_full_queue_refuses_and_has_room_again() {
    let server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    server.pause();
    let long = "x".repeat(4 << 20);
    let accepted: Vec<Receiver<Reply>> = (0..40)
        .filter_map(|_| client.submit("a", &["SET", "a", &long]))
        .collect();
    // One or more are with the thread; the queue holds three, with their commands' own bytes.
    assert!((3..=8).contains(&accepted.len()), "{}", accepted.len());
    server.resume();
    for reply in accepted {
        assert_eq!(reply.recv_timeout(PATIENCE), Ok(Reply::Nothing));
    }
    for _ in 0..8 {
        assert!(client.set("a", &long));
    }
}

/// Mutation: `submit` that ignores `is_up`.
#[test]
fn without_a_server_requests_are_refused_at_once() {
    let mut server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    server.kill();
    eventually("the loss is seen", || {
        (client.get("a") == Reply::Failed && !client.handle.is_up()).then_some(())
    });
    assert!(client.submit("a", &["GET", "a"]).is_none());
    assert_eq!(client.series.up.get(), 0);
    server.restart();
    let client = client.connected();
    assert!(client.set("a", "1"));
    assert_eq!(client.get("a"), bytes("1"));
}

/// Mutation: the connection is kept after a timeout, and the next reply is that of an earlier
/// request.
#[test]
fn a_stopped_server_costs_a_timeout_and_its_late_replies_are_not_taken() {
    let server = Server::start();
    let client = Client::to(&server.url(), STOPPED).connected();
    assert!(client.set("early", "early") && client.set("late", "late"));
    server.pause();
    assert_eq!(client.get("early"), Reply::Failed);
    eventually("the loss is seen", || {
        (!client.handle.is_up()).then_some(())
    });
    server.resume();
    let client = client.connected();
    for _ in 0..20 {
        assert_eq!(client.get("late"), bytes("late"));
    }
}

/// Mutations: a pipeline without a bound on its requests, or on its bytes.
#[test]
fn a_pipeline_is_bounded_in_requests_and_in_bytes() {
    let server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    let long = "x".repeat(512 << 10);
    for (count, value, least) in [(600, "x", 3), (7, &long[..], 4)] {
        let before = client.series.batches.get();
        server.pause();
        let replies: Vec<Receiver<Reply>> = (0..count)
            .map(|_| {
                client
                    .submit("a", &["SET", "a", value])
                    .expect("there is room")
            })
            .collect();
        server.resume();
        for reply in replies {
            assert_eq!(reply.recv_timeout(PATIENCE), Ok(Reply::Nothing));
        }
        let batches = client.series.batches.get() - before;
        assert!(
            batches >= least,
            "{count} requests went in {batches} pipelines"
        );
    }
}

/// Mutation: `serve` that ignores the deadline.
#[test]
fn a_request_that_waited_for_too_long_is_not_sent() {
    let server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    server.pause();
    let before = client.series.batches.get();
    let first = client
        .submit("a", &["SET", "a", "1"])
        .expect("there is room");
    eventually("the thread has it", || {
        (client.series.batches.get() > before).then_some(())
    });
    let (sender, replies) = bounded(1);
    let deadline = Moment::now() + Duration::from_millis(1);
    let request = Request::new("a", &[b"SET", b"a", b"2"], deadline, move |reply| {
        sender.send(reply).expect("the test waits for it");
    });
    client.handle.submit(request).expect("there is room");
    eventually("its time is up", || {
        (Moment::now() > deadline).then_some(())
    });
    server.resume();
    assert_eq!(first.recv_timeout(PATIENCE), Ok(Reply::Nothing));
    assert_eq!(replies.recv_timeout(PATIENCE), Ok(Reply::Failed));
    assert_eq!(client.get("a"), bytes("1"));
    use autoglmd::redis::metrics::Outcome::Late;
    assert_eq!(client.series.requests.get(Late).get(), 1);
}

#[test]
fn the_end_of_the_thread_replies_to_all_that_waits() {
    let server = Server::start();
    let client = Client::to(&server.url(), STOPPED).connected();
    server.pause();
    let replies: Vec<Receiver<Reply>> = (0..20)
        .filter_map(|_| client.submit("a", &["GET", "a"]))
        .collect();
    let Client { _link, handle, .. } = client;
    drop(_link);
    for reply in replies {
        assert_eq!(reply.recv_timeout(PATIENCE), Ok(Reply::Failed));
    }
    assert!(!handle.is_up());
    let request = Request::new("a", &[b"GET", b"a"], Moment::NEVER, |_| panic!("served"));
    assert!(handle.submit(request).is_err());
}

/// Mutation: no PING after the connect.
#[test]
fn a_process_that_is_stopped_is_no_connection() {
    let server = Server::start();
    server.pause();
    let client = Client::to(&server.url(), SHORT);
    let dialed = Dialer::new(client.settings.clone()).dial();
    // The kernel has accepted it.
    assert!(dialed.is_err_and(|error| error.is_timeout()));
    assert!(!client.handle.is_up());
}

/// Mutation: a connection without the database of its address.
#[test]
fn the_database_of_the_address_is_used() {
    let server = Server::start();
    let client = Client::to(&format!("{}/3", server.url()), PATIENCE).connected();
    assert!(client.set("a", "1"));
    let mut direct = server.connect();
    for (database, count) in [(3, 1), (0, 0)] {
        let select = redis::cmd("SELECT").arg(database).to_owned();
        select.exec(&mut direct).unwrap();
        let keys: u32 = redis::cmd("DBSIZE").query(&mut direct).unwrap();
        assert_eq!(keys, count, "database {database}");
    }
}

// ---- its times, which are the test's own ----

/// Sends a command at a time. Returns whether it was served.
fn is_served(servers: &mut Servers, words: &[&[u8]], now: Moment) -> bool {
    let (sender, replies) = bounded(1);
    let request = Request::new("a", words, Moment::NEVER, move |reply| {
        sender.send(reply).expect("the test waits for it");
    });
    servers.exchange(vec![request], now);
    let reply = replies.recv_timeout(PATIENCE).expect("exactly one reply");
    reply != Reply::Failed
}

/// Mutations: a connect, a reply or a check that does not count as a use; a connection that is
/// checked although it is in use.
#[test]
fn a_connection_is_checked_once_it_was_idle() {
    let server = Server::start();
    let mut servers = Servers::new(settings_of(&config_of(&server.url(), PATIENCE)));
    let mut direct = server.connect();
    let mut pings = || {
        let info = redis::cmd("INFO").arg("commandstats").to_owned();
        let info: String = info.query(&mut direct).unwrap();
        let mut lines = info.lines();
        let calls = lines.find_map(|line| line.strip_prefix("cmdstat_ping:calls="));
        let calls = calls.and_then(|rest| rest.split(',').next()?.parse().ok());
        calls.unwrap_or(0_u32)
    };
    let moment = Duration::from_micros(1);
    let mut used_at = Moment::now();
    servers.maintain(used_at);
    assert!(servers.is_up());
    let of_connect = pings();
    for number in 1..=3 {
        let check_at = used_at + IDLE_CHECK_INTERVAL;
        assert_eq!(servers.next_maintenance(), check_at);
        // A moment before it is due the connection is used.
        used_at = used_at + (IDLE_CHECK_INTERVAL - moment);
        assert!(is_served(&mut servers, &[b"GET", b"a"], used_at));
        servers.maintain(check_at);
        assert_eq!(pings(), of_connect + number - 1, "it is in use");
        used_at = used_at + IDLE_CHECK_INTERVAL;
        servers.maintain(used_at);
        assert_eq!(pings(), of_connect + number, "it was idle");
    }
    assert_eq!(servers.next_maintenance(), used_at + IDLE_CHECK_INTERVAL);
}

/// Mutations: an attempt that fails without a pause after it, or whose pause begins with the
/// attempt and is over by its end; a connect that leaves the count of failures.
#[test]
fn attempts_to_connect_have_pauses_between_them_which_a_connect_ends() {
    let mut server = Server::start();
    let mut servers = Servers::new(settings_of(&config_of(&server.url(), SHORT)));
    server.pause();
    let before = Moment::now();
    servers.maintain(before);
    assert!(!servers.is_up());
    // The attempt has taken the timeout.
    let least = SHORT + RETRY_PAUSE_MIN / 2;
    assert!(servers.next_maintenance() >= before + least);
    server.kill();
    for _ in 0..8 {
        servers.maintain(servers.next_maintenance());
    }
    let pause = servers.next_maintenance().since(Moment::now());
    assert!(pause > RETRY_PAUSE_MAX / 4, "{pause:?}");
    server.restart();
    eventually("it is connected", || {
        servers.maintain(servers.next_maintenance());
        servers.is_up().then_some(())
    });
    server.kill();
    let lost_at = servers.next_maintenance();
    assert!(!is_served(&mut servers, &[b"GET", b"a"], lost_at));
    assert!(!servers.is_up());
    let pause = servers.next_maintenance().since(lost_at);
    assert!(pause <= RETRY_PAUSE_MIN, "{pause:?}");
}

// ---- a server of the test's own ----

/// Plays a server: each connection's commands get the replies of `script`. Returns its port, and
/// the count of connections.
fn play(script: impl Fn(&[String]) -> String + Send + Sync + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let (script, connections) = (Arc::new(script), Arc::new(AtomicUsize::new(0)));
    let accepted = Arc::clone(&connections);
    // They end with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            accepted.fetch_add(1, Ordering::Relaxed);
            let (stream, script) = (stream.expect("a connection"), Arc::clone(&script));
            std::thread::spawn(move || speak(stream, &*script));
        }
    });
    (port, connections)
}

fn speak(mut stream: TcpStream, script: &dyn Fn(&[String]) -> String) {
    let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
    while let Some(Ok(head)) = lines.next() {
        let count: usize = head.trim_start_matches('*').parse().expect("a count");
        // Each word has its length on the line before it.
        let words = lines.by_ref().take(2 * count).map_while(Result::ok);
        let words: Vec<String> = words.skip(1).step_by(2).collect();
        if words.is_empty() || stream.write_all(script(&words).as_bytes()).is_err() {
            return;
        }
    }
}

/// Mutation: a reading limit for each reply, in place of one for the batch.
#[test]
fn a_batch_has_one_deadline_however_slowly_the_replies_come() {
    let (port, _) = play(|words| match words[0].as_str() {
        "PING" => "+PONG\r\n".to_owned(),
        _ => {
            // Paced by itself: this is the server's work, and nothing waits for it.
            std::thread::sleep(SHORT / 3);
            "+OK\r\n".to_owned()
        }
    });
    let client = Client::to(&format!("redis://127.0.0.1:{port}"), SHORT).connected();
    let replies: Vec<Receiver<Reply>> = (0..20)
        .filter_map(|_| client.submit("a", &["SET", "a", "1"]))
        .collect();
    let replies = replies.iter().map(|reply| reply.recv_timeout(PATIENCE));
    let served = replies.filter(|reply| *reply == Ok(Reply::Nothing)).count();
    // A batch of the first request, and one of all others.
    assert!(served <= 6, "{served} of 20 were waited for");
}

/// Mutations: a sentinel that is asked again and again; no look at ROLE.
#[test]
fn another_sentinel_is_asked_and_a_replica_is_no_master() {
    let master = Server::start();
    let replica = Server::with(&[&format!("replicaof 127.0.0.1 {}", master.port())]);
    let sentinel_of = |port: u16| {
        let (port, _) = play(move |words| match words[0].as_str() {
            "PING" => "+PONG\r\n".to_owned(),
            _ => {
                let port = port.to_string();
                format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len())
            }
        });
        port
    };
    let (old, new) = (sentinel_of(replica.port()), sentinel_of(master.port()));
    let url = format!("redis+sentinel://127.0.0.1:{old},127.0.0.1:1,127.0.0.1:{new}/m");
    let settings = Client::to(&url, PATIENCE).settings.clone();
    let mut dialer = Dialer::new(settings.clone());
    let error = dialer.dial().err().expect("a replica");
    assert!(error.to_string().contains("not the master"), "{error}");
    assert!(dialer.dial().is_err(), "no sentinel is there");
    assert!(dialer.dial().is_ok());
    // A command tries as often.
    bus::redis::publish(settings, &[Notice::All]).expect("the third sentinel is asked");
}

/// Mutations: each word of `Verdict::of` that is left out.
#[test]
fn an_error_that_the_whole_server_has_makes_another_connection() {
    let (port, connections) = play(|words| match words[0].as_str() {
        "PING" => "+PONG\r\n".to_owned(),
        code => format!("-{code} the test wants it\r\n"),
    });
    let config = config_of(&format!("redis://127.0.0.1:{port}"), PATIENCE);
    let mut servers = Servers::new(settings_of(&config));
    servers.maintain(servers.next_maintenance());
    for (code, is_lost) in [
        ("WRONGTYPE", false),
        ("NOPERM", false),
        ("MOVED", false),
        ("READONLY", true),
        ("LOADING", true),
        ("MASTERDOWN", true),
        ("NOAUTH", true),
        ("NOREPLICAS", true),
    ] {
        let before = connections.load(Ordering::Relaxed);
        let now = servers.next_maintenance();
        assert!(!is_served(&mut servers, &[code.as_bytes()], now));
        assert_eq!(servers.is_up(), !is_lost, "{code}");
        servers.maintain(servers.next_maintenance());
        assert!(servers.is_up());
        let more = connections.load(Ordering::Relaxed) - before;
        assert_eq!(more, usize::from(is_lost), "{code}");
    }
}

/// Mutations: each word of `Verdict::of` for which the map is not read again; a node that is lost
/// and keeps its slots.
#[test]
fn an_error_about_a_slot_or_a_lost_node_makes_another_map() {
    let (port, maps) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicUsize::new(0)));
    let (own, asked) = (Arc::clone(&port), Arc::clone(&maps));
    let (played, _) = play(move |words| match words[0].as_str() {
        "PING" => "+PONG\r\n".to_owned(),
        "CLUSTER" => {
            asked.fetch_add(1, Ordering::Relaxed);
            let port = own.load(Ordering::Relaxed);
            format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:{port}\r\n")
        }
        code => format!("-{code} 1 127.0.0.1:1\r\n"),
    });
    port.store(played, Ordering::Relaxed);
    let config = config_of(&format!("redis+cluster://127.0.0.1:{played}"), PATIENCE);
    let mut servers = Servers::new(settings_of(&config));
    for (number, code) in (1..).zip(["MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "READONLY"]) {
        eventually("the node is connected", || {
            servers.maintain(servers.next_maintenance());
            servers.is_up().then_some(())
        });
        assert_eq!(maps.load(Ordering::Relaxed), number);
        let now = servers.next_maintenance();
        assert!(!is_served(&mut servers, &[code.as_bytes()], now));
        assert_eq!(servers.is_up(), code != "READONLY", "{code}");
        servers.maintain(servers.next_maintenance());
        assert_eq!(maps.load(Ordering::Relaxed), number + 1, "{code}");
    }
}

/// Mutation: a connection that is kept though the reply for the map has not come.
#[test]
fn a_node_that_owes_its_map_is_connected_again() {
    let maps = Arc::new(AtomicUsize::new(0));
    let (asked, port) = (Arc::clone(&maps), Arc::new(AtomicU16::new(0)));
    let own = Arc::clone(&port);
    let (played, connections) = play(move |words| match words[0].as_str() {
        "PING" => "+PONG\r\n".to_owned(),
        "CLUSTER" => {
            if asked.fetch_add(1, Ordering::Relaxed) == 1 {
                // Longer than the client waits.
                std::thread::sleep(2 * STOPPED);
            }
            let node = format!(
                "*2\r\n$9\r\n127.0.0.1\r\n:{}\r\n",
                own.load(Ordering::Relaxed)
            );
            format!("*1\r\n*3\r\n:0\r\n:16383\r\n{node}")
        }
        "MOVE" => "-MOVED 1 127.0.0.1:1\r\n".to_owned(),
        _ => format!("${}\r\n{}\r\n", words[1].len(), words[1]),
    });
    port.store(played, Ordering::Relaxed);
    let url = format!("redis+cluster://127.0.0.1:{played}");
    let client = Client::to(&url, STOPPED).connected();
    assert_eq!(client.get("first"), bytes("first"));
    let before = connections.load(Ordering::Relaxed);
    assert_eq!(client.ask("a", &["MOVE", "a"]), Reply::Failed);
    eventually("the node is connected again", || {
        (connections.load(Ordering::Relaxed) > before).then_some(())
    });
    assert!(maps.load(Ordering::Relaxed) >= 2);
    eventually("the node is used again", || {
        (client.get("last") == bytes("last")).then_some(())
    });
}

/// The password's file is read at each connect, so its loss looks like that of a server.
///
/// Mutation: `read_up_to` in place of `read_named`.
#[test]
fn a_missing_password_is_not_reported_as_a_missing_server() {
    let config = CacheShared {
        url: RedisUrl::parse("redis://127.0.0.1:1"),
        password_file: Some("/nonexistent/password".into()),
        ..CacheShared::default()
    };
    let settings = Settings::of(&config, None).unwrap().expect("a URL");
    let error = Dialer::new(settings).dial().err().expect("no password");
    let expected = "cache.shared.password_file: /nonexistent/password: No such file";
    assert!(error.to_string().starts_with(expected), "{error}");
}

#[test]
fn a_password_is_read_at_each_connect() {
    let mut server = Server::with(&["requirepass first"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let client = Client::with(CacheShared {
        url: RedisUrl::parse(&server.url()),
        password_file: Some(file.clone()),
        timeout: PATIENCE,
        ..CacheShared::default()
    })
    .connected();
    assert!(client.set("a", "1"));
    std::fs::write(&file, "second").unwrap();
    server.set_lines(&["requirepass second"]);
    server.restart();
    let (set, _) = eventually("it is connected again", || {
        client.set("a", "2").then_some(())
    });
    assert_eq!((set, client.get("a")), ((), bytes("2")));
}

#[test]
fn tls_is_verified_against_the_configured_authority() {
    let folder = tempfile::tempdir().unwrap();
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| folder.path().join(name));
    std::fs::write(&certificate, signed.cert.pem()).unwrap();
    std::fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
    let server = Server::with_tls(&certificate, &key, &certificate);
    let config = CacheShared {
        url: RedisUrl::parse(&server.url()),
        ca: Some(certificate),
        timeout: PATIENCE,
        ..CacheShared::default()
    };
    let client = Client::with(config.clone()).connected();
    assert!(client.set("a", "1"));
    assert_eq!(client.get("a"), bytes("1"));
    // The system's authorities have not signed it.
    let stranger = Client::with(CacheShared { ca: None, ..config });
    let series = &stranger.series;
    assert_eq!(stranger.get("a"), Reply::Failed);
    assert_eq!((series.up.get(), stranger.handle.is_up()), (0, false));
}

/// Mutation: a master that is kept after `READONLY`, or one that is found only once.
#[test]
fn another_master_is_found_through_the_sentinels() {
    let mut set = SentinelSet::start();
    let client = Client::to(&set.url(), PATIENCE).connected();
    assert!(client.set("a", "1"));
    set.master.kill();
    eventually("the replica has become the master", || {
        client.set("a", "2").then_some(())
    });
    let found: String = redis::cmd("GET")
        .arg("a")
        .query(&mut set.replica.connect())
        .unwrap();
    assert_eq!(found, "2");
}

/// Mutation: no new map after `MOVED`, or one dead node that ends all.
#[test]
fn a_cluster_serves_all_slots_that_it_has_and_follows_them() {
    let mut cluster = Cluster::start();
    let client = Client::to(&cluster.url(), PATIENCE).connected();
    let keys: Vec<String> = (0..60).map(|number| format!("key-{number}")).collect();
    for key in &keys {
        eventually("its node is connected", || {
            client.set(key, key).then_some(())
        });
    }
    assert!(keys.iter().all(|key| client.get(key) == bytes(key)));
    let held: Vec<usize> = cluster
        .nodes
        .iter()
        .map(|node| redis::cmd("DBSIZE").query(&mut node.connect()).unwrap())
        .collect();
    assert!(held.iter().all(|count| *count > 0), "{held:?}");

    // Keys with one tag are together, and their slot moves to another node.
    let slot = slot_of(b"{tag}");
    let from = cluster.node_of_slot(slot);
    let to = (from + 1) % 3;
    cluster.move_empty_slot(slot, to);
    eventually("the moved slot is found", || {
        client.set("{tag}a", "1").then_some(())
    });
    let there: Option<String> = redis::cmd("GET")
        .arg("{tag}a")
        .query(&mut cluster.nodes[to].connect())
        .unwrap();
    assert_eq!(there.as_deref(), Some("1"));

    cluster.nodes[from].kill();
    let is_there = |key: &&String| cluster.node_of_slot(slot_of(key.as_bytes())) != from;
    let (there, gone): (Vec<&String>, Vec<&String>) = keys.iter().partition(is_there);
    eventually("the others serve", || {
        there
            .iter()
            .all(|key| client.get(key) == bytes(key))
            .then_some(())
    });
    assert!(gone.iter().all(|key| client.get(key) == Reply::Failed));
    assert!(client.handle.is_up());
    cluster.nodes[from].restart();
    for key in gone {
        eventually("the node is used again", || {
            client.set(key, key).then_some(())
        });
    }
}

/// Returns the rules of the user in the documentation, such as `+get` and `~autoglmd:*`.
fn documented_rules() -> String {
    let text = include_str!("../docs/operations.md");
    let start = text.find("`+get").expect("the commands");
    let end = start + text[start..].find(". ").expect("the end of the sentence");
    let words = text[start..end].replace('`', " ");
    let is_rule = |word: &&str| word.starts_with(['+', '~', '&']);
    words
        .split_whitespace()
        .filter(is_rule)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Mutation: a command or a pattern that the documentation leaves out.
#[test]
fn the_user_of_the_documentation_may_do_what_the_daemon_does() {
    let rules = format!("user daemon on >secret {}", documented_rules());
    let server = Server::with(&[&rules, "user default on >other allcommands"]);
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let url = format!("redis://daemon@127.0.0.1:{}/1", server.port());
    let client = Client::with(CacheShared {
        url: RedisUrl::parse(&url),
        password_file: Some(password),
        timeout: PATIENCE,
        ..CacheShared::default()
    })
    .connected();

    let (level, _) = level_of(&client);
    let get = || find(&level, ID).is_some();
    level.put(ID, b"an entry", PATIENCE);
    assert!(get());
    level.delete(Some(ID.tenant));
    eventually("the entry is deleted", || (!get()).then_some(()));
    level.put(ID, &vec![7; 2 << 20], PATIENCE);
    let draw = Draw {
        unit: Unit::Requests,
        rate: Rate::new(60, 60),
        units: 1,
        percent: 100,
    };
    let leases = Leases::new(client.handle.clone());
    assert!(leases.take(&holder(), draw, Moment::now()).is_ok());

    let (sender, notices) = bounded(4);
    let on_notice = Box::new(move |notice| sender.send(notice).expect("the test listens"));
    let series = Metrics::new("echo").series();
    let started = bus::redis::start(
        client.settings.clone(),
        client.handle.clone(),
        series,
        on_notice,
    );
    let (_thread, bus) = started.expect("the bus starts");
    assert_eq!(
        notices.recv_timeout(PATIENCE),
        Ok(Notice::All),
        "subscribed"
    );
    bus.publish(&Notice::Entries);
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::Entries));
    let mut connection = Dialer::new(client.settings.clone()).dial().unwrap();
    redis::cmd("ROLE").exec(&mut connection).unwrap();
    let slots = redis::cmd("CLUSTER").arg("SLOTS").exec(&mut connection);
    // It is not a cluster, and says so to those who may ask.
    assert_ne!(slots.unwrap_err().code(), Some("NOPERM"));
    use autoglmd::redis::metrics::Outcome::Failed;
    // The replies come in order.
    assert!(!get());
    assert_eq!(client.series.requests.get(Failed).get(), 0);
}

// ---- the bus ----

/// Mutation: a command that publishes the first of its notices, or none.
#[test]
fn a_command_publishes_each_of_its_notices() {
    let server = Server::start();
    let client = Client::to(&server.url(), PATIENCE);
    let (sender, notices) = bounded(9);
    let on_notice = Box::new(move |notice| sender.send(notice).expect("the test listens"));
    let series = Metrics::new("echo").series();
    let handle = client.handle.clone();
    let started = bus::redis::start(client.settings.clone(), handle, series, on_notice);
    let (_thread, _) = started.expect("the bus starts");
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::All));
    let sent = [Notice::Key("key_1".to_owned()), Notice::Entries];
    bus::redis::publish(client.settings.clone(), &sent).expect("the server is there");
    let received = [(); 2].map(|()| notices.recv_timeout(PATIENCE).expect("a notice"));
    assert_eq!(received, sent);
}

/// Mutations: a subscription that is reported before it is there; a sign of life that is asked for
/// at each look, or that has less time than any other reply; a thread that ends when its wait does.
#[test]
fn a_subscription_is_reported_when_it_is_there_and_a_slow_sign_of_life_is_enough() {
    use autoglmd::limits::bus::{END_CHECK_INTERVAL, SILENCE_CHECK_INTERVAL};
    let (sender, notices) = bounded(9);
    let told = Arc::new(AtomicUsize::new(0));
    let (known, (events, played)) = (Arc::clone(&told), bounded(9));
    let is_subscribed = AtomicBool::new(false);
    let (port, connections) = play(move |words| {
        let command = words[0].as_str();
        if command == "SUBSCRIBE" {
            is_subscribed.store(true, Ordering::Relaxed);
        } else if !is_subscribed.load(Ordering::Relaxed) {
            return "+PONG\r\n".to_owned();
        }
        let event = (known.load(Ordering::Relaxed), Instant::now());
        events.send(event).expect("the test waits for it");
        if command == "SUBSCRIBE" {
            let channel = &words[1];
            return format!(
                "*3\r\n$9\r\nsubscribe\r\n${}\r\n{channel}\r\n:1\r\n",
                channel.len()
            );
        }
        // Paced by itself: this is the server's work, and nothing waits for it.
        std::thread::sleep(3 * END_CHECK_INTERVAL);
        "*2\r\n$4\r\npong\r\n$0\r\n\r\n".to_owned()
    });
    let url = format!("redis://127.0.0.1:{port}");
    let settings = settings_of(&config_of(&url, 100 * PATIENCE));
    let nowhere = Client::to("redis://127.0.0.1:1", PATIENCE);
    let on_notice = Box::new(move |notice| {
        told.fetch_add(1, Ordering::Relaxed);
        sender.send(notice).expect("the test listens");
    });
    let series = Metrics::new("echo").series();
    let started = bus::redis::start(settings, nowhere.handle.clone(), series, on_notice);
    let (thread, bus) = started.expect("the bus starts");
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::All));
    let next = || played.recv_timeout(PATIENCE).expect("a command");
    let (notices_before, subscribed_at) = next();
    assert_eq!(notices_before, 0);
    for number in 1..=2 {
        let (_, asked_at) = next();
        let silence = asked_at - subscribed_at;
        assert!(silence >= number * SILENCE_CHECK_INTERVAL, "{silence:?}");
    }
    // It responds to the second question, too.
    let (_, third) = next();
    assert!(third - subscribed_at >= 3 * SILENCE_CHECK_INTERVAL);
    assert!(bus.is_connected());
    assert_eq!((notices.len(), connections.load(Ordering::Relaxed)), (0, 1));
    let (end, ended) = bounded(1);
    std::thread::spawn(move || {
        drop(thread);
        end.send(()).expect("the test waits for it");
    });
    assert_eq!(ended.recv_timeout(PATIENCE), Ok(()));
}

// ---- entries ----

/// The entry of most of these tests.
const ID: EntryId = EntryId {
    digest: [1; 32],
    model: [2; 32],
    tenant: 0x2a,
};

/// Returns its key.
fn entry_key() -> String {
    format!("autoglmd:entry:{:016x}:{}", ID.tenant, "01".repeat(32))
}

fn level_of(client: &Client) -> (RedisLevel, Arc<SharedSeries>) {
    let series: Arc<SharedSeries> = Metrics::new("echo").series();
    let level = RedisLevel::new(client.handle.clone(), Arc::clone(&series));
    (level, series)
}

fn find(level: &RedisLevel, id: EntryId) -> Option<FoundEntry> {
    let (sender, entries) = bounded(1);
    let sink = move |found| sender.send(found).expect("the test waits for it");
    assert!(level.get(id, Moment::NEVER, Box::new(sink)));
    entries.recv_timeout(PATIENCE).expect("called once")
}

/// Mutation: a look-up without PTTL.
#[test]
fn an_entry_is_found_with_the_rest_of_its_time() {
    let server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    let (level, _) = level_of(&client);
    let ttl = Duration::from_secs(600);
    level.put(ID, b"an entry", ttl);
    let rest = find(&level, ID).expect("it is there").rest;
    let rest = rest.expect("the server knows");
    assert!(rest <= ttl && rest > ttl - PATIENCE, "{rest:?}");
    // Another program has lifted its end.
    let key = entry_key();
    redis::cmd("PERSIST")
        .arg(&key)
        .exec(&mut server.connect())
        .unwrap();
    assert_eq!(find(&level, ID).expect("it is there").rest, None);
}

/// Mutations: a result without time that leaves the one before it; a walk that failed, or that could
/// not begin, and keeps the next ones from beginning; a look-up that is refused and not counted.
#[test]
fn a_walk_that_fails_is_no_end_of_all_walks() {
    let mut server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    let (level, series) = level_of(&client);
    level.put(ID, b"an entry", PATIENCE);
    assert!(find(&level, ID).is_some());
    level.put(ID, b"one that has expired", Duration::ZERO);
    assert_eq!(find(&level, ID), None);
    server.kill();
    eventually("the loss is seen", || {
        (client.get("a") == Reply::Failed && !client.handle.is_up()).then_some(())
    });
    assert!(!level.get(ID, Moment::NEVER, Box::new(|_| panic!("it is lost"))));
    use autoglmd::cache::shared::Verdict::Lost;
    assert_eq!(series.lookups.get(Lost).get(), 1);
    level.delete(Some(ID.tenant));
    server.restart();
    let client = client.connected();
    eventually("a purge works again", || {
        client.set("autoglmd:entry:000000000000002a:x", "1");
        level.delete(None);
        eventually("a reply", || {
            (client.get("a") == Reply::Nothing).then_some(())
        });
        (client.get("autoglmd:entry:000000000000002a:x") == Reply::Nothing).then_some(())
    });

    let scans = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&scans);
    let (port, _) = play(move |words| match words[0].as_str() {
        "PING" => "+PONG\r\n".to_owned(),
        _ => {
            counted.fetch_add(1, Ordering::Relaxed);
            "-ERR no walks today\r\n".to_owned()
        }
    });
    let client = Client::to(&format!("redis://127.0.0.1:{port}"), PATIENCE).connected();
    let level = RedisLevel::new(client.handle.clone(), series);
    for number in 1..=3 {
        level.delete(None);
        eventually("the server is asked", || {
            (scans.load(Ordering::Relaxed) == number).then_some(())
        });
        // Another request comes behind all that the failure has caused.
        assert_eq!(client.ask("a", &["PING"]), Reply::Nothing);
    }
}

/// Returns how many bytes the server has sent to all clients.
fn sent_bytes(server: &Server) -> u64 {
    let info = redis::cmd("INFO").arg("stats").to_owned();
    let info: String = info.query(&mut server.connect()).unwrap();
    let mut lines = info.lines();
    let sent = lines.find_map(|line| line.strip_prefix("total_net_output_bytes:"));
    sent.and_then(|sent| sent.trim().parse().ok())
        .expect("a number")
}

/// Mutations: GET in place of GETRANGE; a bound that is one off, or that cuts the longest entry.
#[test]
fn a_value_that_is_too_long_or_foreign_is_a_miss() {
    let server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    let (level, series) = level_of(&client);
    let get = |id| find(&level, id).map(|found| found.entry);
    assert_eq!(get(ID), None);
    level.put(ID, b"an entry", PATIENCE);
    assert_eq!(get(ID).as_deref(), Some(&b"an entry"[..]));
    let other = EntryId {
        model: [3; 32],
        ..ID
    };
    assert_eq!(get(other), None, "of another model");
    for (length, is_stored) in [
        (SHARED_ENTRY_BYTES_MAX, true),
        (SHARED_ENTRY_BYTES_MAX + 1, false),
    ] {
        level.put(ID, &vec![7; length], PATIENCE);
        assert_eq!(get(ID).is_some(), is_stored, "{length} bytes");
    }
    let mut direct = server.connect();
    let key = entry_key();
    let mut set = |value: &[u8]| {
        redis::cmd("SET")
            .arg(&key)
            .arg(value)
            .exec(&mut direct)
            .unwrap()
    };
    for value in [&b"a stranger's"[..], &vec![b'x'; 64 << 20]] {
        set(value);
        let before = (client.handle.is_up(), sent_bytes(&server));
        assert_eq!(get(ID), None);
        assert!(before.0 && client.handle.is_up());
        let sent = sent_bytes(&server) - before.1;
        assert!(sent < 4 << 20, "{sent} bytes were read");
    }
    // A list is not a text: the server refuses the command, and the connection stays.
    redis::cmd("DEL").arg(&key).exec(&mut direct).unwrap();
    redis::cmd("LPUSH")
        .arg(&key)
        .arg(1)
        .exec(&mut direct)
        .unwrap();
    assert_eq!(get(ID), None);
    assert!(client.handle.is_up());
    use autoglmd::cache::shared::Verdict::{Foreign, Hit, Lost, Miss};
    let count = |verdict| series.lookups.get(verdict).get();
    assert_eq!([Hit, Miss, Foreign, Lost].map(count), [2, 2, 3, 1]);
}

// ---- leases ----

fn holder() -> Arc<Holder> {
    let record = KeyRecord {
        id: "key_000000000000".to_owned(),
        name: String::new(),
        hash: [0; 32],
        scopes: Scopes::GENERATE,
        created_at: 0,
        expires_at: None,
        requests_per_minute: None,
        tokens_per_minute: None,
        concurrency: None,
        weight: 1,
        revoked: false,
    };
    let account = Arc::new(Account::new(&record.id));
    Arc::new(Holder { record, account })
}

/// Four daemons take as fast as they can, through the real count.
///
/// Mutations: reports that are not sent; a script that returns 0; keys without their hash tag do
/// not fail here, but in the cluster below.
#[test]
fn four_daemons_never_take_more_than_the_limit_and_a_lease_each() {
    let server = Server::start();
    let rate = Rate::new(6_000, 100);
    let (start, all) = (Instant::now(), AtomicUsize::new(0));
    let taken: u32 = std::thread::scope(|scope| {
        let daemons: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let client = Client::to(&server.url(), PATIENCE).connected();
                    let (leases, holder) = (Leases::new(client.handle.clone()), holder());
                    let draw = Draw {
                        unit: Unit::Requests,
                        rate,
                        units: 1,
                        percent: 10,
                    };
                    let (mut own, mut tries) = (0, 0);
                    // The replies of the count come late on a busy machine.
                    let is_enough = || all.load(Ordering::Relaxed) >= 100;
                    while tries < 3_000 || !is_enough() && start.elapsed() < PATIENCE {
                        tries += 1;
                        if tries % 8 == 0 {
                            std::thread::yield_now();
                        }
                        if leases.take(&holder, draw, Moment::now()).is_ok() {
                            all.fetch_add(1, Ordering::Relaxed);
                            own += 1;
                        }
                    }
                    own
                })
            })
            .collect();
        daemons.into_iter().map(|one| one.join().unwrap()).sum()
    });
    let earned = start.elapsed().as_millis() as u32 / 10 + 1;
    println!("{taken} taken, {earned} earned");
    assert!(
        taken <= 100 + earned + 4 * 10,
        "{taken} taken, {earned} earned"
    );
    assert!(taken >= 100, "{taken} taken");
}

fn draw_of(unit: Unit, rate: Rate, units: u32) -> Draw {
    Draw {
        unit,
        rate,
        units,
        percent: 100,
    }
}

/// Returns the rest of the time for which the server remembers a key's requests; -2: it does not.
fn remembered(server: &Server, unit: &str) -> i64 {
    let mut ask = redis::cmd("PTTL");
    let key = format!("autoglmd:{{key_000000000000}}:{unit}");
    ask.arg(key).query(&mut server.connect()).expect("a time")
}

/// Mutations: a report whose failure, or refusal, is not noted, so that none follows it.
#[test]
fn a_report_that_is_lost_or_refused_is_made_again() {
    // A unit per second comes back: the count shows both takes for a good while.
    let rate = Rate::new(60, 600);
    for is_refused in [false, true] {
        let mut server = Server::start();
        let timeout = if is_refused { PATIENCE } else { STOPPED };
        let client = Client::to(&server.url(), timeout).connected();
        let (leases, holder) = (Leases::new(client.handle.clone()), holder());
        let take = |units| {
            let draw = draw_of(Unit::Requests, rate, units);
            leases.take(&holder, draw, Moment::now())
        };
        server.pause();
        let mut waiting = Vec::new();
        while is_refused && let Some(reply) = client.submit("a", &["GET", "a"]) {
            waiting.push(reply);
        }
        assert!(take(50).is_ok());
        if is_refused {
            server.resume();
        } else {
            eventually("the loss is seen", || {
                (!client.handle.is_up()).then_some(())
            });
            // A server that goes on would count the lost report as well.
            server.restart();
        }
        let client = client.connected();
        for reply in waiting {
            assert_eq!(reply.recv_timeout(PATIENCE), Ok(Reply::Nothing));
        }
        assert_eq!(client.get("a"), Reply::Nothing);
        assert!(take(1).is_ok());
        eventually("the count knows of both", || {
            (remembered(&server, "requests") > 30_000).then_some(())
        });
    }
}

/// Mutations: a debt without a bound; a bucket that is full and stays remembered.
#[test]
fn a_debt_is_bounded_and_what_is_given_back_is_forgotten() {
    use autoglmd::limits::core::LEASE_DEBT_FACTOR_MAX;
    let server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    let (leases, rate) = (Leases::new(client.handle.clone()), Rate::new(60, 60));
    let draw = draw_of(Unit::Tokens, rate, 50);
    let now = Moment::now();
    let debtor = holder();
    let (_, reservation) = leases.reserve(&debtor, draw, now).unwrap();
    reservation.reconcile(&debtor, 1_000_000, now);
    let (left, _) = eventually("the count knows of the debt", || {
        let left = remembered(&server, "tokens");
        (left > 61_000).then_some(left)
    });
    let most = i64::from(LEASE_DEBT_FACTOR_MAX) * 60_000 + 1_000;
    assert!(left <= most + 1, "{left}");
    redis::cmd("FLUSHDB").exec(&mut server.connect()).unwrap();

    let giver = holder();
    let (_, reservation) = leases.reserve(&giver, draw, now).unwrap();
    eventually("the count knows of 50", || {
        (remembered(&server, "tokens") > 0).then_some(())
    });
    reservation.reconcile(&giver, 0, now);
    eventually("it is forgotten", || {
        (remembered(&server, "tokens") == -2).then_some(())
    });
}

/// Both buckets of a key are on one node, and tokens that were not used are given back.
#[test]
fn a_cluster_counts_requests_and_tokens() {
    let cluster = Cluster::start();
    let client = Client::to(&cluster.url(), PATIENCE).connected();
    let [requests, tokens] = ["requests", "tokens"]
        .map(|unit| slot_of(format!("autoglmd:{{key_000000000000}}:{unit}").as_bytes()));
    assert_eq!(requests, tokens);
    eventually("its node is connected", || {
        client.set("{key_000000000000}", "").then_some(())
    });
    let (leases, holder, rate) = (
        Leases::new(client.handle.clone()),
        holder(),
        Rate::new(60, 60),
    );
    let draw = Draw {
        unit: Unit::Tokens,
        rate,
        units: 50,
        percent: 100,
    };
    let (level, reservation) = leases.reserve(&holder, draw, Moment::now()).unwrap();
    assert_eq!(level.remaining, 10);
    reservation.reconcile(&holder, 5, Moment::now());
    let node = &cluster.nodes[cluster.node_of_slot(tokens)];
    let mut direct = node.connect();
    let (left, _) = eventually("the count knows of 5", || {
        let mut get = redis::cmd("PTTL");
        let left: i64 = get
            .arg("autoglmd:{key_000000000000}:tokens")
            .query(&mut direct)
            .ok()?;
        // A token takes a second, and the count lives a second longer than it must.
        (1..=6_000).contains(&left).then_some(left)
    });
    assert!(left > 0);
}

/// Mutations: a sweep that ends with its first step, or with the first server; a pattern without the
/// tenant.
#[test]
fn the_entries_of_one_tenant_are_deleted_on_every_server() {
    let (server, cluster) = (Server::start(), Cluster::start());
    for (url, count) in [(server.url(), 1_500), (cluster.url(), 200)] {
        let client = Client::to(&url, PATIENCE).connected();
        let (level, _) = level_of(&client);
        let id = |number: u16, tenant| {
            let mut digest = [7; 32];
            digest[..2].copy_from_slice(&number.to_le_bytes());
            let model = [2; 32];
            EntryId {
                digest,
                model,
                tenant,
            }
        };
        let get = |id| {
            let (sender, entries) = bounded(1);
            let sink = Box::new(move |entry: Option<FoundEntry>| {
                sender.send(entry.is_some()).expect("the test waits for it");
            });
            level.get(id, Moment::NEVER, sink) && entries.recv_timeout(PATIENCE) == Ok(true)
        };
        for number in 0..count {
            for tenant in [1, 2] {
                eventually("the entry is there", || {
                    level.put(id(number, tenant), b"an entry", PATIENCE);
                    get(id(number, tenant)).then_some(())
                });
            }
        }
        level.delete(Some(1));
        eventually("the tenant's entries are gone", || {
            let left = (0..count).filter(|number| get(id(*number, 1))).count();
            (left == 0).then_some(())
        });
        assert!((0..count).all(|number| get(id(number, 2))), "the other's");
        level.delete(None);
        eventually("all entries are gone", || {
            let left = (0..count).filter(|number| get(id(*number, 2))).count();
            (left == 0).then_some(())
        });
    }
}

/// Mutations: a walk for each purge; purges during a walk that are forgotten.
#[test]
fn purges_in_a_loop_share_a_walk() {
    const ENTRIES: u32 = 5_000;
    let server = Server::start();
    let client = Client::to(&server.url(), PATIENCE).connected();
    let (level, _) = level_of(&client);
    let mut direct = server.connect();
    let mut fill = redis::pipe();
    for number in 0..ENTRIES {
        let key = format!("autoglmd:entry:{:016x}:{number:064x}", 1 + number % 3);
        fill.cmd("SET").arg(key).arg("an entry").ignore();
    }
    fill.exec(&mut direct).unwrap();
    for number in 0..300 {
        level.delete(Some(1 + number % 2));
    }
    eventually("the entries of two tenants are gone", || {
        let left: u32 = redis::cmd("DBSIZE").query(&mut direct).ok()?;
        (left == ENTRIES / 3).then_some(())
    });
    let figures: String = redis::cmd("INFO")
        .arg("commandstats")
        .query(&mut direct)
        .unwrap();
    let scans = figures
        .lines()
        .find_map(|line| line.strip_prefix("cmdstat_scan:calls="));
    let scans = scans.and_then(|rest| rest.split(',').next()?.parse().ok());
    let scans: u32 = scans.expect("the count of a command");
    // A step looks at 500 keys or some more. One walk is for the first purge, and one for all that
    // came during it; a last one may have begun.
    assert!(scans <= 3 * (ENTRIES / 500 + 2), "{scans} steps");
}

/// Mutations: a sweep of the first server alone; one that ends with its first step.
#[test]
fn a_command_deletes_the_keys_of_a_pattern_on_every_server() {
    let (server, cluster) = (Server::start(), Cluster::start());
    for (url, count) in [(server.url(), 1_500), (cluster.url(), 60)] {
        let client = Client::to(&url, PATIENCE).connected();
        for number in 0..count {
            for name in ["a", "b"] {
                let key = format!("{name}:{number}");
                eventually("the key is set", || client.set(&key, "x").then_some(()));
            }
        }
        let deleted = autoglmd::redis::delete_matching(client.settings.clone(), "a:*");
        assert_eq!(deleted.unwrap(), count);
        let is_there = |name: &str, number| client.get(&format!("{name}:{number}")) == bytes("x");
        assert!((0..count).all(|number| is_there("b", number) && !is_there("a", number)));
    }
}
