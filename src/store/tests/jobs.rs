//! Jobs in a store, whatever database is behind it.

use super::{Bed, OneJob as _, on_each_database};
use crate::jobs::{
    Ending, EventId, EventKind, Failure, JobEvent, JobId, JobTotals, Life, NewJob, RememberedJob,
    State,
};
use crate::store::Store;
use crate::store::erasure::erase;
use crate::store::interface::jobs::JobEnd;

on_each_database!(
    a_job_is_read_as_it_was_saved,
    keys_take_turns_whatever_the_number_of_their_jobs,
    a_key_that_had_its_turn_goes_behind_its_equals,
    the_key_with_fewer_running_jobs_comes_first_whatever_its_turn,
    several_jobs_are_taken_in_the_order_in_which_one_by_one_would_be,
    the_jobs_of_a_key_can_be_put_off,
    totals_are_what_a_count_would_find,
    events_are_read_from_any_place_in_pieces_of_a_size,
    pages_follow_each_other_without_gap_or_overlap,
    lost_overdue_and_old_jobs_are_found_by_their_times,
    lost_jobs_are_found_in_the_order_of_their_leases,
    old_rows_go_in_steps_of_any_kind,
    a_key_of_idempotency_names_a_job_of_one_api_key,
    a_key_of_idempotency_goes_with_its_job,
    keys_of_idempotency_are_erased_in_steps_and_others_stay,
    every_part_of_a_life_is_saved_and_nothing_else_of_the_job,
    totals_in_a_transaction_have_its_own_changes,
    steps_take_no_more_jobs_than_their_limit,
);

const KEY: &str = "key_one";
const OTHER: &str = "key_two";

fn id(number: u8) -> JobId {
    JobId::new(number.into(), [number; 10])
}

fn new_job(number: u8, key_id: &str) -> NewJob {
    NewJob {
        id: id(number),
        key_id: key_id.to_owned(),
        created_at: 1_000 + u64::from(number),
        expires_at: 5_000,
        // Bytes are counted, and not characters.
        request: r#"{"prompt":"größer"}"#.to_owned(),
        callback_url: None,
        idempotency: None,
    }
}

fn insert(store: &mut dyn Store, numbers: impl IntoIterator<Item = u8>, key_id: &str) {
    for number in numbers {
        store.insert_job(&new_job(number, key_id)).unwrap();
    }
}

/// Claims the job that the store names next.
fn claim_next(store: &mut dyn Store, now: u64) -> Option<JobId> {
    let next = store.next_waiting_jobs(now, 1).unwrap().pop()?;
    let mut life = store.job_life(next).unwrap().unwrap();
    life.claim(now + 100).unwrap();
    store.save_job_life(next, &life, now).unwrap();
    Some(next)
}

fn finish(store: &mut dyn Store, job: JobId, end: State, expires_at: u64) {
    let mut life = store.job_life(job).unwrap().unwrap();
    match end {
        State::Cancelled => life.cancel().map(drop).unwrap(),
        end => life.finish(life.attempt, end).map(drop).unwrap(),
    }
    let ending = Ending::Failed(Failure::default()).to_json();
    let end = JobEnd {
        finished_at: 2_000,
        expires_at,
        ending: Some(ending),
    };
    store.finish_job(job, &life, end).unwrap();
}

fn event(attempt: u32, sequence: u32, text: &str) -> JobEvent {
    JobEvent {
        id: EventId { attempt, sequence },
        kind: EventKind::Delta,
        text: text.to_owned(),
    }
}

