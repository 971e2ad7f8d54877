//! The store on real files, in temporary folders.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use rusqlite::Connection;

use super::DATABASE_FILE;
use super::connection::SqliteStore;
use super::schema::{STEPS, Schema, Step};
use crate::keys::{Scopes, Secret, Standing};
use crate::limits::store as history_limits;
use crate::store::{
    BOOTSTRAP_FILE, Bootstrap, Fault, Keys, ListedKey, Mark, NewKey, ReadKeys, Renewal, Revoked,
    StoreError,
};

fn store() -> (tempfile::TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_in(folder.path()).unwrap();
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
        weight: 7,
    }
}

fn standing(store: &SqliteStore, secret: &Secret, now: u64) -> Option<Standing> {
    let ring = store.ring().unwrap();
    ring.find(secret.reveal())
        .map(|holder| holder.record.standing(now))
}

#[test]
fn a_created_key_is_found_again_after_reopening() {
    let (folder, mut store) = store();
    let (record, secret) = store.create(&new_key(Some(500)), 100).unwrap();
    drop(store);
    let store = SqliteStore::open_in(folder.path()).unwrap();
    let ring = store.ring().unwrap();
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
    let mut store = SqliteStore::open_in(&state).unwrap();
    store.create(&new_key(None), 1).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    for file in ["autoglmd.db", "autoglmd.db-wal", "autoglmd.db-shm"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file}");
    }
    drop(store);
    let database = state.join(DATABASE_FILE);
    fs::set_permissions(&database, Permissions::from_mode(0o644)).unwrap();
    SqliteStore::open(&database).unwrap();
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
        ring.find(old.reveal()).unwrap().record.id,
        ring.find(new.reveal()).unwrap().record.id
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
        let mut store = SqliteStore::open_in(folder.path()).unwrap();
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
    let store = SqliteStore::open_in(folder.path()).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    let kept = fs::read_to_string(folder.path().join(BOOTSTRAP_FILE)).unwrap();
    assert_eq!(standing(&store, &made[0].secret, 1), Some(Standing::Valid));
    assert_eq!(kept.trim_end(), made[0].secret.reveal());
}

#[test]
fn a_weight_is_changed_without_a_new_secret() {
    let (_folder, mut store) = store();
    let (record, secret) = store.create(&new_key(None), 1).unwrap();
    store.set_weight(&record.id, 3).unwrap();
    let ring = store.ring().unwrap();
    assert_eq!(ring.find(secret.reveal()).unwrap().record.weight, 3);
    let unknown = store.set_weight("key_none", 3);
    assert!(matches!(unknown, Err(StoreError::UnknownKey(_))));
    store.revoke(&record.id, 2).unwrap();
    let revoked = store.set_weight(&record.id, 4);
    assert!(matches!(revoked, Err(StoreError::RevokedKey(_))));
}

#[test]
fn a_weight_that_no_command_has_written_is_brought_into_bounds() {
    let (_folder, mut store) = store();
    store.create(&new_key(None), 1).unwrap();
    for (written, read) in [(1_000_000, 100), (100, 100), (1, 1)] {
        let set = "UPDATE keys SET weight = ?1";
        store.connection.execute(set, [written]).unwrap();
        assert_eq!(store.list().unwrap()[0].record.weight, read);
    }
    assert!(
        store
            .connection
            .execute("UPDATE keys SET weight = 0", ())
            .is_err()
    );
}

// ---- the history of changes ----------------------------------------------------------------

/// Returns the ids that have changed since a mark, and moves it.
fn changed_ids(store: &SqliteStore, mark: &mut Option<Mark>) -> Option<Vec<String>> {
    let reading = store.read(*mark).unwrap();
    *mark = reading.mark;
    match reading.keys {
        ReadKeys::All(_) => None,
        ReadKeys::Changed(keys) => Some(keys.into_iter().map(|key| key.id).collect()),
    }
}

