//! One generation for equal jobs, and what becomes of each of its followers.

use super::*;

#[test]
fn equal_jobs_at_once_are_one_generation() {
    let bench = Bench::new();
    let jobs: Vec<Job> = (0..500)
        .map(|request| match request % 2 {
            0 => job("x", request),
            _ => stream("x", request, 32),
        })
        .collect();
    jobs.iter().for_each(|job| bench.submit(job));
    let [inner] = &bench.jobs()[..] else {
        panic!("one generation")
    };
    assert_eq!(
        (inner.key.reactor, inner.cache),
        (FLIGHTS, CacheMode::Bypass)
    );
    bench.token(inner, "a");
    bench.token(inner, "bc");
    bench.set_now(Moment::ZERO + SECOND);
    bench.done(inner, "d");
    for (index, job) in jobs.iter().enumerate() {
        let (text, served) = bench.result(job);
        assert_eq!(text, "abcd");
        assert!(served.is_reproducible);
        match index {
            0 => assert_eq!((served.verdict, served.origin), (Verdict::Miss, None)),
            _ => {
                let latency = served.origin.map(|origin| origin.latency);
                assert_eq!((served.verdict, latency), (Verdict::Joined, Some(SECOND)));
            }
        }
    }
    // Another one finds the result.
    bench.set_now(Moment::ZERO + 3 * SECOND);
    let later = |job: Job| Job {
        submitted: Moment::ZERO + 3 * SECOND,
        ..job
    };
    for job in [later(job("x", 600)), later(stream("x", 601, 1))] {
        bench.submit(&job);
        let (text, served) = bench.result(&job);
        assert_eq!((text.as_str(), served.verdict), ("abcd", Verdict::Hit));
        assert_eq!(served.age, 2 * SECOND);
        assert_eq!(served.origin.map(|origin| origin.id), Some(job.id));
    }
    assert_eq!(bench.jobs().len(), 1);
    // Until it expires.
    bench.submit(&Job {
        submitted: Moment::ZERO + SECOND + TTL,
        ..job("x", 602)
    });
    assert_eq!(bench.jobs().len(), 2);
}

#[test]
fn tenants_do_not_meet() {
    let bench = Bench::new();
    bench.submit(&job("x", 0));
    bench.submit(&Job {
        tenant: 2,
        ..job("x", 1)
    });
    bench.submit(&job("y", 2));
    let jobs = bench.jobs();
    assert_eq!(jobs.len(), 3);
    let tenants = jobs.iter().map(|job| job.tenant);
    assert_eq!(tenants.collect::<Vec<_>>(), [1, 2, 1]);
}

/// Mutation: a stream that is served at the end alone.
#[test]
fn a_stream_gets_what_there_is_and_then_each_token() {
    let bench = Bench::new();
    let (first, late) = (stream("x", 0, 9), stream("x", 1, 9));
    bench.submit(&first);
    let inner = &bench.jobs()[0];
    bench.token(inner, "ab");
    bench.submit(&late);
    bench.token(inner, "c");
    let tokens = |job| {
        let events = bench.events(job).into_iter();
        let text = |event| match event {
            Event::Served(served) => Some(served.verdict.as_str().to_owned()),
            Event::Token { text } => Some(text),
            _ => None,
        };
        events.filter_map(text).collect::<Vec<_>>()
    };
    assert_eq!(tokens(&first), ["miss", "ab", "c"]);
    assert_eq!(tokens(&late), ["joined", "ab", "c"]);
}

#[test]
fn the_job_ends_when_the_last_client_leaves() {
    let bench = Bench::new();
    let (one, other) = (job("x", 0), stream("x", 1, 1));
    bench.submit(&one);
    bench.submit(&other);
    let inner = &bench.jobs()[0];
    bench.leave(&one);
    assert_eq!(
        bench.failure(&one).reason,
        cancelled(CancelReason::Disconnect)
    );
    assert_eq!(inner.ticket.cancelled(), None, "one client waits");
    bench.leave(&other);
    assert_eq!(inner.ticket.cancelled(), Some(CancelReason::Disconnect));
    assert_eq!(*bench.inner.cancelled.lock().unwrap(), [inner.key]);
    assert!(
        bench.events(&other).is_empty(),
        "the engine has not stopped yet"
    );
    // It does not get in the way of the next one.
    let next = job("x", 2);
    bench.submit(&next);
    assert_eq!(bench.jobs().len(), 2);
    bench.fail(inner, cancelled(CancelReason::Disconnect), "");
    assert_eq!(
        bench.failure(&other).reason,
        cancelled(CancelReason::Disconnect)
    );
    bench.done(&bench.jobs()[1], "x");
    assert_eq!(bench.result(&next).0, "x");
    assert!(bench.results.is_empty());
}

