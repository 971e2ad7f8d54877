//! The places of callbacks under way: which attempts may take one, and which have to leave theirs.
//!
//! A receiver that is silent holds a place for the whole of `jobs.callback_timeout`. A bound for
//! each key is of no use against that once there are enough such keys, and neither are shares of
//! the places (`offload/shares.rs`): ten silent keys take all of 64, and a newcomer waits for them.
//! So the last [`CALLBACK_QUICK_REQUESTS`] places are for short stays:
//!
//! ```text
//!   |<------ for all keys, within each key's bound   ------>|<---- quick ---->|
//!                                                            one for each key that holds none
//!                                                            and is not known as slow
//! ```
//!
//! An attempt is *slow* once it has taken [`CALLBACK_QUICK_TIME`]. If there are more slow ones than
//! places for everyone, some of them end, as if their time had passed: the oldest of the key that
//! has the most. So a quick place is free again after that time, however many keys are silent. A
//! key that was slow gets no quick place until one of its attempts was not, and so it takes that
//! time from others once.
//!
//! Owns the set of slow keys. Pure: the thread of callbacks owns the attempts.
//!
//! Mutations that the tests catch: `room_for` that lets a slow key into the quick places, or a key
//! take several of them; `leaving` that chooses the youngest, or any key's; `note` without its
//! bound.
//!
//! [`CALLBACK_QUICK_REQUESTS`]: limits::CALLBACK_QUICK_REQUESTS
//! [`CALLBACK_QUICK_TIME`]: limits::CALLBACK_QUICK_TIME

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::core::Moment;
use crate::limits::jobs as limits;

/// The places for everyone.
const COMMON_PLACES: usize =
    (limits::CALLBACK_REQUESTS_MAX - limits::CALLBACK_QUICK_REQUESTS) as usize;

/// An attempt that waits for its receiver.
#[derive(Clone, Copy, Debug)]
pub struct Waiting<'a> {
    pub serial: u64,
    pub key_id: &'a str,
    pub begun: Moment,
}

/// Keys whose last attempt was slow. The store's thread reads a copy, so it is shared.
#[derive(Clone, Debug, Default)]
pub struct SlowKeys(Arc<HashSet<String>>);

impl SlowKeys {
    /// Returns how many callbacks of a key may begin, of those that have `room` together. `busy` of
    /// the key's are under way.
    pub fn room_for(&self, key_id: &str, busy: u32, room: u32) -> u32 {
        let common = room.saturating_sub(limits::CALLBACK_QUICK_REQUESTS);
        let quick = u32::from(room > 0 && busy == 0 && !self.0.contains(key_id));
        let own = limits::CALLBACK_REQUESTS_PER_KEY_MAX.saturating_sub(busy);
        common.max(quick).min(own)
    }

    /// Notes the keys of attempts that are slow by now.
    pub fn note_waiting<'a>(&mut self, waiting: impl Iterator<Item = Waiting<'a>>, now: Moment) {
        for one in waiting {
            let time = now.since(one.begun);
            if time >= limits::CALLBACK_QUICK_TIME {
                self.note(one.key_id, time);
            }
        }
    }

    /// Notes how long an attempt of a key has taken, whether or not it has ended. Of more slow keys
    /// than are kept, each new one counts as a newcomer.
    pub fn note(&mut self, key_id: &str, time: Duration) {
        let is_known = self.0.contains(key_id);
        let is_slow = time >= limits::CALLBACK_QUICK_TIME;
        if is_slow && !is_known && self.0.len() < limits::CALLBACK_SLOW_KEYS_MAX {
            Arc::make_mut(&mut self.0).insert(key_id.to_owned());
        } else if !is_slow && is_known {
            Arc::make_mut(&mut self.0).remove(key_id);
        }
    }
}

