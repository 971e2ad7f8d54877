//! Entries of the cache in a store, whatever database is behind it.

use super::{Bed, on_each_database};
use crate::core::UnixMillis;
use crate::limits::store::ENTRY_ROW_BYTES;
use crate::store::Store;
use crate::store::interface::entries::EntryRow;
use crate::store::upkeep::Upkeep;

on_each_database!(
    an_entry_is_found_as_it_was_put_until_it_expires,
    a_newer_result_replaces_an_older_one_and_not_the_reverse,
    the_most_used_entries_come_first_page_by_page,
    only_the_excess_of_the_largest_tenant_goes,
    a_step_of_a_trim_removes_what_is_too_much_and_nothing_more,
    old_entries_go_in_small_steps,
    a_tenant_is_erased_and_the_others_stay,
    one_entry_is_erased_unless_it_is_newer,
);

/// An entry of tenant 1 that takes 1,000 bytes.
fn entry(number: u8) -> EntryRow {
    EntryRow {
        digest: [number; 32],
        tenant: 1,
        created_at: 1_000,
        expires_at: 5_000,
        value: vec![number; 1_000 - ENTRY_ROW_BYTES as usize],
    }
}

/// The numbers of the entries that are there.
fn present(store: &mut dyn Store, now: u64) -> Vec<u8> {
    let found = (0..=u8::MAX).filter(|number| {
        let found = store.find_entry(&[*number; 32], now).unwrap();
        found.is_some()
    });
    found.collect()
}

fn an_entry_is_found_as_it_was_put_until_it_expires<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    let put = EntryRow {
        // A tenant is any 64 bits, and integers of databases are signed.
        tenant: u64::MAX,
        ..entry(7)
    };
    store.put_entry(&put, 1_000).unwrap();
    assert_eq!(bed.open().find_entry(&[7; 32], 4_999).unwrap(), Some(put));
    assert_eq!(store.find_entry(&[7; 32], 5_000).unwrap(), None);
    assert_eq!(store.find_entry(&[8; 32], 1_000).unwrap(), None);
    assert_eq!(bed.number("SELECT hits FROM cache_entries"), 1);
    assert_eq!(bed.number("SELECT used_at FROM cache_entries"), 4_999);
}

/// Mutations: `PUT` that leaves one of the columns as it was, a total that does not follow.
fn a_newer_result_replaces_an_older_one_and_not_the_reverse<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    store.put_entry(&entry(7), 1_000).unwrap();
    let newer = EntryRow {
        created_at: 2_000,
        expires_at: 6_000,
        value: b"newer".to_vec(),
        ..entry(7)
    };
    store.put_entry(&newer, 2_000).unwrap();
    assert_eq!(bed.number("SELECT used_at FROM cache_entries"), 2_000);
    assert_eq!(bed.number("SELECT bytes FROM cache_entries"), newer.bytes());
    // A write that was held up.
    store.put_entry(&entry(7), 3_000).unwrap();
    let found = store.find_entry(&[7; 32], 3_000).unwrap();
    assert_eq!(found.as_ref(), Some(&newer));
    let repeated = EntryRow {
        value: b"repeated".to_vec(),
        ..newer
    };
    store.put_entry(&repeated, 4_000).unwrap();
    let found = store.find_entry(&[7; 32], 4_000).unwrap();
    assert_eq!(
        found.as_ref(),
        Some(&repeated),
        "the same time is not older"
    );
    assert_eq!(bed.count("cache_entries"), 1);
    // The bound counts the present value, whether it is shorter or longer than the one before.
    assert_eq!(store.trim_entries(repeated.bytes(), 9).unwrap(), 0);
    let longer = EntryRow {
        created_at: 5_000,
        ..entry(7)
    };
    store.put_entry(&longer, 5_000).unwrap();
    assert_eq!(store.trim_entries(longer.bytes() - 1, 9).unwrap(), 1);
}

fn the_most_used_entries_come_first_page_by_page<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    for number in 1..=5 {
        store.put_entry(&entry(number), 1_000).unwrap();
    }
    let old = EntryRow {
        expires_at: 1_500,
        ..entry(9)
    };
    store.put_entry(&old, 1_000).unwrap();
    for (number, uses) in [(9, 4), (2, 3), (4, 2)] {
        for _ in 0..uses {
            store.find_entry(&[number; 32], 1_100).unwrap();
        }
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.most_used_entries(2_000, after, 2).unwrap();
        let Some((last, _)) = page.last() else {
            break;
        };
        after = Some(*last);
        found.extend(page.iter().map(|(place, row)| (place.hits, row.digest[0])));
    }
    assert_eq!(found, [(3, 2), (2, 4), (0, 5), (0, 3), (0, 1)]);
}

