//! Compares ways to divide the prompt tokens of a step: over the toy by counting steps, and over a
//! real model by time. `docs/benchmarks.md` has the figures.

use super::toy::*;
use crate::engine::Prompt;
use crate::engine::llama::backend::{Backend, Prepare};
use crate::engine::llama::model::Llama;
use crate::engine::llama::scheduler::pieces::{self, tests::equal_shares};
use crate::engine::llama::settings::{Obtained, Settings};
use crate::engine::llama::{memory, scheduler};

type Divide = fn(Vec<pieces::Reader>, usize) -> Vec<(usize, usize)>;

const POLICIES: [(&str, Divide); 3] = [
    ("shortest first", pieces::divided),
    ("equal shares", equal_shares),
    ("one prompt in a small step", pieces::shortest_first),
];

/// Mutation that this test catches: the longest prompt first.
#[test]
fn shortest_first_answers_sooner_and_the_longest_not_much_later() {
    let lengths = [50, 40, 6, 30, 4, 12];
    let first_tokens = |divide: Divide| -> Vec<u64> {
        let mut host = Host::new(lengths.len());
        host.scheduler.terms.divide = divide;
        for (tenant, length) in (0..).zip(lengths) {
            host.submit(Job {
                tenant,
                ..host.job(&"x".repeat(length), 1)
            });
        }
        host.run();
        let times = (0..lengths.len()).map(|request| host.done(request).timings.prefill);
        times.map(|time| time.as_millis() as u64).collect()
    };
    let [shortest, equal, _] = POLICIES.map(|(name, divide)| {
        let times = first_tokens(divide);
        println!("{name}: first tokens after {times:?} token times");
        times
    });
    let sums = [&shortest, &equal].map(|times| times.iter().sum::<u64>());
    assert!(sums[0] * 100 < sums[1] * 85, "{sums:?}");
    assert!(shortest.iter().max() <= equal.iter().max());
}

/// Prints how long prompts of several lengths take to their first token, by policy and budget.
#[test]
#[ignore = "measures; AUTOGLMD_TEST_MODEL=FILE cargo test --release --lib policies -- --ignored"]
fn measure_prompts_on_a_real_model() {
    let path = std::env::var("AUTOGLMD_TEST_MODEL").expect("AUTOGLMD_TEST_MODEL names a model");
    let whole = Duration::from_secs(1_000);
    let budget = Duration::from_millis(250);
    let mut measured = Measured::load(&path, 8);
    for (name, budget) in [("250 ms", budget), ("whole batches", whole)] {
        let times = measured.first_tokens(&[1_200], 0, budget, POLICIES[2].1);
        println!("one prompt of 1,200 tokens, {name}: {times:.2?}");
    }
    for (name, budget) in [("250 ms", budget), ("whole batches", whole)] {
        let times = measured.first_tokens(&[1_200, 20], 1, budget, POLICIES[2].1);
        println!("1,200 tokens, and 20 a step later, {name}: {times:.2?}");
    }
    for (name, divide) in POLICIES {
        let times = measured.first_tokens(&[900, 600, 300, 100, 50, 20], 0, budget, divide);
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        println!("six prompts, {name}: {times:.2?}, mean {mean:.2}");
    }
}

/// A scheduler over a real model.
struct Measured {
    scheduler: Option<Scheduler<Llama>>,
    preparer: Arc<dyn Prepare>,
    mailbox: Arc<Mailbox>,
    requests: u32,
}

impl Measured {
    fn load(path: &str, sequences: u32) -> Measured {
        let settings = Settings {
            id: "measured".to_owned(),
            family: None,
            parallel: sequences,
            threads: 0,
            context: 2_048,
            kv_type: None,
            queue: 8,
            prompt_budget: Duration::from_millis(250),
            is_reproducible: false,
            gpu_layers: 0,
            stall_timeout: Duration::from_secs(600),
            prefixes: None,
            own_words: None,
        };
        let settings = Obtained::from(std::path::PathBuf::from(path)).adjust(&settings);
        let plan = |model: &_, family: &_| memory::plan(&settings, model, family);
        let path = std::path::Path::new(path);
        let llama = Llama::load(path, None, 0, &mut |_| true, plan).expect("a model");
        let preparer = llama.preparer();
        let mailbox = Arc::new(Mailbox::default());
        let budget = settings.prompt_budget;
        let deliver: Arc<dyn Deliver> = mailbox.clone();
        Measured {
            scheduler: Some(scheduler::Scheduler::new(
                llama,
                budget,
                false,
                deliver,
                Arc::default(),
            )),
            preparer,
            mailbox,
            requests: 0,
        }
    }

    /// Submits prompts of these lengths, each some steps after the one before. Returns the seconds
    /// from each one's submission to its first token.
    fn first_tokens(
        &mut self,
        lengths: &[usize],
        steps_between: usize,
        budget: Duration,
        divide: Divide,
    ) -> Vec<f64> {
        let scheduler = self.scheduler.as_mut().expect("it is loaded");
        scheduler.terms.divide = divide;
        scheduler.budget = scheduler::budget::Budget::new(budget, scheduler.backend.batch_limit());
        let first = self.requests;
        for (tenant, length) in (u64::from(first)..).zip(lengths) {
            let text = format!("{} {}", tenant, "word ".repeat(*length - 2));
            let host_job = Job {
                tenant,
                submitted: Moment::now(),
                ..Host::new(1).job(&text, 1)
            };
            let job = Job {
                key: JobKey {
                    request: self.requests,
                    ..host_job.key
                },
                ..host_job
            };
            self.requests += 1;
            let prepared = self.preparer.prepare(&Prompt::Raw(text));
            scheduler.admit(Owed::new(job, None, self.mailbox.clone()), prepared);
            (0..steps_between).for_each(|_| scheduler.step());
        }
        while !scheduler.is_idle() {
            scheduler.step();
        }
        let times = (first..self.requests).map(|request| {
            match outcome_in(&self.mailbox, request as usize) {
                Some(Event::Done(done)) => done.timings.queue + done.timings.prefill,
                other => panic!("{other:?}"),
            }
        });
        times.map(|time| time.as_secs_f64()).collect()
    }
}
