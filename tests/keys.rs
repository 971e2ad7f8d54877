//! Permissions and rates from the client's side: keys, scopes, rate limits.

mod common;

use std::path::Path;
use std::time::Duration;

use autoglmd::os::process::thread_cpu_time;
use autoglmd::store::{DATABASE_FILE, Keys as _, NewKey, SqliteStore, StoreWatcher};
use serde_json::json;

use common::{Answer, Daemon, Options, eventually, request};

fn shared() -> &'static Daemon {
    Daemon::shared(Options::echo)
}

// ---- permissions -----------------------------------------------------------------------------

const PUBLIC: [&str; 3] = ["/livez", "/readyz", "/healthz"];
const CLOSED: [(&str, &str); 4] = [
    ("POST", "/api/v1/generate"),
    ("GET", "/api/v1/models"),
    ("GET", "/api/v1/languages"),
    ("GET", "/metrics"),
];

/// Other servers guard some paths and forget others; here a path is closed unless it is listed as
/// public.
#[test]
fn every_route_is_closed_unless_it_is_listed_as_public() {
    let daemon = shared();
    for path in PUBLIC {
        daemon.exchange(&request("GET", path, &[], b"")).expect(200);
    }
    for (method, path) in CLOSED {
        let answer = daemon.exchange(&request(method, path, &[], b""));
        let answer = answer.expect_error(401, "missing_credentials");
        assert!(
            answer
                .field("www-authenticate")
                .is_some_and(|is| is.starts_with("Bearer"))
        );
    }
    // Paths that a guard by prefix or a careless normalisation would let through.
    for path in [
        "/api/v1/generate/",
        "//api/v1/generate",
        "/api/v1/./generate",
        "/livez/../api/v1/generate",
        "/api/v1/%67enerate",
        "/API/V1/GENERATE",
        "/api/v1/admin/keys",
        "/v1/chat/completions",
        "/openapi.json",
        "/.env",
    ] {
        for method in ["GET", "POST", "DELETE", "PUT"] {
            let answer = daemon.exchange(&request(method, path, &[], b""));
            assert!(
                matches!(answer.status(), 401 | 404 | 405),
                "{method} {path}: {answer}"
            );
        }
    }
}

#[test]
fn credentials_that_are_not_keys_are_refused_alike() {
    let daemon = Daemon::echo();
    let key = daemon.key().to_owned();
    let almost = format!("{}x", &key[..key.len() - 1]);
    let longer = format!("{key}x");
    for credentials in [
        "Bearer wrong".to_owned(),
        format!("Bearer {almost}"),
        format!("Bearer {longer}"),
        format!("Bearer {}", "a".repeat(4_000)),
    ] {
        let fields = [("authorization", credentials.as_str())];
        let answer = daemon.exchange(&request("GET", "/api/v1/models", &fields, b""));
        answer.expect_error(401, "invalid_key");
    }
    for credentials in ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", &key] {
        let fields = [("authorization", credentials)];
        let answer = daemon.exchange(&request("GET", "/api/v1/models", &fields, b""));
        assert_eq!(answer.status(), 401, "{credentials:?}: {answer}");
    }
    // The first start shows its key once. A key that a client sends is never shown.
    let log = daemon.log_lines().join("\n");
    assert!(!log.contains(&almost) && !log.contains(&longer));
}

#[test]
fn scheme_is_compared_without_case() {
    let daemon = shared();
    let credentials = format!("bearer {}", daemon.key());
    let fields = [("authorization", credentials.as_str())];
    daemon
        .exchange(&request("GET", "/api/v1/models", &fields, b""))
        .expect(200);
}

