//! The acceptance of jobs on each database.

use super::*;
use crate::jobs::Idempotency;
use crate::store::Store;
use crate::store::tests::{Bed, on_each_database};

on_each_database!(
    each_bound_is_kept_and_named,
    the_jobs_of_a_group_count_against_each_other,
    a_retry_gets_the_first_job_and_another_request_a_conflict,
    equal_keys_of_idempotency_in_one_group_make_one_job,
    a_key_of_idempotency_is_free_once_its_job_is_gone,
    a_key_of_idempotency_and_a_callback_count_with_their_job,
    a_callback_needs_a_secret_of_its_own_key,
);

const ROOM: Bounds = Bounds {
    jobs: 100,
    jobs_of_key: 100,
    bytes: 1 << 20,
};

/// What a job of `candidate` counts.
const EACH: u64 = limits::ROW_BYTES + 14;

fn id(number: u8) -> JobId {
    JobId::new(number.into(), [number; 10])
}

fn candidate(number: u8, key_id: &str, bounds: Bounds) -> Candidate {
    let job = NewJob {
        id: id(number),
        key_id: key_id.to_owned(),
        created_at: 100,
        expires_at: 500,
        request: r#"{"prompt":"x"}"#.to_owned(),
        callback_url: None,
        idempotency: None,
    };
    Candidate { job, bounds }
}

fn accept_group(store: &mut dyn Store, group: &[Candidate]) -> Vec<Acceptance> {
    let group: Vec<&Candidate> = group.iter().collect();
    store.begin().unwrap();
    let outcomes = accept(store, &group).unwrap();
    store.commit().unwrap();
    assert_eq!(outcomes.len(), group.len());
    outcomes
}

fn accept_one(store: &mut dyn Store, one: Candidate) -> Acceptance {
    accept_group(store, &[one]).remove(0)
}

fn is_new(outcome: &Acceptance) -> bool {
    matches!(outcome, Acceptance::New(_))
}

fn each_bound_is_kept_and_named<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    for (number, key) in [(1, "a"), (2, "a"), (3, "b")] {
        assert!(is_new(&accept_one(store, candidate(number, key, ROOM))));
    }
    let jobs_of_key = |jobs_of_key| Bounds {
        jobs_of_key,
        ..ROOM
    };
    let bytes = |bytes| Bounds { bytes, ..ROOM };
    for (bounds, key, expected) in [
        (jobs_of_key(2), "a", Some(Bound::JobsOfKey)),
        (jobs_of_key(2), "b", None),
        (Bounds { jobs: 4, ..ROOM }, "c", Some(Bound::Jobs)),
        (bytes(4 * EACH), "b", Some(Bound::BytesOfKey)),
        (bytes(12 * EACH), "a", None),
        (bytes(4 * EACH - 1), "c", Some(Bound::BytesOfKey)),
    ] {
        let number = 10 + bed.count("jobs") as u8;
        let outcome = accept_one(store, candidate(number, key, bounds));
        match expected {
            Some(bound) => assert_eq!(outcome, Acceptance::Full(bound), "{bounds:?} {key}"),
            None => assert!(is_new(&outcome), "{bounds:?} {key}"),
        }
        assert_eq!(store.job(id(number)).unwrap().is_some(), expected.is_none());
    }
}

fn the_jobs_of_a_group_count_against_each_other<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let bounds = Bounds {
        jobs: 4,
        jobs_of_key: 2,
        ..ROOM
    };
    let keys = ["a", "b", "a", "a", "b", "c", "b"];
    let numbered = (1..).zip(keys);
    let group: Vec<_> = numbered
        .map(|(number, key)| candidate(number, key, bounds))
        .collect();
    let outcomes = accept_group(store, &group);
    let new: Vec<bool> = outcomes.iter().map(is_new).collect();
    assert_eq!(new, [true, true, true, false, true, false, false]);
    assert_eq!(outcomes[3], Acceptance::Full(Bound::JobsOfKey));
    assert_eq!(outcomes[5], Acceptance::Full(Bound::Jobs));
    let totals = store.job_totals(None).unwrap();
    assert_eq!((totals.queued, totals.bytes), (4, 4 * EACH));
    let Acceptance::New(record) = &outcomes[0] else {
        panic!("it is new");
    };
    assert_eq!(store.job(id(1)).unwrap().as_ref(), Some(&**record));
}

fn retry(number: u8, key: &str, created_at: u64, digest: u8) -> Candidate {
    let mut one = candidate(number, key, ROOM);
    one.job.created_at = created_at;
    one.job.idempotency = Some(Idempotency {
        key: "once".to_owned(),
        digest: [digest; 32],
        expires_at: 400,
    });
    one
}

