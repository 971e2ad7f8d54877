//! Keys in a store, whatever database is behind it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::thread;

use super::{Bed, on_each_database};
use crate::keys::{KeyRing, Scopes, Secret, Standing};
use crate::limits::store::HISTORY_ENTRIES;
use crate::store::{
    BOOTSTRAP_FILE, Bootstrap, ListedKey, Mark, NewKey, ReadKeys, Renewal, Revoked, Store,
    StoreError,
};

on_each_database!(
    a_created_key_is_found_again_after_reopening,
    revoking_keeps_the_row_and_its_first_time,
    rotating_without_grace_forgets_the_old_secret,
    rotating_with_grace_lets_the_old_secret_live_that_long,
    grace_does_not_outlive_the_key_s_own_end_and_the_lifetime_is_renewed,
    only_the_first_start_makes_a_bootstrap_key,
    a_bootstrap_key_that_cannot_be_written_is_not_made,
    daemons_that_start_at_once_make_one_key_between_them,
    a_weight_is_changed_without_a_new_secret,
    a_weight_that_no_command_has_written_is_brought_into_bounds,
    every_kind_of_change_is_in_the_history,
    a_key_that_lost_its_secrets_may_be_deleted_and_nothing_is_read_twice,
    a_history_of_another_database_is_not_taken_for_the_same,
    the_history_is_bounded_and_a_reader_that_stayed_away_reads_everything,
    a_key_that_was_not_shown_leaves_nothing,
    a_rotation_that_was_not_shown_restores_the_secret_that_worked,
    what_another_process_has_done_since_stays,
    keys_are_listed_by_their_age,
    a_second_rotation_does_not_lengthen_the_life_of_an_old_secret,
    the_history_forgets_a_key_that_is_removed,
);

fn new_key(expires_at: Option<u64>) -> NewKey {
    NewKey {
        name: "ci".into(),
        scopes: Scopes::GENERATE,
        expires_at,
        requests_per_minute: Some(10),
        tokens_per_minute: None,
        concurrency: Some(0),
        weight: 7,
    }
}

fn ring(store: &dyn Store) -> KeyRing {
    let ReadKeys::All(records) = store.read(None).unwrap().keys else {
        unreachable!("no mark was given");
    };
    KeyRing::new(records)
}

fn standing(store: &dyn Store, secret: &Secret, now: u64) -> Option<Standing> {
    let ring = ring(store);
    ring.find(secret.reveal())
        .map(|holder| holder.record.standing(now))
}

fn a_created_key_is_found_again_after_reopening<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, secret) = store.create(&new_key(Some(500)), 100).unwrap();
    drop(store);
    let store = bed.open();
    let ring = ring(&*store);
    assert_eq!(ring.find(secret.reveal()).unwrap().record, record);
    assert_eq!((record.concurrency, record.weight), (Some(0), 7));
    let listed = store.list().unwrap();
    assert_eq!(
        listed,
        [ListedKey {
            record,
            revoked_at: None
        }]
    );
}

fn revoking_keeps_the_row_and_its_first_time<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, secret) = store.create(&new_key(None), 1).unwrap();
    assert_eq!(store.revoke(&record.id, 7).unwrap(), Revoked::Now);
    assert_eq!(store.revoke(&record.id, 9).unwrap(), Revoked::Before(7));
    assert_eq!(standing(&*store, &secret, 7), Some(Standing::Revoked));
    assert_eq!(store.list().unwrap()[0].revoked_at, Some(7));
    let rotated = store.rotate(&record.id, 0, Renewal::SameLifetime, 8);
    assert!(matches!(rotated, Err(StoreError::RevokedKey(_))));
    assert!(matches!(
        store.revoke("key_none", 7),
        Err(StoreError::UnknownKey(_))
    ));
}

fn rotating_without_grace_forgets_the_old_secret<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, first) = store.create(&new_key(None), 1).unwrap();
    let (_, second) = store
        .rotate(&record.id, 60, Renewal::SameLifetime, 10)
        .unwrap();
    let (kept, third) = store
        .rotate(&record.id, 0, Renewal::SameLifetime, 20)
        .unwrap();
    assert_eq!(kept.id, record.id);
    assert_eq!(standing(&*store, &first, 20), None);
    assert_eq!(standing(&*store, &second, 20), None);
    assert_eq!(standing(&*store, &third, 20), Some(Standing::Valid));
    assert_eq!(store.list().unwrap().len(), 1);
}

