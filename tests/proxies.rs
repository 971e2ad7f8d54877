//! Behind a proxy: which address counts as the client's. HAProxy forwards connections with the
//! PROXY protocol and requests with `X-Forwarded-For`; untrusted peers try to do the same.

mod common;

use std::process::Command;
use std::sync::Arc;

use common::haproxy::HaProxy;
use common::tls::Authority;
use common::{Connection, Daemon, Options, request};

/// Starts a daemon with an address of each kind, which trusts the proxies of this machine, and
/// clients on addresses beside theirs.
fn daemon(proxies: &str) -> Daemon {
    let folder = Arc::new(tempfile::tempdir().expect("a folder"));
    let site = folder.path().join("site.pem");
    Authority::new("the house")
        .server("localhost")
        .save_together(&site);
    Options::echo()
        .in_folder(folder)
        .set_raw(
            "server.listen",
            r#"["127.0.0.1:0", "proxy:127.0.0.1:0", "proxy:tls:127.0.0.1:0"]"#,
        )
        .set_raw("server.tls.certificates", &format!("[{site:?}]"))
        .set_raw("server.trusted_proxies", proxies)
        .start()
}

/// Runs curl from this address of the machine, through the proxy: returns its exit code and output.
fn curl(client: &str, url: &str, more: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("curl")
        .args(["-sSk", "-m", "60", "--interface", client, url])
        .args(more)
        .output()
        .unwrap_or_else(|error| panic!("curl: {error}; apt-get install curl"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text)
}

/// Returns whether this access line is about a client with this address.
fn is_of(line: &str, peer: &str) -> bool {
    line.split_whitespace()
        .any(|word| word.strip_prefix("peer=") == Some(peer))
}

fn refused(daemon: &Daemon, reason: &str) -> f64 {
    let metrics = daemon.metrics();
    metrics.sum("autoglmd_proxy_refused_total", &[("reason", reason)])
}

const TRUSTED: &str = r#"["127.0.0.1"]"#;

#[test]
fn haproxy_hands_on_its_clients_address_to_every_protocol() {
    let daemon = daemon(TRUSTED);
    let folder = daemon.folder();
    let [_, proxied, over_tls] = daemon.addresses() else {
        panic!("three addresses");
    };
    let options = "send-proxy-v2 proxy-v2-options crc32c,unique-id";
    let lines = format!("  server s DAEMON {options}");
    let plain = HaProxy::start(folder.path(), "tcp", *proxied, &lines);
    let secure = HaProxy::start(folder.path(), "tcp", *over_tls, &lines);
    let plain = format!("http://{}", plain.address);
    let secure = format!("https://{}", secure.address);
    let rpc = [
        "-H",
        "content-type: application/grpc",
        "-H",
        "te: trailers",
        "--data-binary",
        "@/dev/null",
        "--http2-prior-knowledge",
    ];
    for (client, url, more, peer) in [
        (
            "127.0.0.7",
            format!("{plain}/livez"),
            &["--http1.1"][..],
            "127.0.0.7",
        ),
        (
            "127.0.0.8",
            format!("{plain}/livez"),
            &["--http2-prior-knowledge"],
            "127.0.0.8",
        ),
        (
            "127.0.0.9",
            format!("{secure}/livez"),
            &["--http1.1"],
            "127.0.0.9",
        ),
        (
            "127.0.0.10",
            format!("{secure}/livez"),
            &["--http2"],
            "127.0.0.10",
        ),
        (
            "127.0.0.11",
            format!("{plain}/grpc.health.v1.Health/Check"),
            &rpc,
            "127.0.0.11",
        ),
        // Sniffed: TLS on the address that accepts both.
        (
            "127.0.0.12",
            plain.replace("http:", "https:") + "/livez",
            &[],
            "127.0.0.12",
        ),
    ] {
        let position = daemon.log_position();
        let (code, text) = curl(client, &url, more);
        assert_eq!(code, Some(0), "{url} {text}");
        let line = daemon.wait_for_log(position, "access: ");
        assert!(is_of(&line, peer), "{url}: {line}");
    }
    for reason in ["untrusted", "missing", "version_1", "too_long", "malformed"] {
        assert_eq!(refused(&daemon, reason), 0.0, "{reason}");
    }
}

#[test]
fn haproxys_checks_and_its_own_requests_are_its_own() {
    let daemon = daemon(TRUSTED);
    let folder = daemon.folder();
    let proxied = daemon.addresses()[1];
    let position = daemon.log_position();
    let lines = "  option httpchk GET /readyz\n  timeout check 30s\n  \
                 server s DAEMON send-proxy-v2 check check-send-proxy inter 1s";
    let _proxy = HaProxy::start(folder.path(), "http", proxied, lines);
    let line = daemon.wait_for_log(position, "/readyz");
    assert!(
        line.contains(" 200 ") && is_of(&line, "127.0.0.1"),
        "{line}"
    );
}

#[test]
fn version_1_is_refused_with_the_word_that_helps() {
    let daemon = daemon(TRUSTED);
    let folder = daemon.folder();
    let position = daemon.log_position();
    let proxied = daemon.addresses()[1];
    let proxy = HaProxy::start(
        folder.path(),
        "tcp",
        proxied,
        "  server s DAEMON send-proxy",
    );
    let (code, text) = curl("127.0.0.7", &format!("http://{}/livez", proxy.address), &[]);
    assert_ne!(code, Some(0), "{text}");
    let line = daemon.wait_for_log(position, "has version 1");
    assert!(line.contains("send-proxy-v2"), "{line}");
    assert_eq!(refused(&daemon, "version_1"), 1.0);
}

#[test]
fn haproxy_names_its_client_in_x_forwarded_for() {
    let daemon = daemon(TRUSTED);
    let folder = daemon.folder();
    let lines = "  option forwardfor\n  server s DAEMON";
    let proxy = HaProxy::start(folder.path(), "http", daemon.address(), lines);
    let url = format!("http://{}/livez", proxy.address);
    for (more, peer) in [
        (&[][..], "127.0.0.7"),
        (&["-H", "X-Forwarded-For: 6.6.6.6"], "127.0.0.7"),
        // HAProxy passes this on unchanged, so the two fields disagree.
        (&["-H", "Forwarded: for=6.6.6.6"], "127.0.0.1"),
    ] {
        let position = daemon.log_position();
        assert_eq!(curl("127.0.0.7", &url, more).0, Some(0));
        let line = daemon.wait_for_log(position, "access: ");
        assert!(is_of(&line, peer), "{more:?}: {line}");
    }
}

/// Thousands of connections by an untrusted peer: closed one by one, counted, logged once.
#[test]
fn untrusted_proxy_headers_are_refused_counted_and_logged_once() {
    let daemon = daemon(r#"["192.0.2.1"]"#);
    let proxied = daemon.addresses()[1];
    let position = daemon.log_position();
    let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x06\x06\x06\x06\x7f\0\0\x01\0\x50\0\x50";
    let count = 500;
    let before = daemon.process().cpu_time();
    for _ in 0..count {
        let mut connection = Connection::tcp(proxied).expect("the kernel accepts");
        let get = request("GET", "/livez", &[], b"");
        // It may be closed before it has sent anything.
        let _ = connection.try_send(&[&header[..], &get].concat());
        assert!(connection.try_answer().is_err());
    }
    let spent = daemon.process().cpu_time() - before;
    assert_eq!(refused(&daemon, "untrusted"), f64::from(count));
    let lines = daemon.log_lines().split_off(position);
    let told = lines.iter().filter(|line| line.contains("trusted_proxies"));
    assert_eq!(told.count(), 1, "{lines:?}");
    assert!(
        !lines.iter().any(|line| line.contains("6.6.6.6")),
        "{lines:?}"
    );
    // For a debug build on a busy machine; a release build takes 30 us.
    assert!(
        spent.as_millis() < 5 * u128::from(count as u32),
        "{spent:?}"
    );
}

#[test]
fn a_reload_changes_whom_we_believe() {
    let daemon = daemon(TRUSTED);
    let from = |client: &str| {
        let fields = [("x-forwarded-for", client)];
        let position = daemon.log_position();
        daemon
            .exchange(&request("GET", "/livez", &fields, b""))
            .expect(200);
        daemon.wait_for_log(position, "access: ")
    };
    assert!(is_of(&from("192.0.2.7"), "192.0.2.7"));
    let file = daemon.configuration_file();
    let text = std::fs::read_to_string(&file).expect("the file");
    std::fs::write(&file, text.replace(TRUSTED, r#"["10.0.0.0/8"]"#)).expect("the file");
    let position = daemon.log_position();
    daemon.process().signal(libc::SIGHUP);
    daemon.wait_for_log(position, "in force: server.trusted_proxies");
    common::eventually("the reactor has the new list", || {
        is_of(&from("192.0.2.7"), "127.0.0.1").then_some(())
    });
}
