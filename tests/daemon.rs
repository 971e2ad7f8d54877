//! The daemon as a process: reload, drain, signals, logs, restarts, the service manager.

mod common;

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use serde_json::json;

use common::notify::Manager;
use common::{Connection, Daemon, Options, eventually, request};

// ---- threads ---------------------------------------------------------------------------------

/// On a core that they share, the reactor's clients do not wait for the log, the store or a long
/// body. Mutation: `give_way` left out where one of these threads starts.
#[test]
fn threads_whose_owner_can_wait_let_the_reactors_go_first() {
    let daemon = Daemon::echo();
    // A thread sets its own niceness, a moment after its start.
    eventually("each thread has its niceness", || {
        let threads = daemon.process().niceness_of_threads();
        let of = |name: &str| {
            let named = threads.iter().filter(|(it, _)| it.starts_with(name));
            let mut levels: Vec<i32> = named.map(|(_, niceness)| *niceness).collect();
            levels.dedup();
            levels
        };
        let [usual] = of("reactor-")[..] else {
            return None;
        };
        let nicer = (usual + 10).min(19);
        let all = ["worker-", "log", "store", "jobs", "callbacks"].iter();
        all.clone().all(|name| of(name) == [nicer]).then_some(())
    });
}

// ---- reload ----------------------------------------------------------------------------------

#[test]
fn good_file_is_applied_on_hup_without_dropping_a_connection() {
    let options = Options::echo().set("limits.max_body", "64KiB");
    let daemon = options.clone().start();
    let mut connection = daemon.connect();
    let large = daemon.generate_request(&json!({ "prompt": "a".repeat(8 * 1024) }));
    connection.exchange(&large).expect(200);

    // Half a request has been sent when the file changes.
    connection.send(&large[..100]);
    let changed = options.set("limits.max_body", "1KiB").configuration();
    std::fs::write(daemon.configuration_file(), changed).expect("the file can be written");
    daemon.process().signal(libc::SIGHUP);
    eventually("the new limit is in force", || {
        (daemon.exchange(&large).status() == 413).then_some(())
    });
    connection.send(&large[100..]);
    let status = connection.answer().status();
    assert!(
        matches!(status, 200 | 413),
        "the open connection was answered with {status}"
    );
    assert_eq!(reloads(&daemon, "succeeded"), 1.0);
}

#[test]
fn bad_file_is_refused_with_its_line_and_the_old_one_stays() {
    let options = Options::echo().set("limits.max_body", "64KiB");
    let daemon = options.clone().start();
    let large = daemon.generate_request(&json!({ "prompt": "a".repeat(8 * 1024) }));
    for (setting, value, word) in [
        ("limits.max_body", "1 potato", "max_body"),
        ("limits.max_bodi", "1KiB", "max_body"),
        ("log.level", "loud", "level"),
    ] {
        let position = daemon.log_position();
        let bad = options.clone().set(setting, value).configuration();
        let line = 1 + bad
            .lines()
            .position(|line| line.contains(value))
            .expect("it is there");
        std::fs::write(daemon.configuration_file(), bad).expect("the file can be written");
        daemon.process().signal(libc::SIGHUP);
        let said = daemon.wait_for_log(position, &format!("autoglmd.toml:{line}:"));
        assert!(said.contains(word), "{said}");
        daemon.exchange(&large).expect(200);
    }
    assert_eq!(reloads(&daemon, "refused"), 3.0);
    assert_eq!(reloads(&daemon, "succeeded"), 0.0);
}

#[test]
fn file_that_vanished_or_is_not_toml_leaves_the_daemon_as_it_is() {
    let daemon = Daemon::echo();
    for content in [None, Some("[limits"), Some("\0\0\0")] {
        let file = daemon.configuration_file();
        match content {
            Some(text) => std::fs::write(file, text).expect("the file can be written"),
            None => std::fs::remove_file(file).expect("the file was there"),
        }
        let failed = reloads(&daemon, "refused");
        daemon.process().signal(libc::SIGHUP);
        eventually("the reload is refused", || {
            (reloads(&daemon, "refused") > failed).then_some(())
        });
        daemon.generate(&json!({"prompt": "hello"})).expect(200);
    }
}

