//! The store on real files, in temporary folders.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::thread;

use super::*;
use crate::keys::Standing;

fn store() -> (tempfile::TempDir, KeyStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = KeyStore::open_in(folder.path()).unwrap();
    (folder, store)
}

fn new_key(expires_at: Option<u64>) -> NewKey {
    NewKey {
        name: "ci".into(),
        scopes: Scopes::GENERATE,
        expires_at,
        requests_per_minute: Some(10),
        tokens_per_minute: None,
        concurrency: Some(0),
    }
}

fn standing(store: &KeyStore, secret: &Secret, now: u64) -> Option<Standing> {
    let ring = store.ring().unwrap();
    ring.find(secret.reveal())
        .map(|record| record.standing(now))
}

#[test]
fn a_created_key_is_found_again_after_reopening() {
    let (folder, mut store) = store();
    let (record, secret) = store.create(&new_key(Some(500)), 100).unwrap();
    drop(store);
    let store = KeyStore::open_in(folder.path()).unwrap();
    let ring = store.ring().unwrap();
    assert_eq!(**ring.find(secret.reveal()).unwrap(), record);
    assert_eq!(record.concurrency, Some(0));
    let listed = store.list().unwrap();
    assert_eq!(
        listed,
        [ListedKey {
            record,
            revoked_at: None
        }]
    );
}

#[test]
fn neither_the_database_nor_its_log_holds_a_key_s_text() {
    let (folder, mut store) = store();
    let (_, secret) = store.create(&new_key(None), 1).unwrap();
    let (_, rotated) = store
        .rotate(&store.list().unwrap()[0].record.id, 9, Renewal::At(9), 1)
        .unwrap();
    let mut files = 0;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        files += 1;
        for secret in [&secret, &rotated] {
            let text = secret.reveal().as_bytes();
            assert!(!bytes.windows(text.len()).any(|window| window == text));
        }
    }
    assert!(files >= 2, "the write-ahead log was not looked at");
}

#[test]
fn files_are_private_even_where_they_were_not() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("deep/state");
    let mut store = KeyStore::open_in(&state).unwrap();
    store.create(&new_key(None), 1).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for file in ["autoglmd.db", "autoglmd.db-wal", "autoglmd.db-shm"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file}");
    }
    drop(store);
    let database = state.join(DATABASE_FILE);
    fs::set_permissions(&database, Permissions::from_mode(0o644)).unwrap();
    KeyStore::open(&database).unwrap();
    assert_eq!(mode(&database), 0o600);
}

#[test]
fn revoking_keeps_the_row_and_its_first_time() {
    let (_folder, mut store) = store();
    let (record, secret) = store.create(&new_key(None), 1).unwrap();
    assert_eq!(store.revoke(&record.id, 7).unwrap(), Revoked::Now);
    assert_eq!(store.revoke(&record.id, 9).unwrap(), Revoked::Before(7));
    assert_eq!(standing(&store, &secret, 7), Some(Standing::Revoked));
    assert_eq!(store.list().unwrap()[0].revoked_at, Some(7));
    let rotated = store.rotate(&record.id, 0, Renewal::SameLifetime, 8);
    assert!(matches!(rotated, Err(StoreError::RevokedKey(_))));
    assert!(matches!(
        store.revoke("key_none", 7),
        Err(StoreError::UnknownKey(_))
    ));
}

