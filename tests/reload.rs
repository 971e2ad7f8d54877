//! Every key of `docs/configuration.md`, changed under a running daemon: it is in force, or needs a
//! restart, as the page says; a wrong value leaves the old configuration, with its place and what
//! is expected. One connection lives through all of it.
//!
//! Mutations that the first test catches: `Reload` for a key that is marked so and not written by
//! `reloaded`; a summary that leaves a section out; a change that drops idle connections. The second
//! one: a kind that accepts anything; a refused reload that applies the keys before the mistake.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Connection, Daemon, Options, request};

const PAGE: &str = include_str!("../docs/configuration.md");

/// A row of the page.
#[derive(Clone, Debug)]
struct Key {
    /// Such as `limits.max_head`.
    path: String,
    kind: String,
    default: String,
    range: String,
    effect: String,
}

/// Reads all keys of the page that have a default: those of sections with one name.
fn keys() -> Vec<Key> {
    let (mut keys, mut section) = (Vec::new(), "");
    for line in PAGE.lines() {
        if let Some(rest) = line.strip_prefix("## `[") {
            section = rest.trim_end_matches("]`");
        }
        let Some(row) = line.strip_prefix("| `") else {
            continue;
        };
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        let &[name, kind, default, range, _, effect] = &cells[..] else {
            continue;
        };
        keys.push(Key {
            path: format!("{section}.{}", name.trim_end_matches('`')),
            kind: kind.to_owned(),
            default: default.trim_matches('`').to_owned(),
            range: range.to_owned(),
            effect: effect.to_owned(),
        });
    }
    keys
}

/// Another value, and what must be set with it.
struct Change {
    value: String,
    with: Vec<(&'static str, String)>,
}

impl Change {
    fn to(value: impl Into<String>) -> Change {
        Change {
            value: value.into(),
            with: Vec::new(),
        }
    }

    fn with(mut self, key: &'static str, value: impl Into<String>) -> Change {
        self.with.push((key, value.into()));
        self
    }
}

/// Certificates and secrets that some keys name.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Files {
        let folder = tempfile::tempdir().expect("a folder");
        let names = vec!["localhost".to_owned()];
        let signed = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let (certificate, key) = (signed.cert.pem(), signed.signing_key.serialize_pem());
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a file");
        };
        write("both.pem", &format!("{certificate}{key}"));
        write("certificate.pem", &certificate);
        write("key.pem", &key);
        write("secret", "a secret of one cluster, for tests");
        Files { folder }
    }

    fn path(&self, name: &str) -> String {
        format!("{:?}", self.folder.path().join(name))
    }
}

