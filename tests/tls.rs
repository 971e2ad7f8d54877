//! TLS over real sockets, against the daemon with the echo engine: handshakes, certificates,
//! clients' certificates, reloads, and peers that break the protocol.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde_json::json;
use tempfile::TempDir;

use common::client::Connection;
use common::metrics::Metrics;
use common::tls::{Authority, Issued, Wanted, without_resumption};
use common::{Daemon, Options, eventually, request, within};

const GET: &str = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// A daemon with a certificate for `localhost`, and the authority that signed it.
struct House {
    daemon: Daemon,
    authority: Authority,
    files: Arc<TempDir>,
}

impl House {
    fn new() -> House {
        House::with(|options, _, _| options)
    }

    /// `adjust` gets the folder of the certificates and the authority.
    fn with(adjust: impl FnOnce(Options, &Path, &Authority) -> Options) -> House {
        let authority = Authority::new("the house");
        let files = Arc::new(folder());
        let site = site(files.path());
        authority.server("localhost").save_together(&site);
        let options = Options::echo().set_raw("server.tls.certificates", &list(&[&site]));
        let daemon = adjust(options, files.path(), &authority).start();
        House {
            daemon,
            authority,
            files,
        }
    }

    fn site(&self) -> PathBuf {
        site(self.files.path())
    }

    fn connect(&self) -> Connection {
        self.connect_as(&Arc::new(self.authority.client(None)))
    }

    fn connect_as(&self, config: &Arc<ClientConfig>) -> Connection {
        Connection::tls(self.daemon.address(), config, "localhost").expect("a handshake")
    }

    fn handshakes(&self, outcome: &str, version: &str) -> f64 {
        let labels = [("outcome", outcome), ("version", version)];
        let metrics = self.daemon.metrics();
        metrics.sum("autoglmd_tls_handshakes_total", &labels)
    }

    fn reload(&self, expected: &str) {
        let position = self.daemon.log_position();
        self.daemon.process().signal(libc::SIGHUP);
        self.daemon.wait_for_log(position, expected);
    }
}

fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("the target folder can be written")
}

fn site(folder: &Path) -> PathBuf {
    folder.join("site.pem")
}

/// Writes paths as a TOML list.
fn list(paths: &[&Path]) -> String {
    format!("{paths:?}")
}

/// Returns the certificate that a server shows for this name.
fn shown(address: SocketAddr, authority: &Authority, name: &str) -> Vec<u8> {
    let config = without_resumption(authority.client(None));
    let mut connection = Connection::tls(address, &config, name).expect("a handshake");
    let chain = connection.session().peer_certificates().expect("a chain");
    chain[0].to_vec()
}

// ---- handshakes ------------------------------------------------------------------------------

#[test]
fn both_versions_are_spoken_and_clear_text_on_the_same_port() {
    let house = House::new();
    for (version, label) in [
        (&rustls::version::TLS12, "1.2"),
        (&rustls::version::TLS13, "1.3"),
    ] {
        let config = Arc::new(house.authority.client_of(None, &[version]));
        let mut connection = house.connect_as(&config);
        for _ in 0..3 {
            connection.exchange(GET.as_bytes()).expect(200);
        }
        let generate = house
            .daemon
            .generate_request(&json!({"prompt": "hello", "language": "python"}));
        connection.exchange(&generate).expect(200);
        assert_eq!(house.handshakes("full", label), 1.0);
    }
    house.daemon.get("/livez").expect(200);
}

#[test]
fn curl_and_openssl_agree_on_each_version() {
    let house = House::new();
    let authority = house.files.path().join("authority.pem");
    std::fs::write(&authority, house.authority.certificate.pem()).expect("a file");
    let port = house.daemon.address().port();
    for version in ["1.2", "1.3"] {
        for (http, spoken) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let output = Command::new("curl")
                .args(["--silent", "--show-error", http, "--cacert"])
                .arg(&authority)
                .args([&format!("--tlsv{version}"), "--tls-max", version])
                .args(["--resolve", &format!("localhost:{port}:127.0.0.1")])
                .args([
                    "--write-out",
                    "%{http_version} %{http_code} %{ssl_verify_result}",
                ])
                .arg(format!("https://localhost:{port}/livez"))
                .output()
                .expect("curl; on Debian and Ubuntu: apt-get install curl");
            let text = String::from_utf8_lossy(&output.stdout);
            let error = String::from_utf8_lossy(&output.stderr);
            let expected = format!("{spoken} 200 0");
            assert!(text.ends_with(&expected), "{version}: {text} {error}");
        }

        let last = GET.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "printf '{last}' | openssl s_client -quiet -servername localhost \
                 -verify_return_error -CAfile {} -tls{} -connect 127.0.0.1:{port}",
                authority.display(),
                version.replace('.', "_")
            ))
            .output()
            .expect("a shell");
        let text = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.starts_with("HTTP/1.1 200 "),
            "openssl with {version} said {text} {error}; on Debian and Ubuntu: \
             apt-get install openssl"
        );
    }
}

