//! The daemon with a real PostgreSQL server, which is killed, frozen and restarted under it.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;

use common::postgres::{PASSWORD, Postgres, Way};
use common::tls::Authority;
use common::{Connection, Daemon, Options, eventually, request};

/// The other tests rely on these properties of the harness.
///
/// Mutations that this test catches: a `kill` that spares the children (the new server refuses the
/// data), and a `freeze` that does (a connection that exists is served).
#[test]
fn a_server_is_killed_frozen_and_found_again_at_its_address() {
    let server = Postgres::start();
    let database = server.database();
    assert!(server.url(&database, Way::Tcp).starts_with("postgres://"));
    server.sql(&database, "CREATE TABLE kept AS SELECT 1 AS value");
    let address = server.address();

    server.freeze();
    // The kernel accepts the connection, and the server reads nothing from it.
    let mut stream = std::net::TcpStream::connect(address).expect("the kernel's backlog");
    // SSLRequest, to which a living server writes one byte.
    let request = [0, 0, 0, 8, 4, 210, 22, 47];
    std::io::Write::write_all(&mut stream, &request).expect("the kernel's buffer");
    stream.set_nonblocking(true).expect("a socket");
    let mut byte = [0];
    let read = std::io::Read::read(&mut stream, &mut byte);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    server.thaw();
    stream.set_nonblocking(false).expect("a socket");
    std::io::Read::read_exact(&mut stream, &mut byte).expect("the server continues");

    for restart in [Postgres::kill, Postgres::stop] {
        restart(&server);
        assert!(std::net::TcpStream::connect(address).is_err());
        server.restart();
        assert_eq!(server.sql(&database, "SELECT value FROM kept"), "1");
    }
}

/// A daemon's settings for a database, and the folder with its password. The server's address and
/// password are in the configuration, as those of a server elsewhere would be.
fn options(server: &Postgres, database: &str) -> Options {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, PASSWORD).expect("the folder can be written");
    Options::echo()
        .in_folder(Arc::new(folder))
        .set("store.url", &server.url(database, Way::Tcp))
        .set("store.connect_timeout", "30s")
        .set("store.password_file", &password.display().to_string())
}

/// Runs a command with the daemon's configuration. Returns its output, both streams, and its code.
fn run(daemon: &Daemon, arguments: &[&str]) -> (String, String, Option<i32>) {
    let file = daemon.configuration_file().display().to_string();
    let arguments = [arguments, &["--config", &file]].concat();
    let output = daemon.run(&arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(!format!("{out}{err}").contains(PASSWORD), "{out}{err}");
    (out, err, output.status.code())
}

fn create_key(daemon: &Daemon) -> (String, String) {
    let (secret, message, code) = run(daemon, &["key", "create"]);
    assert_eq!(code, Some(0), "{message}");
    let id = message.split(':').next().expect("the id is first");
    (secret, id.to_owned())
}

fn models(address: SocketAddr, secret: &str) -> u16 {
    let authorization = format!("Bearer {secret}");
    let fields = [("authorization", authorization.as_str())];
    let request = request("GET", "/api/v1/models", &fields, b"");
    let mut connection = Connection::tcp(address).expect("it accepts");
    connection.exchange(&request).status()
}

fn await_status(address: SocketAddr, secret: &str, status: u16) {
    let what = format!("{address} returns {status}");
    eventually(&what, || (models(address, secret) == status).then_some(()));
}

#[test]
fn commands_and_the_daemon_share_a_database_and_never_show_its_password() {
    let server = Postgres::shared();
    let database = server.database();
    let daemon = options(&server, &database).start();
    assert!(!daemon.state_folder().join("autoglmd.db").exists());
    assert_eq!(models(daemon.address(), daemon.key()), 200);

    let (secret, id) = create_key(&daemon);
    await_status(daemon.address(), &secret, 200);
    let (_, message, code) = run(&daemon, &["key", "revoke", &id]);
    assert_eq!(code, Some(0), "{message}");
    await_status(daemon.address(), &secret, 401);
    let (list, _, _) = run(&daemon, &["key", "list"]);
    assert!(list.contains(&id), "{list}");

    let (checked, message, code) = run(&daemon, &["store", "check"]);
    assert_eq!(code, Some(0), "{message}");
    let place = server.url(&database, Way::Tcp);
    assert!(
        checked.starts_with(&place) && checked.contains("keys: 2"),
        "{checked}"
    );
    let (_, message, code) = run(&daemon, &["store", "migrate"]);
    assert!(code == Some(0) && message.contains("already"), "{message}");
    let (shown, _, _) = run(&daemon, &["check", "--show"]);
    assert!(shown.contains(&place), "{shown}");

    std::fs::write(daemon.folder().path().join("password"), "wrong\n").expect("a file");
    let (_, message, code) = run(&daemon, &["key", "list"]);
    assert!(
        code == Some(77) && message.contains("authentication"),
        "{message}"
    );
    let log = daemon.log_lines().join("\n");
    assert!(!log.contains(PASSWORD), "{log}");
}

/// Something that happens to a server.
type Act = fn(&Postgres);

/// Mutations that this test catches: `Session::wait` without its timeout (the thread hangs while the
/// server is frozen, and the test with it), `is_replaced` that is always false (the daemon keeps a
/// connection that has ended).
#[test]
fn a_server_that_is_killed_frozen_or_stopped_costs_no_request() {
    let server = Postgres::start();
    let database = server.database();
    let daemon = options(&server, &database)
        .set("store.connect_timeout", "3s")
        .set("store.statement_timeout", "1s")
        .start();
    let stop = AtomicBool::new(false);
    let served = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let request = daemon.generate_request(&json!({"prompt": "x", "cache": "bypass"}));
                let mut connection = daemon.connect();
                while !stop.load(Ordering::Relaxed) {
                    connection.exchange(&request).expect(200);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let faults: [(Act, Act); 3] = [
            (Postgres::freeze, Postgres::thaw),
            (Postgres::kill, Postgres::restart),
            (Postgres::stop, Postgres::restart),
        ];
        for (begin, end) in faults {
            let position = daemon.log_position();
            begin(&server);
            daemon.wait_for_log(position, "cannot read the key store");
            let before = served.load(Ordering::Relaxed);
            eventually("requests are served meanwhile", || {
                (served.load(Ordering::Relaxed) > before + 20).then_some(())
            });
            end(&server);
            daemon.wait_for_log(position, "the key store is readable again");
        }
        let (secret, _) = create_key(&daemon);
        await_status(daemon.address(), &secret, 200);
        stop.store(true, Ordering::Relaxed);
    });
}