fn rotating_with_grace_lets_the_old_secret_live_that_long<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, old) = store.create(&new_key(None), 1).unwrap();
    let (_, new) = store
        .rotate(&record.id, 60, Renewal::SameLifetime, 100)
        .unwrap();
    assert_eq!(standing(&*store, &old, 159), Some(Standing::Valid));
    assert_eq!(standing(&*store, &old, 160), Some(Standing::Expired));
    assert_eq!(standing(&*store, &new, 160), Some(Standing::Valid));
    let ring = ring(&*store);
    assert_eq!(
        ring.find(old.reveal()).unwrap().record.id,
        ring.find(new.reveal()).unwrap().record.id
    );
    assert_eq!(store.list().unwrap().len(), 1);
}

fn grace_does_not_outlive_the_key_s_own_end_and_the_lifetime_is_renewed<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, old) = store.create(&new_key(Some(1_000)), 900).unwrap();
    let (rotated, new) = store
        .rotate(&record.id, 500, Renewal::SameLifetime, 950)
        .unwrap();
    assert_eq!(rotated.expires_at, Some(1_050));
    assert_eq!(standing(&*store, &old, 999), Some(Standing::Valid));
    assert_eq!(standing(&*store, &old, 1_000), Some(Standing::Expired));
    assert_eq!(standing(&*store, &new, 1_049), Some(Standing::Valid));
    // Long expired: the way out that the error catalogue names must work.
    let (revived, _) = store
        .rotate(&record.id, 0, Renewal::SameLifetime, 5_000)
        .unwrap();
    assert_eq!(revived.expires_at, Some(5_100));
    let (moved, _) = store
        .rotate(&record.id, 0, Renewal::At(9_000), 5_000)
        .unwrap();
    assert_eq!(moved.expires_at, Some(9_000));
}

fn only_the_first_start_makes_a_bootstrap_key<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    // Left by a crash: neither name may be in the way.
    fs::write(bed.folder().join("bootstrap-key.new"), "half a k").unwrap();
    fs::write(bed.folder().join(BOOTSTRAP_FILE), "agk_of_another_life\n").unwrap();
    let made = store.bootstrap(bed.folder(), 5).unwrap().unwrap();
    let kept = fs::read_to_string(&made.path).unwrap();
    assert_eq!(kept, format!("{}\n", made.secret.reveal()));
    assert_eq!(
        fs::metadata(&made.path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(made.record.scopes, Scopes::ALL);
    assert_eq!(standing(&*store, &made.secret, 5), Some(Standing::Valid));
    assert!(!bed.folder().join("bootstrap-key.new").exists());

    store.revoke(&made.record.id, 6).unwrap();
    assert!(store.bootstrap(bed.folder(), 7).unwrap().is_none());
}

fn a_bootstrap_key_that_cannot_be_written_is_not_made<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let missing = bed.folder().join("missing");
    assert!(matches!(
        store.bootstrap(&missing, 1),
        Err(StoreError::File(..))
    ));
    assert_eq!(store.list().unwrap(), []);
}

fn daemons_that_start_at_once_make_one_key_between_them<B: Bed>() {
    const DAEMONS: usize = 8;
    let bed = B::new();
    let barrier = Barrier::new(DAEMONS);
    let start = || {
        barrier.wait();
        let mut store = bed.open();
        store.bootstrap(bed.folder(), 1).unwrap()
    };
    let made: Vec<Bootstrap> = thread::scope(|scope| {
        let threads: Vec<_> = (0..DAEMONS).map(|_| scope.spawn(start)).collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(made.len(), 1);
    let store = bed.open();
    assert_eq!(store.list().unwrap().len(), 1);
    let kept = fs::read_to_string(bed.folder().join(BOOTSTRAP_FILE)).unwrap();
    assert_eq!(standing(&*store, &made[0].secret, 1), Some(Standing::Valid));
    assert_eq!(kept.trim_end(), made[0].secret.reveal());
}

fn a_weight_is_changed_without_a_new_secret<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, secret) = store.create(&new_key(None), 1).unwrap();
    store.set_weight(&record.id, 3).unwrap();
    let ring = ring(&*store);
    assert_eq!(ring.find(secret.reveal()).unwrap().record.weight, 3);
    let unknown = store.set_weight("key_none", 3);
    assert!(matches!(unknown, Err(StoreError::UnknownKey(_))));
    store.revoke(&record.id, 2).unwrap();
    let revoked = store.set_weight(&record.id, 4);
    assert!(matches!(revoked, Err(StoreError::RevokedKey(_))));
}

