//! Records of generations and the usage of keys, whatever database is behind the store.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Bed, on_each_database};
use crate::core::UnixMillis;
use crate::core::id::GenerationId;
use crate::store::Store;
use crate::store::interface::generations::{Bounds, Content, GenerationRecord, Query, Status};
use crate::store::interface::keys::NewKey;
use crate::store::interface::usage::{Hits, UsageRow};
use crate::telemetry::id::Ids;
use crate::telemetry::random::SplitMix64;
use crate::telemetry::request_id::RequestId;

on_each_database!(
    a_record_comes_back_as_it_was_and_counts_once,
    pages_are_a_plain_list_in_pieces,
    a_page_of_long_texts_has_few_records,
    records_that_are_too_old_or_too_many_go_in_steps_oldest_first,
    records_go_in_the_order_in_which_they_were_added,
    hits_are_usage_beside_generations,
    hits_of_an_erased_key_go_and_later_ones_are_not_added,
    erasing_a_key_s_records_leaves_others_and_later_ones_of_a_gone_key_are_not_added,
    usage_of_a_day_is_the_sum_of_all_groups,
);

pub const START: u64 = 1_700_000_000_000;

const DAY_MS: u64 = 86_400_000;

const ALL_DAYS: RangeInclusive<u32> = 0..=u32::MAX;

pub fn key(store: &mut dyn Store) -> String {
    store.create(&NewKey::default(), 1).unwrap().0.id
}

pub fn record(ids: &mut Ids, key_id: &str, status: Status, at_ms: u64) -> Box<GenerationRecord> {
    Box::new(GenerationRecord {
        id: ids.make(UnixMillis::new(at_ms)),
        key_id: key_id.into(),
        status,
        model: Some("tiny".into()),
        language: Some(Cow::Borrowed("python")),
        finish_reason: (status == Status::Done).then_some(Cow::Borrowed("stop")),
        error: (status == Status::Failed).then_some(Cow::Borrowed("engine_failed")),
        cached: Cow::Borrowed("miss"),
        request_id: RequestId::from_client(b"r-1").unwrap(),
        prompt_tokens: 10,
        cached_tokens: 4,
        completion_tokens: 3,
        queue: Duration::from_millis(1),
        prefill: Duration::from_millis(2),
        decode: Duration::from_millis(3),
        latency: Duration::from_millis(7),
        digest: [7; 32],
        content: None,
    })
}

pub fn ids() -> Ids {
    Ids::new(SplitMix64::new(1, 2))
}

pub fn query(key_id: &str) -> Query<'_> {
    Query {
        key_id,
        status: None,
        since: 0,
        before: None,
        limit: 100,
        bytes_max: usize::MAX,
    }
}

fn a_record_comes_back_as_it_was_and_counts_once<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (key, mut ids) = (key(&mut *store), ids());
    let plain = record(&mut ids, &key, Status::Done, START);
    let mut with_text = record(&mut ids, &key, Status::Failed, START);
    with_text.content = Some(Content {
        prompt: "write".to_owned(),
        text: String::new(),
    });
    let records = [plain, with_text];
    for _ in 0..2 {
        store.add_generations(&records).unwrap();
    }
    let found = store.find_generations(&query(&key)).unwrap();
    assert_eq!(found, [*records[1].clone(), *records[0].clone()]);
    let usage = UsageRow {
        key_id: key.clone(),
        day: (START / DAY_MS) as u32,
        generations: 2,
        unfinished: 1,
        prompt_tokens: 20,
        cached_tokens: 8,
        completion_tokens: 6,
        hits: 0,
    };
    let only = std::slice::from_ref(&usage);
    assert_eq!(store.usage(Some(&key), &ALL_DAYS).unwrap(), only);
    assert_eq!(store.usage(None, &(usage.day..=usage.day)).unwrap(), only);
    for others in [usage.day + 1..=u32::MAX, 0..=usage.day - 1] {
        assert_eq!(store.usage(None, &others).unwrap(), []);
    }
    assert_eq!(store.usage(Some("key_other"), &ALL_DAYS).unwrap(), []);
}

