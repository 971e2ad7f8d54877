//! The command line as a script sees it: exit codes, the contents of stdout, the client's requests.
//!
//! The real binary runs in its own folder. If it needs a server, a listener of the test plays one,
//! so that every byte of the response is the test's choice.

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use tempfile::TempDir;

use common::player::{answer_once, events, receive, start_server, whole};

/// An empty home.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_autoglmd"));
        self.isolate(&mut command);
        command.args(arguments);
        command
    }

    fn isolate(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.path())
            .stdin(Stdio::null());
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Ran {
        Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

// ---- usage -----------------------------------------------------------------------------------

#[test]
fn wrong_flags_exit_with_64_and_are_named() {
    let home = Home::new();
    for (arguments, named) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["no-such-command"], "no-such-command"),
        (&["key"], "Usage"),
        (
            &["key", "create", "--scopes", "root"],
            "generate, admin or metrics",
        ),
        (&["key", "create", "--rate", "-1"], "-1"),
        (&["key", "create", "--weight", "0"], "from 1 to 100"),
        (&["key", "set", "key_1", "--weight", "101"], "from 1 to 100"),
        (&["key", "set", "key_1"], "--weight"),
        (&["key", "create", "--expires", "soon"], "30d"),
        (
            &["key", "create", "--expires", "2001-01-01"],
            "not in the future",
        ),
        (&["key", "create", "--name", "two\nlines"], "one line"),
        (&["key", "create", "--name", ""], "1 to 64 visible"),
        (&["key", "create", "--name", "  "], "1 to 64 visible"),
        (&["key", "create", "--name", " ci"], "1 to 64 visible"),
        (
            &["key", "create", "--name", "a\u{202e}b"],
            "1 to 64 visible",
        ),
        (&["key", "create", "--name", "\u{200b}"], "1 to 64 visible"),
        (&["key", "create", "--state-dir", ""], "--state-dir"),
        (&["key", "revoke"], "<ID>"),
        (&["model", "pull", "no-such-model"], "no-such-model"),
        (&["model", "pull", "hub:owner"], "hub:OWNER/REPO/FILE.gguf"),
        (
            &["model", "pull", "--sha256", "12"],
            "64 hexadecimal digits",
        ),
        (&["model", "verify", "../secret"], "../secret"),
        (&["generate"], "<PROMPT>"),
        (
            &["generate", "x", "--url", "https://example.org"],
            "unix:/PATH",
        ),
        (
            &["generate", "x", "--url", "unix:@name"],
            "abstract sockets",
        ),
        (&["generate", "x", "--timeout", "10"], "30s"),
        (&["generate", "x", "--key", "two words"], "key create"),
        (&["completions", "powerless"], "bash"),
    ] {
        let ran = home.run(arguments).expect(64);
        assert_eq!(ran.out, "", "{arguments:?}");
        assert!(ran.err.contains(named), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn help_goes_to_stdout_with_examples() {
    let home = Home::new();
    let commands = [
        "serve",
        "check",
        "key",
        "store",
        "model",
        "generate",
        "completions",
        "man",
    ];
    for command in commands {
        let ran = home.run(&[command, "--help"]).expect(0);
        assert!(
            ran.out.contains("\nExamples:\n  "),
            "{command}: {}",
            ran.out
        );
        assert_eq!(ran.err, "");
    }
    let ran = home.run(&["--help"]).expect(0);
    for command in commands {
        assert!(
            ran.out.contains(&format!("\n  {command}")),
            "{command}: {}",
            ran.out
        );
    }
    let version = home.run(&["--version"]).expect(0);
    assert_eq!(
        version.out,
        format!("autoglmd {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn check_exits_with_1_on_a_bad_file() {
    let home = Home::new();
    let file = home.path().join("a.toml");
    let path = file.display().to_string();
    fs::write(&file, "[limits]\nmax_hed = 1\n").unwrap();
    let ran = home.run(&["check", "--config", &path]).expect(1);
    assert!(ran.err.contains("a.toml:2:1"), "{}", ran.err);
    fs::write(&file, "").unwrap();
    home.run(&["check", "--config", &path]).expect(0);
    // Flags are checked like the file, by the command that would serve with them.
    let ran = home
        .run(&["check", "--config", &path, "--parallel", "many"])
        .expect(1);
    assert!(ran.err.contains("--parallel"), "{}", ran.err);
}

#[test]
fn completions_and_manual_pages_are_made() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = home.run(&["completions", shell]).expect(0);
        assert!(ran.out.contains("tokens-per-minute"), "{shell}");
    }
    assert!(home.run(&["man"]).expect(0).out.contains(".TH autoglmd 1"));
    let folder = home.path().join("man1");
    let path = folder.display().to_string();
    home.run(&["man", "--folder", &path]).expect(66);
    fs::create_dir(&folder).unwrap();
    home.run(&["man", "--folder", &path]).expect(0);
    assert!(folder.join("autoglmd-key-rotate.1").is_file());
}

#[test]
fn a_closed_stdout_does_not_panic() {
    let home = Home::new();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let output = home
        .command(&["completions", "bash"])
        .stdout(writer)
        .output()
        .unwrap();
    let ran = Ran::of(output).expect(141);
    assert_eq!(ran.err, "");
}

// ---- keys ------------------------------------------------------------------------------------

#[test]
fn a_key_is_made_listed_rotated_and_revoked() {
    let home = Home::new();
    let made = home.run(&[
        "key",
        "create",
        "--name",
        "ci",
        "--rate",
        "9",
        "--expires",
        "30d",
    ]);
    let made = made.expect(0);
    let key = made.out.strip_suffix('\n').unwrap();
    assert!(key.starts_with("agk_") && key.len() == 47, "{key}");
    assert!(!made.err.contains(key));

    let listed = home.run(&["key", "list", "--json"]).expect(0).json();
    let id = listed[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed[0]["name"], "ci");
    assert_eq!(listed[0]["requests_per_minute"], 9);
    assert_eq!(listed[0]["scopes"], serde_json::json!(["generate"]));
    let lifetime =
        listed[0]["expires_at"].as_u64().unwrap() - listed[0]["created_at"].as_u64().unwrap();
    assert_eq!(lifetime, 30 * 24 * 60 * 60);
    assert_eq!(listed[0]["weight"], 1);

    let weight = || home.run(&["key", "list", "--json"]).expect(0).json()[0]["weight"].clone();
    let set = home.run(&["key", "set", &id, "--weight", "3"]).expect(0);
    assert!(
        set.err.contains("the weight 3") && set.out.is_empty(),
        "{}",
        set.err
    );
    assert_eq!(weight(), 3);
    let rotated = home.run(&["key", "rotate", &id, "--grace", "1h"]).expect(0);
    assert_eq!(weight(), 3, "it stays");
    assert_ne!(rotated.out, made.out);
    assert!(
        rotated.err.contains("the old secret works until"),
        "{}",
        rotated.err
    );

    home.run(&["key", "revoke", &id]).expect(0);
    let again = home.run(&["key", "revoke", &id]).expect(0);
    assert!(again.err.contains("already"), "{}", again.err);
    let table = home.run(&["key", "list"]).expect(0).out;
    let row = table.lines().nth(1).unwrap();
    assert!(
        row.starts_with(&id) && row.contains("  revoked  "),
        "{table}"
    );
    assert_eq!(table.lines().count(), 2, "{table}");

    home.run(&["key", "rotate", &id]).expect(65);
    home.run(&["key", "set", &id, "--weight", "2"]).expect(65);
    home.run(&["key", "revoke", "key_000000000000"]).expect(66);
    home.run(&["key", "webhook-secret", "key_000000000000"])
        .expect(66);
}

#[test]
fn a_database_is_checked_and_brought_up_to_date() {
    let home = Home::new();
    let check = || home.run(&["store", "check"]);
    let missing = check().expect(66);
    assert!(missing.err.contains("autoglmd.db"), "{}", missing.err);
    home.run(&["key", "create"]).expect(0);
    let sound = check().expect(0);
    assert!(
        sound
            .out
            .contains("\nkeys: 1\nsecrets: 1\nproblems: 0\nstate folder: 0."),
        "{}",
        sound.out
    );
    let json = home.run(&["store", "check", "--json"]).expect(0).json();
    assert_eq!(json["version"], json["supported"]);
    assert_eq!(json["problems"], serde_json::json!([]));
    let database = &json["folder"]["database"];
    assert!(database["bytes"].as_u64() > Some(0));
    assert_eq!(database["max_bytes"], 831 << 20);
    let done = home.run(&["store", "migrate"]).expect(0);
    assert!(done.err.contains("already at version"), "{}", done.err);

    let path = json["path"].as_str().unwrap();
    let raw = rusqlite::Connection::open(path).unwrap();
    raw.execute("DELETE FROM secrets", ()).unwrap();
    for command in ["check", "migrate"] {
        let wrong = home.run(&["store", command]).expect(65);
        assert!(wrong.err.contains("has no secret"), "{}", wrong.err);
    }
    raw.execute("DELETE FROM keys", ()).unwrap();
    check().expect(0);
    // The first version, which had neither the other tables nor the other columns.
    let later: String = raw
        .prepare(
            "SELECT type, name FROM sqlite_schema
             WHERE type = 'trigger' OR type = 'table' AND name NOT IN ('keys', 'secrets')
             ORDER BY type = 'table'",
        )
        .unwrap()
        .query_map((), |row| {
            let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
            Ok(format!("DROP {kind} {name};"))
        })
        .unwrap()
        .map(Result::unwrap)
        .filter(|drop| !drop.contains("sqlite_"))
        .collect();
    raw.execute_batch(&format!(
        "PRAGMA foreign_keys = OFF;
         {later}
         ALTER TABLE keys DROP COLUMN weight; ALTER TABLE keys DROP COLUMN allowed_models;
         ALTER TABLE keys DROP COLUMN webhook_secret; ALTER TABLE keys DROP COLUMN owner;
         ALTER TABLE keys DROP COLUMN old_webhook_secret;
         ALTER TABLE keys DROP COLUMN old_webhook_secret_until;"
    ))
    .unwrap();
    let old = check().expect(0);
    assert!(
        old.out.contains("\nversion: 1 (this program has "),
        "{}",
        old.out
    );
    let done = home.run(&["store", "migrate"]).expect(0);
    assert!(done.err.contains("from version 1 to "), "{}", done.err);
    home.run(&["key", "create", "--weight", "2"]).expect(0);
}

/// The secret is printed once. A full disk, a pipe without a reader and a closed stdout must leave
/// neither a key whose secret is lost nor, after a rotation, no secret that works.
/// Mutations: a device that is replaced by the finished file; a link that is replaced; an export
/// that failed and leaves its part.
#[test]
fn an_export_takes_the_place_of_a_regular_file_alone() {
    let home = Home::new();
    home.run(&["key", "create"]).expect(0);
    let path = |name: &str| home.path().join(name);
    let export = |name: &str, more: &[&str]| {
        let file = path(name);
        let arguments = ["store", "export", file.to_str().unwrap()];
        home.run(&[&arguments, more].concat())
    };
    export("file", &[]).expect(0);
    let refused = export("file", &[]).expect(73);
    assert!(refused.err.contains("--force"), "{}", refused.err);

    let made = Command::new("mkfifo").arg(path("fifo")).status();
    assert!(made.expect("mkfifo (apt-get install coreutils)").success());
    let refused = export("fifo", &["--force"]).expect(73);
    assert!(
        refused.err.contains("not a regular file"),
        "{}",
        refused.err
    );
    assert!(!fs::metadata(path("fifo")).unwrap().is_file());

    fs::write(path("file"), "old").unwrap();
    std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
    export("link", &["--force"]).expect(0);
    assert!(fs::symlink_metadata(path("link")).unwrap().is_symlink());
    assert_ne!(fs::read(path("file")).unwrap(), b"old");

    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = home.command(&["store", "export", "-"]);
    let ran = Ran::of(command.stdout(full).output().unwrap()).expect(74);
    assert!(ran.err.contains("stdout: "), "{}", ran.err);

    let database = path(".local/state/autoglmd/autoglmd.db");
    let database = rusqlite::Connection::open(database).unwrap();
    let long = "x".repeat(400_000);
    database
        .execute("UPDATE keys SET owner = ?1", [long])
        .unwrap();
    drop(database);
    // The limit ends a write as a full disk would, in units of 512 bytes.
    let script = r#"trap '' XFSZ; ulimit -f 400; exec "$0" store export "$1""#;
    let mut command = Command::new("sh");
    home.isolate(&mut command);
    let binary = env!("CARGO_BIN_EXE_autoglmd");
    command.args(["-c", script, binary]).arg(path("large"));
    let ran = Ran::of(command.output().unwrap()).expect(74);
    assert!(ran.err.contains("large: "), "{}", ran.err);
    let left = fs::read_dir(home.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with("large")),
        "{left:?}"
    );
}

#[test]
fn a_key_that_cannot_be_shown_does_not_stay() {
    let home = Home::new();
    let keys = || home.run(&["key", "list", "--json"]).expect(0).json();
    let closed = || {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let device = |path: &str| Stdio::from(File::options().write(true).open(path).unwrap());
    let outputs = || {
        [
            (device("/dev/full"), 74, "was removed"),
            (closed(), 141, "was removed"),
            (device("/dev/null"), 74, "/dev/null"),
        ]
    };
    for (output, code, said) in outputs() {
        let mut command = home.command(&["key", "create"]);
        let ran = Ran::of(command.stdout(output).output().unwrap()).expect(code);
        assert!(ran.err.contains(said), "{ran:?}");
        assert_eq!(keys(), serde_json::json!([]));
    }
    home.run(&["key", "create", "--expires", "30d"]).expect(0);
    let before = keys();
    let hashes = || {
        let database = home.path().join(".local/state/autoglmd/autoglmd.db");
        let connection = rusqlite::Connection::open(database).unwrap();
        let mut statement = connection.prepare("SELECT hash FROM secrets").unwrap();
        let rows = statement.query_map((), |row| row.get(0)).unwrap();
        rows.collect::<Result<Vec<Vec<u8>>, _>>().unwrap()
    };
    let secrets = hashes();
    let id = before[0]["id"].as_str().unwrap();
    for (output, code, _) in outputs() {
        let mut command = home.command(&["key", "rotate", id]);
        Ran::of(command.stdout(output).output().unwrap()).expect(code);
        assert_eq!((keys(), hashes()), (before.clone(), secrets.clone()));
    }
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let home = Home::new();
    home.run(&["key", "create"]).expect(0);
    for arguments in [
        &["check"][..],
        &["check", "--show"],
        &["key", "list"],
        &["model", "list", "--json"],
        &["completions", "bash"],
        &["man"],
        &["--help"],
        &["--version"],
        &["key", "--help"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = home.command(arguments).stdout(full).output().unwrap();
        let ran = Ran::of(output).expect(74);
        assert!(ran.err.contains("No space left"), "{arguments:?} {ran:?}");
    }
}

#[test]
fn the_state_folder_is_where_it_is_said_to_be_and_private() {
    let home = Home::new();
    let state = home.path().join("elsewhere");
    let path = state.display().to_string();
    home.run(&["key", "create", "--state-dir", &path]).expect(0);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("autoglmd.db")), 0o600);
    let missing = home.run(&["key", "list"]).expect(66);
    assert_eq!(missing.out, "");
    fs::write(state.join("autoglmd.db"), "this is no database at all").unwrap();
    for log in ["autoglmd.db-wal", "autoglmd.db-shm"] {
        let _ = fs::remove_file(state.join(log));
    }
    home.run(&["key", "list", "--state-dir", &path]).expect(65);
    home.run(&["key", "list", "--state-dir", "/dev/null/x"])
        .expect(73);
}

/// A mistyped folder has no keys, and must not look as if its keys had gone.
///
/// Mutations: `Key::run` that opens what is not there; an import that opens the store first.
#[test]
fn a_new_key_and_an_import_alone_create_a_database() {
    let home = Home::new();
    let state = home.path().join("typo");
    let folder = state.display().to_string();
    let id = "key_000000000000";
    for command in [
        &["key", "list"][..],
        &["key", "usage"],
        &["key", "revoke", id],
        &["key", "rotate", id],
        &["key", "set", id, "--weight", "2"],
        &["key", "erase", id, "--yes"],
        &["key", "webhook-secret", id],
        &["store", "check"],
        &["store", "migrate"],
        &["store", "export", "-"],
    ] {
        let ran = home.run(&[command, &["--state-dir", &folder]].concat());
        let ran = ran.expect(66);
        assert!(ran.err.contains("--state-dir"), "{command:?} {ran:?}");
    }
    let missing = home.path().join("missing.jsonl").display().to_string();
    for (file, code) in [(missing.as_str(), 66), ("/", 74)] {
        home.run(&["store", "import", file, "--state-dir", &folder])
            .expect(code);
    }
    assert!(!state.exists());
    home.run(&["key", "create", "--state-dir", &folder])
        .expect(0);
    assert!(state.join("autoglmd.db").exists());
}

/// Mutations: `way_out` without these; `identity` of anything; `refuse_output` that keeps the code.
#[test]
fn an_error_of_the_store_names_the_way_out() {
    let home = Home::new();
    let folder = |name: &str| home.path().join(name);
    fs::create_dir_all(folder("directory/autoglmd.db")).unwrap();
    fs::create_dir_all(folder("damaged")).unwrap();
    fs::write(folder("damaged/autoglmd.db"), "no database").unwrap();
    fs::create_dir_all(folder("empty")).unwrap();
    fs::write(folder("empty/autoglmd.db"), "").unwrap();
    for (name, code, words) in [
        ("directory", 74, ["not a regular file", "another folder"]),
        ("damaged", 65, ["not a database", "put a backup"]),
        ("empty", 66, ["not complete yet", "when it starts"]),
    ] {
        let state = folder(name).display().to_string();
        for command in [["key", "list"], ["store", "check"], ["store", "migrate"]] {
            let ran = home.run(&[&command[..], &["--state-dir", &state]].concat());
            let ran = ran.expect(code);
            assert!(words.iter().all(|word| ran.err.contains(word)), "{ran:?}");
        }
    }
    home.run(&["key", "create"]).expect(0);
    let file = folder("missing/export.jsonl").display().to_string();
    home.run(&["store", "export", &file]).expect(73);
    let file = folder("export.jsonl").display().to_string();
    home.run(&["store", "export", &file]).expect(0);
    let refused = home.run(&["store", "import", &file]).expect(73);
    assert!(
        refused.err.contains("autoglmd.db: the store"),
        "{refused:?}"
    );
}

/// Mutations: `find_valid` that takes revoked keys; a message about another command.
#[test]
fn the_secret_of_callbacks_is_made_for_a_key_by_its_name() {
    let home = Home::new();
    for _ in 0..2 {
        home.run(&["key", "create", "--name", "ci"]).expect(0);
    }
    let secret = ["key", "webhook-secret", "ci"];
    let keys = home.run(&["key", "list", "--json"]).expect(0).json();
    let [first, second] = [0, 1].map(|index| keys[index]["id"].as_str().unwrap());
    let refused = home.run(&secret).expect(65);
    assert!(refused.err.contains(first) && refused.err.contains(second));
    home.run(&["key", "revoke", first]).expect(0);
    let made = home.run(&secret).expect(0);
    assert!(made.out.starts_with("whsec_") && made.err.contains(second));
    home.run(&["key", "webhook-secret", first]).expect(66);
    let mut discarded = home.command(&secret);
    let output = discarded.stdout(Stdio::null()).output().unwrap();
    let ran = Ran::of(output).expect(74);
    assert!(ran.err.contains("key webhook-secret"), "{ran:?}");
}

// ---- generate --------------------------------------------------------------------------------

const DONE: &str = r#"{"id":"x","code":"a = 1\nb = 2","finish_reason":"stop"}"#;

#[test]
fn a_program_is_printed_as_it_is_written() {
    let home = Home::new();
    let (url, server) = start_server(events(&[
        ("delta", r#"{"text":"a = 1\n"}"#),
        ("delta", r#"{"text":"b = 2"}"#),
        ("done", DONE),
    ]));
    let arguments = [
        "generate",
        "排序",
        "-l",
        "python",
        "--timeout",
        "9s",
        "--key",
        "agk_x",
    ];
    let ran = home
        .run(&[&arguments[..], &["--url", &url]].concat())
        .expect(0);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("a = 1\nb = 2\n", ""));
    let request = server.join().unwrap();
    assert!(
        request.starts_with("post /api/v1/generate http/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains("\r\nauthorization: bearer agk_x\r\n"),
        "{request}"
    );
    let body: serde_json::Value =
        serde_json::from_str(request.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let expected = serde_json::json!(
        {"prompt": "排序", "language": "python", "timeout": 9000, "stream": true}
    );
    assert_eq!(body, expected);
}

#[test]
fn the_whole_answer_comes_as_code_or_as_json() {
    let home = Home::new();
    let (url, server) = start_server(whole("200 OK", "application/json", DONE));
    let ran = home
        .run(&["generate", "x", "--no-stream", "--url", &url])
        .expect(0);
    assert_eq!(ran.out, "a = 1\nb = 2\n");
    assert!(server.join().unwrap().contains("\"stream\":false"));

    let (url, _server) = start_server(whole("200 OK", "application/json", DONE));
    let ran = home
        .run(&["generate", "x", "--json", "--url", &url])
        .expect(0);
    assert_eq!(ran.json()["finish_reason"], "stop");

    let (url, _server) = start_server(events(&[("delta", r#"{"text":"a"}"#), ("done", DONE)]));
    let ran = home
        .run(&["generate", "x", "--json", "--stream", "--url", &url])
        .expect(0);
    let names: Vec<_> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event"].clone())
        .collect();
    assert_eq!(names, ["delta", "done"]);
}

#[test]
fn a_unix_socket_and_a_prompt_from_stdin_do_as_well() {
    let home = Home::new();
    let path = home.path().join("a.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = whole("200 OK", "application/json", DONE).into_bytes();
    let server = thread::spawn(move || answer_once(listener.accept().unwrap().0, &answer));
    let prompt = home.path().join("prompt.txt");
    fs::write(&prompt, "a stack\n").unwrap();
    let url = format!("unix:{}", path.display());
    let mut command = home.command(&["generate", "-", "--no-stream", "--url", &url]);
    command.stdin(File::open(&prompt).unwrap());
    Ran::of(command.output().unwrap()).expect(0);
    assert!(server.join().unwrap().contains("\"prompt\":\"a stack\\n\""));
}

#[test]
fn the_key_is_that_of_the_flag_the_variable_or_the_bootstrap_file() {
    let home = Home::new();
    let sent = |arguments: &[&str], variable: Option<&str>| {
        let (url, server) = start_server(whole("200 OK", "application/json", DONE));
        let mut command = home.command(&["generate", "x", "--url", &url]);
        command
            .args(arguments)
            .envs(variable.map(|key| ("AUTOGLMD_KEY", key)));
        Ran::of(command.output().unwrap()).expect(0);
        let request = server.join().unwrap();
        let field = request
            .lines()
            .find_map(|line| line.strip_prefix("authorization: bearer "));
        field.map(str::to_owned)
    };
    assert_eq!(sent(&[], None), None);
    let state = home.path().join(".local/state/autoglmd");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("bootstrap-key"), "agk_file\n").unwrap();
    assert_eq!(sent(&[], None).as_deref(), Some("agk_file"));
    assert_eq!(
        sent(&[], Some("agk_variable")).as_deref(),
        Some("agk_variable")
    );
    let flag = sent(&["--key", "agk_flag"], Some("agk_variable"));
    assert_eq!(flag.as_deref(), Some("agk_flag"));
    assert_eq!(sent(&["--state-dir", "/nonexistent"], None), None);
    for command in [&["generate", "x"][..], &["cache", "stats"]] {
        let mut command = home.command(command);
        command.env("AUTOGLMD_KEY", "two words");
        let ran = Ran::of(command.output().unwrap()).expect(64);
        assert!(ran.err.contains("AUTOGLMD_KEY"), "{ran:?}");
    }
}

#[test]
fn errors_are_printed_with_their_code_and_the_way_out() {
    let home = Home::new();
    for (status, code, exit, told) in [
        (
            "401 Unauthorized",
            "missing_credentials",
            77,
            "AUTOGLMD_KEY",
        ),
        ("403 Forbidden", "insufficient_scope", 77, "scope"),
        (
            "400 Bad Request",
            "invalid_parameter",
            65,
            "field: language",
        ),
        (
            "503 Service Unavailable",
            "queue_full",
            75,
            "try again in 2 s",
        ),
        ("504 Gateway Timeout", "generation_timeout", 75, "--timeout"),
        (
            "500 Internal Server Error",
            "internal",
            70,
            "request id: r-1",
        ),
    ] {
        let body = format!(
            r#"{{"error":{{"message":"a reason\u001b[31m","type":"x","param":"language",
               "code":"{code}","request_id":"r-1","retry_after_ms":1500}}}}"#
        );
        let (url, _server) = start_server(whole(status, "application/json", &body));
        let ran = home.run(&["generate", "x", "--url", &url]).expect(exit);
        assert_eq!(ran.out, "");
        assert!(
            ran.err
                .starts_with(&format!("error: {code}: a reason[31m\n")),
            "{}",
            ran.err
        );
        assert!(ran.err.contains(told), "{}", ran.err);
    }
    let (url, _server) = start_server(whole("502 Bad Gateway", "text/html", "<h1>no</h1>"));
    let ran = home.run(&["generate", "x", "--url", &url]).expect(69);
    assert!(
        ran.err.contains("the server responded with status 502"),
        "{}",
        ran.err
    );
}

#[test]
fn an_error_in_the_middle_of_a_stream_is_an_error() {
    let home = Home::new();
    let error = r#"{"error":{"message":"late","code":"generation_timeout"}}"#;
    let (url, _server) = start_server(events(&[("delta", r#"{"text":"a"}"#), ("error", error)]));
    let ran = home.run(&["generate", "x", "--url", &url]).expect(75);
    assert_eq!(ran.out, "a\n");
    assert!(ran.err.contains("generation_timeout: late"), "{}", ran.err);

    let (url, _server) = start_server(events(&[("delta", r#"{"text":"a"}"#)]));
    let ran = home.run(&["generate", "x", "--url", &url]).expect(74);
    assert!(
        ran.err.contains("before the response was complete"),
        "{}",
        ran.err
    );
}

#[test]
fn a_daemon_that_is_not_there_is_named() {
    let home = Home::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let missing = format!("unix:{}", home.path().join("none.sock").display());
    for url in [url, missing] {
        let ran = home.run(&["generate", "x", "--url", &url]).expect(69);
        assert!(
            ran.err.contains(&url) && ran.err.contains("autoglmd serve"),
            "{}",
            ran.err
        );
    }
}

#[test]
fn ctrl_c_closes_the_connection() {
    let home = Home::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        receive(&mut stream);
        let begun = events(&[("delta", r#"{"text":"begun\n"}"#)]);
        let begun = begun.strip_suffix("0\r\n\r\n").unwrap();
        stream.write_all(begun.as_bytes()).unwrap();
        // Blocks until the client's end of the connection is gone.
        stream.read(&mut [0]).map_or(0, |count| count)
    });
    // A test run in the background may have SIGINT ignored, and children inherit that.
    let mut command = Command::new("env");
    home.isolate(&mut command);
    command.args([
        "--default-signal=INT",
        env!("CARGO_BIN_EXE_autoglmd"),
        "generate",
        "x",
    ]);
    let mut child = command
        .args(["--url", &url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n", "nothing came before the answer's end");
    let kill = Command::new("kill")
        .args(["-s", "INT", &child.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    assert_eq!(server.join().unwrap(), 0);
    // A shell shows this as 130.
    assert_eq!(child.wait().unwrap().signal(), Some(2));
}

// ---- models ----------------------------------------------------------------------------------

#[test]
fn a_model_is_pulled_listed_verified_and_removed() {
    let home = Home::new();
    let body = "GGUF\u{3}\0\0\0 and its tensors";
    let (url, server) = start_server(whole("200 OK", "application/octet-stream", body));
    let mut command = home.command(&["model", "pull", "hub:own/repo/tiny.gguf"]);
    let pulled = Ran::of(command.env("HF_ENDPOINT", &url).output().unwrap()).expect(0);
    let path = home.path().join(".cache/autoglmd/models/tiny.gguf");
    assert_eq!(pulled.out, format!("{}\n", path.display()));
    assert!(
        pulled
            .err
            .contains("downloading tiny from hub:own/repo/tiny.gguf\n"),
        "{}",
        pulled.err
    );
    assert!(
        server
            .join()
            .unwrap()
            .starts_with("get /own/repo/resolve/main/tiny.gguf http/1.1")
    );

    let listed = home.run(&["model", "list", "--json"]).expect(0).json();
    assert_eq!(listed[0]["name"], "tiny");
    assert_eq!(listed[0]["bytes"], body.len());
    assert!(
        home.run(&["model", "list"])
            .expect(0)
            .out
            .contains("hub:own/repo/tiny.gguf")
    );
    assert!(
        home.run(&["model", "verify"])
            .expect(0)
            .out
            .starts_with("tiny: good")
    );
    fs::write(&path, body.replace("its", "the")).unwrap();
    assert!(
        home.run(&["model", "verify", "tiny"])
            .expect(1)
            .out
            .contains("damaged")
    );
    home.run(&["model", "remove", "tiny"]).expect(0);
    home.run(&["model", "remove", "tiny"]).expect(66);
    assert_eq!(home.run(&["model", "list"]).expect(0).out, "");
}

#[test]
#[cfg(feature = "llama")]
fn a_model_is_optimized_beside_itself() {
    let home = Home::new();
    let folder = home.path().join(".cache/autoglmd/models");
    fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(common::model::path(), folder.join("small.gguf")).unwrap();
    let made = home.run(&["model", "optimize", "small"]).expect(0);
    let path = folder.join("small-q8_0.gguf");
    assert_eq!(made.out, format!("{}\n", path.display()));
    assert!(
        made.err.contains("making small-q8_0 from small\n"),
        "{}",
        made.err
    );
    let again = home.run(&["model", "optimize", "small"]).expect(0);
    assert!(again.err.contains("--force"), "{}", again.err);
    let verified = home.run(&["model", "verify", "small-q8_0"]).expect(0);
    assert!(verified.out.contains("good"), "{}", verified.out);

    fs::write(folder.join("broken.gguf"), b"GGUF\x03\0\0\0").unwrap();
    let broken = home.run(&["model", "optimize", "broken"]).expect(65);
    assert!(broken.err.contains("model verify"), "{}", broken.err);
    assert!(!folder.join("broken-q8_0.gguf").exists());
    let absent = home.run(&["model", "optimize", "absent"]).expect(66);
    assert!(!absent.err.contains("making"), "{}", absent.err);
}

#[test]
fn a_model_that_is_not_there_or_not_itself_has_its_code() {
    let home = Home::new();
    let (url, _server) = start_server(whole("404 Not Found", "text/plain", ""));
    home.run(&["model", "pull", &format!("{url}/m.gguf")])
        .expect(66);
    let (url, _server) = start_server(whole("401 Unauthorized", "text/plain", ""));
    let ran = home
        .run(&["model", "pull", &format!("{url}/m.gguf")])
        .expect(77);
    assert!(ran.err.contains("HF_TOKEN"), "{}", ran.err);
    let (url, _server) = start_server(whole("200 OK", "text/html", "<h1>Sign in</h1>"));
    home.run(&["model", "pull", &format!("{url}/m.gguf")])
        .expect(65);
    let (url, _server) = start_server(whole("200 OK", "x/y", "GGUF\u{3}\0\0\0"));
    let (url, sum) = (format!("{url}/m.gguf"), "0".repeat(64));
    home.run(&["model", "pull", &url, "--sha256", &sum])
        .expect(65);
}
