//! Exports of one database are imports of the other, and equal.

use std::borrow::Cow;
use std::time::Duration;

use super::{Bed, OneJob as _, PostgresBed, SqliteBed};
use crate::core::UnixMillis;
use crate::jobs::{EventId, EventKind, JobEvent, JobId, NewJob, RememberedJob};
use crate::store::interface::generations::{Content, GenerationRecord, Status};
use crate::store::interface::jobs::JobEnd;
use crate::store::interface::transfer::TABLES;
use crate::store::transfer::{Imported, TransferError, export, import};
use crate::store::{NewKey, Store};
use crate::telemetry::id::Ids;
use crate::telemetry::random::SplitMix64;
use crate::telemetry::request_id::RequestId;

const START: u64 = 1_700_000_000_000;

/// Fills a store with rows of each table, with texts that a database may not take as they are.
fn fill(store: &mut dyn Store) {
    let (key, _) = store.create(&NewKey::default(), 1).unwrap();
    store
        .rotate(&key.id, 60, crate::store::Renewal::SameLifetime, 2)
        .unwrap();
    let mut ids = Ids::new(SplitMix64::new(1, 2));
    let records: Vec<_> = (0..450)
        .map(|index| {
            Box::new(GenerationRecord {
                id: ids.make(UnixMillis::new(START + index)),
                key_id: key.id.as_str().into(),
                status: Status::ALL[(index % 3) as usize],
                model: Some("ti\"ny\n".into()),
                language: None,
                finish_reason: Some(Cow::Borrowed("stop")),
                error: None,
                cached: Cow::Borrowed("miss"),
                request_id: RequestId::from_client(b"r-1").unwrap(),
                prompt_tokens: 10,
                cached_tokens: 4,
                completion_tokens: 3,
                queue: Duration::from_millis(1),
                prefill: Duration::from_millis(2),
                decode: Duration::from_millis(3),
                latency: Duration::from_millis(7),
                digest: [index as u8; 32],
                content: (index % 2 == 0).then(|| Content {
                    prompt: "größer \0 \u{2028}\t\"".to_owned(),
                    text: String::new(),
                }),
            })
        })
        .collect();
    store.add_generations(&records).unwrap();
    let hits = [((key.id.clone(), 1), 5), ((String::new(), 2), 1)];
    store.add_hits(&hits.into()).unwrap();
    let ended = NewJob {
        id: JobId::from_bytes([6; 16]),
        key_id: key.id.clone(),
        created_at: START,
        expires_at: START + 1,
        callback_url: Some("https://example.com/".to_owned()),
        request: String::new(),
        idempotency: None,
    };
    store.insert_job(&ended).unwrap();
    let mut life = store.job_life(ended.id).unwrap().unwrap();
    life.cancel().unwrap();
    let end = JobEnd {
        finished_at: START,
        expires_at: START + 1,
        ending: None,
    };
    // Its callback comes with its end.
    store.finish_job(ended.id, &life, end).unwrap();
    let id = JobId::from_bytes([7; 16]);
    store
        .insert_job(&NewJob {
            id,
            key_id: key.id.clone(),
            created_at: START,
            expires_at: START + 1,
            callback_url: None,
            request: "{\"prompt\":\"x\\u0000\"}".to_owned(),
            idempotency: None,
        })
        .unwrap();
    store
        .push_job_event(
            id,
            &JobEvent {
                id: EventId {
                    attempt: 1,
                    sequence: 2,
                },
                kind: EventKind::ALL[0],
                text: "a\0b".to_owned(),
            },
        )
        .unwrap();
    let remembered = RememberedJob {
        id,
        digest: [9; 32],
        expires_at: START,
    };
    store
        .remember_jobs(&[((&key.id, "once"), remembered)])
        .unwrap();
}

fn exported(store: &dyn Store) -> Vec<u8> {
    let mut out = Vec::new();
    export(store, &mut out).unwrap();
    out
}

fn there_and_back<A: Bed, B: Bed>() {
    let (from, to, back) = (A::new(), B::new(), A::new());
    let mut store = from.open();
    fill(&mut *store);
    let first = exported(&*store);
    let lines = first.iter().filter(|byte| **byte == b'\n').count() as u64;
    for bed in [&to as &dyn Opens, &back] {
        let mut other = bed.open_store();
        let imported = import(&mut *other, &mut &first[..], false).unwrap();
        assert_eq!(
            imported,
            Imported {
                added: lines - 2,
                skipped: 0
            }
        );
        let second = exported(&*other);
        assert!(normal(&second) == normal(&first), "the contents are equal");
        assert!(matches!(
            import(&mut *other, &mut &first[..], false),
            Err(TransferError::NotEmpty("keys"))
        ));
        let merged = import(&mut *other, &mut &first[..], true).unwrap();
        assert_eq!(
            merged,
            Imported {
                added: 0,
                skipped: lines - 2
            }
        );
        let query = store.list().unwrap();
        assert_eq!(other.list().unwrap(), query);
    }
}

