//! The ring against a plain list of records, and what rings share.

use proptest::prelude::*;

use super::*;
use crate::keys::{Scopes, Secret, Standing};

fn record(secret: &Secret) -> KeyRecord {
    KeyRecord {
        id: "key_000000000000".into(),
        name: "test".into(),
        hash: secret.hash(),
        scopes: Scopes::GENERATE,
        created_at: 100,
        expires_at: None,
        requests_per_minute: None,
        tokens_per_minute: None,
        concurrency: None,
        weight: 1,
        revoked: false,
    }
}

/// A record whose secret is built from a number.
fn numbered(number: u32, id: &str) -> KeyRecord {
    KeyRecord {
        id: id.to_owned(),
        name: String::new(),
        ..record(&secret(number))
    }
}

fn secret(number: u32) -> Secret {
    let mut bytes = [0; limits::RANDOM_BYTES];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    Secret::from_bytes(&bytes)
}

fn changed(id: &str, records: Vec<KeyRecord>) -> [ChangedKey; 1] {
    let id = id.to_owned();
    [ChangedKey { id, records }]
}

#[test]
fn a_ring_finds_its_keys_and_no_others() {
    let (mine, other) = (Secret::from_bytes(&[1; 32]), Secret::from_bytes(&[2; 32]));
    let ring = KeyRing::new(vec![record(&mine)]);
    assert_eq!(ring.find(mine.reveal()).unwrap().record.name, "test");
    assert!(ring.find(other.reveal()).is_none());
    assert!(ring.find("").is_none());
    assert!(
        ring.find(&mine.reveal()[..limits::TEXT_BYTES - 1])
            .is_none()
    );
    assert!(ring.find(&format!("{}A", mine.reveal())).is_none());
    // The last character carries only four bits of the key: a text that decodes to the same
    // bytes is still another text.
    let mut altered = mine.reveal().to_owned();
    let last = altered.pop().unwrap();
    altered.push(if last == 'E' { 'F' } else { 'E' });
    assert!(ring.find(&altered).is_none());
}

#[test]
fn a_key_is_found_by_id_before_name_and_the_best_of_several() {
    let make = |seed: u8, id: &str, name: &str, expires_at| KeyRecord {
        id: id.into(),
        name: name.into(),
        expires_at,
        ..record(&Secret::from_bytes(&[seed; 32]))
    };
    let mut revoked = make(4, "key_c", "phones", None);
    revoked.revoked = true;
    let ring = KeyRing::new(vec![
        make(1, "key_a", "phones", Some(50)),
        make(2, "key_a", "phones", Some(90)),
        make(3, "key_b", "key_a", None),
        revoked,
    ]);
    let found = |name: &str| {
        let found = ring.find_named(name).map(|holder| &holder.record);
        found.map(|record| (record.hash, record.expires_at))
    };
    let second = Secret::from_bytes(&[2; 32]).hash();
    assert_eq!(
        found("key_a"),
        Some((second, Some(90))),
        "an id, not a name"
    );
    assert_eq!(
        found("phones"),
        Some((second, Some(90))),
        "not the revoked one"
    );
    assert_eq!(
        found("key_c").map(|(_, end)| end),
        Some(None),
        "it has no other"
    );
    assert_eq!((found(""), found("nobody")), (None, None));
}

#[test]
fn a_revoked_key_is_found_so_that_it_is_not_called_unknown() {
    let secret = Secret::from_bytes(&[3; 32]);
    let mut revoked = record(&secret);
    revoked.revoked = true;
    revoked.expires_at = Some(1);
    let ring = KeyRing::new(vec![revoked]);
    let found = ring.find(secret.reveal()).unwrap();
    assert_eq!(found.record.standing(50), Standing::Revoked);
}

#[test]
fn a_key_keeps_its_account_through_every_change_until_it_is_gone() {
    let first = KeyRing::new(vec![numbered(1, "key_1"), numbered(2, "key_2")]);
    let account = |ring: &KeyRing, number| {
        let found = ring.find(secret(number).reveal());
        Arc::clone(&found.unwrap().account)
    };
    let (mine, other) = (account(&first, 1), account(&first, 2));
    assert_ne!(mine.tenant, other.tenant);
    // Rotated: two secrets.
    let rotated = vec![numbered(1, "key_1"), numbered(3, "key_1")];
    let second = first.changed(changed("key_1", rotated)).unwrap();
    assert!(Arc::ptr_eq(&mine, &account(&second, 1)));
    assert!(Arc::ptr_eq(&mine, &account(&second, 3)));
    // Read again as a whole, without the first secret.
    let third = second.replaced(vec![numbered(3, "key_1"), numbered(4, "key_4")]);
    let third = third.unwrap();
    assert!(Arc::ptr_eq(&mine, &account(&third, 3)));
    assert!(third.find(secret(2).reveal()).is_none());
    // A key that comes back is a new one to this process, but the same tenant.
    let fourth = third.changed(changed("key_2", vec![numbered(2, "key_2")]));
    let again = account(&fourth.unwrap(), 2);
    assert!(!Arc::ptr_eq(&other, &again));
    assert_eq!(other.tenant, again.tenant);
}

