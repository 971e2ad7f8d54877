//! The bus without a server: members find and watch each other by SWIM over UDP.
//!
//! Owns the socket and the thread. Datagrams are signed with a shared secret and count once
//! ([`seal`]); the protocol is in [`members`].
//!
//! The socket has a thread of its own and not a place in a reactor: a reactor that is held up for
//! a moment must not make its daemon look dead to the others, and a reactor needs none of the
//! notices, which go to the store's thread. There are a few datagrams per second.
//!
//! Invariants:
//!  1. A datagram that is not genuine costs one hash of at most [`limits::DATAGRAM_BYTES_MAX`] and
//!     nothing else.
//!  2. A round handles at most [`limits::DATAGRAMS_PER_ROUND_ITEMS`] of them before its timers.
//!
//! Mutation that the test below catches: notices of a command that reach one member alone.
//!
//! Mutation that `tests/bus.rs` catches: datagrams that are not opened
//! (`gossip_refuses_strangers_...`).

pub mod members;
pub mod seal;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use foca::Timer;

use super::metrics::BusSeries;
use super::{Invalidation, Notice, OnNotice};
use crate::config::{Bus, BusKind, CredentialPath};
use crate::core::UnixMillis;
use crate::limits::bus as limits;
use crate::os::file::read_up_to;
use crate::os::wait::wait_readable;
use members::{Dice, Member, Members, notice_payload};
use seal::{Opener, SealKey, Sealer};

/// The settings of a member.
#[derive(Clone)]
pub struct GossipSettings {
    /// The address at which the others reach this one.
    pub listen: SocketAddr,
    pub peers: Vec<SocketAddr>,
    pub key: SealKey,
}

impl GossipSettings {
    /// Returns the settings of the configuration; `None` if gossip is not its bus. `credentials` is
    /// `$CREDENTIALS_DIRECTORY`.
    pub fn of(config: &Bus, credentials: Option<&Path>) -> Result<Option<GossipSettings>, String> {
        let (BusKind::Gossip, Some(listen), Some(path)) =
            (config.kind, config.listen, &config.secret_file)
        else {
            return Ok(None);
        };
        let named = |what: String| format!("bus.secret_file: {what}");
        let path = CredentialPath(path).resolve(credentials).map_err(named)?;
        let read = read_up_to(&path, limits::SECRET_BYTES_MAX);
        let secret = read.map_err(|error| named(format!("{}: {error}", path.display())))?;
        let secret = secret.trim_ascii();
        if secret.len() < limits::SECRET_BYTES_MIN {
            let (path, least) = (path.display(), limits::SECRET_BYTES_MIN);
            return Err(named(format!(
                "{path} has less than {least} bytes; write a new secret into it on each machine \
                 (`openssl rand -base64 32`)"
            )));
        }
        Ok(Some(GossipSettings {
            listen,
            peers: config.peers.clone(),
            key: SealKey::new(secret),
        }))
    }
}

/// Publishes notices.
pub struct GossipBus {
    notices: Sender<Notice>,
    wake: PipeWriter,
    others: Arc<AtomicUsize>,
    /// With none it is alone by its configuration.
    has_peers: bool,
}

impl Invalidation for GossipBus {
    fn publish(&self, notice: &Notice) {
        // A full queue means a flood, and each daemon reads the store each second.
        if self.notices.try_send(notice.clone()).is_ok() {
            // A full pipe wakes the thread as well.
            let _ = (&self.wake).write(&[0]);
        }
    }

    fn is_connected(&self) -> bool {
        !self.has_peers || self.others.load(Ordering::Relaxed) > 0
    }
}

