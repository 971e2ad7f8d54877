//! How jobs end: finished, cancelled, expired, failed.

use super::toy::*;

/// Mutations that this test catches: epilogues that are not searched, or that stay in the text.
#[test]
fn answer_ends_before_an_epilogue() {
    let mut host = Host::new(1);
    let whole = |prompt: &str| reference(&(own_words("cut") + prompt), 8);
    let prompts = (0..).map(|number| format!("p{number}"));
    let mut prompts = prompts.filter(|prompt| whole(prompt).find('e') == Some(4));
    let prompt = prompts.next().expect("one in a hundred or so");
    host.submit(host.code("cut", &prompt));
    host.run();
    let done = host.done(0);
    assert_eq!(done.text, format!("```\n{}", &whole(&prompt)[..4]));
    assert_eq!(done.finish_reason, FinishReason::Stop);
}

#[test]
fn waiting_job_that_is_cancelled_or_late_ends_at_once_and_costs_no_token() {
    let mut host = Host::new(1);
    host.submit(host.job(&talkative(40), 40));
    host.scheduler.step();
    let cancelled = host.job("cancelled", 5);
    let late = Job {
        deadline: host.now() + TOKEN_TIME / 2,
        ..host.job("late", 5)
    };
    let ticket = cancelled.ticket.clone();
    host.submit(cancelled);
    host.submit(late);
    ticket.cancel(CancelReason::Disconnect);
    host.scheduler.step();
    host.scheduler.step();
    assert!(host.outcome(0).is_none());
    assert_eq!(
        host.failed(1).reason,
        FailReason::Cancelled(CancelReason::Disconnect)
    );
    assert_eq!(
        host.failed(2).reason,
        FailReason::Error(ErrorCode::GenerationTimeout)
    );
    // Nothing was computed for either, so their tenants' budgets are not charged.
    assert_eq!(host.failed(1).usage, Usage::default());
    assert_eq!(host.failed(2).usage, Usage::default());
    host.run();
    assert_eq!(
        host.scheduler.gauges().prompt_tokens,
        talkative(40).len() as u64
    );
}

/// Mutations that this test catches: a sweep without its bound; a cancelled job that gets a slot.
#[test]
fn a_step_looks_at_a_bounded_number_of_waiting_jobs() {
    const WAITING: usize = 3 * limits::SWEPT_JOBS_PER_STEP_MAX;
    let mut host = Host::new(1);
    let jobs: Vec<Job> = (0..=WAITING)
        .map(|_| host.job(&talkative(40), 40))
        .collect();
    for job in &jobs {
        host.submit(job.clone());
    }
    host.scheduler.step();
    let read = host.scheduler.gauges().prompt_tokens;
    let cancel = |job: &Job| job.ticket.cancel(CancelReason::Disconnect);
    jobs[1..].iter().for_each(cancel);
    let ended = |host: &Host| {
        (1..=WAITING)
            .filter(|job| host.outcome(*job).is_some())
            .count()
    };
    host.scheduler.step();
    assert_eq!(ended(&host), limits::SWEPT_JOBS_PER_STEP_MAX);
    // The slot becomes free for the others before the sweep has come to them.
    cancel(&jobs[0]);
    host.scheduler.step();
    assert_eq!(ended(&host), WAITING);
    assert_eq!(host.scheduler.gauges().prompt_tokens, read, "none is read");
}

#[test]
fn cancelled_prompt_stops_within_the_batch_and_its_prefix_serves_the_retry() {
    let mut host = Host::new(1);
    let prompt = "a prompt that is cancelled before its end";
    let job = host.job(prompt, 5);
    host.scheduler.backend.cancel_at = Some((18, job.ticket.clone()));
    host.submit(job);
    host.run();
    assert_eq!(
        host.failed(0).reason,
        FailReason::Cancelled(CancelReason::Disconnect)
    );
    assert_eq!(host.scheduler.gauges().kv_used, 18, "not a token more");
    host.submit(host.job(prompt, 5));
    host.run();
    assert_eq!(host.done(1).usage.cached_tokens, 18);
    assert_eq!(host.done(1).text, reference(prompt, 5));
}

#[test]
fn cancelled_job_does_not_hold_up_the_prompts_of_others() {
    // Two prompts that fit into one chunk together.
    let (one, other) = ("go", "ok");
    assert!(one.len() + other.len() <= CHUNK);
    let mut host = Host::new(2);
    let leaving = host.job(one, 5);
    host.scheduler.backend.cancel_at = Some((1, leaving.ticket.clone()));
    host.submit(leaving);
    host.submit(host.job(other, 5));
    host.scheduler.step();
    assert!(
        matches!(host.phase(1), Some(Phase::Answer { .. })),
        "the batch went on"
    );
    host.run();
    assert_eq!(host.done(1).text, reference(other, 5));
}

