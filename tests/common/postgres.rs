//! A real PostgreSQL server of the test's own: its data, its socket and its address exist in a
//! temporary folder and end with it.
//!
//! Owns the server's process and folder. [`Postgres::shared`] starts one server for all tests that
//! run at the same time in one process; a test that stops or kills a server starts one for itself.
//! Each test works in a database of its own ([`Postgres::database`]).
//!
//! PostgreSQL refuses to run as root. If root runs the tests, the server runs as the user
//! `postgres`, which Debian's package creates, and otherwise as the user who runs the tests.
//!
//! Invariants:
//!  1. A started server is dead when its `Postgres` is dropped, and so are its children.
//!  2. The address is the server's alone: the kernel picks the port, on a loopback address that no
//!     outgoing connection uses. So a restarted server gets the same one again.
//!
//! This file uses nothing else of the tests, since the library's own tests include it as well.

#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// A bound for a start or a stop, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// The superuser of the test's servers, and its password.
pub const USER: &str = "tester";
pub const PASSWORD: &str = "correct horse battery staple";

/// How the daemon reaches the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The Unix socket; the server believes its user.
    Socket,
    /// TCP with the password.
    Tcp,
}

pub struct Postgres {
    folder: TempDir,
    address: SocketAddr,
    programs: PathBuf,
    owner: Option<Owner>,
    settings: Vec<String>,
    process: Mutex<Option<Child>>,
}

/// The user of the server, if it is not that of the tests.
#[derive(Clone, Copy)]
struct Owner {
    user: u32,
    group: u32,
}

impl Postgres {
    /// Returns the server of all tests that run now.
    pub fn shared() -> Arc<Postgres> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let started = Arc::new(Postgres::start());
            *shared = Arc::downgrade(&started);
            started
        })
    }

    pub fn start() -> Postgres {
        Postgres::start_with(&[])
    }

    /// Starts a server with more settings, such as `max_connections=20`.
    pub fn start_with(settings: &[&str]) -> Postgres {
        let server = Postgres::create(settings);
        server.restart();
        server
    }

    /// Creates the server's files, and does not start it.
    pub fn create(settings: &[&str]) -> Postgres {
        let folder = tempfile::Builder::new().prefix("pg-").tempdir();
        let server = Postgres {
            folder: folder.expect("a folder"),
            address: own_address(),
            programs: programs(),
            owner: Owner::needed(),
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
            process: Mutex::new(None),
        };
        if let Some(owner) = server.owner {
            owner.take(server.folder.path());
        }
        let password = server.private_file("password", PASSWORD);
        let created = server
            .command("initdb")
            .args(["--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg(format!("--username={USER}"))
            .arg(format!("--pwfile={}", password.display()))
            .arg(server.data())
            .output()
            .expect("initdb was found");
        let output = String::from_utf8_lossy(&created.stderr);
        assert!(created.status.success(), "initdb: {output}");
        server
    }

    /// Writes a file into the server's folder that only the server may read.
    pub fn private_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("the folder can be written");
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&path, mode).expect("the file is ours");
        if let Some(owner) = self.owner {
            owner.take(&path);
        }
        path
    }

    /// The folder of the Unix socket.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes an empty database, and returns its name.
    pub fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Returns the URL of a database.
    pub fn url(&self, database: &str, way: Way) -> String {
        match way {
            Way::Tcp => format!("postgres://{USER}@{}/{database}", self.address),
            Way::Socket => {
                let folder = self.folder.path().display().to_string();
                let folder = folder.replace('/', "%2F");
                let port = self.address.port();
                format!("postgres://{USER}@{folder}:{port}/{database}")
            }
        }
    }

    /// Runs statements with psql, and returns the rows as text: fields with `|` between them.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        let result = self.try_sql(database, statements);
        result.unwrap_or_else(|error| panic!("{statements}: {error}"))
    }

    /// Returns psql's message if a statement fails.
    pub fn try_sql(&self, database: &str, statements: &str) -> Result<String, String> {
        let output = self
            .command("psql")
            .args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-U", USER])
            .arg("-h")
            .arg(self.folder.path())
            .args(["-p", &self.address.port().to_string(), "-d", database])
            .args(["-c", statements])
            .output()
            .expect("psql was found");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    /// Starts the server, again if it was stopped or killed, and waits until it accepts connections.
    pub fn restart(&self) {
        let mut process = self.process();
        assert!(process.is_none(), "the server runs");
        let mut child = self
            .command("postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-c", &format!("port={}", self.address.port())])
            .args(["-c", &format!("listen_addresses={}", self.address.ip())])
            .arg("-c")
            .arg(format!(
                "unix_socket_directories={}",
                self.folder().display()
            ))
            // The machine does not lose power in a test, and each commit would wait for its disk.
            .args(["-c", "fsync=off", "-c", "timezone=UTC"])
            .args(self.settings.iter().flat_map(|setting| ["-c", setting]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("postgres was found");
        let log = child.stderr.take().expect("it is piped");
        *process = Some(child);
        await_line(log, "ready to accept connections");
    }

    /// Ends the server in order: running statements are cancelled, connections closed.
    pub fn stop(&self) {
        let mut child = self.process().take().expect("the server runs");
        signal(child.id(), libc::SIGINT);
        child.wait().expect("the server is our child");
    }

    /// Kills the server and all its children at the same moment, as a machine does that loses power.
    pub fn kill(&self) {
        let mut child = self.process().take().expect("the server runs");
        end(&mut child);
    }

    /// Stops the server and its children: sockets stay open, and nothing is read or written.
    pub fn freeze(&self) {
        let process = self.process();
        let server = process.as_ref().expect("the server runs").id();
        signal(server, libc::SIGSTOP);
        for child in children(server) {
            signal(child, libc::SIGSTOP);
        }
    }

    /// Continues a frozen server.
    pub fn thaw(&self) {
        let process = self.process();
        let server = process.as_ref().expect("the server runs").id();
        for child in children(server) {
            signal(child, libc::SIGCONT);
        }
        signal(server, libc::SIGCONT);
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of PostgreSQL's programs, run as the server's user.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        // The test's folder may be closed to the other user.
        command.current_dir("/").env("LC_ALL", "C.UTF-8");
        if let Some(owner) = self.owner {
            command.uid(owner.user).gid(owner.group);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut child) = self.process().take() {
            end(&mut child);
        }
    }
}

impl Owner {
    /// Returns the user that a server of root's must run as.
    fn needed() -> Option<Owner> {
        // SAFETY: geteuid(2) takes nothing and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        let line = users.lines().find(|line| line.starts_with("postgres:"));
        let line = line.expect("root needs the user `postgres`; apt-get install postgresql");
        let number = |index| {
            line.split(':')
                .nth(index)
                .and_then(|text| text.parse().ok())
        };
        Some(Owner {
            user: number(2).expect("a user's number"),
            group: number(3).expect("a group's number"),
        })
    }

    fn take(self, path: &Path) {
        chown(path, Some(self.user), Some(self.group)).expect("root may do so");
    }
}

/// Returns the folder of PostgreSQL's programs: the newest of Debian's, which are in no PATH, or
/// the one that PATH names.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    let of_debian = versions.into_iter().rev().map(|(_, folder)| folder);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let of_path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    of_debian
        .chain(of_path)
        .find(|folder| {
            let programs = ["initdb", "postgres", "psql"];
            programs.iter().all(|name| folder.join(name).exists())
        })
        .expect("initdb, postgres and psql are not installed; apt-get install postgresql")
}

