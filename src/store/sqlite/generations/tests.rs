//! Plans for records. What the records mean is tested for both databases in
//! `src/store/tests/generations.rs`.

use rusqlite::StatementStatus;

use super::*;
use crate::store::tests::generations::{START, ids, key, query, record};

/// Returns a store with this many records of one key, all of them, and the key.
#[expect(clippy::vec_box, reason = "the store takes them as pointers")]
fn store_with(
    count: usize,
) -> (
    tempfile::TempDir,
    SqliteStore,
    Vec<Box<GenerationRecord>>,
    String,
) {
    let folder = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open_in(folder.path()).unwrap();
    let (key, mut ids) = (key(&mut store), ids());
    let records: Vec<_> = (0..count)
        .map(|index| record(&mut ids, &key, Status::ALL[index % 3], START + index as u64))
        .collect();
    store.add_generations(&records).unwrap();
    store.connection.execute_batch("ANALYZE").unwrap();
    (folder, store, records, key)
}

/// Mutations: an index without `key_id`; `ORDER BY id` alone.
#[test]
fn no_page_scans_or_sorts_100_000_records() {
    let (_folder, store, records, key) = store_with(100_000);
    let middle = records[50_000].id;
    for status in [None, Some(Status::Failed)] {
        let sql = format!("EXPLAIN QUERY PLAN {}", page_sql(status.is_some()));
        let mut statement = store.connection.prepare(&sql).unwrap();
        let (newest, id) = (to_sql(middle.unix_millis().as_u64()), middle.to_string());
        let read = |row: &Row<'_>| row.get::<_, String>(3);
        let plan: rusqlite::Result<Vec<String>> = match status {
            None => statement
                .query_map(params![key, 0, newest, id, 20], read)
                .unwrap()
                .collect(),
            Some(status) => statement
                .query_map(params![key, 0, newest, id, 20, status.as_str()], read)
                .unwrap()
                .collect(),
        };
        let plan = plan.unwrap();
        let index = match status {
            None => "USING INDEX generations_of_keys (key_id=? AND created_at>? AND created_at<?)",
            Some(_) => {
                "USING INDEX generations_of_keys_by_status (key_id=? AND status=? AND \
                 created_at>? AND created_at<?)"
            }
        };
        assert_eq!(plan, [format!("SEARCH generations {index}")]);
        let page = store.find_generations(&Query {
            status,
            before: Some(middle),
            limit: 20,
            ..query(&key)
        });
        assert_eq!(page.unwrap().len(), 20);
    }
}

/// Rows that a statement read one after the other, without an index.
///
/// Mutations: `TRIM` without its order, or without its limit; no index of keys.
#[test]
fn no_trim_and_no_erasure_reads_more_of_100_000_records_than_it_removes() {
    const STEP: u32 = 20;
    let (_folder, store, _records, key) = store_with(100_000);
    assert!(store.used_bytes().unwrap() > 4_096);
    // A key whose few records are the latest of all.
    let other = "INSERT INTO generations (id, key_id, created_at, status, cached, request_id,
        prompt_tokens, cached_tokens, completion_tokens, queue_ms, prefill_ms, decode_ms,
        latency_ms, digest)
        SELECT 'x' || id, 'key_other', created_at, status, cached, request_id, 0, 0, 0, 0, 0, 0,
            0, digest FROM generations ORDER BY number DESC LIMIT 5";
    store.connection.execute_batch(other).unwrap();
    let read = |sql: &str, values: &[&dyn rusqlite::ToSql], removed: usize| {
        let mut statement = store.connection.prepare(sql).unwrap();
        assert_eq!(statement.execute(values).unwrap(), removed, "{sql}");
        assert_eq!(statement.get_status(StatementStatus::Sort), 0, "{sql}");
        statement.get_status(StatementStatus::FullscanStep)
    };
    let steps = [
        read(TRIM, &[&STEP, &to_sql(START + 1_000_000), &1_000_000], 20),
        read(TRIM, &[&STEP, &0, &50_000], 20),
        read(TRIM, &[&STEP, &0, &1_000_000], 0),
        read(ERASE, &[&key, &STEP], 20),
        read(ERASE, &[&"key_other", &STEP], 5),
        read(ERASE, &[&"key_none", &STEP], 0),
    ];
    assert!(steps.iter().all(|steps| *steps <= STEP as i32), "{steps:?}");
}
