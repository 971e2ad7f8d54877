//! HTTP/2 conformance, section by section of RFC 9113 and RFC 7541, from raw frames.
//!
//! Each case has a new connection to one shared daemon, and its name contains its section. All
//! cases run; the failed ones are listed together with what came instead. A case requires exactly
//! what the RFC requires: the error code that it names, and for malformed requests only an error of
//! their stream. An endpoint may treat the stream errors of frames as errors of the connection, so
//! either is accepted for those, with the correct code. After every error of a stream the
//! connection must still work, and after every error of the connection it must be closed.
//!
//! Names and values with bytes that no name or value may have are malformed too. A decoder that
//! finds them may treat them as an error of the connection, so those cases accept GOAWAY
//! PROTOCOL_ERROR as well: `Peer::malformed_or_goaway`. [`KNOWN_DEVIATIONS`] lists the known
//! deviations; their cases must fail, so that the list shrinks when one is fixed.
//!
//! `AUTOGLMD_CONFORMANCE_ADDRESS=127.0.0.1:8081` runs the cases against another server, for
//! comparison; it must respond to GET of `/` and `/page` (more than 100 bytes) with 200. Cases that
//! require more than the RFC are left out then. `AUTOGLMD_CONFORMANCE_ONLY=text` runs the cases
//! whose names contain the text.

#[path = "../common/mod.rs"]
mod common;

mod compression;
mod connection;
mod flow;
mod frames;
mod messages;
mod preface;
mod requests;
mod streams;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::http2::hpack;
use common::http2::{Outcome, Peer, Target};
use common::{Daemon, Options};

/// The least number of cases that this suite must have.
const CASES_LEAST: usize = 147;

/// Cases that our daemon fails, each with its reason: none.
const KNOWN_DEVIATIONS: [(&str, &str); 0] = [];

/// Cases at a time: most of their time is waiting.
const THREADS: usize = 8;

pub struct Case {
    name: &'static str,
    run: fn(&mut Peer) -> Outcome,
    start: Start,
    is_ours: bool,
}

/// The state of a case's connection when the case begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Both prefaces were exchanged and acknowledged.
    Open,
    /// Nothing was sent.
    Connected,
}

/// A case on an open connection.
const fn case(name: &'static str, run: fn(&mut Peer) -> Outcome) -> Case {
    Case {
        name,
        run,
        start: Start::Open,
        is_ours: false,
    }
}

/// A case that sends the preface itself.
const fn fresh(name: &'static str, run: fn(&mut Peer) -> Outcome) -> Case {
    Case {
        start: Start::Connected,
        ..case(name, run)
    }
}

/// A case about our daemon's own promises, or about a choice that the RFC leaves open.
const fn ours(name: &'static str, run: fn(&mut Peer) -> Outcome) -> Case {
    Case {
        is_ours: true,
        ..case(name, run)
    }
}

/// Both of the above.
const fn ours_fresh(name: &'static str, run: fn(&mut Peer) -> Outcome) -> Case {
    Case {
        start: Start::Connected,
        ..ours(name, run)
    }
}

const TABLES: [&[Case]; 8] = [
    preface::CASES,
    frames::CASES,
    streams::CASES,
    connection::CASES,
    flow::CASES,
    messages::CASES,
    requests::CASES,
    compression::CASES,
];

#[test]
fn every_section_is_kept() {
    let target = target();
    let only = std::env::var("AUTOGLMD_CONFORMANCE_ONLY").unwrap_or_default();
    let cases: Vec<&Case> = TABLES
        .into_iter()
        .flatten()
        .filter(|case| case.name.contains(&only) && (target.is_ours || !case.is_ours))
        .collect();
    let names: std::collections::BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "a name stands twice");
    let mut failures = run_all(&cases, &target);
    if target.is_ours {
        account_for_deviations(&cases, &mut failures);
    }
    let deviations = if target.is_ours {
        KNOWN_DEVIATIONS.len()
    } else {
        0
    };
    println!(
        "{} cases, {deviations} of them known deviations, {} failed",
        cases.len(),
        failures.len()
    );
    assert!(
        failures.is_empty(),
        "{} of {} failed:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
    let is_whole = target.is_ours && only.is_empty();
    assert!(!is_whole || cases.len() >= CASES_LEAST, "{}", cases.len());
}