fn only_the_excess_of_the_largest_tenant_goes<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    for number in 1..=10 {
        store.put_entry(&entry(number), number.into()).unwrap();
    }
    for number in 101..=103 {
        let other = EntryRow {
            tenant: 2,
            ..entry(number)
        };
        store.put_entry(&other, 0).unwrap();
    }
    assert_eq!(store.trim_entries(13_000, 100).unwrap(), 0, "they fit");
    // A use makes it the latest.
    store.find_entry(&[1; 32], 20).unwrap().unwrap();
    assert_eq!(store.trim_entries(10_500, 100).unwrap(), 3);
    assert_eq!(store.trim_entries(10_500, 100).unwrap(), 0);
    let left = [1, 5, 6, 7, 8, 9, 10, 101, 102, 103];
    assert_eq!(present(&mut *store, 100), left);
    for (now, number) in [(101, 5), (102, 1)] {
        store.find_entry(&[number; 32], now).unwrap().unwrap();
    }
    // The smaller tenant has less than its half, whatever the excess is.
    let steps = [2, 2, 2].map(|limit| store.trim_entries(6_000, limit).unwrap());
    assert_eq!(steps, [2, 2, 0]);
    let left = [1, 5, 10, 101, 102, 103];
    assert_eq!(present(&mut *store, 200), left, "the latest uses");
    // Each has more than its half of this bound, and keeps that half.
    let steps = [100, 100, 100].map(|limit| store.trim_entries(2_000, limit).unwrap());
    assert_eq!(steps, [2, 2, 0]);
}

/// The excess, the equal share and the step are multiples of an entry, so that a comparison that is
/// off by one removes another number of them.
fn a_step_of_a_trim_removes_what_is_too_much_and_nothing_more<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    for (tenant, numbers) in [(1, 1..=6), (2, 11..=15), (3, 21..=21)] {
        // The digests are in the other order than the uses.
        for (used_at, number) in (1..).zip(numbers.rev()) {
            let row = EntryRow {
                tenant,
                ..entry(number)
            };
            store.put_entry(&row, used_at).unwrap();
        }
    }
    // A tenant that has no entry any more has no share.
    let gone = EntryRow {
        tenant: 4,
        ..entry(31)
    };
    store.put_entry(&gone, 1).unwrap();
    assert_eq!(store.erase_entries(Some(4), 9).unwrap(), 1);
    let mut trim = |bytes_max, limit| store.trim_entries(bytes_max, limit).unwrap();
    // Of tenant 1, which has 6,000 of 12,000 bytes: its equal share is less than the excess leaves.
    assert_eq!(trim(10_000, 100), 2, "the excess");
    assert_eq!(trim(6_000, 1), 1, "a step, of tenant 2");
    // Of 9,000 bytes tenants 1 and 2 have 4,000 each, and their equal share is a third of 3,000.
    assert_eq!([(); 3].map(|()| trim(3_000, 100)), [3, 3, 0]);
    // The entries that were put last.
    assert_eq!(present(&mut *store, 100), [1, 11, 21]);
}

fn old_entries_go_in_small_steps<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    for number in 1..=7 {
        let old = EntryRow {
            expires_at: 2_000 + u64::from(number / 6) * 1_000,
            ..entry(number)
        };
        store.put_entry(&old, 1_000).unwrap();
    }
    assert_eq!(store.delete_old_entries(2_000, 3).unwrap(), 3);
    assert_eq!(store.delete_old_entries(2_000, 3).unwrap(), 2);
    assert_eq!(store.delete_old_entries(2_000, 3).unwrap(), 0);
    assert_eq!(bed.count("cache_entries"), 2);
    // The store's thread does the same between groups.
    let trimmed = Upkeep::default().trim(&mut *store, UnixMillis::new(3_000));
    assert_eq!(trimmed.unwrap().entries, 2);
    assert_eq!(bed.count("cache_entries"), 0);
}

fn a_tenant_is_erased_and_the_others_stay<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    for number in 1..=5 {
        let row = EntryRow {
            tenant: u64::from(number % 2),
            ..entry(number)
        };
        store.put_entry(&row, 1_000).unwrap();
    }
    assert_eq!(store.erase_entries(Some(1), 2).unwrap(), 2);
    assert_eq!(store.erase_entries(Some(1), 2).unwrap(), 1);
    assert_eq!(present(&mut *store, 1_000), [2, 4]);
    let steps = [(); 3].map(|()| store.erase_entries(None, 1).unwrap());
    assert_eq!(steps, [1, 1, 0]);
    // Nothing is left that a bound of nothing would remove.
    assert_eq!(store.trim_entries(0, 10).unwrap(), 0);
}

/// Mutations: `ERASE_ONE` without the name, or without the time.
fn one_entry_is_erased_unless_it_is_newer<B: Bed>() {
    let bed = B::new();
    let mut store = bed.open();
    for number in 1..=2 {
        store.put_entry(&entry(number), 1_000).unwrap();
    }
    assert!(store.erase_entry(&[1; 32], 999).unwrap());
    assert_eq!(present(&mut *store, 1_000), [1, 2]);
    assert!(store.erase_entry(&[1; 32], 1_000).unwrap());
    assert!(store.erase_entry(&[1; 32], 1_000).unwrap());
    assert_eq!(present(&mut *store, 1_000), [2]);
}