fn a_weight_that_no_command_has_written_is_brought_into_bounds<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    store.create(&new_key(None), 1).unwrap();
    for (written, read) in [(1_000_000, 100), (100, 100), (1, 1)] {
        bed.raw(&format!("UPDATE keys SET weight = {written}"));
        assert_eq!(store.list().unwrap()[0].record.weight, read);
    }
    assert!(bed.try_raw("UPDATE keys SET weight = 0").is_err());
}

// ---- the history of changes ----------------------------------------------------------------

/// Returns the ids that have changed since a mark, and moves it.
fn changed_ids(store: &dyn Store, mark: &mut Option<Mark>) -> Option<Vec<String>> {
    let reading = store.read(*mark).unwrap();
    *mark = reading.mark;
    match reading.keys {
        ReadKeys::All(_) => None,
        ReadKeys::Changed(keys) => Some(keys.into_iter().map(|key| key.id).collect()),
    }
}

/// Each step changes one key, and the ring that follows the history must be that of all keys.
fn every_kind_of_change_is_in_the_history<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let watched = bed.open();
    let other = store.create(&new_key(None), 1).unwrap().0;
    let reading = watched.read(None).unwrap();
    let (mut ring, mut mark) = (ring(&*watched), reading.mark);
    let mut expect = |id: &str, what: &str| {
        let reading = watched.read(mark).unwrap();
        mark = reading.mark;
        let ReadKeys::Changed(keys) = reading.keys else {
            panic!("{what}: everything was read");
        };
        let ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
        assert_eq!(ids, [id], "{what}");
        ring = ring.changed(keys).expect(what);
        let ReadKeys::All(records) = watched.read(None).unwrap().keys else {
            unreachable!("no mark was given");
        };
        assert!(
            ring.replaced(records).is_none(),
            "{what}: not the ring of all keys"
        );
    };
    let (record, _) = store.create(&new_key(None), 1).unwrap();
    expect(&record.id, "a creation");
    store.withdraw().unwrap();
    expect(&record.id, "a creation that is taken back");
    let id = store.create(&new_key(None), 1).unwrap().0.id;
    expect(&id, "a creation");
    for grace in [0, 60, 0] {
        let rotated = store.rotate(&id, grace, Renewal::SameLifetime, 2);
        rotated.unwrap();
        expect(&id, "a rotation");
    }
    store.withdraw().unwrap();
    expect(&id, "a rotation that is taken back");
    store.set_weight(&id, 3).unwrap();
    expect(&id, "a weight");
    store.revoke(&other.id, 3).unwrap();
    expect(&other.id, "a revocation");
    bed.raw(&format!(
        "UPDATE secrets SET valid_until = 9 WHERE key_id = '{id}'"
    ));
    expect(&id, "a secret's end");
    bed.raw(&format!("DELETE FROM secrets WHERE key_id = '{id}'"));
    expect(&id, "deleted secrets");
}

fn a_key_that_lost_its_secrets_may_be_deleted_and_nothing_is_read_twice<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, _) = store.create(&new_key(None), 1).unwrap();
    let mut mark = store.read(None).unwrap().mark;
    assert_eq!(changed_ids(&*store, &mut mark), Some(Vec::new()));
    for table in ["secrets WHERE key_id", "keys WHERE id"] {
        let sql = format!("DELETE FROM {table} = '{}'", record.id);
        bed.raw(&sql);
        let expected = Some(vec![record.id.clone()]);
        assert_eq!(changed_ids(&*store, &mut mark), expected, "{sql}");
    }
    assert_eq!(changed_ids(&*store, &mut mark), Some(Vec::new()));
}

/// As after `.restore` in SQLite's shell, which replaces the contents of the same file.
fn a_history_of_another_database_is_not_taken_for_the_same<B: Bed>() {
    let (bed, other_bed) = (B::new(), B::new());
    let (mut one, mut other) = (bed.open(), other_bed.open());
    for store in [&mut one, &mut other] {
        store.create(&new_key(None), 1).unwrap();
    }
    let mark = one.read(None).unwrap().mark;
    let number = |mark: Option<Mark>| mark.unwrap().number;
    assert_eq!(number(mark), number(other.read(None).unwrap().mark));
    assert_eq!(changed_ids(&*other, &mut mark.clone()), None);
    other.create(&new_key(None), 1).unwrap();
    assert_eq!(changed_ids(&*other, &mut mark.clone()), None);
    // And without any history.
    other_bed.raw("DELETE FROM key_changes");
    let mut mark = mark;
    assert_eq!(changed_ids(&*other, &mut mark), None);
    assert_eq!(mark, None);
    assert_eq!(changed_ids(&*other, &mut mark), None);
}

