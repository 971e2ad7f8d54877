//! What the daemon tells its service manager: `sd_notify(3)`.
//!
//! The words come from the `sd-notify` crate. The socket is our own, since the crate's blocks when
//! the manager is slow, and the loop that feeds the watchdog must not; it knows no abstract address
//! either. The socket is never connected, so a manager that executes itself anew is found again.
//!
//! Without `NOTIFY_SOCKET` every message is a success that goes nowhere.
//!
//! Call order: `ready` once the model is loaded; `reloading`, then `ready` again; `stopping` last.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::slice;
use std::time::Duration;

use sd_notify::NotifyState;
use socket2::{Domain, MsgHdr, SockAddr, Socket, Type};

/// A line to the service manager, or to nobody.
#[derive(Debug)]
pub struct Notifier {
    manager: Option<Manager>,
    watchdog_timeout: Option<Duration>,
}

#[derive(Debug)]
struct Manager {
    socket: Socket,
    address: SockAddr,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_environment() -> io::Result<Notifier> {
        let address = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty());
        Notifier::new(address.as_deref(), sd_notify::watchdog_enabled())
    }

    /// `address`: a path, or a name in the abstract namespace after `@`.
    pub fn new(
        address: Option<&OsStr>,
        watchdog_timeout: Option<Duration>,
    ) -> io::Result<Notifier> {
        let manager = address.map(Manager::new).transpose()?;
        Ok(Notifier {
            manager,
            watchdog_timeout,
        })
    }

    /// Whether there is a service manager.
    pub fn is_active(&self) -> bool {
        self.manager.is_some()
    }

    /// How often the watchdog wants to be fed: twice as often as it must, as its manual asks for.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.manager.as_ref()?;
        self.watchdog_timeout.map(|timeout| timeout / 2)
    }

    /// The daemon serves; also ends a reload.
    pub fn ready(&self, status: &str) -> io::Result<()> {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))])
    }

    /// A reload begins. The time stamp lets the manager tell this reload from an earlier one.
    pub fn reloading(&self) -> io::Result<()> {
        self.send(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
    }

    /// The drain begins.
    pub fn stopping(&self, status: &str) -> io::Result<()> {
        self.send(&[
            NotifyState::Stopping,
            NotifyState::Status(&one_line(status)),
        ])
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.send(&[NotifyState::Status(&one_line(status))])
    }

    /// The loop turns. If the manager's queue is full, the next one will do.
    pub fn watchdog(&self) -> io::Result<()> {
        self.send(&[NotifyState::Watchdog])
    }

    /// The start takes longer than expected, such as for a download.
    pub fn extend_timeout(&self, duration: Duration) -> io::Result<()> {
        let microseconds = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::ExtendTimeoutUsec(microseconds)])
    }

    /// Has the manager keep a listening socket over a restart (`FileDescriptorStoreMax=`); it comes
    /// back under `name` as an inherited one.
    pub fn store(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let Some(manager) = &self.manager else {
            return Ok(());
        };
        if name.is_empty() || name.len() > 255 || !name.bytes().all(is_name_byte) {
            let message = format!("{name:?} cannot name a descriptor");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let text = format!("FDSTORE=1\nFDNAME={name}\n");
        manager.send_with_descriptor(&text, descriptor)
    }

    fn send(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let Some(manager) = &self.manager else {
            return Ok(());
        };
        let mut text = String::new();
        for state in states {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{state}");
        }
        manager.socket.send_to(text.as_bytes(), &manager.address)?;
        Ok(())
    }
}

impl Manager {
    fn new(address: &OsStr) -> io::Result<Manager> {
        let mut path: OsString = address.to_owned();
        match address.as_bytes().first() {
            Some(b'/') => {}
            Some(b'@') => {
                // unix(7): an abstract name begins with a zero byte.
                let mut bytes = path.into_vec();
                bytes[0] = 0;
                path = OsString::from_vec(bytes);
            }
            _ => {
                let message = format!("NOTIFY_SOCKET is {address:?}, neither a path nor @name");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(Manager {
            socket,
            address: SockAddr::unix(path)?,
        })
    }

    fn send_with_descriptor(&self, text: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let rights = Rights::new(descriptor.as_fd());
        let buffers = [IoSlice::new(text.as_bytes())];
        let message = MsgHdr::new()
            .with_addr(&self.address)
            .with_buffers(&buffers)
            .with_control(rights.as_bytes());
        self.socket.sendmsg(&message, libc::MSG_NOSIGNAL)?;
        Ok(())
    }
}

/// A control message that passes one descriptor (`SCM_RIGHTS`, unix(7)), as it lies in memory.
#[repr(C)]
struct Rights {
    header: libc::cmsghdr,
    descriptor: RawFd,
    /// Fills the structure up to the header's alignment, so that no byte of it is undefined.
    padding: [u8; 4],
}

const _: () = assert!(size_of::<Rights>() == size_of::<libc::cmsghdr>() + 8);

impl Rights {
    fn new(descriptor: BorrowedFd<'_>) -> Rights {
        // SAFETY: all zeros is a valid header.
        let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
        let length = size_of::<libc::cmsghdr>() + size_of::<RawFd>();
        // The field's type differs between C libraries; 20 fits all of them.
        header.cmsg_len = length as _;
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        Rights {
            header,
            descriptor: descriptor.as_raw_fd(),
            padding: [0; 4],
        }
    }

    fn as_bytes(&self) -> &[u8] {
        let start = (&raw const *self).cast::<u8>();
        // SAFETY: the structure was zeroed or written in full and has no padding of the compiler's
        // (see the assertion), and the slice borrows it.
        unsafe { slice::from_raw_parts(start, size_of::<Rights>()) }
    }
}

/// A status of one line: a line feed would begin another assignment.
fn one_line(status: &str) -> String {
    status.replace(['\n', '\r'], " ")
}

/// As `sd_pid_notify_with_fds(3)` has it: printable, no colon.
const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b':'
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::MaybeUninit;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    fn receive(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn states_arrive_in_the_managers_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let timeout = Some(Duration::from_secs(10));
        let notifier = Notifier::new(Some(path.as_os_str()), timeout).unwrap();
        assert!(notifier.is_active());
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(5)));

