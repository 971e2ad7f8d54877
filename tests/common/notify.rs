//! The service manager's side of `sd_notify(3)`: a datagram socket that collects messages.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use super::PATIENCE;

pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

/// One datagram: `KEY=VALUE` lines.
#[derive(Clone, Debug)]
pub struct Message(String);

impl Manager {
    pub fn new(folder: &Path) -> Manager {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a fresh folder");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("the timeout is not zero");
        Manager { socket, path }
    }

    /// What `NOTIFY_SOCKET` must be.
    pub fn address(&self) -> &str {
        self.path
            .to_str()
            .expect("temporary folders have plain names")
    }

    /// Reads messages until one holds this key, and returns that one.
    #[track_caller]
    pub fn wait_for(&self, key: &str) -> Message {
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = match self.socket.recv(&mut buffer) {
                Ok(count) => count,
                Err(error) => panic!("no {key} from the daemon ({error}), only {seen:?}"),
            };
            let message = Message(String::from_utf8_lossy(&buffer[..count]).into_owned());
            if message.value(key).is_some() {
                return message;
            }
            seen.push(message);
        }
    }
}

impl Message {
    pub fn value(&self, key: &str) -> Option<&str> {
        let mut pairs = self.0.lines().filter_map(|line| line.split_once('='));
        pairs
            .find(|(known, _)| *known == key)
            .map(|(_, value)| value)
    }
}
