//! The bus over Kafka, against the cluster of brokers that librdkafka simulates in this process.
//!
//! `bus.kind = "kafka"` is a feature of its own, and compiling librdkafka takes minutes, so
//! `.ci/run` leaves these tests out:
//!
//!     cargo test --features kafka --test kafka

mod common;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use autoglmd::bus::kafka::{self, KafkaSettings};
use autoglmd::bus::{Invalidation, Notice};
use autoglmd::config::{BusKind, Config};
use autoglmd::telemetry::metrics::Metrics;

use common::{Daemon, Options, PATIENCE, eventually, request, within};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

const TOPIC: &str = "autoglmd-notices";

type Cluster = MockCluster<'static, DefaultProducerContext>;

/// Two daemons on one database, and brokers.
struct Pair {
    cluster: Cluster,
    daemons: [Daemon; 2],
}

fn options(cluster: &Cluster) -> Options {
    let brokers: Vec<String> = cluster
        .bootstrap_servers()
        .split(',')
        .map(|broker| format!("\"{broker}\""))
        .collect();
    Options::echo()
        .set("bus.kind", "kafka")
        .set_raw("bus.brokers", &format!("[{}]", brokers.join(", ")))
}

impl Pair {
    fn start(brokers: i32) -> Pair {
        let cluster = MockCluster::new(brokers).expect("the brokers start");
        cluster
            .create_topic(TOPIC, 1, brokers)
            .expect("a topic is made");
        let first = options(&cluster).start();
        let second = options(&cluster).in_folder(first.folder()).start();
        let pair = Pair {
            cluster,
            daemons: [first, second],
        };
        pair.wait_until_up(1.0);
        pair
    }

    fn wait_until_up(&self, value: f64) {
        for daemon in &self.daemons {
            eventually("autoglmd_bus_up", || (up(daemon) == value).then_some(()));
        }
    }

    /// Creates a key, and returns its id and its text once both daemons accept it.
    fn create_key(&self) -> (String, String) {
        let output = self.run(&["key", "create"]);
        let key = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        let said = String::from_utf8(output.stderr).unwrap();
        let (id, _) = said.split_once(':').expect("the id is shown");
        for daemon in &self.daemons {
            eventually("the key is accepted", || {
                (models(daemon, &key) == 200).then_some(())
            });
        }
        (id.to_owned(), key)
    }

    /// Revokes a key, and returns how long the daemons accepted it after the command's end.
    fn revoke(&self, id: &str, key: &str) -> Duration {
        let output = self.run(&["key", "revoke", id]);
        assert!(output.status.success(), "{output:?}");
        let start = Instant::now();
        for daemon in &self.daemons {
            eventually("the key is refused", || {
                (models(daemon, key) == 401).then_some(())
            });
        }
        start.elapsed()
    }

    fn run(&self, words: &[&str]) -> std::process::Output {
        let config = self.daemons[0].configuration_file();
        let config = config.to_str().unwrap();
        self.daemons[0].run(&[words, &["--config", config]].concat())
    }
}

fn models(daemon: &Daemon, key: &str) -> u16 {
    let authorization = format!("Bearer {key}");
    let fields = [("authorization", authorization.as_str())];
    let answer = daemon.exchange(&request("GET", "/api/v1/models", &fields, b""));
    answer.status()
}

fn up(daemon: &Daemon) -> f64 {
    daemon.metrics().sum("autoglmd_bus_up", &[])
}

fn received(daemon: &Daemon) -> f64 {
    let metrics = daemon.metrics();
    metrics.sum("autoglmd_bus_notices_received_total", &[])
}

/// By polling alone ten revocations take about as many seconds, because each follows a look at
/// once.
///
/// Mutations: `announce` without the notices; a consumer that is assigned another partition.
#[test]
fn kafka_carries_a_revocation_to_all_daemons() {
    let pair = Pair::start(1);
    let what = "10 revocations on two daemons, by Kafka";
    within(Duration::from_secs(5), what, || {
        let revoke_one = |_| {
            let (id, key) = pair.create_key();
            pair.revoke(&id, &key)
        };
        (0..10).map(revoke_one).sum()
    });
    for daemon in &pair.daemons {
        assert!(received(daemon) >= 10.0, "{} notices", received(daemon));
    }
}