#[test]
fn a_slow_reader_holds_an_offset_and_nothing_else() {
    let bench = Bench::new();
    let (slow, fast, whole) = (stream("x", 0, 1), stream("x", 1, 1 << 20), job("x", 2));
    for job in [&slow, &fast, &whole] {
        bench.submit(job);
    }
    let inner = &bench.jobs()[0];
    let text = "é".repeat(2 * limits::PIECE_BYTES_MAX);
    for part in text.as_bytes().chunks(64) {
        bench.token(inner, std::str::from_utf8(part).unwrap());
    }
    assert!(bench.account.held() >= text.len());
    bench.done(inner, "");
    assert_eq!(bench.result(&fast).0, text);
    assert_eq!(bench.result(&whole).0, text);
    let mut got = String::new();
    let mut rounds = 0;
    while !bench.results.is_empty() {
        assert!(bench.account.held() >= text.len());
        for event in bench.events(&slow) {
            if let Event::Token { text } = event {
                got.push_str(&text);
            }
        }
        assert!(slow.ticket.grant(1), "it waits for this");
        bench.cached.handle_credit(slow.key);
        rounds += 1;
        assert!(rounds < 10);
    }
    let (rest, _) = bench.result(&slow);
    assert!(rounds > 0, "the end came with everything");
    assert_eq!(got + &rest, text);
    assert_eq!(bench.account.held(), 0);
    // A hit is played at the reader's pace, too; and it can be cancelled.
    let hit = stream("x", 3, 1);
    bench.submit(&hit);
    assert_eq!(bench.events(&hit).len(), 2);
    assert!(bench.account.held() >= text.len());
    bench.leave(&hit);
    assert_eq!(
        bench.failure(&hit).reason,
        cancelled(CancelReason::Disconnect)
    );
    assert_eq!(bench.account.held(), 0);
}

#[test]
fn a_job_pauses_while_none_of_its_clients_reads() {
    const UNREAD: u32 = limits::FLIGHT_CREDIT_EVENTS;
    let bench = Bench::new();
    let (first, second) = (stream("x", 0, 2), stream("x", 1, 3));
    bench.submit(&first);
    bench.submit(&second);
    let inner = &bench.jobs()[0];
    // Sends as many events as the job has credit for.
    let send = || {
        let mut sent = 0;
        while sent < 1_000 && inner.ticket.take_credit() {
            bench.token(inner, "t");
            sent += 1;
        }
        sent
    };
    assert_eq!(send(), 3 + UNREAD, "as many as the faster one reads");
    // One that reads again is enough, and the engine learns it.
    assert!(first.ticket.grant(1));
    bench.cached.handle_credit(first.key);
    assert_eq!(*bench.inner.credited.lock().unwrap(), [inner.key]);
    assert_eq!(send(), UNREAD);
    // So is one that comes.
    let third = stream("x", 2, 1);
    bench.submit(&third);
    assert_eq!(bench.inner.credited.lock().unwrap().len(), 2);
    assert_eq!(send(), UNREAD);
    // A response in one piece needs all of it, however many streams wait.
    let whole = job("x", 3);
    bench.submit(&whole);
    assert_eq!(bench.inner.credited.lock().unwrap().len(), 3);
    assert_eq!(send(), 1_000);
    bench.done(inner, "");
    let (text, _) = bench.result(&whole);
    assert_eq!(text.len(), 3 + 3 * UNREAD as usize + 1_000);
    // And one that waits for it alone never pauses.
    let other = job("y", 4);
    bench.submit(&other);
    let inner = &bench.jobs()[1];
    assert!((0..1_000).all(|_| inner.ticket.take_credit()));
}