/// Publishes notices from a process that is not a member: a command.
pub fn publish(settings: &GossipSettings, notices: &[Notice]) -> io::Result<()> {
    let any: SocketAddr = match settings.listen {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    let mut sealer = Sealer::new(settings.key.clone(), random()?);
    for notice in notices {
        let payload = notice_payload(random_id()?, notice.to_text().as_bytes());
        for to in std::iter::once(&settings.listen).chain(&settings.peers) {
            let datagram = sealer.seal(&payload, UnixMillis::now().as_u64());
            // A daemon that is not there needs no notice.
            let _ = socket.send_to(&datagram, to);
        }
    }
    Ok(())
}

/// The thread. Dropping it ends the thread and waits for that.
pub struct Gossip {
    wake: PipeWriter,
    is_ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Gossip {
    pub fn start(
        settings: GossipSettings,
        series: Arc<BusSeries>,
        on_notice: OnNotice,
    ) -> io::Result<(Gossip, GossipBus)> {
        let socket = UdpSocket::bind(settings.listen)?;
        socket.set_nonblocking(true)?;
        let own = Member {
            address: socket.local_addr()?,
            started_ms: UnixMillis::now().as_u64(),
        };
        let (bell, wake) = io::pipe()?;
        let (notices, inbox) = bounded(limits::WAITING_NOTICES_ITEMS);
        let others = Arc::new(AtomicUsize::new(0));
        let is_ending = Arc::new(AtomicBool::new(false));
        let node = Node {
            socket,
            bell,
            inbox,
            peers: settings.peers.clone(),
            sealer: Sealer::new(settings.key.clone(), random()?),
            opener: Opener::new(settings.key),
            members: Members::new(own, Dice(random()?)),
            timers: BTreeMap::new(),
            scheduled: 0,
            announced_at: None,
            others: Arc::clone(&others),
            is_ending: Arc::clone(&is_ending),
            series,
            on_notice,
        };
        let thread = thread::Builder::new()
            .name("bus".into())
            .spawn(move || node.run())?;
        let bus = GossipBus {
            notices,
            wake: wake.try_clone()?,
            others,
            has_peers: !settings.peers.is_empty(),
        };
        let gossip = Gossip {
            wake,
            is_ending,
            thread: Some(thread),
        };
        Ok((gossip, bus))
    }
}

impl Drop for Gossip {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::Relaxed);
        // A full pipe wakes the thread as well.
        let _ = self.wake.write(&[0]);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the bus's thread has panicked");
        }
    }
}

/// The state of the thread.
struct Node {
    socket: UdpSocket,
    bell: PipeReader,
    inbox: Receiver<Notice>,
    peers: Vec<SocketAddr>,
    sealer: Sealer,
    opener: Opener,
    members: Members,
    /// By their time, and by the order in which they were set.
    timers: BTreeMap<(Instant, u64), Timer<Member>>,
    scheduled: u64,
    announced_at: Option<Instant>,
    others: Arc<AtomicUsize>,
    is_ending: Arc<AtomicBool>,
    series: Arc<BusSeries>,
    on_notice: OnNotice,
}

impl Node {
    fn run(mut self) {
        loop {
            self.announce();
            self.handle_effects();
            let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
            let now = Instant::now();
            let wait = timer.map_or(limits::ANNOUNCE_INTERVAL, |at| {
                at.saturating_duration_since(now)
            });
            let wait = wait.min(limits::ANNOUNCE_INTERVAL);
            let ready = wait_readable([self.bell.as_fd(), self.socket.as_fd()], Some(wait));
            let [rings, _] = ready.unwrap_or_else(|error| {
                log::warn!("the bus cannot wait: {error}");
                thread::sleep(limits::END_CHECK_INTERVAL);
                [false, false]
            });
            if self.is_ending.load(Ordering::Relaxed) {
                self.members.leave();
                return self.handle_effects();
            }
            if rings {
                self.take_notices();
            }
            self.receive();
            self.fire_timers(Instant::now());
            self.handle_effects();
        }
    }

    /// Looks for members at the configured addresses, now and then.
    fn announce(&mut self) {
        let is_due = self
            .announced_at
            .is_none_or(|at| at.elapsed() >= limits::ANNOUNCE_INTERVAL);
        if is_due {
            self.announced_at = Some(Instant::now());
            self.members.announce(&self.peers);
        }
    }