#[test]
fn an_old_version_is_refused_where_the_new_one_is_asked_for() {
    let house = House::with(|options, _, _| options.set("server.tls.min_version", "1.3"));
    let old = house.authority.client_of(None, &[&rustls::version::TLS12]);
    let refused = Connection::tls(house.daemon.address(), &Arc::new(old), "localhost");
    let error = refused.err().expect("an alert").to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
    assert_eq!(house.handshakes("failed", "none"), 1.0);
    house.connect().exchange(GET.as_bytes()).expect(200);
}

#[test]
fn alpn_takes_what_both_know_and_refuses_what_neither_does() {
    let house = House::new();
    let agreed = |offered: &[&[u8]]| {
        let mut config = house.authority.client(None);
        config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let mut connection =
            Connection::tls(house.daemon.address(), &Arc::new(config), "localhost").ok()?;
        Some(connection.session().alpn_protocol().map(<[u8]>::to_vec))
    };
    assert_eq!(agreed(&[]), Some(None));
    assert_eq!(agreed(&[b"http/1.1"]), Some(Some(b"http/1.1".to_vec())));
    assert_eq!(agreed(&[b"http/1.1", b"h2"]), Some(Some(b"h2".to_vec())));
    assert_eq!(agreed(&[b"spdy/3"]), None, "RFC 7301, section 3.2");
}

#[test]
fn sessions_are_resumed_in_both_versions_and_across_a_reload() {
    let house = House::new();
    for (version, label) in [
        (&rustls::version::TLS12, "1.2"),
        (&rustls::version::TLS13, "1.3"),
    ] {
        let config = Arc::new(house.authority.client_of(None, &[version]));
        for round in 0..3 {
            // Reading a response takes in the ticket that came before it.
            let mut connection = house.connect_as(&config);
            connection.exchange(GET.as_bytes()).expect(200);
            assert_eq!(house.handshakes("resumed", label), f64::from(round));
            if round == 1 {
                house.reload("nothing changed");
            }
        }
    }
}

// ---- certificates ----------------------------------------------------------------------------

#[test]
fn the_server_name_chooses_among_certificates() {
    let mut made = Vec::new();
    let house = House::with(|options, folder, authority| {
        let mut files = vec![site(folder)];
        for hosts in [&["api.example"][..], &["*.wild.example", "wild.example"]] {
            let issued = authority.issue(&Wanted {
                hosts,
                ..Wanted::default()
            });
            let file = folder.join(format!("{}.pem", hosts[0].trim_start_matches("*.")));
            issued.save_together(&file);
            files.push(file);
            made.push(issued.certificate.der().to_vec());
        }
        let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        options.set_raw("server.tls.certificates", &list(&files))
    });
    let address = house.daemon.address();
    let shown = |name: &str| shown(address, &house.authority, name);
    assert_eq!(shown("api.example"), made[0]);
    assert_eq!(shown("API.example"), made[0]);
    assert_eq!(shown("a.wild.example"), made[1]);
    assert_eq!(shown("wild.example"), made[1]);
    // A wildcard covers one label (RFC 9525): the server sends the first certificate, and the
    // client refuses it.
    let config = Arc::new(house.authority.client(None));
    assert!(Connection::tls(address, &config, "a.b.wild.example").is_err());
    house.connect();
}

/// RFC 6066, section 3: a server may ignore names that it does not recognize. OpenSSL sends any
/// name that it is given. In both versions the handshake succeeds, with the first certificate, and
/// so does the one that resumes it.
#[test]
fn server_names_that_are_not_host_names_get_the_first_certificate() {
    let house = House::new();
    let folder = house.files.path();
    for (version, groups) in [("-tls1_2", ""), ("-tls1_3", ""), ("-tls1_3", "P-384:P-256")] {
        for name in ["[localhost]", "localhost:443", "*.x", "a b", "localhost."] {
            let ticket = folder.join("ticket");
            for direction in ["-sess_out", "-sess_in"] {
                let mut command = Command::new("openssl");
                command
                    .args(["s_client", "-ign_eof", version, "-servername", name])
                    .args(["-connect", &house.daemon.address().to_string(), direction])
                    .arg(&ticket)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                if !groups.is_empty() {
                    command.args(["-groups", groups]);
                }
                let mut child = command.spawn().expect("openssl (apt-get install openssl)");
                let get = "GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
                let mut input = child.stdin.take().expect("a pipe");
                input.write_all(get.as_bytes()).expect("openssl reads");
                let output = child.wait_with_output().expect("openssl ends");
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(
                    text.contains("HTTP/1.1 200 OK"),
                    "{version} {name} {direction}: {text} {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                let resumed = text.contains("Reused, TLSv1.");
                assert_eq!(resumed, direction == "-sess_in", "{version} {name}: {text}");
            }
        }
    }
    let metrics = house.daemon.metrics();
    let failed = metrics.sum("autoglmd_tls_handshakes_total", &[("outcome", "failed")]);
    assert_eq!(failed, 0.0);
}

#[test]
fn of_two_certificates_for_a_name_the_client_gets_one_that_it_understands() {
    let house = House::with(|options, folder, authority| {
        let rsa = authority.issue(&Wanted {
            hosts: &["localhost"],
            algorithm: Some(&rcgen::PKCS_RSA_SHA256),
            ..Wanted::default()
        });
        let file = folder.join("rsa.pem");
        rsa.save_together(&file);
        let site = site(folder);
        options.set_raw("server.tls.certificates", &list(&[&site, &file]))
    });
    let authority = house.files.path().join("authority.pem");
    std::fs::write(&authority, house.authority.certificate.pem()).expect("a file");
    let port = house.daemon.address().port();
    for (cipher, kind) in [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDSA"),
        ("ECDHE-RSA-AES128-GCM-SHA256", "RSA"),
    ] {
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "openssl s_client -tls1_2 -cipher {cipher} -sigalgs {kind}+SHA256 \
                 -servername localhost -connect 127.0.0.1:{port} </dev/null"
            ))
            .output()
            .expect("openssl; on Debian and Ubuntu: apt-get install openssl");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains(&format!("Cipher is {cipher}")),
            "{kind}: {text}"
        );
    }
}