/// Each step changes one key, and the ring that follows the history must be that of all keys.
#[test]
fn every_kind_of_change_is_in_the_history() {
    let (folder, mut store) = store();
    let watched = SqliteStore::open_in(folder.path()).unwrap();
    let other = store.create(&new_key(None), 1).unwrap().0;
    let reading = watched.read(None).unwrap();
    let (mut ring, mut mark) = (watched.ring().unwrap(), reading.mark);
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
    let raw = |sql: &str| store.connection.execute(sql, [&id]).unwrap();
    raw("UPDATE secrets SET valid_until = 9 WHERE key_id = ?1");
    expect(&id, "a secret's end");
    raw("DELETE FROM secrets WHERE key_id = ?1");
    expect(&id, "deleted secrets");
}

#[test]
fn a_key_that_lost_its_secrets_may_be_deleted_and_nothing_is_read_twice() {
    let (_folder, mut store) = store();
    let (record, _) = store.create(&new_key(None), 1).unwrap();
    let mut mark = store.read(None).unwrap().mark;
    assert_eq!(changed_ids(&store, &mut mark), Some(Vec::new()));
    for table in ["secrets WHERE key_id", "keys WHERE id"] {
        let sql = format!("DELETE FROM {table} = ?1");
        store.connection.execute(&sql, [&record.id]).unwrap();
        let expected = Some(vec![record.id.clone()]);
        assert_eq!(changed_ids(&store, &mut mark), expected, "{sql}");
    }
    assert_eq!(changed_ids(&store, &mut mark), Some(Vec::new()));
}

/// As after `.restore` in SQLite's shell, which replaces the contents of the same file.
#[test]
fn a_history_of_another_database_is_not_taken_for_the_same() {
    let (_folder, mut one) = store();
    let (_other_folder, mut other) = store();
    for store in [&mut one, &mut other] {
        store.create(&new_key(None), 1).unwrap();
    }
    let mark = one.read(None).unwrap().mark;
    let number = |mark: Option<Mark>| mark.unwrap().number;
    assert_eq!(number(mark), number(other.read(None).unwrap().mark));
    assert_eq!(changed_ids(&other, &mut mark.clone()), None);
    other.create(&new_key(None), 1).unwrap();
    assert_eq!(changed_ids(&other, &mut mark.clone()), None);
    // And without any history.
    let all = "DELETE FROM key_changes";
    other.connection.execute(all, ()).unwrap();
    let mut mark = mark;
    assert_eq!(changed_ids(&other, &mut mark), None);
    assert_eq!(mark, None);
    assert_eq!(changed_ids(&other, &mut mark), None);
}

#[test]
fn the_history_is_bounded_and_a_reader_that_stayed_away_reads_everything() {
    let (_folder, store) = store();
    let mut mark = store.read(None).unwrap().mark;
    let fill = |rows: u32| {
        let sql = "
            INSERT INTO key_changes (key_id)
            WITH RECURSIVE numbers (number) AS (
                SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < ?1
            )
            SELECT 'key_1' FROM numbers";
        store.connection.execute(sql, [rows]).unwrap();
    };
    let rows = || -> u32 {
        let sql = "SELECT count(*) FROM key_changes";
        let count = store.connection.query_row(sql, (), |row| row.get(0));
        count.unwrap()
    };
    fill(history_limits::HISTORY_ENTRIES - 1);
    assert_eq!(rows(), history_limits::HISTORY_ENTRIES);
    let expected = Some(vec!["key_1".to_owned()]);
    assert_eq!(changed_ids(&store, &mut mark), expected);
    fill(history_limits::HISTORY_ENTRIES);
    assert_eq!(rows(), history_limits::HISTORY_ENTRIES);
    assert_eq!(changed_ids(&store, &mut mark), None);
    assert_eq!(changed_ids(&store, &mut mark), Some(Vec::new()));
}

// ---- a look from outside -------------------------------------------------------------------

fn problems(path: &Path) -> Vec<String> {
    SqliteStore::examine(path).unwrap().problems
}

