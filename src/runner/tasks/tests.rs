//! The cost of the runner's tasks for a database server.

use std::ops::Range;

use super::*;
use crate::jobs::{Completion, Ending, NewJob};
use crate::runner::changes::Next;
use crate::store::tests::{Bed, PostgresBed};

fn new_job(number: u8) -> NewJob {
    NewJob {
        id: JobId::new(number.into(), [number; 10]),
        key_id: format!("key_{}", number.min(6)),
        created_at: 1,
        expires_at: 5_000,
        request: "{}".to_owned(),
        callback_url: None,
        idempotency: None,
    }
}

/// A save of the same kind for each job. Their first attempt runs.
fn save(jobs: &Range<u8>, after: u32, text: &str, next: impl Fn() -> Next) -> Work {
    let part = |number| Write {
        id: new_job(number).id,
        attempt: 1,
        after,
        text: text.to_owned(),
        next: next(),
    };
    Work::Save {
        parts: jobs
            .clone()
            .map(|number| (number.into(), part(number)))
            .collect(),
        now: 50,
        keep_ms: 9,
        saved: Vec::new(),
    }
}

/// Returns how many statements each kind of task costs for these jobs, with its transaction.
fn statements(bed: &PostgresBed, jobs: Range<u8>) -> Vec<(&'static str, Vec<String>)> {
    let mut store = bed.open();
    let new: Vec<NewJob> = jobs.clone().map(new_job).collect();
    store.insert_jobs(&new.iter().collect::<Vec<_>>()).unwrap();
    let claim = Work::Claim {
        called: Vec::new(),
        room: jobs.len(),
        now: 10,
        lease_until: 100,
        claimed: Vec::new(),
    };
    let run = || Next::Run { lease_until: 200 };
    let wait = || Next::Wait {
        postponed: Some(20),
    };
    let completed = || Next::End(Box::new(Ending::Completed(Completion::default())));
    let look = Work::Look {
        ids: new.iter().map(|job| job.id).collect(),
        seen: Vec::new(),
    };
    let half = jobs.start..jobs.start + jobs.len().div_ceil(2) as u8;
    let rest = half.end..jobs.end;
    let tasks = [
        ("claim", claim),
        ("renew", save(&jobs, 0, "", run)),
        ("save", save(&jobs, 0, "fn main", run)),
        ("look", look),
        ("end", save(&half, 1, "() {}", completed)),
        ("wait", save(&rest, 1, "", wait)),
    ];
    let costs = tasks.map(|(name, mut work)| {
        let statements = bed.statements(|| {
            store.begin().unwrap();
            work.run(&mut *store).unwrap();
            store.commit().unwrap();
        });
        let is_complete = match &work {
            Work::Claim { claimed, .. } => claimed.len() == jobs.len(),
            Work::Save { saved, .. } => saved.iter().all(Result::is_ok),
            Work::Look { seen, .. } => seen.len() == jobs.len(),
            Work::Sweep { .. } => true,
        };
        assert!(is_complete, "{name}");
        (name, statements)
    });
    costs.into()
}

/// Mutations that this test catches: `change::claim` or `change::write` with a statement for each
/// job, `save_jobs` with one for each event, a look that asks for each job, `postpone_jobs` with a
/// statement for each job; a trigger that notes a change which changes no total.
#[test]
fn a_group_of_changes_costs_as_many_statements_as_one() {
    let bed = PostgresBed::counting();
    // Keys of their own: one of these is put off in the end.
    let few = statements(&bed, 0..2);
    assert_eq!(few, statements(&bed, 2..82));
    let costs: Vec<_> = few
        .iter()
        .map(|(name, lines)| (*name, cost(lines)))
        .collect();
    // The second number has the statements of the trigger that counts at the commit.
    let expected = [
        ("claim", (7, 9)),
        ("renew", (3, 3)),
        ("save", (3, 4)),
        ("look", (2, 2)),
        ("end", (3, 4)),
        ("wait", (4, 6)),
    ];
    assert_eq!(costs, expected);
}

/// Returns the numbers of round trips and of statements.
fn cost(statements: &[String]) -> (u32, u32) {
    let (mut trips, mut all) = (0, 0);
    for line in statements {
        let (calls, text) = line.split_once('|').unwrap();
        let calls: u32 = calls.parse().unwrap();
        all += calls;
        if !text.contains("INSERT INTO job_totals") {
            trips += calls;
        }
    }
    (trips, all)
}

/// Mutation that this test catches: `name_jobs` of [`Work`] or [`RunnerTask`] that names none.
#[test]
fn a_save_names_the_jobs_that_it_changes() {
    let work = save(&(1..4), 0, "", || Next::Wait { postponed: None });
    let mut jobs = Vec::new();
    RunnerTask::new(work, |_| {}).name_jobs(&mut jobs);
    assert_eq!(jobs, [1, 2, 3].map(|number| new_job(number).id));
}

/// Otherwise two daemons could wait for each other: each has a job in its line that the other has
/// called.
#[test]
fn a_claim_names_the_jobs_that_are_called() {
    let called = [3, 1].map(|number| Called {
        id: new_job(number).id,
        tenant: 1,
    });
    let work = Work::Claim {
        called: called.to_vec(),
        room: 1,
        now: 10,
        lease_until: 100,
        claimed: Vec::new(),
    };
    let mut jobs = Vec::new();
    RunnerTask::new(work, |_| {}).name_jobs(&mut jobs);
    assert_eq!(jobs, called.map(|called| called.id));
}

/// Mutation that this test catches: `claim` in the order in which the database finds the records.
#[test]
fn claimed_jobs_begin_in_the_order_of_their_turns() {
    let bed = PostgresBed::new();
    let mut store = bed.open();
    let jobs = [(1, "key_b"), (2, "key_b"), (3, "key_a")].map(|(number, key)| NewJob {
        key_id: key.to_owned(),
        ..new_job(number)
    });
    store.insert_jobs(&jobs.iter().collect::<Vec<_>>()).unwrap();
    let claimed = change::claim(&mut *store, &[], 3, 10, 100).unwrap();
    let numbers: Vec<JobId> = claimed.iter().map(|job| job.id).collect();
    assert_eq!(numbers, [3, 1, 2].map(|number| new_job(number).id));
}
