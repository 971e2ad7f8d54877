//! An attacker's connection: sends as fast as the daemon takes it, and discards what comes back.
//!
//! Owns one socket, in clear text or under TLS. It never waits for a response while it has bytes to
//! send, because a client that does is held back by its own manners.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection};
use socket2::SockRef;

use crate::common::http2::frame::{Frame, HEAD_BYTES, flag, kind};

/// An attacker gives a connection up when the daemon does not react for this long.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Line {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    frames: Frames,
    buffer: Vec<u8>,
}

/// Finds the acknowledged PINGs in a stream of frames, without keeping their payloads.
#[derive(Default)]
struct Frames {
    head: Vec<u8>,
    payload_left: usize,
    pongs: u64,
}

impl Frames {
    fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.payload_left.min(bytes.len());
            self.payload_left -= skipped;
            bytes = &bytes[skipped..];
            let wanted = HEAD_BYTES - self.head.len();
            if self.payload_left > 0 || bytes.is_empty() {
                return;
            }
            let taken = wanted.min(bytes.len());
            self.head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if let &[high, middle, low, kind, flags, ..] = &self.head[..]
                && self.head.len() == HEAD_BYTES
            {
                self.payload_left = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.pongs += u64::from(kind == kind::PING && flags & flag::ACK != 0);
                self.head.clear();
            }
        }
    }
}

impl Line {
    pub fn open(
        address: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
        protocol: &str,
    ) -> io::Result<Line> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let tls = tls.map(|config| {
            let mut config = ClientConfig::clone(config);
            config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
            let name = "localhost".try_into().expect("a name");
            Box::new(ClientConnection::new(Arc::new(config), name).expect("a configuration"))
        });
        let mut line = Line {
            socket,
            tls,
            frames: Frames::default(),
            buffer: vec![0; 64 * 1024],
        };
        while line.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            let sent = line.flush()?;
            let received = line.discard()?;
            if !sent && !received {
                line.wait(PATIENCE)?;
            }
        }
        Ok(line)
    }

    /// Closes with a reset: nothing lingers in the kernel on either side.
    pub fn abort(self) {
        // Fails only for a socket that is closed already.
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }

    /// Sends all of it, and discards what comes meanwhile.
    pub fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let (mut moved, has_more) = match &mut self.tls {
                None => {
                    let taken = count(self.socket.write(bytes))?;
                    bytes = &bytes[taken..];
                    (taken > 0, !bytes.is_empty())
                }
                Some(tls) => {
                    let taken = tls.writer().write(bytes)?;
                    bytes = &bytes[taken..];
                    let flushed = self.flush()?;
                    let is_pending = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
                    (flushed, !bytes.is_empty() || is_pending)
                }
            };
            moved |= self.discard()?;
            if !has_more {
                return Ok(());
            }
            if !moved {
                self.wait(give_up.saturating_duration_since(Instant::now()))?;
            }
        }
    }

    /// Sends frames and a PING, and waits for its acknowledgement: all of them have been handled
    /// then, and the windows that they used are granted.
    pub fn round(&mut self, frames: &[u8]) -> io::Result<()> {
        let awaited = self.frames.pongs + 1;
        self.send(frames)?;
        self.send(&Frame::new(kind::PING, 0, 0, [7; 8]).encode())?;
        let give_up = Instant::now() + PATIENCE;
        while self.frames.pongs < awaited {
            if !self.discard()? {
                self.wait(give_up.saturating_duration_since(Instant::now()))?;
            }
        }
        Ok(())
    }

    /// Discards what comes for this long. `Err` once the daemon has closed the connection.
    pub fn rest(&mut self, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if !self.discard()? {
                poll(&self.socket, libc::POLLIN, left)?;
            }
        }
    }

    /// Reads what has come. Returns whether that was anything; the end is an error.
    fn discard(&mut self) -> io::Result<bool> {
        let mut any = false;
        loop {
            let received = match &mut self.tls {
                None => self.socket.read(&mut self.buffer),
                Some(tls) => tls.read_tls(&mut self.socket),
            };
            match received {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    any = true;
                    let count = match &mut self.tls {
                        None => count,
                        Some(tls) => {
                            tls.process_new_packets().map_err(io::Error::other)?;
                            count_of(tls.reader().read(&mut self.buffer))?
                        }
                    };
                    self.frames.read(&self.buffer[..count]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(any),
                Err(error) => return Err(error),
            }
        }
    }

    fn flush(&mut self) -> io::Result<bool> {
        let mut any = false;
        while let Some(tls) = self.tls.as_mut().filter(|tls| tls.wants_write()) {
            match tls.write_tls(&mut self.socket) {
                Ok(_) => any = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(any),
                Err(error) => return Err(error),
            }
        }
        Ok(any)
    }

    fn wait(&self, time: Duration) -> io::Result<()> {
        let is_pending = self.tls.as_ref().is_none_or(|tls| tls.wants_write());
        let events = match is_pending {
            true => libc::POLLIN | libc::POLLOUT,
            false => libc::POLLIN,
        };
        match poll(&self.socket, events, time)? {
            true => Ok(()),
            false => Err(ErrorKind::TimedOut.into()),
        }
    }
}

/// A read that would wait has read nothing.
fn count_of(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

/// A write that would wait has written nothing.
fn count(result: io::Result<usize>) -> io::Result<usize> {
    count_of(result)
}

/// Waits until one of these events comes, and returns whether one has.
fn poll(socket: &TcpStream, events: i16, time: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd {
        fd: socket.as_raw_fd(),
        events,
        revents: 0,
    };
    let time_ms = i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1);
    // SAFETY: `entry` is one valid entry and outlives the call.
    match unsafe { libc::poll(&raw mut entry, 1, time_ms) } {
        -1 => Err(io::Error::last_os_error()),
        count => Ok(count > 0),
    }
}
