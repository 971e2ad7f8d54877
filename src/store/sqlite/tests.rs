//! The store on real files, in temporary folders.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::DATABASE_FILE;
use super::connection::SqliteStore;
use super::rows::SELECT_SECRETS;
use super::schema::{STEPS, Schema, Step};
use crate::keys::{Scopes, Secret, Standing};
use crate::os::slices::offers;
use crate::store::interface::Groups;
use crate::store::{Fault, Keys, NewKey, Renewal, Store, StoreError};

/// Far above the expected time; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// A daemon with many keys reads one of them after each change.
///
/// Mutation: `secrets_of_keys` left out.
#[test]
fn no_statement_about_one_key_reads_all() {
    let (_folder, store) = store();
    let of_key = format!("EXPLAIN QUERY PLAN {SELECT_SECRETS} WHERE k.id = ?1");
    let mut statement = store.connection.prepare(&of_key).unwrap();
    let rows = statement.raw_query().mapped(|row| row.get::<_, String>(3));
    let plan: Vec<String> = rows.map(Result::unwrap).collect();
    assert!(plan.len() == 2, "{plan:?}");
    assert!(
        plan.iter().all(|step| step.starts_with("SEARCH")),
        "{plan:?}"
    );
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
    assert!(SqliteStore::examine(&path).unwrap_err().is(Fault::Empty));
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

/// Mutations: `begin` or `is_replaced` without `check_reader`; `begin` that leaves its transaction.
#[test]
fn a_program_works_while_its_version_is_at_least_min_reader() {
    let (folder, mut store) = store();
    let (_, secret) = store.create(&new_key(None), 1).unwrap();
    let harmless = later("CREATE TABLE extra (x INTEGER) STRICT", STEPS.len());
    let mut steps = [STEPS, &[harmless]].concat();
    store.migrate(&steps).unwrap();
    let mut running = SqliteStore::open_in(folder.path()).unwrap();
    assert_eq!(standing(&running, &secret, 1), Some(Standing::Valid));
    assert!(!running.is_replaced());
    running.begin().unwrap();
    running.commit().unwrap();

    let needed = steps.len() + 1;
    steps.push(later("DROP TABLE extra", needed));
    store.migrate(&steps).unwrap();
    let error = running.begin().unwrap_err();
    assert!(matches!(error, StoreError::TooNew { .. }), "{error}");
    assert!(running.connection.is_autocommit() && running.is_replaced());
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

/// A mutation that this test catches: the step without its `DELETE`.
#[test]
fn a_step_forgets_keys_of_idempotency_whose_jobs_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(DATABASE_FILE);
    let old = Connection::open(&path).unwrap();
    let is_it = |step: &Step| step.sql.contains("idempotency_of_jobs");
    let steps_before = STEPS.iter().take_while(|step| !is_it(step));
    for (index, step) in steps_before.enumerate() {
        step.apply(&old, index + 1).unwrap();
    }
    let rows = "
        INSERT INTO jobs (id, key_id, state, created_at, expires_at, bytes, request)
        VALUES (zeroblob(16), 'key_1', 'queued', 1, 2, 512, '');
        INSERT INTO idempotency VALUES ('key_1', 'a', zeroblob(32), zeroblob(16), 9),
            ('key_1', 'b', zeroblob(32), randomblob(16), 9)";
    old.execute_batch(rows).unwrap();
    drop(old);
    let store = SqliteStore::open_existing(&path).unwrap();
    let left = "SELECT group_concat(key) FROM idempotency";
    let left = store
        .connection
        .query_row(left, (), |row| row.get::<_, String>(0));
    assert_eq!(left.unwrap(), "a");
}

#[test]
fn a_file_that_is_not_a_database_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(DATABASE_FILE);
    fs::write(&path, "this is not SQLite, and long enough to be looked at").unwrap();
    let error = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("autoglmd.db"), "{error}");
}

/// A long statement offers the core, and so do many runs of a short one that is kept.
///
/// Mutations: no handler in `configure`; one that interrupts the statement.
#[test]
fn statements_offer_the_core_to_the_reactors() {
    let end = Instant::now() + PATIENCE;
    let (_folder, store) = store();
    let until_offered = |run: &mut dyn FnMut()| {
        let before = offers();
        while offers() == before {
            assert!(Instant::now() < end, "no offer");
            run();
        }
    };
    let long = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000) \
                SELECT count(*) FROM n";
    let connection = &store.connection;
    until_offered(&mut || {
        let rows = connection.query_row(long, [], |row| row.get::<_, i64>(0));
        assert_eq!(rows.unwrap(), 200_000);
    });
    let mut short = connection.prepare("SELECT 1").unwrap();
    until_offered(&mut || {
        let one = short.query_row([], |row| row.get::<_, i64>(0));
        assert_eq!(one.unwrap(), 1);
    });
}