/// Returns the attempt that has to leave its place, if one has to by now.
pub fn leaving<'a>(waiting: impl Iterator<Item = Waiting<'a>>, now: Moment) -> Option<u64> {
    let is_slow = |one: &Waiting<'_>| now.since(one.begun) >= limits::CALLBACK_QUICK_TIME;
    let slow: Vec<Waiting<'_>> = waiting.filter(is_slow).collect();
    if slow.len() <= COMMON_PLACES {
        return None;
    }
    let mut held = HashMap::new();
    for one in &slow {
        *held.entry(one.key_id).or_insert(0_usize) += 1;
    }
    let oldest_of_most = |one: &&Waiting<'_>| {
        let most = usize::MAX - held.get(one.key_id).copied().unwrap_or(0);
        (most, one.begun, one.serial)
    };
    slow.iter().min_by_key(oldest_of_most).map(|one| one.serial)
}

/// Returns when the next attempt has to leave its place, if none of them ends before.
pub fn next_leaving<'a>(waiting: impl Iterator<Item = Waiting<'a>>) -> Moment {
    let mut begun: Vec<Moment> = waiting.map(|one| one.begun).collect();
    begun.sort_unstable();
    let first = begun.get(COMMON_PLACES);
    first.map_or(Moment::NEVER, |begun| *begun + limits::CALLBACK_QUICK_TIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = limits::CALLBACK_QUICK_TIME;

    fn at(seconds: u64) -> Moment {
        Moment::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn the_quick_places_are_for_keys_that_hold_none_and_are_not_slow() {
        let most = limits::CALLBACK_REQUESTS_MAX;
        let (quick, own) = (
            limits::CALLBACK_QUICK_REQUESTS,
            limits::CALLBACK_REQUESTS_PER_KEY_MAX,
        );
        let mut slow = SlowKeys::default();
        slow.note("slow", SLOW);
        for (key, busy, room, expected) in [
            ("new", 0, most, own),
            ("new", 3, most, own - 3),
            ("new", 0, quick + 2, 2),
            ("new", 0, quick, 1),
            ("new", 0, 1, 1),
            ("new", 0, 0, 0),
            ("new", 1, quick, 0),
            ("new", own, most, 0),
            ("slow", 0, most, own),
            ("slow", 0, quick + 1, 1),
            ("slow", 0, quick, 0),
        ] {
            let room_for = slow.room_for(key, busy, room);
            assert_eq!(room_for, expected, "{key}, {busy} busy, room for {room}");
        }
        slow.note("slow", SLOW - Duration::from_millis(1));
        assert_eq!(slow.room_for("slow", 0, quick), 1);
    }

    #[test]
    fn the_oldest_of_the_key_with_the_most_slow_ones_leaves() {
        let mut waiting: Vec<(u64, String, u64)> = (0..COMMON_PLACES as u64)
            .map(|serial| (serial, format!("key_{}", serial / 4), serial % 4))
            .collect();
        let all = |waiting: &[(u64, String, u64)], now| {
            let waiting = waiting.iter().map(|(serial, key_id, begun)| Waiting {
                serial: *serial,
                key_id,
                begun: at(*begun),
            });
            (leaving(waiting.clone(), at(now)), next_leaving(waiting))
        };
        assert_eq!(all(&waiting, 90), (None, Moment::NEVER));
        // The fifth of a key, neither its first nor its oldest.
        waiting.push((100, "key_3".to_owned(), 20));
        assert_eq!(all(&waiting, 20), (None, at(20) + SLOW));
        assert_eq!(all(&waiting, 21).0, Some(12));
        waiting.retain(|(serial, ..)| *serial != 12);
        assert_eq!(all(&waiting, 90), (None, Moment::NEVER));
    }

    #[test]
    fn slow_keys_are_bounded() {
        let mut slow = SlowKeys::default();
        for number in 0..limits::CALLBACK_SLOW_KEYS_MAX + 3 {
            slow.note(&format!("key_{number}"), SLOW);
        }
        assert_eq!(slow.0.len(), limits::CALLBACK_SLOW_KEYS_MAX);
    }
}
