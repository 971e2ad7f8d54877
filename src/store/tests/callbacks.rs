//! Callbacks and their secrets in a store, whatever database is behind it.

use super::{Bed, OneJob as _, on_each_database};
use crate::jobs::{Callback, CallbackState, JobId, NewJob, State};
use crate::store::interface::jobs::JobEnd;
use crate::store::{NewKey, Store};

on_each_database!(
    a_job_with_a_url_has_a_callback_from_its_end_on,
    callbacks_are_due_by_key_and_time,
    a_result_of_an_earlier_attempt_is_not_saved,
    two_secrets_sign_during_a_rotation,
    a_secret_that_was_not_shown_is_taken_back,
);

const KEY: &str = "key_one";
const OTHER: &str = "key_two";

fn id(number: u8) -> JobId {
    JobId::new(number.into(), [number; 10])
}

/// Inserts a job with a URL, and ends it at this time.
fn ended(store: &mut dyn Store, number: u8, key_id: &str, at: u64) {
    insert(store, number, key_id, Some("https://example.com/done"));
    end(store, id(number), at);
}

fn insert(store: &mut dyn Store, number: u8, key_id: &str, url: Option<&str>) {
    let job = NewJob {
        id: id(number),
        key_id: key_id.to_owned(),
        created_at: 1,
        expires_at: 5_000,
        request: "{}".to_owned(),
        callback_url: url.map(str::to_owned),
        idempotency: None,
    };
    store.insert_job(&job).unwrap();
}

fn end(store: &mut dyn Store, job: JobId, at: u64) {
    let mut life = store.job_life(job).unwrap().unwrap();
    life.cancel().unwrap();
    let end = JobEnd {
        finished_at: at,
        expires_at: 9_000,
        ending: None,
    };
    store.finish_job(job, &life, end).unwrap();
}

fn callback(store: &mut dyn Store, number: u8) -> Option<Callback> {
    store.job(id(number)).unwrap().unwrap().callback
}

fn a_job_with_a_url_has_a_callback_from_its_end_on<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1, KEY, Some("https://example.com/done"));
    insert(store, 2, KEY, None);
    assert_eq!(callback(store, 1), None);
    assert_eq!(store.next_callback_key("").unwrap(), None);
    end(store, id(1), 2_000);
    end(store, id(2), 2_000);
    let expected = Callback {
        state: CallbackState::Pending,
        attempts: 0,
        next_at: 2_000,
        error: None,
    };
    assert_eq!(callback(store, 1), Some(expected));
    assert_eq!(callback(store, 2), None, "it has no URL");
    assert_eq!(
        store.job(id(1)).unwrap().unwrap().life.state,
        State::Cancelled
    );

    assert_eq!(store.delete_old_jobs(9_000, 10).unwrap(), 2);
    assert_eq!(bed.count("callbacks"), 0, "it goes with its job");
}

fn callbacks_are_due_by_key_and_time<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    for (number, key, at) in [(1, OTHER, 2_000), (2, KEY, 2_002), (3, KEY, 2_001)] {
        ended(store, number, key, at);
    }
    assert_eq!(store.next_callback_key("").unwrap().as_deref(), Some(KEY));
    assert_eq!(
        store.next_callback_key(KEY).unwrap().as_deref(),
        Some(OTHER)
    );
    assert_eq!(store.next_callback_key(OTHER).unwrap(), None);
    let mut due = |now, limit| store.due_callbacks(KEY, now, limit).unwrap();
    assert_eq!(due(2_000, 9), []);
    assert_eq!(due(2_001, 9), [id(3)]);
    assert_eq!(due(2_002, 9), [id(3), id(2)]);
    assert_eq!(due(2_002, 1), [id(3)]);
}

fn a_result_of_an_earlier_attempt_is_not_saved<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    ended(store, 1, KEY, 2_000);
    let first = callback(store, 1).unwrap().claim(3_000);
    assert!(store.save_callback(id(1), 0, &first).unwrap());
    assert_eq!(store.due_callbacks(KEY, 2_999, 9).unwrap(), []);
    assert_eq!(store.due_callbacks(KEY, 3_000, 9).unwrap(), [id(1)]);
    let second = first.claim(4_000);
    assert!(store.save_callback(id(1), 1, &second).unwrap());
    let late = Callback {
        state: CallbackState::Failed,
        error: Some("late".to_owned()),
        ..first
    };
    assert!(!store.save_callback(id(1), 1, &late).unwrap());
    let done = Callback {
        state: CallbackState::Delivered,
        ..second
    };
    assert!(store.save_callback(id(1), 2, &done).unwrap());
    assert_eq!(callback(store, 1), Some(done.clone()));
    assert!(
        !store.save_callback(id(1), 2, &done).unwrap(),
        "it has ended"
    );
    assert_eq!(store.next_callback_key("").unwrap(), None);
}

fn two_secrets_sign_during_a_rotation<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let key = store.create(&NewKey::default(), 1).unwrap().0.id;
    let secrets = |store: &mut dyn Store, now| store.webhook_secrets(&key, now).unwrap();
    assert_eq!(secrets(store, 1), Vec::<String>::new());
    assert!(store.rotate_webhook_secret(&key, "a", 100).unwrap());
    assert_eq!(secrets(store, 1), ["a"]);
    assert!(store.rotate_webhook_secret(&key, "b", 100).unwrap());
    assert_eq!(secrets(store, 99), ["b", "a"]);
    assert_eq!(secrets(store, 100), ["b"], "the old one has ended");
    assert!(store.retire_webhook_secret(&key).unwrap());
    assert_eq!(secrets(store, 1), ["b"]);
    store.revoke(&key, 2).unwrap();
    assert_eq!(
        secrets(store, 1),
        Vec::<String>::new(),
        "the key is revoked"
    );
    assert!(!store.rotate_webhook_secret(&key, "c", 100).unwrap());
    assert!(!store.rotate_webhook_secret("key_none", "c", 100).unwrap());
    assert!(!store.retire_webhook_secret(&key).unwrap());
}

fn a_secret_that_was_not_shown_is_taken_back<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let key = store.create(&NewKey::default(), 1).unwrap().0.id;
    store.rotate_webhook_secret(&key, "a", 100).unwrap();
    store.rotate_webhook_secret(&key, "b", 100).unwrap();
    assert!(!store.withdraw_webhook_secret(&key, "a").unwrap());
    assert!(store.withdraw_webhook_secret(&key, "b").unwrap());
    assert_eq!(store.webhook_secrets(&key, 1).unwrap(), ["a"]);
}
