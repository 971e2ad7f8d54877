//! Messages from the daemon to its service manager: `sd_notify(3)`.
//!
//! The texts come from the `sd-notify` crate. The socket is our own: the crate's socket blocks when
//! the manager is slow, which the loop that feeds the watchdog must not do, and the crate does not
//! support abstract addresses. The socket is never connected, so it still finds a manager that has
//! executed itself again.
//!
//! The manager's queue may be full at any moment: it holds about ten messages, and a busy manager
//! reads late. A lost `WATCHDOG=1` is followed by the next one. All other messages announce a
//! change that the manager must learn of, so they wait here until it has taken them:
//!
//! ```text
//!   ready, reloading, stopping, status, store ──> pending ── flush, each tick ──> the manager
//!   watchdog, extend_timeout ───────────────────── at once, or not at all ──────> the manager
//! ```
//!
//! Invariants:
//!  1. Pending messages are sent in the order in which they were queued.
//!  2. The latest state wins: a state replaces those that are still pending, except for the two of
//!     a reload, which the manager needs both of. This bounds the queue.
//!
//! Mutations that the tests below catch: `send` that does not keep what was refused
//! (`state_that_found_the_queue_full_...`), `supersede` that keeps everything
//! (`latest_state_wins_...`), or that drops RELOADING before READY (`both_states_of_a_reload_...`).
//!
//! Without `NOTIFY_SOCKET` every call succeeds and sends nothing.
//!
//! Call order: `ready` once the model is loaded; `reloading`, then `ready` again; `stopping` last.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::slice;
use std::time::Duration;

use sd_notify::NotifyState;
use socket2::{Domain, MsgHdr, SockAddr, Socket, Type};

use crate::limits::os as limits;

/// The connection to the service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    manager: Option<Manager>,
    watchdog_timeout: Option<Duration>,
    /// Messages that the manager must learn of and has not taken yet.
    pending: VecDeque<Pending>,
}

#[derive(Debug)]
struct Manager {
    socket: Socket,
    address: SockAddr,
}

#[derive(Debug)]
enum Pending {
    State(Kind, String),
    /// A listening socket for the manager to keep.
    Store {
        text: String,
        socket: OwnedFd,
    },
    /// A name under which the manager is to keep no socket any more.
    Remove {
        text: String,
    },
}

