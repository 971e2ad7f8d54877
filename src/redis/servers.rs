//! The connections to one server, to a master under Sentinel, or to all masters of a cluster.
//!
//! Owns each connection with its breaker, and the map of a cluster's slots. A batch is written to
//! every server that it concerns before the first reply is read, and all of it has one deadline:
//! ten servers that hang cost no more than one. Connecting is apart from batches, one attempt at a
//! time.
//!
//! Invariants:
//!  1. Each request of a batch gets exactly one reply.
//!  2. A connection whose reply is missing is never used again: the next reply on it would be that
//!     of an earlier request.
//!  3. A server whose breaker is open costs a request nothing but its failure.
//!
//! Mutations that the tests below catch: a node beyond the bound, slots of an earlier map, a map
//! with gaps that is kept for good.
//!
//! Mutations that `tests/redis.rs` catches: a connection that is kept after a timeout
//! (`a_stopped_server_...`), no new map after `MOVED` (`a_cluster_...`), a master that is kept
//! after `READONLY` (`another_master_...`).

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use ::redis::{Connection, RedisError, RedisResult, Value, cmd};

use super::breaker::Breaker;
use super::dial::{Dialer, Place, Settings};
use super::request::{Reply, Request};
use super::slots::SlotMap;
use crate::config::{RedisHost, RedisServers};
use crate::core::Moment;
use crate::limits::redis as limits;

pub struct Servers {
    dialer: Dialer,
    nodes: Vec<Node>,
    /// `None`: there is one server.
    cluster: Option<ClusterMap>,
    random: RandomState,
    draws: u64,
    /// The last failure, for the log.
    pub last_error: Option<RedisError>,
}

/// One server.
struct Node {
    /// `None`: the dialer finds it.
    place: Option<Place>,
    connection: Option<Connection>,
    breaker: Breaker,
    used_at: Moment,
}

/// The nodes of the slots.
struct ClusterMap {
    slots: SlotMap,
    is_stale: bool,
    breaker: Breaker,
}

impl Node {
    fn new(place: Option<Place>) -> Node {
        Node {
            place,
            connection: None,
            breaker: Breaker::default(),
            used_at: Moment::ZERO,
        }
    }
}

impl Servers {
    pub fn new(settings: Settings) -> Servers {
        let is_cluster = matches!(settings.url.servers, RedisServers::Cluster(_));
        let cluster = is_cluster.then(|| ClusterMap {
            slots: SlotMap::default(),
            is_stale: true,
            breaker: Breaker::default(),
        });
        Servers {
            dialer: Dialer::new(settings),
            nodes: match is_cluster {
                true => Vec::new(),
                false => vec![Node::new(None)],
            },
            cluster,
            random: RandomState::new(),
            draws: 0,
            last_error: None,
        }
    }

    /// Returns whether at least one server is connected.
    pub fn is_up(&self) -> bool {
        self.nodes.iter().any(|node| node.connection.is_some())
    }

    /// Returns when [`Servers::maintain`] has work.
    pub fn next_maintenance(&self) -> Moment {
        let nodes = self.nodes.iter().map(|node| match node.connection {
            Some(_) => node.used_at + limits::IDLE_CHECK_INTERVAL,
            None => node.breaker.next_try(),
        });
        let map = self.cluster.as_ref().filter(|map| map.is_stale);
        let map = map.map(|map| map.breaker.next_try());
        nodes.chain(map).min().unwrap_or(Moment::NEVER)
    }

    /// Takes one step of what is due: reads the map of a cluster, connects to one server, or
    /// checks one idle connection.
    pub fn maintain(&mut self, now: Moment) {
        if let Some(map) = &self.cluster
            && map.is_stale
            && map.breaker.may_try(now)
        {
            return self.read_map(now);
        }
        let is_due = |node: &Node| match node.connection {
            Some(_) => now >= node.used_at + limits::IDLE_CHECK_INTERVAL,
            None => node.breaker.may_try(now),
        };
        let Some(index) = self.nodes.iter().position(is_due) else {
            return;
        };
        if let Some(connection) = &mut self.nodes[index].connection {
            let timeout = self.dialer.settings().timeout;
            let checked = check(connection, timeout);
            self.nodes[index].used_at = now;
            if let Err(error) = checked {
                self.lose(index, error, now);
            }
            return;
        }
        let dialed = match &self.nodes[index].place {
            Some(place) => self.dialer.dial_place(place),
            None => self.dialer.dial(),
        };
        match dialed {
            Ok(connection) => {
                let node = &mut self.nodes[index];
                node.connection = Some(connection);
                node.breaker.note_success();
                node.used_at = now;
            }
            Err(error) => self.lose(index, error, Moment::now()),
        }
    }

