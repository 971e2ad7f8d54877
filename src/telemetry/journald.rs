//! The journal's socket: one datagram per entry (`systemd.io/JOURNAL_NATIVE_PROTOCOL`).
//!
//! Owns an unbound datagram socket that is never connected: a restarted journal binds a new socket
//! at the same path, and the next entry finds it. Lines are bounded (`limits::LOG_LINE_BYTES_MAX`),
//! so no entry needs the memory file that the protocol has for long ones.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Where systemd-journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// Fails at once if there is no journal, so that the operator sees why nothing is logged.
    pub(super) fn open(path: &Path) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path).map_err(|error| {
            let message = format!("cannot reach the journal at {}: {error}", path.display());
            io::Error::new(error.kind(), message)
        })?;
        Ok(Journal {
            // The first socket was only for the check: once connected, it would stay with the
            // present journal.
            socket: UnixDatagram::unbound()?,
            path: path.to_owned(),
        })
    }

    /// Sends one entry. May wait for the journal, so only the log's own thread may call it.
    pub(super) fn send(&self, entry: &[u8]) -> io::Result<()> {
        self.socket.send_to(entry, &self.path)?;
        Ok(())
    }
}