#[test]
fn keys_in_files_of_their_own_and_credentials_of_the_service_manager() {
    let files = Arc::new(folder());
    let authority = Authority::new("the house");
    let issued = authority.server("localhost");
    let (certificate, key) = issued.save(files.path(), "site");
    std::fs::rename(key, files.path().join("site-key")).expect("a file");
    let daemon = Options::echo()
        .set_raw("server.tls.certificates", &list(&[&certificate]))
        .set_raw("server.tls.keys", r#"["credential:site-key"]"#)
        .environment(
            "CREDENTIALS_DIRECTORY",
            files.path().to_str().expect("plain"),
        )
        .start();
    assert_eq!(
        shown(daemon.address(), &authority, "localhost"),
        issued.certificate.der().to_vec()
    );
}

#[test]
fn a_reload_shows_the_new_certificate_and_drops_no_connection() {
    let house = House::new();
    let before = shown(house.daemon.address(), &house.authority, "localhost");
    let mut old = house.connect();
    old.exchange(GET.as_bytes()).expect(200);
    // In the middle of a request, too.
    let body = json!({"prompt": "hello", "language": "python"}).to_string();
    let bytes = house
        .daemon
        .request("POST", "/api/v1/generate", body.as_bytes());
    let (first, second) = bytes.split_at(bytes.len() - 10);
    let mut halfway = house.connect();
    halfway.send(first);

    house
        .authority
        .server("localhost")
        .save_together(&house.site());
    house.reload("nothing changed");
    let after = shown(house.daemon.address(), &house.authority, "localhost");
    assert_ne!(before, after);
    old.exchange(GET.as_bytes()).expect(200);
    halfway.exchange(second).expect(200);
}

#[test]
fn a_saved_certificate_is_taken_without_a_signal() {
    let house = House::with(|options, _, _| options.set_raw("server.watch_config", "true"));
    let before = shown(house.daemon.address(), &house.authority, "localhost");
    let position = house.daemon.log_position();
    house
        .authority
        .server("localhost")
        .save_together(&house.site());
    // The log line is the beginning of the reload.
    house.daemon.wait_for_log(position, "a file was saved");
    eventually("the new certificate is shown", || {
        let shown = shown(house.daemon.address(), &house.authority, "localhost");
        (shown != before).then_some(())
    });
}

#[test]
fn a_reload_with_a_bad_certificate_is_refused_whole() {
    let house = House::new();
    let before = shown(house.daemon.address(), &house.authority, "localhost");
    let good = std::fs::read_to_string(house.site()).expect("the file");
    let key_alone = good
        .split_once("-----END CERTIFICATE-----\n")
        .expect("two parts")
        .1;
    let other = house.authority.server("localhost");
    let mixed = format!("{}{key_alone}", other.certificate.pem());
    for (text, expected) in [
        ("", "holds no certificate"),
        (key_alone, "holds no certificate"),
        (&good[..good.len() - 40], "is not PEM"),
        (&other.certificate.pem(), "holds no private key"),
        (&mixed, "does not belong to the first certificate"),
        (
            &good.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
            "passphrase",
        ),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "not an X.509",
        ),
    ] {
        std::fs::write(house.site(), text).expect("the file");
        house.reload(expected);
        assert_eq!(
            before,
            shown(house.daemon.address(), &house.authority, "localhost")
        );
    }
    std::fs::remove_file(house.site()).expect("the file");
    house.reload("cannot read ");
    let metrics = house.daemon.metrics();
    let refused = metrics.sum("autoglmd_config_reloads_total", &[("result", "refused")]);
    assert_eq!(refused, 8.0);
    // `check` reports the same, with the line of the file.
    let output = house.daemon.run(&[
        "check",
        "--config",
        house.daemon.configuration_file().to_str().expect("plain"),
    ]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("server.tls.certificates[0]: ") && text.contains(".toml:"),
        "{text}"
    );
    assert!(
        text.contains("cannot read ") && text.contains("site.pem: "),
        "{text}"
    );

    std::fs::write(house.site(), good).expect("the file");
    house.reload("nothing changed");
    house.connect().exchange(GET.as_bytes()).expect(200);
}