/// Mutations: `save_jobs` that moves `started_at`, keeps the request of a job that has ended, or
/// leaves a part of a life as it was.
fn a_job_is_read_as_it_was_saved<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let new = NewJob {
        callback_url: Some("https://example.com/done".to_owned()),
        ..new_job(1, KEY)
    };
    store.insert_job(&new).unwrap();
    let read = store.job(id(1)).unwrap().unwrap();
    assert_eq!(read.life, Life::NEW);
    assert_eq!((read.key_id.as_str(), read.created_at), (KEY, 1_001));
    assert_eq!(read.request, new.request);
    assert_eq!(read.callback_url, new.callback_url);
    assert_eq!(
        (read.started_at, read.finished_at, read.ending),
        (None, None, None)
    );

    assert_eq!(claim_next(store, 1_500), Some(id(1)));
    let mut life = store.job_life(id(1)).unwrap().unwrap();
    assert_eq!(
        (life.state, life.attempt, life.lease_until),
        (State::Running, 1, 1_600)
    );
    life.release(1).unwrap();
    (life.sequence, life.lost) = (7, 2);
    store.save_job_life(id(1), &life, 1_550).unwrap();
    assert_eq!(store.job_life(id(1)).unwrap(), Some(life));
    claim_next(store, 1_700);
    let mut life = store.job_life(id(1)).unwrap().unwrap();
    (life.sequence, life.lost) = (8, 3);
    store.save_job_life(id(1), &life, 1_700).unwrap();
    finish(store, id(1), State::Failed, 9_000);
    let read = store.job(id(1)).unwrap().unwrap();
    let ended = Life {
        state: State::Failed,
        // The end is an event as well.
        sequence: 9,
        lease_until: 0,
        ..life
    };
    assert_eq!((read.life, read.life.attempt), (ended, 2));
    assert_eq!(
        (read.started_at, read.finished_at),
        (Some(1_500), Some(2_000))
    );
    assert_eq!((read.expires_at, read.request.as_str()), (9_000, ""));
    assert!(matches!(
        Ending::parse(&read.ending.unwrap()),
        Some(Ending::Failed(_))
    ));
    assert_eq!(store.job(id(2)).unwrap(), None);
    assert!(store.insert_job(&new).is_err(), "an id is used once");
    // A job that is put off without a run has not begun.
    insert(store, [2], KEY);
    store.save_job_life(id(2), &Life::NEW, 1_800).unwrap();
    assert_eq!(store.job(id(2)).unwrap().unwrap().started_at, None);
}

/// Mutation: `next_waiting_jobs` that looks at the oldest job alone.
fn keys_take_turns_whatever_the_number_of_their_jobs<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=4, KEY);
    insert(store, 5..=6, OTHER);
    insert(store, [7], "");
    let claimed: Vec<_> = std::iter::from_fn(|| claim_next(store, 10)).collect();
    assert_eq!(claimed, [7, 1, 5, 2, 6, 3, 4].map(id));

    // One running job of each kind: the key without one comes first.
    finish(store, id(5), State::Completed, 9_000);
    finish(store, id(6), State::Completed, 9_000);
    insert(store, [8], KEY);
    insert(store, [9], OTHER);
    assert_eq!(claim_next(store, 10), Some(id(9)));
    assert_eq!(claim_next(store, 10), Some(id(8)));
}

/// No job runs while another is claimed, so the turns alone decide.
///
/// Mutations: `next_waiting_jobs` without `turn` in its order, that leaves the turn of the key or
/// the number of all turns as it was, or that counts the turns of each key by itself.
fn a_key_that_had_its_turn_goes_behind_its_equals<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let run = |store: &mut dyn Store| {
        let job = claim_next(store, 10).unwrap();
        finish(store, job, State::Completed, 9_000);
        job
    };
    insert(store, 1..=4, KEY);
    assert_eq!([run(store), run(store)], [1, 2].map(id));
    // This key has had fewer turns, but after its first one it waits like the other.
    insert(store, 5..=7, OTHER);
    let order = [(); 5].map(|()| run(store));
    assert_eq!(order, [5, 3, 6, 4, 7].map(id));
}