    /// Publishes the notices that wait.
    fn take_notices(&mut self) {
        let mut rings = [0; 64];
        if let Err(error) = self.bell.read(&mut rings) {
            log::debug!("the bus's pipe: {error}");
        }
        while let Ok(notice) = self.inbox.try_recv() {
            if let Ok(id) = random_id() {
                self.members.publish(id, notice.to_text().as_bytes());
            }
        }
    }

    fn receive(&mut self) {
        let mut buffer = [0; limits::DATAGRAM_BYTES_MAX + 1];
        for _ in 0..limits::DATAGRAMS_PER_ROUND_ITEMS {
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // A peer's port that is closed is reported here, by the kernel.
                Err(error) => {
                    log::debug!("gossip: {error}");
                    continue;
                }
            };
            let datagram = &buffer[..length];
            let is_short = length <= limits::DATAGRAM_BYTES_MAX;
            let now = UnixMillis::now().as_u64();
            match self.opener.open(datagram, now).filter(|_| is_short) {
                Some(payload) => self.members.handle_payload(payload),
                None => {
                    self.series.refused.inc();
                }
            }
        }
    }

    fn fire_timers(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            self.members.handle_timer(entry.remove());
        }
    }

    fn handle_effects(&mut self) {
        let effects = self.members.take_effects();
        for (to, payload) in effects.datagrams {
            let datagram = self.sealer.seal(&payload, UnixMillis::now().as_u64());
            if let Err(error) = self.socket.send_to(&datagram, to) {
                log::debug!("gossip to {to}: {error}");
            }
        }
        for (after, timer) in effects.timers {
            self.scheduled += 1;
            self.timers
                .insert((Instant::now() + after, self.scheduled), timer);
        }
        for text in effects.notices {
            if let Some(notice) = Notice::parse(&text) {
                self.series.received.inc();
                (self.on_notice)(notice);
            }
        }
        let others = self.members.others();
        let before = self.others.swap(others, Ordering::Relaxed);
        let is_up = others > 0 || self.peers.is_empty();
        self.series.up.set(i64::from(is_up));
        self.series.members.set(others as i64);
        if effects.has_gained {
            (self.on_notice)(Notice::All);
        }
        match (before, others) {
            (0, 1..) => log::info!("the bus has {others} other members"),
            (1.., 0) => {
                log::warn!("the bus is lost: no other member lives; the store is read each second");
            }
            _ => {}
        }
    }
}

fn random() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::other)
}

fn random_id() -> io::Result<[u8; 16]> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command on a machine whose own daemon is down. Mutation: `publish` to the configured
    /// address alone.
    #[test]
    fn a_command_sends_its_notices_to_each_configured_member() {
        let key = SealKey::new(b"a secret of one cluster, for tests");
        let sockets = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a port"));
        let address = |socket: &UdpSocket| socket.local_addr().expect("it is bound");
        let settings = GossipSettings {
            listen: address(&sockets[0]),
            peers: sockets[1..].iter().map(address).collect(),
            key: key.clone(),
        };
        let notices = [Notice::Key("key_1".to_owned()), Notice::Entries];
        publish(&settings, &notices).expect("they are sent");
        for socket in &sockets {
            let patience = Some(std::time::Duration::from_secs(60));
            socket.set_read_timeout(patience).expect("it is set");
            let mut opener = Opener::new(key.clone());
            for notice in &notices {
                let mut buffer = [0; limits::DATAGRAM_BYTES_MAX];
                let length = socket.recv(&mut buffer).expect("a datagram");
                let payload = opener.open(&buffer[..length], UnixMillis::now().as_u64());
                let payload = payload.expect("it is genuine, and another one");
                let text = &payload[payload.len() - notice.to_text().len()..];
                assert_eq!(Notice::parse(text).as_ref(), Some(notice));
            }
        }
    }
}