#[test]
fn a_look_counts_and_changes_nothing_whatever_the_version() {
    let (folder, mut store) = store();
    let path = folder.path().join(DATABASE_FILE);
    let (record, _) = store.create(&new_key(None), 1).unwrap();
    let rotated = store.rotate(&record.id, 60, Renewal::SameLifetime, 2);
    rotated.unwrap();
    let found = SqliteStore::examine(&path).unwrap();
    assert_eq!((found.keys, found.secrets), (Some(1), Some(2)));
    assert_eq!(
        (found.version, found.min_reader, found.known),
        (STEPS.len(), 1, STEPS.len())
    );
    assert!(
        found.is_readable() && found.problems.is_empty(),
        "{found:?}"
    );

    let steps = [STEPS, &[later("DROP TABLE secrets", STEPS.len() + 1)]].concat();
    store.migrate(&steps).unwrap();
    let found = SqliteStore::examine(&path).unwrap();
    assert!(
        !found.is_readable() && found.version == steps.len(),
        "{found:?}"
    );

    let old = folder.path().join("old.db");
    let first = Connection::open(&old).unwrap();
    first.execute_batch(STEPS[0].sql).unwrap();
    first.pragma_update(None, "user_version", 1).unwrap();
    for _ in 0..2 {
        assert_eq!(SqliteStore::examine(&old).unwrap().version, 1);
    }
}

/// Mutation that this test catches: `orphans` that looks for one of the two only.
#[test]
fn a_look_names_damage_and_rows_without_their_counterpart() {
    let (folder, mut store) = store();
    let path = folder.path().join(DATABASE_FILE);
    let (one, _) = store.create(&new_key(None), 1).unwrap();
    let (two, _) = store.create(&new_key(None), 1).unwrap();
    let raw = Connection::open(&path).unwrap();
    raw.pragma_update(None, "foreign_keys", false).unwrap();
    raw.execute("DELETE FROM secrets WHERE key_id = ?1", [&one.id])
        .unwrap();
    raw.execute("DELETE FROM keys WHERE id = ?1", [&two.id])
        .unwrap();
    let found = problems(&path);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains(&one.id) && found[1].contains(&two.id),
        "{found:?}"
    );

    // A page of an index is lost.
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'current_secrets'";
    let root: u32 = raw.query_row(root, (), |row| row.get(0)).unwrap();
    let page: u32 = raw
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .unwrap();
    drop((raw, store));
    let mut bytes = fs::read(&path).unwrap();
    let (start, end) = ((root - 1) * page, root * page);
    bytes[start as usize..end as usize].fill(0);
    fs::write(&path, bytes).unwrap();
    let found = SqliteStore::examine(&path).unwrap();
    assert!(!found.problems.is_empty());
    assert_eq!(found.keys, None);
}

#[test]
fn a_look_at_nothing_makes_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(DATABASE_FILE);
    assert!(matches!(
        SqliteStore::examine(&path),
        Err(StoreError::File(..))
    ));
    assert!(!path.exists());
    fs::write(&path, "").unwrap();
    assert!(matches!(
        SqliteStore::examine(&path),
        Err(StoreError::File(..))
    ));
    let other = "this is not SQLite, and long enough to be looked at";
    fs::write(&path, other).unwrap();
    let Err(StoreError::Database { fault, .. }) = SqliteStore::examine(&path) else {
        panic!("it was taken for a database");
    };
    assert_eq!(fault, Fault::Damaged);
}

// ---- the schema ----------------------------------------------------------------------------

/// A step of a later program.
fn later(sql: &'static str, min_reader: usize) -> Step {
    Step { sql, min_reader }
}

fn tables_named(store: &SqliteStore, name: &str) -> i64 {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
    let count = store.connection.query_row(sql, [name], |row| row.get(0));
    count.unwrap()
}

#[test]
fn a_step_runs_once_and_a_failing_one_leaves_no_trace() {
    let (_folder, mut store) = store();
    let steps = |sql| [STEPS, &[later(sql, 1)]].concat();
    let broken = steps("CREATE TABLE extra (x) STRICT; CREATE TABLE nonsense (");
    assert!(store.migrate(&broken).is_err());
    assert_eq!(tables_named(&store, "extra"), 0);
    let found = Schema::read(&store.connection).unwrap();
    assert_eq!(found.version, STEPS.len());
    for _ in 0..2 {
        let whole = steps("CREATE TABLE extra (x INTEGER) STRICT");
        store.migrate(&whole).unwrap();
        assert_eq!(tables_named(&store, "extra"), 1);
        let found = Schema::read(&store.connection).unwrap();
        assert_eq!(found.version, STEPS.len() + 1);
    }
}

