//! Streams whose clients have stopped reading.
//!
//! Mutations that these tests catch: a paused job that goes on computing; a job that is not
//! streamed and pauses; a slot that is not given away; a job aside that is not looked at, for its
//! credit or for its end.

use super::toy::*;
use crate::engine::llama::scheduler::saved::Saved;

const PATIENCE: Duration = TOKEN_TIME.saturating_mul(5);

fn host(sequences: usize) -> Host {
    let mut host = Host::new(sequences);
    host.scheduler.terms.credit_patience = PATIENCE;
    host
}

fn stream(host: &mut Host, credit: u32, prompt: &str) -> Arc<Ticket> {
    let ticket = Arc::new(Ticket::new(credit));
    host.submit(Job {
        ticket: ticket.clone(),
        ..host.job(prompt, 40)
    });
    ticket
}

#[test]
fn a_reader_that_has_stopped_costs_no_tokens_until_it_reads_again() {
    let mut host = host(1);
    let prompt = talkative(40);
    let ticket = stream(&mut host, 2, &prompt);
    (0..30).for_each(|_| host.step());
    let generated = host.scheduler.gauges().generated_tokens;
    assert!(generated < 12, "{generated} tokens for two events");
    assert!(host.scheduler.pause().is_some() && !host.scheduler.is_idle());
    (0..30).for_each(|_| host.step());
    assert_eq!(host.scheduler.gauges().generated_tokens, generated);
    let _ = ticket.grant(1);
    host.step();
    // Everything that has waited comes at once, and the job goes on.
    assert_eq!(host.tokens(0).concat().len() as u64, generated);
    assert!(host.scheduler.gauges().generated_tokens > generated);
    let _ = ticket.grant(100);
    host.run();
    let text = host.tokens(0).concat() + &host.done(0).text;
    assert_eq!(text, reference(&prompt, 40));
}

#[test]
fn a_job_that_is_not_streamed_never_pauses() {
    let mut host = host(1);
    host.submit(host.job(&talkative(40), 40));
    while !host.scheduler.is_idle() {
        assert_eq!(host.scheduler.pause(), None);
        host.step();
    }
    assert_eq!(host.done(0).text, reference(&talkative(40), 40));
}

#[test]
fn any_waiting_job_gets_the_sequence_of_a_paused_one() {
    let mut host = host(1);
    let prompt = talkative(40);
    let ticket = stream(&mut host, 1, &prompt);
    (0..20).for_each(|_| host.step());
    let computed = host.scheduler.backend.computed;
    host.submit(host.job("of the same tenant", 5));
    while host.outcome(1).is_none() {
        host.step();
    }
    assert_eq!(host.done(1).text, reference("of the same tenant", 5));
    let others = "of the same tenant".len() + 4;
    assert_eq!(host.scheduler.backend.computed, computed + others);
    assert!(!host.scheduler.is_idle() && host.scheduler.pause().is_some());
    let _ = ticket.grant(100);
    host.run();
    let text = host.tokens(0).concat() + &host.done(0).text;
    assert_eq!(text, reference(&prompt, 40));
    let needed = prompt.len() + 39;
    assert_eq!(
        host.scheduler.backend.computed,
        needed + others,
        "no token twice"
    );
}

/// Mutation that this test catches: `cancel_all` without the jobs aside.
#[test]
fn the_end_of_the_engine_ends_a_job_aside() {
    let mut host = host(1);
    stream(&mut host, 1, &talkative(40));
    (0..20).for_each(|_| host.step());
    host.submit(host.job("other", 40));
    host.step();
    assert_eq!(host.scheduler.aside.len(), 1);
    host.scheduler.cancel_all(CancelReason::Drain);
    let reason = FailReason::Cancelled(CancelReason::Drain);
    assert_eq!(host.failed(0).reason, reason, "the one aside");
    assert_eq!(host.failed(1).reason, reason);
    assert!(host.scheduler.is_idle());
}

#[test]
fn a_paused_job_ends_by_its_deadline_on_its_slot_and_aside() {
    for is_aside in [false, true] {
        let mut host = host(1);
        let deadline = host.now() + TOKEN_TIME * 200;
        host.submit(Job {
            ticket: Arc::new(Ticket::new(1)),
            deadline,
            ..host.job(&talkative(40), 40)
        });
        (0..9).for_each(|_| host.step());
        if is_aside {
            host.submit(host.job("other", 2));
        }
        host.run();
        let reason = FailReason::Error(ErrorCode::GenerationTimeout);
        assert_eq!(host.failed(0).reason, reason);
        assert!(
            !host.failed(0).text.is_empty(),
            "what was computed is delivered"
        );
    }
}

/// In reproducible mode a job does not yield without a copy. Mutation that this test catches:
/// `pause` that takes each waiting job for work, with which the engine's thread spins.
#[test]
fn an_engine_waits_while_paused_jobs_cannot_yield() {
    let mut host = host(1);
    host.scheduler.terms.is_reproducible = true;
    host.scheduler.saved = Saved::new(0);
    let prompt = talkative(40);
    let ticket = stream(&mut host, 1, &prompt);
    (0..30).for_each(|_| host.step());
    host.submit(host.job("waits", 5));
    for _ in 0..3 {
        host.step();
        assert!(host.scheduler.pause().is_some(), "the thread spins");
    }
    assert!(host.outcome(1).is_none());
    let _ = ticket.grant(100);
    host.scheduler.step();
    assert!(host.scheduler.pause().is_none(), "there is work");
    host.run();
    let text = host.tokens(0).concat() + &host.done(0).text;
    assert_eq!(text, reference(&prompt, 40));
    assert_eq!(host.done(1).text, reference("waits", 5));
    // A job that comes to an engine at rest is work at once.
    host.submit(host.job("later", 5));
    assert!(host.scheduler.pause().is_none());
}

/// Mutation that this test catches: no bound in `set_aside`.
#[test]
fn of_too_many_paused_jobs_the_oldest_ends() {
    let mut host = host(1);
    for _ in 0..limits::YIELDED_JOBS_MAX + 2 {
        stream(&mut host, 1, &talkative(40));
    }
    for _ in 0..40 * limits::YIELDED_JOBS_MAX {
        host.step();
        if host.scheduler.pause().is_some() {
            break;
        }
    }
    assert_eq!(host.scheduler.aside.len(), limits::YIELDED_JOBS_MAX);
    let reason = FailReason::Cancelled(CancelReason::SlowReader);
    assert_eq!(host.failed(0).reason, reason);
    assert!(host.outcome(1).is_none());
}
