//! Starts that fail, and a start that is interrupted: the messages, the exit codes, the files left.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// An empty home, and the state folder that a daemon would create there.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().expect("a temporary folder"))
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, content).expect("the folder can be written");
        path.display().to_string()
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    /// Runs under `timeout`: a start that should fail and serves instead must not hang the test.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["60", env!("CARGO_BIN_EXE_autoglmd")])
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.0.path())
            .env("STATE_DIRECTORY", self.state())
            .stdin(Stdio::null());
        command
    }

    /// Returns the exit code and the messages.
    fn start(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).output().expect("timeout(1)");
        let said = String::from_utf8(output.stderr).expect("messages are UTF-8");
        (output.status.code(), said)
    }
}

const ECHO: [&str; 4] = ["--engine", "echo", "--listen", "127.0.0.1:0"];

fn fifo(home: &Home, name: &str) -> String {
    let path = home.0.path().join(name);
    let made = Command::new("mkfifo").arg(&path).status();
    assert!(made.expect("mkfifo (apt-get install coreutils)").success());
    path.display().to_string()
}

/// open(2) waits for the other side of a FIFO: such a start would look alive, and ignore SIGTERM.
#[test]
fn a_fifo_without_another_side_does_not_stop_a_start() {
    let home = Home::new();
    let pipe = fifo(&home, "pipe");
    let certificate = format!("[server.tls]\ncertificates = [{pipe:?}]\n");
    let certificate = home.file("certificate.toml", &certificate);
    for (arguments, code, named) in [
        (["--config", &pipe], 78, &pipe),
        (["--config", &certificate], 78, &pipe),
    ] {
        let (found, said) = home.start(&[&ECHO[..], &arguments].concat());
        assert_eq!(found, Some(code), "{said}");
        assert!(
            said.contains(named.as_str()) && said.contains("not a regular file"),
            "{said}"
        );
    }
}

/// The lines wait in the pipe for a reader that may come; without one, SIGTERM still works.
#[test]
fn a_log_in_a_fifo_needs_no_reader() {
    let home = Home::new();
    let pipe = fifo(&home, "log");
    let config = home.file("log.toml", &format!("[log]\nfile = {pipe:?}\n"));
    let arguments = [&ECHO[..], &["--config", &config]].concat();
    for reads in [false, true] {
        let mut child = home.command(&arguments).spawn().expect("timeout(1)");
        // The first start creates the bootstrap key, after the log was opened.
        let key = home.state().join("bootstrap-key");
        while !key.exists() {
            assert!(child.try_wait().expect("a child").is_none(), "it has ended");
            std::thread::yield_now();
        }
        let reader = reads.then(|| fs::File::open(&pipe).expect("the pipe"));
        if let Some(reader) = reader {
            let ready = BufReader::new(reader)
                .lines()
                .find(|line| line.as_ref().is_ok_and(|line| line.contains("ready: ")));
            assert!(ready.is_some(), "the pipe ended");
        }
        // timeout(1) passes the signal on.
        let sent = Command::new("kill").arg(child.id().to_string()).status();
        assert!(sent.expect("kill(1)").success());
        let status = child.wait().expect("a child");
        assert!(status.code().is_some_and(|code| code != 124 && code != 137));
    }
}