#[test]
fn a_program_works_while_its_version_is_at_least_min_reader() {
    let (folder, mut store) = store();
    let (_, secret) = store.create(&new_key(None), 1).unwrap();
    let harmless = later("CREATE TABLE extra (x INTEGER) STRICT", STEPS.len());
    let mut steps = [STEPS, &[harmless]].concat();
    store.migrate(&steps).unwrap();
    let older = SqliteStore::open_in(folder.path()).unwrap();
    assert_eq!(standing(&older, &secret, 1), Some(Standing::Valid));

    let needed = steps.len() + 1;
    steps.push(later("DROP TABLE extra", needed));
    store.migrate(&steps).unwrap();
    for older in [
        SqliteStore::open_in(folder.path()),
        SqliteStore::open_existing(&folder.path().join(DATABASE_FILE)),
    ] {
        let error = older.unwrap_err();
        assert!(
            matches!(error, StoreError::TooNew { needed: found, known, .. }
                if (found, known) == (needed, STEPS.len())),
            "{error}"
        );
    }
    store.migrate(&steps).unwrap();
}

/// The statements are those of the first version, word by word.
#[test]
fn programs_of_the_first_version_read_and_write_a_database_of_this_one() {
    const NONE: Option<i64> = None;
    let (folder, mut store) = store();
    let (_, mine) = store.create(&new_key(None), 1).unwrap();
    let version: i64 = store
        .connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(version, 1, "a program of version 1 refuses any other");
    let theirs = Secret::from_bytes(&[9; 32]);
    let other = Connection::open(folder.path().join(DATABASE_FILE)).unwrap();
    other
        .execute(
            "INSERT INTO keys (id, name, scopes, created_at, expires_at, requests_per_minute, \
             tokens_per_minute, concurrency) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            ("key_1", "", "generate", 1, NONE, NONE, NONE, NONE),
        )
        .unwrap();
    other
        .execute(
            "INSERT INTO secrets (hash, key_id, created_at) VALUES (?1, ?2, ?3)",
            (theirs.hash(), "key_1", 1),
        )
        .unwrap();
    let count: i64 = other
        .query_row(
            "SELECT count(*) FROM (SELECT k.id, k.name, s.hash, k.scopes, k.created_at, \
             k.expires_at, k.requests_per_minute, k.tokens_per_minute, k.concurrency, \
             k.revoked_at, s.created_at, s.valid_until FROM keys k JOIN secrets s ON s.key_id = \
             k.id)",
            (),
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(count, 2);
    let ring = store.ring().unwrap();
    assert_eq!(ring.find(mine.reveal()).unwrap().record.weight, 7);
    assert_eq!(ring.find(theirs.reveal()).unwrap().record.weight, 1);
}

#[test]
fn a_database_of_the_first_version_keeps_its_keys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(DATABASE_FILE);
    let secret = Secret::from_bytes(&[9; 32]);
    let old = Connection::open(&path).unwrap();
    old.execute_batch(STEPS[0].sql).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    let found = Schema::read(&old).unwrap();
    assert_eq!((found.version, found.min_reader), (1, 1));
    old.execute(
        "INSERT INTO keys (id, name, scopes, created_at) VALUES ('key_1', 'ci', 'generate', 1)",
        (),
    )
    .unwrap();
    old.execute(
        "INSERT INTO secrets (hash, key_id, created_at) VALUES (?1, 'key_1', 1)",
        [secret.hash()],
    )
    .unwrap();
    drop(old);
    for _ in 0..2 {
        let store = SqliteStore::open_existing(&path).unwrap();
        let found = Schema::read(&store.connection).unwrap();
        assert_eq!((found.version, found.min_reader), (STEPS.len(), 1));
        let listed = store.list().unwrap();
        assert_eq!(
            (listed[0].record.name.as_str(), listed[0].record.weight),
            ("ci", 1)
        );
        assert_eq!(standing(&store, &secret, 1), Some(Standing::Valid));
    }
}

#[test]
fn a_file_that_is_not_a_database_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(DATABASE_FILE);
    fs::write(&path, "this is not SQLite, and long enough to be looked at").unwrap();
    let error = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("autoglmd.db"), "{error}");
}
