//! Batches of outputs and pieces of prompts.

use super::toy::*;

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
    // Beside one output: this many tokens for each of its own, although the budget has room for
    // more.
    let piece = crate::limits::engine::PROMPT_TIME_FACTOR_MAX as usize;
    assert_eq!(steps, 40 / piece, "a prompt of 40 tokens is read in pieces");
    assert_eq!(host.tokens(0).len() - before, steps, "a token each step");
}

/// Mutation that this test catches: a whole batch while no sequence writes.
#[test]
fn the_budget_holds_while_no_sequence_writes() {
    let mut host = Host::new(2);
    host.submit(host.job(&"p".repeat(3 * CHUNK), 3));
    host.scheduler.step();
    assert_eq!(host.scheduler.gauges().prompt_tokens as usize, CHUNK);
    assert_eq!(host.phase(0), Some(Phase::Prompt));
}

/// Mutation that this test catches: `read` that does not record how long its batch took.
#[test]
fn a_step_measures_what_its_prompts_cost() {
    let mut host = Host::new(1);
    let time = TOKEN_TIME * CHUNK as u32 + TOKEN_TIME / 2;
    host.scheduler.budget = Budget::new(time, BATCH);
    host.scheduler.budget.bounds = 1..=BATCH;
    host.submit(host.job(&"p".repeat(40), 3));
    host.scheduler.step();
    let read = |host: &Host| host.scheduler.gauges().prompt_tokens as usize;
    assert_eq!(read(&host), BATCH, "nothing was measured yet");
    host.scheduler.step();
    assert_eq!(read(&host), BATCH + CHUNK);
}

/// Mutation that this test catches: one delivery at the end of a step.
#[test]
fn new_tokens_do_not_wait_until_prompts_are_read() {
    let mut host = Host::new(2);
    host.submit(Job {
        ticket: Arc::new(Ticket::new(100)),
        ..host.job(&talkative(40), 40)
    });
    (0..3).for_each(|_| host.scheduler.step());
    // Its prompt ends in the step, so that step has events of both batches.
    host.submit(Job {
        ticket: Arc::new(Ticket::new(100)),
        ..host.job("b", 9)
    });
    let before = host.mailbox.posts();
    host.scheduler.step();
    assert!(matches!(host.phase(1), Some(Phase::Answer { .. })));
    assert_eq!(host.mailbox.posts() - before, 2);
}

/// llama.cpp asks at each node of its graph whether to stop, and each time is a sign of life.
/// Mutation that this test catches: a step that is one beat, with which a slow step is a hang.
#[test]
fn a_batch_beats_while_it_is_computed() {
    let mut host = Host::new(1);
    host.submit(host.job(&"p".repeat(CHUNK), 3));
    let before = host.scheduler.heartbeat.beats();
    host.scheduler.step();
    assert_eq!(host.scheduler.heartbeat.beats() - before, CHUNK as u64);
}

/// Mutation that this test catches: prompts read in order of arrival.
#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut host = Host::new(2);
    host.submit(host.job(&"long ".repeat(11), 3));
    host.scheduler.step();
    host.submit(host.job("b", 3));
    host.scheduler.step();
    assert!(matches!(host.phase(1), Some(Phase::Answer { .. })));
    host.run();
    assert_eq!(host.done(0).text, reference(&"long ".repeat(11), 3));
}

/// Mutation that this test catches: prompts that are passed over for ever (no `in_turn`).
#[test]
fn a_long_prompt_is_read_beside_short_ones_that_never_end() {
    let mut host = Host::new(4);
    host.submit(host.job(&"long ".repeat(8), 3));
    for number in 0..400 {
        // Three of them fill each step.
        let flood = (0..3).map(|tenant| Job {
            tenant: 2 + tenant,
            ..host.job(&format!("s{}", number % 10).repeat(2), 1)
        });
        flood
            .collect::<Vec<Job>>()
            .into_iter()
            .for_each(|job| host.submit(job));
        host.scheduler.step();
        if host.outcome(0).is_some() {
            break;
        }
    }
    assert_eq!(host.done(0).text, reference(&"long ".repeat(8), 3));
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
fn without_credit_tokens_merge_and_none_is_lost() {
    let mut host = Host::new(1);
    let ticket = Arc::new(Ticket::new(2));
    host.submit(Job {
        ticket: ticket.clone(),
        ..host.job(&talkative(20), 20)
    });
    (0..6).for_each(|_| host.scheduler.step());
    assert_eq!(host.tokens(0).len(), 2);
    let _ = ticket.grant(1);
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
