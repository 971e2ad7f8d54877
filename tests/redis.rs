//! Redis beside the daemon: one server, a set under Sentinel, a cluster.

mod common;

use common::redis::{Cluster, SentinelSet, Server};

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