/// Lines of rows: hex digits have the letters of their database.
fn normal(export: &[u8]) -> Vec<String> {
    let text = String::from_utf8(export.to_vec()).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_lowercase).collect();
    lines.pop();
    lines
}

trait Opens {
    fn open_store(&self) -> Box<dyn Store>;
}

impl<B: Bed> Opens for B {
    fn open_store(&self) -> Box<dyn Store> {
        self.open()
    }
}

#[test]
fn sqlite_s_export_fills_postgres_and_another_file() {
    there_and_back::<SqliteBed, PostgresBed>();
}

#[test]
fn the_export_of_postgres_fills_sqlite_and_another_database() {
    there_and_back::<PostgresBed, SqliteBed>();
}

/// Mutations: a commit before the last line; no comparison of the counts or of the digest.
#[test]
fn nothing_is_kept_of_a_file_that_is_truncated_or_altered() {
    let (from, to) = (SqliteBed::new(), SqliteBed::new());
    let mut store = from.open();
    fill(&mut *store);
    let whole = exported(&*store);
    let mut other = to.open();
    let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
    let last = ends[ends.len() - 2];
    let mut altered = vec![
        whole[..whole.len() - 1].to_vec(),
        whole[..=last].to_vec(),
        whole[..=ends[3]].to_vec(),
        Vec::new(),
        [&whole[..], b"x"].concat(),
        [&whole[..=ends[2]], &whole[ends[3] + 1..]].concat(),
    ];
    for at in [ends[0] - 3, ends[5] - 4, last - 9, whole.len() - 9] {
        let mut changed = whole.clone();
        changed[at] = changed[at].wrapping_add(1);
        altered.push(changed);
    }
    for bytes in altered {
        let refused = import(&mut *other, &mut &bytes[..], false);
        assert!(matches!(
            refused,
            Err(TransferError::Content(..) | TransferError::Store(_))
        ));
        for table in TABLES {
            assert!(!other.has_rows(table).unwrap(), "{}", table.name);
        }
    }
    import(&mut *other, &mut &whole[..], false).unwrap();
}

/// Mutation: `agree` that compares the counts of all tables.
#[test]
fn a_file_of_a_version_that_had_fewer_tables_is_imported() {
    let (from, to) = (SqliteBed::new(), SqliteBed::new());
    let mut store = from.open();
    let (key, _) = store.create(&NewKey::default(), 1).unwrap();
    let exported = String::from_utf8(exported(&*store)).unwrap();
    let (rows, last) = exported.trim_end().rsplit_once('\n').unwrap();
    let named = "\"usage_hits\":0";
    assert!(last.contains(named), "{last}");
    for (before, after, is_taken) in [
        (format!(",{named}"), "", true),
        (named.to_owned(), "\"of_tomorrow\":0", false),
        (named.to_owned(), "\"usage_hits\":1", false),
    ] {
        let file = format!("{rows}\n{}\n", last.replace(&before, after));
        let mut other = to.open();
        let imported = import(&mut *other, &mut file.as_bytes(), true);
        assert_eq!(imported.is_ok(), is_taken, "{after} {imported:?}");
        assert_eq!(other.list().unwrap().len(), 1, "{}", key.id);
    }
}

/// A column that a later step adds must be exported, too.
fn every_column_is_exported<B: Bed>(columns: &str) {
    let bed = B::new();
    drop(bed.open());
    for table in TABLES {
        // The number of a generation is the database's own.
        let own = u64::from(table.name == "generations");
        let found = bed.number(&columns.replace("TABLE", table.name));
        assert_eq!(found, table.columns.len() as u64 + own, "{}", table.name);
    }
}

#[test]
fn every_column_of_either_database_is_exported() {
    every_column_is_exported::<SqliteBed>("SELECT count(*) FROM pragma_table_info('TABLE')");
    every_column_is_exported::<PostgresBed>(
        "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public' \
         AND table_name = 'TABLE'",
    );
}
