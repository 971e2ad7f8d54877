//! Results that are found behind memory: how old they are, and what follows when there is none.

use super::*;

/// Mutations: `ask` that waits for nothing, or that drops the job of a lost level; `finish` that
/// does not share.
#[test]
fn a_result_of_another_daemon_is_used() {
    let one = Bench::with(Some(Arc::default()));
    let first = job("x", 0);
    one.submit(&first);
    assert!(one.jobs().is_empty(), "the shared level is asked first");
    one.shared().respond(None);
    one.done(&one.jobs()[0], "text");
    assert_eq!(one.result(&first).1.verdict, Verdict::Miss);
    let (id, entry) = one.shared().stored.lock().unwrap()[0].clone();
    assert_eq!(id.model, model().fingerprint);

    let other = Bench::with(Some(Arc::default()));
    let (first, follower) = (stream("x", 0, 1), job("x", 1));
    other.submit(&first);
    other.submit(&follower);
    assert_eq!(other.shared().asked.lock().unwrap()[0].0, id);
    other.shared().respond(Some(entry));
    for (job, verdict) in [(&first, Verdict::Shared), (&follower, Verdict::Joined)] {
        let (text, served) = other.result(job);
        assert_eq!((text.as_str(), served.verdict), ("text", verdict));
        assert_eq!(
            served.origin.map(|origin| origin.id),
            Some(GenerationId::FIRST)
        );
    }
    let hit = job("x", 2);
    other.submit(&hit);
    assert_eq!(other.result(&hit).1.verdict, Verdict::Hit);
    assert!(other.jobs().is_empty() && other.results.is_empty());
}

/// Mutations: `decode` with another order of numbers, or without its look at the reason.
#[test]
fn an_entry_is_read_as_it_was_written() {
    let (entry, now) = (entry(), UnixMillis::now());
    let read = |bytes: &[u8]| Entry::decode(bytes, None, (now, Moment::ZERO));
    let mut bytes = entry.encode(now);
    let header = bytes.len() - entry.text.len();
    assert_eq!(read(&bytes).as_ref(), Some(&entry));
    for length in 0..header {
        assert_eq!(read(&bytes[..length]), None, "{length}");
    }
    bytes[0] = 9;
    assert_eq!(read(&bytes), None, "a reason of another version");
}

/// Mutation: an age that is zero for an entry of the future.
#[test]
fn an_entry_of_the_store_from_before_the_clock_was_set_back_is_a_miss() {
    let (entry, made) = (entry(), 7_200_000);
    let bytes = entry.encode(UnixMillis::new(made));
    let age = |now: u64| {
        let now = (UnixMillis::new(now), Moment::ZERO);
        Entry::decode(&bytes, None, now).map(|entry| entry.age_before)
    };
    let second = Duration::from_secs(1);
    assert_eq!(age(made + 1_000), Some(second));
    assert_eq!(
        age(made - 1_000),
        Some(Duration::ZERO),
        "another daemon's clock"
    );
    let skew = limits::ENTRY_SKEW_MAX.as_millis() as u64;
    assert_eq!(age(made - skew), Some(Duration::ZERO));
    assert_eq!(age(made - skew - 1), None);
}

/// Mutations: `entry_of` that goes by the time of day; a rest that is taken for the age.
#[test]
fn a_shared_result_is_as_old_as_redis_has_kept_it_whatever_the_clocks() {
    let made = entry();
    let now = UnixMillis::now().as_u64();
    let two_hours = 7_200_000;
    for clock in [now - two_hours, now, now + two_hours] {
        let bench = Bench::with(Some(Arc::default()));
        let start = Moment::ZERO + Duration::from_secs(100);
        let age = TTL / 10;
        bench.set_now(start);
        let asked = |request| {
            let job = Job {
                submitted: Moment::from_micros(bench.now.load(Ordering::Relaxed)),
                ..job("x", request)
            };
            bench.submit(&job);
            job
        };
        let first = asked(0);
        bench.shared().respond_with(Some(FoundEntry {
            entry: made.encode(UnixMillis::new(clock)),
            rest: Some(TTL - age),
        }));
        let served = bench.result(&first).1;
        assert_eq!((served.verdict, served.age), (Verdict::Shared, age));
        bench.set_now(start + TTL / 2);
        let served = bench.result(&asked(1)).1;
        assert_eq!((served.verdict, served.age), (Verdict::Hit, age + TTL / 2));
        bench.set_now(start + (TTL - age));
        asked(2);
        let asked = bench.shared().asked.lock().unwrap().len();
        assert_eq!(asked, 1, "it has expired here as well");
    }
}

