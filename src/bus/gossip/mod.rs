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
//! Mutations that the tests below catch: notices of a command that reach one member alone, an end
//! that is not announced, a secret with the line's end of its file, an announcement in each turn.
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
        let (node, bus) = Node::bind(settings, series, on_notice)?;
        let (wake, is_ending) = (bus.wake.try_clone()?, Arc::clone(&node.is_ending));
        let thread = thread::Builder::new()
            .name("bus".into())
            .spawn(move || node.run())?;
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
        self.is_ending.store(true, Ordering::Release);
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
    announce_at: Instant,
    others: Arc<AtomicUsize>,
    is_ending: Arc<AtomicBool>,
    series: Arc<BusSeries>,
    on_notice: OnNotice,
}

impl Node {
    fn bind(
        settings: GossipSettings,
        series: Arc<BusSeries>,
        on_notice: OnNotice,
    ) -> io::Result<(Node, GossipBus)> {
        let socket = UdpSocket::bind(settings.listen)?;
        socket.set_nonblocking(true)?;
        let own = Member {
            address: socket.local_addr()?,
            started_ms: UnixMillis::now().as_u64(),
        };
        let (bell, wake) = io::pipe()?;
        let (notices, inbox) = bounded(limits::WAITING_NOTICES_ITEMS);
        let others = Arc::new(AtomicUsize::new(0));
        let bus = GossipBus {
            notices,
            wake,
            others: Arc::clone(&others),
            has_peers: !settings.peers.is_empty(),
        };
        let node = Node {
            socket,
            bell,
            inbox,
            peers: settings.peers,
            sealer: Sealer::new(settings.key.clone(), random()?),
            opener: Opener::new(settings.key),
            members: Members::new(own, Dice(random()?)),
            timers: BTreeMap::new(),
            scheduled: 0,
            announce_at: Instant::now(),
            others,
            is_ending: Arc::default(),
            series,
            on_notice,
        };
        Ok((node, bus))
    }

    fn run(mut self) {
        loop {
            self.announce(Instant::now());
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
            // Acquire: what was published before the end is in the inbox.
            let is_ending = self.is_ending.load(Ordering::Acquire);
            if rings {
                self.silence_bell();
            }
            self.take_notices();
            if is_ending {
                self.members.leave();
                return self.handle_effects();
            }
            self.receive();
            self.fire_timers(Instant::now());
            self.handle_effects();
        }
    }

    /// Looks for members at the configured addresses, now and then.
    fn announce(&mut self, now: Instant) {
        if now >= self.announce_at {
            self.announce_at = now + limits::ANNOUNCE_INTERVAL;
            self.members.announce(&self.peers);
        }
    }

    /// Comes before [`Node::take_notices`], so that each notice that it misses rings again. Would
    /// wait for a bell that does not ring.
    fn silence_bell(&mut self) {
        let mut rings = [0; 64];
        if let Err(error) = self.bell.read(&mut rings) {
            log::debug!("the bus's pipe: {error}");
        }
    }

    /// Publishes the notices that wait.
    fn take_notices(&mut self) {
        while let Ok(notice) = self.inbox.try_recv() {
            if let Ok(id) = random_id() {
                self.members.publish(id, notice.to_text().as_bytes());
            }
        }
    }

    fn receive(&mut self) {
        // The kernel cuts a longer datagram, whose checksum is wrong then.
        let mut buffer = [0; limits::DATAGRAM_BYTES_MAX];
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
            let now = UnixMillis::now().as_u64();
            match self.opener.open(&buffer[..length], now) {
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
    use crate::telemetry::metrics::Metrics;
    use std::sync::mpsc;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn settings(peers: Vec<SocketAddr>) -> GossipSettings {
        GossipSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            peers,
            key: SealKey::new(b"a secret of one cluster, for tests"),
        }
    }

    /// A member that the test plays: its timers never fire, so it suspects no other one.
    struct Peer {
        socket: UdpSocket,
        opener: Opener,
        sealer: Sealer,
        members: Members,
        notices: Vec<Vec<u8>>,
    }

    impl Peer {
        fn new() -> Peer {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            socket.set_read_timeout(Some(PATIENCE)).expect("it is set");
            let own = Member {
                address: socket.local_addr().expect("it is bound"),
                started_ms: 1,
            };
            let key = settings(Vec::new()).key;
            Peer {
                socket,
                opener: Opener::new(key.clone()),
                sealer: Sealer::new(key, 1),
                members: Members::new(own, Dice(1)),
                notices: Vec::new(),
            }
        }

        fn address(&self) -> SocketAddr {
            self.socket.local_addr().expect("it is bound")
        }

        /// Handles one datagram. `false`: none came.
        fn handle_one(&mut self) -> bool {
            let mut buffer = [0; limits::DATAGRAM_BYTES_MAX];
            let Ok(length) = self.socket.recv(&mut buffer) else {
                return false;
            };
            let now = UnixMillis::now().as_u64();
            let payload = self.opener.open(&buffer[..length], now);
            self.members.handle_payload(payload.expect("it is genuine"));
            self.send();
            true
        }

        fn send(&mut self) {
            let effects = self.members.take_effects();
            self.notices.extend(effects.notices);
            for (to, payload) in effects.datagrams {
                let datagram = self.sealer.seal(&payload, UnixMillis::now().as_u64());
                self.socket.send_to(&datagram, to).expect("it is sent");
            }
        }
    }

    /// Mutations: no `Notice::All` for a new member; an end that is not announced; a bus
    /// that is connected while it has no other member.
    #[test]
    fn a_member_finds_its_peer_and_announces_its_end() {
        let mut peer = Peer::new();
        let series: Arc<BusSeries> = Metrics::new("echo").series();
        let (sender, notices) = mpsc::channel();
        let on_notice = Box::new(move |notice| sender.send(notice).expect("the test listens"));
        let started = Gossip::start(settings(vec![peer.address()]), series.clone(), on_notice);
        let (gossip, bus) = started.expect("it starts");
        assert!(!bus.is_connected());
        while peer.members.others() == 0 {
            assert!(peer.handle_one(), "nothing came");
        }
        assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::All));
        assert!(bus.is_connected());
        assert_eq!((series.up.get(), series.members.get()), (1, 1));

