//! The level that several daemons share: entries in Redis, in the form of [`super::sealed`].
//!
//! Must never block a caller. A value that is not exactly what a daemon has written is a miss, so
//! Redis must be reachable for the daemons alone.
//!
//! The clocks of two daemons may differ by any time. So an entry is as old as Redis has kept it:
//! the rest of its time there (PTTL) is asked for with it, and the entry's own time of day counts
//! only where Redis has none.
//!
//! Mutations that `tests/redis.rs` catches: no bound on what is read
//! (`a_value_that_is_too_long_...`); a look-up without PTTL
//! (`an_entry_is_found_with_the_rest_of_its_time`); a walk for each purge, purges during a walk
//! that are forgotten (`purges_in_a_loop_...`), a walk that ends with a loss for ever
//! (`a_walk_that_fails_...`).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use super::sealed::EntryId;
use super::sealed::{HEADER_BYTES, open, seal};
use crate::core::Moment;
use crate::limits::cache as limits;
use crate::limits::redis as redis_limits;
use crate::redis::{Handle, Reply, Request};

/// An entry that a level has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundEntry {
    pub entry: Vec<u8>,
    /// How long the level will keep it, if it knows.
    pub rest: Option<Duration>,
}

/// Receives an entry, or `None` for a miss, on another thread: it must be quick.
pub type Sink = Box<dyn FnOnce(Option<FoundEntry>) + Send>;

/// A level behind the daemon's own memory.
pub trait SharedLevel: Send + Sync {
    /// Looks an entry up. `true`: `sink` will be called once, on another thread; for a request that
    /// has not been sent by the deadline, with `None`. `false`: it is a miss, and `sink` is
    /// dropped.
    fn get(&self, id: EntryId, deadline: Moment, sink: Sink) -> bool;

    /// Stores an entry, if the level has room for it now. One that is too long removes the one
    /// before it.
    fn put(&self, id: EntryId, entry: &[u8], ttl: Duration);

    /// Removes the entries of a tenant, or all, if the level is there. They are gone some time
    /// after the call.
    fn delete(&self, tenant: Option<u64>);
}

crate::families! {
    /// Look-ups in the level that daemons share.
    pub struct SharedSeries {
        /// Look-ups in the shared level.
        lookups: Counter = "cache_shared_lookups" [ verdict: Verdict ],
            "autoglmd.cache.shared.lookup";
        /// Entries that purges have deleted in the shared level.
        deleted: Counter = "cache_shared_deleted", "autoglmd.cache.shared.deleted";
    }
}

/// How a look-up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Hit,
    Miss,
    /// A value was there and was not taken: damaged, or not ours.
    Foreign,
    /// Redis is lost, or its queue is full.
    Lost,
}

impl Verdict {
    const ALL: [Verdict; 4] = [Verdict::Hit, Verdict::Miss, Verdict::Foreign, Verdict::Lost];

    const fn as_str(self) -> &'static str {
        match self {
            Verdict::Hit => "hit",
            Verdict::Miss => "miss",
            Verdict::Foreign => "foreign",
            Verdict::Lost => "lost",
        }
    }
}

crate::label!(Verdict, as_str, Verdict::ALL, 0);

/// Entries in Redis.
pub struct RedisLevel {
    redis: Handle,
    series: Arc<SharedSeries>,
    sweeps: Arc<Sweeps>,
}

impl RedisLevel {
    pub fn new(redis: Handle, series: Arc<SharedSeries>) -> RedisLevel {
        let sweeps = Sweeps {
            redis: redis.clone(),
            series: Arc::clone(&series),
            state: Mutex::default(),
        };
        RedisLevel {
            redis,
            series,
            sweeps: Arc::new(sweeps),
        }
    }
}

impl SharedLevel for RedisLevel {
    fn get(&self, id: EntryId, deadline: Moment, sink: Sink) -> bool {
        let key = key_of(&id);
        // GETRANGE in place of GET bounds what another program's value can make us read.
        let last = (HEADER_BYTES + limits::SHARED_ENTRY_BYTES_MAX).to_string();
        let words = [b"GETRANGE", key.as_bytes(), b"0", last.as_bytes()];
        let series = Arc::clone(&self.series);
        // Requests for one key are sent in their order, and its server replies in that order.
        let rest = Arc::new(AtomicI64::new(NO_REST));
        let known = Arc::clone(&rest);
        let ask = Request::new(&key, &[b"PTTL", key.as_bytes()], deadline, move |reply| {
            if let Reply::Number(milliseconds) = reply {
                known.store(milliseconds, Ordering::Relaxed);
            }
        });
        let _ = self.redis.submit(ask);
        let request = Request::new(&key, &words, deadline, move |reply| {
            let (verdict, entry) = judge(reply, id);
            series.lookups.get(verdict).inc();
            let rest = u64::try_from(rest.load(Ordering::Relaxed)).ok();
            let rest = rest.map(Duration::from_millis);
            sink(entry.map(|entry| FoundEntry { entry, rest }));
        });
        let accepted = self.redis.submit(request).is_ok();
        if !accepted {
            self.series.lookups.get(Verdict::Lost).inc();
        }
        accepted
    }