/// All pages, with every filter, are what a plain list has; whatever ties there are.
fn pages_are_a_plain_list_in_pieces<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let keys = [key(&mut *store), key(&mut *store)];
    let mut ids = ids();
    let mut dice = SplitMix64::new(3, 4);
    let mut all = Vec::new();
    for index in 0..400_u64 {
        let status = Status::ALL[(dice.draw() % 3) as usize];
        let key = &keys[(dice.draw() % 2) as usize];
        all.push(record(&mut ids, key, status, START + index / 7));
    }
    store.add_generations(&all).unwrap();
    for status in [None, Some(Status::Done), Some(Status::Abandoned)] {
        for since in [0, START + 20] {
            let expected: Vec<GenerationId> = all
                .iter()
                .rev()
                .filter(|record| *record.key_id == *keys[0])
                .filter(|record| status.is_none_or(|status| record.status == status))
                .filter(|record| record.id.unix_millis().as_u64() >= since)
                .map(|record| record.id)
                .collect();
            let mut found: Vec<GenerationId> = Vec::new();
            loop {
                let page = store
                    .find_generations(&Query {
                        status,
                        since,
                        before: found.last().copied(),
                        limit: 7,
                        ..query(&keys[0])
                    })
                    .unwrap();
                if page.is_empty() {
                    break;
                }
                assert!(page.len() <= 7);
                found.extend(page.iter().map(|record| record.id));
            }
            assert_eq!(found, expected, "{status:?} {since}");
        }
    }
}

/// Mutations: a page without its bound of bytes; one that leaves out a single longer record.
fn a_page_of_long_texts_has_few_records<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (key, mut ids) = (key(&mut *store), ids());
    let mut all = Vec::new();
    for index in 0..10 {
        let mut one = record(&mut ids, &key, Status::ALL[index % 2], START);
        one.content = (index != 8).then(|| Content {
            prompt: "é".repeat(200),
            text: "x".repeat(200),
        });
        all.insert(0, one);
        store.add_generations(&all[..1]).unwrap();
    }
    let page = |bytes_max, status| {
        let asked = Query {
            bytes_max,
            status,
            ..query(&key)
        };
        store.find_generations(&asked).unwrap()
    };
    for (bytes_max, expected) in [
        (1, 1),
        (600, 1),
        (601, 3),
        (1_200, 3),
        (1_201, 4),
        (9_999, 10),
    ] {
        let found = page(bytes_max, None);
        let expected: Vec<GenerationRecord> =
            all[..expected].iter().map(|it| *it.clone()).collect();
        assert_eq!(found, expected, "{bytes_max}");
    }
    let found = page(1_201, Some(Status::Done));
    let ids: Vec<GenerationId> = found.iter().map(|record| record.id).collect();
    assert_eq!(ids, [all[1].id, all[3].id, all[5].id, all[7].id]);
}

/// Mutations: `trim_generations` that ignores one of its bounds.
fn records_that_are_too_old_or_too_many_go_in_steps_oldest_first<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (key, mut ids) = (key(&mut *store), ids());
    let records: Vec<_> = (0..100)
        .map(|second| record(&mut ids, &key, Status::Done, START + second * 1_000))
        .collect();
    store.add_generations(&records).unwrap();
    let by_age = Bounds {
        oldest: START + 30_000,
        records: 1_000,
    };
    let mut steps = Vec::new();
    loop {
        let removed = store.trim_generations(&by_age, 20).unwrap();
        steps.push(removed);
        if removed == 0 {
            break;
        }
    }
    assert_eq!(steps, [20, 10, 0]);
    let by_number = Bounds {
        oldest: 0,
        records: 50,
    };
    assert_eq!(store.trim_generations(&by_number, 500).unwrap(), 20);
    let left = store.find_generations(&query(&key)).unwrap();
    assert_eq!(left.len(), 50);
    assert_eq!(left[49].id, records[50].id);
    // Usage does not depend on the records.
    assert_eq!(
        store.usage(Some(&key), &ALL_DAYS).unwrap()[0].generations,
        100
    );
}

/// Daemons whose clocks differ add records that are older than those before. Looking for the oldest
/// of all would need an index more.
///
/// Mutation: `TRIM` without its order, or in the order of the ids.
fn records_go_in_the_order_in_which_they_were_added<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (key, mut ids) = (key(&mut *store), ids());
    let mut records: Vec<_> = (0..20)
        .map(|second| record(&mut ids, &key, Status::Done, START + second * 1_000))
        .collect();
    records.reverse();
    store.add_generations(&records).unwrap();
    let bounds = Bounds {
        oldest: 0,
        records: 10,
    };
    assert_eq!(store.trim_generations(&bounds, 6).unwrap(), 6);
    let left = store.find_generations(&query(&key)).unwrap();
    let left: Vec<_> = left.iter().map(|record| record.id).collect();
    let expected: Vec<_> = records[6..].iter().map(|record| record.id).collect();
    assert_eq!(left, expected);
}