#[test]
fn cancelled_answer_ends_within_one_step() {
    let mut host = Host::new(1);
    let job = host.job(&talkative(40), 50);
    let ticket = job.ticket.clone();
    host.submit(job);
    host.scheduler.step();
    host.scheduler.step();
    let generated = host.scheduler.gauges().generated_tokens;
    ticket.cancel(CancelReason::SlowReader);
    host.scheduler.step();
    assert_eq!(
        host.failed(0).reason,
        FailReason::Cancelled(CancelReason::SlowReader)
    );
    assert_eq!(host.scheduler.gauges().generated_tokens, generated);
    assert!(host.scheduler.is_idle());
}

#[test]
fn deadline_ends_an_answer_with_what_there_is() {
    let mut host = Host::new(1);
    let prompt = talkative(20);
    let deadline = host.now() + TOKEN_TIME * 16;
    host.submit(Job {
        deadline,
        ..host.job(&prompt, 50)
    });
    host.run();
    let failed = host.failed(0);
    assert_eq!(
        failed.reason,
        FailReason::Error(ErrorCode::GenerationTimeout)
    );
    let whole = reference(&prompt, 50);
    assert!(whole.starts_with(&failed.text) && !failed.text.is_empty());
    assert_eq!(failed.text.len(), failed.usage.completion_tokens as usize);
    assert!(host.now() <= deadline + TOKEN_TIME, "within one step");
}

#[test]
fn failed_batch_fails_its_jobs_and_no_others() {
    let mut host = Host::new(2);
    host.submit(host.job("1", 9));
    host.submit(host.job("2", 9));
    host.submit(host.job("waits", 9));
    host.scheduler.step();
    host.scheduler.backend.fails_next = Some(DecodeError::Failed(-3));
    host.run();
    for request in 0..2 {
        assert_eq!(
            host.failed(request).reason,
            FailReason::Error(ErrorCode::EngineFailed)
        );
    }
    assert_eq!(host.done(2).text, reference("waits", 9));
}

#[test]
fn context_bounds_prompt_and_answer() {
    let mut host = Host::new(1);
    host.submit(host.job(&"x".repeat(CONTEXT), 5));
    host.run();
    assert_eq!(
        host.failed(0).reason,
        FailReason::Error(ErrorCode::ContextLengthExceeded)
    );
    let prompt = "x".repeat(CONTEXT - 3);
    host.submit(host.job(&prompt, u32::MAX));
    host.submit(host.job("no answer wanted", 0));
    host.submit(host.job("", 5));
    host.run();
    let expected = reference(&prompt, 3);
    assert_eq!(host.done(1).text, expected);
    let reason = if expected.len() == 3 {
        FinishReason::Length
    } else {
        FinishReason::Stop
    };
    assert_eq!(host.done(1).finish_reason, reason);
    assert_eq!(host.done(2).text, "");
    assert_eq!(
        host.failed(3).reason,
        FailReason::Error(ErrorCode::InvalidRequest)
    );
}

#[test]
fn panic_delivers_a_failure_to_every_job() {
    let mut host = Host::new(1);
    host.submit(host.job(&talkative(40), 50));
    host.submit(host.job("waits", 5));
    host.scheduler.step();
    host.scheduler.backend.panics_next = true;
    let Host {
        mut scheduler,
        mailbox,
        ..
    } = host;
    let work = AssertUnwindSafe(move || scheduler.step());
    assert!(catch_unwind(work).is_err());
    for request in 0..2 {
        let outcome = outcome_in(&mailbox, request);
        let Some(Event::Failed(failed)) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(failed.reason, FailReason::Error(ErrorCode::EngineFailed));
    }
}

#[test]
fn speed_is_measured_and_confident_after_some_jobs() {
    let mut host = Host::new(2);
    (0..20).for_each(|n| host.submit(host.job(&format!("prompt {n}"), 6)));
    host.run();
    let cost = host
        .scheduler
        .speed()
        .job_cost(host.now())
        .expect("twenty jobs were measured");
    assert!(cost >= TOKEN_TIME && cost < TOKEN_TIME * 40, "{cost:?}");
}

/// A regression test: a daemon whose jobs all timed out never learned how fast it is.
#[test]
fn jobs_that_fail_or_are_cancelled_are_samples_too() {
    let mut host = Host::new(1);
    for number in 0..limits::SPEED_CONFIDENT_JOBS_MIN {
        let deadline = host.now() + TOKEN_TIME * 10;
        host.submit(Job {
            deadline,
            ..host.job(&talkative(30), 50)
        });
        host.run();
        let outcome = host.failed(number as usize);
        assert_eq!(
            outcome.reason,
            FailReason::Error(ErrorCode::GenerationTimeout)
        );
    }
    let cost = host.scheduler.speed().job_cost(host.now());
    let cost = cost.expect("each of them was measured");
    assert!(cost <= TOKEN_TIME * 12, "{cost:?}");
}