#[test]
fn key_made_beside_the_running_daemon_works_within_its_scopes_until_revoked() {
    let daemon = Daemon::echo();
    let key = make_key(&daemon, &["--name", "editor", "--scopes", "generate"]);
    let with_key = |method: &str, path: &str, body: &str| {
        let credentials = format!("Bearer {key}");
        let fields = [
            ("authorization", credentials.as_str()),
            ("content-type", "application/json"),
        ];
        daemon.exchange(&request(method, path, &fields, body.as_bytes()))
    };
    let generate = || with_key("POST", "/api/v1/generate", r#"{"prompt": "hello"}"#);
    eventually("the daemon knows the new key", || {
        (generate().status() == 200).then_some(())
    });
    with_key("GET", "/api/v1/languages", "").expect(200);
    with_key("GET", "/metrics", "").expect_error(403, "insufficient_scope");

    let id = key_id(&daemon, "editor");
    let output = daemon.run(&["key", "revoke", &id]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (answer, _) = eventually("the daemon refuses the revoked key", || {
        Some(generate()).filter(|answer| answer.status() != 200)
    });
    answer.expect_error(401, "invalid_key");
}

#[test]
fn keys_are_kept_as_hashes_and_the_first_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;

    let daemon = Daemon::echo();
    let file = daemon.state_folder().join("bootstrap-key");
    let mode = std::fs::metadata(file)
        .expect("the file is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = make_key(&daemon, &["--name", "hashed", "--scopes", "generate"]);
    for entry in std::fs::read_dir(daemon.state_folder()).expect("the state folder") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        let found = bytes
            .windows(key.len())
            .any(|window| window == key.as_bytes());
        assert!(!found, "{} holds a key in clear text", path.display());
    }
}

#[test]
fn authentication_may_be_switched_off_on_loopback() {
    let daemon = Options::echo().set_raw("auth.enabled", "false").start();
    let fields = [("content-type", "application/json")];
    let bytes = request(
        "POST",
        "/api/v1/generate",
        &fields,
        br#"{"prompt": "hello"}"#,
    );
    daemon.exchange(&bytes).expect(200);
}

/// A browser on this machine connects to a loopback address for every page that it shows.
#[test]
fn without_keys_only_names_of_this_machine_are_served() {
    let daemon = Options::echo()
        .set_raw("auth.enabled", "false")
        .set_raw("server.hosts", r#"["gpu.example"]"#)
        .start();
    let ask = |target: &str, host: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        daemon.exchange(head.as_bytes())
    };
    ask("/api/v1/models", "GPU.example:8080").expect(200);
    ask("http://gpu.example/api/v1/models", "evil.example").expect(200);
    for (target, host) in [
        ("/api/v1/models", "evil.example"),
        ("http://evil.example/api/v1/models", "localhost"),
        ("/metrics", "evil.example"),
    ] {
        ask(target, host).expect_error(403, "forbidden_origin");
    }
    let fields = [("origin", "http://evil.example")];
    let body = br#"{"prompt": "hello"}"#;
    let page = daemon.exchange(&request("POST", "/api/v1/generate", &fields, body));
    page.expect_error(403, "forbidden_origin");

    let file = daemon.configuration_file();
    let text = std::fs::read_to_string(&file).expect("the file");
    std::fs::write(&file, text.replace("gpu.example", "other.example")).expect("the file");
    let position = daemon.log_position();
    daemon.process().signal(libc::SIGHUP);
    daemon.wait_for_log(position, "in force: server.hosts");
    eventually("the reactor has the new list", || {
        (ask("/api/v1/models", "other.example").status() == 200).then_some(())
    });
    ask("/api/v1/models", "gpu.example").expect_error(403, "forbidden_origin");
}

#[test]
fn metrics_may_be_opened_to_loopback() {
    let daemon = Options::echo()
        .set_raw("metrics.public_on_loopback", "true")
        .start();
    daemon
        .exchange(&request("GET", "/metrics", &[], b""))
        .expect(200);
    let fields = [("sec-fetch-site", "cross-site")];
    let page = daemon.exchange(&request("GET", "/metrics", &fields, b""));
    page.expect_error(403, "forbidden_origin");
    let closed = daemon.exchange(&request("GET", "/api/v1/models", &[], b""));
    closed.expect_error(401, "missing_credentials");
}

// ---- rates -----------------------------------------------------------------------------------

#[test]
fn rate_of_a_key_is_in_every_response_and_enforced() {
    let daemon = Options::echo()
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.requests_per_minute", "60")
        .set_raw("rate_limit.burst", "3")
        .start();
    let ask = || daemon.generate(&json!({"prompt": "hello"}));
    for left in [2, 1, 0] {
        let answer = ask().expect(200);
        assert_eq!(answer.field("x-ratelimit-limit-requests"), Some("60"));
        // On a slow machine a request may be refilled on the way.
        assert!(number(&answer, "x-ratelimit-remaining-requests") >= left);
        assert!(answer.field("x-ratelimit-reset-requests").is_some());
    }
    let (answer, _) = eventually("the burst is used up", || {
        Some(ask()).filter(|answer| answer.status() != 200)
    });
    let answer = answer.expect_error(429, "rate_limited");
    assert_eq!(number(&answer, "retry-after"), 1);
    let milliseconds = number(&answer, "retry-after-ms");
    assert!((1..=1_000).contains(&milliseconds), "{answer}");
    assert_eq!(answer.json()["error"]["retry_after_ms"], milliseconds);
    assert_eq!(number(&answer, "x-ratelimit-remaining-requests"), 0);
    // Health checks are not limited.
    daemon
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
}

#[test]
fn key_has_its_own_rate_where_it_was_given_one() {
    let daemon = Options::echo()
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.requests_per_minute", "6000")
        // Until the daemon knows the key, this test looks like a stranger that tries again and
        // again.
        .set_raw("rate_limit.unauthenticated_per_minute", "1000000")
        .set_raw("rate_limit.burst", "1000000")
        .start();
    let key = make_key(
        &daemon,
        &["--name", "slow", "--scopes", "generate", "--rate", "1"],
    );
    let credentials = format!("Bearer {key}");
    let ask = || {
        let fields = [("authorization", credentials.as_str())];
        daemon.exchange(&request("GET", "/api/v1/languages", &fields, b""))
    };
    eventually("the daemon knows the key", || {
        (ask().status() != 401).then_some(())
    });
    let (answer, _) = eventually("the rate is felt", || {
        Some(ask()).filter(|answer| answer.status() == 429)
    });
    assert!(
        number(&answer, "retry-after") > 30,
        "one request a minute: {answer}"
    );
}

#[test]
fn address_that_tries_keys_is_slowed_down_and_a_valid_key_is_not() {
    let daemon = Options::echo()
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.unauthenticated_per_minute", "5")
        .start();
    let fields = [("authorization", "Bearer guess")];
    let bytes = request("GET", "/api/v1/models", &fields, b"");
    let (answer, _) = eventually("guessing is refused", || {
        Some(daemon.exchange(&bytes)).filter(|answer| answer.status() != 401)
    });
    let answer = answer.expect_error(429, "rate_limited");
    assert!(number(&answer, "retry-after") >= 1);
    daemon.get("/api/v1/models").expect(200);
}

// ---- many keys -------------------------------------------------------------------------------

/// A database of `count` keys, as `key create` would have left it, with secrets that no client has.
fn fill(path: &Path, count: u32) {
    let connection = rusqlite::Connection::open(path).expect("the database");
    let sql = "
        PRAGMA synchronous = OFF;
        PRAGMA cache_size = -1000000;
        BEGIN;
        CREATE TEMP TABLE numbers AS
            WITH RECURSIVE numbers (number) AS (
                SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < COUNT
            )
            SELECT number FROM numbers;
        INSERT INTO keys (id, name, scopes, created_at)
            SELECT printf('key_%012x', number), 'client ' || number, 'generate', number
            FROM numbers;
        INSERT INTO secrets (hash, key_id, created_at)
            SELECT randomblob(32), printf('key_%012x', number), number FROM numbers;
        COMMIT";
    let sql = sql.replace("COUNT", &count.to_string());
    connection.execute_batch(&sql).expect("the rows");
}

/// What a change costs the store's thread, beside reading all keys. `AUTOGLMD_MANY_KEYS` sets
/// another number of keys. Mutation that this test catches: a watcher that forgets its mark.
#[test]
fn a_change_among_many_keys_is_read_without_the_others() {
    let count = std::env::var("AUTOGLMD_MANY_KEYS").ok();
    let count = count.map_or(50_000, |count| count.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(DATABASE_FILE);
    let mut store = SqliteStore::open(&path).expect("a database");
    fill(&path, count);
    let new = NewKey::default();
    let (record, secret) = store.create(&new, 1).expect("a key");

    let before = thread_cpu_time();
    let (changes, inbox) = std::sync::mpsc::channel();
    let again = path.clone();
    let (watcher, ring) = StoreWatcher::start(
        Box::new(SqliteStore::open(&path).expect("the database")),
        move || SqliteStore::open_existing(&again).map(|store| Box::new(store) as _),
        move |ring| changes.send((ring, thread_cpu_time())).expect("it waits"),
    )
    .expect("a thread");
    let whole = thread_cpu_time() - before;
    assert_eq!(ring.len(), count as usize + 1);

    let (mut spent, mut longest) = (Duration::ZERO, Duration::ZERO);
    for weight in 2..6 {
        store.set_weight(&record.id, weight).expect("a change");
        let patience = Duration::from_secs(60);
        let (ring, until_now) = inbox.recv_timeout(patience).expect("a ring");
        let holder = ring.find(secret.reveal()).expect("the key");
        assert_eq!(holder.record.weight, weight);
        longest = longest.max(until_now - spent);
        spent = until_now;
    }
    drop(watcher);
    println!("{count} keys: {whole:?} for all of them, {longest:?} for one that has changed");
    assert!(longest * 20 < whole, "{longest:?} of {whole:?}");
}

// ---- helpers ---------------------------------------------------------------------------------

fn number(answer: &Answer, field: &str) -> u64 {
    let value = answer
        .field(field)
        .unwrap_or_else(|| panic!("no {field} in {answer}"));
    value
        .parse()
        .unwrap_or_else(|_| panic!("{field} is {value:?}"))
}

/// Creates a key with the command line tool. It is alone on a line of stdout.
fn make_key(daemon: &Daemon, options: &[&str]) -> String {
    let arguments = [&["key", "create"], options].concat();
    let output = daemon.run(&arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let prefix = daemon
        .key()
        .split('_')
        .next()
        .expect("split gives one part");
    let words = text
        .split_whitespace()
        .filter(|word| word.starts_with(prefix));
    words
        .max_by_key(|word| word.len())
        .expect("the key is shown")
        .to_owned()
}

/// Returns the id of the key with this name: the first word of its line.
fn key_id(daemon: &Daemon, name: &str) -> String {
    let output = daemon.run(&["key", "list"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in:\n{text}"));
    line.split_whitespace()
        .next()
        .expect("a line with a name has words")
        .to_owned()
}