/// Returns a free port on an address of this process: 127/8 belongs to this machine, and outgoing
/// connections use 127.0.0.1 alone.
fn own_address() -> SocketAddr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, high | 0x80, middle, low.clamp(1, 254));
    let listener = TcpListener::bind((address, 0)).expect("a port");
    listener.local_addr().expect("an address")
}

/// Reads the log up to a line, and the rest of it in a thread, so that the server never waits for
/// the test.
fn await_line(log: ChildStderr, awaited: &'static str) {
    let (found, inbox) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = BufReader::new(log).lines();
        let mut read = String::new();
        while let Some(Ok(line)) = lines.next() {
            if line.contains(awaited) {
                let _ = found.send(Ok(()));
                return lines.for_each(drop);
            }
            read.push_str(&line);
            read.push('\n');
        }
        let _ = found.send(Err(read));
    });
    match inbox.recv_timeout(PATIENCE) {
        Ok(Ok(())) => {}
        Ok(Err(read)) => panic!("the server did not start:\n{read}"),
        Err(_) => panic!("the server did not start in {PATIENCE:?}"),
    }
}

/// Kills the server and its children, and returns when none is left. Each child is a process group
/// of its own, so there is no group to kill.
fn end(server: &mut Child) {
    // A stopped server starts no more children.
    signal(server.id(), libc::SIGSTOP);
    let children = children(server.id());
    for &child in &children {
        signal(child, libc::SIGKILL);
    }
    signal(server.id(), libc::SIGKILL);
    server.wait().expect("the server is our child");
    // Until the last one is gone, a new server refuses to use the data.
    for child in children {
        while is_running(child) {
            thread::yield_now();
        }
    }
}

/// A child that its parent has not waited for is a zombie: it runs no more.
fn is_running(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"));
    let state = stat.ok().and_then(|stat| {
        let (_, after_name) = stat.rsplit_once(')')?;
        after_name.trim_start().chars().next()
    });
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn children(parent: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(process) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process may end while it is read.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let parent_of = stat.rsplit_once(')').and_then(|(_, after_name)| {
            let number = after_name.split_whitespace().nth(1)?;
            number.parse::<u32>().ok()
        });
        if parent_of == Some(parent) {
            found.push(process);
        }
    }
    found
}

fn signal(process: u32, signal: i32) {
    // SAFETY: kill(2) reads no memory of ours. The process is a child that was not waited for, or
    // a child of one that is stopped and cannot wait for it.
    unsafe { libc::kill(process as i32, signal) };
}