    fn put(&self, id: EntryId, entry: &[u8], ttl: Duration) {
        let milliseconds = ttl.as_millis();
        let key = key_of(&id);
        if entry.len() > limits::SHARED_ENTRY_BYTES_MAX || milliseconds == 0 {
            // An earlier result, which this one replaces, must not be found any more.
            let words = [b"UNLINK", key.as_bytes()];
            let _ = self
                .redis
                .submit(Request::new(&key, &words, Moment::NEVER, drop));
            return;
        }
        let value = seal(id, entry);
        let ttl = milliseconds.to_string();
        let words = [b"SET", key.as_bytes(), &value, b"PX", ttl.as_bytes()];
        let request = Request::new(&key, &words, Moment::NEVER, drop);
        // A refused one is counted by the queue; the entry stays in this daemon's memory.
        let _ = self.redis.submit(request);
    }

    fn delete(&self, tenant: Option<u64>) {
        self.sweeps.want(tenant);
    }
}

/// The walks through the keys of all servers in which purged entries are deleted, one at a time:
/// however often a client purges, Redis has one walk to serve. A purge during a walk may concern
/// keys behind which that walk is already, so it makes another one, with all other purges that came
/// meanwhile.
struct Sweeps {
    redis: Handle,
    series: Arc<SharedSeries>,
    state: Mutex<SweepState>,
}

#[derive(Default)]
struct SweepState {
    is_under_way: bool,
    /// The entries for the next walk.
    next: Option<Swept>,
}

/// The entries that a walk deletes.
enum Swept {
    Of(BTreeSet<u64>),
    All,
}

impl Swept {
    fn add(&mut self, tenant: Option<u64>) {
        match (&mut *self, tenant) {
            (Swept::All, _) => {}
            (Swept::Of(tenants), Some(tenant)) if tenants.len() < limits::SWEPT_KEYS_MAX => {
                tenants.insert(tenant);
            }
            // More than can be remembered: then those of others are lost as well, as if they had
            // expired.
            (Swept::Of(_), _) => *self = Swept::All,
        }
    }

    /// Returns a pattern of keys. It may match more than is deleted.
    fn pattern(&self) -> String {
        match self {
            Swept::Of(tenants) if tenants.len() == 1 => {
                tenants.iter().map(|tenant| pattern_of(*tenant)).collect()
            }
            _ => format!("{KEYS}*"),
        }
    }

    fn covers(&self, key: &str) -> bool {
        let Swept::Of(tenants) = self else {
            return true;
        };
        let tenant = key.strip_prefix(KEYS).and_then(|rest| rest.get(..16));
        let tenant = tenant.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        tenant.is_some_and(|tenant| tenants.contains(&tenant))
    }
}

impl Sweeps {
    /// Has the entries of a tenant, or all, deleted by a walk that begins now or after the one that
    /// is under way.
    fn want(self: &Arc<Self>, tenant: Option<u64>) {
        let mut state = self.lock();
        let next = state.next.get_or_insert(Swept::Of(BTreeSet::new()));
        next.add(tenant);
        if !std::mem::replace(&mut state.is_under_way, true) {
            self.begin_next(state);
        }
    }

    /// Begins the next walk, if there is something to delete.
    fn begin_next(self: &Arc<Self>, mut state: MutexGuard<'_, SweepState>) {
        let Some(swept) = state.next.take() else {
            state.is_under_way = false;
            return;
        };
        drop(state);
        let sweep = Sweep {
            sweeps: Arc::clone(self),
            pattern: swept.pattern().into(),
            swept: Arc::new(swept),
        };
        sweep.step(0, b"0");
    }

    fn lock(&self) -> MutexGuard<'_, SweepState> {
        // Nothing panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A walk. The keys of other programs are passed over; a step looks at a bounded number, so that a
/// server with millions of keys responds to others between two steps.
#[derive(Clone)]
struct Sweep {
    sweeps: Arc<Sweeps>,
    swept: Arc<Swept>,
    pattern: Arc<str>,
}

impl Sweep {
    fn step(self, node: usize, cursor: &[u8]) {
        let pattern = Arc::clone(&self.pattern);
        let count = redis_limits::SWEEP_STEP_KEYS.to_string();
        let words: [&[u8]; 6] = [
            b"SCAN",
            cursor,
            b"MATCH",
            pattern.as_bytes(),
            b"COUNT",
            count.as_bytes(),
        ];
        let sweeps = Arc::clone(&self.sweeps);
        let request = Request::to_node(node, &words, move |reply| self.handle(node, reply));
        if sweeps.redis.submit(request).is_err() {
            // Redis is lost, or too slow. Entries expire.
            *sweeps.lock() = SweepState::default();
        }
    }