fn hits(rows: &[(&str, u32, u64)]) -> Hits {
    let rows = rows.iter();
    rows.map(|(key_id, day, count)| (((*key_id).to_owned(), *day), *count))
        .collect()
}

/// Mutations: `ADD_HITS` or `COUNT_HITS` that replaces the number before; a query of usage that
/// reads one of the two tables.
fn hits_are_usage_beside_generations<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (key, mut ids) = (key(&mut *store), ids());
    let day = (START / DAY_MS) as u32;
    let record = record(&mut ids, &key, Status::Done, START);
    store.add_generations(&[record]).unwrap();
    for _ in 0..2 {
        let rows = [(&*key, day, 3), (&*key, day + 1, 5), ("", day, 1)];
        store.add_hits(&hits(&rows)).unwrap();
    }
    let found = store.usage(None, &ALL_DAYS).unwrap();
    let rows: Vec<_> = found
        .iter()
        .map(|row| (&*row.key_id, row.day, row.generations, row.hits))
        .collect();
    let expected = [(&*key, day + 1, 0, 10), ("", day, 0, 2), (&*key, day, 1, 6)];
    assert_eq!(rows, expected);
    assert_eq!(found[2].prompt_tokens, 10);
    assert_eq!(store.usage(Some(&key), &(day..=day)).unwrap().len(), 1);
}

/// Mutations: `erase_usage` that leaves `usage_hits`; `add_hits` without its look for the key; a
/// schema without the trigger.
fn hits_of_an_erased_key_go_and_later_ones_are_not_added<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let keys = [(); 3].map(|()| key(&mut *store));
    let rows: Vec<_> = keys.iter().map(|key| (key.as_str(), 1, 1)).collect();
    store.add_hits(&hits(&rows)).unwrap();
    assert_eq!(store.erase_usage(&keys[0]).unwrap(), 1, "a day");
    assert_eq!(store.usage(Some(&keys[0]), &ALL_DAYS).unwrap(), []);
    // As a program erases it that does not know the table.
    assert!(store.remove(&keys[1]).unwrap());
    assert_eq!(bed.count("usage_hits"), 1);
    store.add_hits(&hits(&rows[..2])).unwrap();
    assert_eq!(store.usage(Some(&keys[1]), &ALL_DAYS).unwrap(), []);
    assert_eq!(bed.count("usage_hits"), 2, "a key that is there");
}

fn erasing_a_key_s_records_leaves_others_and_later_ones_of_a_gone_key_are_not_added<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (gone, stays) = (key(&mut *store), key(&mut *store));
    let mut ids = ids();
    for key in [&gone, &stays] {
        let records = [(); 5].map(|()| record(&mut ids, key, Status::Done, START));
        store.add_generations(&records).unwrap();
    }
    assert_eq!(store.erase_generations(&gone, 3).unwrap(), 3);
    assert_eq!(store.erase_generations(&gone, 3).unwrap(), 2);
    assert_eq!(store.erase_usage(&gone).unwrap(), 1);
    assert_eq!(store.find_generations(&query(&gone)).unwrap(), []);
    assert_eq!(store.find_generations(&query(&stays)).unwrap().len(), 5);
    let late = record(&mut ids, "key_gone", Status::Done, START);
    let anonymous = record(&mut ids, "", Status::Done, START);
    store.add_generations(&[late, anonymous]).unwrap();
    assert_eq!(store.find_generations(&query("key_gone")).unwrap(), []);
    assert_eq!(store.find_generations(&query("")).unwrap().len(), 1);
}

/// Mutations: `ADD` that replaces one of the numbers of usage.
fn usage_of_a_day_is_the_sum_of_all_groups<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let (key, mut ids) = (key(&mut *store), ids());
    for _ in 0..3 {
        let records = [Status::Done, Status::Abandoned];
        let records = records.map(|status| record(&mut ids, &key, status, START));
        store.add_generations(&records).unwrap();
    }
    let expected = UsageRow {
        key_id: key,
        day: (START / DAY_MS) as u32,
        generations: 6,
        unfinished: 3,
        prompt_tokens: 60,
        cached_tokens: 24,
        completion_tokens: 18,
        hits: 0,
    };
    assert_eq!(store.usage(None, &ALL_DAYS).unwrap(), [expected]);
}