fn the_history_is_bounded_and_a_reader_that_stayed_away_reads_everything<B: Bed>() {
    let bed = B::new();
    let store = bed.open();
    let mut mark = store.read(None).unwrap().mark;
    let fill = |rows: u32| {
        bed.raw(&format!(
            "INSERT INTO key_changes (key_id)
             WITH RECURSIVE numbers (number) AS (
                 SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < {rows}
             )
             SELECT 'key_1' FROM numbers"
        ));
    };
    let rows = || bed.count("key_changes");
    fill(HISTORY_ENTRIES - 1);
    assert_eq!(rows(), HISTORY_ENTRIES);
    let expected = Some(vec!["key_1".to_owned()]);
    assert_eq!(changed_ids(&*store, &mut mark), expected);
    fill(HISTORY_ENTRIES);
    assert_eq!(rows(), HISTORY_ENTRIES);
    assert_eq!(changed_ids(&*store, &mut mark), None);
    assert_eq!(changed_ids(&*store, &mut mark), Some(Vec::new()));
}

// ---- secrets that could not be shown -------------------------------------------------------

fn a_key_that_was_not_shown_leaves_nothing<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (_, secret) = store.create(&NewKey::default(), 1).unwrap();
    assert!(store.withdraw().unwrap());
    assert_eq!(standing(&*store, &secret, 1), None);
    assert_eq!(store.list().unwrap(), []);
    assert!(!store.withdraw().unwrap(), "once");
}

/// A mutation that this test catches: `expires_at` not restored.
fn a_rotation_that_was_not_shown_restores_the_secret_that_worked<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let new = NewKey {
        expires_at: Some(1_000),
        ..NewKey::default()
    };
    let (record, first) = store.create(&new, 1).unwrap();
    let rotated = store.rotate(&record.id, 50, Renewal::SameLifetime, 10);
    let (_, second) = rotated.unwrap();
    let rotated = store.rotate(&record.id, 0, Renewal::At(9_000), 20);
    let (_, lost) = rotated.unwrap();
    assert!(store.withdraw().unwrap());
    assert_eq!(standing(&*store, &lost, 20), None);
    assert_eq!(standing(&*store, &second, 20), Some(Standing::Valid));
    assert_eq!(standing(&*store, &second, 8_000), Some(Standing::Expired));
    assert_eq!(standing(&*store, &first, 59), Some(Standing::Valid));
    assert_eq!(standing(&*store, &first, 60), Some(Standing::Expired));
}

fn what_another_process_has_done_since_stays<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, _) = store.create(&NewKey::default(), 1).unwrap();
    store
        .rotate(&record.id, 0, Renewal::SameLifetime, 2)
        .unwrap();
    let mut other = bed.open();
    let rotated = other.rotate(&record.id, 0, Renewal::SameLifetime, 3);
    let (_, secret) = rotated.unwrap();
    assert!(!store.withdraw().unwrap());
    assert_eq!(standing(&*store, &secret, 3), Some(Standing::Valid));
}

/// Mutation: `list` in another order.
fn keys_are_listed_by_their_age<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let ages = [3, 1, 2].map(|now| store.create(&new_key(None), now).unwrap().0.created_at);
    assert_eq!(ages, [3, 1, 2]);
    let listed = store.list().unwrap();
    let ages: Vec<u64> = listed.iter().map(|key| key.record.created_at).collect();
    assert_eq!(ages, [1, 2, 3]);
}

/// Mutation: `replace_secret` that sets the new end for every old secret.
fn a_second_rotation_does_not_lengthen_the_life_of_an_old_secret<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, first) = store.create(&new_key(None), 1).unwrap();
    for (grace, now) in [(10, 100), (60, 105)] {
        let rotated = store.rotate(&record.id, grace, Renewal::SameLifetime, now);
        rotated.unwrap();
    }
    assert_eq!(standing(&*store, &first, 109), Some(Standing::Valid));
    assert_eq!(standing(&*store, &first, 110), Some(Standing::Expired));
}

/// Mutation: `remove` that leaves the history.
fn the_history_forgets_a_key_that_is_removed<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (record, _) = store.create(&new_key(None), 1).unwrap();
    let mut mark = store.read(None).unwrap().mark;
    assert!(store.remove(&record.id).unwrap());
    assert_eq!(bed.count("key_changes WHERE key_id <> ''"), 0);
    assert_eq!(changed_ids(&*store, &mut mark), None, "all is read");
    assert!(mark.is_some());
}
