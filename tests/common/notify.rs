//! The service manager's side of `sd_notify(3)`: a datagram socket that collects messages, and the
//! sockets that come with some of them.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use socket2::{MaybeUninitSlice, MsgHdrMut, SockRef};

use super::PATIENCE;

pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

/// One datagram: `KEY=VALUE` lines, and the listener that came with a `FDSTORE=1`.
#[derive(Debug)]
pub struct Message {
    text: String,
    pub listener: Option<TcpListener>,
}

/// A control message that passes one descriptor (unix(7)), as it lies in memory.
#[repr(C)]
struct Rights {
    header: libc::cmsghdr,
    descriptor: RawFd,
}

impl Manager {
    pub fn new(folder: &Path) -> Manager {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a fresh folder");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("the timeout is not zero");
        Manager { socket, path }
    }

    /// Returns the value for `NOTIFY_SOCKET`.
    pub fn address(&self) -> &str {
        self.path
            .to_str()
            .expect("temporary folders have plain names")
    }

    /// Reads messages until one contains this key, and returns that one.
    #[track_caller]
    pub fn wait_for(&self, key: &str) -> Message {
        self.wait_and_count(key, "").0
    }

    /// Like `wait_for`, and returns how many messages before it contain the `other` key.
    #[track_caller]
    pub fn wait_and_count(&self, key: &str, other: &str) -> (Message, usize) {
        let mut seen = Vec::new();
        let mut count = 0;
        loop {
            let message = match self.receive() {
                Ok(message) => message,
                Err(error) => panic!("no {key} from the daemon ({error}), only {seen:?}"),
            };
            if message.value(key).is_some() {
                return (message, count);
            }
            count += usize::from(message.value(other).is_some());
            seen.push(message.text);
        }
    }

    /// Fills the queue, as if the manager were busy: the next message finds no room.
    pub fn fill(&self) {
        let socket = UnixDatagram::unbound().expect("a socket");
        socket.set_nonblocking(true).expect("it is a socket");
        loop {
            match socket.send_to(b"FILLER=1\n", &self.path) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("filling the queue: {error}"),
            }
        }
    }

    fn receive(&self) -> std::io::Result<Message> {
        let mut text = [MaybeUninit::<u8>::uninit(); 4096];
        let mut control = [MaybeUninit::<u8>::zeroed(); size_of::<Rights>()];
        let mut buffers = [MaybeUninitSlice::new(&mut text)];
        let mut header = MsgHdrMut::new()
            .with_buffers(&mut buffers)
            .with_control(&mut control);
        let count = SockRef::from(&self.socket).recvmsg(&mut header, 0)?;
        let has_descriptor = header.control_len() >= size_of::<libc::cmsghdr>() + 4;
        // SAFETY: the kernel has filled `count` bytes of the text.
        let bytes = text[..count]
            .iter()
            .map(|byte| unsafe { byte.assume_init() })
            .collect::<Vec<u8>>();
        let listener = has_descriptor.then(|| {
            // SAFETY: the control message was zeroed and then filled by the kernel, which has made
            // the descriptor for us.
            let descriptor = unsafe {
                let rights = control.as_ptr().cast::<Rights>().read_unaligned();
                OwnedFd::from_raw_fd(rights.descriptor)
            };
            TcpListener::from(descriptor)
        });
        Ok(Message {
            text: String::from_utf8_lossy(&bytes).into_owned(),
            listener,
        })
    }
}

impl Message {
    pub fn value(&self, key: &str) -> Option<&str> {
        let mut pairs = self.text.lines().filter_map(|line| line.split_once('='));
        pairs
            .find(|(known, _)| *known == key)
            .map(|(_, value)| value)
    }
}
