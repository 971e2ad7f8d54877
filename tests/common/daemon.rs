//! The real binary as a child process: one folder, one configuration file, ports of the kernel's
//! choice.
//!
//! Owns the child, the folder and a thread that reads the child's stderr from its first byte to its
//! last, so that the child never waits for the test and a failed test shows its messages.
//!
//! Invariants:
//!  1. A started daemon is dead when its `Daemon` is dropped, whatever the test did.
//!  2. No file of the user is read or written: HOME and every XDG folder are in the folder.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use super::client::{Answer, Connection, request};
use super::metrics::Metrics;
use super::process::Process;
use super::{PATIENCE, model};

/// A test's settings for a daemon. Rate limiting is off unless the test switches it on, and so is
/// the cache: equal requests of a test are to be computed.
#[derive(Clone)]
pub struct Options {
    settings: BTreeMap<String, String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    descriptors: Option<u64>,
    has_cache: bool,
    passed: Option<Arc<TcpListener>>,
    folder: Option<Arc<TempDir>>,
    binary: Option<PathBuf>,
    stderr: StderrUse,
}

/// The use of the child's stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StderrUse {
    /// It is read, and [`Daemon`] waits for the line that contains `ready`.
    Read,
    /// It is a pipe that is not read until [`Daemon::read_stderr`]. Nothing is waited for.
    Stalled,
}

impl Options {
    /// Uses the engine that returns a fixed program at once.
    pub fn echo() -> Options {
        Options::new("echo")
    }

    /// Uses the real engine with the small model.
    pub fn llama() -> Options {
        let options = Options::new("llama");
        options.set(
            "engine.model",
            model::path().to_str().expect("the path is plain"),
        )
    }