/// Mutation: `next_waiting_jobs` without `running` in its order.
fn the_key_with_fewer_running_jobs_comes_first_whatever_its_turn<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=2, KEY);
    assert_eq!(claim_next(store, 10), Some(id(1)));
    insert(store, 3..=4, OTHER);
    assert_eq!(claim_next(store, 10), Some(id(3)));
    finish(store, id(3), State::Completed, 9_000);
    // The other key had its turn later, and a job of this one runs.
    assert_eq!(claim_next(store, 10), Some(id(4)));
    assert_eq!(claim_next(store, 10), Some(id(2)));
}

/// Mutation: `next_waiting_jobs` that returns the jobs of one key after those of another.
fn several_jobs_are_taken_in_the_order_in_which_one_by_one_would_be<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=4, KEY);
    insert(store, 5..=6, OTHER);
    insert(store, [7], "");
    let claim = |store: &mut dyn Store, room| {
        store.begin().unwrap();
        let next = store.next_waiting_jobs(10, room).unwrap();
        for id in &next {
            let mut life = store.job_life(*id).unwrap().unwrap();
            life.claim(100).unwrap();
            store.save_job_life(*id, &life, 10).unwrap();
        }
        store.commit().unwrap();
        next
    };
    assert_eq!(claim(store, 4), [7, 1, 5, 2].map(id));
    assert_eq!(claim(store, 9), [6, 3, 4].map(id));
    assert_eq!(claim(store, 9), []);
}

/// Mutations: `next_waiting_jobs` without `not_before`; a time that falls.
fn the_jobs_of_a_key_can_be_put_off<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, [1], KEY);
    insert(store, [2], OTHER);
    store.postpone_jobs(&[(id(1), 50)]).unwrap();
    // A later change does not shorten it.
    insert(store, [3], KEY);
    store.postpone_jobs(&[(id(1), 40), (id(9), 60)]).unwrap();
    assert_eq!(claim_next(store, 49), Some(id(2)));
    assert_eq!(claim_next(store, 49), None);
    assert_eq!(claim_next(store, 50), Some(id(1)));
}

fn totals_are_what_a_count_would_find<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=5, KEY);
    insert(store, 6..=7, OTHER);
    let check = |store: &mut dyn Store| {
        for key in [Some(KEY), Some(OTHER), None] {
            let totals = store.job_totals(key).unwrap();
            let count = |what: &str| -> u64 {
                let of_key = key.map_or("true".to_owned(), |key| format!("key_id = '{key}'"));
                bed.number(&format!("SELECT {what} FROM jobs WHERE {of_key}"))
            };
            let counted = JobTotals {
                queued: count("coalesce(sum(CASE state WHEN 'queued' THEN 1 END), 0)"),
                running: count("coalesce(sum(CASE state WHEN 'running' THEN 1 END), 0)"),
                bytes: count(
                    "coalesce(sum(512 + octet_length(request) + coalesce(octet_length(ending), 0) +
                         (SELECT coalesce(sum(64 + octet_length(text)), 0)
                          FROM job_events WHERE job = id)), 0)",
                ),
            };
            assert_eq!(totals, counted, "{key:?}");
        }
    };
    check(store);
    claim_next(store, 10);
    claim_next(store, 10);
    store
        .push_job_event(id(1), &event(1, 1, "fn größe"))
        .unwrap();
    store.push_job_event(id(6), &event(1, 1, "x")).unwrap();
    check(store);
    finish(store, id(1), State::Completed, 20);
    finish(store, id(2), State::Cancelled, 30);
    check(store);
    assert_eq!(store.delete_old_jobs(25, 10).unwrap(), 1);
    check(store);
    assert_eq!(
        claim_next(store, 10),
        Some(id(3)),
        "one that runs is erased"
    );
    assert_eq!(store.erase_jobs(KEY, 3).unwrap(), 3);
    assert_eq!(store.erase_jobs(KEY, 3).unwrap(), 1);
    check(store);
    assert_eq!(bed.count("jobs"), 2, "those of the other key");
    assert_eq!(store.job_totals(Some(KEY)).unwrap(), JobTotals::default());
    let rows = bed.number(&format!(
        "SELECT count(*) FROM job_totals WHERE key_id = '{KEY}'"
    ));
    assert_eq!(rows, 0, "a key without jobs has no row");
}

