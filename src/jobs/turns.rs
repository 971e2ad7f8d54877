//! The turns of keys whose jobs wait: the key with the fewest running jobs is next, and among equal
//! ones the one that was passed over for longest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A key whose jobs wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingKey {
    pub id: String,
    pub queued: u64,
    pub running: u64,
}

/// Returns the next `room` turns, as indexes into `keys`, which are in the order of their turns
/// now. A key that gets a turn has one job more that runs, and goes behind its equals.
///
/// Mutations that the test below catches: a turn that does not count as a running job, or that
/// leaves the key in front of its equals.
pub fn next_turns(keys: &[WaitingKey], room: usize) -> Vec<usize> {
    let places = keys.iter().enumerate();
    let mut line: BinaryHeap<_> = places
        .map(|(index, key)| Reverse((key.running, index, index, key.queued)))
        .collect();
    let mut turns = Vec::new();
    while turns.len() < room {
        let Some(Reverse((running, _, index, queued))) = line.pop() else {
            break;
        };
        if queued == 0 {
            continue;
        }
        turns.push(index);
        let behind_all = keys.len() + turns.len();
        line.push(Reverse((running + 1, behind_all, index, queued - 1)));
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str, queued: u64, running: u64) -> WaitingKey {
        WaitingKey {
            id: id.to_owned(),
            queued,
            running,
        }
    }

    #[test]
    fn keys_with_few_running_jobs_come_first_and_equal_ones_alternate() {
        let keys = [key("a", 5, 0), key("b", 1, 0), key("c", 9, 2)];
        assert_eq!(next_turns(&keys, 4), [0, 1, 0, 2]);
        assert_eq!(next_turns(&keys, 9), [0, 1, 0, 2, 0, 2, 0, 2, 0]);
        assert_eq!(next_turns(&keys, 99).len(), 15);
        assert_eq!(next_turns(&[], 9), [0; 0]);
    }
}