        peer.members.publish([1; 16], b"1 key key_1");
        peer.send();
        let key = Notice::Key("key_1".to_owned());
        assert_eq!(notices.recv_timeout(PATIENCE), Ok(key));
        assert_eq!(series.received.get(), 1);
        for text in ["1 entries", "1 all"] {
            bus.publish(&Notice::parse(text.as_bytes()).expect("a notice"));
            while !peer.notices.contains(&text.as_bytes().to_vec()) {
                assert!(peer.handle_one(), "nothing came");
            }
        }

        drop(gossip);
        // All that it has sent is here.
        peer.socket.set_nonblocking(true).expect("it is set");
        while peer.handle_one() {}
        assert_eq!(peer.members.others(), 0);
    }

    /// A purge of a daemon's last moments. Mutation: an end that is looked at before the inbox.
    #[test]
    fn a_notice_that_waits_at_the_end_is_sent() {
        let mut peer = Peer::new();
        let series = Metrics::new("echo").series();
        let bound = Node::bind(settings(vec![peer.address()]), series, Box::new(|_| ()));
        let (mut node, bus) = bound.expect("it is bound");
        // They get to know each other.
        node.announce(Instant::now());
        node.handle_effects();
        while node.members.others() == 0 {
            assert!(peer.handle_one(), "nothing came");
            wait_readable([node.bell.as_fd(), node.socket.as_fd()], Some(PATIENCE))
                .expect("it waits");
            node.receive();
            node.handle_effects();
        }
        bus.publish(&Notice::Entries);
        node.is_ending.store(true, Ordering::Relaxed);
        node.run();
        // All that it has sent is here.
        peer.socket.set_nonblocking(true).expect("it is set");
        while peer.handle_one() {}
        assert_eq!(peer.notices, [Notice::Entries.to_text().into_bytes()]);
        assert_eq!(peer.members.others(), 0);
    }

    /// Mutation: an announcement in each turn, which each datagram begins.
    #[test]
    fn a_peer_that_is_not_there_is_looked_for_once_per_interval() {
        let absent = Peer::new().address();
        let series = Metrics::new("echo").series();
        let bound = Node::bind(settings(vec![absent]), series, Box::new(|_| ()));
        let (mut node, bus) = bound.expect("it is bound");
        let start = Instant::now();
        let interval = limits::ANNOUNCE_INTERVAL;
        let mut sent_at = |at| {
            node.announce(at);
            node.members.take_effects().datagrams.len()
        };
        let early = start + interval - Duration::from_millis(1);
        assert_eq!(
            [start, early, start + interval].map(&mut sent_at),
            [1, 0, 1]
        );
        assert!(!bus.is_connected());
    }

    #[test]
    fn a_member_without_peers_is_connected_by_its_configuration() {
        let series: Arc<BusSeries> = Metrics::new("echo").series();
        let bound = Node::bind(settings(Vec::new()), series.clone(), Box::new(|_| ()));
        let (mut node, bus) = bound.expect("it is bound");
        node.handle_effects();
        assert!(bus.is_connected());
        assert_eq!((series.up.get(), series.members.get()), (1, 0));
    }

    /// Mutations: a secret with the end of its line, or of any length; no peers.
    #[test]
    fn settings_are_those_of_the_file_and_its_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        let config = Bus {
            kind: BusKind::Gossip,
            listen: Some(([127, 0, 0, 1], 7_946).into()),
            peers: vec![([127, 0, 0, 2], 7_946).into()],
            secret_file: Some(path.clone()),
            ..Bus::default()
        };
        let with = |secret: &str| {
            std::fs::write(&path, secret).expect("it is written");
            GossipSettings::of(&config, None)
        };
        assert!(with("fifteen letters\n").is_err());
        let read = with("sixteen  letters\n").expect("long enough");
        let read = read.expect("gossip is the bus");
        assert_eq!(
            (Some(read.listen), read.peers),
            (config.listen, config.peers.clone())
        );
        let mut sealer = Sealer::new(SealKey::new(b"sixteen  letters"), 1);
        let datagram = sealer.seal(b"payload", 5);
        assert_eq!(
            Opener::new(read.key).open(&datagram, 5),
            Some(&b"payload"[..])
        );
    }

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
            socket.set_read_timeout(Some(PATIENCE)).expect("it is set");
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
