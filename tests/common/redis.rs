//! Real Redis servers for tests: one, a set under Sentinel, or a cluster.
//!
//! Owns the processes and their folder. Must never use a server that it has not started, nor a
//! fixed port.
//!
//! Invariants:
//!  1. A server is dead when its `Server` is dropped, also while it is stopped.
//!  2. A restarted server has the same port and an empty memory: nothing is saved.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use super::process::Process;
use super::{PATIENCE, eventually};

/// The name of the master that the set under Sentinel has.
pub const MASTER_NAME: &str = "autoglmd";

/// One process of `redis-server`.
pub struct Server {
    child: Option<Child>,
    folder: Arc<TempDir>,
    port: u16,
    lines: Vec<String>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Tls,
    Sentinel,
}

impl Server {
    pub fn start() -> Server {
        Server::with(&[])
    }

    /// Starts a server with more lines of its configuration, such as `requirepass secret`.
    pub fn with(lines: &[&str]) -> Server {
        let lines = lines.iter().map(|&line| line.to_owned()).collect();
        Server::launch(folder(), lines, Kind::Plain)
    }

    /// Starts a server that accepts only TLS, with this certificate and its authority.
    pub fn with_tls(certificate: &Path, key: &Path, authority: &Path) -> Server {
        let line = |name: &str, path: &Path| format!("{name} {}", path.display());
        let lines = vec![
            line("tls-cert-file", certificate),
            line("tls-key-file", key),
            line("tls-ca-cert-file", authority),
            "tls-auth-clients no".to_owned(),
        ];
        Server::launch(folder(), lines, Kind::Tls)
    }

    fn launch(folder: Arc<TempDir>, lines: Vec<String>, kind: Kind) -> Server {
        // Another process may take the port between its choice and the server's bind.
        for _ in 0..20 {
            let mut server = Server {
                child: None,
                folder: Arc::clone(&folder),
                port: free_port(),
                lines: lines.clone(),
                kind,
            };
            if server.run() {
                return server;
            }
        }
        panic!("redis-server found no free port");
    }

    /// Starts the process and waits until it responds. `false`: it has ended.
    fn run(&mut self) -> bool {
        let (port, dir) = (self.port, self.folder.path().display());
        let file = self.folder.path().join(format!("{port}.conf"));
        let mut text = format!("bind 127.0.0.1\ndir {dir}\nlogfile {port}.log\n");
        match self.kind {
            Kind::Tls => text += &format!("port 0\ntls-port {port}\n"),
            Kind::Plain | Kind::Sentinel => text += &format!("port {port}\n"),
        }
        if self.kind != Kind::Sentinel {
            text += "save \"\"\nappendonly no\n";
        }
        for line in &self.lines {
            text += line;
            text.push('\n');
        }
        std::fs::write(&file, text).expect("the folder can be written");
        let mut command = Command::new("redis-server");
        command
            .arg(&file)
            .stdout(Stdio::null())
            .stdin(Stdio::null());
        if self.kind == Kind::Sentinel {
            command.arg("--sentinel");
        }
        let child = command.spawn();
        self.child = Some(child.unwrap_or_else(|error| {
            panic!("redis-server: {error}; install it: apt-get install redis-server")
        }));
        let (port, child) = (self.port, self.child.as_mut().expect("just started"));
        let (is_there, _) = eventually("redis-server accepts or ends", || {
            if child.try_wait().expect("the child is ours").is_some() {
                return Some(false);
            }
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
            Some(true)
        });
        if !is_there {
            self.child = None;
        }
        is_there
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address as `cache.shared.url` has it.
    pub fn url(&self) -> String {
        match self.kind {
            Kind::Tls => format!("rediss://localhost:{}", self.port),
            Kind::Plain | Kind::Sentinel => format!("redis://127.0.0.1:{}", self.port),
        }
    }

    /// Connects as a client without a password, for looking at what is stored.
    pub fn connect(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).expect("the address is well formed");
        let connection = client.get_connection_with_timeout(PATIENCE);
        connection.expect("the server accepts")
    }

    pub fn process(&self) -> Process {
        Process(self.child.as_ref().expect("the server runs").id())
    }

    /// Stops the process: it keeps its connections and its port, and does nothing.
    pub fn pause(&self) {
        self.process().signal(libc::SIGSTOP);
    }

    pub fn resume(&self) {
        self.process().signal(libc::SIGCONT);
    }