#[test]
fn the_latest_deadline_counts() {
    let bench = Bench::new();
    let until = |seconds: u32| Moment::ZERO + seconds * SECOND;
    let with = |deadline, job| Job { deadline, ..job };
    let first = with(until(10), stream("x", 0, 9));
    let second = with(until(20), job("x", 1));
    bench.submit(&first);
    bench.submit(&second);
    let inner = &bench.jobs()[0];
    bench.token(inner, "ab");
    bench.set_now(until(10));
    assert!(!inner.ticket.expire(inner.deadline, until(10)));
    bench.cached.handle_deadline(first.key);
    let failed = bench.failure(&first);
    let timeout = FailReason::Error(ErrorCode::GenerationTimeout);
    assert_eq!((failed.reason, failed.text.as_str()), (timeout.clone(), ""));
    // The last one's deadline is the job's.
    bench.set_now(until(20));
    bench.cached.handle_deadline(second.key);
    assert_eq!(inner.ticket.cancelled(), None);
    assert_eq!(*bench.inner.overdue.lock().unwrap(), [inner.key]);
    assert!(inner.ticket.expire(inner.deadline, until(20)));
    bench.fail(inner, timeout.clone(), "c");
    let failed = bench.failure(&second);
    assert_eq!((failed.reason, failed.text.as_str()), (timeout, "abc"));
    assert_eq!(failed.usage, Usage::default(), "the first one has paid");
}

/// Mutation: `leave` that reports the job's deadline although it is later.
#[test]
fn a_deadline_that_is_earlier_than_the_jobs_cancels_it() {
    let bench = Bench::new();
    let until = |seconds: u32| Moment::ZERO + seconds * SECOND;
    let short = Job {
        deadline: until(10),
        ..job("x", 0)
    };
    let long = job("x", 1);
    bench.submit(&short);
    bench.submit(&long);
    let inner = &bench.jobs()[0];
    bench.leave(&long);
    bench.set_now(until(10));
    bench.cached.handle_deadline(short.key);
    assert_eq!(inner.ticket.cancelled(), Some(CancelReason::Deadline));
    bench.fail(inner, cancelled(CancelReason::Deadline), "");
    let timeout = FailReason::Error(ErrorCode::GenerationTimeout);
    assert_eq!(bench.failure(&short).reason, timeout);
}

/// Mutation: `join` that does not look at the result of the extension.
#[test]
fn a_job_whose_time_has_ended_is_not_joined() {
    let bench = Bench::new();
    bench.submit(&job("x", 0));
    let inner = &bench.jobs()[0];
    assert!(inner.ticket.expire(inner.deadline, inner.deadline));
    bench.submit(&job("x", 1));
    assert_eq!(bench.jobs().len(), 2);
}

#[test]
fn a_refusal_is_returned_and_leaves_nothing() {
    let bench = Bench::new();
    bench.inner.refusals.lock().unwrap().push(Refused::Loading);
    assert_eq!(bench.cached.submit(job("x", 0)), Err(Refused::Loading));
    assert!(bench.results.is_empty());
    assert!(bench.mailbox.0.lock().unwrap().is_empty());
}

#[test]
fn a_deadline_that_is_too_early_for_the_engine_fails_one_alone() {
    let unmeetable = Refused::DeadlineUnmeetable { estimated: SECOND };
    for (refused, is_retried) in [(unmeetable, true), (Refused::Loading, false)] {
        let bench = Bench::new();
        let follower = Job {
            deadline: Moment::ZERO + 90 * SECOND,
            ..job("x", 1)
        };
        bench.submit_meanwhile(&follower);
        bench.inner.refusals.lock().unwrap().push(refused.clone());
        assert_eq!(bench.cached.submit(job("x", 0)), Err(refused.clone()));
        if is_retried {
            let inner = &bench.jobs()[0];
            assert_eq!(inner.deadline, follower.deadline);
            bench.done(inner, "x");
            assert_eq!(bench.result(&follower).0, "x");
        } else {
            assert_eq!(
                bench.failure(&follower).reason,
                FailReason::Refused(refused)
            );
        }
        assert!(bench.results.is_empty());
    }
}

/// Mutations: a failure that is stored; usage for every follower.
#[test]
fn a_failure_is_every_followers_and_is_not_kept() {
    let bench = Bench::new();
    let (one, other) = (stream("x", 0, 1), job("x", 1));
    bench.submit(&one);
    bench.submit(&other);
    let inner = &bench.jobs()[0];
    bench.token(inner, "a");
    bench.fail(inner, FailReason::Error(ErrorCode::EngineFailed), "b");
    let engine_failed = FailReason::Error(ErrorCode::EngineFailed);
    let (failed, follower) = (bench.failure(&one), bench.failure(&other));
    assert_eq!(
        (failed.reason, failed.text.as_str()),
        (engine_failed.clone(), "b")
    );
    assert_eq!(
        (follower.reason, follower.text.as_str()),
        (engine_failed, "ab")
    );
    assert_eq!((failed.usage, follower.usage), (USAGE, Usage::default()));
    bench.submit(&job("x", 2));
    assert_eq!(bench.jobs().len(), 2);
}
