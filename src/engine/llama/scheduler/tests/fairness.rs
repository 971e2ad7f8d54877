//! How tenants and classes share the sequences.
//!
//! Mutations that these tests catch: no sequence is lent (`victim` without `of_lent`), or none is
//! spent (without `of_spent`); a copy that is not restored, or tokens read again that are charged;
//! a reservation that is never returned; background jobs that go in turn with live ones, or that
//! never get late; a job that yields in reproducible mode without a copy; no bound on the jobs that
//! yield in a step (`a_step_moves_few_jobs`), or on those that wait in the middle of their work
//! (`of_jobs_that_have_begun_...`); background jobs that are late although one runs, or several of
//! them at once (`late_background_jobs_...`).

use super::toy::*;
use crate::engine::llama::scheduler::saved::Saved;
use crate::engine::llama::scheduler::seats::Share;

/// Returns a prompt with at least this many tokens of output, whose first letter is `letter`.
fn named(letter: char, tokens: usize) -> String {
    let prompts = (0..).map(|number| format!("{letter}{number}"));
    let mut long = prompts.filter(|prompt| reference(prompt, tokens).len() == tokens);
    long.next().expect("one in three or so")
}

fn share(tokens: u32) -> Share {
    Share {
        tokens,
        time: Duration::MAX,
    }
}

fn job_of(host: &Host, tenant: u64, weight: u16, prompt: &str, tokens: u32) -> Job {
    Job {
        tenant,
        weight,
        ..host.job(prompt, tokens)
    }
}

#[test]
fn a_short_job_beside_a_flood_starts_at_once() {
    let mut host = Host::new(4);
    for _ in 0..30 {
        host.submit(job_of(&host, 1, 1, &named('a', 40), 40));
    }
    (0..60).for_each(|_| host.step());
    host.submit(job_of(&host, 2, 1, "short", 5));
    let before = host.scheduler.gauges().decode_steps;
    while host.outcome(30).is_none() {
        host.step();
    }
    let steps = host.scheduler.gauges().decode_steps - before;
    // Two steps read it, five write it, each with two batches.
    assert!(steps <= 2 * 7, "{steps} batches");
    host.run();
    let whole = reference(&named('a', 40), 40);
    assert!((0..30).all(|request| host.done(request).text == whole));
}

#[test]
fn one_tenant_alone_gets_every_sequence() {
    let mut host = Host::new(4);
    for _ in 0..4 {
        host.submit(job_of(&host, 1, 1, &named('a', 9), 9));
    }
    host.step();
    assert_eq!(host.scheduler.gauges().sequences_running, 4);
}

#[test]
fn tokens_divide_by_weight_also_if_jobs_are_long_and_sequences_few() {
    for sequences in [1, 2, 3, 4] {
        let mut host = Host::new(sequences);
        host.scheduler.terms.share = share(8);
        // The light tenant also has the shorter prompts and the longer outputs.
        let (light, heavy) = (named('a', 40), named('b', 20) + &" and more".repeat(3));
        for _ in 0..200 {
            host.submit(job_of(&host, 1, 1, &light, 40));
            host.submit(job_of(&host, 2, 3, &heavy, 20));
        }
        while host.scheduler.backend.computed < 4_000 {
            host.step();
        }
        let tally = |letter: u8| host.scheduler.backend.tally[&Token::from(letter)] as f64;
        let ratio = tally(b'b') / tally(b'a');
        assert!(
            (2.7..3.3).contains(&ratio),
            "{ratio} with {sequences} sequences"
        );
    }
}

#[test]
fn many_tenants_with_long_jobs_all_move_on() {
    let mut host = Host::new(2);
    host.scheduler.terms.share = share(5);
    let prompt = named('a', 40);
    for tenant in 0..12 {
        host.submit(job_of(&host, tenant, 1, &prompt, 40));
    }
    while host.scheduler.backend.computed < 12 * 20 {
        host.step();
    }
    // All have had about 20 tokens: none has ended and none is behind.
    assert!((0..12).all(|request| host.outcome(request).is_none()));
    let waiting = host.scheduler.queue.jobs();
    assert!(
        waiting
            .filter(|waiting| matches!(waiting, Waiting::Fresh { .. }))
            .count()
            == 0
    );
    host.run();
    assert!((0..12).all(|request| host.done(request).text == reference(&prompt, 40)));
}