fn a_retry_gets_the_first_job_and_another_request_a_conflict<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let mut ask = |one| accept_one(store, one);
    assert!(is_new(&ask(retry(1, "a", 100, 7))));
    assert!(matches!(ask(retry(2, "a", 200, 7)), Acceptance::Known(job) if job.id == id(1)));
    assert_eq!(ask(retry(3, "a", 200, 8)), Acceptance::Conflict);
    assert!(is_new(&ask(retry(4, "b", 200, 8))), "of another key");
    assert!(is_new(&ask(retry(5, "a", 400, 8))), "the first has expired");
    assert_eq!(bed.count("jobs"), 3);
}

fn equal_keys_of_idempotency_in_one_group_make_one_job<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let group = [
        retry(1, "a", 100, 7),
        retry(2, "a", 100, 7),
        retry(3, "a", 100, 8),
        retry(4, "b", 100, 8),
        candidate(5, "a", ROOM),
    ];
    let outcomes = accept_group(store, &group);
    assert!(is_new(&outcomes[0]));
    assert!(matches!(&outcomes[1], Acceptance::Known(job) if job.id == id(1)));
    assert_eq!(outcomes[2], Acceptance::Conflict);
    assert!(is_new(&outcomes[3]) && is_new(&outcomes[4]));
    assert_eq!(bed.count("idempotency"), 2);
    let again = accept_one(store, retry(6, "a", 100, 7));
    assert!(matches!(again, Acceptance::Known(job) if job.id == id(1)));
}

/// Mutation: a conflict with a request whose job is gone.
fn a_key_of_idempotency_is_free_once_its_job_is_gone<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let without_job = RememberedJob {
        id: id(9),
        digest: [8; 32],
        expires_at: 400,
    };
    store
        .remember_jobs(&[(("a", "once"), without_job)])
        .unwrap();
    assert!(is_new(&accept_one(store, retry(1, "a", 100, 7))));
    assert_eq!(store.erase_jobs("a", 9).unwrap(), 1);
    assert!(is_new(&accept_one(store, retry(2, "a", 200, 8))));
    assert_eq!(
        accept_one(store, retry(3, "a", 300, 7)),
        Acceptance::Conflict
    );
}

/// Mutations: `NewJob::bytes` without the key, or without the row of the callback.
fn a_key_of_idempotency_and_a_callback_count_with_their_job<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let own = store.create(&crate::store::NewKey::default(), 1).unwrap();
    let own = own.0.id;
    assert!(store.rotate_webhook_secret(&own, "secret", 9).unwrap());
    let url = "https://example.com/done";
    let one = |number, name_bytes, url: Option<&str>, room| {
        let mut one = candidate(number, &own, ROOM);
        one.bounds.bytes = limits::KEY_BYTES_DIVISOR * room;
        one.job.callback_url = url.map(str::to_owned);
        one.job.idempotency = Some(Idempotency {
            key: "k".repeat(name_bytes),
            digest: [number; 32],
            expires_at: 400,
        });
        one
    };
    let least = EACH + limits::IDEMPOTENCY_ROW_BYTES;
    let with_key = least + 255 * limits::IDEMPOTENCY_KEY_FACTOR;
    let full = Acceptance::Full(Bound::BytesOfKey);
    assert_eq!(accept_one(store, one(1, 255, None, with_key - 1)), full);
    assert!(is_new(&accept_one(store, one(2, 255, None, with_key))));
    let with_url =
        least + limits::IDEMPOTENCY_KEY_FACTOR + limits::CALLBACK_ROW_BYTES + url.len() as u64;
    let both = with_key + with_url;
    assert_eq!(accept_one(store, one(3, 1, Some(url), both - 1)), full);
    assert!(is_new(&accept_one(store, one(4, 1, Some(url), both))));
    assert_eq!(store.job_totals(Some(&own)).unwrap().bytes, both);
    assert_eq!(store.erase_jobs(&own, 9).unwrap(), 2);
    assert_eq!(store.job_totals(None).unwrap().bytes, 0);
}

/// Mutation: `signing_keys` without the secret, or without the revocation.
fn a_callback_needs_a_secret_of_its_own_key<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let new = crate::store::NewKey::default();
    let keys = [(); 3].map(|()| store.create(&new, 1).unwrap().0.id);
    for key in &keys[..2] {
        assert!(store.rotate_webhook_secret(key, "secret", 9).unwrap());
    }
    store.revoke(&keys[1], 2).unwrap();
    let numbered = (1..).zip(&keys);
    let mut group: Vec<_> = numbered
        .map(|(number, key)| candidate(number, key, ROOM))
        .collect();
    for one in &mut group {
        one.job.callback_url = Some("https://example.com/done".to_owned());
    }
    group.push(candidate(4, &keys[2], ROOM));
    let outcomes = accept_group(store, &group);
    assert!(is_new(&outcomes[0]) && is_new(&outcomes[3]));
    assert_eq!(outcomes[1..3], [Acceptance::Unsigned, Acceptance::Unsigned]);
    let stored = store.job(id(1)).unwrap();
    assert!(matches!(&outcomes[0], Acceptance::New(job) if stored.as_ref() == Some(job)));
}
