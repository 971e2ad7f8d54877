//! The addresses that the daemon listens on. They are opened before the keys and the engine start,
//! so that an occupied port has no side effects.
//!
//! A socket has one of three origins: a socket unit passed it under its name, the manager kept it
//! over a restart ([`super::stored`]), or it is opened here and handed to the manager to keep.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

use super::failure::Failure;
use super::part::{Birth, Part};
use super::spawner::Spawner;
use super::stored::{self, Store};
use crate::config::{Config, Listen, Opening, Place, Security};
use crate::console::exit;
use crate::limits::outbound as outbound_limits;
use crate::limits::supervisor as limits;
use crate::os::activation::{self, Inherited};
use crate::os::notify::Notifier;
use crate::os::rlimit;
use crate::os::socket::{self, Listener, SocketFile};

/// Open listening sockets. Dropping it removes the files of the Unix ones.
#[derive(Default)]
pub struct Listeners {
    sockets: Vec<Listening>,
    files: Vec<SocketFile>,
    /// Names in the manager's store whose addresses are no longer configured.
    retired: Vec<String>,
}

struct Listening {
    address: String,
    opening: Opening,
    /// The socket was opened here, so the manager does not know it yet.
    is_new: bool,
    socket: Arc<Socket>,
}

impl Part for Listeners {
    fn start(birth: &mut Birth) -> Result<Listeners, Failure> {
        let descriptors = descriptors()?;
        birth.outbound_sockets = outbound_sockets(descriptors);
        birth.max_connections = max_connections(&birth.config, descriptors);
        let listeners = Listeners::open(&birth.config.server.listen)?;
        let (sockets, openings) = (listeners.sockets(), listeners.openings());
        let spawner = Spawner::prepare(birth.config.server.reactors, &sockets, &openings)
            .map_err(|error| Failure::os("epoll", &error))?;
        birth.spawner = Some(spawner);
        Ok(listeners)
    }

    /// Drops its descriptors. The reactor accepts connections that already wait, then closes its
    /// own; the last one must be the reactor's or the service manager's: from then on the kernel
    /// refuses new connections, or keeps them for the next process.
    fn drain(&mut self, _: Duration) {
        *self = Listeners::default();
    }
}

impl Listeners {
    fn open(wanted: &[Listen]) -> Result<Listeners, Failure> {
        let mut inherited = activation::take()
            .map_err(|error| Failure::os("a socket of the service manager", &error))?;
        let mut store = Store::take_from(&mut inherited);
        let v4: Vec<_> = wanted.iter().filter_map(Listen::tcp_address).collect();
        let mut listeners = Listeners::default();
        // Existing sockets first, then the others: a port may have to become free for them.
        let claimed = claim_all(wanted, &v4, &mut store);
        listeners.retired = store.retire();
        for (listen, claimed) in wanted.iter().zip(claimed) {
            match (&listen.place, claimed) {
                (_, Some((listener, file))) => {
                    listeners.files.extend(file);
                    listeners.push(listener, listen.opening(), false)?;
                }
                (Place::Tcp(address), None) => {
                    let only_v6 = socket::needs_only_v6(*address, &v4);
                    let listener = socket::listen_tcp(*address, only_v6)
                        .map_err(|error| cannot_listen(listen, &error))?;
                    listeners.push(Listener::Tcp(listener), listen.opening(), true)?;
                }
                (Place::Unix(path), None) => {
                    let (listener, file) =
                        socket::listen_unix(path).map_err(|error| cannot_listen(listen, &error))?;
                    listeners.files.push(file);
                    listeners.push(Listener::Unix(listener), listen.opening(), true)?;
                }
                (Place::Inherited(name), None) => {
                    let found = take_named(&mut inherited, name);
                    if found.is_empty() {
                        return Err(not_passed(name, &inherited));
                    }
                    found.into_iter().try_for_each(|one| {
                        listeners.push(one.listener, listen.opening(), false)
                    })?;
                }
            }
        }
        for unused in inherited {
            log::warn!(
                "the passed socket {:?} is not in server.listen and stays unused",
                unused.name
            );
        }
        Ok(listeners)
    }