    /// Sends all requests, each to its server, and reads the replies.
    pub fn exchange(&mut self, batch: Vec<Request>, now: Moment) {
        let deadline = Instant::now() + self.dialer.settings().timeout;
        let mut groups: Vec<Vec<Request>> = self.nodes.iter().map(|_| Vec::new()).collect();
        for request in batch {
            if request.node.is_some_and(|node| node >= self.nodes.len()) {
                request.finish(Reply::Nothing);
                continue;
            }
            match request.node.or_else(|| self.node_of(&request.key)) {
                Some(index) if self.nodes[index].connection.is_some() => {
                    groups[index].push(request);
                }
                _ => request.finish(Reply::Failed),
            }
        }
        for (index, group) in groups.iter_mut().enumerate() {
            if let Err(error) = self.write(index, group, deadline) {
                group
                    .drain(..)
                    .for_each(|request| request.finish(Reply::Failed));
                self.lose(index, error, now);
            }
        }
        for (index, group) in groups.into_iter().enumerate() {
            self.read(index, group, deadline, now);
        }
    }

    fn node_of(&self, key: &[u8]) -> Option<usize> {
        match &self.cluster {
            Some(map) => map.slots.node_of(key),
            None => Some(0),
        }
    }

    fn write(&mut self, index: usize, group: &[Request], deadline: Instant) -> RedisResult<()> {
        let (Some(connection), false) = (&mut self.nodes[index].connection, group.is_empty())
        else {
            return Ok(());
        };
        let mut bytes = Vec::with_capacity(group.iter().map(|one| one.command.len()).sum());
        for request in group {
            bytes.extend_from_slice(&request.command);
        }
        connection.set_write_timeout(Some(until(deadline)))?;
        connection.send_packed_command(&bytes)
    }

    fn read(&mut self, index: usize, group: Vec<Request>, deadline: Instant, now: Moment) {
        let mut fault = None;
        for request in group {
            let node = &mut self.nodes[index];
            let Some(connection) = &mut node.connection else {
                request.finish(Reply::Failed);
                continue;
            };
            // A reply that is already there needs no new limit, but each late one does.
            let reply = connection
                .set_read_timeout(Some(until(deadline)))
                .and_then(|()| connection.recv_response());
            node.used_at = now;
            match reply {
                Ok(Value::ServerError(error)) => {
                    request.finish(Reply::Failed);
                    let error = RedisError::from(error);
                    match Verdict::of(&error) {
                        Verdict::Refused => log::debug!("Redis refused a command: {error}"),
                        Verdict::Moved => self.forget_map(),
                        Verdict::Unfit => fault = Some(error),
                    }
                }
                Ok(value) => request.finish(Reply::of(value)),
                Err(error) => {
                    request.finish(Reply::Failed);
                    self.lose(index, error, now);
                }
            }
        }
        if let Some(error) = fault {
            self.lose(index, error, now);
        }
    }

    /// Drops a connection, or notes that there is none.
    fn lose(&mut self, index: usize, error: RedisError, now: Moment) {
        self.draws += 1;
        let random = self.random.hash_one(self.draws);
        let node = &mut self.nodes[index];
        node.connection = None;
        node.breaker.note_failure(now, random);
        self.last_error = Some(error);
        // Another node may have taken its slots over.
        self.forget_map();
    }

    fn forget_map(&mut self) {
        if let Some(map) = &mut self.cluster {
            map.is_stale = true;
        }
    }

