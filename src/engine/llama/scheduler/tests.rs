//! Tests the scheduler over a toy model whose every token is a hash of all tokens before it: one
//! wrong token in a cache, at any place, changes the output.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::super::backend::Prepare;
use super::*;
use crate::core::Key;
use crate::engine::{Class, ContextFile, Job, Prompt, Sampling};
use crate::limits::engine as limits;
use crate::offload::Ticket;

const CONTEXT: usize = 64;
const CHUNK: usize = 4;
const BATCH: usize = 16;
const END: Token = 0;
const TOKEN_TIME: Duration = Duration::from_millis(1);

#[test]
fn outputs_do_not_depend_on_other_jobs() {
    let mut host = Host::new(3);
    let prompts: Vec<String> = (0..10)
        .map(|n| format!("prompt {}", "x".repeat(n * 3)))
        .collect();
    for prompt in &prompts {
        host.submit(host.job(prompt, 12));
    }
    host.run();
    for (request, prompt) in prompts.iter().enumerate() {
        let done = host.done(request);
        assert_eq!(done.text, reference(prompt, 12));
        assert_eq!(done.usage.prompt_tokens as usize, prompt.len());
        assert_eq!(done.usage.completion_tokens as usize, done.text.len());
    }
}

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

/// Mutations that this test catches: outputs computed together; prompts read together; a piece cut
/// by the presence of others; the longest prefix reused; the own text's end left out of the stops.
#[test]
fn reproducible_answers_do_not_depend_on_batches() {
    let jobs = |host: &Host| -> Vec<Job> {
        let raw = (0..6).map(|n| host.job(&"prompt".repeat(n % 3 + 1), 12));
        let code = (0..6).map(|n| host.code("go", &"task".repeat(n % 2 + 1)));
        raw.chain(code).collect()
    };
    let alone = |is_reproducible| -> Vec<String> {
        let count = jobs(&Host::new(1)).len();
        (0..count)
            .map(|index| {
                let mut host = Host::rounding(3, is_reproducible);
                let job = jobs(&host).swap_remove(index);
                host.submit(job);
                host.run();
                host.done(0).text
            })
            .collect()
    };
    let together = |is_reproducible, steps: usize| -> Vec<String> {
        let mut host = Host::rounding(3, is_reproducible);
        let jobs = jobs(&host);
        let count = jobs.len();
        for job in jobs {
            host.submit(job);
            (0..steps).for_each(|_| host.scheduler.step());
        }
        host.run();
        (0..count).map(|request| host.done(request).text).collect()
    };
    let expected = alone(true);
    for steps in [0, 1, 2, 5, 40] {
        assert_eq!(together(true, steps), expected, "{steps} steps apart");
    }
    // The toy does round: without the promise the outputs differ.
    assert_ne!(together(false, 1), alone(false));
}

#[test]
fn sequences_join_and_leave_between_steps() {
    let mut host = Host::new(2);
    host.submit(host.job("a", 3));
    host.scheduler.step();
    host.submit(host.job("b", 30));
    host.scheduler.step();
    assert_eq!(host.scheduler.gauges().sequences_running, 2);
    host.submit(host.job("c", 2));
    while host.outcome(0).is_none() {
        host.scheduler.step();
    }
    // The place that the first has left is taken in the very next step.
    host.scheduler.step();
    assert_eq!(host.scheduler.gauges().queue_depth, 0);
    host.run();
    assert_eq!(host.done(1).text, reference("b", 30));
    assert_eq!(host.done(2).text, reference("c", 2));
}

#[test]
fn long_prompt_does_not_stop_the_streams_of_others() {
    let mut host = Host::new(2);
    let stream = Job {
        ticket: Arc::new(Ticket::new(100)),
        ..host.job(&talkative(40), 40)
    };
    host.submit(stream);
    host.scheduler.step();
    host.submit(host.job(&"long ".repeat(8), 5));
    let before = host.tokens(0).len();
    let mut steps = 0;
    while host
        .scheduler
        .slots
        .iter()
        .flat_map(|slot| &slot.run)
        .any(|r| r.phase == Phase::Prompt)
        || steps == 0
    {
        host.scheduler.step();
        steps += 1;
    }
    assert_eq!(steps, 40 / CHUNK, "a prompt of 40 tokens is read in pieces");
    assert_eq!(host.tokens(0).len() - before, steps, "a token each step");
}

