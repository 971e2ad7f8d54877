//! API keys that change while requests arrive, and what taking a change costs a reactor.
//!
//! Mutation that both tests catch: `Service::set_keys` that keeps the ring it has.

use std::sync::Arc;
use std::time::Duration;

use super::{GET, Stage};
use crate::keys::{ChangedKey, KeyRecord, KeyRing, Scopes, Secret};
use crate::os::process::thread_cpu_time;
use crate::reactor::message::Message;

fn secret(number: u32) -> Secret {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Secret::from_bytes(&bytes)
}

fn record(number: u32) -> KeyRecord {
    KeyRecord {
        id: format!("key_{number:012x}"),
        name: format!("client {number}"),
        hash: secret(number).hash(),
        scopes: Scopes::GENERATE,
        created_at: 0,
        expires_at: None,
        requests_per_minute: None,
        tokens_per_minute: None,
        concurrency: None,
        weight: 1,
        revoked: false,
    }
}

/// A request that needs the key of this number.
fn request(number: u32) -> String {
    let key = secret(number);
    let key = key.reveal();
    format!(
        "GET /api/v1/languages HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n\r\n"
    )
}

/// The thread that reads the keys: it holds every ring that it has sent.
struct Store(Vec<Arc<KeyRing>>);

impl Store {
    fn send(stage: &mut Stage, records: Vec<KeyRecord>) -> Store {
        let store = Store(vec![Arc::new(KeyRing::new(records))]);
        store.post(stage);
        store
    }

    fn post(&self, stage: &mut Stage) {
        let ring = self.0.last().expect("one is sent first");
        stage.daemon.tell_all(|| Message::Keys(Arc::clone(ring)));
    }

    /// `None`: the key is deleted.
    fn change(&mut self, stage: &mut Stage, number: u32, now: Option<KeyRecord>) {
        let change = ChangedKey {
            id: record(number).id,
            records: now.into_iter().collect(),
        };
        let ring = self.0.last().expect("one is sent first").changed([change]);
        self.0.push(Arc::new(ring.expect("something changes")));
        self.post(stage);
    }
}

fn revoked(number: u32) -> Option<KeyRecord> {
    Some(KeyRecord {
        revoked: true,
        ..record(number)
    })
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or_default()
}

/// The key counts from the last byte of the head on; later changes leave the request alone.
#[test]
fn a_revoked_key_counts_until_the_head_is_whole_and_its_neighbours_stay() {
    let whole = request(1);
    for cut in (0..=whole.len()).step_by(7).chain([whole.len()]) {
        let mut stage = Stage::new(|config| config.auth.enabled = true);
        let mut store = Store::send(&mut stage, (0..20).map(record).collect());
        let (wire, other) = (stage.connect(), stage.connect());
        stage.send(other, request(2));
        assert_eq!(status(&stage.receive(other)), "200");
        stage.send(wire, &whole[..cut]);
        stage.settle();
        store.change(&mut stage, 1, revoked(1));
        stage.settle();
        stage.send(wire, &whole[cut..]);
        let expected = if cut == whole.len() { "200" } else { "401" };
        assert_eq!(status(&stage.receive(wire)), expected, "cut at {cut}");
        // A deleted key is unknown, and one that comes back works, also on an open connection.
        stage.send(other, request(2));
        assert_eq!(status(&stage.receive(other)), "200", "cut at {cut}");
        store.change(&mut stage, 2, None);
        stage.send(other, request(2));
        assert_eq!(status(&stage.receive(other)), "401", "cut at {cut}");
        store.change(&mut stage, 2, Some(record(2)));
        stage.send(other, request(2));
        assert_eq!(status(&stage.receive(other)), "200", "cut at {cut}");
    }
}

const MANY: u32 = 200_000;

/// Each reactor swaps a pointer, and frees nothing. A walk through the keys takes 100 ms, and so
/// does freeing a ring.
#[test]
fn a_change_among_200_000_keys_costs_a_turn_less_than_a_millisecond() {
    let mut stage = Stage::with(2, 100, super::TERSE, |config| config.auth.enabled = true);
    let mut store = Store::send(&mut stage, (0..MANY).map(record).collect());
    let wire = stage.connect();
    stage.send(wire, request(7));
    assert_eq!(status(&stage.receive(wire)), "200");
    // Of the same turn after each change the shortest: a thread's CPU time has what the machine
    // does meanwhile too.
    let mut shortest = [Duration::MAX; 2];
    for number in 0..8 {
        store.change(&mut stage, number, revoked(number));
        for (reactor, shortest) in shortest.iter_mut().enumerate() {
            let before = thread_cpu_time();
            stage.daemon.turn(reactor);
            *shortest = (*shortest).min(thread_cpu_time() - before);
        }
    }
    println!("the turns with a change of the keys: {shortest:?}");
    let longest = shortest.into_iter().max().unwrap_or_default();
    assert!(longest < Duration::from_millis(1), "{longest:?}");
    for (number, expected) in [(7, "401"), (8, "200")] {
        stage.send(wire, request(number));
        assert_eq!(status(&stage.receive(wire)), expected);
    }
    stage.send(wire, GET);
    assert_eq!(status(&stage.receive(wire)), "200");
    // The reactors have only the last ring.
    let counts: Vec<_> = store.0.iter().map(Arc::strong_count).collect();
    assert_eq!(counts, [1, 1, 1, 1, 1, 1, 1, 1, 3]);
}
