//! Mutations that these tests catch, each in `queue.rs`: a level without the weight, or tokens that
//! are not charged (`tokens_divide_by_weight_...`); a new line that begins at zero
//! (`time_without_work_earns_no_credit`); a line at rest that is forgotten although it is ahead
//! (`a_line_that_is_ahead_stays_so_...`); no reservation (`sequences_that_are_free_at_once_...`); a
//! job that is put back behind the others (`a_job_that_is_put_back_keeps_its_place`); the oldest
//! job of a line that makes room (`newest_job_of_the_longest_line_...`); a sweep that begins at the
//! front each time (`a_sweep_goes_round`); lines at rest without a bound
//! (`a_bounded_number_of_lines_...`); a reservation that is not divided by the weight
//! (`sequences_that_are_free_at_once_...`); a line that comes back with a weight of 1
//! (`a_job_that_is_put_back_keeps_its_place`).

use proptest::prelude::*;

use super::*;

const fn live(tenant: u64) -> Line {
    let class = Class::Live;
    Line { class, tenant }
}

const fn background(tenant: u64) -> Line {
    let class = Class::Background;
    Line { class, tenant }
}

/// Runs the first job of the next line to its end: `tokens` of it. Returns the line.
fn serve(queue: &mut Queue<u32>) -> Option<(Line, u32)> {
    let line = queue.lines(Class::Live).next()?;
    let (_, tokens) = queue.pop(line).unwrap();
    queue.seat(line, 10);
    queue.charge(line, tokens, tokens.min(10));
    queue.unseat(line, 10 - tokens.min(10));
    queue.check_invariants();
    Some((line, tokens))
}

proptest! {
    /// Also proves that no line starves: each has its share at every moment, up to one job.
    #[test]
    fn tokens_divide_by_weight_whatever_the_jobs(
        weights in prop::collection::vec(1..9_u16, 2..5),
        lengths in prop::collection::vec(1..40_u32, 400),
    ) {
        let mut queue = Queue::default();
        for (number, tokens) in lengths.iter().enumerate() {
            // Some tenants have long jobs, some have short ones.
            let tenant = number % weights.len();
            let tokens = 1 + tokens * tenant as u32;
            queue.push(live(tenant as u64), weights[tenant], tokens);
        }
        let mut had = vec![0_u32; weights.len()];
        // While all of them wait.
        while queue.lines(Class::Live).count() == weights.len() {
            let (line, tokens) = serve(&mut queue).unwrap();
            had[line.tenant as usize] += tokens;
            let levels = had.iter().zip(&weights).map(|(had, weight)| had / u32::from(*weight));
            let (low, high) = (levels.clone().min().unwrap(), levels.max().unwrap());
            prop_assert!(high - low <= 41 * weights.len() as u32, "{had:?} for {weights:?}");
        }
    }

    #[test]
    fn any_order_of_calls_keeps_the_invariants(
        calls in prop::collection::vec((0..8_u8, 0..5_u64, 0..30_u32), 1..120),
    ) {
        let mut queue = Queue::default();
        let mut running: Vec<(Line, Place, u32)> = Vec::new();
        let mut model = 0;
        for (call, tenant, tokens) in calls {
            let line = if tokens % 3 == 0 { background(tenant) } else { live(tenant) };
            match call {
                0..=2 => {
                    queue.push(line, tokens as u16, tokens);
                    model += 1;
                }
                3 => {
                    let first = queue.lines(line.class).next();
                    if let Some((line, (place, job))) = first.map(|l| (l, queue.pop(l).unwrap())) {
                        queue.seat(line, tokens);
                        running.push((line, place, job));
                        model -= 1;
                    }
                }
                4 => running.iter().for_each(|(line, ..)| queue.charge(*line, tokens, 1)),
                5 => {
                    if let Some((line, place, job)) = running.pop() {
                        queue.unseat(line, 0);
                        queue.put_back(line, 1, place, job);
                        model += 1;
                    }
                }
                6 => model -= queue.sweep(2, |job| *job == tokens).len(),
                _ => model -= usize::from(queue.pop_newest_of_longest().is_some()),
            }
            queue.check_invariants();
            prop_assert_eq!(queue.len(), model);
            prop_assert_eq!(queue.jobs().count(), model);
        }
    }
}