/// The subject of a state, which decides which pending states it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ready,
    Reloading,
    Stopping,
    Status,
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
            pending: VecDeque::new(),
        })
    }

    /// Returns whether there is a service manager.
    pub fn is_active(&self) -> bool {
        self.manager.is_some()
    }

    /// Returns how often to feed the watchdog: twice as often as required, as its manual
    /// recommends.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.manager.as_ref()?;
        self.watchdog_timeout.map(|timeout| timeout / 2)
    }

    /// Reports that the daemon serves. Also ends a reload.
    pub fn ready(&mut self, status: &str) {
        let states = [NotifyState::Ready, NotifyState::Status(&one_line(status))];
        self.tell(Kind::Ready, &states);
    }

    /// Reports that a reload begins. The time stamp distinguishes it from an earlier reload.
    pub fn reloading(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(Kind::Reloading, &[NotifyState::Reloading, now]),
            Err(error) => log::error!("cannot read the clock: {error}"),
        }
    }

    /// Reports that the drain begins.
    pub fn stopping(&mut self, status: &str) {
        let status = one_line(status);
        let states = [NotifyState::Stopping, NotifyState::Status(&status)];
        self.tell(Kind::Stopping, &states);
    }

    /// Sends one line for `systemctl status`.
    pub fn status(&mut self, status: &str) {
        self.tell(Kind::Status, &[NotifyState::Status(&one_line(status))]);
    }

    /// Reports that the loop runs. If the manager's queue is full, the next call will do.
    pub fn watchdog(&self) -> io::Result<()> {
        self.send(&text_of(&[NotifyState::Watchdog]))
    }

    /// Reports that the start takes longer than expected, for example because of a download.
    pub fn extend_timeout(&self, duration: Duration) -> io::Result<()> {
        let microseconds = u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        self.send(&text_of(&[NotifyState::ExtendTimeoutUsec(microseconds)]))
    }

    /// Asks the manager to keep a listening socket over a restart (`FileDescriptorStoreMax=`). The
    /// next process inherits it under `name`.
    pub fn store(&mut self, name: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
        if self.manager.is_none() {
            return Ok(());
        }
        check_name(name)?;
        let text = format!("FDSTORE=1\nFDNAME={name}\n");
        let socket = socket.try_clone_to_owned()?;
        self.push(Pending::Store { text, socket });
        Ok(())
    }

    /// Asks the manager to close the sockets that it keeps under this name.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        check_name(name)?;
        let text = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
        self.push(Pending::Remove { text });
        Ok(())
    }

    /// Returns whether there are messages that the manager has not taken yet.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Sends pending messages until the manager takes no more.
    pub fn flush(&mut self) {
        while let Some(first) = self.pending.front() {
            let sent = match first {
                Pending::State(_, text) | Pending::Remove { text } => self.send(text),
                Pending::Store { text, socket } => self.send_socket(text, socket.as_fd()),
            };
            if let Err(error) = sent {
                // A full queue empties, and a manager that is away comes back.
                return log::debug!("cannot notify the service manager yet: {error}");
            }
            self.pending.pop_front();
        }
    }

    fn tell(&mut self, kind: Kind, states: &[NotifyState<'_>]) {
        self.supersede(kind);
        self.push(Pending::State(kind, text_of(states)));
    }

    /// Drops the pending states that a state of this kind makes obsolete.
    fn supersede(&mut self, kind: Kind) {
        self.pending.retain(|pending| match pending {
            Pending::Store { .. } | Pending::Remove { .. } => true,
            // A reload consists of two states; a line of status replaces neither.
            Pending::State(earlier, _) => match kind {
                Kind::Stopping | Kind::Reloading => false,
                Kind::Ready => *earlier == Kind::Reloading,
                Kind::Status => *earlier != Kind::Status,
            },
        });
    }

    fn push(&mut self, pending: Pending) {
        if self.manager.is_some() {
            self.pending.push_back(pending);
            self.flush();
        }
    }

    fn send(&self, text: &str) -> io::Result<()> {
        if let Some(manager) = &self.manager {
            manager.socket.send_to(text.as_bytes(), &manager.address)?;
        }
        Ok(())
    }

    fn send_socket(&self, text: &str, socket: BorrowedFd<'_>) -> io::Result<()> {
        match &self.manager {
            Some(manager) => manager.send_with_descriptor(text, socket),
            None => Ok(()),
        }
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
                let message =
                    format!("NOTIFY_SOCKET is {address:?}; expected an absolute path or @name");
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
        // SAFETY: the structure was zeroed or written in full and the compiler adds no padding (see
        // the assertion); the slice borrows it.
        unsafe { slice::from_raw_parts(start, size_of::<Rights>()) }
    }
}

/// Makes the status one line: a line feed would begin another assignment.
fn one_line(status: &str) -> String {
    let mut end = status.len().min(limits::NOTIFY_STATUS_BYTES_MAX);
    while !status.is_char_boundary(end) {
        end -= 1;
    }
    status[..end].replace(['\n', '\r'], " ")
}