#[test]
fn a_start_that_cannot_be_names_the_cause_and_the_way_out() {
    let home = Home::new();
    let plain_file = home.file("plain", "a file");
    let below_it = format!("{plain_file}/state");
    let damaged = home.0.path().join("damaged");
    fs::create_dir(&damaged).expect("a fresh folder");
    fs::write(damaged.join("autoglmd.db"), "no database").expect("the folder can be written");
    let damaged = damaged.display().to_string();
    let log = home.file("log.toml", "[log]\nfile = \"/nowhere/autoglmd.log\"\n");
    let broken = home.file("broken.toml", "[limits\n");
    let headers = "[metrics.push]\nurl = \"http://[::1]:1/\"\nheaders = [\"a=b\", \"host=c\"]\n";
    let headers = home.file("headers.toml", headers);
    for (arguments, code, named) in [
        (
            ["--state-dir", &plain_file],
            73,
            [&plain_file, "is not a folder", "--state-dir"],
        ),
        (
            ["--state-dir", &below_it],
            73,
            [&plain_file, "Not a directory", "--state-dir"],
        ),
        (
            ["--state-dir", &damaged],
            65,
            [&damaged, "not a database", "--state-dir"],
        ),
        (
            ["--config", &log],
            73,
            ["log.file", "/nowhere/autoglmd.log", "folder"],
        ),
        (
            ["--config", &broken],
            78,
            ["broken.toml:1:8", "not TOML", "]"],
        ),
        (
            ["--config", &headers],
            78,
            ["metrics.push.headers[1]", "host is set by the daemon", ""],
        ),
        (
            ["--config", "/nowhere.toml"],
            78,
            ["/nowhere.toml", "No such file", "--config"],
        ),
        (
            ["--listen", "127.0.0.1"],
            78,
            ["server.listen", "127.0.0.1", "127.0.0.1:8080"],
        ),
        (
            ["--listen", "fd:http"],
            69,
            ["fd:http", "passed: none", "FileDescriptorName"],
        ),
        (
            ["--listen", "192.0.2.1:80"],
            69,
            ["192.0.2.1:80", "no such address", ""],
        ),
        (
            ["--listen", "unix:/nowhere/a"],
            69,
            ["/nowhere/a", "create its folder", "first"],
        ),
        (
            ["--parallel", "0"],
            78,
            ["engine.parallel", "0", "from 1 to 256"],
        ),
        (
            ["--log-level", "loud"],
            78,
            ["log.level", "loud", "\"warn\""],
        ),
    ] {
        let mut all = ECHO.to_vec();
        all.extend(arguments);
        let (ended, said) = home.start(&all);
        assert_eq!(ended, Some(code), "{arguments:?}: {said}");
        for word in named {
            assert!(said.contains(word), "{arguments:?}: no {word} in {said}");
        }
    }
}

/// The key of the first start is shown once: a start that fails must not use that up.
#[test]
fn a_port_in_use_is_found_before_the_first_key_is_made() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port of the kernel's choice");
    let address = taken.local_addr().expect("it is bound").to_string();
    let (code, said) = home.start(&["--engine", "echo", "--listen", &address]);
    assert_eq!(code, Some(69), "{said}");
    assert!(
        said.contains(&address) && said.contains("--listen"),
        "{said}"
    );
    assert!(!home.state().join("bootstrap-key").exists());
    assert!(!home.state().join("autoglmd.db").exists());
}

#[cfg(feature = "llama")]
mod loading {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::Home;

    /// A model on a disk that does not respond, simulated by a pipe without a writer.
    #[test]
    fn a_start_that_waits_for_its_model_can_be_broken_off() {
        let home = Home::new();
        let model = home.0.path().join("model.gguf");
        let made = Command::new("mkfifo").arg(&model).status();
        assert!(made.expect("mkfifo(1)").success());
        // A test run in the background may have SIGINT ignored, and children inherit that.
        let mut child = Command::new("env")
            .args(["--default-signal=INT", env!("CARGO_BIN_EXE_autoglmd")])
            .args(["--listen", "127.0.0.1:0", "--model"])
            .arg(&model)
            .env("HOME", home.0.path())
            .env("STATE_DIRECTORY", home.state())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary was built for this test");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            let count = stderr.read_line(&mut line).expect("UTF-8");
            assert_ne!(count, 0, "it ended before it listened");
        }
        let id = libc::pid_t::try_from(child.id()).expect("process ids are small");
        // SAFETY: two numbers; the child is ours and has not been waited for.
        assert_eq!(unsafe { libc::kill(id, libc::SIGINT) }, 0);
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut rest = String::new();
            stderr.read_to_string(&mut rest).expect("UTF-8");
            let _ = sender.send(rest);
        });
        let said = receiver.recv_timeout(Duration::from_secs(60));
        if said.is_err() {
            child.kill().expect("it is ours");
        }
        let status = child.wait().expect("it is ours");
        assert!(status.success(), "{status}: {said:?}");
        assert!(said.is_ok_and(|said| said.contains("stopped")));
    }
}
