//! `autoglmd generate` beyond printing: colours on a terminal, `--out`, `--run`.
//!
//! The real binary, with a listener of the test as its daemon.
//!
//! Mutations, each caught by the test named:
//! * `wants_colour` always true: `colours_are_for_terminals_that_want_them`
//! * `Destination::new` not before the request: `file_that_is_there_is_kept`
//! * `fs::rename` also without --force: `file_made_meanwhile_is_kept` beside `Destination`
//! * `confirm` returns true for an empty line: `program_runs_only_after_yes`

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use common::player::{events, start_server, whole};
use common::terminal;

const PROGRAM: &str = "def double(x):\n    return x * 2  # twice\n\nprint(double(21))";

fn command(home: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_autoglmd"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home.path())
        .env("TERM", "xterm-256color")
        .env("AUTOGLMD_KEY", "k")
        .arg("generate")
        .args(arguments)
        .stdin(Stdio::null());
    terminal::detach(&mut command);
    command
}

fn home() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A daemon that responds to one request with this program.
fn daemon(language: &str, program: &str) -> String {
    let middle = program.chars().count() / 2;
    let first: String = program.chars().take(middle).collect();
    let second: String = program.chars().skip(middle).collect();
    let delta = |text: &str| serde_json::json!({ "text": text }).to_string();
    let done = serde_json::json!({"code": program, "language": language, "finish_reason": "stop"});
    let stream = events(&[
        ("delta", &delta(&first)),
        ("delta", &delta(&second)),
        ("done", &done.to_string()),
    ]);
    start_server(stream).0
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn expect(output: &Output, code: i32) {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
}

fn without_colours(shown: &str) -> String {
    let mut parts = shown.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + part.split_once('m').expect("a sequence").1
    })
}

// ---- colours ---------------------------------------------------------------------------------

#[test]
fn colours_are_for_terminals_that_want_them() {
    let home = home();
    let show = |language: &str, variables: &[(&str, &str)]| {
        let url = daemon(language, PROGRAM);
        let mut command = command(&home, &["p", "-l", language, "--url", &url]);
        let (code, shown) = terminal::run(command.envs(variables.iter().copied()), "");
        assert_eq!(code, Some(0), "{shown}");
        shown
    };
    let plain = format!("{PROGRAM}\n");
    let shown = show("python", &[]);
    assert!(shown.contains("\x1b[35mdef\x1b[0m double"), "{shown}");
    assert!(shown.contains("\x1b[36m21\x1b[0m"), "{shown}");
    assert_eq!(without_colours(&shown), plain);
    assert_eq!(show("python", &[("NO_COLOR", "1")]), plain);
    assert_eq!(show("python", &[("TERM", "dumb")]), plain);
    assert!(
        show("python", &[("NO_COLOR", "")]).contains('\x1b'),
        "empty is unset"
    );
    assert_eq!(show("verilog", &[]), plain, "a language without a grammar");
}

#[test]
fn pipes_get_every_byte_and_nothing_else() {
    let home = home();
    let url = daemon("python", "print('\x1b[31m')\r\n");
    let output = command(&home, &["p", "-l", "python", "--url", &url])
        .output()
        .unwrap();
    expect(&output, 0);
    assert_eq!(text(&output.stdout), "print('\x1b[31m')\r\n");
    // A terminal would obey these bytes.
    let url = daemon("python", "print('\x1b[31m')\n");
    let mut command = command(&home, &["p", "--no-stream", "--url", &url]);
    let (_, shown) = terminal::run(&mut command, "");
    assert_eq!(shown, "print('[31m')\n");
}

// ---- --out -----------------------------------------------------------------------------------

#[test]
fn program_goes_into_a_file_and_with_stream_to_stdout_too() {
    let home = home();
    for (flags, printed) in [(&[][..], ""), (&["--stream"][..], "x = 1\n")] {
        let file = home.path().join(format!("{}.py", flags.len()));
        let url = daemon("python", "x = 1");
        let mut command = command(&home, &["p", "-l", "python", "--url", &url, "--out"]);
        let output = command.arg(&file).args(flags).output().unwrap();
        expect(&output, 0);
        assert_eq!(text(&output.stdout), printed);
        assert_eq!(fs::read_to_string(&file).unwrap(), "x = 1\n");
        assert!(text(&output.stderr).contains(&file.display().to_string()));
    }
    assert_eq!(files_in(home.path()), ["0.py", "1.py"]);
}

fn files_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn file_that_is_there_is_kept() {
    let home = home();
    let file = home.path().join("kept.py");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o754)).unwrap();
    // Nothing listens there: the file is checked before the daemon is asked.
    let nowhere = "unix:/nowhere/at/all";
    let output = command(&home, &["p", "--url", nowhere, "--out"])
        .arg(&file)
        .output()
        .unwrap();
    expect(&output, 73);
    assert!(text(&output.stderr).contains("--force"), "{output:?}");
    for path in [home.path(), Path::new("/dev/null")] {
        let mut command = command(&home, &["p", "--url", nowhere, "--force", "--out"]);
        let output = command.arg(path).output().unwrap();
        expect(&output, 73);
    }
    let missing = home.path().join("no/folder/x.py");
    let output = command(&home, &["p", "--url", nowhere, "--out"])
        .arg(missing)
        .output()
        .unwrap();
    expect(&output, 66);
    // With --force it is replaced, and keeps its mode.
    let url = daemon("python", "new = 1");
    let output = command(&home, &["p", "--url", &url, "--force", "--out"])
        .arg(&file)
        .output()
        .unwrap();
    expect(&output, 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), "new = 1\n");
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o754
    );
    assert_eq!(files_in(home.path()), ["kept.py"]);
}

