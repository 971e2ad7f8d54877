//! The cache of finished responses, over the real binary.
//!
//! The rules are tested in `src/service/tests/cached.rs`; here are the parts that need a process: keys
//! in a database, a reload, the administrators' routes and the command line.
//!
//! Mutations, each caught by the test named:
//! * `Responses::purge` that leaves the epochs: `purge_forgets_all_or_the_entries_of_one_key`
//! * a query of a purge that is ignored: the same
//! * `Reactors::apply` without the cache: `a_reload_that_changes_anything_begins_again`

mod common;

use serde_json::{Value, json};

use common::{Answer, Daemon, Options, eventually, request};

const PATH: &str = "/api/v1/admin/cache";

fn daemon() -> Daemon {
    Options::echo().with_cache().start()
}

fn ask_with(daemon: &Daemon, key: &str, body: &Value) -> Answer {
    let authorization = format!("Bearer {key}");
    let fields = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
    ];
    let body = body.to_string();
    daemon.exchange(&request(
        "POST",
        "/api/v1/generate",
        &fields,
        body.as_bytes(),
    ))
}

#[track_caller]
fn assert_verdict(answer: Answer, verdict: &str) -> Answer {
    let answer = answer.expect(200);
    assert_eq!(answer.field("x-cache"), Some(verdict), "{answer}");
    let is_cached = answer.json()["cached"] == true;
    assert_eq!(is_cached, verdict == "hit", "{answer}");
    assert_eq!(answer.field("age").is_some(), is_cached, "{answer}");
    answer
}