#[test]
fn a_daemon_does_not_start_without_its_certificate() {
    let folder = folder();
    let file = folder.path().join("a.toml");
    let text = "[engine]\nkind = \"echo\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n[server.tls]\n\
                certificates = [\"/nowhere/site.pem\"]\n";
    std::fs::write(&file, text).expect("a file");
    let output = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_autoglmd"), "serve", "--config"])
        .arg(&file)
        .arg("--state-dir")
        .arg(folder.path())
        .output()
        .expect("the binary");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(
        text.contains("cannot read /nowhere/site.pem: No such file"),
        "{text}"
    );
}

/// Runs curl without checking the certificate: returns the status, and curl's own messages.
fn curl_anyway(address: SocketAddr) -> (String, String) {
    let output = Command::new("curl")
        .args(["-sSk", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("https://localhost:{}/livez", address.port()))
        .output()
        .expect("curl (apt-get install curl)");
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A clock without a battery, or a renewal that failed over the holidays. Clients refuse the
/// certificate; the daemon still serves clear text, and clients that accept it all the same.
#[test]
fn a_certificate_out_of_its_time_is_served_warned_of_and_measured() {
    let expired = Wanted {
        hosts: &["localhost"],
        days: Some(-2),
        ..Wanted::default()
    };
    let early = Wanted {
        hosts: &["localhost"],
        begins_in_days: Some(2),
        ..Wanted::default()
    };
    for (wanted, expected) in [(expired, "expired on"), (early, "is not valid before")] {
        let house = House::with(|options, folder, authority| {
            authority.issue(&wanted).save_together(&site(folder));
            options
        });
        house.daemon.wait_for_log(0, expected);
        house.daemon.get("/livez").expect(200);
        let curled = curl_anyway(house.daemon.address());
        assert_eq!(curled, ("200".to_owned(), String::new()));
        let metrics = house.daemon.metrics();
        let at = |name: &str| metrics.sum(name, &[("certificate", "0")]);
        let now = jiff::Timestamp::now().as_second() as f64;
        let is_valid = at("autoglmd_tls_certificate_not_before_seconds") <= now
            && now < at("autoglmd_tls_certificate_expiry_seconds");
        assert!(!is_valid);
        // The same at a reload, to it and from it; `check` warns and succeeds.
        house
            .authority
            .server("localhost")
            .save_together(&house.site());
        house.reload("nothing changed");
        house.connect().exchange(GET.as_bytes()).expect(200);
        house.authority.issue(&wanted).save_together(&house.site());
        house.reload(expected);
        let file = house.daemon.configuration_file();
        let output = house
            .daemon
            .run(&["check", "--config", file.to_str().expect("plain")]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn the_end_of_a_certificate_is_a_metric_and_a_warning_30_days_ahead() {
    let house = House::with(|options, folder, authority| {
        let soon = authority.issue(&Wanted {
            hosts: &["soon.example"],
            days: Some(10),
            ..Wanted::default()
        });
        let file = folder.join("soon.pem");
        soon.save_together(&file);
        let site = site(folder);
        options.set_raw("server.tls.certificates", &list(&[&site, &file]))
    });
    let line = house.daemon.wait_for_log(0, "soon.pem expires on ");
    assert!(line.contains("in 9 days"), "{line}");
    let lines = house.daemon.log_lines();
    assert!(
        !lines.iter().any(|line| line.contains("site.pem expires")),
        "{lines:?}"
    );
    let now = jiff::Timestamp::now().as_second() as f64;
    let metrics = house.daemon.metrics();
    let days = |certificate: &str| {
        let labels = [("certificate", certificate)];
        let at = metrics.sum("autoglmd_tls_certificate_expiry_seconds", &labels);
        (at - now) / (24.0 * 3_600.0)
    };
    assert!((9.0..=10.0).contains(&days("1")), "{}", days("1"));
    assert!((364.0..=365.0).contains(&days("0")), "{}", days("0"));
}

// ---- clients' certificates -------------------------------------------------------------------

/// Starts a daemon that asks for clients' certificates, and issues one.
fn asking(mode: &str, clients: &str) -> (House, Issued) {
    let mut client = None;
    let house = House::with(|options, folder, authority| {
        client = Some(authority.issue(&Wanted {
            hosts: &["agent.example"],
            uri: Some("spiffe://house/agent"),
            common_name: "the agent",
            ..Wanted::default()
        }));
        let file = folder.join("authority.pem");
        std::fs::write(&file, authority.certificate.pem()).expect("a file");
        let options = match mode {
            "required" => options.set_raw("server.listen", r#"["tls:127.0.0.1:0"]"#),
            _ => options,
        };
        options
            .set("server.tls.client_ca", file.to_str().expect("plain"))
            .set("server.tls.client_certificates", mode)
            .set_raw("server.tls.client_keys", clients)
    });
    (house, client.expect("just made"))
}

/// Returns the status of a request that needs a key, with these fields.
fn status(connection: &mut Connection, fields: &[(&str, &str)]) -> u16 {
    let bytes = request("GET", "/api/v1/models", fields, b"");
    connection.exchange(&bytes).head.status
}

#[test]
fn a_required_certificate_is_required_and_must_be_signed_by_our_authority() {
    let (house, client) = asking("required", r#"["cn:the agent = bootstrap"]"#);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let known = Arc::new(house.authority.client_of(Some(&client), &[version]));
        house
            .connect_as(&known)
            .exchange(GET.as_bytes())
            .expect(200);
        let stranger = Authority::new("the street").issue(&Wanted {
            common_name: "the agent",
            ..Wanted::default()
        });
        for refused in [None, Some(&stranger)] {
            let config = Arc::new(house.authority.client_of(refused, &[version]));
            // With TLS 1.3 the client has finished before the server has checked it.
            let served = Connection::tls(house.daemon.address(), &config, "localhost").and_then(
                |mut connection| {
                    connection.try_send(GET.as_bytes())?;
                    connection.try_answer()
                },
            );
            let error = served.expect_err("an alert").to_string();
            assert!(error.contains("alert"), "{error}");
        }
    }
    let known = Arc::new(house.authority.client(Some(&client)));
    let answer = house
        .connect_as(&known)
        .exchange(&house.daemon.request("GET", "/metrics", b""));
    let metrics = Metrics::parse(answer.expect(200).text());
    assert_eq!(
        metrics.sum("autoglmd_tls_handshakes_total", &[("outcome", "failed")]),
        4.0
    );
}

/// The new address comes with a restart, but the new rule would come at once: on the old address,
/// without certificates, or for every client.
#[test]
fn a_reload_grants_no_access_that_a_restart_would_deny() {
    let house = House::with(|options, _, _| options.set_raw("server.listen", r#"["0.0.0.0:0"]"#));
    let file = house.daemon.configuration_file();
    let text = std::fs::read_to_string(&file).expect("the file");
    let ca = house.files.path().join("authority.pem");
    std::fs::write(&ca, house.authority.certificate.pem()).expect("a file");
    let asks = format!("client_ca = {ca:?}\nclient_certificates = \"required\"\ncertificates = [");
    for changed in [
        text.replace("0.0.0.0:0", "tls:0.0.0.0:0")
            .replacen("certificates = [", &asks, 1),
        format!(
            "{}\n[auth]\nenabled = false\n",
            text.replace("0.0.0.0:0", "127.0.0.1:0")
        ),
    ] {
        std::fs::write(&file, changed).expect("the file");
        house.reload("a reload does not change server.listen, so restart the daemon");
        let port = house.daemon.address().port();
        let mut connection = Connection::tcp(([127, 0, 0, 1], port).into()).expect("TCP");
        connection.exchange(GET.as_bytes()).expect(200);
        let models = request("GET", "/api/v1/models", &[], b"");
        assert_eq!(connection.exchange(&models).head.status, 401);
    }
}

#[test]
fn a_required_certificate_beside_clear_text_is_refused() {
    let (house, _) = asking("required", "[]");
    let file = house.daemon.configuration_file();
    let text = std::fs::read_to_string(&file).expect("the file");
    for address in ["127.0.0.1:0", "clear:127.0.0.1:0", "unix:/tmp/never"] {
        std::fs::write(&file, text.replace("tls:127.0.0.1:0", address)).expect("the file");
        let arguments = ["check", "--config", file.to_str().expect("plain")];
        let output = house.daemon.run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("which accepts clear text"), "{said}");
    }
}

#[test]
fn a_certificate_stands_for_a_key_unless_the_request_brings_one() {
    let (house, client) = asking("optional", "[]");
    let output = house
        .daemon
        .run(&["key", "create", "--name", "agents", "--scopes", "generate"]);
    assert!(output.status.success(), "{output:?}");
    let file = house.daemon.configuration_file();
    let text = std::fs::read_to_string(&file).expect("the file");
    let fingerprint: String = {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(client.certificate.der());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let config = Arc::new(house.authority.client(Some(&client)));
    let mut open = house.connect_as(&config);
    assert_eq!(
        status(&mut open, &[]),
        401,
        "no certificate is mapped to a key yet"
    );
    for pair in [
        "dns:agent.example = agents".to_owned(),
        "uri:spiffe://house/agent = agents".to_owned(),
        "cn:the agent = agents".to_owned(),
        format!("sha256:{fingerprint} = agents"),
    ] {
        let pairs = format!("client_keys = [\"cn:nobody = x\", {pair:?}]");
        std::fs::write(&file, text.replace("client_keys = []", &pairs)).expect("the file");
        house.reload("in force: server.tls.client_keys");
        // On a connection that was open already, and on a resumed session.
        let mut fresh = house.connect_as(&config);
        for connection in [&mut open, &mut fresh] {
            let (_, _) = eventually("the key is known", || {
                (status(connection, &[]) == 200).then_some(())
            });
            // The key has only one scope, and the header wins even if it allows less.
            let metrics = request("GET", "/metrics", &[], b"");
            assert_eq!(connection.exchange(&metrics).head.status, 403);
            assert_eq!(
                status(connection, &[("authorization", "Bearer nonsense")]),
                401
            );
            assert_eq!(status(connection, &[("authorization", "Basic dTpw")]), 401);
            let authorization = house.daemon.authorization();
            let fields = [("authorization", authorization.as_str())];
            let metrics = request("GET", "/metrics", &fields, b"");
            assert_eq!(connection.exchange(&metrics).head.status, 200);
        }
    }
    // A client without a certificate is a stranger without a key.
    assert_eq!(status(&mut house.connect(), &[]), 401);
    // A revoked key is revoked for its certificate, too.
    let output = house.daemon.run(&["key", "list"]);
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = listed
        .lines()
        .find(|line| line.contains("agents"))
        .expect("the key");
    let id = line
        .split_whitespace()
        .find(|word| word.starts_with("key_"))
        .expect("its id");
    let output = house.daemon.run(&["key", "revoke", id]);
    assert!(output.status.success(), "{output:?}");
    eventually("the key is revoked", || {
        (status(&mut open, &[]) == 401).then_some(())
    });
}

// ---- one port, several protocols -------------------------------------------------------------

#[test]
fn a_listener_speaks_only_the_protocols_of_its_rule() {
    let house = House::with(|options, _, _| {
        options.set_raw(
            "server.listen",
            r#"["127.0.0.1:0", "tls:127.0.0.1:0", "clear:127.0.0.1:0"]"#,
        )
    });
    let config = Arc::new(house.authority.client(None));
    let [both, tls, clear] = house.daemon.addresses() else {
        panic!("three addresses");
    };
    for address in [both, tls] {
        let mut connection = Connection::tls(*address, &config, "localhost").expect("TLS");
        connection.exchange(GET.as_bytes()).expect(200);
    }
    for address in [both, clear] {
        let mut connection = Connection::tcp(*address).expect("TCP");
        connection.exchange(GET.as_bytes()).expect(200);
    }
    // Clear text to a listener for TLS alone gets an explanation, and the connection is closed.
    let mut connection = Connection::tcp(*tls).expect("TCP");
    let answer = connection.exchange(GET.as_bytes());
    assert_eq!(answer.head.status, 400);
    assert!(
        answer.text().contains("this address accepts only TLS"),
        "{}",
        answer.text()
    );
    assert_eq!(answer.field("connection"), Some("close"));
    assert_eq!(connection.until_closed(), b"");
    // A hello to a listener for clear text alone gets no response that it would misread.
    assert!(Connection::tls(*clear, &config, "localhost").is_err());
    let metrics = house.daemon.metrics();
    for reason in ["clear_on_tls", "tls_on_clear"] {
        let refused = metrics.sum("autoglmd_tls_refused_total", &[("reason", reason)]);
        assert_eq!(refused, 1.0, "{reason}");
    }
}

#[test]
fn certificates_may_come_and_go_with_reloads() {
    let house = House::new();
    let file = house.daemon.configuration_file();
    let text = std::fs::read_to_string(&file).expect("the file");
    let mut open = house.connect();
    let without = text.replace("certificates = [", "# certificates = [");
    std::fs::write(&file, without).expect("the file");
    house.reload("in force: server.tls.certificates");
    let config = Arc::new(house.authority.client(None));
    assert!(Connection::tls(house.daemon.address(), &config, "localhost").is_err());
    open.exchange(GET.as_bytes()).expect(200);
    std::fs::write(&file, text).expect("the file");
    house.reload("in force: server.tls.certificates");
    house.connect().exchange(GET.as_bytes()).expect(200);
}

// ---- much, and in pieces ---------------------------------------------------------------------

#[test]
fn megabytes_go_in_and_a_stream_comes_out() {
    let house = House::with(|options, _, _| options.set("limits.max_body", "16MiB"));
    let filler = "x".repeat(5 << 20);
    let body = json!({"prompt": "hello", "language": "python", "surplus": filler}).to_string();
    let bytes = house
        .daemon
        .request("POST", "/api/v1/generate", body.as_bytes());
    let stream = house
        .daemon
        .generate_request(&json!({"prompt": "hello", "language": "python", "stream": true}));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = Arc::new(house.authority.client_of(None, &[version]));
        let mut connection = house.connect_as(&config);
        // An unknown member is refused by name, after the whole body was read and parsed.
        let answer = connection.exchange(&bytes);
        assert_eq!(answer.head.status, 400, "{}", answer.text());
        assert!(answer.text().contains("surplus"), "{}", answer.text());
        connection.send(&stream);
        assert_eq!(connection.head().expect("a head").status, 200);
        let events = connection.events().all();
        assert_eq!(events.last().expect("events").name, "done");
        connection.exchange(GET.as_bytes()).expect(200);
    }
}

#[test]
fn the_same_bytes_cut_anywhere_get_the_same_answer() {
    let house = House::new();
    let body = json!({"prompt": "hello", "language": "python"}).to_string();
    let bytes = house
        .daemon
        .request("POST", "/api/v1/generate", body.as_bytes());
    for piece in [1, 2, 7, 100, 5_000] {
        let config = without_resumption(house.authority.client(None));
        let mut socket = TcpStream::connect(house.daemon.address()).expect("TCP");
        socket.set_nodelay(true).expect("an option");
        let mut client =
            rustls::ClientConnection::new(config, "localhost".try_into().expect("a name"))
                .expect("a configuration");
        client
            .writer()
            .write_all(&bytes)
            .expect("it is kept until the handshake is done");
        let mut text = String::new();
        while !text.contains("\"finish_reason\"") {
            let mut out = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut out).expect("a vector");
            }
            out.chunks(piece)
                .for_each(|part| socket.write_all(part).expect("it is read"));
            let mut buffer = [0; 16 * 1024];
            let length = socket.read(&mut buffer).expect("an answer");
            assert_ne!(length, 0, "closed after {text}");
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                client.read_tls(&mut rest).expect("a record");
                client.process_new_packets().expect("a good record");
            }
            let mut plain = Vec::new();
            let _ = client.reader().read_to_end(&mut plain);
            text.push_str(&String::from_utf8_lossy(&plain));
        }
        assert!(
            text.starts_with("HTTP/1.1 200 "),
            "in pieces of {piece}: {text}"
        );
    }
}

// ---- ends ------------------------------------------------------------------------------------

#[test]
fn half_closing_client_gets_the_response_and_close_notify() {
    let house = House::new();
    let stream = house
        .daemon
        .generate_request(&json!({"prompt": "hello", "language": "python", "stream": true}));
    let mut connection = house.connect();
    connection.send(&stream);
    connection.session().send_close_notify();
    // The alert travels with the next write; then the socket's half is closed as well.
    let mut out = Vec::new();
    connection.session().write_tls(&mut out).expect("a vector");
    connection.socket().write_all(&out).expect("it is read");
    connection
        .socket()
        .shutdown(Shutdown::Write)
        .expect("a socket");
    assert_eq!(connection.head().expect("a head").status, 200);
    let events = connection.events().all();
    assert_eq!(events.last().expect("events").name, "done");
    // rustls distinguishes a clean end from a cut one: `UnexpectedEof` without `close_notify`.
    let end = read_end(&mut connection);
    assert_eq!(end, Ok(()), "we close in good order");
    assert_eq!(
        house.daemon.metrics().value("autoglmd_tls_truncated_total"),
        0.0
    );
}

/// Returns how a finished connection ends: `Ok` after a `close_notify`.
fn read_end(connection: &mut Connection) -> Result<(), String> {
    let mut bytes = Vec::new();
    connection
        .socket()
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    let session = connection.session();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        session
            .read_tls(&mut rest)
            .map_err(|error| error.to_string())?;
        session
            .process_new_packets()
            .map_err(|error| error.to_string())?;
    }
    let state = session
        .process_new_packets()
        .map_err(|error| error.to_string())?;
    match state.peer_has_closed() {
        true => Ok(()),
        false => Err("cut off".to_owned()),
    }
}

#[test]
fn an_idle_connection_is_closed_with_close_notify() {
    let house = House::with(|options, _, _| options.set("limits.idle_timeout", "3s"));
    let mut connection = house.connect();
    connection.exchange(GET.as_bytes()).expect(200);
    assert_eq!(read_end(&mut connection), Ok(()));
}

#[test]
fn a_cut_off_connection_is_counted() {
    let house = House::new();
    let mut connection = house.connect();
    connection.exchange(GET.as_bytes()).expect(200);
    connection
        .socket()
        .shutdown(Shutdown::Write)
        .expect("a socket");
    assert_eq!(
        read_end(&mut connection),
        Ok(()),
        "we answer in good order all the same"
    );
    assert_eq!(
        house.daemon.metrics().value("autoglmd_tls_truncated_total"),
        1.0
    );
}

#[test]
fn garbage_gets_an_alert_in_the_handshake_and_after_it() {
    let house = House::new();
    // A record of the handshake type whose content is not a handshake message.
    let mut socket = TcpStream::connect(house.daemon.address()).expect("TCP");
    socket
        .write_all(b"\x16\x03\x01\x00\x05hello")
        .expect("it is read");
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).expect("an end");
    assert_eq!(bytes[..3], [21, 3, 3], "an alert: {bytes:?}");
    assert_eq!(house.handshakes("failed", "none"), 1.0);

    let mut connection = house.connect();
    connection.exchange(GET.as_bytes()).expect(200);
    let record = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
    connection.socket().write_all(&record).expect("it is read");
    let error = read_end(&mut connection).expect_err("an alert");
    assert!(error.contains("BadRecordMac"), "{error}");
    assert_eq!(
        house.daemon.metrics().value("autoglmd_tls_broken_total"),
        1.0
    );
}

#[test]
fn the_beginning_of_a_record_and_then_nothing_is_a_cut_off_connection() {
    let house = House::new();
    let mut connection = house.connect();
    connection.exchange(GET.as_bytes()).expect(200);
    connection
        .socket()
        .write_all(&[23, 3, 3, 0, 200, 1, 2, 3])
        .expect("it is read");
    connection
        .socket()
        .shutdown(Shutdown::Write)
        .expect("a socket");
    assert_eq!(read_end(&mut connection), Ok(()));
    assert_eq!(
        house.daemon.metrics().value("autoglmd_tls_truncated_total"),
        1.0
    );
}

// ---- malicious peers -------------------------------------------------------------------------

/// Returns the first bytes of a client.
fn hello(authority: &Authority) -> Vec<u8> {
    let name = "localhost".try_into().expect("a name");
    let config = without_resumption(authority.client(None));
    let mut client = rustls::ClientConnection::new(config, name).expect("a configuration");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a vector");
    bytes
}

#[test]
fn a_handshake_has_a_deadline_that_drops_of_bytes_do_not_move() {
    let house = House::with(|options, _, _| options.set("limits.header_timeout", "1s"));
    let hello = hello(&house.authority);
    let mut silent = TcpStream::connect(house.daemon.address()).expect("TCP");
    silent.write_all(&hello).expect("it is read");
    let mut dripping = TcpStream::connect(house.daemon.address()).expect("TCP");
    let start = Instant::now();
    let mut bytes = hello.iter();
    // At one byte per 20 ms the whole hello would take half a minute.
    dripping
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("an option");
    let mut buffer = [0; 64];
    loop {
        let Some(byte) = bytes.next() else {
            panic!("the whole hello was awaited");
        };
        if dripping.write_all(&[*byte]).is_err() {
            break;
        }
        match dripping.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => panic!("half a hello was answered"),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    let mut answer = Vec::new();
    let _ = silent.read_to_end(&mut answer);
    assert_eq!(answer[0], 22, "it got a server's hello, and then the end");
    let metrics = house.daemon.metrics();
    let late = metrics.sum("autoglmd_tls_handshakes_total", &[("outcome", "timeout")]);
    assert_eq!(late, 2.0);
}

#[test]
fn the_deadline_of_a_handshake_ends_with_it() {
    let house = House::with(|options, _, _| options.set("limits.header_timeout", "3s"));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = Arc::new(house.authority.client_of(None, &[version]));
        let mut unused = house.connect_as(&config);
        let mut used = house.connect_as(&config);
        used.exchange(GET.as_bytes()).expect(200);
        assert!(!used.closed_within(Duration::from_secs(4)));
        assert!(!unused.closed_within(Duration::from_millis(1)));
        used.exchange(GET.as_bytes()).expect(200);
        unused.exchange(GET.as_bytes()).expect(200);
    }
}

#[test]
fn a_flood_of_handshakes_leaves_an_open_connection_flowing() {
    let house = House::new();
    let hello = hello(&house.authority);
    let mut open = house.connect();
    open.exchange(GET.as_bytes()).expect(200);
    const FLOOD: usize = 400;
    let what = "the slowest response beside a flood of handshakes";
    let rounds = within(Duration::from_secs(5), what, || {
        let mut flood = Vec::new();
        for _ in 0..FLOOD {
            let mut socket = TcpStream::connect(house.daemon.address()).expect("TCP");
            socket.write_all(&hello).expect("it is sent");
            flood.push(socket);
        }
        // While they are handled, a few at a time, each request gets a response.
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let start = Instant::now();
            open.exchange(GET.as_bytes()).expect(200);
            slowest = slowest.max(start.elapsed());
        }
        // Each gets its response in the end: none is starved.
        for socket in &mut flood {
            let mut first = [0];
            socket.read_exact(&mut first).expect("a server's hello");
            assert_eq!(first, [22]);
        }
        slowest
    });
    eventually("all are gone", || {
        (house.handshakes("abandoned", "1.3") >= (rounds * FLOOD) as f64).then_some(())
    });
    let deferred = house.daemon.metrics();
    assert!(
        deferred.value("autoglmd_tls_handshakes_deferred_total") > 0.0,
        "the flood was worked off within one turn: it shows nothing"
    );
}
