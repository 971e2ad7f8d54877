//! Any order of jobs, cancellations, credit and failures.

use proptest::prelude::*;

use super::toy::*;
use crate::engine::llama::scheduler::saved::Saved;
use crate::engine::llama::scheduler::seats::Share;

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
    fn every_job_has_one_terminal_event_and_its_own_answer(
        actions in actions(),
        sequences in 1..4_usize,
        share in 1..9_u32,
        bytes_max in prop_oneof![Just(0), Just(200), Just(1 << 20)],
        patience in 0..50_u32,
    ) {
        let mut host = Host::new(sequences);
        host.scheduler.terms.share = Share { tokens: share, time: TOKEN_TIME * 100 };
        host.scheduler.terms.credit_patience = TOKEN_TIME * patience;
        host.scheduler.terms.background_patience = TOKEN_TIME * 50;
        host.scheduler.saved = Saved::new(bytes_max);
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
                    let class = if tenant == 2 { Class::Background } else { Class::Live };
                    let weight = 1 + max_tokens as u16 % 3;
                    let job = Job { tenant, class, weight, max_tokens, deadline, ticket, ..job };
                    jobs.push(job.clone());
                    host.submit(job);
                }
                Action::Cancel { request } => {
                    jobs.get(request).inspect(|j| j.ticket.cancel(CancelReason::Disconnect));
                }
                Action::Grant { request } => {
                    let _ = jobs.get(request).map(|j| j.ticket.grant(1));
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
                Event::Served(_) | Event::Token { .. } => unreachable!("it is terminal"),
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