    /// Makes the manager keep the new sockets, and forget those of addresses that are no longer
    /// configured. The files of Unix sockets stay from now on: the next process listens on them,
    /// too.
    pub fn store_in(&mut self, notifier: &mut Notifier) {
        if !notifier.is_active() {
            return;
        }
        let mut results: Vec<io::Result<()>> = Vec::new();
        for name in self.retired.drain(..) {
            results.push(notifier.remove(&name));
        }
        for one in self.sockets.iter_mut().filter(|one| one.is_new) {
            one.is_new = false;
            results.push(notifier.store(&stored::name_of(&one.address), one.socket.as_fd()));
        }
        for error in results.into_iter().filter_map(Result::err) {
            log::warn!("the service manager cannot keep a socket across a restart: {error}");
        }
        self.files.drain(..).for_each(SocketFile::keep);
    }

    fn push(&mut self, listener: Listener, opening: Opening, is_new: bool) -> Result<(), Failure> {
        let address = listener
            .address()
            .map_err(|error| Failure::os("getsockname", &error))?;
        let descriptor: OwnedFd = match listener {
            Listener::Tcp(listener) => listener.into(),
            Listener::Unix(listener) => listener.into(),
        };
        self.sockets.push(Listening {
            address,
            opening,
            is_new,
            socket: Arc::new(Socket::from(descriptor)),
        });
        Ok(())
    }

    fn sockets(&self) -> Vec<Arc<Socket>> {
        self.sockets.iter().map(|one| one.socket.clone()).collect()
    }

    /// Returns the openings in the order of the sockets.
    fn openings(&self) -> Vec<Opening> {
        self.sockets.iter().map(|one| one.opening).collect()
    }

    /// Returns the addresses as they are written in the configuration, with the port that the
    /// kernel chose.
    pub fn addresses(&self) -> Vec<String> {
        self.sockets.iter().map(Listening::to_string).collect()
    }

    /// Returns a command line that works now, if there is a key that it can name.
    pub fn first_steps(&self, state_dir: &Path) -> Option<String> {
        let key = state_dir.join(crate::store::BOOTSTRAP_FILE);
        if !key.exists() {
            return None;
        }
        let first = self.sockets.iter().find(|one| !one.opening.proxied)?;
        let (scheme, address) = (first.scheme(), &first.address);
        let target = match address.strip_prefix("unix:") {
            Some(path) => format!("--unix-socket {path} {scheme}://localhost"),
            None => format!("{scheme}://{address}"),
        };
        Some(format!(
            "\nReady. Try it from another terminal:\n\n    curl -s {target}/api/v1/generate \
             -H \"Authorization: Bearer $(cat {key})\" -H 'Content-Type: application/json' \
             -d '{{\"prompt\": \"a function that reverses a string\", \"language\": \"python\"}}'\
             \n\n",
            key = key.display(),
        ))
    }
}

impl Listening {
    fn scheme(&self) -> &'static str {
        match self.opening.security {
            Security::Tls => "https",
            Security::Sniffed | Security::Clear => "http",
        }
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = match self.opening.security {
            Security::Sniffed => "",
            Security::Tls => " (TLS only)",
            Security::Clear => " (clear text only)",
        };
        let proxied = match self.opening.proxied {
            true => " (behind proxies that speak the PROXY protocol)",
            false => "",
        };
        write!(f, "{}{rule}{proxied}", self.address)
    }
}

/// A kept socket, and its file if it has one.
type Claimed = Option<(Listener, Option<SocketFile>)>;