#[test]
fn jobs_of_a_line_leave_in_order_of_arrival() {
    let mut queue = Queue::default();
    (1..=9).for_each(|tokens| queue.push(live(1), 1, tokens));
    let served = std::iter::from_fn(|| serve(&mut queue)).map(|(_, tokens)| tokens);
    assert!(served.eq(1..=9));
}

#[test]
fn time_without_work_earns_no_credit() {
    let mut queue = Queue::default();
    (0..50).for_each(|_| queue.push(live(1), 1, 100));
    for _ in 0..30 {
        serve(&mut queue);
    }
    // The other one was idle meanwhile; from now on they take turns.
    (0..20).for_each(|_| queue.push(live(2), 1, 100));
    let tenants: Vec<u64> = (0..10)
        .map(|_| serve(&mut queue).unwrap().0.tenant)
        .collect();
    let second = tenants.iter().filter(|tenant| **tenant == 2).count();
    assert_eq!(second, 5, "{tenants:?}");
}

#[test]
fn a_line_that_is_ahead_stays_so_while_it_rests() {
    let mut queue = Queue::default();
    (0..50).for_each(|_| queue.push(live(2), 1, 10));
    queue.push(live(1), 1, 200);
    while serve(&mut queue).unwrap().0.tenant != 1 {}
    // The first one comes back at once, as if it were new.
    queue.push(live(1), 1, 10);
    let before = std::iter::from_fn(|| serve(&mut queue)).take_while(|(line, _)| line.tenant == 2);
    assert!((18..=21).contains(&before.count()));
    // Once no job waits, nothing is owed.
    while serve(&mut queue).is_some() {}
    assert_eq!(queue.accounts.len(), 0);
    assert_eq!(queue.level(live(1)), queue.level(live(2)));
}

#[test]
fn sequences_that_are_free_at_once_go_to_several_lines() {
    let mut queue = Queue::default();
    for tenant in [1, 1, 1, 1, 2, 2, 2, 2] {
        queue.push(live(tenant), 1, 0);
    }
    for _ in 0..4 {
        let line = queue.lines(Class::Live).next().unwrap();
        queue.pop(line).unwrap();
        queue.seat(line, 100);
    }
    assert_eq!([live(1), live(2)].map(|line| queue.seats(line)), [2, 2]);
    let mut queue = Queue::default();
    for tenant in [1, 1, 1, 1, 2, 2, 2, 2] {
        queue.push(live(tenant), 2 * tenant as u16 - 1, 0);
    }
    for _ in 0..4 {
        let line = queue.lines(Class::Live).next().unwrap();
        queue.pop(line).unwrap();
        queue.seat(line, 100);
    }
    let seats = [live(1), live(2)].map(|line| queue.seats(line));
    assert_eq!(seats, [1, 3], "by weight");
}

#[test]
fn a_bounded_number_of_lines_at_rest_is_remembered() {
    let mut queue = Queue::default();
    // It keeps the base where it is.
    queue.push(live(0), 1, 0);
    let tenants = limits::RESTING_LINES_MAX as u64 + 9;
    for tenant in 1..=tenants {
        queue.push(live(tenant), 1, 0);
        queue.pop(live(tenant)).unwrap();
        queue.seat(live(tenant), 0);
        queue.charge(live(tenant), tenant as u32, 0);
        queue.unseat(live(tenant), 0);
    }
    assert_eq!(queue.resting.len(), limits::RESTING_LINES_MAX);
    queue.check_invariants();
    // Those that are least ahead are forgotten.
    assert_eq!(queue.level(live(9)), queue.level(live(0)));
    assert!(queue.level(live(10)) > queue.level(live(0)));
}

