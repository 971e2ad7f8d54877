//! The store's part of callbacks: which are sent next, and the results of attempts.
//!
//! Keys take turns: a claim goes from key to key, in the order of their names, and takes of each no
//! more than [`SlowKeys`] lets it have. The next claim continues behind the last one. So a key
//! with ten thousand callbacks to a silent receiver delays no other key.
//!
//! A transaction that met a conflict is run again. So a claim reads what it was asked, and writes
//! what it has found beside that.
//!
//! Mutations that the tests catch: `find` without the bound per key; one that begins with the first
//! key again, or where the lost run ended.

use std::collections::HashMap;

use crate::jobs::{Callback, CallbackState, JobId, JobRecord, WebhookSecret};
use crate::limits::jobs as limits;
use crate::store::{Store, StoreError};

use super::callback_places::SlowKeys;
use super::tasks::StoreWork;

/// A request to the store, and later its result.
pub enum CallbackWork {
    Claim(Claim),
    Save {
        /// By the serial numbers of attempts.
        settled: Vec<(u64, Settled)>,
    },
}

/// Takes callbacks that are due.
pub struct Claim {
    // The question.
    /// How many may be taken.
    pub room: u32,
    /// How many are under way for each key.
    pub busy: HashMap<String, u32>,
    pub slow: SlowKeys,
    /// The key that the last claim ended with.
    pub after: String,
    pub now: u64,
    /// When the attempts must be over.
    pub lease_until: u64,
    /// Writes what is sent.
    pub body: fn(&JobRecord) -> Vec<u8>,
    // The result.
    pub found: Found,
}

/// The result of a claim.
#[derive(Default)]
pub struct Found {
    pub claimed: Vec<Claimed>,
    /// The key that it ended with. Empty: there was no further one.
    pub after: String,
}

/// A callback that is to be sent.
pub struct Claimed {
    pub job: JobId,
    pub key_id: String,
    pub url: String,
    pub callback: Callback,
    /// When the job is deleted.
    pub expires_at: u64,
    pub secrets: Vec<WebhookSecret>,
    pub body: Vec<u8>,
}

/// The end of an attempt.
#[derive(Clone)]
pub struct Settled {
    pub job: JobId,
    pub callback: Callback,
}

impl StoreWork for CallbackWork {
    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        match self {
            CallbackWork::Claim(claim) => {
                claim.found = claim.find(store)?;
                Ok(())
            }
            CallbackWork::Save { settled } => settled.iter().try_for_each(|(_, settled)| {
                let attempt = settled.callback.attempts;
                // A result that comes too late changes nothing: another attempt has begun.
                store.save_callback(settled.job, attempt, &settled.callback)?;
                Ok(())
            }),
        }
    }
}

impl Claim {
    fn find(&self, store: &mut dyn Store) -> Result<Found, StoreError> {
        let mut found = Found {
            claimed: Vec::new(),
            after: self.after.clone(),
        };
        for _ in 0..limits::CALLBACK_KEYS_MAX {
            let room = self.room.saturating_sub(found.claimed.len() as u32);
            if room == 0 {
                break;
            }
            let Some(key_id) = store.next_callback_key(&found.after)? else {
                found.after.clear();
                break;
            };
            let busy = self.busy.get(&key_id).copied().unwrap_or(0);
            let free = self.slow.room_for(&key_id, busy, room);
            if free > 0 {
                for job in store.due_callbacks(&key_id, self.now, free)? {
                    found.claimed.extend(self.take(store, job)?);
                }
            }
            found.after = key_id;
        }
        Ok(found)
    }