/// Returns another value for the keys that stand in relation to others, or whose kind alone does not
/// show one.
fn particular(path: &str, files: &Files) -> Option<Change> {
    let authority = files.path("certificate.pem");
    let asked =
        |value: &str| Change::to(value).with("server.tls.client_certificates", r#""optional""#);
    Some(match path {
        "server.listen" => Change::to(r#"["127.0.0.1:0", "127.0.0.1:0"]"#),
        "server.trusted_proxies" | "jobs.callback_networks" => Change::to(r#"["10.0.0.0/8"]"#),
        "server.hosts" => Change::to(r#"["gpu.example"]"#),
        "server.tls.certificates" => Change::to(format!("[{}]", files.path("both.pem"))),
        "server.tls.keys" => Change::to(format!("[{}]", files.path("key.pem")))
            .with("server.tls.certificates", format!("[{authority}]")),
        "server.tls.client_certificates" => {
            Change::to(r#""optional""#).with("server.tls.client_ca", authority)
        }
        "server.tls.client_ca" => asked(&authority),
        "server.tls.client_keys" => asked(r#"["dns:agent.example = key_5f0c92ab61d7"]"#)
            .with("server.tls.client_ca", authority),
        // A connection may still be used as often.
        "limits.max_requests_per_connection" => Change::to("1000000"),
        "engine.kind" => Change::to(r#""llama""#),
        "engine.model" => Change::to(r#""other""#),
        "cache.shared.url" => Change::to(r#""redis://127.0.0.1:1/3""#),
        "cache.shared.password_file" => {
            Change::to(files.path("secret")).with("cache.shared.url", r#""redis://127.0.0.1:1""#)
        }
        "store.url" => Change::to(r#""postgres://me@127.0.0.1:1/db""#),
        "store.password_file" => {
            Change::to(files.path("secret")).with("store.url", r#""postgres://me@127.0.0.1:1/db""#)
        }
        "bus.kind" => Change::to(r#""gossip""#)
            .with("bus.listen", r#""127.0.0.1:7946""#)
            .with("bus.secret_file", files.path("secret")),
        "bus.listen" => Change::to(r#""127.0.0.1:7946""#),
        "bus.peers" => Change::to(r#"["127.0.0.2:7946"]"#),
        "bus.brokers" => Change::to(r#"["kafka-1.example:9092"]"#),
        "bus.topic" => Change::to(r#""other""#),
        // The lines of a lower level would be no proof.
        "log.level" => Change::to(r#""debug""#),
        "metrics.push.url" => Change::to(r#""http://127.0.0.1:1/v1/metrics""#),
        "metrics.push.headers" => Change::to(r#"["x-scope-orgid=team"]"#),
        _ => return None,
    })
}

/// Returns another value of a plain kind.
fn another(key: &Key, now: &str) -> Change {
    Change::to(match key.kind.as_str() {
        "boolean" => (now == "false").to_string(),
        "integer" => {
            let (now, most) = (
                number(now),
                number(key.range.rsplit(' ').next().expect("a range")),
            );
            (if now < most { now + 1 } else { now - 1 }).to_string()
        }
        "size" if now == "0" => r#""64MiB""#.to_owned(),
        "duration" | "size" => {
            let text = now.trim_matches('"');
            let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("\"{}{unit}\"", number(text.trim_end_matches(unit)) + 1)
        }
        "word" => {
            let mut words = key.range.split(", ").map(|word| format!("{word:?}"));
            words.find(|word| word != now).expect("a second word")
        }
        "path" => r#""/nonexistent/file""#.to_owned(),
        kind => panic!("{}: a value of the kind {kind} is needed", key.path),
    })
}

fn number(text: &str) -> u64 {
    text.parse().expect(text)
}

/// Returns values that a kind refuses.
fn wrong(key: &Key) -> Vec<String> {
    let texts: &[&str] = match key.kind.as_str() {
        "boolean" => &[r#""maybe""#, "1", "[true]"],
        "integer" => &["-1", "99999999999", r#""many""#, "1.5"],
        "size" => &[r#""1 potato""#, r#""99999999GiB""#, "-1", "true"],
        "duration" => &[r#""soon""#, "5", r#""99999h""#, r#""-1s""#],
        "word" => &[r#""potato""#, "1"],
        "path" => &["7", "[\"/a\"]", "\"a\\u0000b\""],
        kind if kind.contains("list of") => &["5", "[5]", "[[]]"],
        "topic" => &[r#""a b""#, r#""""#, "1"],
        "url" | "URL" => &[r#""potato:""#, r#""ftp://a""#, "1"],
        "socket address" => &[r#""nowhere""#, r#""127.0.0.1""#, "1"],
        kind => panic!("{}: wrong values of the kind {kind} are needed", key.path),
    };
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// A daemon whose file is written again and again, and a connection that must live on.
struct Stranger {
    daemon: Daemon,
    connection: Connection,
    base: BTreeMap<String, String>,
}

impl Stranger {
    fn start() -> Stranger {
        // As `Options` writes them.
        let set = [
            ("engine.kind", r#""echo""#),
            ("server.listen", r#"["127.0.0.1:0"]"#),
            ("rate_limit.enabled", "false"),
        ];
        let base = set.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let daemon = Options::echo().with_cache().start();
        Stranger {
            connection: daemon.connect(),
            daemon,
            base: base.into(),
        }
    }

    fn now(&self, key: &Key) -> String {
        let set = self.base.get(&key.path);
        set.unwrap_or(&key.default).clone()
    }

    /// Writes the base with these values, and returns the line of the last one.
    fn write(&self, set: &[(&str, &str)]) -> usize {
        let mut values = self.base.clone();
        for (key, value) in set {
            values.insert((*key).to_owned(), (*value).to_owned());
        }
        let mut text = String::new();
        let (mut section, mut line, mut found) = ("", 0, 0);
        let mut keys: Vec<_> = values.iter().collect();
        keys.sort_by_key(|(key, _)| key.rsplit_once('.'));
        for (key, value) in keys {
            let (of, name) = key.rsplit_once('.').expect("a section");
            if of != section {
                text += &format!("[{of}]\n");
                (section, line) = (of, line + 1);
            }
            text += &format!("{name} = {value}\n");
            line += 1;
            if set.last().is_some_and(|(last, _)| last == key) {
                found = line;
            }
        }
        std::fs::write(self.daemon.configuration_file(), text).expect("the file is written");
        found
    }

    /// Reloads, and returns the lines of the log from then on, up to one with `end`.
    fn reload(&mut self, end: &str) -> (usize, String) {
        let position = self.daemon.log_position();
        self.daemon.process().signal(libc::SIGHUP);
        let line = self.daemon.wait_for_log(position, end);
        let authorization = self.daemon.authorization();
        let fields = [("authorization", authorization.as_str())];
        let bytes = request("GET", "/api/v1/languages", &fields, b"");
        assert_eq!(self.connection.exchange(&bytes).status(), 200, "{line}");
        (position, line)
    }
}

/// Returns the two parts of a summary: what is in force, and what needs a restart.
fn parts(line: &str) -> (&str, &str) {
    let (now, later) = line.split_once("needs a restart: ").unwrap_or((line, ""));
    (
        now.split_once("in force: ").map_or("", |(_, now)| now),
        later,
    )
}

#[test]
fn each_key_is_in_force_or_needs_a_restart_as_its_page_says() {
    let (mut stranger, files) = (Stranger::start(), Files::new());
    let keys = keys();
    assert!(keys.len() > 90, "{} keys were read", keys.len());
    for key in &keys {
        let before = stranger.now(key);
        let change = particular(&key.path, &files).unwrap_or_else(|| another(key, &before));
        let set = change
            .with
            .iter()
            .map(|(key, value)| (*key, value.as_str()));
        let set: Vec<(&str, &str)> = set
            .chain([(key.path.as_str(), change.value.as_str())])
            .collect();
        stranger.write(&set);
        let (_, line) = stranger.reload("SIGHUP: ");
        let expected = format!("{} {before} -> {}", key.path, change.value);
        let (now, later) = parts(&line);
        let (named, other) = match key.effect.as_str() {
            "reload" => (now, later),
            "restart" => (later, now),
            effect => panic!("{}: {effect}", key.path),
        };
        assert!(named.contains(&expected), "{expected}: {line}");
        assert!(!other.contains(&expected), "{expected}: {line}");
        // A key that needs a restart keeps its value, so the next reload finds the same change.
        let (_, line) = stranger.reload("SIGHUP: ");
        let is_left = parts(&line).1.contains(&expected);
        assert_eq!(is_left, key.effect == "restart", "{expected}: {line}");
        stranger.write(&[]);
        stranger.reload("SIGHUP: ");
    }
    let (_, line) = stranger.reload("SIGHUP: ");
    assert!(line.ends_with("nothing changed"), "{line}");
}

#[test]
fn a_wrong_value_of_each_key_leaves_the_old_configuration_and_names_its_place() {
    let mut stranger = Stranger::start();
    let file = stranger.daemon.configuration_file();
    let file = file
        .file_name()
        .and_then(|name| name.to_str())
        .map(Path::new);
    let file = file.expect("a name").display().to_string();
    let mut refused = 0;
    for key in keys() {
        for value in wrong(&key) {
            // The first one is good, and must not be applied either.
            let line = stranger.write(&[("limits.max_headers", "77"), (&key.path, &value)]);
            let (position, _) = stranger.reload("reload refused; the old configuration stays");
            refused += 1;
            let said = stranger
                .daemon
                .wait_for_log(position, &format!("{file}:{line}:"));
            let what = format!("{} = {value}: {said}", key.path);
            assert!(said.contains(&format!(": {}", key.path)), "{what}");
            assert!(said.contains("; expected "), "{what}");
            assert!(!said.contains("expected \"\""), "{what}");
        }
    }
    let metrics = stranger.daemon.metrics();
    let count = |result| metrics.sum("autoglmd_config_reloads_total", &[("result", result)]);
    assert_eq!(
        (count("refused"), count("succeeded")),
        (f64::from(refused), 0.0)
    );
    stranger.write(&[]);
    let (_, line) = stranger.reload("SIGHUP: ");
    assert!(line.ends_with("nothing changed"), "{line}");
}

/// A reload warns of a setting that is allowed and seldom meant: once, when it comes.
///
/// Mutation: `put_in_force` without the warnings, or with those that were known.
#[test]
fn a_reload_warns_of_what_has_become_doubtful() {
    let mut stranger = Stranger::start();
    let everybody = [("server.trusted_proxies", r#"["0.0.0.0/0"]"#)];
    let line = stranger.write(&everybody);
    let (position, _) = stranger.reload("SIGHUP: in force: ");
    let said = stranger
        .daemon
        .wait_for_log(position, &format!("autoglmd.toml:{line}:"));
    assert!(said.contains("server.trusted_proxies"), "{said}");
    let doubtful = [everybody[0], ("limits.max_headers", "77")];
    stranger.write(&doubtful);
    stranger.reload("SIGHUP: in force: ");
    stranger.write(&[]);
    stranger.reload("SIGHUP: in force: ");
    let lines = stranger.daemon.log_lines();
    let warnings = lines.iter().filter(|line| line.contains("autoglmd.toml:"));
    let of_proxies = warnings.filter(|line| line.contains("server.trusted_proxies"));
    assert_eq!(of_proxies.count(), 1);
}
