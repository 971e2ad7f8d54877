//! Mutations that these tests catch: `rotate_left` left out (the flood is served first), credit
//! that an emptied line keeps, `own_items < free_items` without the own items, `push_front`,
//! `pop_of` that ends at the first tenant whose items must stay, or that never ends.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use crate::offload::fair_queue::{Bounds, FairQueue};

const BOUNDS: Bounds = Bounds {
    items: 64,
    bytes: 64_000,
    visit_bytes: 1_000,
    item_bytes_min: 10,
};

fn queue() -> FairQueue<(u64, u32)> {
    FairQueue::new(BOUNDS)
}

fn fill(queue: &mut FairQueue<(u64, u32)>, tenant: u64, bytes: u32) -> u32 {
    let mut count = 0;
    while queue.admits(tenant, bytes) {
        queue.push(tenant, bytes, (tenant, count));
        count += 1;
    }
    count
}

#[test]
fn a_newcomer_waits_for_one_visit_of_the_flood() {
    let mut queue = queue();
    fill(&mut queue, 1, 100);
    queue.push(2, 100, (2, 0));
    let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
    let place = order.iter().position(|&(tenant, _)| tenant == 2);
    assert_eq!(place, Some(10), "ten items of 100 bytes are one visit");
}

#[test]
fn large_items_get_no_more_bytes_than_small_ones() {
    let mut queue = queue();
    let small = fill(&mut queue, 1, 100);
    let large = fill(&mut queue, 2, 2_500);
    assert!(small > 20 && large > 5, "{small} {large}");
    let mut left = [0_u64; 3];
    // In the third round the credit of the large ones pays for the first of them.
    for _ in 0..31 {
        let (tenant, _) = queue.pop().unwrap();
        left[tenant as usize] += [0, 100, 2_500][tenant as usize];
    }
    assert_eq!(left, [0, 3_000, 2_500]);
}

#[test]
fn each_of_n_tenants_gets_a_part_and_one_stays_free() {
    let mut queue = queue();
    assert_eq!(fill(&mut queue, 1, 0), 32, "alone it gets half");
    let second = fill(&mut queue, 2, 0);
    assert_eq!(second, 16, "and of the other half the newcomer gets half");
    assert!(queue.admits(3, 0));
    // Once the first has shrunk to its part, all are equal.
    let mut queue: FairQueue<(u64, u32)> = FairQueue::new(BOUNDS);
    let mut counts = [0; 3];
    while let Some(tenant) = (0..3).find(|&tenant| {
        let least = counts.iter().min().copied();
        Some(counts[tenant]) == least && queue.admits(tenant as u64, 0)
    }) {
        queue.push(tenant as u64, 0, (tenant as u64, 0));
        counts[tenant] += 1;
    }
    assert_eq!(counts, [16; 3]);
    assert!(queue.admits(9, 0), "a newcomer finds a place");
}

#[test]
fn bytes_are_bounded_like_items_and_an_empty_queue_admits_any() {
    let mut queue = queue();
    assert!(queue.admits(1, 1_000_000));
    queue.push(1, 1_000_000, (1, 0));
    assert!(!queue.admits(2, 0), "what waits is above the bound");
    assert_eq!(queue.pop(), Some((1, 0)));
    assert_eq!(fill(&mut queue, 1, 8_000), 4, "half of 64,000");
    assert!(queue.admits(2, 8_000));
    assert!(!queue.admits(2, 32_001), "more than is free");
}

#[test]
fn a_tenant_that_comes_back_has_no_old_credit() {
    let mut queue = queue();
    for _ in 0..100 {
        queue.push(1, 10, (1, 0));
        assert_eq!(queue.pop(), Some((1, 0)));
    }
    fill(&mut queue, 1, 1_000);
    queue.push(2, 1_000, (2, 0));
    assert_eq!(queue.pop(), Some((1, 0)));
    assert_eq!(queue.pop(), Some((2, 0)));
}

#[test]
fn tenants_whose_items_must_stay_are_passed_over() {
    let mut queue = queue();
    for tenant in [1, 2, 3, 1, 2, 3] {
        // A visit pays for half of it, so that credit has to grow on the way.
        queue.push(tenant, 2_000, (tenant, 0));
    }
    assert_eq!(queue.pop_of(|_| false), None);
    let mut order = Vec::new();
    while let Some((tenant, _)) = queue.pop_of(|tenant| tenant != 2) {
        order.push(tenant);
    }
    assert_eq!(order, [1, 3, 1, 3]);
    assert_eq!(queue.waiting(), 2);
    assert_eq!(queue.pop_of(|_| true), Some((2, (2, 0))));
    assert_eq!(queue.pop(), Some((2, 0)));
    assert_eq!(queue.pop_of(|_| true), None);
}

#[test]
fn all_that_waits_can_be_taken_at_once() {
    let mut queue = queue();
    let count = fill(&mut queue, 1, 10) + fill(&mut queue, 2, 10);
    assert_eq!(queue.take_all().len(), count as usize);
    assert_eq!((queue.waiting(), queue.bytes(), queue.pop()), (0, 0, None));
    queue.push(1, 10, (1, 0));
    assert_eq!(queue.pop(), Some((1, 0)));
}

proptest! {
    /// Each item leaves once and in its tenant's order; tenants that wait all the time get the same
    /// bytes; and no number of tenants exceeds the bounds.
    #[test]
    fn shares_are_fair_and_bounded(
        steps in prop::collection::vec((0_u64..4, 0_u32..3_000, any::<bool>()), 1..400),
    ) {
        let mut queue = queue();
        let mut waiting: HashMap<u64, VecDeque<(u32, u64)>> = HashMap::new();
        // Bytes that left for each pair since both have waited.
        let mut served: HashMap<(u64, u64), (u64, u64)> = HashMap::new();
        for (number, (tenant, bytes, is_push)) in steps.into_iter().enumerate() {
            let number = number as u32;
            if is_push {
                if queue.admits(tenant, bytes) {
                    queue.push(tenant, bytes, (tenant, number));
                    let price = bytes.max(BOUNDS.item_bytes_min).into();
                    waiting.entry(tenant).or_default().push_back((number, price));
                }
            } else if let Some((tenant, number)) = queue.pop() {
                let line = waiting.get_mut(&tenant).unwrap();
                let (expected, price) = line.pop_front().unwrap();
                prop_assert_eq!(number, expected, "out of order");
                for other in 0..4 {
                    let both = waiting.get(&other).is_some_and(|line| !line.is_empty());
                    let pair = (tenant.min(other), tenant.max(other));
                    let shares = served.entry(pair).or_default();
                    if !both || other == tenant {
                        *shares = (0, 0);
                    } else if tenant < other {
                        shares.0 += price;
                    } else {
                        shares.1 += price;
                    }
                    let bound = BOUNDS.visit_bytes + 2 * 3_000;
                    prop_assert!(shares.0.abs_diff(shares.1) <= bound, "{:?}", shares);
                }
                if waiting[&tenant].is_empty() {
                    waiting.remove(&tenant);
                    served.retain(|pair, _| pair.0 != tenant && pair.1 != tenant);
                }
            }
            let sum: u64 = waiting.values().flatten().map(|&(_, price)| price).sum();
            let count: usize = waiting.values().map(VecDeque::len).sum();
            prop_assert_eq!((queue.waiting(), queue.bytes()), (count, sum));
            prop_assert!(count <= BOUNDS.items && sum <= BOUNDS.bytes);
        }
    }
}