/// Returns a new key, and its id.
fn make_key(daemon: &Daemon, name: &str) -> (String, String) {
    let words = |arguments: &[&str]| {
        let output = daemon.run(arguments);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{complaint}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let prefix = daemon.key().split('_').next().expect("a first part");
    let created = words(&["key", "create", "--name", name, "--scopes", "generate"]);
    let key = created.into_iter().find(|word| word.starts_with(prefix));
    // In the list the id comes before the name.
    let listed = words(&["key", "list"]);
    let at = listed.iter().position(|word| word == name);
    let id = &listed[at.expect("the key is listed") - 1];
    (key.expect("the key is shown"), id.clone())
}

fn level(daemon: &Daemon) -> Value {
    daemon.get(PATH).expect(200).json()["levels"][0].clone()
}

fn hits(daemon: &Daemon, level: &str) -> f64 {
    daemon.metrics().sum(
        "autoglmd_cache_total",
        &[("level", level), ("verdict", "hit")],
    )
}

#[test]
fn a_response_is_sent_again_to_its_own_key_alone() {
    let daemon = daemon();
    let body = json!({"prompt": "sort a list", "language": "python"});
    let first = assert_verdict(daemon.generate(&body), "miss");
    let second = assert_verdict(daemon.generate(&body), "hit");
    assert_eq!(first.json()["id"], second.json()["id"]);
    assert_eq!(first.json()["code"], second.json()["code"]);
    assert_ne!(first.field("x-request-id"), second.field("x-request-id"));

    let (key, id) = make_key(&daemon, "other");
    eventually("the new key is known", || {
        let other = ask_with(&daemon, &key, &json!({"prompt": "x", "cache": "bypass"}));
        (other.status() == 200).then_some(())
    });
    assert_verdict(ask_with(&daemon, &key, &body), "miss");
    assert_verdict(ask_with(&daemon, &key, &body), "hit");
    daemon.run(&["key", "revoke", &id]);
    eventually(
        "the revoked key is refused, although its response is there",
        || (ask_with(&daemon, &key, &body).status() == 401).then_some(()),
    );
    assert_verdict(daemon.generate(&body), "hit");
    assert_eq!(level(&daemon)["entries"], 2);
    let hits = hits(&daemon, "response");
    assert!(hits >= 3.0, "{hits}");
    let bytes = daemon
        .metrics()
        .sum("autoglmd_cache_bytes", &[("level", "response")]);
    assert_eq!(bytes, level(&daemon)["bytes"].as_f64().expect("a number"));
}

#[test]
fn purge_forgets_all_or_the_entries_of_one_key() {
    let daemon = daemon();
    let body = json!({"prompt": "sort a list"});
    let (key, id) = make_key(&daemon, "other");
    eventually("the new key is known", || {
        (ask_with(&daemon, &key, &body).status() == 200).then_some(())
    });
    assert_verdict(daemon.generate(&body), "miss");
    let delete = |path: &str| daemon.exchange(&daemon.request("DELETE", path, b""));
    delete("/api/v1/admin/cache?kye=1").expect_error(400, "invalid_parameter");
    assert_verdict(daemon.generate(&body), "hit");

    let purged = delete(&format!("{PATH}?key={id}")).expect(200);
    assert_eq!(purged.json()["key"], id.as_str());
    assert_verdict(ask_with(&daemon, &key, &body), "miss");
    assert_verdict(daemon.generate(&body), "hit");
    delete(PATH).expect(200);
    assert_verdict(daemon.generate(&body), "miss");
    assert_verdict(ask_with(&daemon, &key, &body), "miss");

    // The memory of purged entries is freed a moment later.
    delete(PATH).expect(200);
    eventually("the purged entries are gone", || {
        (level(&daemon)["entries"] == 0).then_some(())
    });
}

#[test]
fn only_administrators_see_and_purge_the_cache() {
    let daemon = daemon();
    let (key, _) = make_key(&daemon, "other");
    let authorization = format!("Bearer {key}");
    let fields = [("authorization", authorization.as_str())];
    eventually("the new key is known", || {
        let shown = daemon.exchange(&request("GET", PATH, &fields, b""));
        (shown.status() != 401).then_some(())
    });
    for method in ["GET", "DELETE"] {
        let refused = daemon.exchange(&request(method, PATH, &fields, b""));
        refused.expect_error(403, "insufficient_scope");
        let stranger = daemon.exchange(&request(method, PATH, &[], b""));
        stranger.expect_error(401, "missing_credentials");
    }
    let wrong = daemon.exchange(&daemon.request("POST", PATH, b""));
    assert_eq!(wrong.field("allow"), Some("GET, HEAD, DELETE, OPTIONS"));
    wrong.expect_error(405, "method_not_allowed");
}

#[test]
fn a_reload_that_changes_anything_begins_again() {
    let options = Options::echo().with_cache();
    let daemon = options.clone().start();
    let body = json!({"prompt": "sort a list"});
    let reload = |options: &Options, line: &str| {
        std::fs::write(daemon.configuration_file(), options.configuration())
            .expect("the file can be written");
        let position = daemon.log_position();
        daemon.process().signal(libc::SIGHUP);
        daemon.wait_for_log(position, line);
    };
    assert_verdict(daemon.generate(&body), "miss");
    reload(&options, "nothing changed");
    assert_verdict(daemon.generate(&body), "hit");
    reload(
        &options.clone().set("limits.max_body", "64KiB"),
        "in force: limits.max_body",
    );
    // The level before the engine still has the result: nothing that the model reads has changed.
    eventually("the new generation is in force", || {
        assert_verdict(daemon.generate(&body), "hit");
        (hits(&daemon, "generation") > 0.0).then_some(())
    });
    let before = hits(&daemon, "response");
    assert_verdict(daemon.generate(&body), "hit");
    assert_eq!(hits(&daemon, "response"), before + 1.0);
    reload(
        &options.clone().set_raw("cache.enabled", "false"),
        "in force: ",
    );
    eventually("the cache is off", || {
        (daemon.generate(&body).field("x-cache") == Some("bypass")).then_some(())
    });
    assert_eq!(level(&daemon)["bytes"], 0);
    reload(&options.set("cache.max_size", "2MiB"), "in force: ");
    eventually("the cache is on again", || {
        (daemon.generate(&body).field("x-cache") == Some("hit")).then_some(())
    });
    assert_eq!(level(&daemon)["max_bytes"], 1 << 20);
}

#[test]
fn the_command_shows_and_purges() {
    let daemon = daemon();
    let body = json!({"prompt": "sort a list"});
    assert_verdict(daemon.generate(&body), "miss");
    assert_verdict(daemon.generate(&body), "hit");
    let url = format!("http://{}", daemon.address());
    let run = |arguments: &[&str]| {
        let access = ["--url", url.as_str(), "--key", daemon.key()];
        let output = daemon.run(&[arguments, &access].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, out, err) = run(&["cache", "stats"]);
    assert_eq!(code, Some(0), "{err}");
    let row = out.lines().nth(1).expect("a row below the head");
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(
        (cells[0], cells[1], cells[5], cells[6], cells[7]),
        ("response", "1", "1", "0", "1"),
        "{out}"
    );
    let (_, out, _) = run(&["cache", "stats", "--json"]);
    let shown: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(shown["enabled"], true);

    for no_id in ["key_1&x=2", "bootstrap", ""] {
        let (code, _, err) = run(&["cache", "purge", "--of", no_id]);
        assert_eq!(code, Some(64), "{err}");
    }
    let (code, _, err) = run(&["cache", "purge", "--of", "key_000000000001"]);
    let purged = "purged the results of key_000000000001";
    assert_eq!((code, err.trim()), (Some(0), purged));
    assert_verdict(daemon.generate(&body), "hit");
    let (code, _, err) = run(&["cache", "purge"]);
    assert_eq!((code, err.trim()), (Some(0), "purged the cache"));
    assert_verdict(daemon.generate(&body), "miss");
}