fn text_of(states: &[NotifyState<'_>]) -> String {
    let mut text = String::new();
    for state in states {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{state}");
    }
    text
}

fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name.len() > 255 || !name.bytes().all(is_name_byte) {
        let message = format!(
            "{name:?} cannot name a descriptor; expected 1 to 255 printable ASCII characters \
             without ':'"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok(())
}

/// The characters that `sd_pid_notify_with_fds(3)` allows: printable, no colon.
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
        let mut notifier = Notifier::new(Some(path.as_os_str()), timeout).unwrap();
        assert!(notifier.is_active());
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(5)));

        notifier.ready("serving\nREADY=0");
        assert_eq!(receive(&manager), "READY=1\nSTATUS=serving READY=0\n");
        notifier.stopping("draining");
        assert_eq!(receive(&manager), "STOPPING=1\nSTATUS=draining\n");
        notifier.watchdog().unwrap();
        assert_eq!(receive(&manager), "WATCHDOG=1\n");
        notifier.extend_timeout(Duration::from_secs(3)).unwrap();
        assert_eq!(receive(&manager), "EXTEND_TIMEOUT_USEC=3000000\n");

        notifier.reloading();
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

    /// Returns a manager whose queue is full, and the notifier that has filled it.
    fn stalled() -> (tempfile::TempDir, UnixDatagram, Notifier) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::new(Some(path.as_os_str()), None).unwrap();
        while notifier.watchdog().is_ok() {}
        (folder, manager, notifier)
    }

    /// Reads all the manager's messages until neither side has more, leaving out the watchdog's.
    fn read_all(manager: &UnixDatagram, notifier: &mut Notifier) -> Vec<String> {
        let mut messages = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            notifier.flush();
            let Ok(length) = manager.recv(&mut buffer) else {
                return messages;
            };
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if text != "WATCHDOG=1\n" {
                messages.push(text);
            }
        }
    }

    #[test]
    fn state_that_found_the_queue_full_is_sent_when_there_is_room() {
        let (_folder, manager, mut notifier) = stalled();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        notifier.store("http", listener.as_fd()).unwrap();
        notifier.ready("serving");
        assert!(notifier.has_pending());
        let expected = ["FDSTORE=1\nFDNAME=http\n", "READY=1\nSTATUS=serving\n"];
        assert_eq!(read_all(&manager, &mut notifier), expected);
        assert!(!notifier.has_pending());
    }

    #[test]
    fn latest_state_wins_and_what_waits_stays_bounded() {
        let (_folder, manager, mut notifier) = stalled();
        for round in 0..100 {
            notifier.status(&format!("round {round}"));
            notifier.ready(&format!("round {round}"));
        }
        notifier.status("last");
        assert!(notifier.pending.len() <= 2, "{:?}", notifier.pending);
        let expected = ["READY=1\nSTATUS=round 99\n", "STATUS=last\n"];
        assert_eq!(read_all(&manager, &mut notifier), expected);

        let (_folder, manager, mut notifier) = stalled();
        notifier.ready("serving");
        notifier.stopping("draining");
        let expected = ["STOPPING=1\nSTATUS=draining\n"];
        assert_eq!(read_all(&manager, &mut notifier), expected);
    }

    #[test]
    fn both_states_of_a_reload_are_sent_however_late() {
        let (_folder, manager, mut notifier) = stalled();
        for _ in 0..3 {
            notifier.reloading();
            notifier.ready("serving");
        }
        let messages = read_all(&manager, &mut notifier);
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages[0].starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(messages[1], "READY=1\nSTATUS=serving\n");
    }

    #[test]
    fn status_is_cut_before_it_is_too_long_to_be_sent() {
        let text = one_line(&"ä".repeat(limits::NOTIFY_STATUS_BYTES_MAX));
        assert!(
            text.len() <= limits::NOTIFY_STATUS_BYTES_MAX
                && text.len() > limits::NOTIFY_STATUS_BYTES_MAX - 2
        );
    }

    #[test]
    fn an_abstract_address_works() {
        let name = format!("autoglmd-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let mut notifier = Notifier::new(Some(OsStr::new(&format!("@{name}"))), None).unwrap();
        notifier.status("loading");
        assert_eq!(receive(&manager), "STATUS=loading\n");
        assert_eq!(notifier.watchdog_interval(), None);
    }

    #[test]
    fn without_a_manager_everything_succeeds_and_nothing_happens() {
        let mut notifier = Notifier::new(None, Some(Duration::from_secs(1))).unwrap();
        assert!(!notifier.is_active());
        assert_eq!(notifier.watchdog_interval(), None);
        notifier.ready("x");
        notifier.reloading();
        let (socket, _peer) = UnixDatagram::pair().unwrap();
        notifier.store("name", socket.as_fd()).unwrap();
        assert!(Notifier::new(Some(OsStr::new("vsock:2:1")), None).is_err());
    }

    #[test]
    fn a_stored_descriptor_is_the_same_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut notifier = Notifier::new(Some(path.as_os_str()), None).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(notifier.store("a:b", listener.as_fd()).is_err());
        notifier.store("http", listener.as_fd()).unwrap();

        let (text, received) = receive_with_descriptor(&manager);
        assert_eq!(text, "FDSTORE=1\nFDNAME=http\n");
        assert_eq!(
            received.local_addr().unwrap(),
            listener.local_addr().unwrap()
        );
        notifier.remove("http").unwrap();
        assert_eq!(receive(&manager), "FDSTOREREMOVE=1\nFDNAME=http\n");
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
        // which was zeroed before, and has created the descriptor for us.
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