#[test]
fn a_job_that_is_put_back_keeps_its_place() {
    let mut queue = Queue::default();
    (1..=3).for_each(|job| queue.push(live(1), 1, job));
    let (place, first) = queue.pop(live(1)).unwrap();
    queue.put_back(live(1), 1, place, first);
    assert_eq!((first, queue.begun()), (1, 1));
    let order: Vec<u32> = (0..3).map(|_| queue.pop(live(1)).unwrap().1).collect();
    assert_eq!(order, [1, 2, 3]);
    assert_eq!(queue.begun(), 0);
    // Its line was forgotten meanwhile, and has its weight again.
    queue.put_back(live(2), 2, place, first);
    queue.seat(live(2), 0);
    queue.charge(live(2), 8, 0);
    assert_eq!(queue.level(live(2)), 4 * LEVEL_PER_TOKEN);
}

#[test]
fn newest_job_of_the_longest_line_makes_room() {
    let mut queue = Queue::default();
    (0..9).for_each(|job| queue.push(background(1), 1, job));
    for (tenant, job) in [(1, 10), (2, 20), (2, 21), (1, 11), (1, 12)] {
        queue.push(live(tenant), 1, job);
    }
    let (place, begun) = queue.pop(live(1)).unwrap();
    queue.put_back(live(1), 1, place, begun);
    let lengths: Vec<(u64, u32)> = queue.lengths().collect();
    assert_eq!(lengths, [(1, 2), (2, 2)]);
    queue.push(live(2), 1, 22);
    let made: Vec<u32> = std::iter::from_fn(|| queue.pop_newest_of_longest()).collect();
    assert_eq!(
        made.len(),
        5,
        "neither the background nor what has begun: {made:?}"
    );
    assert_eq!((made[0], begun), (22, 10));
}

#[test]
fn a_sweep_goes_round() {
    let mut queue = Queue::default();
    (0..10).for_each(|job| queue.push(live(job % 3), 1, job));
    let seen = std::cell::RefCell::new(Vec::new());
    let look = |job: &u64| {
        seen.borrow_mut().push(*job);
        *job == 4
    };
    let over: Vec<u64> = (0..4).flat_map(|_| queue.sweep(4, look)).collect();
    assert_eq!(over, [4]);
    assert_eq!(
        *seen.borrow(),
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 5, 6]
    );
}

impl<T> Queue<T> {
    /// Yields each tenant with live jobs that have not begun, and their number.
    pub fn lengths(&self) -> impl Iterator<Item = (u64, u32)> {
        let of_lines = |(fresh, line): &(u32, Line)| (line.tenant, *fresh);
        self.longest.iter().map(of_lines)
    }

    /// Checks invariants 2 and 3.
    fn check_invariants(&self) {
        let mut counts = [0; 5];
        for (line, account) in &self.accounts {
            assert_eq!(
                account
                    .jobs
                    .keys()
                    .filter(|p| self.places[p] == *line)
                    .count(),
                account.jobs.len()
            );
            let fresh = account
                .jobs
                .values()
                .filter(|waiting| !waiting.has_begun)
                .count();
            assert_eq!(account.fresh as usize, fresh);
            counts[0] += account.jobs.len();
            if let Some(place) = account.first() {
                assert!(
                    self.waiting
                        .contains(&(line.class, account.level(), place, *line))
                );
                counts[1] += 1;
            }
            let entry = (line.class, account.computed, *line);
            if account.is_active() {
                assert!(account.computed >= self.base(line.class));
                assert!(self.active.contains(&entry));
                counts[2] += 1;
            } else {
                assert!(account.computed > self.base(line.class));
                assert!(self.resting.contains(&entry));
                counts[3] += 1;
            }
            if fresh > 0 && line.class == Class::Live {
                assert!(self.longest.contains(&(account.fresh, *line)));
                counts[4] += 1;
            }
        }
        let indexes = [&self.active, &self.resting].map(BTreeSet::len);
        let lengths = [
            self.places.len(),
            self.waiting.len(),
            indexes[0],
            indexes[1],
            self.longest.len(),
        ];
        assert_eq!(counts, lengths, "invariant 3");
    }
}
