//! An erasure beside a daemon's transaction.

use super::*;

use crate::store::erasure::erase;
use crate::store::interface::generations::{Generations as _, Status};
use crate::store::tests::generations::record;
use crate::telemetry::id::Ids;
use crate::telemetry::random::SplitMix64;

/// Mutation: an `await_earlier_writes` that looks at nothing.
#[test]
fn an_erasure_sees_a_record_whose_transaction_began_before_the_key_was_gone() {
    let (_bed, target) = bed();
    let mut daemon = PostgresStore::open(&target).unwrap();
    let mut command = PostgresStore::open(&target).unwrap();
    let (key, _) = command.create(&NewKey::default(), 1).unwrap();
    let mut ids = Ids::new(SplitMix64::new(1, 2));
    let erased = |store: &mut PostgresStore| erase(store, &key.id).unwrap().generations;
    daemon.begin().unwrap();
    let first = record(&mut ids, &key.id, Status::Done, 1);
    daemon.add_generations(&[first]).unwrap();
    command.remove(&key.id).unwrap();
    assert_eq!(erased(&mut command), 0, "it is not seen");
    assert!(!command.await_earlier_writes(Duration::ZERO).unwrap());
    daemon.commit().unwrap();
    assert!(command.await_earlier_writes(PATIENCE).unwrap());
    assert_eq!(erased(&mut command), 1);
    // A later one finds no key, and is not added.
    let late = record(&mut ids, &key.id, Status::Done, 2);
    daemon.add_generations(&[late]).unwrap();
    assert_eq!(erased(&mut command), 0);
}
