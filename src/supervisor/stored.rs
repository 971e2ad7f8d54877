//! Listening sockets that the service manager keeps for us over a restart: its descriptor store.
//!
//! Owns the names under which they are kept, and the choice of those that serve an address of the
//! configuration. While the daemon restarts, the manager holds the socket open: connections wait in
//! the kernel's queue, and none is refused.
//!
//! Invariants:
//!  1. A socket is matched with an address by the kernel's information about it, never by its name.
//!  2. One socket for each address is kept, under one name for each address.
//!  3. A socket that no longer serves an address stops listening at once, and its name is removed.
//!
//! Mutations that tests catch: `fits` without `only_v6` (`a_stored_socket_serves_...`), no
//! `shutdown` in `retire` (`one_whose_address_is_gone_...`), a socket that is stored without its
//! name (the restart in `tests/daemon.rs`).

use std::fmt::Write as _;
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use socket2::SockRef;

use crate::os::activation::Inherited;
use crate::os::socket::{Listener, SocketFile};

/// The prefix of stored sockets' names. The administrator chooses those of a socket unit.
const PREFIX: &str = "autoglmd-";

/// The stored sockets that no address has claimed yet.
pub struct Store(Vec<Inherited>);

impl Store {
    /// Takes the stored sockets out of all that were passed.
    pub fn take_from(passed: &mut Vec<Inherited>) -> Store {
        let is_stored = |one: &mut Inherited| one.name.starts_with(PREFIX);
        Store(passed.extract_if(.., is_stored).collect())
    }

    /// Returns the socket that already listens on this address. Port 0 means any port.
    pub fn claim_tcp(&mut self, address: SocketAddr, only_v6: bool) -> Option<Listener> {
        self.claim(|listener| fits(listener, address, only_v6))
    }

    /// Returns the socket that already listens on this path, with the guard of its file.
    pub fn claim_unix(&mut self, path: &Path) -> Option<(Listener, SocketFile)> {
        let kind = path.symlink_metadata().ok()?.file_type();
        if !kind.is_socket() {
            return None;
        }
        let listener = self.claim(|listener| match listener {
            Listener::Unix(listener) => listener
                .local_addr()
                .is_ok_and(|address| address.as_pathname() == Some(path)),
            Listener::Tcp(_) => false,
        })?;
        Some((listener, SocketFile::of(path).ok()?))
    }

    fn claim(&mut self, fits: impl Fn(&Listener) -> bool) -> Option<Listener> {
        let index = self.0.iter().position(|one| fits(&one.listener))?;
        Some(self.0.swap_remove(index).listener)
    }

    /// Closes the sockets that no address has claimed, and returns their names. The manager still
    /// holds them open, so closing alone would leave clients in a queue that is never read, and the
    /// port taken.
    pub fn retire(self) -> Vec<String> {
        let names = self.0.into_iter().map(|one| {
            let socket = match &one.listener {
                Listener::Tcp(listener) => SockRef::from(listener),
                Listener::Unix(listener) => SockRef::from(listener),
            };
            if let Err(error) = socket.shutdown(Shutdown::Both) {
                log::warn!("cannot shut down the stored socket {}: {error}", one.name);
            }
            one.name
        });
        names.collect()
    }
}

fn fits(listener: &Listener, address: SocketAddr, only_v6: bool) -> bool {
    let Listener::Tcp(listener) = listener else {
        return false;
    };
    let Ok(found) = listener.local_addr() else {
        return false;
    };
    let is_any_port = address.port() == 0 && found.ip() == address.ip();
    (found == address || is_any_port) && (found.is_ipv4() || is_only_v6(listener) == Some(only_v6))
}

fn is_only_v6(listener: &std::net::TcpListener) -> Option<bool> {
    SockRef::from(listener).only_v6().ok()
}