#[test]
fn half_a_program_is_not_written() {
    let home = home();
    let error = r#"{"error":{"message":"it broke","code":"engine_failed"}}"#;
    let (url, _server) = start_server(events(&[("delta", r#"{"text":"half"}"#), ("error", error)]));
    let file = home.path().join("half.py");
    let output = command(&home, &["p", "--url", &url, "--out"])
        .arg(&file)
        .output()
        .unwrap();
    expect(&output, 70);
    assert_eq!(files_in(home.path()), [""; 0]);
}

// ---- --run -----------------------------------------------------------------------------------

#[test]
fn program_runs_only_after_yes() {
    let home = home();
    let ask = |typed: &str| {
        let url = daemon("python", PROGRAM);
        let mut command = command(&home, &["p", "-l", "python", "--url", &url, "--run"]);
        terminal::run(&mut command, typed)
    };
    let (code, shown) = ask("y\n");
    assert_eq!(code, Some(0), "{shown}");
    let question = shown.find("[y/N]").expect("a question");
    let program = shown.find("double").expect("the program is shown");
    let result = shown.rfind("42\n").expect("the program's output");
    assert!(program < question && question < result, "{shown}");
    for typed in ["n\n", "\n", "maybe\n"] {
        let (code, shown) = ask(typed);
        assert_eq!(code, Some(1), "{shown}");
        assert!(
            shown.contains("not run") && !shown.contains("42"),
            "{shown}"
        );
    }
}

#[test]
fn without_a_terminal_it_asks_for_yes() {
    let home = home();
    let arguments = [
        "p",
        "-l",
        "python",
        "--url",
        "unix:/nowhere/at/all",
        "--run",
    ];
    let output = command(&home, &arguments).output().unwrap();
    expect(&output, 64);
    assert!(text(&output.stderr).contains("--yes"), "{output:?}");
}

#[test]
fn output_and_exit_code_are_those_of_the_program() {
    let home = home();
    let run = |language: &str, program: &str, more: &[&str]| {
        let url = daemon(language, program);
        let mut command = command(&home, &["p", "--url", &url, "--run", "--yes"]);
        command.args(more).output().unwrap()
    };
    // The language is the one in the daemon's response.
    let script = "echo $((6 * 7)); echo beside >&2; exit 7";
    let output = run("bash", script, &[]);
    expect(&output, 7);
    assert_eq!(text(&output.stdout), "42\n");
    let shown = text(&output.stderr);
    assert!(
        shown.starts_with(script) && shown.ends_with("beside\n"),
        "{shown}"
    );
    expect(&run("bash", "kill -SEGV $$", &[]), 139);
    let program = "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 6 * 7); return 3; }";
    let output = run("c", program, &[]);
    expect(&output, 3);
    assert_eq!(text(&output.stdout), "42\n");
    let input = home.path().join("input");
    fs::write(&input, "20 + 22").unwrap();
    let input = input.to_str().unwrap();
    let output = run("python", "print(eval(input()))", &["--input", input]);
    expect(&output, 0);
    assert_eq!(text(&output.stdout), "42\n");
    // The home folder is out of reach.
    let program = format!("cat {input} || echo hidden");
    assert_eq!(text(&run("bash", &program, &[]).stdout), "hidden\n");
}

#[test]
fn input_may_come_from_a_pipe() {
    let home = home();
    let url = daemon("python", "print(int(input()) * 2)");
    let arguments = ["p", "--url", &url, "--run", "--yes", "--input", "-"];
    let mut child = command(&home, &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"21\n").unwrap();
    let output = child.wait_with_output().unwrap();
    expect(&output, 0);
    assert_eq!(text(&output.stdout), "42\n");
}

#[test]
fn languages_that_cannot_run_are_refused_before_the_daemon_works() {
    let home = home();
    let nowhere = "unix:/nowhere/at/all";
    let arguments = ["p", "-l", "haskell", "--url", nowhere, "--run", "--yes"];
    let output = command(&home, &arguments).output().unwrap();
    expect(&output, 64);
    assert!(
        text(&output.stderr).contains("python, javascript"),
        "{output:?}"
    );
    for flags in [
        &["--yes"][..],
        &["--force"],
        &["--json", "--run"],
        &["--input", "x"],
    ] {
        let output = command(&home, &["p", "--url", nowhere])
            .args(flags)
            .output()
            .unwrap();
        expect(&output, 64);
    }
}

#[test]
fn whole_response_is_written_and_run_as_well() {
    let home = home();
    let body = r#"{"code":"echo $((6 * 7))","language":"bash","finish_reason":"stop"}"#;
    let (url, _server) = start_server(whole("200 OK", "application/json", body));
    let file = home.path().join("a.sh");
    let arguments = ["p", "--no-stream", "--url", &url, "--run", "--yes", "--out"];
    let output = command(&home, &arguments).arg(&file).output().unwrap();
    expect(&output, 0);
    assert_eq!(text(&output.stdout), "42\n");
    assert_eq!(fs::read_to_string(&file).unwrap(), "echo $((6 * 7))\n");
}