/// Starts three daemons with one database. The first start of all makes the key; the others find it
/// in the database.
fn three(server: &Postgres, database: &str) -> Vec<Daemon> {
    let options = |server, database| options(server, database).set("jobs.lease", "1s");
    let mut daemons = vec![options(server, database).start()];
    let key = daemons[0].state_folder().join("bootstrap-key");
    for _ in 1..3 {
        let folder = Arc::new(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder"));
        std::fs::create_dir(folder.path().join("state")).expect("a folder");
        std::fs::copy(&key, folder.path().join("state/bootstrap-key")).expect("a file");
        std::fs::write(folder.path().join("password"), PASSWORD).expect("a file");
        let password = folder.path().join("password").display().to_string();
        let options = options(server, database).in_folder(folder);
        daemons.push(options.set("store.password_file", &password).start());
    }
    daemons
}

/// A mutation that this test catches: threads of requests that open the SQLite file of the state
/// folder, whatever `store.url` is.
#[test]
fn jobs_of_a_daemon_that_is_killed_are_completed_once_by_the_others() {
    const JOBS: usize = 30;
    let server = Postgres::shared();
    let database = server.database();
    let mut daemons = three(&server, &database);
    let body = json!({"prompt": "x", "cache": "bypass"}).to_string();
    let request = daemons[0].request("POST", "/api/v1/jobs", body.as_bytes());
    let mut connection = daemons[0].connect();
    let accept = |_| {
        let accepted = connection.exchange(&request).expect(202).json();
        accepted["id"].as_str().expect("an id").to_owned()
    };
    let ids: Vec<String> = (0..JOBS).map(accept).collect();
    daemons.remove(0).kill();
    for (index, id) in ids.iter().enumerate() {
        let path = format!("/api/v1/jobs/{id}");
        eventually("the job is completed", || {
            let shown = daemons[index % 2].get(&path).expect(200).json();
            (shown["status"] == "completed").then_some(())
        });
    }
    let twice = "SELECT count(*) FROM (SELECT job FROM job_events WHERE kind = 'done'
                 GROUP BY job HAVING count(*) > 1) AS jobs";
    assert_eq!(server.sql(&database, twice), "0");
    let done = "SELECT count(DISTINCT job) FROM job_events WHERE kind = 'done'";
    assert_eq!(server.sql(&database, done), JOBS.to_string());
}

#[test]
fn daemons_that_share_a_database_refuse_a_key_that_one_of_them_revoked() {
    let server = Postgres::shared();
    let database = server.database();
    let mut daemons = three(&server, &database);
    let addresses: Vec<SocketAddr> = daemons.iter().map(Daemon::address).collect();
    let (secret, id) = create_key(&daemons[2]);
    addresses
        .iter()
        .for_each(|address| await_status(*address, &secret, 200));
    run(&daemons[1], &["key", "revoke", &id]);
    addresses
        .iter()
        .for_each(|address| await_status(*address, &secret, 401));

    // One that is killed takes nothing with it.
    let (secret, id) = create_key(&daemons[0]);
    daemons.remove(0).kill();
    for address in &addresses[1..] {
        await_status(*address, &secret, 200);
    }
    run(&daemons[0], &["key", "revoke", &id]);
    for address in &addresses[1..] {
        await_status(*address, &secret, 401);
    }
}