/// Mutation: no `Notice::All` after an assignment.
#[test]
fn the_store_is_read_whenever_notices_may_have_been_missed() {
    let cluster = MockCluster::new(1).expect("a broker starts");
    cluster.create_topic(TOPIC, 1, 1).expect("a topic is made");
    let mut config = Config::default();
    config.bus.kind = BusKind::Kafka;
    config.bus.brokers = vec![cluster.bootstrap_servers()];
    let settings = KafkaSettings::of(&config.bus).expect("Kafka is the bus");
    let (sender, notices) = mpsc::channel();
    let series = Metrics::new("echo").series();
    let on_notice = Box::new(move |notice| sender.send(notice).expect("the test listens"));
    let (thread, bus) = kafka::start(settings, series, on_notice).expect("the bus starts");
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::All));
    let notice = Notice::Key("key_5f0c92ab61d7".to_owned());
    bus.publish(&notice);
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(notice));
    cluster.broker_down(1).expect("the broker stops");
    eventually("the loss", || (!bus.is_connected()).then_some(()));
    cluster.broker_up(1).expect("the broker starts");
    assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::All));
    drop(thread);
}

/// Mutation: `note(false)` left out.
#[test]
fn a_lost_broker_is_reported_and_the_store_is_polled() {
    let pair = Pair::start(1);
    let (id, key) = pair.create_key();
    pair.cluster.broker_down(1).expect("the broker stops");
    pair.wait_until_up(0.0);
    for daemon in &pair.daemons {
        daemon.wait_for_log(0, "the bus is lost");
        assert_eq!(daemon.get("/readyz").status(), 200);
    }
    println!("revoked without a broker: {:?}", pair.revoke(&id, &key));
    pair.cluster.broker_up(1).expect("the broker starts");
    pair.wait_until_up(1.0);
    for daemon in &pair.daemons {
        daemon.wait_for_log(0, "the bus is back");
    }
    let (id, key) = pair.create_key();
    let before = received(&pair.daemons[1]);
    pair.revoke(&id, &key);
    eventually("the notice arrives", || {
        (received(&pair.daemons[1]) > before).then_some(())
    });
}

/// Of three brokers, two go, and with them the leader of the partition at least once.
///
/// Mutation: any error of a connection that ends the subscription without a question.
#[test]
fn another_broker_takes_over() {
    let pair = Pair::start(3);
    for broker in [1, 2] {
        pair.cluster
            .partition_leader(TOPIC, 0, Some(broker))
            .unwrap();
        pair.cluster.broker_down(broker).expect("the broker stops");
        pair.cluster.partition_leader(TOPIC, 0, Some(3)).unwrap();
        let (id, key) = pair.create_key();
        pair.revoke(&id, &key);
    }
    pair.wait_until_up(1.0);
    let (id, key) = pair.create_key();
    let before = received(&pair.daemons[1]);
    pair.revoke(&id, &key);
    eventually("the notice arrives", || {
        (received(&pair.daemons[1]) > before).then_some(())
    });
}

/// A broker that accepts requests and does not respond.
///
/// Mutation: no question to a silent broker.
#[test]
fn a_stopped_broker_is_noticed_and_holds_no_request_up() {
    let pair = Pair::start(1);
    let long = Duration::from_secs(600);
    pair.cluster.broker_round_trip_time(1, long).unwrap();
    for daemon in &pair.daemons {
        for _ in 0..50 {
            assert_eq!(daemon.get("/healthz").status(), 200);
        }
    }
    pair.wait_until_up(0.0);
    let (id, key) = pair.create_key();
    pair.revoke(&id, &key);
    pair.cluster
        .broker_round_trip_time(1, Duration::ZERO)
        .unwrap();
    pair.wait_until_up(1.0);
}

/// Notices from before, and messages of strangers, cost nothing.
///
/// Mutation: an assignment from the topic's beginning.
#[test]
fn a_restarted_daemon_reads_from_the_end_and_refuses_other_messages() {
    let cluster = MockCluster::new(1).expect("a broker starts");
    cluster.create_topic(TOPIC, 1, 1).expect("a topic is made");
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", cluster.bootstrap_servers());
    let producer: BaseProducer = client.create().expect("a producer is made");
    let send = |text: &str| {
        let record: BaseRecord<'_, str, str> = BaseRecord::to(TOPIC).partition(0).payload(text);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(20)).unwrap();
    };
    for _ in 0..20 {
        send("1 all");
    }
    let watcher: BaseConsumer = client.create().expect("a consumer is made");
    let marks = watcher.fetch_watermarks(TOPIC, 0, Duration::from_secs(20));
    assert_eq!(marks.unwrap(), (0, 20));
    let daemon = options(&cluster).start();
    eventually("the bus", || (up(&daemon) == 1.0).then_some(()));
    send("a stranger's message");
    send("1 all");
    eventually("the notice arrives", || {
        (received(&daemon) > 0.0).then_some(())
    });
    assert_eq!(received(&daemon), 1.0);
    let metrics = daemon.metrics();
    assert_eq!(metrics.sum("autoglmd_bus_messages_refused_total", &[]), 1.0);
}