fn events_are_read_from_any_place_in_pieces_of_a_size<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, [1, 2], KEY);
    let events: Vec<_> = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (10, 1)]
        .map(|(attempt, sequence)| event(attempt, sequence, "sixteen bytes \0é"))
        .into();
    for event in &events {
        store.push_job_event(id(1), event).unwrap();
    }
    let mut read = |after, bytes| store.job_events(id(1), after, bytes).unwrap();
    assert_eq!(read(EventId::BEGINNING, usize::MAX), events);
    for (index, event) in events.iter().enumerate() {
        assert_eq!(read(event.id, usize::MAX), events[index + 1..]);
    }
    assert_eq!(read(EventId::BEGINNING, 1), events[..1], "one at least");
    assert_eq!(read(events[0].id, 82), events[1..3]);
    let bytes = events[1].text.len() + 64;
    assert_eq!(read(events[0].id, bytes), events[1..2], "it is reached");
    assert_eq!(store.job_events(id(2), EventId::BEGINNING, 1).unwrap(), []);
}

fn pages_follow_each_other_without_gap_or_overlap<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, (1..=9).rev(), KEY);
    insert(store, [10], OTHER);
    for _ in 0..5 {
        claim_next(store, 10);
    }
    for (state, expected) in [
        (None, vec![9, 8, 7, 6, 5, 4, 3, 2, 1]),
        (Some(State::Queued), vec![9, 8, 7, 6, 5]),
        (Some(State::Running), vec![4, 3, 2, 1]),
        (Some(State::Failed), vec![]),
    ] {
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = store.job_page(KEY, state, before, 2).unwrap();
            found.extend(page.iter().map(|job| job.id));
            match page.last() {
                Some(last) if page.len() == 2 => before = Some(last.id),
                _ => break,
            }
        }
        let expected: Vec<_> = expected.into_iter().map(id).collect();
        assert_eq!(found, expected, "{state:?}");
    }
}

fn lost_overdue_and_old_jobs_are_found_by_their_times<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=3, KEY);
    claim_next(store, 1_000);
    assert_eq!(store.lost_jobs(1_099, 9).unwrap(), []);
    assert_eq!(store.lost_jobs(1_100, 9).unwrap(), [id(1)]);
    assert_eq!(store.overdue_jobs(4_999, 9).unwrap(), []);
    assert_eq!(store.overdue_jobs(5_000, 9).unwrap(), [2, 3].map(id));
    assert_eq!(store.overdue_jobs(5_000, 1).unwrap(), [id(2)]);
    assert_eq!(
        store.delete_old_jobs(9_999, 9).unwrap(),
        0,
        "none is finished"
    );
    finish(store, id(1), State::Completed, 6_000);
    finish(store, id(2), State::Cancelled, 6_001);
    store.push_job_event(id(1), &event(1, 1, "x")).unwrap();
    assert_eq!(store.delete_old_jobs(6_000, 9).unwrap(), 1);
    assert_eq!(store.job(id(1)).unwrap(), None);
    assert_eq!(store.job_events(id(1), EventId::BEGINNING, 1).unwrap(), []);
    assert!(store.job(id(2)).unwrap().is_some());
}

/// Mutations: `LOST` without its order or its limit.
fn lost_jobs_are_found_in_the_order_of_their_leases<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=3, KEY);
    for (now, claimed) in [(1_000, 1), (900, 2), (950, 3)] {
        assert_eq!(claim_next(store, now), Some(id(claimed)));
    }
    assert_eq!(store.lost_jobs(1_100, 9).unwrap(), [2, 3, 1].map(id));
    assert_eq!(store.lost_jobs(1_100, 1).unwrap(), [id(2)]);
}