    /// Asks one node for the map: a connected one, or else those of the configuration in turn.
    fn read_map(&mut self, now: Moment) {
        let timeout = self.dialer.settings().timeout;
        let connected = |node: &Node| node.connection.is_some();
        let asked = self.nodes.iter().position(connected);
        let connection = asked.and_then(|index| self.nodes[index].connection.as_mut());
        let read = match connection {
            Some(connection) => {
                // A batch has left the rest of its own time as the limit.
                limit(connection, timeout).and_then(|()| ranges(connection))
            }
            None => self.dialer.dial().and_then(|mut one| ranges(&mut one)),
        };
        self.draws += 1;
        let random = self.random.hash_one(self.draws);
        if let Some(map) = &mut self.cluster {
            // After a success, too: a map that is read again at once would be the same one, because
            // nodes agree by gossip. Pauses grow while the map changes again and again.
            if now.since(map.breaker.next_try()) > limits::RETRY_PAUSE_MAX {
                map.breaker.note_success();
            }
            map.breaker.note_failure(now, random);
        }
        match (read, asked) {
            (Ok(ranges), _) => self.take_map(ranges),
            (Err(error), Some(index)) => self.lose(index, error, now),
            (Err(error), None) => self.last_error = Some(error),
        }
    }

    /// Replaces the map. Nodes that are in both keep their connections.
    fn take_map(&mut self, ranges: Vec<Range>) {
        let Some(map) = &mut self.cluster else {
            return;
        };
        map.slots = SlotMap::default();
        let mut nodes: Vec<Node> = Vec::new();
        for range in ranges {
            let place = Some(Place::Host(range.host));
            let index = nodes.iter().position(|node| node.place == place);
            if index.is_none() && nodes.len() == limits::CLUSTER_NODES_MAX {
                continue;
            }
            let index = index.unwrap_or_else(|| {
                let known = self.nodes.iter().position(|node| node.place == place);
                nodes.push(match known {
                    Some(at) => self.nodes.swap_remove(at),
                    None => Node::new(place),
                });
                nodes.len() - 1
            });
            map.slots.assign(range.first, range.last, index);
        }
        // A slot without a node sends no request, so no error would show that it has one again.
        map.is_stale = !map.slots.is_whole();
        self.nodes = nodes;
    }
}

/// The meaning of a reported error for the connection.
enum Verdict {
    /// The command alone failed.
    Refused,
    /// Another node has the slot.
    Moved,
    /// The server cannot serve now: it has become a replica, or is loading.
    Unfit,
}

impl Verdict {
    fn of(error: &RedisError) -> Verdict {
        match error.code() {
            Some("MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN") => Verdict::Moved,
            Some("READONLY" | "LOADING" | "MASTERDOWN" | "NOAUTH" | "NOREPLICAS") => Verdict::Unfit,
            _ => Verdict::Refused,
        }
    }
}

fn check(connection: &mut Connection, timeout: Duration) -> RedisResult<()> {
    limit(connection, timeout)?;
    cmd("PING").exec(connection)
}

fn limit(connection: &Connection, timeout: Duration) -> RedisResult<()> {
    connection.set_read_timeout(Some(timeout))?;
    connection.set_write_timeout(Some(timeout))
}