#[test]
fn rotating_without_grace_forgets_the_old_secret() {
    let (_folder, mut store) = store();
    let (record, first) = store.create(&new_key(None), 1).unwrap();
    let (_, second) = store
        .rotate(&record.id, 60, Renewal::SameLifetime, 10)
        .unwrap();
    let (kept, third) = store
        .rotate(&record.id, 0, Renewal::SameLifetime, 20)
        .unwrap();
    assert_eq!(kept.id, record.id);
    assert_eq!(standing(&store, &first, 20), None);
    assert_eq!(standing(&store, &second, 20), None);
    assert_eq!(standing(&store, &third, 20), Some(Standing::Valid));
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn rotating_with_grace_lets_the_old_secret_live_that_long() {
    let (_folder, mut store) = store();
    let (record, old) = store.create(&new_key(None), 1).unwrap();
    let (_, new) = store
        .rotate(&record.id, 60, Renewal::SameLifetime, 100)
        .unwrap();
    assert_eq!(standing(&store, &old, 159), Some(Standing::Valid));
    assert_eq!(standing(&store, &old, 160), Some(Standing::Expired));
    assert_eq!(standing(&store, &new, 160), Some(Standing::Valid));
    let ring = store.ring().unwrap();
    assert_eq!(
        ring.find(old.reveal()).unwrap().id,
        ring.find(new.reveal()).unwrap().id
    );
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn grace_does_not_outlive_the_key_s_own_end_and_the_lifetime_is_renewed() {
    let (_folder, mut store) = store();
    let (record, old) = store.create(&new_key(Some(1_000)), 900).unwrap();
    let (rotated, new) = store
        .rotate(&record.id, 500, Renewal::SameLifetime, 950)
        .unwrap();
    assert_eq!(rotated.expires_at, Some(1_050));
    assert_eq!(standing(&store, &old, 999), Some(Standing::Valid));
    assert_eq!(standing(&store, &old, 1_000), Some(Standing::Expired));
    assert_eq!(standing(&store, &new, 1_049), Some(Standing::Valid));
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

#[test]
fn only_the_first_start_makes_a_bootstrap_key() {
    let (folder, mut store) = store();
    // Left by a crash: neither name may be in the way.
    fs::write(folder.path().join("bootstrap-key.new"), "half a k").unwrap();
    fs::write(folder.path().join(BOOTSTRAP_FILE), "agk_of_another_life\n").unwrap();
    let made = store.bootstrap(folder.path(), 5).unwrap().unwrap();
    let kept = fs::read_to_string(&made.path).unwrap();
    assert_eq!(kept, format!("{}\n", made.secret.reveal()));
    assert_eq!(
        fs::metadata(&made.path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(made.record.scopes, Scopes::ALL);
    assert_eq!(standing(&store, &made.secret, 5), Some(Standing::Valid));
    assert!(!folder.path().join("bootstrap-key.new").exists());

    store.revoke(&made.record.id, 6).unwrap();
    assert!(store.bootstrap(folder.path(), 7).unwrap().is_none());
}

#[test]
fn a_bootstrap_key_that_cannot_be_written_is_not_made() {
    let (folder, mut store) = store();
    let missing = folder.path().join("missing");
    assert!(matches!(
        store.bootstrap(&missing, 1),
        Err(StoreError::File(..))
    ));
    assert_eq!(store.list().unwrap(), []);
}

#[test]
fn daemons_that_start_at_once_make_one_key_between_them() {
    const DAEMONS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let barrier = Barrier::new(DAEMONS);
    let start = || {
        barrier.wait();
        let mut store = KeyStore::open_in(folder.path()).unwrap();
        store.bootstrap(folder.path(), 1).unwrap()
    };
    let made: Vec<Bootstrap> = thread::scope(|scope| {
        let threads: Vec<_> = (0..DAEMONS).map(|_| scope.spawn(start)).collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(made.len(), 1);
    let store = KeyStore::open_in(folder.path()).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    let kept = fs::read_to_string(folder.path().join(BOOTSTRAP_FILE)).unwrap();
    assert_eq!(standing(&store, &made[0].secret, 1), Some(Standing::Valid));
    assert_eq!(kept.trim_end(), made[0].secret.reveal());
}

#[test]
fn a_step_runs_once_and_a_failing_one_leaves_no_trace() {
    let (folder, mut store) = store();
    let first = MIGRATIONS[0];
    let broken = "CREATE TABLE extra (x) STRICT; CREATE TABLE nonsense (";
    assert!(store.migrate(&[first, broken]).is_err());
    let tables = |store: &KeyStore| -> i64 {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'extra'";
        store
            .connection
            .query_row(sql, (), |row| row.get(0))
            .unwrap()
    };
    assert_eq!(tables(&store), 0);
    assert_eq!(user_version(&store.connection).unwrap(), 1);
    store
        .migrate(&[first, "CREATE TABLE extra (x INTEGER) STRICT"])
        .unwrap();
    store
        .migrate(&[first, "CREATE TABLE extra (x INTEGER) STRICT"])
        .unwrap();
    assert_eq!(tables(&store), 1);

    let older = KeyStore::open_in(folder.path());
    assert!(matches!(
        older,
        Err(StoreError::TooNew {
            found: 2,
            known: 1,
            ..
        })
    ));
}

#[test]
fn a_file_that_is_not_a_database_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(DATABASE_FILE);
    fs::write(&path, "this is not SQLite, and long enough to be looked at").unwrap();
    let error = KeyStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("autoglmd.db"), "{error}");
}
