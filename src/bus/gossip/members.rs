//! The members of the cluster, by SWIM (crate `foca`), and the notices that travel with it.
//!
//! Owns the state of the protocol. Pure: datagrams go in, datagrams and timers come out; it has
//! neither a socket nor a clock.
//!
//! A notice goes to each known member directly, and once more with the protocol's own messages, in
//! case a datagram is lost. Its random id makes it count once.
//!
//! Invariants:
//!  1. The notices that are remembered, the members that a notice is sent to directly, and the
//!     bytes of a payload are bounded.
//!
//! Mutations that the tests below catch: ids that are not remembered (`a_notice_reaches_...`), no
//! report when a member appears (`a_member_that_...`); `leap` without its growth
//! (`a_member_that_comes_back_with_an_earlier_clock_...`).

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foca::{
    BroadcastHandler, Config, Foca, Identity, Invalidates, Notification, PostcardCodec, Runtime,
    Timer,
};
use serde::{Deserialize, Serialize};

use crate::limits::bus as limits;

/// A process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub address: SocketAddr,
    /// The time of its start, in milliseconds since 1970: of two at one address the later one
    /// lives. 0: unknown, to announce oneself to an address.
    pub started_ms: u64,
}

impl Identity for Member {
    type Addr = SocketAddr;

    fn renew(&self) -> Option<Member> {
        Some(Member {
            started_ms: self.started_ms + 1,
            ..*self
        })
    }

    fn addr(&self) -> SocketAddr {
        self.address
    }

    fn win_addr_conflict(&self, other: &Member) -> bool {
        self.started_ms > other.started_ms
    }
}

/// A notice's id: no two are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoticeId([u8; ID_BYTES]);

const ID_BYTES: usize = 16;

impl Invalidates for NoticeId {
    fn invalidates(&self, other: &NoticeId) -> bool {
        self == other
    }
}

/// The notices that have arrived.
#[derive(Default)]
struct Seen {
    ids: HashSet<NoticeId>,
    order: VecDeque<NoticeId>,
    /// Texts for the daemon. Shared with [`Members`], because the protocol owns this handler.
    texts: Arc<Mutex<Vec<Vec<u8>>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Its holders only push and take.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> BroadcastHandler<T> for Seen {
    type Key = NoticeId;
    type Error = Infallible;

    fn receive_item(
        &mut self,
        data: &[u8],
        _sender: Option<&T>,
    ) -> Result<Option<NoticeId>, Infallible> {
        let Some((id, text)) = data.split_first_chunk() else {
            return Ok(None);
        };
        let id = NoticeId(*id);
        if !self.ids.insert(id) {
            return Ok(None);
        }
        self.order.push_back(id);
        if self.order.len() > limits::NOTICES_REMEMBERED_ENTRIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        locked(&self.texts).push(text.to_owned());
        Ok(Some(id))
    }
}

/// Work for the caller: see [`Members::take_effects`].
#[derive(Default)]
pub struct Effects {
    pub datagrams: Vec<(SocketAddr, Vec<u8>)>,
    pub timers: Vec<(Duration, Timer<Member>)>,
    /// Texts of notices that have arrived.
    pub notices: Vec<Vec<u8>>,
    /// A member has appeared: notices from before it may have been missed.
    pub has_gained: bool,
    /// The others took this member for dead, and it has another identity now.
    has_rejoined: bool,
}

impl Runtime<Member> for &mut Effects {
    fn notify(&mut self, notification: Notification<'_, Member>) {
        match notification {
            Notification::MemberUp(_) => self.has_gained = true,
            Notification::Rejoin(_) => (self.has_gained, self.has_rejoined) = (true, true),
            _ => {}
        }
    }

    fn send_to(&mut self, to: Member, data: &[u8]) {
        let mut payload = vec![PROTOCOL];
        payload.extend_from_slice(data);
        self.datagrams.push((to.address, payload));
    }

