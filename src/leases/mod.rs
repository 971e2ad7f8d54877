//! The limits of keys, over all daemons that share a Redis.
//!
//! Owns the reports to the common count. Must never wait for Redis: a request is taken from this
//! daemon's mirror ([`crate::core::lease`]), and Redis hears of it afterwards. Without Redis, and
//! while it is lost, each daemon limits by itself; `autoglmd_redis_up` and `/readyz` report that.
//!
//! Both buckets of a key have its id as their hash tag, so in a cluster they are on one node.
//!
//! Mutation that `tests/redis.rs` catches: reports that are not sent
//! (`daemons_share_the_limit_of_a_key`).

use std::sync::Arc;
use std::time::Duration;

use crate::core::Moment;
use crate::core::bucket::{Exceeded, Level, Rate};
use crate::core::lease::Lease;
use crate::keys::{Account, Holder};
use crate::limits::core as limits;
use crate::redis::{Handle, Reply, Request};

/// The arithmetic of the common count; `count` in `src/core/lease.rs` is the same, for tests.
const COUNT: &str = include_str!("count.lua");

/// Which bucket of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Requests,
    Tokens,
}

impl Unit {
    const fn as_str(self) -> &'static str {
        match self {
            Unit::Requests => "requests",
            Unit::Tokens => "tokens",
        }
    }

    fn of(self, account: &Account) -> &Lease {
        match self {
            Unit::Requests => &account.requests,
            Unit::Tokens => &account.tokens,
        }
    }
}

/// The way to the common count; without Redis there is none.
#[derive(Clone, Debug, Default)]
pub struct Leases(Option<Handle>);

/// Units to take.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    pub unit: Unit,
    pub rate: Rate,
    pub units: u32,
    /// A lease, in percent of the burst.
    pub percent: u32,
}

impl Draw {
    fn lease(&self) -> u32 {
        let (burst, percent) = (u64::from(self.rate.burst), u64::from(self.percent));
        (burst * percent / 100).max(1) as u32
    }
}

impl Leases {
    pub fn new(redis: Handle) -> Leases {
        Leases(Some(redis))
    }

    /// Returns what an operator should know: keys are limited by each daemon alone.
    pub fn problem(&self) -> Option<&'static str> {
        let is_lost = self.0.as_ref().is_some_and(|redis| !redis.is_up());
        is_lost.then_some("Redis is lost: each daemon applies the limits of keys alone")
    }

    /// Takes units out of a key's bucket, and reports them if there is a common count.
    pub fn take(&self, holder: &Arc<Holder>, draw: Draw, now: Moment) -> Result<Level, Exceeded> {
        let lease = draw.unit.of(&holder.account);
        let Some(redis) = self.connected() else {
            return lease.take(draw.rate, draw.units, now);
        };
        let taken = lease.take_shared(draw.rate, draw.units, draw.lease(), now);
        report(redis, draw.unit, holder, draw.rate);
        taken
    }

    /// Takes units that may turn out to be fewer or more. The result reconciles them, in the same
    /// count.
    pub fn reserve(
        &self,
        holder: &Arc<Holder>,
        draw: Draw,
        now: Moment,
    ) -> Result<(Level, Reservation), Exceeded> {
        let redis = self.connected().cloned();
        let counted = Leases(redis.clone());
        let level = counted.take(holder, draw, now)?;
        Ok((level, Reservation { draw, redis }))
    }

    fn connected(&self) -> Option<&Handle> {
        self.0.as_ref().filter(|redis| redis.is_up())
    }
}

/// Units that were reserved, and the count that knows of them.
#[derive(Clone, Debug)]
pub struct Reservation {
    draw: Draw,
    redis: Option<Handle>,
}

impl Reservation {
    /// Replaces the reserved units by the used ones.
    pub fn reconcile(&self, holder: &Arc<Holder>, used: u32, now: Moment) {
        let Draw {
            unit, rate, units, ..
        } = self.draw;
        let lease = unit.of(&holder.account);
        let Some(redis) = &self.redis else {
            return lease.reconcile(rate, units, used, now);
        };
        lease.reconcile_shared(rate, units, used, now);
        report(redis, unit, holder, rate);
    }
}

/// Returns the pattern of the keys in Redis that count for an API key.
pub fn pattern_of(key_id: &str) -> String {
    format!("{}*", keys_of(key_id))
}

/// The beginning of those keys.
fn keys_of(key_id: &str) -> String {
    format!("autoglmd:{{{key_id}}}:")
}

/// Sends what a key has taken since the last report, unless a report is under way: then its reply
/// sends the next one.
fn report(redis: &Handle, unit: Unit, holder: &Arc<Holder>, rate: Rate) {
    let lease = unit.of(&holder.account);
    let Some(units) = lease.report() else {
        return;
    };
    let key = format!("{}{}", keys_of(&holder.record.id), unit.as_str());
    let earned_in = 60_000_000.0 / f64::from(rate.per_minute);
    let most = earned_in * f64::from(rate.burst) * f64::from(limits::LEASE_DEBT_FACTOR_MAX);
    let arguments = [
        units.0.to_string(),
        format!("{earned_in:.6}"),
        format!("{most:.0}"),
    ];
    let [number, earned_in, most] = arguments.each_ref().map(String::as_bytes);
    let words = [
        b"EVAL",
        COUNT.as_bytes(),
        b"1",
        key.as_bytes(),
        number,
        earned_in,
        most,
    ];
    let (back, of) = (redis.clone(), Arc::clone(holder));
    let request = Request::new(&key, &words, Moment::NEVER, move |reply| {
        let lease = unit.of(&of.account);
        match reply {
            Reply::Number(missing) => {
                let missing = Duration::from_micros(missing.max(0).unsigned_abs());
                lease.settle(rate, units, missing, Moment::now());
                report(&back, unit, &of, rate);
            }
            // It may have been counted. The next request of the key reports again.
            _ => lease.give_up(units),
        }
    });
    if redis.submit(request).is_err() {
        lease.withdraw();
    }
}