/// `cache.ttl` was longer when the result was put there, or is longer on the daemon that put it.
/// Mutations: `entry_of` that takes a longer rest for no age; one that does not compare the age.
#[test]
fn a_result_behind_memory_that_is_older_than_the_ttl_is_computed_again() {
    let now = UnixMillis::now().as_u64();
    let before = |age: Duration| UnixMillis::new(now - age.as_millis() as u64);
    for (rest, age, is_used) in [
        (Some(2 * TTL), Duration::ZERO, false),
        (Some(TTL + Duration::from_millis(1)), Duration::ZERO, false),
        (Some(TTL), 2 * TTL, true),
        (Some(Duration::ZERO), Duration::ZERO, false),
        (None, TTL, false),
        (None, TTL / 2, true),
    ] {
        let bench = Bench::with(Some(Arc::default()));
        bench.submit(&job("x", 0));
        let entry = entry().encode(before(age));
        let found = FoundEntry { entry, rest };
        bench.shared().respond_with(Some(found));
        assert_eq!(bench.jobs().is_empty(), is_used, "{rest:?}, {age:?}");
    }
}

/// Mutation: `submit` that does not compare the age.
#[test]
fn a_lower_ttl_holds_for_results_in_memory() {
    let bench = Bench::new();
    bench.submit(&job("x", 0));
    bench.done(&bench.jobs()[0], "x");
    let at = |age: Duration, request| Job {
        submitted: Moment::ZERO + age,
        ..job("x", request)
    };
    let moment = Duration::from_micros(1);
    bench.results.apply(&Cache {
        max_size: 64 << 20,
        ttl: TTL / 2,
        ..Cache::default()
    });
    bench.submit(&at(TTL / 2 - moment, 1));
    assert_eq!(bench.jobs().len(), 1, "it is young enough");
    bench.submit(&at(TTL / 2, 2));
    assert_eq!(bench.jobs().len(), 2, "it is computed again");
}

/// A client leaves while the shared level is asked for it and others. Mutation: a late refusal that
/// is delivered to the first request in any case.
#[test]
fn a_request_that_has_left_gets_no_second_end_from_a_late_refusal() {
    let bench = Bench::with(Some(Arc::default()));
    let (first, follower) = (job("x", 0), job("x", 1));
    bench.submit(&first);
    bench.submit(&follower);
    bench.leave(&first);
    bench.inner.refusals.lock().unwrap().push(Refused::Loading);
    bench.shared().respond(None);
    assert_eq!(
        bench.failure(&follower).reason,
        FailReason::Refused(Refused::Loading)
    );
    assert_eq!(bench.events(&first).len(), 1);
    assert!(bench.results.is_empty());
}

/// The engine refuses the first job for its deadline, and then that of the follower with more time.
/// Mutation: `launch` that drops the follower whose job it has tried.
#[test]
fn a_follower_whose_job_is_refused_as_well_gets_its_end() {
    let bench = Bench::new();
    let follower = Job {
        deadline: Moment::ZERO + 90 * SECOND,
        ..job("x", 1)
    };
    bench.submit_meanwhile(&follower);
    let unmeetable = Refused::DeadlineUnmeetable { estimated: SECOND };
    // The last one is the first.
    let refusals = [Refused::Loading, unmeetable.clone()];
    bench.inner.refusals.lock().unwrap().extend(refusals);
    assert_eq!(bench.cached.submit(job("x", 0)), Err(unmeetable));
    assert_eq!(
        bench.failure(&follower).reason,
        FailReason::Refused(Refused::Loading)
    );
    assert!(bench.results.is_empty());
}

/// Mutations: a lost level that fails the request; a refusal that comes late and is dropped.
#[test]
fn a_shared_level_that_is_lost_or_wrong_is_a_miss() {
    let bench = Bench::with(Some(Arc::default()));
    bench.shared().is_lost.store(true, Ordering::Relaxed);
    bench.submit(&job("x", 0));
    assert_eq!(bench.jobs().len(), 1);
    bench.shared().is_lost.store(false, Ordering::Relaxed);
    bench.submit(&job("y", 1));
    bench.shared().respond(Some(b"no entry".to_vec()));
    assert_eq!(bench.jobs().len(), 2);
    bench.inner.refusals.lock().unwrap().push(Refused::Loading);
    let (late, follower) = (job("z", 2), job("z", 3));
    bench.submit(&late);
    bench.submit(&follower);
    bench.shared().respond(None);
    for job in [late, follower] {
        assert_eq!(
            bench.failure(&job).reason,
            FailReason::Refused(Refused::Loading)
        );
    }
}