/// Removes known failures from the list, and adds those that did not happen.
fn account_for_deviations(cases: &[&Case], failures: &mut Vec<String>) {
    for (name, why) in KNOWN_DEVIATIONS {
        let before = failures.len();
        failures.retain(|line| !line.starts_with(&format!("  {name}: ")));
        let has_run = cases.iter().any(|case| case.name == name);
        if has_run && failures.len() == before {
            failures.push(format!(
                "  {name} passes now: off KNOWN_DEVIATIONS with it ({why})"
            ));
        }
    }
}

fn target() -> Target {
    match std::env::var("AUTOGLMD_CONFORMANCE_ADDRESS") {
        Ok(address) => Target::other(address.parse().expect("an address and a port")),
        Err(_) => Target::of(Daemon::shared(Options::echo)),
    }
}

/// Runs the cases and returns the failures, in the order of the tables.
fn run_all(cases: &[&Case], target: &Target) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(number) else {
                        return;
                    };
                    if let Err(error) = run(case, target) {
                        let line = format!("  {}: {error}", case.name);
                        failures
                            .lock()
                            .expect("no case panics")
                            .push((number, line));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no case panics");
    failures.sort();
    failures.into_iter().map(|(_, line)| line).collect()
}

fn run(case: &Case, target: &Target) -> Outcome {
    let mut peer = match case.start {
        Start::Open => Peer::open(target)?,
        Start::Connected => Peer::connect(target)?,
    };
    (case.run)(&mut peer)
}

// ---- the suite's own codec ---------------------------------------------------------------------

/// RFC 7541, appendix C: if these were wrong, no other result would count.
#[test]
fn the_suites_own_hpack_agrees_with_the_examples_of_the_rfc() {
    assert_eq!(hpack::integer(0, 5, 10), [0b0_1010]);
    assert_eq!(hpack::integer(0, 5, 1337), [0b1_1111, 0b1001_1010, 0b1010]);
    assert_eq!(hpack::integer(0, 8, 42), [42]);
    assert_eq!(
        hpack::huffman(b"www.example.com"),
        *b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"
    );
    assert_eq!(
        hpack::literal_indexed("custom-key", "custom-header"),
        b"\x40\x0acustom-key\x0dcustom-header"
    );
    // C.6: three responses with a table of 256 bytes, so that entries are evicted.
    let mut decoder = hpack::Decoder::default();
    let resize = hpack::size_update(256);
    let first = b"\x48\x82\x64\x02\x58\x85\xae\xc3\x77\x1a\x4b\x61\x96\xd0\x7a\xbe\x94\x10\x54\xd4\
        \x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff\x6e\x91\x9d\x29\xad\x17\x18\x63\
        \xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3";
    let list = decoder.decode(&[&resize, &first[..]].concat()).unwrap();
    assert_eq!(list[0], pair(":status", "302"));
    assert_eq!(list[2], pair("date", "Mon, 21 Oct 2013 20:13:21 GMT"));
    assert_eq!(list[3], pair("location", "https://www.example.com"));
    let list = decoder.decode(b"\x48\x83\x64\x0e\xff\xc1\xc0\xbf").unwrap();
    assert_eq!(list[0], pair(":status", "307"));
    assert_eq!(list[3], pair("location", "https://www.example.com"));
    let third = b"\x88\xc1\x61\x96\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\
        \xe0\x84\xa6\x2d\x1b\xff\xc0\x5a\x83\x9b\xd9\xab\x77\xad\x94\xe7\x82\x1d\xd7\xf2\xe6\xc7\xb3\
        \x35\xdf\xdf\xcd\x5b\x39\x60\xd5\xaf\x27\x08\x7f\x36\x72\xc1\xab\x27\x0f\xb5\x29\x1f\x95\x87\
        \x31\x60\x65\xc0\x03\xed\x4e\xe5\xb1\x06\x3d\x50\x07";
    let list = decoder.decode(third).unwrap();
    let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    assert_eq!(list[5], pair("set-cookie", cookie));
}

fn pair(name: &str, value: &str) -> hpack::Field {
    (name.to_owned(), value.to_owned())
}