#[test]
fn saved_file_is_applied_by_itself_where_that_is_switched_on() {
    let options = Options::echo().set_raw("server.watch_config", "true");
    let daemon = options.clone().start();
    let large = daemon.generate_request(&json!({ "prompt": "a".repeat(8 * 1024) }));
    daemon.exchange(&large).expect(200);
    // As editors save: a new file, renamed over the old one.
    let changed = options
        .clone()
        .set("limits.max_body", "1KiB")
        .configuration();
    let beside = daemon.configuration_file().with_extension("new");
    std::fs::write(&beside, changed).expect("the folder can be written");
    std::fs::rename(&beside, daemon.configuration_file()).expect("the same folder");
    eventually("the new limit is in force", || {
        (daemon.exchange(&large).status() == 413).then_some(())
    });
    // As other programs save: in place.
    let changed = options.set("limits.max_body", "1MiB").configuration();
    std::fs::write(daemon.configuration_file(), changed).expect("the file can be written");
    eventually("the old limit is back", || {
        (daemon.exchange(&large).status() == 200).then_some(())
    });
}

// ---- the end ---------------------------------------------------------------------------------

#[test]
fn idle_daemon_ends_at_once_on_term_and_on_int() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut daemon = Daemon::echo();
        let mut idle = daemon.connect();
        idle.exchange(&request("GET", "/livez", &[], b""))
            .expect(200);
        let start = Instant::now();
        daemon.process().signal(signal);
        assert_eq!(idle.until_closed(), b"");
        assert_eq!(daemon.wait().code(), Some(0));
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "took {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn request_whose_body_is_under_way_is_answered_during_the_drain() {
    let mut daemon = Daemon::echo();
    let bytes = daemon.generate_request(&json!({"prompt": "hello"}));
    let mut connection = daemon.connect();
    let (head, body) = bytes.split_at(bytes.len() - 10);
    connection.send(head);
    // A response on another connection shows that the loop has run a turn since.
    daemon
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
    let position = daemon.log_position();
    daemon.process().signal(libc::SIGTERM);
    daemon.wait_for_log(position, "drain");
    connection.send(body);
    let answer = connection.answer();
    assert!(matches!(answer.status(), 200 | 503), "{answer}");
    assert_eq!(answer.field("connection"), Some("close"));
    assert_eq!(daemon.wait().code(), Some(0));
}