#[test]
fn prompts_are_read_in_whole_batches_while_no_sequence_writes() {
    let mut host = Host::new(2);
    host.submit(host.job(&"p".repeat(BATCH), 3));
    host.scheduler.step();
    assert_eq!(host.scheduler.gauges().decode_steps, 1);
    assert!(matches!(host.phase(0), Some(Phase::Answer { .. })));
}

#[test]
fn the_first_of_many_prompts_is_answered_before_the_last_is_read() {
    let mut host = Host::new(4);
    for letter in ["a", "b", "c", "d"] {
        host.submit(host.job(&letter.repeat(CHUNK / 2), 9));
    }
    host.scheduler.step();
    let answering = |host: &Host, slot| matches!(host.phase(slot), Some(Phase::Answer { .. }));
    assert_eq!(
        [0, 1, 2, 3].map(|slot| answering(&host, slot)),
        [true, true, false, false]
    );
    host.scheduler.step();
    assert!((0..4).all(|slot| answering(&host, slot)));
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

#[test]
fn cancelled_prompt_stops_within_the_batch_and_its_prefix_serves_the_retry() {
    let mut host = Host::new(1);
    let prompt = "a prompt that is cancelled before its end";
    let job = host.job(prompt, 5);
    host.scheduler.backend.cancel_at = Some((20, job.ticket.clone()));
    host.submit(job);
    host.run();
    assert_eq!(
        host.failed(0).reason,
        FailReason::Cancelled(CancelReason::Disconnect)
    );
    assert_eq!(host.scheduler.gauges().kv_used, 20, "not a token more");
    host.submit(host.job(prompt, 5));
    host.run();
    assert_eq!(host.done(1).usage.cached_tokens, 20);
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
fn without_credit_tokens_merge_and_none_is_lost() {
    let mut host = Host::new(1);
    let ticket = Arc::new(Ticket::new(2));
    host.submit(Job {
        ticket: ticket.clone(),
        ..host.job(&talkative(20), 20)
    });
    (0..6).for_each(|_| host.scheduler.step());
    assert_eq!(host.tokens(0).len(), 2);
    ticket.grant(1);
    host.scheduler.step();
    let tokens = host.tokens(0);
    assert_eq!(tokens.len(), 3);
    assert!(
        tokens[2].len() > 1,
        "what had no credit comes at once: {tokens:?}"
    );
    host.run();
    assert_eq!(
        tokens.concat() + &host.done(0).text,
        reference(&talkative(20), 20)
    );
}

#[test]
fn prefix_is_reused_within_the_tenant_only() {
    let mut host = Host::new(3);
    let prompt = "the same long prompt";
    host.submit(Job {
        tenant: 1,
        ..host.job(prompt, 4)
    });
    host.run();
    host.submit(Job {
        tenant: 2,
        ..host.job(prompt, 4)
    });
    host.run();
    host.submit(Job {
        tenant: 1,
        ..host.job(prompt, 4)
    });
    host.run();
    let cached = |request| host.done(request).usage.cached_tokens as usize;
    assert_eq!([cached(0), cached(1), cached(2)], [0, 0, prompt.len() - 1]);
    assert!((0..3).all(|request| host.done(request).text == reference(prompt, 4)));
    // A conversation goes on from the generated text, too.
    let next = format!("{prompt}{}, and then", host.done(2).text);
    host.submit(Job {
        tenant: 1,
        ..host.job(&next, 4)
    });
    host.run();
    assert!(host.done(3).usage.cached_tokens as usize > prompt.len());
    assert_eq!(host.done(3).text, reference(&next, 4));
}

#[test]
fn own_words_are_shared_by_all_tenants_and_nothing_else_is() {
    let mut host = Host::new(4);
    for tenant in 0..4 {
        host.submit(Job {
            tenant,
            ..host.code("python", "same words")
        });
        host.run();
    }
    let own = own_words("python").len() as u32;
    assert_eq!(host.done(0).usage.cached_tokens, 0);
    for request in 1..4 {
        let done = host.done(request);
        assert_eq!(done.usage.cached_tokens, own);
        assert_eq!(done.text, host.done(0).text);
    }
}

#[test]
fn slot_that_was_not_used_for_longest_is_taken() {
    let mut host = Host::new(2);
    for (tenant, prompt) in [
        (1, "first tenant"),
        (2, "second tenant"),
        (3, "third tenant"),
    ] {
        host.submit(Job {
            tenant,
            ..host.job(prompt, 2)
        });
        host.run();
    }
    // The third has displaced the first, not the second.
    host.submit(Job {
        tenant: 2,
        ..host.job("second tenant", 2)
    });
    host.submit(Job {
        tenant: 1,
        ..host.job("first tenant", 2)
    });
    host.run();
    assert_eq!(
        host.done(3).usage.cached_tokens as usize,
        "second tenant".len() - 1
    );
    assert_eq!(host.done(4).usage.cached_tokens, 0);
}

/// Mutation that this test catches: slots taken by their last use alone.
#[test]
fn sequences_that_run_together_are_neighbours() {
    let mut host = Host::new(6);
    // All slots were used, in this order: 0 to 5.
    for tenant in 0..6 {
        host.submit(Job {
            tenant,
            ..host.job(&talkative(tenant as usize + 1), tenant as u32 + 1)
        });
    }
    host.run();
    // Slot 0 is the least recently used one; the next ones lie beside those that run.
    let running =
        |host: &Host| -> Vec<usize> { (0..6).filter(|slot| host.phase(*slot).is_some()).collect() };
    for expected in [vec![0], vec![0, 1], vec![0, 1, 2]] {
        host.submit(Job {
            tenant: 9,
            ..host.job(&talkative(30), 30)
        });
        host.scheduler.step();
        assert_eq!(running(&host), expected);
    }
    // A gap is filled before the row grows.
    host.scheduler.slots[1]
        .run
        .as_ref()
        .unwrap()
        .job()
        .ticket
        .cancel(CancelReason::Disconnect);
    host.scheduler.step();
    assert_eq!(running(&host), [0, 2]);
    host.submit(Job {
        tenant: 8,
        ..host.job(&talkative(30), 30)
    });
    host.scheduler.step();
    assert_eq!(running(&host), [0, 1, 2]);
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
fn model_that_cannot_be_cut_begins_again() {
    let mut host = Host::new(1);
    host.scheduler.backend.can_be_cut = false;
    for _ in 0..2 {
        host.submit(host.job("prompt", 6));
        host.run();
    }
    assert_eq!(host.done(1).usage.cached_tokens, 0);
    assert_eq!(host.done(1).text, reference("prompt", 6));
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

// ---- any schedule ------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Action {
    Submit {
        tenant: u64,
        prompt: String,
        is_code: bool,
        max_tokens: u32,
        credit: u32,
        time: u64,
    },
    Cancel {
        request: usize,
    },
    Grant {
        request: usize,
    },
    Step {
        times: usize,
    },
    Fail,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let submit = (
        0..3_u64,
        "(abc|abd|a){0,6}[xy]",
        any::<bool>(),
        0..20_u32,
        0..4_u32,
        5..400_u64,
    )
        .prop_map(
            |(tenant, prompt, is_code, max_tokens, credit, time)| Action::Submit {
                tenant,
                prompt,
                is_code,
                max_tokens,
                credit,
                time,
            },
        );
    let action = prop_oneof![
        6 => submit,
        2 => (0..30_usize).prop_map(|request| Action::Cancel { request }),
        2 => (0..30_usize).prop_map(|request| Action::Grant { request }),
        6 => (1..8_usize).prop_map(|times| Action::Step { times }),
        1 => Just(Action::Fail),
    ];
    prop::collection::vec(action, 1..60)
}

proptest! {
    #[test]
    fn every_job_has_one_terminal_event_and_its_own_answer(actions in actions()) {
        let mut host = Host::new(3);
        let mut jobs: Vec<Job> = Vec::new();
        for action in actions {
            match action {
                Action::Submit { tenant, prompt, is_code, max_tokens, credit, time } => {
                    let job = match is_code {
                        true => host.code("go", &prompt),
                        false => host.job(&prompt, 0),
                    };
                    let deadline = host.now() + Duration::from_millis(time);
                    let ticket = Arc::new(Ticket::new(credit));
                    let job = Job { tenant, max_tokens, deadline, ticket, ..job };
                    jobs.push(job.clone());
                    host.submit(job);
                }
                Action::Cancel { request } => {
                    jobs.get(request).inspect(|j| j.ticket.cancel(CancelReason::Disconnect));
                }
                Action::Grant { request } => {
                    jobs.get(request).inspect(|j| j.ticket.grant(1));
                }
                Action::Step { times } => (0..times).for_each(|_| host.scheduler.step()),
                Action::Fail => host.scheduler.backend.fails_next = Some(DecodeError::Full),
            }
        }
        host.run();
        let mut histories: HashMap<u64, Vec<Vec<Token>>> = HashMap::new();
        for (request, job) in jobs.iter().enumerate() {
            let events = host.events(request);
            let terminal = events.iter().filter(|event| event.is_terminal()).count();
            prop_assert_eq!(terminal, 1);
            prop_assert!(events.last().unwrap().is_terminal());
            let prepared = prepare(&job.prompt);
            let whole = prepared.opening.clone()
                + &reference_of(&prepared.tokens, job.max_tokens as usize);
            let streamed = host.tokens(request).concat();
            let (rest, usage, is_whole) = match events.last().unwrap() {
                Event::Done(done) => (&done.text, done.usage, true),
                Event::Failed(failed) => (&failed.text, failed.usage, false),
                Event::Token { .. } => unreachable!("the last event is terminal"),
            };
            let text = streamed + rest;
            prop_assert!(whole.starts_with(&text), "{} is not of {}", text, whole);
            prop_assert!(!is_whole || text == whole, "{} is cut from {}", text, whole);
            // After the own words, cached text must be of the same tenant.
            let own = histories.entry(job.tenant).or_default();
            let known = own.iter().map(|held| shared(held, &prepared.tokens)).max().unwrap_or(0);
            prop_assert!(usage.cached_tokens as usize <= known.max(prepared.common));
            let answer = whole[prepared.opening.len()..].bytes().map(Token::from);
            own.push(prepared.tokens.iter().copied().chain(answer).collect());
        }
        let gauges = host.scheduler.gauges();
        prop_assert_eq!((gauges.sequences_running, gauges.queue_depth), (0, 0));
        prop_assert!(gauges.kv_used <= gauges.kv_size);
    }
}

fn shared(one: &[Token], other: &[Token]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

// ---- the toy model -----------------------------------------------------------------------------

struct Toy {
    now: Cell<Moment>,
    sequences: Vec<Vec<Token>>,
    /// The next token for each entry of the last batch that asked for one.
    rows: Vec<Option<Token>>,
    computed: usize,
    /// Cancels a ticket once this many tokens were computed.
    cancel_at: Option<(usize, Arc<Ticket>)>,
    fails_next: Option<DecodeError>,
    panics_next: bool,
    can_be_cut: bool,
    /// A token's effect on the cache depends on its batch's size and its place in it, as with
    /// kernels that round differently for different sizes.
    rounds: bool,
}

impl Toy {
    fn new(sequences: usize) -> Toy {
        Toy {
            now: Cell::new(Moment::from_micros(1)),
            sequences: vec![Vec::new(); sequences],
            rows: Vec::new(),
            computed: 0,
            cancel_at: None,
            fails_next: None,
            panics_next: false,
            can_be_cut: true,
            rounds: false,
        }
    }
}

impl Backend for Toy {
    type Sampler = ();

    fn now(&self) -> Moment {
        self.now.get()
    }

    fn sequences(&self) -> usize {
        self.sequences.len()
    }

    fn context_length(&self) -> usize {
        CONTEXT
    }

    fn batch_limit(&self) -> usize {
        BATCH
    }

    fn preparer(&self) -> Arc<dyn Prepare> {
        unreachable!("the host prepares the prompts")
    }

    fn sampler(&self, _: &Sampling, _: &[Token]) {}

    fn decode(
        &mut self,
        batch: &Batch,
        should_stop: &(dyn Fn(Moment) -> bool + Sync),
    ) -> Result<(), DecodeError> {
        assert!(!batch.is_empty() && batch.len() <= BATCH);
        assert!(!std::mem::take(&mut self.panics_next), "told to");
        if let Some(error) = self.fails_next.take() {
            return Err(error);
        }
        self.rows.clear();
        for (place, entry) in batch.entries().enumerate() {
            if should_stop(self.now()) {
                return Err(DecodeError::Stopped);
            }
            let sequence = &mut self.sequences[entry.sequence];
            assert!(sequence.len() < CONTEXT);
            let rounding = if self.rounds {
                (batch.len() << 8) + (place << 16)
            } else {
                0
            };
            sequence.push(entry.token ^ rounding as Token);
            self.rows
                .push(entry.wants_logits.then(|| next_token(sequence)));
            self.now.set(self.now() + TOKEN_TIME);
            self.computed += 1;
            if let Some((_, ticket)) = self.cancel_at.take_if(|(at, _)| *at == self.computed) {
                ticket.cancel(CancelReason::Disconnect);
            }
        }
        Ok(())
    }

    fn sample(&mut self, index: usize, (): &mut ()) -> Option<Token> {
        self.rows[index]
    }

    fn is_end(&self, token: Token) -> bool {
        token == END
    }

    fn append_piece(&self, token: Token, bytes: &mut Vec<u8>) {
        bytes.push(token as u8);
    }

    fn length(&self, sequence: usize) -> usize {
        self.sequences[sequence].len()
    }

    fn truncate(&mut self, sequence: usize, length: usize) {
        let sequence = &mut self.sequences[sequence];
        if length < sequence.len() {
            sequence.truncate(if self.can_be_cut { length } else { 0 });
        }
    }

    fn save(&mut self, sequence: usize) -> Option<Vec<u8>> {
        Some(
            self.sequences[sequence]
                .iter()
                .flat_map(|token| token.to_le_bytes())
                .collect(),
        )
    }

    fn restore(&mut self, sequence: usize, state: &[u8], length: usize) -> bool {
        let tokens = state
            .chunks_exact(4)
            .map(|bytes| i32::from_le_bytes(bytes.try_into().unwrap()));
        self.sequences[sequence] = tokens.collect();
        assert_eq!(self.sequences[sequence].len(), length);
        true
    }
}

/// Returns a letter, or sometimes the end, by FNV-1a over all tokens.
fn next_token(tokens: &[Token]) -> Token {
    let hash = tokens
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, token| {
            (hash ^ *token as u64).wrapping_mul(0x0100_0000_01b3)
        });
    let value = (hash ^ hash >> 32) % 40;
    if value == 0 {
        END
    } else {
        i32::from(b'a') + (value % 26) as Token
    }
}

fn own_words(language: &str) -> String {
    format!("# {language}\n")
}

fn prepare(prompt: &Prompt) -> Prepared {
    let (own, text, opening) = match prompt {
        Prompt::Code {
            language, prompt, ..
        } => {
            let own = own_words(language.unwrap_or("any"));
            (own.len(), own + prompt, "```\n".to_owned())
        }
        Prompt::Raw(text) => (0, text.clone(), String::new()),
        Prompt::Chat(_) => unreachable!("the toy has no template"),
    };
    Prepared {
        tokens: text.bytes().map(Token::from).collect(),
        common: own,
        opening,
        closing: None,
        // The toy's output contains this letter now and then.
        epilogues: match prompt {
            Prompt::Code {
                language: Some("cut"),
                ..
            } => vec!["e".to_owned()],
            _ => Vec::new(),
        },
    }
}

fn reference(prompt: &str, max_tokens: usize) -> String {
    reference_of(
        &prompt.bytes().map(Token::from).collect::<Vec<_>>(),
        max_tokens,
    )
}

/// Returns a prompt whose output has at least this many tokens.
fn talkative(tokens: usize) -> String {
    let prompts = (0..).map(|number| format!("p{number}"));
    let mut long = prompts.filter(|prompt| reference(prompt, tokens).len() == tokens);
    long.next().expect("one in three or so")
}

/// Returns the toy's output when no other job runs.
fn reference_of(prompt: &[Token], max_tokens: usize) -> String {
    let mut tokens = prompt.to_vec();
    let mut text = String::new();
    while text.len() < max_tokens && tokens.len() < CONTEXT {
        match next_token(&tokens) {
            END => break,
            token => {
                tokens.push(token);
                text.push(token as u8 as char);
            }
        }
    }
    text
}

#[derive(Default)]
struct Mailbox(Mutex<Vec<(JobKey, Event)>>);

impl Deliver for Mailbox {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        self.0.lock().unwrap().append(events);
    }
}

struct Host {
    scheduler: Scheduler<Toy>,
    mailbox: Arc<Mailbox>,
    submitted: u32,
}

impl Host {
    fn new(sequences: usize) -> Host {
        let mailbox = Arc::new(Mailbox::default());
        let toy = Toy::new(sequences);
        let scheduler = Scheduler::new(toy, CHUNK, false, mailbox.clone(), Arc::default());
        Host {
            scheduler,
            mailbox,
            submitted: 0,
        }
    }

    /// Builds a host over a toy that rounds.
    fn rounding(sequences: usize, is_reproducible: bool) -> Host {
        let mut host = Host::new(sequences);
        host.scheduler.backend.rounds = true;
        host.scheduler.is_reproducible = is_reproducible;
        host
    }

    fn now(&self) -> Moment {
        self.scheduler.backend.now()
    }

    fn job(&self, prompt: &str, max_tokens: u32) -> Job {
        Job {
            key: JobKey {
                reactor: 0,
                connection: Key::new(0, 0),
                request: 0,
            },
            tenant: 1,
            class: Class::Live,
            weight: 1,
            prompt: Prompt::Raw(prompt.to_owned()),
            sampling: Sampling::default(),
            max_tokens,
            stop: Vec::new(),
            deadline: Moment::NEVER,
            submitted: self.now(),
            ticket: Arc::new(Ticket::new(0)),
        }
    }

    fn code(&self, language: &'static str, prompt: &str) -> Job {
        let (prompt, context) = (prompt.to_owned(), Vec::<ContextFile>::new());
        let prompt = Prompt::Code {
            language: Some(language),
            prompt,
            context,
        };
        Job {
            prompt,
            ..self.job("", 8)
        }
    }

    /// Submits a job as the next request; they are numbered from 0.
    fn submit(&mut self, mut job: Job) {
        job.key.request = self.submitted;
        self.submitted += 1;
        let prepared = Ok(prepare(&job.prompt));
        let owed = Owed::new(job, None, self.mailbox.clone());
        self.scheduler.admit(owed, prepared);
    }

    fn run(&mut self) {
        // Each step does something, so this many are enough for everything.
        for _ in 0..10_000 {
            self.scheduler.step();
            if self.scheduler.is_idle() {
                return;
            }
        }
        panic!("the scheduler does not come to an end");
    }

    fn phase(&self, slot: usize) -> Option<Phase> {
        self.scheduler.slots[slot].run.as_ref().map(|run| run.phase)
    }

    fn events(&self, request: usize) -> Vec<Event> {
        let events = self.mailbox.0.lock().unwrap();
        let own = events
            .iter()
            .filter(|(key, _)| key.request as usize == request);
        own.map(|(_, event)| event.clone()).collect()
    }

    fn tokens(&self, request: usize) -> Vec<String> {
        let events = self.events(request).into_iter();
        events
            .filter_map(|event| match event {
                Event::Token { text } => Some(text),
                Event::Done(_) | Event::Failed(_) => None,
            })
            .collect()
    }

    fn outcome(&self, request: usize) -> Option<Event> {
        outcome_in(&self.mailbox, request)
    }

    fn done(&self, request: usize) -> Done {
        match self.outcome(request) {
            Some(Event::Done(done)) => *done,
            other => panic!("request {request} is not done: {other:?}"),
        }
    }

    fn failed(&self, request: usize) -> Failed {
        match self.outcome(request) {
            Some(Event::Failed(failed)) => *failed,
            other => panic!("request {request} has not failed: {other:?}"),
        }
    }
}

fn outcome_in(mailbox: &Mailbox, request: usize) -> Option<Event> {
    let events = mailbox.0.lock().unwrap();
    let mut own = events
        .iter()
        .filter(|(key, _)| key.request as usize == request);
    own.rfind(|(_, event)| event.is_terminal())
        .map(|(_, event)| event.clone())
}
