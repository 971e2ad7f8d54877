//! Changes of jobs on a real store.

use super::*;
use crate::jobs::{Completion, Ending, EventId, NewJob, State};
use crate::limits::jobs as limits;
use crate::runner::changes::Next;
use crate::store::tests::OneJob as _;
use crate::store::{Jobs, SqliteStore};

const KEEP_MS: u64 = 1_000;

fn store() -> (tempfile::TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_in(folder.path()).unwrap();
    (folder, store)
}

fn id(number: u8) -> JobId {
    JobId::new(number.into(), [number; 10])
}

fn new_job(number: u8, key_id: &str) -> NewJob {
    NewJob {
        id: id(number),
        key_id: key_id.to_owned(),
        created_at: 100,
        expires_at: 500,
        request: r#"{"prompt":"x"}"#.to_owned(),
        callback_url: None,
        idempotency: None,
    }
}

fn accept_one(store: &mut SqliteStore, number: u8, key_id: &str) {
    store.insert_job(&new_job(number, key_id)).unwrap();
}

fn state(store: &mut SqliteStore, id: JobId) -> State {
    store.job_life(id).unwrap().unwrap().state
}

fn history(store: &mut SqliteStore, id: JobId) -> Vec<String> {
    let events = store
        .job_events(id, EventId::BEGINNING, usize::MAX)
        .unwrap();
    let shown = events
        .iter()
        .map(|event| format!("{} {} {}", event.id, event.kind.as_str(), event.text));
    shown.map(|line| line.trim_end().to_owned()).collect()
}

fn part(number: u8, (attempt, after): (u32, u32), text: &str, next: Next) -> Write {
    Write {
        id: id(number),
        attempt,
        after,
        text: text.to_owned(),
        next,
    }
}

fn write_one(store: &mut SqliteStore, part: &Write, now: u64) -> Result<(), Fenced> {
    write(store, [part].into_iter(), now, KEEP_MS)
        .unwrap()
        .remove(0)
}

fn completed() -> Next {
    Next::End(Box::new(Ending::Completed(Completion::default())))
}

fn failed() -> Next {
    Next::End(Box::new(Ending::Failed(Default::default())))
}