    fn handle(self, node: usize, reply: Reply) {
        match reply {
            Reply::Page { cursor, keys } => {
                for key in keys {
                    self.delete(&key);
                }
                match &cursor[..] {
                    b"0" => self.step(node + 1, b"0"),
                    next => self.step(node, next),
                }
            }
            // That was the last server.
            Reply::Nothing => self.sweeps.begin_next(self.sweeps.lock()),
            _ => self.step(node + 1, b"0"),
        }
    }

    /// Each key for itself: in a cluster they have different slots.
    fn delete(&self, key: &[u8]) {
        let Some(name) = std::str::from_utf8(key)
            .ok()
            .filter(|name| self.swept.covers(name))
        else {
            return;
        };
        let series = Arc::clone(&self.sweeps.series);
        let request = Request::new(name, &[b"UNLINK", key], Moment::NEVER, move |reply| {
            if let Reply::Number(deleted) = reply {
                series.deleted.inc_by(u64::try_from(deleted).unwrap_or(0));
            }
        });
        let _ = self.sweeps.redis.submit(request);
    }
}

/// The reply of PTTL for a key that does not expire, and a value for no reply.
const NO_REST: i64 = -1;

/// The beginning of each entry's key.
const KEYS: &str = "autoglmd:entry:";

/// Returns the pattern of the keys of a tenant's entries.
pub fn pattern_of(tenant: u64) -> String {
    format!("{KEYS}{tenant:016x}:*")
}

fn key_of(id: &EntryId) -> String {
    let digest = blake3::Hash::from(id.digest).to_hex();
    format!("{KEYS}{:016x}:{digest}", id.tenant)
}

fn judge(reply: Reply, id: EntryId) -> (Verdict, Option<Vec<u8>>) {
    match reply {
        // GETRANGE returns an empty text for a key that is not there.
        Reply::Bytes(value) if value.is_empty() => (Verdict::Miss, None),
        Reply::Bytes(value) => match open(id, value) {
            Some(entry) => (Verdict::Hit, Some(entry)),
            None => (Verdict::Foreign, None),
        },
        Reply::Nothing => (Verdict::Miss, None),
        Reply::Number(_) | Reply::Page { .. } => (Verdict::Foreign, None),
        Reply::Failed => (Verdict::Lost, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: EntryId = EntryId {
        digest: [7; 32],
        model: [9; 32],
        tenant: 5,
    };

    #[test]
    fn replies_are_misses_unless_they_are_entries() {
        assert_eq!(judge(Reply::Bytes(Vec::new()), ID), (Verdict::Miss, None));
        assert_eq!(judge(Reply::Bytes(vec![1]), ID), (Verdict::Foreign, None));
        assert_eq!(judge(Reply::Number(1), ID), (Verdict::Foreign, None));
        assert_eq!(judge(Reply::Failed, ID), (Verdict::Lost, None));
        let (verdict, entry) = judge(Reply::Bytes(seal(ID, b"x")), ID);
        assert_eq!((verdict, entry), (Verdict::Hit, Some(b"x".to_vec())));
    }

    /// Mutations: more tenants than the bound; those beyond it that are forgotten; a walk that
    /// deletes all that its pattern matches.
    #[test]
    fn purges_of_many_tenants_become_one_of_all() {
        let mut swept = Swept::Of(BTreeSet::new());
        swept.add(Some(7));
        assert_eq!(swept.pattern(), "autoglmd:entry:0000000000000007:*");
        swept.add(Some(9));
        assert_eq!(swept.pattern(), "autoglmd:entry:*");
        let covers = |swept: &Swept| {
            let names = [
                "autoglmd:entry:0000000000000007:ab",
                "autoglmd:entry:0000000000000008:ab",
                "autoglmd:entry:7",
                "autoglmd:entry:000000000000000\u{e4}:ab",
            ];
            names.map(|name| swept.covers(name))
        };
        assert_eq!(covers(&swept), [true, false, false, false]);
        for tenant in 0..limits::SWEPT_KEYS_MAX as u64 {
            swept.add(Some(100 + tenant));
        }
        assert!(matches!(swept, Swept::All));
        assert_eq!(covers(&swept), [true; 4]);
    }
}