    fn new(engine: &str) -> Options {
        let options = Options {
            settings: BTreeMap::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            descriptors: None,
            has_cache: false,
            passed: None,
            folder: None,
            binary: None,
            stderr: StderrUse::Read,
        };
        options
            .set("engine.kind", engine)
            .set_raw("server.listen", r#"["127.0.0.1:0"]"#)
            .set_raw("rate_limit.enabled", "false")
    }

    /// Sets `section.key` to a string.
    pub fn set(self, key: &str, value: &str) -> Options {
        self.set_raw(key, &format!("{value:?}"))
    }

    /// Sets `section.key` to a number, boolean or list, as TOML writes it.
    pub fn set_raw(mut self, key: &str, value: &str) -> Options {
        self.settings.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn argument(mut self, argument: &str) -> Options {
        self.arguments.push(argument.to_owned());
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Options {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Wraps the daemon in a command that `exec`s its last arguments, such as `taskset -c 0`.
    pub fn wrapped_in(mut self, wrapper: &[&str]) -> Options {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Leaves the cache as the configuration has it.
    pub fn with_cache(mut self) -> Options {
        self.has_cache = true;
        self
    }

    /// Sets the child's limit of open descriptors, soft and hard.
    pub fn descriptors(mut self, count: u64) -> Options {
        self.descriptors = Some(count);
        self
    }

    /// Passes a listener as descriptor 3, as `sd_listen_fds_with_names(3)` expects it.
    pub fn activated_with(mut self, listener: TcpListener, name: &str) -> Options {
        self.passed = Some(Arc::new(listener));
        // The protocol needs the id of the receiving process, which only that process knows.
        self.wrapped_in(&["sh", "-c", r#"LISTEN_PID=$$ exec "$0" "$@""#])
            .environment("LISTEN_FDS", "1")
            .environment("LISTEN_FDNAMES", name)
    }

    /// Uses a folder that another daemon of this test has used.
    pub fn in_folder(mut self, folder: Arc<TempDir>) -> Options {
        self.folder = Some(folder);
        self
    }

    /// Runs another program than the one that was built with this test.
    pub fn binary(mut self, binary: &Path) -> Options {
        self.binary = Some(binary.to_owned());
        self
    }

    pub fn with_stalled_stderr(mut self) -> Options {
        self.stderr = StderrUse::Stalled;
        self
    }

    /// Returns the text of the configuration file.
    pub fn configuration(&self) -> String {
        let mut sections: BTreeMap<&str, String> = BTreeMap::new();
        for (key, value) in &self.settings {
            let (section, name) = key.rsplit_once('.').expect("keys have a section");
            let text = sections.entry(section).or_default();
            writeln!(text, "{name} = {value}").expect("strings take text");
        }
        let mut text = String::new();
        for (section, lines) in sections {
            writeln!(text, "[{section}]\n{lines}").expect("strings take text");
        }
        text
    }

    pub fn start(self) -> Daemon {
        Daemon::start(self)
    }
}

pub struct Daemon {
    child: Child,
    folder: Arc<TempDir>,
    log: Arc<Log>,
    stalled: Option<ChildStderr>,
    addresses: Vec<SocketAddr>,
    key: String,
    /// Set once the child is known to have ended.
    status: Option<ExitStatus>,
}

impl Daemon {
    pub fn echo() -> Daemon {
        Options::echo().start()
    }

    /// Returns one daemon for many tests of a binary, started by the first.
    pub fn shared(options: impl FnOnce() -> Options) -> &'static Daemon {
        SHARED.get_or_init(|| {
            // SAFETY: the handler takes no argument, and a static outlives every exit.
            unsafe { libc::atexit(end_shared) };
            options().start()
        })
    }

    fn start(options: Options) -> Daemon {
        let folder = options.folder.clone().unwrap_or_else(|| {
            let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
            Arc::new(TempDir::new_in(base).expect("the target folder can be written"))
        });
        std::fs::write(folder.path().join("autoglmd.toml"), options.configuration())
            .expect("the folder can be written");
        let mut child = command(&options, folder.path())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start the daemon: {error}"));
        let stderr = child.stderr.take().expect("stderr is piped");
        let mut daemon = Daemon {
            child,
            folder,
            log: Arc::new(Log::default()),
            stalled: None,
            addresses: Vec::new(),
            key: String::new(),
            status: None,
        };
        match options.stderr {
            StderrUse::Read => {
                Log::follow(&daemon.log, stderr);
                daemon.wait_until_ready();
            }
            StderrUse::Stalled => daemon.stalled = Some(stderr),
        }
        daemon
    }

    fn wait_until_ready(&mut self) {
        self.log.wait_for("ready", 0, says_ready);
        let lines = self.log.lines();
        let tcp = lines
            .iter()
            .filter_map(|line| line.split_once("listening on "));
        self.addresses = tcp.filter_map(|(_, rest)| leading_address(rest)).collect();
        self.read_key();
    }

    /// Takes the bootstrap key from the state folder.
    pub fn read_key(&mut self) {
        let file = self.state_folder().join("bootstrap-key");
        let text = std::fs::read_to_string(&file)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        text.trim().clone_into(&mut self.key);
    }

    /// Starts to read a stderr that was stalled.
    pub fn read_stderr(&mut self) {
        let stderr = self.stalled.take().expect("stderr was stalled");
        Log::follow(&self.log, stderr);
    }

    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// Returns the first TCP address.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns the bootstrap key, which has every scope.
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn folder(&self) -> Arc<TempDir> {
        Arc::clone(&self.folder)
    }

    pub fn state_folder(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn configuration_file(&self) -> PathBuf {
        self.folder.path().join("autoglmd.toml")
    }

    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.key)
    }

    pub fn connect(&self) -> Connection {
        Connection::tcp(self.address()).expect("the daemon accepts")
    }

    /// Returns the bytes of a request with the bootstrap key.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
        self.request_with(method, path, &[], body)
    }

    /// Like `request`, with more fields.
    pub fn request_with(
        &self,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        let authorization = self.authorization();
        let mut fields = vec![("authorization", authorization.as_str())];
        let has_type = more.iter().any(|(name, _)| *name == "content-type");
        if !body.is_empty() && !has_type {
            fields.push(("content-type", "application/json"));
        }
        fields.extend_from_slice(more);
        request(method, path, &fields, body)
    }

    /// Returns the bytes of `POST /api/v1/generate`.
    pub fn generate_request(&self, body: &Value) -> Vec<u8> {
        self.request("POST", "/api/v1/generate", body.to_string().as_bytes())
    }

    /// Sends one request on its own connection.
    pub fn exchange(&self, bytes: &[u8]) -> Answer {
        self.connect().exchange(bytes)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.exchange(&self.request("GET", path, b""))
    }

    pub fn generate(&self, body: &Value) -> Answer {
        self.exchange(&self.generate_request(body))
    }

    pub fn metrics(&self) -> Metrics {
        Metrics::parse(self.get("/metrics").expect(200).text())
    }

    /// Runs the binary with the daemon's own environment, such as `key create`.
    pub fn run(&self, arguments: &[&str]) -> std::process::Output {
        // A command that should fail and serves instead must not hang the test.
        let mut command = Command::new("timeout");
        isolate(&mut command, self.folder.path());
        command.args(["60", &binary()]).args(arguments);
        if matches!(arguments.first(), Some(&"key")) {
            command.arg("--state-dir").arg(self.state_folder());
        }
        command
            .output()
            .expect("the binary was built for this test")
    }

    pub fn log_lines(&self) -> Vec<String> {
        self.log.lines()
    }

    /// Returns how many lines the log has now, for a later wait to start from.
    pub fn log_position(&self) -> usize {
        self.log.lines().len()
    }

    /// Waits for a line from `position` on that contains `text`.
    pub fn wait_for_log(&self, position: usize, text: &str) -> String {
        self.log
            .wait_for(text, position, |line| line.contains(text))
    }

    /// Waits until the process has ended by itself, and returns how.
    pub fn wait(&mut self) -> ExitStatus {
        if self.status.is_none() {
            self.log.wait_for_end();
            self.status = Some(self.child.wait().expect("the child is ours"));
        }
        self.status.expect("just set")
    }

    /// Like `wait`, for a daemon whose stderr is not read: asks the kernel again and again.
    pub fn wait_while_stalled(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let ended = || child.try_wait().expect("the child is ours");
        let (status, _) = super::eventually("the daemon ends", ended);
        self.status = Some(status);
        status
    }

    /// Ends the process at once, as `kill -9` or the out-of-memory killer would.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // Fails only for a child that was already waited for, which is not so here.
            self.child.kill().expect("the child is ours");
            self.status = Some(self.child.wait().expect("the child is ours"));
        }
    }
}

static SHARED: OnceLock<Daemon> = OnceLock::new();

/// Statics are never dropped; this ends the shared daemon as `drop` does others.
extern "C" fn end_shared() {
    if let Some(daemon) = SHARED.get() {
        daemon.process().signal(libc::SIGKILL);
        let _ = std::fs::remove_dir_all(daemon.folder.path());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let lines = self.log.lines();
            let shown = &lines[lines.len().saturating_sub(80)..];
            eprintln!("--- the daemon's last lines\n{}\n---", shown.join("\n"));
        }
    }
}

/// Gives a command its own home.
pub fn isolate(command: &mut Command, folder: &Path) {
    command
        .env_clear()
        .env("HOME", folder)
        .env("TMPDIR", folder);
    for name in [
        "PATH",
        "LD_LIBRARY_PATH",
        "RUST_BACKTRACE",
        "LLVM_PROFILE_FILE",
    ] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    for (name, folder_name) in [
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_STATE_HOME", "xdg-state"),
        ("XDG_CACHE_HOME", "cache"),
    ] {
        command.env(name, folder.join(folder_name));
    }
}

/// Returns the daemon's program: the one that was built with this test, or another one to be
/// compared with it.
fn binary() -> String {
    let other = std::env::var("AUTOGLMD_TEST_BINARY");
    other.unwrap_or_else(|_| env!("CARGO_BIN_EXE_autoglmd").to_owned())
}

fn command(options: &Options, folder: &Path) -> Command {
    let mut words = options.wrapper.clone();
    words.push(match &options.binary {
        Some(binary) => binary.display().to_string(),
        None => binary(),
    });
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
        .arg("serve")
        .arg("--config")
        .arg(folder.join("autoglmd.toml"));
    command
        .arg("--state-dir")
        .arg(folder.join("state"))
        .args(&options.arguments);
    isolate(&mut command, folder);
    if !options.has_cache {
        command.env("AUTOGLMD_CACHE__ENABLED", "false");
    }
    command.envs(
        options
            .environment
            .iter()
            .map(|(name, value)| (name, value)),
    );
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let limit = options.descriptors.map(|count| libc::rlimit {
        rlim_cur: count,
        rlim_max: count,
    });
    let passed = options.passed.as_ref().map(|listener| listener.as_raw_fd());
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes no
    // others, and the data that it reads was copied into it; the listener lives in `options`.
    unsafe { command.pre_exec(move || prepare_child(limit, passed)) };
    command
}

/// Runs in the child before `exec`: async-signal-safe calls only.
fn prepare_child(limit: Option<libc::rlimit>, passed: Option<i32>) -> io::Result<()> {
    if let Some(limit) = limit {
        // SAFETY: `limit` is initialised and outlives the call.
        checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    match passed {
        // `dup2` onto itself would leave close-on-exec set.
        // SAFETY: fcntl(2) changes a flag of a descriptor that this process has.
        Some(3) => checked(unsafe { libc::fcntl(3, libc::F_SETFD, 0) }),
        // SAFETY: dup2(2) replaces descriptor 3, which is not used in this child any more.
        Some(listener) => checked(unsafe { libc::dup2(listener, 3) }),
        None => Ok(()),
    }
}

fn checked(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Parses the socket address at the beginning of a text; a quotation mark or a space may follow it.
fn leading_address(text: &str) -> Option<SocketAddr> {
    let is_part = |character: char| character.is_ascii_hexdigit() || ".:[]".contains(character);
    let end = text
        .find(|character| !is_part(character))
        .unwrap_or(text.len());
    text[..end].parse().ok()
}

/// Returns whether a log line reports that the daemon is ready, and not that something is not.
fn says_ready(line: &str) -> bool {
    let mut words = line.split(|character: char| !character.is_ascii_alphabetic());
    words.any(|word| word == "ready") && !line.contains("not ready")
}

/// The lines that the child has written to stderr.
#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Log {
    fn follow(log: &Arc<Log>, stderr: ChildStderr) {
        let log = Arc::clone(log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n') {
                let Ok(line) = line else { break };
                let mut state = log.lock();
                state
                    .lines
                    .push(String::from_utf8_lossy(&line).into_owned());
                log.changed.notify_all();
            }
            log.lock().ended = true;
            log.changed.notify_all();
        });
    }

    fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    fn wait_for(&self, what: &str, position: usize, wanted: impl Fn(&str) -> bool) -> String {
        let give_up = Instant::now() + PATIENCE;
        let mut state = self.lock();
        let mut looked_at = position;
        loop {
            while let Some(line) = state.lines.get(looked_at) {
                if wanted(line) {
                    return line.clone();
                }
                looked_at += 1;
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let seen = state.lines.join("\n");
                drop(state);
                panic!("the daemon never said {what:?}; it said:\n{seen}");
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wait_for_end(&self) {
        let state = self.lock();
        let waited = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !state.ended);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            let seen = state.lines.join("\n");
            drop(state);
            panic!("the daemon does not end; it said:\n{seen}");
        }
    }

    /// A test that failed while it held the lock has left whole lines, so a poisoned lock is
    /// usable.
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