    fn submit_after(&mut self, event: Timer<Member>, after: Duration) {
        self.timers.push((after, event));
    }
}

/// The first byte of a payload: a message of the protocol, or a notice.
const PROTOCOL: u8 = 0;
const NOTICE: u8 = 1;

/// Returns the payload of a notice. Each one has a random id.
pub fn notice_payload(id: [u8; ID_BYTES], text: &[u8]) -> Vec<u8> {
    let mut payload = vec![NOTICE];
    payload.extend_from_slice(&id);
    payload.extend_from_slice(text);
    payload
}

/// SplitMix64: the protocol chooses members by it, and no secret depends on that.
pub struct Dice(pub u64);

impl rand::TryRng for Dice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|number| number as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(mixed ^ mixed >> 31)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for byte in bytes {
            *byte = self.try_next_u64()? as u8;
        }
        Ok(())
    }
}

/// One member's view of the cluster.
pub struct Members {
    foca: Foca<Member, PostcardCodec, Dice, Seen>,
    texts: Arc<Mutex<Vec<Vec<u8>>>>,
    effects: Effects,
    /// Identities that were given up lately.
    rejoins: u32,
}

impl Members {
    pub fn new(own: Member, random: Dice) -> Members {
        let size = NonZeroU32::new(limits::CLUSTER_MEMBERS_TYPICAL).unwrap_or(NonZeroU32::MIN);
        let mut config = Config::new_lan(size);
        // One byte is ours.
        let bytes = limits::GOSSIP_PAYLOAD_BYTES_MAX - 1;
        config.max_packet_size = NonZeroUsize::new(bytes).unwrap_or(NonZeroUsize::MIN);
        let seen = Seen::default();
        let texts = Arc::clone(&seen.texts);
        Members {
            foca: Foca::with_custom_broadcast(own, config, random, PostcardCodec, seen),
            texts,
            effects: Effects::default(),
            rejoins: 0,
        }
    }

    /// Returns how many other members are alive.
    pub fn others(&self) -> usize {
        self.foca.num_members()
    }

    /// Announces this member to those of `addresses` that are not known to live: once per second.
    pub fn announce(&mut self, addresses: &[SocketAddr]) {
        self.rejoins = self.rejoins.saturating_sub(1);
        for address in addresses {
            let is_known = |one: &foca::Member<Member>| one.id().address == *address;
            let is_own = self.foca.identity().address == *address;
            if !is_own && !self.foca.iter_members().any(is_known) {
                let unknown = Member {
                    address: *address,
                    started_ms: 0,
                };
                note(self.foca.announce(unknown, &mut self.effects));
            }
        }
    }

    /// Handles the payload of a genuine datagram.
    pub fn handle_payload(&mut self, payload: &[u8]) {
        match payload.split_first() {
            Some((&PROTOCOL, data)) => {
                note(self.foca.handle_data(data, &mut self.effects));
                self.leap();
            }
            // From a command, or directly from the member that has published it.
            Some((&NOTICE, data)) => self.spread(data),
            _ => {}
        }
    }

    pub fn handle_timer(&mut self, timer: Timer<Member>) {
        note(self.foca.handle_timer(timer, &mut self.effects));
    }

    /// Makes an identity that the others take, if they remember a later one of this address: after
    /// a restart on a machine whose clock was set back. The protocol itself would try the next
    /// millisecond, be refused, and so on, with a datagram to each member each time. So each
    /// further identity is sixteen times as far ahead.
    fn leap(&mut self) {
        if !std::mem::take(&mut self.effects.has_rejoined) {
            return;
        }
        self.rejoins = self.rejoins.saturating_add(1);
        let ahead = 1_u64 << (4 * self.rejoins).min(limits::LEAP_BITS_MAX);
        let own = *self.foca.identity();
        let next = Member {
            started_ms: own.started_ms.saturating_add(ahead),
            ..own
        };
        note(self.foca.change_identity(next, &mut self.effects));
    }

    /// Sends a notice to all members.
    pub fn publish(&mut self, id: [u8; ID_BYTES], text: &[u8]) {
        let payload = notice_payload(id, text);
        let others = self.foca.iter_members();
        let others = others.take(limits::DIRECT_MEMBERS_MAX);
        let direct = others.map(|member| (member.id().address, payload.clone()));
        self.effects.datagrams.extend(direct);
        self.spread(&payload[1..]);
    }