/// Mutations: `claim` that returns a job although it does not wait; that forgets the called ones.
#[test]
fn a_called_job_is_claimed_before_others_if_it_waits() {
    let (_folder, mut store) = store();
    for (number, name) in [(1, "a"), (2, "b"), (3, "c")] {
        accept_one(&mut store, number, name);
    }
    let mut claimed = |called: &[JobId], room| {
        let jobs = claim(&mut store, called, room, 100, 200).unwrap();
        jobs.iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert_eq!(claimed(&[id(2)], 0), [id(2)]);
    // It runs, and the last one does not exist.
    assert_eq!(claimed(&[id(2), id(9)], 0), []);
    assert_eq!(claimed(&[id(1)], 1), [id(1)], "once, and not twice");
    assert_eq!(claimed(&[id(1)], 1), [id(3)]);
}

#[test]
fn an_attempt_writes_its_history_and_ends_once() {
    let (_folder, mut store) = store();
    accept_one(&mut store, 1, "a");
    let claimed = claim(&mut store, &[], 9, 100, 200).unwrap();
    assert_eq!((claimed.len(), claimed[0].life.attempt), (1, 1));
    assert!(claim(&mut store, &[], 9, 100, 200).unwrap().is_empty());
    let run = || Next::Run { lease_until: 300 };
    let mut save = |part: Write| write_one(&mut store, &part, 150);
    assert_eq!(save(part(1, (1, 0), "fn ", run())), Ok(()));
    assert_eq!(save(part(1, (1, 1), "", run())), Ok(()));
    assert_eq!(save(part(1, (2, 0), "", Next::Lose)), Err(Fenced));
    assert_eq!(save(part(1, (2, 0), "no", run())), Err(Fenced));
    assert_eq!(
        save(part(1, (1, 1), "x", Next::Wait { postponed: None })),
        Ok(())
    );
    assert_eq!(save(part(1, (1, 2), "late", completed())), Err(Fenced));
    claim(&mut store, &[], 9, 160, 260).unwrap();
    let mut save = |part: Write| write_one(&mut store, &part, 170);
    assert_eq!(save(part(1, (1, 2), "late", completed())), Err(Fenced));
    assert_eq!(save(part(1, (2, 0), "fn", completed())), Ok(()));
    assert_eq!(save(part(1, (2, 2), "again", completed())), Err(Fenced));
    assert_eq!(
        history(&mut store, id(1)),
        [
            "1.1 delta fn",
            "1.2 delta x",
            "2.0 reset",
            "2.1 delta fn",
            "2.2 done"
        ]
        .iter()
        .fold(vec!["1.0 started".to_owned()], |mut all, line| {
            all.push((*line).to_owned());
            all
        })
    );
    let job = store.job(id(1)).unwrap().unwrap();
    assert_eq!((job.finished_at, job.expires_at), (Some(170), 1_170));
    let ending = Ending::parse(&job.ending.expect("it has ended"));
    assert!(matches!(ending, Some(Ending::Completed(_))));
}

#[test]
fn a_key_cancels_its_own_jobs_in_any_state() {
    let (_folder, mut store) = store();
    accept_one(&mut store, 1, "a");
    accept_one(&mut store, 2, "a");
    claim(&mut store, &[], 1, 100, 200).unwrap();
    assert_eq!(cancel(&mut store, "b", id(1), 110, KEEP_MS).unwrap(), None);
    assert_eq!(cancel(&mut store, "a", id(9), 110, KEEP_MS).unwrap(), None);
    for number in [1, 2] {
        let job = cancel(&mut store, "a", id(number), 110, KEEP_MS)
            .unwrap()
            .unwrap();
        assert_eq!(job.life.state, State::Cancelled);
    }
    assert_eq!(
        write_one(&mut store, &part(1, (1, 0), "x", completed()), 120),
        Err(Fenced)
    );
    let again = cancel(&mut store, "a", id(1), 190, KEEP_MS)
        .unwrap()
        .unwrap();
    assert_eq!(again.finished_at, Some(110), "the first time counts");
    assert_eq!(history(&mut store, id(1)), ["1.0 started", "1.1 cancelled"]);
    assert_eq!(history(&mut store, id(2)), ["0.1 cancelled"]);
}

#[test]
fn a_sweep_takes_back_expires_and_deletes() {
    let (_folder, mut store) = store();
    (1..=3).for_each(|number| accept_one(&mut store, number, "a"));
    for lost in 1..=limits::LOST_ATTEMPTS_MAX {
        let now = 100 * u64::from(lost);
        assert_eq!(
            claim(&mut store, &[], 1, now, now + 50).unwrap()[0].id,
            id(1)
        );
        let (changed, _) = sweep(&mut store, now + 49, KEEP_MS, 9).unwrap();
        assert!(changed.is_empty());
        let (changed, has_more) = sweep(&mut store, now + 50, KEEP_MS, 9).unwrap();
        assert_eq!((changed, has_more), (vec![id(1)], false));
        let expected = match lost {
            limits::LOST_ATTEMPTS_MAX => State::Failed,
            _ => State::Queued,
        };
        assert_eq!(state(&mut store, id(1)), expected);
    }
    let (changed, has_more) = sweep(&mut store, 500, KEEP_MS, 1).unwrap();
    assert_eq!((changed, has_more), (vec![id(2)], true));
    sweep(&mut store, 501, KEEP_MS, 9).unwrap();
    assert_eq!(state(&mut store, id(3)), State::Expired);
    assert_eq!(history(&mut store, id(3)), ["0.1 expired"]);
    sweep(&mut store, 501 + KEEP_MS, KEEP_MS, 9).unwrap();
    assert_eq!(
        store.job_totals(None).unwrap(),
        crate::jobs::JobTotals::default()
    );
}

/// Mutation: `Next::Lose` that does not count.
#[test]
fn an_attempt_that_the_engine_loses_waits_again_but_not_for_ever() {
    let (_folder, mut store) = store();
    accept_one(&mut store, 1, "a");
    for attempt in 1..=limits::LOST_ATTEMPTS_MAX {
        claim(&mut store, &[], 1, 100, 200).unwrap();
        let lost = part(1, (attempt, 0), "", Next::Lose);
        assert_eq!(write_one(&mut store, &lost, 110), Ok(()));
    }
    assert_eq!(state(&mut store, id(1)), State::Failed);
}

/// Mutation: `Changes::write` that reads a life again for each part.
#[test]
fn parts_of_one_job_see_each_other() {
    let (_folder, mut store) = store();
    (1..=2).for_each(|number| accept_one(&mut store, number, "a"));
    assert_eq!(claim(&mut store, &[], 9, 100, 200).unwrap().len(), 2);
    let parts = [
        part(1, (1, 0), "x", Next::Run { lease_until: 300 }),
        part(2, (1, 0), "y", completed()),
        part(1, (1, 1), "z", completed()),
        part(2, (1, 2), "late", completed()),
    ];
    let saved = write(&mut store, parts.iter(), 150, KEEP_MS).unwrap();
    assert_eq!(saved, [Ok(()), Ok(()), Ok(()), Err(Fenced)]);
    let of_both = [1, 2].map(|number| history(&mut store, id(number)));
    assert_eq!(
        of_both[0],
        ["1.0 started", "1.1 delta x", "1.2 delta z", "1.3 done"]
    );
    assert_eq!(of_both[1], ["1.0 started", "1.1 delta y", "1.2 done"]);
}

/// Mutations: a renewal that is not saved; a loss that is reported after the next attempt has
/// begun, and that ends that one.
#[test]
fn a_lease_is_renewed_and_a_late_loss_is_refused() {
    let (_folder, mut store) = store();
    accept_one(&mut store, 1, "a");
    claim(&mut store, &[], 1, 100, 200).unwrap();
    let run = part(1, (1, 0), "", Next::Run { lease_until: 300 });
    assert_eq!(write_one(&mut store, &run, 150), Ok(()));
    let renewed = store.job_life(id(1)).unwrap().unwrap();
    assert_eq!(renewed.lease_until, 300);
    sweep(&mut store, 300, KEEP_MS, 9).unwrap();
    claim(&mut store, &[], 1, 310, 400).unwrap();
    let late = part(1, (1, 0), "", Next::Lose);
    assert_eq!(write_one(&mut store, &late, 320), Err(Fenced));
    let life = store.job_life(id(1)).unwrap().unwrap();
    assert_eq!(
        (life.state, life.attempt, life.lost),
        (State::Running, 2, 1)
    );
}

/// The reply to the commit of each part was lost, so each is saved again. A part may also be lost
/// itself: then it is written now.
///
/// Mutations: `write` that appends without a look at `after`; `is_over` that is always false, or
/// that ignores the attempt or the number of the last event.
#[test]
fn a_part_that_is_there_already_is_not_written_again() {
    let (_folder, mut store) = store();
    accept_one(&mut store, 1, "a");
    let mut attempt = 0;
    let wait = Next::Wait { postponed: None };
    for (end, state) in [
        (wait, State::Queued),
        (Next::Lose, State::Queued),
        (completed(), State::Completed),
    ] {
        attempt += 1;
        let now = 100 * u64::from(attempt);
        claim(&mut store, &[], 1, now, now + 50).unwrap();
        let run = |lease_until| Next::Run { lease_until };
        for (after, text, next) in [
            (0, "", run(now + 60)),
            (0, "fn ", run(now + 60)),
            (1, "main", run(now + 60)),
            (2, "", run(now + 60)),
            (2, "()", end),
        ] {
            let mut part = part(1, (attempt, after), text, next);
            assert_eq!(write_one(&mut store, &part, now), Ok(()), "{part:?}");
            let written = (
                store.job_life(id(1)).unwrap().unwrap(),
                history(&mut store, id(1)),
            );
            let is_run = matches!(part.next, Next::Run { .. });
            if is_run {
                part.next = run(now + 70);
            }
            assert_eq!(write_one(&mut store, &part, now + 1), Ok(()), "{part:?}");
            let life = store.job_life(id(1)).unwrap().unwrap();
            assert_eq!((life.state, life.lost), (written.0.state, written.0.lost));
            assert_eq!(life.lease_until, if is_run { now + 70 } else { 0 });
            assert_eq!(history(&mut store, id(1)), written.1);
            part.after += 9;
            part.text.push_str("more");
            assert_eq!(write_one(&mut store, &part, now), Err(Fenced), "a gap");
        }
        assert_eq!(self::state(&mut store, id(1)), state);
    }
    let job = store.job(id(1)).unwrap().unwrap();
    assert_eq!(job.finished_at, Some(300), "the first time counts");
    let end = part(1, (3, 2), "()", failed());
    assert_eq!(write_one(&mut store, &end, 310), Err(Fenced), "another end");
    let end = part(1, (2, 2), "()", completed());
    assert_eq!(
        write_one(&mut store, &end, 310),
        Err(Fenced),
        "an earlier attempt"
    );
}