/// Returns the stored socket for each of `wanted`. Addresses with a port come first: one that
/// accepts any port must not take another's.
fn claim_all(wanted: &[Listen], v4: &[SocketAddr], store: &mut Store) -> Vec<Claimed> {
    let mut claimed: Vec<Claimed> = wanted.iter().map(|_| None).collect();
    for is_any_port in [false, true] {
        for (listen, claimed) in wanted.iter().zip(&mut claimed) {
            match &listen.place {
                Place::Tcp(address) if (address.port() == 0) == is_any_port => {
                    let only_v6 = socket::needs_only_v6(*address, v4);
                    let listener = store.claim_tcp(*address, only_v6);
                    *claimed = listener.map(|listener| (listener, None));
                }
                Place::Unix(path) if !is_any_port => {
                    let found = store.claim_unix(path);
                    *claimed = found.map(|(listener, file)| (listener, Some(file)));
                }
                _ => {}
            }
        }
    }
    claimed
}

/// Returns the descriptors that the process may have.
fn descriptors() -> Result<usize, Failure> {
    let limit = rlimit::raise_descriptor_limit()
        .map_err(|error| Failure::os("raising RLIMIT_NOFILE", &error))?;
    Ok(usize::try_from(limit.soft).unwrap_or(usize::MAX))
}

/// Returns the share of the descriptors that is for the daemon's own connections.
fn outbound_sockets(descriptors: usize) -> usize {
    (descriptors / limits::OUTBOUND_DESCRIPTORS_DIVISOR).min(outbound_limits::SOCKETS_MAX)
}

/// Returns the descriptors that remain for connections after files, epoll, database and pipes, and
/// after the daemon's own connections.
fn max_connections(config: &Config, allowed: usize) -> usize {
    let reserved = limits::RESERVED_DESCRIPTORS + outbound_sockets(allowed);
    let most = allowed.saturating_sub(reserved).max(1);
    match config.limits.max_connections as usize {
        0 if allowed <= reserved => {
            log::warn!(
                "RLIMIT_NOFILE = {allowed} is only enough for the daemon's own files, so it serves \
                 one connection at a time; raise it with `ulimit -n` or LimitNOFILE="
            );
            most
        }
        0 => most.min(limits::CONNECTIONS_MAX),
        wanted if wanted > most => {
            log::warn!(
                "limits.max_connections = {wanted} exceeds RLIMIT_NOFILE = {allowed}; serving at \
                 most {most} connections; raise the limit with `ulimit -n` or LimitNOFILE="
            );
            most
        }
        wanted => wanted,
    }
}

/// Takes all sockets of this name: a unit may pass several.
fn take_named(inherited: &mut Vec<Inherited>, name: &str) -> Vec<Inherited> {
    inherited.extract_if(.., |one| one.name == name).collect()
}

fn not_passed(name: &str, inherited: &[Inherited]) -> Failure {
    let passed: Vec<_> = inherited.iter().map(|one| one.name.as_str()).collect();
    let passed = if passed.is_empty() {
        "none".to_owned()
    } else {
        passed.join(", ")
    };
    Failure::new(
        exit::UNAVAILABLE,
        format!(
            "server.listen has fd:{name}, but no socket of this name was passed (passed: \
             {passed}); set FileDescriptorName={name} in the socket unit"
        ),
    )
}

fn cannot_listen(listen: &Listen, error: &io::Error) -> Failure {
    let hint = match (&listen.place, error.kind()) {
        (_, ErrorKind::AddrInUse) => {
            "; stop the other program, or choose another address with --listen"
        }
        (Place::Tcp(address), ErrorKind::PermissionDenied) if address.port() < 1024 => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE"
        }
        (Place::Unix(_), ErrorKind::PermissionDenied) => "; this user may not write to its folder",
        (Place::Unix(_), ErrorKind::NotFound) => "; create its folder first",
        (Place::Tcp(_), ErrorKind::AddrNotAvailable) => "; this machine has no such address",
        _ => "",
    };
    Failure::new(
        exit::UNAVAILABLE,
        format!("cannot listen on {listen}: {error}{hint}"),
    )
}
