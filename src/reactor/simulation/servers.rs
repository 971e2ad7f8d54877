//! The servers that a simulated daemon connects to, and the names that lead to them.
//!
//! The last number of an address decides how its server behaves ([`Manner`]); the dice decide when,
//! and in which pieces. A server's response holds the target of its request, so that a response to
//! another request is noticed.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::system::{Network, Wire};
use crate::core::output::OutputQueue;
use crate::core::pool::BufferPool;
use crate::limits::tls as tls_limits;
use crate::os::names::NoAddress;
use crate::tls::{Session, testing};

/// Sockets that one reactor of a simulated daemon may open: fewer than there are fetches.
pub const SOCKETS_MOST: usize = 8;

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It responds to each request, in one form or another, and keeps the connection.
    Good,
    /// It closes the connection behind each response.
    Closing,
    /// Nothing listens there.
    Refusing,
    /// No packet comes back from there.
    Silent,
    /// It accepts, reads, and does not respond.
    Mute,
    /// It resets or half-closes connections at any time.
    Broken,
    /// It sends something other than HTTP.
    Nonsense,
}

const MANNERS: [Manner; 7] = [
    Manner::Good,
    Manner::Closing,
    Manner::Refusing,
    Manner::Silent,
    Manner::Mute,
    Manner::Broken,
    Manner::Nonsense,
];

impl Manner {
    pub fn address(self) -> IpAddr {
        [8, 0, 0, self as u8].into()
    }

    fn of(address: IpAddr) -> Manner {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        MANNERS[usize::from(last) % MANNERS.len()]
    }
}

/// The names of the simulated world. Of `localhost` the tests have a certificate.
pub const NAMES: [&str; 12] = [
    "good.test",
    "localhost",
    "closing.test",
    "refusing.test",
    "silent.test",
    "mute.test",
    "broken.test",
    "nonsense.test",
    "second.test",
    "families.test",
    "private.test",
    "unknown.test",
];

/// Resolves them.
pub fn look_up(name: &str) -> Result<Vec<IpAddr>, NoAddress> {
    let one = |manner: Manner| Ok(vec![manner.address()]);
    let broken_v6: IpAddr = [0x2600, 0, 0, 0, 0, 0, 0, Manner::Silent as u16].into();
    match name {
        "good.test" | "localhost" => one(Manner::Good),
        "closing.test" => one(Manner::Closing),
        "refusing.test" => one(Manner::Refusing),
        "silent.test" => one(Manner::Silent),
        "mute.test" => one(Manner::Mute),
        "broken.test" => one(Manner::Broken),
        "nonsense.test" => one(Manner::Nonsense),
        "second.test" => Ok([Manner::Refusing, Manner::Good]
            .map(Manner::address)
            .to_vec()),
        "families.test" => Ok(vec![broken_v6, Manner::Good.address()]),
        // The private one must never be tried, whatever stands beside it.
        "private.test" => Ok(vec![[10, 0, 0, 1].into(), [169, 254, 169, 254].into()]),
        _ => Err(NoAddress::NotFound),
    }
}

/// All servers: one for each connection.
#[derive(Default)]
pub struct Servers {
    by_wire: HashMap<usize, Server>,
    /// Connections that have been looked at.
    known: usize,
}

struct Server {
    manner: Manner,
    tls: Option<Box<Session>>,
    pool: BufferPool,
    received: Vec<u8>,
    unsent: Vec<u8>,
    closes: bool,
}

impl Servers {
    /// Lets each server do one thing, or nothing.
    pub fn step(&mut self, network: &mut Network) {
        for &(wire, address) in &network.dialled[self.known..] {
            assert_public(address);
            let is_tls = address.port() == 443;
            let session = is_tls.then(|| Session::new(&testing::acceptor()).expect("a session"));
            let server = Server {
                manner: Manner::of(address.ip()),
                tls: session,
                pool: BufferPool::default(),
                received: Vec::new(),
                unsent: Vec::new(),
                closes: false,
            };
            self.by_wire.insert(wire, server);
        }
        self.known = network.dialled.len();
        for index in 0..network.dialled.len() {
            let wire = network.dialled[index].0;
            let is_over = network.wires[wire].closed || network.wires[wire].reset;
            if is_over || (!network.calm && network.dice.one_in(3)) {
                continue;
            }
            let server = self.by_wire.get_mut(&wire).expect("each has a server");
            server.step(wire, network);
        }
    }
}

/// No test allows another network.
fn assert_public(address: SocketAddr) {
    let is_special = match address.ip() {
        IpAddr::V4(address) => address.is_private() || address.is_link_local(),
        IpAddr::V6(_) => false,
    };
    assert!(!is_special, "{address} must not be connected to");
}