/// Mutations that this test catches: TLS without `store.ca` among its roots (the daemon does not
/// start), `sslmode=require` that is dropped from the URL (no session is encrypted).
#[test]
fn an_encrypted_connection_needs_a_certificate_of_the_authority_that_is_trusted() {
    let server = Postgres::create(&[
        "ssl=on",
        "ssl_cert_file=../server.pem",
        "ssl_key_file=../server-key.pem",
    ]);
    let (authority, other) = (Authority::new("the house"), Authority::new("another"));
    let issued = authority.server(&server.address().ip().to_string());
    server.private_file("server.pem", &issued.certificate.pem());
    server.private_file("server-key.pem", &issued.key.serialize_pem());
    server.restart();

    let database = server.database();
    let url = format!("{}?sslmode=require", server.url(&database, Way::Tcp));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, authority.certificate.pem()).expect("a file");
    let daemon = options(&server, &database)
        .set("store.url", &url)
        .set("store.ca", &ca.display().to_string())
        .start();
    let sessions = |is_encrypted: &str| {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
             WHERE application_name = 'autoglmd' AND ssl = {is_encrypted}"
        );
        server.sql(&database, &sql)
    };
    assert_ne!(sessions("true"), "0");
    assert_eq!(sessions("false"), "0");
    let (_, message, code) = run(&daemon, &["key", "list"]);
    assert_eq!(code, Some(0), "{message}");

    std::fs::write(&ca, other.certificate.pem()).expect("a file");
    let (_, message, code) = run(&daemon, &["key", "list"]);
    assert!(
        code == Some(69) && message.contains("certificate"),
        "{message}"
    );
}

/// Mutations that this test catches: `ADD` without one of its columns, `usage` counted twice.
#[test]
fn generations_are_recorded_listed_and_counted() {
    let server = Postgres::shared();
    let database = server.database();
    let daemon = options(&server, &database).start();
    for _ in 0..3 {
        let body = json!({"prompt": "x", "cache": "bypass"});
        daemon.generate(&body).expect(200);
    }
    let list = |query: &str| daemon.get(&format!("/api/v1/generations{query}"));
    eventually("three records are listed", || {
        let found = list("").expect(200).text().matches("\"id\":\"gen_").count();
        (found == 3).then_some(())
    });
    let page = list("?limit=2").text().matches("\"id\":\"gen_").count();
    assert_eq!(page, 2, "{}", list("?limit=2"));
    let count = "SELECT sum(generations) FROM usage";
    assert_eq!(server.sql(&database, count), "3");
    let (rows, message, code) = run(&daemon, &["key", "usage", "bootstrap", "--json"]);
    assert_eq!(code, Some(0), "{message}");
    let rows: serde_json::Value = serde_json::from_str(&rows).expect("JSON");
    assert_eq!(
        (&rows[0]["requests"], rows.as_array().map(Vec::len)),
        (&3.into(), Some(1))
    );
    let (rows, message, _) = run(&daemon, &["key", "usage", "--until=2000-01-01", "--json"]);
    assert_eq!(rows, "[]", "{message}");

    let (_, message, code) = run(&daemon, &["key", "erase", "bootstrap", "--yes"]);
    assert_eq!(code, Some(0), "{message}");
    assert!(message.contains("generations 3"), "{message}");
    for table in ["generations", "usage", "keys", "secrets"] {
        let count = format!("SELECT count(*) FROM {table}");
        assert_eq!(server.sql(&database, &count), "0", "{table}");
    }
    let ids = "SELECT count(*) FROM key_changes WHERE key_id <> ''";
    assert_eq!(server.sql(&database, ids), "0");
    assert!(!daemon.state_folder().join("bootstrap-key").exists());
    list("").expect_error(401, "invalid_key");
}

/// Mutations that this test catches: `ADD_HITS` that replaces the number before; `USAGE` without
/// `usage_hits`; an erasure that leaves it.
#[test]
fn hits_of_the_cache_are_counted_and_erased_with_their_key() {
    let server = Postgres::shared();
    let database = server.database();
    let daemon = options(&server, &database).with_cache().start();
    let usage = || {
        let (rows, message, code) = run(&daemon, &["key", "usage", "--json"]);
        assert_eq!(code, Some(0), "{message}");
        let mut rows: Vec<serde_json::Value> = serde_json::from_str(&rows).expect("JSON");
        rows.pop()
    };
    let body = json!({"prompt": "x"});
    daemon.generate(&body).expect(200);
    for round in 1..=2 {
        for _ in 0..3 {
            let hit = daemon.generate(&body).expect(200);
            assert_eq!(hit.field("x-cache"), Some("hit"), "{hit}");
        }
        eventually("the hits are counted", || {
            let row = usage()?;
            let counts = (&row["requests"], &row["hits"]);
            (counts == (&(1 + 3 * round).into(), &(3 * round).into())).then_some(())
        });
    }
    let (_, message, code) = run(&daemon, &["key", "erase", "bootstrap", "--yes"]);
    assert_eq!(code, Some(0), "{message}");
    let count = "SELECT count(*) FROM usage_hits";
    assert_eq!(server.sql(&database, count), "0");
}