    /// Ends the process at once: all that it holds is lost.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the child is ours");
            child.wait().expect("the child is ours");
        }
    }

    /// Sets the lines of the configuration for the next start.
    pub fn set_lines(&mut self, lines: &[&str]) {
        self.lines = lines.iter().map(|&line| line.to_owned()).collect();
    }

    /// Starts a killed server again, on the same port.
    pub fn restart(&mut self) {
        self.kill();
        let (_, _) = eventually("the server has its port again", || self.run().then_some(()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A master, a replica and three sentinels.
pub struct SentinelSet {
    pub master: Server,
    pub replica: Server,
    pub sentinels: Vec<Server>,
}

impl SentinelSet {
    pub fn start() -> SentinelSet {
        let master = Server::start();
        let line = format!("replicaof 127.0.0.1 {}", master.port());
        let replica = Server::with(&[&line]);
        let monitor = format!(
            "sentinel monitor {MASTER_NAME} 127.0.0.1 {} 2",
            master.port()
        );
        let down = format!("sentinel down-after-milliseconds {MASTER_NAME} 1000");
        let failover = format!("sentinel failover-timeout {MASTER_NAME} 5000");
        let lines = vec![monitor, down, failover];
        let sentinels: Vec<Server> = (0..3)
            .map(|_| Server::launch(folder(), lines.clone(), Kind::Sentinel))
            .collect();
        let set = SentinelSet {
            master,
            replica,
            sentinels,
        };
        set.wait_until_complete();
        set
    }

    /// Waits until each sentinel knows the replica and the two others: before that, they could not
    /// agree on another master.
    fn wait_until_complete(&self) {
        for sentinel in &self.sentinels {
            let mut connection = sentinel.connect();
            eventually("the sentinels know each other", || {
                let mut masters = redis::cmd("SENTINEL");
                masters.arg("MASTER").arg(MASTER_NAME);
                let reply: Vec<String> = masters.query(&mut connection).ok()?;
                let field = |name: &str| {
                    let at = reply.iter().position(|word| word == name)?;
                    reply.get(at + 1).cloned()
                };
                let is_complete = field("num-slaves")? == "1"
                    && field("num-other-sentinels")? == "2"
                    && field("flags")? == "master";
                is_complete.then_some(())
            });
        }
    }

    pub fn url(&self) -> String {
        let sentinels = self.sentinels.iter();
        let hosts: Vec<String> = sentinels
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.port()))
            .collect();
        format!("redis+sentinel://{}/{MASTER_NAME}", hosts.join(","))
    }
}

/// A third, rounded up.
const SLOTS_PER_NODE: usize = 5_462;

/// Three masters that share the slots.
pub struct Cluster {
    pub nodes: Vec<Server>,
}

impl Cluster {
    pub fn start() -> Cluster {
        let nodes: Vec<Server> = (0..3).map(|_| Cluster::node()).collect();
        for (index, node) in nodes.iter().enumerate() {
            let mut connection = node.connect();
            let first = index * SLOTS_PER_NODE;
            let last = (first + SLOTS_PER_NODE).min(16_384) - 1;
            let mut command = redis::cmd("CLUSTER");
            let command = command.arg("ADDSLOTSRANGE").arg(first).arg(last);
            command.exec(&mut connection).expect("the slots are free");
            for other in &nodes {
                let bus = Cluster::bus_port(other);
                let mut command = redis::cmd("CLUSTER");
                let command = command
                    .arg("MEET")
                    .arg("127.0.0.1")
                    .arg(other.port())
                    .arg(bus);
                command.exec(&mut connection).expect("nodes may meet");
            }
        }
        let cluster = Cluster { nodes };
        cluster.wait_until_whole();
        cluster
    }

    /// Other than by default, a node's second port is not its first one and 10,000, which may be
    /// above all ports.
    fn node() -> Server {
        for _ in 0..20 {
            let bus = free_port();
            let lines = vec![
                "cluster-enabled yes".to_owned(),
                format!("cluster-port {bus}"),
                "cluster-node-timeout 2000".to_owned(),
                "cluster-require-full-coverage no".to_owned(),
            ];
            let mut server = Server {
                child: None,
                folder: folder(),
                port: free_port(),
                lines,
                kind: Kind::Plain,
            };
            if server.run() {
                return server;
            }
        }
        panic!("a cluster's node found no free ports");
    }

    fn bus_port(server: &Server) -> u16 {
        let mut lines = server.lines.iter();
        let port = lines.find_map(|line| line.strip_prefix("cluster-port "));
        port.expect("a node has one").parse().expect("a number")
    }

    /// Returns which node has a slot at the start.
    pub fn node_of_slot(&self, slot: u16) -> usize {
        usize::from(slot) / SLOTS_PER_NODE
    }

    /// Gives a slot without keys to another node.
    pub fn move_empty_slot(&self, slot: u16, to: usize) {
        let mut id = redis::cmd("CLUSTER");
        let id: String = id
            .arg("MYID")
            .query(&mut self.nodes[to].connect())
            .expect("an id");
        // The new node first: it must not refuse the slot that others give to it.
        let others = (0..self.nodes.len()).filter(|index| *index != to);
        for index in std::iter::once(to).chain(others) {
            let mut command = redis::cmd("CLUSTER");
            command.arg("SETSLOT").arg(slot).arg("NODE").arg(&id);
            let set = command.exec(&mut self.nodes[index].connect());
            set.expect("the slot has no keys");
        }
    }

    fn wait_until_whole(&self) {
        for node in &self.nodes {
            let mut connection = node.connect();
            eventually("each node knows all slots", || {
                let mut command = redis::cmd("CLUSTER");
                let info: String = command.arg("INFO").query(&mut connection).ok()?;
                let is_whole =
                    info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3");
                is_whole.then_some(())
            });
        }
    }

    pub fn url(&self) -> String {
        let nodes = self.nodes.iter();
        let hosts: Vec<String> = nodes
            .map(|node| format!("127.0.0.1:{}", node.port()))
            .collect();
        format!("redis+cluster://{}", hosts.join(","))
    }
}

fn folder() -> Arc<TempDir> {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    Arc::new(TempDir::new_in(base).expect("the target folder can be written"))
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}