/// One of two reactors has nothing to wait for and ends first; the daemon still handles signals.
#[test]
fn second_term_cuts_off_what_the_first_one_waits_for() {
    let mut daemon = Options::echo().argument("--reactors").argument("2").start();
    let mut connection = daemon.connect();
    let bytes = daemon.generate_request(&json!({"prompt": "hello"}));
    connection.send(&bytes[..bytes.len() - 1]);
    daemon
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
    let start = Instant::now();
    let position = daemon.log_position();
    daemon.process().signal(libc::SIGTERM);
    daemon.wait_for_log(position, "draining");
    daemon.process().signal(libc::SIGTERM);
    let answer = connection.answer().expect_error(503, "draining");
    assert_eq!(answer.field("connection"), Some("close"));
    assert_eq!(daemon.wait().code(), Some(0));
    // The first one alone would wait for half a minute.
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// A load balancer must not wait for a daemon that will not respond: no listener may stay open.
#[test]
fn draining_daemon_accepts_no_connection() {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let path = folder.path().join("autoglmd.sock");
    let listen = format!(r#"["127.0.0.1:0", "{}"]"#, path_argument(&path));
    let mut daemon = Options::echo().set_raw("server.listen", &listen).start();
    let bytes = daemon.generate_request(&json!({"prompt": "hello"}));
    let mut connection = daemon.connect();
    connection.send(&bytes[..bytes.len() - 1]);
    daemon
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
    daemon.process().signal(libc::SIGTERM);
    eventually("the addresses are closed", || {
        let refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
        let tcp = Connection::tcp(daemon.address()).is_err_and(refused);
        (tcp && Connection::unix(&path).is_err() && !path.exists()).then_some(())
    });
    assert!(daemon.process().is_alive(), "a request is still under way");
    connection.send(&bytes[bytes.len() - 1..]);
    let answer = connection.answer().expect_error(503, "draining");
    assert_eq!(answer.field("connection"), Some("close"));
    assert_eq!(daemon.wait().code(), Some(0));
}

/// The address of a killed daemon is free again: the next one starts.
#[test]
fn daemon_killed_without_warning_starts_again_on_the_same_state() {
    let mut daemon = Daemon::echo();
    let key = daemon.key().to_owned();
    let address = daemon.address();
    let connections: Vec<Connection> = (0..10).map(|_| daemon.connect()).collect();
    daemon.generate(&json!({"prompt": "hello"})).expect(200);
    daemon.kill();
    assert_eq!(daemon.wait().signal(), Some(libc::SIGKILL));
    let again = Options::echo()
        .in_folder(daemon.folder())
        .set_raw("server.listen", &format!("[\"{address}\"]"))
        .start();
    assert_eq!(again.key(), key, "the first key is made once");
    assert_eq!(again.address(), address);
    again.generate(&json!({"prompt": "hello"})).expect(200);
    drop(connections);
}

#[test]
fn stale_unix_socket_is_replaced_and_a_living_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let path = folder.path().join("autoglmd.sock");
    let listen = format!("[\"unix:{}\"]", path.display());
    let mut first = Options::echo().set_raw("server.listen", &listen).start();
    first.kill();
    assert!(path.exists(), "a killed daemon leaves its socket");
    let second = Options::echo().set_raw("server.listen", &listen).start();
    let bytes = request("GET", "/livez", &[], b"");
    Connection::unix(&path)
        .expect("it listens")
        .exchange(&bytes)
        .expect(200);

    let refused = second.run(&[
        "serve",
        "--engine",
        "echo",
        "--listen",
        &path_argument(&path),
    ]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("already running"), "{said}");
    Connection::unix(&path)
        .expect("it still listens")
        .exchange(&bytes)
        .expect(200);
}

fn path_argument(path: &std::path::Path) -> String {
    format!("unix:{}", path.display())
}

#[test]
fn address_in_use_is_said_plainly() {
    let daemon = Daemon::echo();
    let address = daemon.address().to_string();
    let output = daemon.run(&["serve", "--engine", "echo", "--listen", &address]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
}

// ---- logs ------------------------------------------------------------------------------------

#[test]
fn usr1_reopens_the_log_file() {
    let folder = tempfile::tempdir().expect("a folder for the log");
    let file = folder.path().join("autoglmd.log");
    let manager = Manager::new(folder.path());
    let socket = folder.path().join("autoglmd.sock");
    let listen = format!("[\"{}\"]", path_argument(&socket));
    // With a log file, stderr stays empty; the service manager learns when the daemon is ready.
    let mut daemon = Options::echo()
        .set("log.file", file.to_str().expect("a plain path"))
        .set_raw("server.listen", &listen)
        .environment("NOTIFY_SOCKET", manager.address())
        .with_stalled_stderr()
        .start();
    manager.wait_for("READY");
    daemon.read_key();
    let ask = |id: &str| {
        let fields = [("x-request-id", id)];
        let bytes = daemon.request_with("GET", "/api/v1/models", &fields, b"");
        Connection::unix(&socket)
            .expect("it listens")
            .exchange(&bytes)
            .expect(200);
    };
    let holds = |path: &std::path::Path, id: &str| {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains(id))
    };
    ask("before-rotation");
    eventually("the line is written", || {
        holds(&file, "before-rotation").then_some(())
    });
    let rotated = folder.path().join("autoglmd.log.1");
    std::fs::rename(&file, &rotated).expect("the same folder");
    daemon.process().signal(libc::SIGUSR1);
    eventually("the file is there again", || file.exists().then_some(()));
    ask("after-rotation");
    eventually("the line is in the new file", || {
        holds(&file, "after-rotation").then_some(())
    });
    assert!(!holds(&rotated, "after-rotation"));
    assert!(holds(&rotated, "before-rotation"));
}

#[test]
fn json_log_is_one_object_a_line() {
    // With a service manager, stderr carries the log and no text for people.
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let manager = Manager::new(folder.path());
    let daemon = Options::echo()
        .set("log.format", "json")
        .environment("NOTIFY_SOCKET", manager.address())
        .start();
    let fields = [("x-request-id", "one-object")];
    let bytes = daemon.request_with("GET", "/api/v1/models", &fields, b"");
    daemon.exchange(&bytes).expect(200);
    daemon.wait_for_log(0, "one-object");
    for line in daemon.log_lines() {
        let parsed: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(parsed.is_object());
    }
}

/// A log that is not read must cost lines, never responses.
#[test]
fn full_log_pipe_holds_nothing_up_and_is_counted() {
    let folder = tempfile::tempdir().expect("a folder for the sockets");
    let manager = Manager::new(folder.path());
    let socket = folder.path().join("autoglmd.sock");
    let mut daemon = Options::echo()
        .set_raw(
            "server.listen",
            &format!("[\"{}\"]", path_argument(&socket)),
        )
        .environment("NOTIFY_SOCKET", manager.address())
        .with_stalled_stderr()
        .start();
    manager.wait_for("READY");
    daemon.read_key();
    let mut connection = Connection::unix(&socket).expect("it listens");
    let batch = daemon.request("GET", "/api/v1/models", b"").repeat(50);
    eventually("lines are dropped", || {
        connection.send(&batch);
        for _ in 0..50 {
            connection.answer().expect(200);
        }
        let metrics = connection
            .exchange(&daemon.request("GET", "/metrics", b""))
            .expect(200);
        let dropped = common::metrics::Metrics::parse(metrics.text());
        let dropped = dropped.value("autoglmd_log_dropped_total");
        (dropped > 0.0).then_some(())
    });
    // Nor does it hold up the end.
    let start = Instant::now();
    daemon.process().signal(libc::SIGTERM);
    daemon.wait_while_stalled();
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "took {:?}",
        start.elapsed()
    );
}