#[test]
fn a_change_copies_one_shard_of_each_index() {
    let named = |number| KeyRecord {
        name: format!("name {number}"),
        ..numbered(number, &format!("key_{number}"))
    };
    let before = KeyRing::new((0..5_000).map(named).collect());
    let revoked = KeyRecord {
        revoked: true,
        ..named(7)
    };
    let after = before.changed(changed("key_7", vec![revoked])).unwrap();
    fn copied<T>(one: &Shards<T>, other: &Shards<T>) -> usize {
        let pairs = one.0.iter().zip(other.0.iter());
        pairs
            .filter(|(one, other)| !Arc::ptr_eq(one, other))
            .count()
    }
    assert!(after.gone().is_empty(), "a revoked key is still there");
    let without = after.changed(changed("key_7", Vec::new())).unwrap();
    assert_eq!(without.gone(), [crate::keys::tenant_of("key_7")]);
    let next = without.changed(changed("key_8", Vec::new())).unwrap();
    assert_eq!(next.gone(), [crate::keys::tenant_of("key_8")]);
    assert_eq!(copied(&before.by_hash, &after.by_hash), 1);
    assert_eq!(copied(&before.by_id, &after.by_id), 1);
    assert_eq!(copied(&before.by_name, &after.by_name), 1);
    // The same by reading everything again.
    let all = (0..5_000).map(|number| match number {
        9 => numbered(9, "key_9"),
        7 => after.find_named("key_7").unwrap().record.clone(),
        _ => named(number),
    });
    let again = after.replaced(all.collect()).unwrap();
    assert_eq!(copied(&after.by_hash, &again.by_hash), 1);
    assert_eq!(copied(&after.by_id, &again.by_id), 1);
    assert_eq!(copied(&after.by_name, &again.by_name), 1);
}

#[test]
fn a_change_that_changes_nothing_makes_no_ring() {
    let ring = KeyRing::new(vec![numbered(1, "key_1"), numbered(2, "key_1")]);
    let turned = vec![numbered(2, "key_1"), numbered(1, "key_1")];
    assert!(ring.changed(changed("key_1", turned.clone())).is_none());
    assert!(ring.changed(changed("key_2", Vec::new())).is_none());
    assert!(ring.replaced(turned).is_none());
    assert!(KeyRing::default().replaced(Vec::new()).is_none());
    assert!(KeyRing::default().is_empty());
}

/// A plain list, searched from its beginning.
fn best<'r>(records: &'r [KeyRecord], wanted: &str) -> Option<&'r KeyRecord> {
    let worth = |record: &&KeyRecord| {
        let end = record.expires_at.unwrap_or(u64::MAX);
        (!record.revoked, end, record.created_at, record.hash)
    };
    let of_id = records.iter().filter(|record| record.id == wanted);
    let of_name = records.iter().filter(|record| record.name == wanted);
    of_id
        .max_by_key(worth)
        .or_else(|| of_name.max_by_key(worth))
}

/// Ids, and names that are ids of others or shared.
const TEXTS: [&str; 6] = ["key_a", "key_b", "key_c", "key_d", "phones", ""];

prop_compose! {
    /// A key after a change: up to three secrets out of twelve of its own.
    fn any_change()(
        key in 0_u32..4,
        secrets in prop::collection::btree_set(0_u32..12, 0..3),
        name in 0..TEXTS.len(),
        revoked in any::<bool>(),
        ends in prop::collection::vec(prop::option::of(0_u64..3), 3),
    ) -> ChangedKey {
        let id = TEXTS[key as usize].to_owned();
        let records = secrets.into_iter().zip(ends).map(|(secret, expires_at)| KeyRecord {
            name: TEXTS[name].to_owned(),
            revoked,
            expires_at,
            ..numbered(key * 12 + secret, &id)
        });
        ChangedKey { records: records.collect(), id }
    }
}

proptest! {
    #[test]
    fn a_ring_agrees_with_one_that_is_made_of_the_same_records(
        changes in prop::collection::vec(any_change(), 1..20),
        is_whole in any::<bool>(),
    ) {
        let mut ring = KeyRing::default();
        let mut records: Vec<KeyRecord> = Vec::new();
        for change in changes {
            records.retain(|record| record.id != change.id);
            records.extend(change.records.iter().cloned());
            let next = match is_whole {
                true => ring.replaced(records.clone()),
                false => ring.changed([change]),
            };
            ring = next.unwrap_or(ring);
            prop_assert_eq!(ring.len(), records.len());
            for number in 0..48 {
                let secret = secret(number);
                let found = ring.find(secret.reveal()).map(|holder| &holder.record);
                let expected = records.iter().find(|record| record.hash == secret.hash());
                prop_assert_eq!(found, expected);
            }
            for text in TEXTS.into_iter().filter(|text| !text.is_empty()) {
                let found = ring.find_named(text).map(|holder| &holder.record);
                prop_assert_eq!(found, best(&records, text));
            }
        }
    }
}