/// Returns the name for an address as it is written in the configuration. A colon ends a name in
/// `LISTEN_FDNAMES`, so it becomes a comma; other characters that are not allowed are written in
/// hex.
pub fn name_of(address: &str) -> String {
    let mut name = String::from(PREFIX);
    for byte in address.bytes() {
        match byte {
            b':' => name.push(','),
            b',' | b'%' => push_hex(&mut name, byte),
            byte if byte.is_ascii_graphic() => name.push(char::from(byte)),
            byte => push_hex(&mut name, byte),
        }
    }
    name
}

fn push_hex(name: &mut String, byte: u8) {
    // Writing to a string does not fail.
    let _ = write!(name, "%{byte:02x}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::socket;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn stored(listener: &TcpListener) -> Inherited {
        let address = listener.local_addr().unwrap().to_string();
        let copy = listener.as_fd().try_clone_to_owned().unwrap();
        Inherited {
            name: name_of(&address),
            listener: Listener::from_descriptor(copy).unwrap(),
        }
    }

    #[test]
    fn names_hold_what_names_may_hold() {
        assert_eq!(name_of("127.0.0.1:8080"), "autoglmd-127.0.0.1,8080");
        assert_eq!(name_of("[::1]:80"), "autoglmd-[,,1],80");
        assert_eq!(name_of("unix:/a b,%é"), "autoglmd-unix,/a%20b%2c%25%c3%a9");
    }

    #[test]
    fn a_stored_socket_serves_its_own_address_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut foreign = stored(&listener);
        foreign.name = "http".to_owned();
        let mut passed = vec![foreign, stored(&listener)];
        let mut store = Store::take_from(&mut passed);
        assert_eq!(passed.len(), 1, "a socket unit's stays");
        let other = SocketAddr::new("127.0.0.2".parse().unwrap(), address.port());
        assert!(store.claim_tcp(other, false).is_none());
        assert!(store.claim_tcp(address, false).is_some());
        assert!(store.claim_tcp(address, false).is_none(), "once");
        // If any port was configured, any port will do.
        let mut store = Store(vec![stored(&listener)]);
        let any = SocketAddr::new(address.ip(), 0);
        assert!(store.claim_tcp(any, false).is_some());
    }

    #[test]
    fn a_socket_for_both_families_does_not_serve_as_one_for_ipv6_alone() {
        let listener = socket::listen_tcp("[::]:0".parse().unwrap(), false).unwrap();
        let address = listener.local_addr().unwrap();
        let mut store = Store(vec![stored(&listener)]);
        assert!(store.claim_tcp(address, true).is_none());
        assert!(store.claim_tcp(address, false).is_some());
    }

    /// The manager's own descriptor of a retired socket stays open for a while.
    #[test]
    fn one_whose_address_is_gone_refuses_at_once_and_its_port_is_free() {
        let managers = socket::listen_tcp("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let address = managers.local_addr().unwrap();
        let name = name_of(&address.to_string());
        assert_eq!(Store(vec![stored(&managers)]).retire(), [name]);
        assert!(TcpStream::connect(address).is_err());
        let again = socket::listen_tcp(address, true).unwrap();
        assert!(TcpStream::connect(again.local_addr().unwrap()).is_ok());
    }

    #[test]
    fn a_stored_unix_socket_needs_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, file) = socket::listen_unix(&path).unwrap();
        let inherited = || Inherited {
            name: name_of("unix:x"),
            listener: Listener::from_descriptor(listener.as_fd().try_clone_to_owned().unwrap())
                .unwrap(),
        };
        let elsewhere = folder.path().join("elsewhere");
        std::fs::write(&elsewhere, "").unwrap();
        assert!(Store(vec![inherited()]).claim_unix(&elsewhere).is_none());
        assert!(elsewhere.exists(), "not ours to remove");
        let claimed = Store(vec![inherited()]).claim_unix(&path);
        let (_, guard) = claimed.expect("it is the same path");
        file.keep();
        assert!(path.exists(), "kept for the next process");
        drop(guard);
        assert!(!path.exists());
        assert!(Store(vec![inherited()]).claim_unix(&path).is_none());
    }
}