        notifier.ready("serving\nREADY=0").unwrap();
        assert_eq!(receive(&manager), "READY=1\nSTATUS=serving READY=0\n");
        notifier.stopping("draining").unwrap();
        assert_eq!(receive(&manager), "STOPPING=1\nSTATUS=draining\n");
        notifier.watchdog().unwrap();
        assert_eq!(receive(&manager), "WATCHDOG=1\n");
        notifier.extend_timeout(Duration::from_secs(3)).unwrap();
        assert_eq!(receive(&manager), "EXTEND_TIMEOUT_USEC=3000000\n");

        notifier.reloading().unwrap();
        let text = receive(&manager);
        let stamp = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(stamp.trim_end().parse::<u64>().unwrap() > 0);
    }

    #[test]
    fn a_manager_that_does_not_read_never_blocks_the_loop() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.as_os_str()), None).unwrap();
        let mut sent = 0;
        // Bounded by `net.unix.max_dgram_qlen` or the send buffer.
        let error = loop {
            match notifier.watchdog() {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent < 1_000_000);
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        receive(&manager);
        notifier.watchdog().unwrap();
    }

    #[test]
    fn an_abstract_address_works() {
        let name = format!("autoglmd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))), None).unwrap();
        notifier.status("loading").unwrap();
        assert_eq!(receive(&manager), "STATUS=loading\n");
        assert_eq!(notifier.watchdog_interval(), None);
    }

    #[test]
    fn without_a_manager_everything_succeeds_and_nothing_happens() {
        let notifier = Notifier::new(None, Some(Duration::from_secs(1))).unwrap();
        assert!(!notifier.is_active());
        assert_eq!(notifier.watchdog_interval(), None);
        notifier.ready("x").unwrap();
        notifier.reloading().unwrap();
        let (socket, _peer) = UnixDatagram::pair().unwrap();
        notifier.store("name", socket.as_fd()).unwrap();
        assert!(Notifier::new(Some(OsStr::new("vsock:2:1")), None).is_err());
    }

    #[test]
    fn a_stored_descriptor_is_the_same_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.as_os_str()), None).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(notifier.store("a:b", listener.as_fd()).is_err());
        notifier.store("http", listener.as_fd()).unwrap();

        let (text, received) = receive_with_descriptor(&manager);
        assert_eq!(text, "FDSTORE=1\nFDNAME=http\n");
        assert_eq!(
            received.local_addr().unwrap(),
            listener.local_addr().unwrap()
        );
    }

    fn receive_with_descriptor(manager: &UnixDatagram) -> (String, std::net::TcpListener) {
        use socket2::{MaybeUninitSlice, MsgHdrMut, SockRef};
        use std::os::fd::{FromRawFd, OwnedFd};

        let mut text = [MaybeUninit::<u8>::uninit(); 64];
        let mut control = [MaybeUninit::<u8>::zeroed(); size_of::<Rights>()];
        let mut buffers = [MaybeUninitSlice::new(&mut text)];
        let mut message = MsgHdrMut::new()
            .with_buffers(&mut buffers)
            .with_control(&mut control);
        let length = SockRef::from(manager).recvmsg(&mut message, 0).unwrap();
        assert_eq!(message.control_len(), size_of::<Rights>());
        // SAFETY: the kernel has filled `length` bytes of the text and the whole control message,
        // which was zeroed before, and has made the descriptor for us.
        let (text, descriptor) = unsafe {
            let text = text[..length]
                .iter()
                .map(|byte| byte.assume_init())
                .collect();
            let rights = control.as_ptr().cast::<Rights>().read_unaligned();
            (text, OwnedFd::from_raw_fd(rights.descriptor))
        };
        (String::from_utf8(text).unwrap(), descriptor.into())
    }
}