/// Mutations: `DELETE_OLD` or `FORGET_OLD` without its limit.
fn old_rows_go_in_steps_of_any_kind<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=3, KEY);
    assert_eq!(claim_next(store, 10), Some(id(1)));
    finish(store, id(1), State::Completed, 3_000);
    for number in [2, 3] {
        finish(store, id(number), State::Cancelled, 3_000);
    }
    for number in 7..=9 {
        remember(store, KEY, &format!("retry-{number}"), number);
    }
    let steps = [(); 4].map(|()| store.delete_old_jobs(9_000, 2).unwrap());
    assert_eq!(steps, [2, 2, 2, 0]);
    assert_eq!((bed.count("jobs"), bed.count("idempotency")), (0, 0));
}

/// Mutation: `remembered_jobs` without the API key.
fn a_key_of_idempotency_names_a_job_of_one_api_key<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    let remembered = |number, expires_at| RememberedJob {
        id: id(number),
        digest: [number; 32],
        expires_at,
    };
    let (one, two) = (remembered(1, 100), remembered(2, 100));
    let names = [(KEY, "retry-1"), (KEY, "retry-2")];
    let both = [(names[1], two), (names[0], one)];
    store.remember_jobs(&both).unwrap();
    assert_eq!(
        store.remembered_jobs(&names).unwrap(),
        [Some(one), Some(two)]
    );
    let asked = [(OTHER, "retry-1"), (KEY, "retry-2"), (KEY, "retry-3")];
    let found = store.remembered_jobs(&asked).unwrap();
    assert_eq!(found, [None, Some(two), None]);
    let later = remembered(3, 300);
    store.remember_jobs(&[(names[0], later)]).unwrap();
    assert_eq!(store.remembered_jobs(&names[..1]).unwrap(), [Some(later)]);
    assert_eq!(store.delete_old_jobs(299, 9).unwrap(), 1);
    assert_eq!(store.delete_old_jobs(300, 9).unwrap(), 1);
    assert_eq!(store.remembered_jobs(&names).unwrap(), [None, None]);
}

fn remember(store: &mut dyn Store, key_id: &str, name: &str, number: u8) {
    let remembered = RememberedJob {
        id: id(number),
        digest: [number; 32],
        expires_at: 9_000,
    };
    store
        .remember_jobs(&[((key_id, name), remembered)])
        .unwrap();
}

/// Mutation: a schema without the trigger.
fn a_key_of_idempotency_goes_with_its_job<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=3, KEY);
    insert(store, [4], OTHER);
    for (number, key) in [(1, KEY), (2, KEY), (3, KEY), (4, OTHER)] {
        remember(store, key, &format!("retry-{number}"), number);
    }
    let names = ["retry-1", "retry-2", "retry-3"].map(|name| (KEY, name));
    let known = |store: &mut dyn Store| {
        let found = store.remembered_jobs(&names).unwrap();
        found.iter().filter(|found| found.is_some()).count()
    };
    // Long before the key's own time has passed.
    finish(store, id(1), State::Cancelled, 3_000);
    assert_eq!(store.delete_old_jobs(3_000, 9).unwrap(), 1);
    assert_eq!(store.remembered_jobs(&names[..1]).unwrap(), [None]);
    assert_eq!(known(store), 2);
    assert_eq!(store.erase_jobs(KEY, 1).unwrap(), 1);
    assert_eq!(known(store), 1);
    assert_eq!(store.erase_jobs(KEY, 9).unwrap(), 1);
    assert_eq!((known(store), bed.count("idempotency")), (0, 1));
    // A key that names a later job by now does not go with the earlier one.
    insert(store, [5], OTHER);
    remember(store, OTHER, "retry-4", 5);
    finish(store, id(4), State::Cancelled, 3_000);
    assert_eq!(store.delete_old_jobs(3_000, 9).unwrap(), 1);
    assert_eq!(bed.count("idempotency"), 1);
}