    /// Returns `None` if there is nothing to send any more.
    fn take(&self, store: &mut dyn Store, id: JobId) -> Result<Option<Claimed>, StoreError> {
        let Some(job) = store.job(id)? else {
            return Ok(None);
        };
        let pending = job.callback.as_ref();
        let pending = pending.filter(|callback| callback.state == CallbackState::Pending);
        let (Some(pending), Some(url)) = (pending, job.callback_url.clone()) else {
            return Ok(None);
        };
        let callback = pending.claim(self.lease_until);
        if !store.save_callback(id, pending.attempts, &callback)? {
            return Ok(None);
        }
        let secrets = store.webhook_secrets(&job.key_id, self.now / 1_000)?;
        Ok(Some(Claimed {
            job: id,
            url,
            callback,
            expires_at: job.expires_at,
            secrets: secrets
                .iter()
                .filter_map(|text| WebhookSecret::parse(text))
                .collect(),
            body: (self.body)(&job),
            key_id: job.key_id,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::NewJob;
    use crate::runner::change::cancel;
    use crate::store::interface::Groups as _;
    use crate::store::{Jobs, SqliteStore};

    fn ended(store: &mut SqliteStore, number: u8, key_id: &str) -> JobId {
        let id = JobId::new(number.into(), [number; 10]);
        let job = NewJob {
            id,
            key_id: key_id.to_owned(),
            created_at: 1,
            expires_at: 9,
            request: "{}".to_owned(),
            callback_url: Some("https://example.com/".to_owned()),
            idempotency: None,
        };
        store.insert_job(&job).unwrap();
        cancel(store, key_id, id, 10, 89).unwrap();
        id
    }

    fn claim(room: u32) -> Claim {
        Claim {
            room,
            busy: HashMap::new(),
            slow: SlowKeys::default(),
            after: String::new(),
            now: 10,
            lease_until: 20,
            body: |_| b"body".to_vec(),
            found: Found::default(),
        }
    }

    /// Runs the claim, as a task, and returns the keys of what it has claimed and where it ended.
    fn run(work: &mut CallbackWork, store: &mut SqliteStore) -> (Vec<String>, String) {
        work.run(store).unwrap();
        let CallbackWork::Claim(Claim { found, .. }) = work else {
            panic!("it is a claim");
        };
        let keys = found.claimed.iter().map(|claimed| claimed.key_id.clone());
        (keys.collect(), found.after.clone())
    }

    /// The group of the claim has met a conflict with another daemon's.
    ///
    /// Mutations: a claim that begins with the room, or behind the key, that a lost run has left.
    #[test]
    fn a_claim_that_is_run_again_claims_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open_in(folder.path()).unwrap();
        ended(&mut store, 1, "key_a");
        ended(&mut store, 2, "key_b");
        let mut work = CallbackWork::Claim(claim(1));
        let expected = (vec!["key_a".to_owned()], "key_a".to_owned());
        store.begin().unwrap();
        assert_eq!(run(&mut work, &mut store), expected);
        store.roll_back();
        store.begin().unwrap();
        assert_eq!(run(&mut work, &mut store), expected);
        store.commit().unwrap();
    }

    #[test]
    fn keys_take_turns_and_each_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open_in(folder.path()).unwrap();
        let per_key = limits::CALLBACK_REQUESTS_PER_KEY_MAX;
        for number in 0..2 * per_key as u8 {
            ended(&mut store, number, "key_a");
        }
        let last = ended(&mut store, 200, "key_b");
        let mut work = CallbackWork::Claim(Claim {
            busy: HashMap::from([("key_a".to_owned(), 3)]),
            ..claim(limits::CALLBACK_QUICK_REQUESTS + per_key + 1)
        });
        let (keys, after) = run(&mut work, &mut store);
        let mut expected = vec!["key_a"; per_key as usize - 3];
        expected.push("key_b");
        assert_eq!(keys, expected);
        let CallbackWork::Claim(Claim { found, .. }) = &work else {
            panic!("it is a claim");
        };
        let found = found.claimed.last().unwrap();
        assert_eq!((found.job, found.callback.attempts), (last, 1));
        assert!(found.secrets.is_empty(), "the key is unknown");
        assert_eq!(after, "", "it is the last key");

        let mut next = |after: &str| {
            let after = after.to_owned();
            let next = Claim { after, ..claim(1) };
            run(&mut CallbackWork::Claim(next), &mut store)
        };
        let expected = (vec!["key_a".to_owned()], "key_a".to_owned());
        assert_eq!(next(""), expected);
        assert_eq!(next("key_a"), (Vec::new(), String::new()));
    }
}