#[test]
fn a_step_moves_few_jobs() {
    let mut host = Host::new(12);
    for _ in 0..12 {
        host.submit(job_of(&host, 1, 1, &named('a', 40), 40));
    }
    (0..20).for_each(|_| host.step());
    for tenant in 2..10 {
        host.submit(job_of(&host, tenant, 1, "short", 5));
    }
    for steps in 1..=2 {
        host.scheduler.step();
        let moved = host.scheduler.queue.begun();
        assert_eq!(moved, steps * limits::YIELDED_JOBS_PER_STEP_MAX);
    }
}

#[test]
fn of_jobs_that_have_begun_a_bounded_number_waits() {
    let mut host = Host::new(2);
    host.scheduler.terms.share = share(1);
    let prompt = named('a', 40);
    let tenants = limits::YIELDED_JOBS_MAX as u64 + 20;
    for tenant in 0..tenants {
        host.submit(job_of(&host, tenant, 1, &prompt, 40));
    }
    let mut most = 0;
    while host.outcome(0).is_none() && most <= limits::YIELDED_JOBS_MAX {
        host.step();
        most = most.max(host.scheduler.queue.begun());
    }
    assert_eq!(most, limits::YIELDED_JOBS_MAX);
}

#[test]
fn a_job_that_yields_goes_on_where_it_was() {
    let run = |bytes_max: usize| {
        let mut host = Host::new(1);
        host.scheduler.terms.share = share(6);
        host.scheduler.saved = Saved::new(bytes_max);
        let prompts = ['a', 'b', 'c'].map(|letter| named(letter, 30) + "");
        for (tenant, prompt) in (0..).zip(&prompts) {
            host.submit(job_of(&host, tenant, 1, prompt, 30));
        }
        host.run();
        for (request, prompt) in prompts.iter().enumerate() {
            let done = host.done(request);
            assert_eq!(done.text, reference(prompt, 30));
            let usage = (done.usage.prompt_tokens, done.usage.completion_tokens);
            assert_eq!(usage, (prompt.len() as u32, 30));
        }
        // The last token of an output is not computed.
        let needed = prompts
            .iter()
            .map(|prompt| prompt.len() + 29)
            .sum::<usize>();
        let gauges = host.scheduler.gauges();
        let read = prompts.iter().map(String::len).sum::<usize>();
        assert_eq!(
            (gauges.generated_tokens, gauges.prompt_tokens),
            (90, read as u64),
            "tokens that are read again count once"
        );
        (host.scheduler.backend.computed, needed)
    };
    let (computed, needed) = run(1 << 20);
    assert_eq!(computed, needed, "no token twice");
    // Without room for copies they are read again, but not more than as many.
    let (computed, needed) = run(0);
    assert!(
        computed > needed && computed < needed * 2 + 6,
        "{computed} of {needed}"
    );
}

#[test]
fn yielding_keeps_the_promise_of_reproducible_output() {
    let answers = |together: bool, bytes_max: usize| -> Vec<String> {
        let prompts: Vec<String> = (0..5)
            .map(|n| format!("prompt {}", "x".repeat(n * 4)))
            .collect();
        let run = |prompts: &[String]| {
            let mut host = Host::rounding(2, true);
            host.scheduler.terms.share = share(3);
            host.scheduler.saved = Saved::new(bytes_max);
            for (tenant, prompt) in (0..).zip(prompts) {
                host.submit(job_of(&host, tenant, 1, prompt, 20));
            }
            host.run();
            (0..prompts.len())
                .map(|request| host.done(request).text)
                .collect::<Vec<_>>()
        };
        match together {
            true => run(&prompts),
            false => prompts.chunks(1).flat_map(run).collect(),
        }
    };
    for bytes_max in [1 << 20, 200, 0] {
        assert_eq!(
            answers(true, bytes_max),
            answers(false, bytes_max),
            "{bytes_max} bytes"
        );
    }
}

// ---- classes -----------------------------------------------------------------------------------

fn background(host: &Host, prompt: &str, tokens: u32) -> Job {
    Job {
        class: Class::Background,
        ..host.job(prompt, tokens)
    }
}

