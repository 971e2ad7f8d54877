use proptest::prelude::*;

use crate::offload::shares::Shares;

const OWN: u64 = 0;

/// Takes places for a tenant until it has its share. Returns how many.
fn fill(shares: &mut Shares, tenant: u64) -> usize {
    let mut count = 0;
    while shares.admits(tenant) {
        shares.take(tenant);
        count += 1;
    }
    count
}

#[test]
fn one_tenant_leaves_places_for_others_and_all_leave_one_for_the_daemon() {
    let mut shares = Shares::new(8, OWN);
    let taken = [1, 2, 3, 4].map(|tenant| fill(&mut shares, tenant));
    assert_eq!(taken, [4, 2, 1, 0]);
    assert_eq!(fill(&mut shares, OWN), 1, "its own");
    shares.give_back(OWN);
    shares.give_back(1);
    assert!(shares.admits(4), "a newcomer before the others");
    assert!([1, 2, 3].iter().all(|tenant| !shares.admits(*tenant)));
    assert_eq!(fill(&mut shares, OWN), 2, "what is free is its as well");
    assert!(!shares.admits(4));
}

#[test]
fn the_daemons_own_place_is_not_kept_twice() {
    let mut shares = Shares::new(4, OWN);
    shares.take(OWN);
    assert_eq!([1, 2].map(|tenant| fill(&mut shares, tenant)), [2, 1]);
    let mut smallest = Shares::new(2, OWN);
    assert_eq!([1, 2].map(|tenant| fill(&mut smallest, tenant)), [1, 0]);
    smallest.give_back(1);
    assert!(smallest.admits(2));
}

proptest! {
    /// No order of events takes all places, or more than there are; and while a place is free that
    /// is not the daemon's, a tenant without one finds it.
    #[test]
    fn a_newcomer_always_finds_a_free_place(
        steps in prop::collection::vec((0_u64..5, any::<bool>()), 1..300),
        most in 2_usize..10,
    ) {
        let mut shares = Shares::new(most, OWN);
        let mut held = [0_usize; 5];
        for (tenant, takes) in steps {
            let slot = tenant as usize;
            if takes && shares.admits(tenant) {
                shares.take(tenant);
                held[slot] += 1;
            } else if !takes && held[slot] > 0 {
                shares.give_back(tenant);
                held[slot] -= 1;
            }
            let taken: usize = held.iter().sum();
            prop_assert!(taken <= most);
            let tenants = held.iter().filter(|held| **held > 0).count();
            prop_assert_eq!(shares.tenants(), tenants, "an entry without a place");
            prop_assert!(taken - held[0] < most, "none is left for the daemon");
            prop_assert_eq!(shares.admits(OWN), taken < most);
            let kept = usize::from(held[0] == 0);
            for newcomer in (1..5).filter(|tenant| held[*tenant] == 0) {
                prop_assert_eq!(shares.admits(newcomer as u64), taken + kept < most);
            }
            for other in (1..5).filter(|tenant| held[*tenant] > 0) {
                let leaves_one = !shares.admits(other as u64) || taken + kept + 1 < most;
                prop_assert!(leaves_one, "it has one and may take the last");
            }
        }
    }
}