/// Mutations: `erase_remembered_jobs` without its limit, or without the API key; `erase` without
/// it.
fn keys_of_idempotency_are_erased_in_steps_and_others_stay<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    for number in 1..=5 {
        remember(store, KEY, &format!("retry-{number}"), number);
    }
    remember(store, OTHER, "retry-1", 6);
    let steps = [(); 4].map(|()| store.erase_remembered_jobs(KEY, 2).unwrap());
    assert_eq!(steps, [2, 2, 1, 0]);
    assert_eq!(bed.count("idempotency"), 1);
    // Everything of a key, as `autoglmd key erase` does it.
    insert(store, 1..=3, OTHER);
    remember(store, OTHER, "retry-2", 1);
    assert_eq!(erase(store, OTHER).unwrap().jobs, 3);
    assert_eq!((bed.count("jobs"), bed.count("idempotency")), (0, 0));
}

/// Mutations: `SAVE` without one of a life's parts, or that changes the end of a job that goes on;
/// a job that has started before it was created.
fn every_part_of_a_life_is_saved_and_nothing_else_of_the_job<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=3, KEY);
    let before = store.job(id(1)).unwrap().unwrap();
    let life = Life {
        state: State::Running,
        attempt: 2,
        sequence: 3,
        lost: 1,
        lease_until: 4,
    };
    store.save_job_life(id(1), &life, 9).unwrap();
    let mut expected = before.clone();
    // The clock of the daemon that runs it is behind, or was read before the job was accepted.
    (expected.life, expected.started_at) = (life, Some(before.created_at));
    assert_eq!(store.job(id(1)).unwrap(), Some(expected));
    assert_eq!(store.job_life(id(1)).unwrap(), Some(life));
    let last = store.last_job_events(&[id(1), id(9)]).unwrap();
    assert_eq!(last, [(id(1), life.last_event())]);
    // A job that never ran has no beginning, and its neighbours stay as they are.
    finish(store, id(2), State::Cancelled, 20);
    assert_eq!(store.job(id(2)).unwrap().unwrap().started_at, None);
    assert_eq!(store.job_life(id(3)).unwrap(), Some(Life::NEW));
}

/// Mutations: `TOTALS` of PostgreSQL without the changes that are counted at the commit, of a key
/// or of all.
fn totals_in_a_transaction_have_its_own_changes<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, [1], KEY);
    store.begin().unwrap();
    insert(store, [2, 3], KEY);
    insert(store, [4], OTHER);
    claim_next(store, 10);
    let within = [Some(KEY), Some(OTHER), None].map(|key| store.job_totals(key).unwrap());
    store.commit().unwrap();
    let after = [Some(KEY), Some(OTHER), None].map(|key| store.job_totals(key).unwrap());
    assert_eq!(within, after);
    assert_eq!((after[2].queued, after[2].running), (3, 1));
}

/// Mutations: a statement without its limit, or that does not begin with the oldest; a limit for
/// each state of its own.
fn steps_take_no_more_jobs_than_their_limit<B: Bed>() {
    let bed = B::new();
    let store = &mut *bed.open();
    insert(store, 1..=9, KEY);
    for lease in [30, 10, 20] {
        let next = store.next_waiting_jobs(1, 1).unwrap()[0];
        let mut life = store.job_life(next).unwrap().unwrap();
        life.claim(lease).unwrap();
        store.save_job_life(next, &life, 1).unwrap();
    }
    assert_eq!(store.lost_jobs(99, 2).unwrap(), [2, 3].map(id));
    let remembered = |number| {
        let job = RememberedJob {
            id: id(number),
            digest: [number; 32],
            expires_at: 100,
        };
        ((KEY, ["a", "b", "c"][usize::from(number) - 7]), job)
    };
    store.remember_jobs(&[7, 8, 9].map(remembered)).unwrap();
    for (number, end) in [(1, State::Completed), (2, State::Failed)] {
        finish(store, id(number), end, 100);
    }
    for number in [4, 5, 6] {
        finish(store, id(number), State::Cancelled, 100);
    }
    let steps = [3, 3, 3].map(|limit| store.delete_old_jobs(100, limit).unwrap());
    assert_eq!(steps, [3, 3, 2]);
    assert_eq!(bed.count("jobs"), 4);
}
