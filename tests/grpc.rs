//! gRPC over the real binary, by the usual client: Python's grpcio, with stubs that it generates
//! from our schema. Each test is a function of `tests/python/grpc_client.py`, which runs over TLS
//! and in clear text against one port.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use common::tls::Authority;
use common::{Daemon, Options, python};

/// Returns a daemon that speaks TLS with clients that do.
fn shared() -> &'static Daemon {
    Daemon::shared(|| {
        let authority = Authority::new("the house");
        let roots = roots();
        let folder = roots.parent().expect("it lies in a folder");
        std::fs::create_dir_all(folder).expect("the target folder can be written");
        std::fs::write(&roots, authority.certificate.pem()).expect("the folder can be written");
        let site = folder.join("site.pem");
        authority.server("127.0.0.1").save_together(&site);
        Options::echo().set_raw("server.tls.certificates", &format!("{:?}", [site]))
    })
}

/// Returns the certificates that clients of the shared daemon trust.
fn roots() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("grpc/roots.pem")
}

/// A running check.
struct Client {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    stdin: ChildStdin,
}

impl Client {
    fn start(daemon: &Daemon, check: &str) -> Client {
        Client::start_with(daemon, check, None)
    }

    /// Over TLS if there are certificates to trust.
    fn start_with(daemon: &Daemon, check: &str, roots: Option<&Path>) -> Client {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(python::interpreter())
            .arg(root.join("tests/python/grpc_client.py"))
            .arg(root.join("src/proto"))
            .arg(daemon.address().to_string())
            .args([daemon.key(), check])
            .envs(roots.map(|roots| ("ROOTS", roots)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter runs");
        let stdout = child.stdout.take().expect("stdout is piped");
        let stdin = child.stdin.take().expect("stdin is piped");
        Client {
            child,
            lines: BufReader::new(stdout).lines(),
            stdin,
        }
    }

    /// Waits until the client prints this word.
    #[track_caller]
    fn wait_for(&mut self, word: &str) {
        let line = self.lines.next();
        let line = line.unwrap_or_else(|| panic!("the client ended before it said {word}"));
        assert_eq!(line.expect("its lines are text"), word);
    }

    /// Lets a client that waits for us continue.
    fn go_on(&mut self) {
        self.stdin.write_all(b"\n").expect("the client reads");
    }

    #[track_caller]
    fn finish(mut self) {
        self.wait_for("done");
        drop(self.stdin);
        assert!(self.child.wait().expect("it is our child").success());
    }
}

/// Runs a check to its end, in clear text and over TLS.
#[track_caller]
fn check(name: &str) {
    let daemon = shared();
    Client::start(daemon, name).finish();
    Client::start_with(daemon, name, Some(&roots())).finish();
}

#[test]
fn a_call_is_answered() {
    check("unary");
}

#[test]
fn a_client_of_the_first_two_fields_is_served() {
    check("first_two_fields");
}

#[test]
fn a_stream_brings_pieces_and_the_whole() {
    check("stream");
}

#[test]
fn errors_have_status_and_details() {
    check("errors");
}

/// Mutations: `place_of` that ignores `after`; `job_message` without its result; `event_message`
/// that holds the job in each event; `Notation::of` that is always JSON.
#[test]
fn jobs_are_submitted_watched_and_resumed() {
    check("jobs");
}

/// Mutation: `Kept::send` of a stream that leaves out the code.
#[test]
fn a_retry_with_the_same_key_gets_the_same_response() {
    check("kept");
}

#[test]
fn messages_may_be_compressed() {
    check("gzip");
}

#[test]
fn health_is_checked_without_a_key() {
    check("health");
}

#[test]
fn reflection_shows_the_schema_in_both_versions() {
    check("reflection");
}

#[test]
fn a_hundred_streams_share_one_connection() {
    let daemon = Daemon::echo();
    let accepted = || {
        daemon
            .metrics()
            .value("autoglmd_connections_accepted_total")
    };
    let before = accepted();
    Client::start(&daemon, "hundred_streams").finish();
    // One connection for the client, one for each reading of the metrics.
    assert_eq!(accepted() - before, 2.0);
    let streams = [("route", "grpc_generate_stream"), ("status", "200")];
    let metrics = daemon.metrics();
    assert_eq!(metrics.sum("autoglmd_requests_total", &streams), 100.0);
}

#[test]
fn a_watch_hears_of_the_drain() {
    let daemon = Daemon::echo();
    let mut client = Client::start(&daemon, "watch");
    client.wait_for("watching");
    daemon.process().signal(libc::SIGTERM);
    client.go_on();
    client.finish();
}

#[cfg(feature = "llama")]
mod with_a_model {
    use super::*;
    use common::eventually;

    fn wait_until_idle(daemon: &Daemon) {
        eventually("the engine is idle", || {
            let metrics = daemon.metrics();
            let busy = metrics.value("autoglmd_engine_sequences_running")
                + metrics.value("autoglmd_engine_queue_depth");
            (busy == 0.0).then_some(())
        });
    }

    fn cancelled(daemon: &Daemon, reason: &str) -> f64 {
        let metrics = daemon.metrics();
        metrics.sum("autoglmd_cancelled_total", &[("reason", reason)])
    }

    /// Mutation: `RpcCancelJob` that shows the job.
    #[test]
    fn a_running_job_is_followed_again_and_cancelled() {
        let daemon = Options::llama().start();
        Client::start(&daemon, "running_job").finish();
        wait_until_idle(&daemon);
    }

    #[test]
    fn deadlines_and_cancelled_streams_free_the_engine() {
        let daemon = Options::llama().start();
        let mut client = Client::start(&daemon, "deadline");
        client.wait_for("late");
        wait_until_idle(&daemon);
        client.go_on();
        client.finish();
        assert!(cancelled(&daemon, "deadline") >= 1.0);
        let before = cancelled(&daemon, "disconnect");
        let mut client = Client::start(&daemon, "cancellation");
        client.wait_for("streaming");
        assert_eq!(
            daemon.metrics().value("autoglmd_engine_sequences_running"),
            1.0
        );
        client.go_on();
        client.wait_for("cancelled");
        wait_until_idle(&daemon);
        assert_eq!(cancelled(&daemon, "disconnect") - before, 1.0);
        client.go_on();
        client.finish();
    }
}