// ---- the service manager ---------------------------------------------------------------------

#[test]
fn service_manager_learns_of_start_reload_and_stop() {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let manager = Manager::new(folder.path());
    let mut daemon = Options::echo()
        .environment("NOTIFY_SOCKET", manager.address())
        .start();
    assert_eq!(manager.wait_for("READY").value("READY"), Some("1"));

    let before = monotonic_microseconds();
    daemon.process().signal(libc::SIGHUP);
    let reloading = manager.wait_for("RELOADING");
    // systemd refuses a reload without a time stamp in the same message (sd_notify(3)).
    let stamp = reloading.value("MONOTONIC_USEC").expect("a time stamp");
    let stamp: u64 = stamp.parse().expect("a number");
    assert!(
        (before..=monotonic_microseconds()).contains(&stamp),
        "{stamp} after {before}"
    );
    manager.wait_for("READY");

    daemon.process().signal(libc::SIGTERM);
    manager.wait_for("STOPPING");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn watchdog_is_fed_by_the_loop() {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let manager = Manager::new(folder.path());
    let daemon = Options::echo()
        .environment("NOTIFY_SOCKET", manager.address())
        .environment("WATCHDOG_USEC", "400000")
        .start();
    manager.wait_for("READY");
    let start = Instant::now();
    for _ in 0..4 {
        manager.wait_for("WATCHDOG");
    }
    // Half the timeout is the rule (sd_watchdog_enabled(3)): four of them in 0.8 s.
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "took {:?}",
        start.elapsed()
    );
    let position = daemon.log_position();
    // A stopped process does not feed the watchdog, which is the point; a continued one does again.
    daemon.process().signal(libc::SIGSTOP);
    daemon.process().signal(libc::SIGCONT);
    manager.wait_for("WATCHDOG");
    assert_eq!(
        daemon.log_position(),
        position,
        "a healthy loop has nothing to say"
    );
}

#[test]
fn socket_is_taken_over_from_the_service_manager_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the kernel's choice");
    let address = listener.local_addr().expect("it is bound");
    let daemon = Options::echo()
        .set_raw("server.listen", r#"["fd:api"]"#)
        .activated_with(listener, "api")
        .start();
    let bytes = daemon.generate_request(&json!({"prompt": "hello"}));
    for _ in 0..3 {
        Connection::tcp(address)
            .expect("it listens")
            .exchange(&bytes)
            .expect(200);
    }
}

#[test]
fn socket_that_was_not_passed_is_said_plainly() {
    let daemon = Daemon::echo();
    let output = daemon.run(&["serve", "--engine", "echo", "--listen", "fd:api"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("api"), "{said}");
}

// ---- the command line ------------------------------------------------------------------------

#[test]
fn check_names_file_line_and_column() {
    let daemon = Daemon::echo();
    let file = daemon.configuration_file();
    let path = file.to_str().expect("a plain path");
    assert!(daemon.run(&["check", "--config", path]).status.success());
    std::fs::write(&file, "[limits]\nmax_bodi = \"1KiB\"\n").expect("the file can be written");
    let output = daemon.run(&["check", "--config", path]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("autoglmd.toml:2:1") && said.contains("max_body"),
        "{said}"
    );
}

#[test]
fn generate_prints_the_program_of_a_running_daemon() {
    let daemon = Daemon::echo();
    let url = format!("http://{}", daemon.address());
    let output = daemon.run(&[
        "generate",
        "hello",
        "--language",
        "python",
        "--url",
        &url,
        "--key",
        daemon.key(),
    ]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answer = daemon
        .generate(&json!({"prompt": "hello", "language": "python"}))
        .expect(200);
    assert_eq!(
        said.trim(),
        answer.json()["code"].as_str().expect("code").trim()
    );
}

// ---- helpers ---------------------------------------------------------------------------------

fn reloads(daemon: &Daemon, result: &str) -> f64 {
    daemon
        .metrics()
        .sum("autoglmd_config_reloads_total", &[("result", result)])
}

fn monotonic_microseconds() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the kernel to write to.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(result, 0);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
