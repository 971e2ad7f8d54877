//! Sessions and transactions on a real server: timeouts, faults, and what a failure leaves behind.

use super::*;
use crate::store::interface::transfer::Transfer as _;

/// A step of the schema may read a whole table.
///
/// Mutations that this test catches: `migrate` with the server's timeout of other statements, or
/// with their patience for a reply.
#[test]
fn a_migration_may_take_longer_than_other_statements() {
    let (bed, mut target) = bed();
    target.statement_timeout = Duration::from_millis(500);
    let mut store = PostgresStore::open(&target).unwrap();
    // The reply is waited for a second longer than the timeout.
    let slow = "CREATE TABLE extra AS SELECT 1 AS x FROM pg_sleep(1.8)";
    let steps = [STEPS, &[later(slow, 1)]].concat();
    store.migrate(&steps).unwrap();
    assert_eq!(bed.count("extra"), 1);
    // Afterwards the bound holds again.
    let asked = store.session.execute("SELECT pg_sleep(60)", &[]);
    assert_eq!(fault(asked), Fault::Busy);
}

/// A daemon was stopped in the middle of a transaction, which holds a lock.
///
/// Mutations that this test catches: a session without `idle_in_transaction_session_timeout`; a
/// transaction that the server has ended and that counts as another fault.
#[test]
fn a_transaction_of_a_silent_daemon_is_ended_by_the_server() {
    let (_bed, target) = bed();
    let mut other = PostgresStore::open(&target).unwrap();
    let (record, _) = other.create(&NewKey::default(), 1).unwrap();
    let mut silent = target.clone();
    silent.statement_timeout = Duration::from_millis(300);
    let mut one = PostgresStore::open(&silent).unwrap();
    one.begin().unwrap();
    let lock = "SELECT 1 FROM keys WHERE id = $1 FOR UPDATE";
    one.session.execute(lock, &[&record.id]).unwrap();
    // It waits for nothing else than that end.
    other.revoke(&record.id, 2).unwrap();
    assert_eq!(fault(one.commit()), Fault::Unreachable);
    assert!(one.is_replaced());
}

/// Mutation that this test catches: `Schema::read` that finds tables of other schemas.
#[test]
fn a_table_of_the_same_name_in_another_schema_is_not_ours() {
    let (bed, target) = bed();
    bed.raw("CREATE SCHEMA other; CREATE TABLE other.schema (name TEXT)");
    let mut store = PostgresStore::open(&target).unwrap();
    store.create(&NewKey::default(), 1).unwrap();
}

/// Mutations that this test catches: an unknown word that is a fault of another kind; a reason with
/// the server's details, which have values in them.
#[test]
fn a_row_of_a_later_program_is_named_and_values_are_not() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let job = new_job(1, "key_a");
    store.insert_job(&job).unwrap();
    let twice = store.insert_job(&job).unwrap_err().to_string();
    assert!(!twice.contains("Key (id)"), "{twice}");
    bed.raw("UPDATE jobs SET state = 'dreaming'");
    let unknown = store.job(job.id);
    let text = unknown.as_ref().unwrap_err().to_string();
    assert!(text.contains("dreaming"), "{text}");
    assert_eq!(fault(unknown), Fault::Damaged);
}

/// Mutations that this test catches: a failure that is not noted, or that is forgotten too late: a
/// `RELEASE` is then owed where the server refuses it, or sent where it could be owed.
#[test]
fn an_error_that_a_task_ignores_is_found_at_its_end() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    fn fails(store: &mut dyn Store) -> Result<(), StoreError> {
        store.insert_job(&new_job(1, "key_a"))
    }
    fails(&mut store).unwrap();
    store.begin().unwrap();
    let own = store.attempt(&mut |store| {
        assert!(fails(store).is_err());
        Ok(())
    });
    assert!(own.is_err() || own.unwrap().is_err(), "it wrote nothing");
    store.roll_back();
    // The connection can be used, and nothing is left of the group.
    store.begin().unwrap();
    let own = store.attempt(&mut |store| store.insert_job(&new_job(2, "key_a")));
    own.unwrap().unwrap();
    assert!(!store.session.has_failed());
    let own = store.attempt(&mut fails).unwrap();
    assert!(own.is_err());
    assert!(!store.session.has_failed(), "it was taken back");
    store.commit().unwrap();
    assert_eq!(bed.count("jobs"), 2);
}

/// Mutation that this test catches: `export` without one moment of the database for all tables.
#[test]
fn an_export_is_of_one_moment() {
    let (_bed, target) = bed();
    let mut other = PostgresStore::open(&target).unwrap();
    other.create(&NewKey::default(), 1).unwrap();
    let store = PostgresStore::open(&target).unwrap();
    let (mut is_first, mut jobs) = (true, 0);
    store
        .export(&mut |table, _| {
            if std::mem::take(&mut is_first) {
                other.insert_job(&new_job(1, "key_a")).unwrap();
            }
            jobs += u32::from(table.name == "jobs");
            Ok(())
        })
        .unwrap();
    assert_eq!((is_first, jobs), (false, 0));
}

/// Mutations that this test catches: a session without a name for the server's lists; a secret of
/// another length, and a second current one, that the schema accepts.
#[test]
fn the_server_knows_the_daemon_and_refuses_impossible_secrets() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let named = "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND application_name = 'autoglmd'";
    assert_eq!(bed.number(named), 1);
    let (record, _) = store.create(&NewKey::default(), 1).unwrap();
    let insert = |hash: &str, until: &str| {
        bed.try_raw(&format!(
            "INSERT INTO secrets VALUES (decode('{hash}', 'hex'), '{}', 1, {until})",
            record.id
        ))
    };
    let hash = "07".repeat(32);
    assert!(insert(&hash, "NULL").is_err(), "a second current one");
    assert!(insert("07", "9").is_err(), "a short one");
    assert!(insert(&hash, "9").is_ok());
}