    /// Informs the other members that this one leaves.
    pub fn leave(&mut self) {
        note(self.foca.leave_cluster(&mut self.effects));
    }

    /// Returns all that is to be done, and forgets it.
    pub fn take_effects(&mut self) -> Effects {
        self.effects.notices = std::mem::take(&mut locked(&self.texts));
        std::mem::take(&mut self.effects)
    }

    /// Enters a notice, which travels with the protocol's messages if it is new.
    fn spread(&mut self, data: &[u8]) {
        if let Err(error) = self.foca.add_broadcast(data) {
            log::debug!("gossip: {error}");
        }
    }
}

/// Datagrams of the network cause errors as they like; none of them matters.
fn note(handled: Result<(), foca::Error>) {
    if let Err(error) = handled {
        log::debug!("gossip: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn address(number: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1_000 + number as u16))
    }

    /// Members that share a network without delay, and a clock that jumps to the next timer.
    struct World {
        members: Vec<Option<Members>>,
        timers: BTreeMap<(Duration, u64), (usize, Timer<Member>)>,
        now: Duration,
        notices: Vec<Vec<Vec<u8>>>,
        gains: Vec<usize>,
        /// Every n-th datagram is lost; 0: none.
        loss: usize,
        sent: usize,
    }

    impl World {
        fn of(count: usize, loss: usize) -> World {
            let mut world = World {
                members: (0..count).map(|_| None).collect(),
                timers: BTreeMap::new(),
                now: Duration::ZERO,
                notices: vec![Vec::new(); count],
                gains: vec![0; count],
                loss,
                sent: 0,
            };
            for number in 0..count {
                world.start(number, 1);
            }
            world.run(Duration::from_secs(5));
            world
        }

        /// Starts a member, which knows the first one's address.
        fn start(&mut self, number: usize, started_ms: u64) {
            let own = Member {
                address: address(number),
                started_ms,
            };
            let mut member = Members::new(own, Dice(number as u64));
            member.announce(&[address(0), address(1)]);
            self.members[number] = Some(member);
            self.settle(number);
        }

        /// Delivers what a member has to send, and what follows from it.
        fn settle(&mut self, first: usize) {
            let mut due = VecDeque::from([first]);
            while let Some(number) = due.pop_front() {
                let Some(member) = &mut self.members[number] else {
                    continue;
                };
                let effects = member.take_effects();
                self.gains[number] += usize::from(effects.has_gained);
                self.notices[number].extend(effects.notices);
                for (after, timer) in effects.timers {
                    let id = self.timers.len() as u64 + self.sent as u64 * 1_000;
                    self.timers.insert((self.now + after, id), (number, timer));
                }
                for (to, payload) in effects.datagrams {
                    self.sent += 1;
                    let to = usize::from(to.port() - 1_000);
                    let is_lost = self.loss > 0 && self.sent.is_multiple_of(self.loss);
                    if let (Some(member), false) = (&mut self.members[to], is_lost) {
                        member.handle_payload(&payload);
                        due.push_back(to);
                    }
                }
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while let Some(entry) = self.timers.first_entry() {
                if entry.key().0 > end {
                    break;
                }
                let ((at, _), (number, timer)) = entry.remove_entry();
                self.now = at;
                if let Some(member) = &mut self.members[number] {
                    member.handle_timer(timer);
                    self.settle(number);
                }
            }
            self.now = end;
        }

        /// Stops a member's process: datagrams for it are lost, and its timers fire late.
        fn stop(&mut self, number: usize, time: Duration) {
            let is_its = |_: &(Duration, u64), (of, _): &mut (usize, Timer<Member>)| *of == number;
            let timers: Vec<_> = self.timers.extract_if(.., is_its).collect();
            let member = self.members[number].take();
            self.run(time);
            self.members[number] = member;
            for ((at, id), timer) in timers {
                self.timers.insert((at.max(self.now), id), timer);
            }
        }

        fn publish(&mut self, number: usize, id: u8, text: &[u8]) {
            let member = self.members[number].as_mut().expect("it lives");
            member.publish([id; ID_BYTES], text);
            self.settle(number);
        }
    }

    #[test]
    fn a_notice_reaches_each_member_once() {
        let mut world = World::of(5, 0);
        assert!(
            world
                .members
                .iter()
                .flatten()
                .all(|member| member.others() == 4)
        );
        world.publish(3, 1, b"a");
        for notices in &world.notices {
            assert_eq!(*notices, [b"a".to_vec()], "at once");
        }
        world.run(Duration::from_secs(20));
        world.publish(0, 2, b"b");
        world.publish(0, 2, b"b");
        world.run(Duration::from_secs(20));
        for notices in &world.notices {
            assert_eq!(*notices, [b"a".to_vec(), b"b".to_vec()], "once");
        }
    }

    /// Mutation: `publish` that does not enter the notice into the protocol's messages.
    #[test]
    fn a_notice_whose_datagrams_are_lost_arrives_later() {
        let mut world = World::of(5, 3);
        world.run(Duration::from_secs(30));
        world.loss = 1;
        world.publish(2, 1, b"a");
        world.loss = 3;
        world.run(Duration::from_secs(10));
        for notices in &world.notices {
            assert_eq!(*notices, [b"a".to_vec()]);
        }
    }

    #[test]
    fn a_member_that_dies_is_missed_and_one_that_comes_back_is_seen() {
        let mut world = World::of(3, 0);
        world.members[2] = None;
        world.run(Duration::from_secs(60));
        assert_eq!(world.members[0].as_ref().map(Members::others), Some(1));
        let gains = world.gains.clone();
        world.start(2, 2);
        world.run(Duration::from_secs(10));
        assert!(
            world
                .members
                .iter()
                .flatten()
                .all(|member| member.others() == 2)
        );
        assert!(world.gains[0] > gains[0] && world.gains[1] > gains[1]);
        world.publish(0, 1, b"a");
        assert_eq!(world.notices[2].len(), 1);
    }

    /// A machine's clock is set back while its daemon is down, so the daemon comes back with an
    /// earlier time than the one that the others remember.
    ///
    /// Mutation: identities that are renewed in single milliseconds.
    #[test]
    fn a_member_that_comes_back_with_an_earlier_clock_is_seen() {
        const NOW: u64 = 1_800_000_000_000;
        for behind in [1, 3_600_000, NOW / 2] {
            let mut world = World::of(3, 0);
            world.start(2, NOW);
            world.run(Duration::from_secs(10));
            world.members[2] = None;
            world.run(Duration::from_secs(60));
            let sent = world.sent;
            world.start(2, NOW - behind);
            world.run(Duration::from_secs(10));
            let others: Vec<usize> = world
                .members
                .iter()
                .flatten()
                .map(Members::others)
                .collect();
            assert_eq!(others, [2, 2, 2], "{behind} ms behind");
            // Ten seconds of the usual gossip are some hundred datagrams.
            assert!(world.sent - sent < 2_000, "{} datagrams", world.sent - sent);
            world.publish(0, 1, b"a");
            assert_eq!(world.notices[2].len(), 1);
        }
    }

    /// The others have taken it for dead and have sent it no notices, and it has missed none of
    /// them by its own clock.
    ///
    /// Mutation: a rejoin after which the store is not read.
    #[test]
    fn a_member_whose_process_was_stopped_rejoins_and_reads_the_store() {
        let mut world = World::of(3, 0);
        let others = |world: &World| {
            let living = world.members.iter().flatten();
            living.map(Members::others).collect::<Vec<usize>>()
        };
        world.stop(2, Duration::from_secs(60));
        assert_eq!(others(&world), [1, 1, 2]);
        let gains = world.gains[2];
        world.run(Duration::from_secs(10));
        assert_eq!(others(&world), [2, 2, 2]);
        assert!(world.gains[2] > gains);
        world.publish(0, 1, b"a");
        assert_eq!(world.notices[2], [b"a".to_vec()]);
    }

    /// Mutation: a daemon that ends and leaves it to the others to suspect that.
    #[test]
    fn a_member_that_leaves_is_missed_at_once() {
        let mut world = World::of(3, 0);
        world.members[2].as_mut().expect("it lives").leave();
        world.settle(2);
        for member in world.members[..2].iter().flatten() {
            assert_eq!(member.others(), 1);
        }
    }

    /// Mutations: `announce` to members that are known, or to itself.
    #[test]
    fn a_member_looks_for_others_at_unknown_addresses_alone() {
        let mut world = World::of(3, 0);
        let member = world.members[0].as_mut().expect("it lives");
        member.announce(&[0, 1, 2, 7].map(address));
        let sent = member.take_effects().datagrams;
        let to: Vec<SocketAddr> = sent.into_iter().map(|(to, _)| to).collect();
        assert_eq!(to, [address(7)]);
    }

    /// Mutations: a leap without its bound, or one that stays long.
    #[test]
    fn leaps_grow_to_a_bound_and_shrink_again_in_time() {
        let own = Member {
            address: address(0),
            started_ms: 1,
        };
        let mut member = Members::new(own, Dice(1));
        let mut leap_after = |seconds: usize| {
            (0..seconds).for_each(|_| member.announce(&[]));
            let before = member.foca.identity().started_ms;
            member.effects.has_rejoined = true;
            member.leap();
            member.foca.identity().started_ms - before
        };
        assert_eq!([0, 0, 0].map(&mut leap_after), [16, 256, 4_096]);
        let longest = (0..20).map(|_| leap_after(0)).max();
        assert_eq!(longest, Some(1 << limits::LEAP_BITS_MAX));
        assert_eq!(leap_after(60), 16);
    }

    /// Mutations: a notice that goes to each member directly; packets of the protocol's own size,
    /// or without room for our byte.
    #[test]
    fn datagrams_to_a_large_cluster_are_bounded_in_number_and_in_bytes() {
        let mut dice = Dice(1);
        let mut longest = 0;
        for _ in 0..200 {
            let own = Member {
                address: address(0),
                started_ms: 1,
            };
            let mut member = Members::new(own, Dice(1));
            let others = (1..200).map(|number| {
                let random = rand::TryRng::try_next_u64(&mut dice);
                let Ok(random) = random;
                foca::Member::alive(Member {
                    address: address(number),
                    started_ms: random >> (random % 64),
                })
            });
            let applied = member.foca.apply_many(others, true, &mut member.effects);
            applied.expect("each is another one");
            let _ = member.take_effects();
            member.publish([7; ID_BYTES], &[b'a'; limits::NOTICE_BYTES_MAX]);
            let direct = member.take_effects().datagrams;
            assert_eq!(direct.len(), limits::DIRECT_MEMBERS_MAX);
            let mut new = Members::new(
                Member {
                    address: address(1_000),
                    started_ms: 1,
                },
                Dice(1),
            );
            new.announce(&[address(0)]);
            for (_, payload) in new.take_effects().datagrams {
                member.handle_payload(&payload);
            }
            let sent = member.take_effects().datagrams;
            longest = sent
                .iter()
                .map(|(_, payload)| payload.len())
                .fold(longest, usize::max);
        }
        assert_eq!(longest, limits::GOSSIP_PAYLOAD_BYTES_MAX);
    }

    #[test]
    fn payloads_of_any_bytes_are_survived() {
        let mut world = World::of(2, 0);
        let mut dice = Dice(1);
        for length in 0..2_000_usize {
            let mut payload = vec![0; length % 200];
            let _ = rand::TryRng::try_fill_bytes(&mut dice, &mut payload);
            if let Some(first) = payload.first_mut() {
                *first %= 3;
            }
            let member = world.members[0].as_mut().expect("it lives");
            member.handle_payload(&payload);
            world.settle(0);
        }
        world.run(Duration::from_secs(60));
        assert!(world.members[1].is_some());
    }

    #[test]
    fn remembered_notices_are_bounded() {
        let mut seen = Seen::default();
        for number in 0..limits::NOTICES_REMEMBERED_ENTRIES as u32 + 10 {
            let mut data = [0; ID_BYTES + 1];
            data[..4].copy_from_slice(&number.to_le_bytes());
            let _ = BroadcastHandler::<Member>::receive_item(&mut seen, &data, None);
        }
        assert_eq!(seen.ids.len(), limits::NOTICES_REMEMBERED_ENTRIES);
        assert_eq!(seen.order.len(), limits::NOTICES_REMEMBERED_ENTRIES);
    }
}