/// The rest of a batch's time. Zero would mean no limit.
fn until(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

/// A range of slots and its master.
pub(super) struct Range {
    first: u64,
    last: u64,
    pub(super) host: RedisHost,
}

/// Reads `CLUSTER SLOTS`: a list of `[first, last, [host, port, ...], replicas...]`.
pub(super) fn ranges(connection: &mut Connection) -> RedisResult<Vec<Range>> {
    let rows: Vec<Vec<Value>> = cmd("CLUSTER").arg("SLOTS").query(connection)?;
    let range = |row: &Vec<Value>| {
        let [
            Value::Int(first),
            Value::Int(last),
            Value::Array(master),
            ..,
        ] = &row[..]
        else {
            return None;
        };
        let [Value::BulkString(name), Value::Int(port), ..] = &master[..] else {
            return None;
        };
        Some(Range {
            first: u64::try_from(*first).ok()?,
            last: u64::try_from(*last).ok()?,
            host: RedisHost {
                name: String::from_utf8(name.clone()).ok()?,
                port: u16::try_from(*port).ok()?,
            },
        })
    };
    Ok(rows.iter().filter_map(range).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CacheShared, RedisUrl};
    use crate::redis::slots::slot_of;
    use std::sync::mpsc;

    fn cluster() -> Servers {
        let config = CacheShared {
            url: RedisUrl::parse("redis+cluster://127.0.0.1:1"),
            ..CacheShared::default()
        };
        let settings = Settings::of(&config, None).expect("no files");
        Servers::new(settings.expect("a URL"))
    }

    fn range(slot: u64, port: u16) -> Range {
        let name = "127.0.0.1".to_owned();
        Range {
            first: slot,
            last: slot,
            host: RedisHost { name, port },
        }
    }

    fn key_in(slot: u16) -> String {
        let keys = (0_u32..).map(|number| number.to_string());
        let mut keys = keys.filter(|key| slot_of(key.as_bytes()) == slot);
        keys.next().expect("each slot has keys")
    }

    /// A server may claim any number of nodes. Mutation: a slot of a node beyond the bound, which
    /// would end the thread.
    #[test]
    fn nodes_of_a_cluster_are_bounded_and_slots_of_others_fail() {
        let mut servers = cluster();
        let most = limits::CLUSTER_NODES_MAX as u16;
        let ranges = (0..most + 10).map(|number| range(number.into(), 1 + number));
        servers.take_map(ranges.collect());
        assert_eq!(servers.nodes.len(), limits::CLUSTER_NODES_MAX);
        let key = key_in(most + 5);
        let (sender, replies) = mpsc::channel();
        let request = Request::new(&key, &[b"GET", b"a"], Moment::NEVER, move |reply| {
            sender.send(reply).expect("the test waits for it");
        });
        servers.exchange(vec![request], Moment::ZERO);
        assert_eq!(replies.recv(), Ok(Reply::Failed));
    }

    /// Mutations: no pause at all; one that stays long for the rest of the daemon's life.
    #[test]
    fn pauses_between_maps_grow_and_shrink_again_after_a_rest() {
        let mut servers = cluster();
        let mut now = Moment::from_micros(1);
        let mut pause = |after: Duration| {
            now = now + after;
            servers.read_map(now);
            let map = servers.cluster.as_ref().expect("a map");
            map.breaker.next_try().since(now)
        };
        let first = pause(Duration::ZERO);
        assert!(first >= limits::RETRY_PAUSE_MIN / 2, "{first:?}");
        let grown = (0..8).map(|_| pause(limits::RETRY_PAUSE_MAX)).last();
        assert!(grown >= Some(limits::RETRY_PAUSE_MAX / 2), "{grown:?}");
        let rested = pause(3 * limits::RETRY_PAUSE_MAX);
        assert!(rested <= limits::RETRY_PAUSE_MIN, "{rested:?}");
    }

    /// A node that has lost its own list of nodes replies with an empty map, and one that has just
    /// seen a master fail may leave slots out. Mutation: a map that is not stale once it was read.
    #[test]
    fn a_map_without_some_slots_is_read_again() {
        let whole = |port| Range {
            last: limits::CLUSTER_SLOTS as u64 - 1,
            ..range(0, port)
        };
        let mut servers = cluster();
        for (ranges, is_read_again) in [
            (Vec::new(), true),
            (vec![range(1, 7_001)], true),
            (vec![whole(7_001)], false),
        ] {
            let count = ranges.len();
            servers.take_map(ranges);
            for node in &mut servers.nodes {
                node.breaker.note_failure(Moment::NEVER, 0);
            }
            let map = servers.cluster.as_ref().expect("a map");
            let next = map.breaker.next_try();
            let is_due = servers.next_maintenance() == next;
            assert_eq!(is_due, is_read_again, "{count} ranges");
        }
    }

    /// Mutations: slots of the map before; breakers that begin again with each map.
    #[test]
    fn a_new_map_replaces_the_slots_and_keeps_the_nodes_it_names() {
        let mut servers = cluster();
        servers.take_map(vec![range(1, 7_001), range(2, 7_002)]);
        for node in &mut servers.nodes {
            node.breaker.note_failure(Moment::from_micros(5), 0);
        }
        servers.take_map(vec![range(2, 7_002), range(3, 7_003), range(4, 7_002)]);
        let may_try: Vec<bool> = servers
            .nodes
            .iter()
            .map(|node| node.breaker.may_try(Moment::from_micros(5)))
            .collect();
        assert_eq!(may_try, [false, true], "the second node had failed");
        let map = servers.cluster.as_ref().expect("a map");
        let nodes = [1, 2, 3, 4].map(|slot| map.slots.node_of(key_in(slot).as_bytes()));
        assert_eq!(nodes, [None, Some(0), Some(1), Some(0)]);
    }
}
