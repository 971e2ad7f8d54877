//! Deletes all keys of a pattern, for commands, which have no thread for Redis.
//!
//! Must never be called on a reactor's thread: each step waits for a server.

use ::redis::{Connection, RedisError, RedisResult, cmd, pipe};

use super::dial::{Dialer, Place, Settings};
use super::servers::ranges;
use crate::config::RedisServers;
use crate::limits::redis as limits;

/// Deletes the keys on every server, step by step. Returns how many.
pub fn delete_matching(mut settings: Settings, pattern: &str) -> RedisResult<u64> {
    settings.timeout = settings.timeout.max(limits::COMMAND_TIMEOUT);
    let mut dialer = Dialer::new(settings);
    let mut connection = dialer.dial()?;
    if !matches!(dialer.settings().url.servers, RedisServers::Cluster(_)) {
        return sweep(&mut connection, pattern);
    }
    let mut places: Vec<Place> = Vec::new();
    for range in ranges(&mut connection)? {
        let place = Place::Host(range.host);
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let of = |place: &Place| sweep(&mut dialer.dial_place(place)?, pattern);
    places.iter().map(of).sum::<Result<u64, RedisError>>()
}

fn sweep(connection: &mut Connection, pattern: &str) -> RedisResult<u64> {
    let (mut cursor, mut deleted) = (0_u64, 0);
    loop {
        let mut step = cmd("SCAN");
        step.arg(cursor).arg("MATCH").arg(pattern);
        step.arg("COUNT").arg(limits::SWEEP_STEP_KEYS);
        let (next, keys): (u64, Vec<Vec<u8>>) = step.query(connection)?;
        if !keys.is_empty() {
            let mut unlink = pipe();
            keys.iter().for_each(|key| {
                unlink.cmd("UNLINK").arg(key);
            });
            let counts: Vec<u64> = unlink.query(connection)?;
            deleted += counts.iter().sum::<u64>();
        }
        if next == 0 {
            return Ok(deleted);
        }
        cursor = next;
    }
}
