//! The store's part of callbacks: which are sent next, and the results of attempts.
//!
//! Keys take turns: a claim goes from key to key, in the order of their names, and takes of each no
//! more than [`SlowKeys`] lets it have. The next claim continues behind the last one. So a key
//! with ten thousand callbacks to a silent receiver delays no other key.
//!
//! Mutations that the tests catch: `run` without the bound per key; one that begins with the first
//! key again.

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
    /// How many may be taken.
    pub room: u32,
    /// How many are under way for each key.
    pub busy: HashMap<String, u32>,
    pub slow: SlowKeys,
    /// The key that the last claim ended with, and then this one. Empty: there was no further one.
    pub after: String,
    pub now: u64,
    /// When the attempts must be over.
    pub lease_until: u64,
    /// Writes what is sent.
    pub body: fn(&JobRecord) -> Vec<u8>,
    pub claimed: Vec<Claimed>,
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
            CallbackWork::Claim(claim) => claim.run(store),
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
    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.claimed.clear();
        for _ in 0..limits::CALLBACK_KEYS_MAX {
            if self.room == 0 {
                break;
            }
            let Some(key_id) = store.next_callback_key(&self.after)? else {
                self.after.clear();
                break;
            };
            let busy = self.busy.get(&key_id).copied().unwrap_or(0);
            let free = self.slow.room_for(&key_id, busy, self.room);
            if free > 0 {
                for job in store.due_callbacks(&key_id, self.now, free)? {
                    self.take(store, job)?;
                }
            }
            self.after = key_id;
        }
        Ok(())
    }

    fn take(&mut self, store: &mut dyn Store, id: JobId) -> Result<(), StoreError> {
        let Some(job) = store.job(id)? else {
            return Ok(());
        };
        let pending = job.callback.as_ref();
        let pending = pending.filter(|callback| callback.state == CallbackState::Pending);
        let (Some(pending), Some(url)) = (pending, job.callback_url.clone()) else {
            return Ok(());
        };
        let callback = pending.claim(self.lease_until);
        if !store.save_callback(id, pending.attempts, &callback)? {
            return Ok(());
        }
        let secrets = store.webhook_secrets(&job.key_id, self.now / 1_000)?;
        self.room -= 1;
        self.claimed.push(Claimed {
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
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::NewJob;
    use crate::runner::change::cancel;
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

    #[test]
    fn keys_take_turns_and_each_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(crate::store::DATABASE_FILE);
        let mut store = SqliteStore::open(&path).unwrap();
        let per_key = limits::CALLBACK_REQUESTS_PER_KEY_MAX;
        for number in 0..2 * per_key as u8 {
            ended(&mut store, number, "key_a");
        }
        let last = ended(&mut store, 200, "key_b");
        let mut claim = Claim {
            room: limits::CALLBACK_QUICK_REQUESTS + per_key + 1,
            busy: HashMap::from([("key_a".to_owned(), 3)]),
            slow: SlowKeys::default(),
            after: String::new(),
            now: 10,
            lease_until: 20,
            body: |_| b"body".to_vec(),
            claimed: Vec::new(),
        };
        claim.run(&mut store).unwrap();
        let keys = |claim: &Claim| -> Vec<String> {
            let claimed = claim.claimed.iter();
            claimed.map(|claimed| claimed.key_id.clone()).collect()
        };
        let mut expected = vec!["key_a"; per_key as usize - 3];
        expected.push("key_b");
        assert_eq!(keys(&claim), expected);
        let found = claim.claimed.last().unwrap();
        assert_eq!((found.job, found.callback.attempts), (last, 1));
        assert!(found.secrets.is_empty(), "the key is unknown");
        assert_eq!(claim.after, "", "it is the last key");

        claim.busy.clear();
        claim.room = 1;
        claim.run(&mut store).unwrap();
        assert_eq!(
            (keys(&claim), claim.after.as_str()),
            (vec!["key_a".to_owned()], "key_a")
        );
        claim.room = 1;
        claim.run(&mut store).unwrap();
        assert_eq!((keys(&claim), claim.after.as_str()), (Vec::new(), ""));
    }
}