#[test]
fn background_jobs_run_only_in_what_live_ones_leave() {
    let mut host = Host::new(2);
    for _ in 0..2 {
        host.submit(background(&host, &named('b', 40), 40));
    }
    (0..60).for_each(|_| host.step());
    let spent = host.scheduler.backend.tally[&Token::from(b'b')];
    for _ in 0..4 {
        host.submit(job_of(&host, 2, 1, &named('a', 40), 40));
    }
    while (2..6).any(|request| host.outcome(request).is_none()) {
        host.step();
        let live = host.scheduler.queue.lines(Class::Live).count();
        let computed = host.scheduler.backend.tally[&Token::from(b'b')];
        assert!(
            live == 0 || computed == spent,
            "no token for the background"
        );
    }
    host.run();
    assert!((0..2).all(|request| host.done(request).text == reference(&named('b', 40), 40)));
}

#[test]
fn background_jobs_never_starve() {
    let mut host = Host::new(2);
    host.scheduler.terms.share = share(8);
    host.scheduler.terms.background_patience = TOKEN_TIME * 100;
    host.submit(background(&host, &named('b', 40), 40));
    // A flood that never ends.
    let prompt = named('a', 40);
    let mut live = 0;
    while host.outcome(0).is_none() {
        while host.scheduler.queue.len() < 6 {
            host.submit(job_of(&host, 2 + live % 2, 1, &prompt, 40));
            live += 1;
        }
        host.step();
        assert!(live < 200, "it never ends");
    }
    assert_eq!(host.done(0).text, reference(&named('b', 40), 40));
    // It had a small share: at most 8 tokens in 100.
    let tally = &host.scheduler.backend.tally;
    let [background, live] = [b'b', b'a'].map(|letter| tally[&Token::from(letter)]);
    assert!(live > background * 8, "{live} and {background}");
}

#[test]
fn late_background_jobs_run_one_at_a_time() {
    let mut host = Host::new(2);
    host.scheduler.terms.share = share(30);
    // They are late long before the one that runs has had its share.
    host.scheduler.terms.background_patience = TOKEN_TIME * 10;
    for letter in ['b', 'c'] {
        host.submit(background(&host, &named(letter, 40), 40));
    }
    let (prompt, mut live, mut most) = (named('a', 40), 0, 0);
    while (0..2).any(|request| host.outcome(request).is_none()) {
        while host.scheduler.queue.len() < 6 {
            host.submit(job_of(&host, 2 + live % 2, 1, &prompt, 40));
            live += 1;
        }
        host.step();
        let runs = host.scheduler.slots.iter().flat_map(|slot| &slot.run);
        let runs = runs.filter(|run| run.line.class == Class::Background);
        most = most.max(runs.count());
        assert!(live < 200, "they never end");
    }
    assert_eq!(most, 1);
}

// ---- a full queue ------------------------------------------------------------------------------

/// Mutations that this test catches: the oldest job of the line refused; a background job refused.
#[test]
fn the_newest_jobs_of_the_longest_line_make_room() {
    let mut host = Host::new(1);
    for tenant in [1, 1, 1, 1, 2] {
        host.submit(job_of(&host, tenant, 1, &named('a', 9), 9));
    }
    for _ in 0..9 {
        host.submit(background(&host, "b", 2));
    }
    host.step();
    let retry_after = |tenant: u64| Some(Duration::from_secs(tenant));
    host.scheduler.make_room(9, &|_| None);
    assert_eq!(host.scheduler.gauges().queue_depth, 13, "others have more");
    host.scheduler.make_room(2, &retry_after);
    for request in [2, 3] {
        let retry_after = Duration::from_secs(1);
        assert_eq!(
            host.failed(request).reason,
            FailReason::CrowdedOut { retry_after }
        );
    }
    assert_eq!(
        host.scheduler.queue.lengths().collect::<Vec<_>>(),
        [(1, 1), (2, 1)]
    );
    host.scheduler.make_room(9, &retry_after);
    assert_eq!(
        host.scheduler.gauges().queue_depth,
        9,
        "the background stays"
    );
    host.run();
    assert!(
        [0].into_iter()
            .chain(5..14)
            .all(|request| !host.done(request).text.is_empty())
    );
}
