//! Listening, accepted and connecting sockets, set up as the daemon wants them.
//!
//! All sockets from here are non-blocking and closed on exec. Nothing here reads or writes.
//!
//! Invariants:
//!  1. A Unix socket's file is never open to others than owner and group, not even for a moment.
//!  2. A socket's file is replaced only if no process listens on it. At the end, only the very file
//!     that was created here is removed: another daemon may have put its own in the same place.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockAddrStorage, Socket, TcpKeepalive, Type};

use super::wait::wait_readable;
use crate::limits::os as limits;

/// A listening socket of either family.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Checks a descriptor that another process opened: it must be a listening stream socket.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Listener> {
        let invalid = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let socket = Socket::from(descriptor);
        match socket.r#type() {
            Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
                return invalid("it is not a socket");
            }
            Err(error) => return Err(error),
            Ok(found) if found != Type::STREAM => {
                return invalid("it is not a stream socket; use ListenStream=");
            }
            Ok(_) => {}
        }
        if !socket.is_listener()? {
            return invalid("it is not listening; use Accept=no");
        }
        socket.set_nonblocking(true)?;
        socket.set_cloexec(true)?;
        match socket.domain()? {
            Domain::IPV4 | Domain::IPV6 => {
                set_tcp_options(&socket)?;
                Ok(Listener::Tcp(socket.into()))
            }
            Domain::UNIX => Ok(Listener::Unix(OwnedFd::from(socket).into())),
            _ => invalid(
                "it is neither a TCP nor a Unix socket; use ListenStream= with an address or a \
                 path",
            ),
        }
    }

    /// Returns the address as it is written in the configuration.
    pub fn address(&self) -> io::Result<String> {
        match self {
            Listener::Tcp(listener) => Ok(listener.local_addr()?.to_string()),
            Listener::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().map(|path| path.display().to_string());
                // A service manager may pass an abstract socket, commonly written `@name`.
                let name = address.as_abstract_name().map(|name| name.escape_ascii());
                let name = name.map(|name| format!("@{name}"));
                Ok(format!("unix:{}", path.or(name).unwrap_or_default()))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Listens on a TCP address. `only_v6`: see [`needs_only_v6`].
pub fn listen_tcp(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // Without this, a restart fails for a minute while old connections are in TIME_WAIT. Two
    // listeners on one address stay impossible: that would take SO_REUSEPORT.
    socket.set_reuse_address(true)?;
    set_tcp_options(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(backlog())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Returns whether `address` must be restricted to IPv6. `[::]:80` also takes IPv4, which is
/// usually what is meant, unless the list also has `0.0.0.0:80`, which would find the port taken.
pub fn needs_only_v6(address: SocketAddr, all: &[SocketAddr]) -> bool {
    address.ip() != Ipv6Addr::UNSPECIFIED
        || all.contains(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

/// Listens on a Unix socket. The caller must hold the guard as long as the listener: the guard
/// removes the file.
///
/// A file that a killed daemon left behind is replaced. A file on which a running daemon listens is
/// an error, and so is one that is not a socket.
pub fn listen_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    remove_stale(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // On Linux the file inherits the socket's mode less the umask (unix(7)), so it is never wider
    // than this; the second call restores the bits that the umask took.
    let descriptor = fs::File::from(socket.as_fd().try_clone_to_owned()?);
    descriptor.set_permissions(fs::Permissions::from_mode(limits::UNIX_SOCKET_MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(limits::UNIX_SOCKET_MODE))?;
    let file = SocketFile::of(path)?;
    socket.listen(backlog())?;
    socket.set_nonblocking(true)?;
    Ok((OwnedFd::from(socket).into(), file))
}

/// Removes a Unix socket's file when dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Creates the guard of an existing file.
    pub fn of(path: &Path) -> io::Result<SocketFile> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(SocketFile {
            // Absolute, because the working directory may change.
            path: std::path::absolute(path)?,
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Leaves the file in place: another process goes on listening on it.
    pub fn keep(mut self) {
        // No file has this number, so dropping the guard removes nothing.
        self.inode = 0;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        let ours = |found: &fs::Metadata| found.dev() == self.device && found.ino() == self.inode;
        if found.is_ok_and(|found| ours(&found)) {
            // If this fails, nothing more can be done here; the next start removes the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Takes one connection from a listener's queue with a single system call: accept4(2) sets the
/// flags, and the new socket inherits all other options from its listener.
pub fn accept(listener: &Socket) -> io::Result<(Socket, SockAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let accept = |storage: *mut SockAddrStorage, length: *mut libc::socklen_t| {
        // SAFETY: `storage` and `length` are valid for writes and describe each other, which is the
        // contract of `try_init`.
        let number = unsafe { libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags) };
        match number {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the kernel has just created this descriptor for us, and nothing else owns it.
            number => Ok(unsafe { Socket::from_raw_fd(number) }),
        }
    };
    // SAFETY: where accept4(2) succeeds it has written an address and its length.
    unsafe { SockAddr::try_init(accept) }
}

/// Returns whether a connection is in a listener's queue, or the listener has failed, which
/// [`accept`] then reports. Does not wait.
pub fn has_waiting(listener: &Socket) -> bool {
    // If poll(2) itself fails, accept4(2) finds out.
    wait_readable([listener.as_fd()], Some(Duration::ZERO)).map_or(true, |[waiting]| waiting)
}

/// Begins to connect to an address. The result comes later: see [`is_connected`].
pub fn connect(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        None,
    )?;
    set_tcp_options(&socket)?;
    match socket.connect(&address.into()) {
        // A signal does not stop the handshake either (connect(2)).
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR)) => {
            Ok(socket)
        }
        // A peer on this machine may have accepted already.
        Ok(()) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Returns whether a connecting socket is connected. The error is the result of an attempt that
/// failed; the kernel reports it once (`SO_ERROR`).
pub fn is_connected(socket: &Socket) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    let peer = match socket.peer_addr() {
        // No error and no peer: the handshake still runs.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
        peer => peer?,
    };
    // A connection to a port without a listener may get that very port for its own end, and then
    // TCP connects it to itself (RFC 9293, section 3.5).
    match peer == socket.local_addr()? {
        true => Err(io::ErrorKind::ConnectionRefused.into()),
        false => Ok(true),
    }
}

/// Sets the options of a connection. On Linux accepted sockets inherit them from their listener.
fn set_tcp_options(socket: &Socket) -> io::Result<()> {
    // Responses are written whole or event by event: Nagle's algorithm would hold the second write
    // back until the first is acknowledged, which takes 40 ms with delayed acknowledgements (RFC
    // 896 meets RFC 1122, section 4.2.3.2).
    socket.set_tcp_nodelay(true)?;
    // Finds peers that vanished without a FIN; our own timers bound all others.
    let keepalive = TcpKeepalive::new()
        .with_time(limits::KEEPALIVE_IDLE)
        .with_interval(limits::KEEPALIVE_INTERVAL)
        .with_retries(limits::KEEPALIVE_PROBES_MAX);
    socket.set_tcp_keepalive(&keepalive)
}

/// The longest queue that the kernel allows: it caps larger values at `net.core.somaxconn`.
fn backlog() -> i32 {
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
    let somaxconn = somaxconn.and_then(|text| text.trim().parse().ok());
    somaxconn.map_or(limits::BACKLOG_CONNECTIONS_MIN, |somaxconn: i32| {
        somaxconn.max(limits::BACKLOG_CONNECTIONS_MIN)
    })
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        let message = format!(
            "{} exists and is not a socket; remove it or listen on another path",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A running daemon's full backlog must not block us: EAGAIN proves as much as a success.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => {
            let message = format!("a daemon is already running on {}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    fn localhost() -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
    }

    fn is_nonblocking_and_cloexec(descriptor: &impl AsFd) -> bool {
        let number = descriptor.as_fd().as_raw_fd();
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let flags = text
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        flags & libc::O_NONBLOCK != 0 && flags & libc::O_CLOEXEC != 0
    }

    #[test]
    fn a_tcp_listener_is_nonblocking_and_its_port_is_not_shared() {
        let listener = listen_tcp(localhost(), true).unwrap();
        assert!(is_nonblocking_and_cloexec(&listener));
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let second = listen_tcp(listener.local_addr().unwrap(), true);
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_port_in_time_wait_can_be_listened_on_again() {
        let listener = listen_tcp(localhost(), true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        // The side that closes first, here the daemon's, stays in TIME_WAIT.
        drop(accepted);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop(client);
        drop(listener);
        listen_tcp(address, true).unwrap();
    }

    /// Mutations that this test catches: `is_connected` without `take_error`, and without the
    /// look at its peer.
    #[test]
    fn a_connect_does_not_wait_and_reports_its_result_once() {
        let listener = listen_tcp(localhost(), true).unwrap();
        let address = listener.local_addr().unwrap();
        let socket = connect(address).unwrap();
        assert!(is_nonblocking_and_cloexec(&socket));
        assert!(socket.tcp_nodelay().unwrap());
        wait_writable(&socket);
        assert!(is_connected(&socket).unwrap());
        drop((socket, listener));
        // On this machine the kernel may know at once that nothing listens there.
        if let Ok(socket) = connect(address) {
            wait_writable(&socket);
            let refused = is_connected(&socket).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            assert!(
                !is_connected(&socket).unwrap(),
                "the error is reported once"
            );
        }
    }

    #[test]
    fn a_socket_that_still_connects_is_no_error() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        assert!(!is_connected(&socket).unwrap());
    }

    fn wait_writable(socket: &Socket) {
        let events = libc::POLLOUT;
        let mut waiting = libc::pollfd {
            fd: socket.as_raw_fd(),
            events,
            revents: 0,
        };
        // SAFETY: `waiting` is one valid `pollfd`, and the kernel writes to nothing else.
        assert_eq!(unsafe { libc::poll(&mut waiting, 1, 10_000) }, 1);
    }

    #[test]
    fn accepted_connections_have_their_options_from_the_listener() {
        let ours = listen_tcp(localhost(), true).unwrap();
        // A listener opened by a service manager, without our options.
        let passed = TcpListener::bind(localhost()).unwrap();
        let Ok(Listener::Tcp(passed)) = Listener::from_descriptor(passed.into()) else {
            panic!("a TCP listener is one");
        };
        for listener in [ours, passed] {
            let address = listener.local_addr().unwrap();
            let listener = Socket::from(listener);
            assert_eq!(
                accept(&listener).unwrap_err().kind(),
                io::ErrorKind::WouldBlock
            );
            let client = TcpStream::connect(address).unwrap();
            // The connection is in the queue: connect(2) returns after the handshake.
            assert!(has_waiting(&listener));
            let (accepted, peer) = accept(&listener).unwrap();
            assert!(!has_waiting(&listener));
            assert_eq!(peer.as_socket(), client.local_addr().ok());
            assert!(is_nonblocking_and_cloexec(&accepted));
            assert!(accepted.tcp_nodelay().unwrap());
            assert!(accepted.keepalive().unwrap());
            assert_eq!(
                accepted.tcp_keepalive_time().unwrap(),
                limits::KEEPALIVE_IDLE
            );
        }
    }

    #[test]
    fn peers_on_a_unix_socket_have_no_address() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, _file) = listen_unix(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let (accepted, peer) = accept(&OwnedFd::from(listener).into()).unwrap();
        assert!(peer.as_socket().is_none());
        assert!(is_nonblocking_and_cloexec(&accepted));
    }

    #[test]
    fn any_v6_means_any_address_unless_v4_is_listed_too() {
        let any_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80));
        let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80));
        let other_port = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 81));
        assert!(!needs_only_v6(any_v6, &[any_v6, other_port]));
        assert!(needs_only_v6(any_v6, &[any_v4, any_v6]));
        assert!(needs_only_v6(
            SocketAddr::from((Ipv6Addr::LOCALHOST, 80)),
            &[]
        ));
    }

    #[test]
    fn a_unix_socket_is_for_owner_and_group_and_goes_with_its_guard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, file) = listen_unix(&path).unwrap();
        assert!(is_nonblocking_and_cloexec(&listener));
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, limits::UNIX_SOCKET_MODE);
        UnixStream::connect(&path).unwrap();
        let address = Listener::Unix(listener).address().unwrap();
        assert_eq!(address, format!("unix:{}", path.display()));
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (dead, file) = listen_unix(&path).unwrap();
        std::mem::forget(file);
        drop(dead);
        assert!(path.exists(), "as after SIGKILL");

        let (_living, file) = listen_unix(&path).unwrap();
        let error = listen_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("already running"));
        UnixStream::connect(&path).unwrap();

        // The file of another daemon in the same place survives this one's end.
        fs::remove_file(&path).unwrap();
        let (_other, _other_file) = listen_unix(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = listen_unix(&path).unwrap_err();
        assert!(error.to_string().contains("is not a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "data");
    }

    #[test]
    fn only_listening_stream_sockets_are_taken_over() {
        let check = |descriptor: OwnedFd| Listener::from_descriptor(descriptor);
        let tcp = TcpListener::bind(localhost()).unwrap();
        let Ok(Listener::Tcp(tcp)) = check(tcp.into()) else {
            panic!("a TCP listener is one");
        };
        assert!(is_nonblocking_and_cloexec(&tcp));

        let folder = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(folder.path().join("socket")).unwrap();
        assert!(matches!(check(unix.into()), Ok(Listener::Unix(_))));

        let error = |descriptor| check(descriptor).unwrap_err().to_string();
        let udp = UdpSocket::bind(localhost()).unwrap();
        assert!(error(udp.into()).contains("not a stream socket"));
        let (connected, _peer) = UnixStream::pair().unwrap();
        assert!(error(connected.into()).contains("not listening"));
        let file = tempfile::tempfile().unwrap();
        assert!(error(file.into()).contains("not a socket"));
    }
}