impl Server {
    fn step(&mut self, index: usize, network: &mut Network) {
        if network.wires[index].is_connecting() {
            return self.accept(index, network);
        }
        let (calm, chance) = (network.calm, network.dice.below(40));
        let most = if calm {
            1 << 16
        } else {
            network.dice.below(400) as usize
        };
        let chunk = if calm {
            1 << 16
        } else {
            network.dice.below(100) as usize + 1
        };
        let wire = &mut network.wires[index];
        match self.manner {
            Manner::Broken if chance == 0 => return wire.client_resets(),
            Manner::Broken if chance == 1 && !wire.client_fin => wire.client_half_closes(),
            Manner::Nonsense if !wire.client_fin => {
                wire.client_sends(b"SSH-2.0-OpenSSH_9.2\r\n");
                return wire.client_half_closes();
            }
            _ => {}
        }
        let bytes = wire.client_reads(most);
        self.receive(&bytes);
        while let Some(target) = take_request(&mut self.received) {
            self.respond(&target, chance);
        }
        self.send(chunk, wire);
    }

    fn accept(&mut self, index: usize, network: &mut Network) {
        let (calm, chance) = (network.calm, network.dice.below(30));
        let wire = &mut network.wires[index];
        match self.manner {
            Manner::Silent if calm || chance > 0 => {}
            Manner::Silent => wire.server_fails(libc::ETIMEDOUT),
            Manner::Refusing => wire.server_fails(libc::ECONNREFUSED),
            _ if calm || chance < 15 => wire.server_accepts(),
            _ => {}
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let Some(session) = &mut self.tls else {
            return self.received.extend_from_slice(bytes);
        };
        for piece in bytes.chunks(tls_limits::READ_BYTES_MAX) {
            let mut plaintext = vec![0; 2 * tls_limits::READ_BYTES_MAX];
            let mut ciphertext = piece.to_vec();
            let received = session.handle_input(&mut ciphertext, &mut plaintext, &mut self.pool);
            // A client that ends in the middle of its handshake sends an alert.
            if let Ok(received) = received {
                self.received
                    .extend_from_slice(&plaintext[..received.plaintext]);
            }
        }
    }

    /// Responds with the request's target as the body, in one of the forms that HTTP has.
    fn respond(&mut self, target: &str, chance: u64) {
        if self.manner == Manner::Mute || self.closes {
            return;
        }
        let length = target.len();
        self.closes = self.manner == Manner::Closing;
        let connection = if self.closes {
            "connection: close\r\n"
        } else {
            ""
        };
        let text = match chance % 5 {
            0 if self.closes => format!("HTTP/1.1 200 OK\r\n{connection}\r\n{target}"),
            0 | 1 => format!(
                "HTTP/1.1 200 OK\r\n{connection}transfer-encoding: chunked\r\n\r\n\
                 {length:x}\r\n{target}\r\n0\r\n\r\n"
            ),
            2 => format!(
                "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
                 HTTP/1.1 500 Oh\r\n{connection}content-length: {length}\r\n\r\n{target}"
            ),
            _ => format!("HTTP/1.1 200 OK\r\n{connection}content-length: {length}\r\n\r\n{target}"),
        };
        self.unsent.extend_from_slice(text.as_bytes());
    }

    fn send(&mut self, chunk: usize, wire: &mut Wire) {
        let has_all = self.unsent.len() <= chunk;
        let plaintext: Vec<u8> = self.unsent.drain(..chunk.min(self.unsent.len())).collect();
        match &mut self.tls {
            None => {
                if !plaintext.is_empty() && !wire.client_fin {
                    wire.client_sends(&plaintext);
                }
            }
            Some(session) => {
                let mut output = OutputQueue::new();
                if !plaintext.is_empty() {
                    output.tail(&mut self.pool).extend_from_slice(&plaintext);
                }
                session.encrypt(&mut output, &mut self.pool);
                if has_all && self.closes {
                    session.close(&mut self.pool);
                }
                output.clear(&mut self.pool);
                flush(session.queue_mut(), &mut self.pool, wire);
            }
        }
        if has_all && self.closes && !wire.client_fin {
            wire.client_half_closes();
        }
    }
}

fn flush(queue: &mut OutputQueue, pool: &mut BufferPool, wire: &mut Wire) {
    while !queue.is_empty() {
        let mut slices = [io::IoSlice::new(&[]); 1];
        let count = queue.io_slices(&mut slices);
        let bytes: Vec<u8> = slices[..count]
            .iter()
            .flat_map(|it| it.iter().copied())
            .collect();
        if !wire.client_fin {
            wire.client_sends(&bytes);
        }
        queue.advance(bytes.len(), pool);
    }
}

/// Removes the first whole request. Returns its target.
fn take_request(received: &mut Vec<u8>) -> Option<String> {
    let text = String::from_utf8_lossy(received).into_owned();
    let end = text.find("\r\n\r\n")? + 4;
    let length = text[..end]
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.map_or(0, |digits| digits.parse().expect("a number"));
    if received.len() < end + length {
        return None;
    }
    received.drain(..end + length);
    let target = text.split(' ').nth(1).expect("a request line has a target");
    Some(target.to_owned())
}
