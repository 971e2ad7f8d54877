//! The engine with the real small model.
//!
//! Needs the model's file: `$AUTOGLMD_TEST_MODEL`, or the one in the daemon's own cache, which the
//! first test without it fetches. All time bounds are so wide that only a hang or a broken promise
//! can exceed them.

#![cfg(feature = "llama")]

mod common;

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use autoglmd::core::{Key, Moment};
use autoglmd::engine::llama::{self, KvType, Settings};
use autoglmd::engine::{
    CacheMode, Class, Deliver, Done, Engine, Event, FailReason, Failed, FinishReason, Gauges,
    GenerationId, Job, Message, Prompt, Refused, Sampling, State, code, family,
};
use autoglmd::error::ErrorCode;
use autoglmd::offload::{CancelReason, JobKey, Ticket};
use common::workers::workers;

/// Far longer than any step here, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// One kernel computes Q4_1, however many rows there are. With other weights the size of the batch
/// chooses the kernel, and kernels round differently: there the test only counts.
#[test]
fn greedy_answers_are_the_same_alone_and_in_a_batch_where_one_kernel_computes_them() {
    let host = Host::start(16, 512);
    let weights = host.engine.model().unwrap().description;
    let jobs: Vec<Job> = (0..16)
        .map(|index| host.job(&question(index), 24))
        .collect();
    let alone: Vec<String> = jobs
        .iter()
        .map(|job| host.answer(renewed(job)).text)
        .collect();
    assert!(alone.iter().all(|text| !text.is_empty()));
    for together in [2, 8, 16] {
        let answers = host.answers(jobs[..together].iter().map(renewed).collect());
        let pairs = answers.iter().zip(&alone);
        let same = pairs.filter(|(done, alone)| done.text == **alone).count();
        println!("{weights}: {same} of {together} answers are the same alone and together");
        if weights.contains("Q4_1") {
            assert_eq!(same, together);
        }
    }
}

/// One sequence, and two tenants with long outputs, which are streamed so that each token shows that
/// the engine goes on. Mutation that this test catches: `victim` without its reason `spent`.
#[test]
fn a_job_that_yields_its_sequence_goes_on_with_the_same_text() {
    // One thread: several wait for each other, which takes long on a busy machine.
    let host = Host::start_with(Settings {
        threads: 1,
        ..settings(1, 1024)
    });
    let job = |tenant: u64| Job {
        tenant,
        ticket: Arc::new(Ticket::new(1_000)),
        ..host.job_of(Prompt::Raw(long_text(30 + tenant as usize)), 280)
    };
    let alone = [1, 2].map(|tenant| host.run(job(tenant)));
    let together = [1, 2].map(|tenant| host.submit(job(tenant)));
    let together = together.map(|receiver| collect(&receiver));
    let text = |answer: &Answer| {
        let done = answer.outcome.as_ref().expect("an answer");
        answer.tokens.concat() + &done.text
    };
    for (answer, alone) in together.iter().zip(&alone) {
        assert_eq!(text(answer), text(alone));
    }
    let timings = |answer: &Answer| answer.outcome.as_ref().expect("an answer").timings;
    let [first, second] = [timings(&together[0]), timings(&together[1])];
    let whole = first.queue + first.prefill + first.decode;
    assert!(
        second.queue < whole,
        "the second began meanwhile: {first:?}, {second:?}"
    );
}

/// The scheduler's own tests list the mutations.
#[test]
fn reproducible_answers_are_the_same_alone_and_in_a_batch() {
    let host = Host::start_with(Settings {
        is_reproducible: true,
        ..settings(8, 1024)
    });
    let code = (0..6).map(|index| host.job(&question(index), 24));
    let long = [40, 600].map(|tokens| host.job_of(Prompt::Raw(long_text(tokens)), 24));
    let jobs: Vec<Job> = code.chain(long).collect();
    let alone: Vec<String> = jobs
        .iter()
        .map(|job| host.answer(renewed(job)).text)
        .collect();
    for round in 0..2 {
        let together = host.answers(jobs.iter().map(renewed).collect());
        for (index, done) in together.iter().enumerate() {
            assert_eq!(done.text, alone[index], "round {round}, prompt {index}");
        }
    }
}

#[test]
fn either_type_of_keys_and_values_leads_to_the_same_first_words() {
    let first_words = |kv_type| {
        let host = Host::start_with(Settings {
            kv_type: Some(kv_type),
            ..settings(1, 512)
        });
        host.answer(host.job(&question(0), 6)).text
    };
    let text = first_words(KvType::F16);
    assert!(!text.is_empty());
    assert_eq!(first_words(KvType::Q8_0), text);
}

#[test]
fn an_optimized_model_is_another_file_that_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimized.gguf");
    llama::optimize(&model_path(), &path).unwrap();
    let bytes = |path: &Path| path.metadata().unwrap().len();
    assert!(bytes(&path) > bytes(&model_path()), "8 bits a weight");
    let host = Host::start_with_model(settings(1, 512), path);
    let program = host.answer(host.job("add two numbers", 24)).text;
    assert!(program.contains("def "), "{program}");

    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF\x03\0\0\0 and no more").unwrap();
    let error = llama::optimize(&broken, &folder.path().join("none.gguf")).unwrap_err();
    assert!(error.contains("model verify"), "{error}");
}

#[test]
fn sixty_four_jobs_on_sixteen_sequences_are_all_answered() {
    let host = Host::start(16, 256);
    let answers = host.answers(
        (0..64)
            .map(|index| host.job(&question(index), 12))
            .collect(),
    );
    assert_eq!(answers.len(), 64);
    assert!(answers.iter().all(|done| !done.text.is_empty()));
    host.wait_until_idle();
    let gauges = host.engine.gauges();
    assert_eq!(gauges.generated_tokens, tokens_of(&answers));
}

#[test]
fn chinese_quicksort_is_python_that_parses() {
    let host = Host::start(4, 2048);
    let prompt = Prompt::Code {
        language: Some("python"),
        prompt: "实现快速排序算法".to_owned(),
        context: Vec::new(),
    };
    let mut job = host.job_of(prompt, 1024);
    job.sampling.repeat_penalty = host.engine.model().unwrap().defaults.repeat_penalty;
    let done = host.answer(job);
    assert_eq!(done.finish_reason, FinishReason::Stop, "{}", done.text);
    let program = code::extract(&done.text, Some("python"));
    assert!(program.contains("def "), "{program}");
    assert_parses(&program);
}

/// The test model's file names its family; another file of its architecture does not.
#[test]
fn family_comes_from_the_file_unless_it_is_given() {
    let penalty = |family| {
        let settings = Settings {
            family,
            ..settings(1, 512)
        };
        let host = Host::start_with(settings);
        let model = host.engine.model().unwrap();
        (model.description, model.defaults.repeat_penalty)
    };
    let (description, found) = penalty(None);
    let expected = match description.starts_with("qwen2") {
        true => family::QWEN_CODER,
        false => family::SMOLLM,
    };
    assert_eq!(found, expected.repeat_penalty, "{description}");
    assert_eq!(penalty(Some(&family::NEUTRAL)).1, 1.0);
}

#[test]
fn streamed_tokens_and_the_rest_make_the_same_answer() {
    let host = Host::start(2, 512);
    let whole = host.answer(host.job(&question(1), 32)).text;
    for credit in [1, 3, 1000] {
        let mut job = host.job(&question(1), 32);
        job.ticket = Arc::new(Ticket::new(credit));
        let answer = host.run(job);
        assert!(answer.tokens.len() as u32 <= credit);
        assert!(!answer.tokens.is_empty());
        let done = answer.outcome.expect("an answer");
        assert_eq!(answer.tokens.concat() + &done.text, whole);
    }
}

#[test]
fn sampled_answer_is_the_same_for_the_same_seed() {
    let host = Host::start(4, 512);
    let sampled = |seed| {
        let mut job = host.job(&question(2), 24);
        job.sampling = Sampling {
            temperature: 1.0,
            top_p: 0.95,
            top_k: 50,
            min_p: 0.01,
            seed: Some(seed),
            frequency_penalty: 0.1,
            presence_penalty: 0.1,
            repeat_penalty: 1.1,
        };
        host.answer(job).text
    };
    assert_eq!(sampled(1), sampled(1));
    let others: Vec<String> = (2..6).map(sampled).collect();
    assert!(others.iter().any(|text| *text != others[0]), "{others:?}");
}

#[test]
fn stop_string_ends_the_answer_before_it() {
    let host = Host::start(2, 512);
    let ask = |stop: Vec<String>| {
        let messages = vec![message("user", "Count from one to ten in digits.")];
        let mut job = host.job_of(Prompt::Chat(messages), 64);
        job.stop = stop;
        host.answer(job)
    };
    let whole = ask(Vec::new()).text;
    let (index, _) = whole.char_indices().nth(8).expect("a longer answer");
    let stop = whole[index..].chars().take(3).collect::<String>();
    let cut = ask(vec![stop.clone()]);
    assert_eq!(cut.finish_reason, FinishReason::Stop);
    assert_eq!(cut.text, whole[..whole.find(&stop).unwrap()]);
}

#[test]
fn cancelled_prompt_leaves_the_engine_idle_and_its_prefix_for_the_retry() {
    let host = Host::start(2, 2048);
    let job = host.job_of(Prompt::Raw(long_text(1500)), 8);
    let ticket = job.ticket.clone();
    let retry = renewed(&job);
    let receiver = host.submit(job);
    // A part of the prompt is computed, not all: an event would report the end.
    host.wait_until(|engine| engine.gauges().kv_used > 0);
    ticket.cancel(CancelReason::Disconnect);
    let failed = collect(&receiver).outcome.expect_err("a cancelled job");
    host.wait_until_idle();
    assert_eq!(
        failed.reason,
        FailReason::Cancelled(CancelReason::Disconnect)
    );
    let kept = host.engine.gauges().kv_used;
    assert!(kept > 0);
    let done = host.answer(retry);
    assert_eq!(u64::from(done.usage.cached_tokens), kept);
    assert!(done.usage.cached_tokens < done.usage.prompt_tokens);
}

#[test]
fn engine_is_idle_within_200_ms_of_a_cancel() {
    let host = Host::start(2, 2048);
    let prompt = |attempt: usize| {
        // Each begins with another word, so nothing of it is computed already.
        let job = host.job_of(Prompt::Raw(format!("{attempt} {}", long_text(1500))), 8);
        let before = host.engine.gauges().prompt_tokens;
        time_to_idle(&host, job, |gauges| gauges.prompt_tokens > before)
    };
    let answer = |_| {
        let mut job = host.job_of(Prompt::Raw("Once upon a time".to_owned()), 2000);
        job.sampling.temperature = 1.5;
        let before = host.engine.gauges().generated_tokens;
        time_to_idle(&host, job, |gauges| gauges.generated_tokens > before + 3)
    };
    // The best of a few: a machine with other work may delay a thread, but a batch of prompt tokens
    // that is computed to its end takes far longer each time.
    let promise = Duration::from_millis(200);
    let prompts: Vec<Duration> = (0..5).map(prompt).collect();
    assert!(prompts.iter().any(|took| *took < promise), "{prompts:?}");
    let answers: Vec<Duration> = (0..5).map(answer).collect();
    assert!(answers.iter().any(|took| *took < promise), "{answers:?}");
}

/// Cancels a job once `is_under_way` holds; returns how long it takes until the gauges show no
/// running sequence.
fn time_to_idle(host: &Host, job: Job, is_under_way: impl Fn(Gauges) -> bool) -> Duration {
    let ticket = job.ticket.clone();
    let receiver = host.submit(job);
    host.wait_until(|engine| is_under_way(engine.gauges()));
    let cancelled = Instant::now();
    ticket.cancel(CancelReason::Disconnect);
    host.wait_until_idle();
    let took = cancelled.elapsed();
    collect(&receiver).outcome.expect_err("a cancelled job");
    took
}

#[test]
fn conversation_goes_on_from_its_prefix_within_the_tenant_only() {
    let host = Host::start(2, 1024);
    let first = vec![message("user", "Name three colours, one a line.")];
    let answer = host.answer(host.job_of(Prompt::Chat(first.clone()), 32));
    let mut second = first;
    second.push(message("assistant", &answer.text));
    second.push(message("user", "And a fourth one."));
    let mut stranger = host.job_of(Prompt::Chat(second.clone()), 8);
    stranger.tenant = 2;
    assert_eq!(host.answer(stranger).usage.cached_tokens, 0);
    let usage = host.answer(host.job_of(Prompt::Chat(second), 8)).usage;
    assert!(
        usage.cached_tokens > answer.usage.prompt_tokens,
        "{usage:?}"
    );
}

#[test]
fn own_words_of_the_daemon_are_computed_once_for_everyone() {
    let host = Host::start(2, 512);
    host.answer(host.job(&question(0), 4));
    for tenant in 10..14 {
        let mut job = host.job(&question(tenant as usize), 4);
        job.tenant = tenant;
        let usage = host.answer(job).usage;
        assert!(usage.cached_tokens > 0, "{usage:?}");
    }
}

#[test]
fn deadline_ends_the_answer_with_what_there_is() {
    let host = Host::start(1, 8192);
    let mut job = host.job(&question(3), 8_000);
    job.stop = Vec::new();
    // One word again and again, without an end.
    job.sampling.temperature = 0.0;
    job.sampling.frequency_penalty = -2.0;
    job.prompt = Prompt::Raw(" again".repeat(64));
    job.ticket = Arc::new(Ticket::new(10_000));
    // Enough for one token on a busy machine, but not for 8000 on any.
    job.deadline = Moment::now() + Duration::from_secs(10);
    let answer = host.run(job);
    let failed = answer.outcome.expect_err("no time for 8000 tokens");
    assert_eq!(
        failed.reason,
        FailReason::Error(ErrorCode::GenerationTimeout)
    );
    assert!(!answer.tokens.is_empty());
    assert!(failed.usage.completion_tokens > 0);
}

#[test]
fn prompt_beyond_the_context_is_refused_by_name() {
    let host = Host::start(2, 512);
    // Its tokens must be counted.
    let long = host.run(host.job_of(Prompt::Raw(long_text(600)), 8));
    let failed = long.outcome.expect_err("too long");
    assert_eq!(
        failed.reason,
        FailReason::Error(ErrorCode::ContextLengthExceeded)
    );
    // By its bytes alone it cannot fit, so nothing waits and nothing is counted.
    let longer = Prompt::Raw("word ".repeat(400_000));
    let (_, refused) = host.try_submit(host.job_of(longer, 8));
    let context_length = 512;
    assert_eq!(refused, Err(Refused::TooLong { context_length }));
    // As much as fits is generated, and the output ends with the context.
    let done = host.answer(host.job_of(Prompt::Raw(long_text(400)), 100_000));
    assert!(done.usage.prompt_tokens + done.usage.completion_tokens <= 512);
}

/// Mutation: a queue that is served in the order of arrival, which answers seven of the eight jobs
/// first.
#[test]
fn a_short_job_does_not_wait_for_the_flood_of_another_tenant() {
    let host = Host::start(2, 1024);
    let long = |index| format!("{index} {}", long_text(200));
    let flood: Vec<Job> = (0..8)
        .map(|index| host.job_of(Prompt::Raw(long(index)), 40))
        .collect();
    let short = Job {
        tenant: 2,
        ..host.job_of(Prompt::Raw("Once upon a time".to_owned()), 4)
    };
    let receivers: Vec<_> = flood.iter().map(|job| host.submit(job.clone())).collect();
    let own = host.submit(short.clone());
    // By the engine's clock, so that a busy machine does not change the order.
    let end = |job: &Job, receiver: &Receiver<Event>| {
        let timings = collect(receiver).outcome.expect("an answer").timings;
        job.submitted + (timings.queue + timings.prefill + timings.decode)
    };
    let own_end = end(&short, &own);
    let ends = flood
        .iter()
        .zip(&receivers)
        .map(|(job, receiver)| end(job, receiver));
    let before = ends.filter(|end| *end < own_end).count();
    assert!(
        before <= 4,
        "{before} of the flood's jobs were answered before"
    );
}

#[test]
fn full_queue_refuses_at_once_and_drain_ends_what_was_admitted() {
    let mut settings = settings(1, 512);
    settings.queue = 2;
    let host = Host::start_with(settings);
    // It holds the only sequence while the queue is being filled, on a busy machine too.
    let mut long = host.job_of(Prompt::Raw("Once upon a time".to_owned()), 400);
    long.sampling.temperature = 1.5;
    let mut receivers = vec![host.submit(long)];
    let refused = loop {
        let (receiver, result) = host.try_submit(host.job(&question(receivers.len()), 16));
        match result {
            Ok(()) => receivers.push(receiver),
            Err(refused) => break refused,
        }
        assert!(
            receivers.len() <= 4,
            "one runs, two wait, one may just be changing"
        );
    };
    let Refused::QueueFull { retry_after } = refused else {
        panic!("{refused:?}")
    };
    assert!(retry_after > Duration::ZERO);
    host.engine.drain();
    let (_, result) = host.try_submit(host.job(&question(0), 1));
    assert_eq!(result, Err(Refused::Draining));
    for receiver in receivers {
        collect(&receiver)
            .outcome
            .expect("an admitted job is answered");
    }
}

#[test]
fn dropped_engine_settles_what_it_owes() {
    let host = Host::start(1, 2048);
    let jobs: Vec<Job> = (0..3)
        .map(|_| host.job_of(Prompt::Raw(long_text(1500)), 500))
        .collect();
    let receivers: Vec<_> = jobs.into_iter().map(|job| host.submit(job)).collect();
    drop(host);
    for receiver in receivers {
        let failed = collect(&receiver).outcome.expect_err("no time to answer");
        assert!(!matches!(
            failed.reason,
            FailReason::Error(ErrorCode::GenerationTimeout)
        ));
        assert!(receiver.try_recv().is_err(), "one terminal event");
    }
}

#[test]
fn missing_and_broken_files_are_reported_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let whole = std::fs::read(model_path()).unwrap();
    for (path, reason) in [
        (folder.path().join("missing.gguf"), "No such file"),
        (file("text.gguf", b"GGUF but nothing more"), "version"),
        (file("cut.gguf", &whole[..whole.len() / 2]), "file bounds"),
    ] {
        let obtained = path.clone();
        let obtain = Box::new(move |_: &dyn Fn() -> bool| Ok(obtained.into()));
        let mailboxes = Arc::new(Mailboxes::default());
        let engine = llama::start(settings(1, 512), obtain, mailboxes, workers()).unwrap();
        let failure = wait(|| match engine.state() {
            State::Failed(message) => Some(message),
            State::Loading { .. } | State::Ready | State::Stalled { .. } => None,
        });
        assert!(failure.contains(path.to_str().unwrap()), "{failure}");
        assert!(failure.contains(reason), "{failure}");
    }
}

#[test]
fn drain_cancels_a_model_load_and_that_is_not_a_failure() {
    let obtain = Box::new(|is_wanted: &dyn Fn() -> bool| {
        while is_wanted() {
            thread::yield_now();
        }
        Err("given up".to_owned())
    });
    let engine = llama::start(
        settings(1, 512),
        obtain,
        Arc::new(Mailboxes::default()),
        workers(),
    )
    .unwrap();
    engine.drain();
    let handle = Arc::downgrade(&engine);
    assert!(matches!(engine.state(), State::Loading { .. }));
    // Waits for the thread, which ends only because of the drop.
    drop(engine);
    assert!(handle.upgrade().is_none());
}

// ---- what the tests stand on -------------------------------------------------------------------

/// An engine, and the mailboxes of its clients.
struct Host {
    engine: Arc<dyn Engine>,
    mailboxes: Arc<Mailboxes>,
}

#[derive(Default)]
struct Mailboxes(Mutex<HashMap<JobKey, Sender<Event>>>);

impl Deliver for Mailboxes {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        let mailboxes = self.0.lock().unwrap();
        for (key, event) in events.drain(..) {
            mailboxes[&key]
                .send(event)
                .expect("a test that still listens");
        }
    }
}

/// All events of one job.
struct Answer {
    tokens: Vec<String>,
    outcome: Result<Done, Failed>,
}

impl Host {
    fn start(parallel: u32, context: u32) -> Host {
        Host::start_with(settings(parallel, context))
    }

    fn start_with(settings: Settings) -> Host {
        Host::start_with_model(settings, model_path())
    }

    fn start_with_model(settings: Settings, path: PathBuf) -> Host {
        let mailboxes = Arc::new(Mailboxes::default());
        let obtain = Box::new(|_: &dyn Fn() -> bool| Ok(path.into()));
        let engine = llama::start(settings, obtain, mailboxes.clone(), workers()).unwrap();
        let host = Host { engine, mailboxes };
        host.wait_until(|engine| match engine.state() {
            State::Ready => true,
            State::Loading { .. } | State::Stalled { .. } => false,
            State::Failed(message) => panic!("{message}"),
        });
        host
    }

    fn job(&self, prompt: &str, max_tokens: u32) -> Job {
        let prompt = Prompt::Code {
            language: Some("python"),
            prompt: prompt.to_owned(),
            context: Vec::new(),
        };
        self.job_of(prompt, max_tokens)
    }

    fn job_of(&self, prompt: Prompt, max_tokens: u32) -> Job {
        renewed(&Job {
            key: JobKey {
                reactor: 0,
                connection: Key::new(0, 0),
                request: 0,
            },
            id: GenerationId::FIRST,
            tenant: 1,
            class: Class::Live,
            weight: 1,
            prompt,
            sampling: Sampling::default(),
            max_tokens,
            stop: Vec::new(),
            deadline: Moment::NEVER,
            submitted: Moment::now(),
            cache: CacheMode::Bypass,
            ticket: Arc::new(Ticket::new(0)),
        })
    }

    fn try_submit(&self, job: Job) -> (Receiver<Event>, Result<(), Refused>) {
        let (sender, receiver) = channel();
        self.mailboxes.0.lock().unwrap().insert(job.key, sender);
        (receiver, self.engine.submit(job))
    }

    fn submit(&self, job: Job) -> Receiver<Event> {
        let (receiver, result) = self.try_submit(job);
        result.expect("an engine that takes the job");
        receiver
    }

    fn run(&self, job: Job) -> Answer {
        collect(&self.submit(job))
    }

    fn answer(&self, job: Job) -> Done {
        self.run(job).outcome.expect("an answer")
    }

    fn answers(&self, jobs: Vec<Job>) -> Vec<Done> {
        let receivers: Vec<_> = jobs.into_iter().map(|job| self.submit(job)).collect();
        receivers
            .iter()
            .map(|receiver| collect(receiver).outcome.expect("an answer"))
            .collect()
    }

    fn wait_until(&self, condition: impl Fn(&dyn Engine) -> bool) {
        wait(|| condition(&*self.engine).then_some(()));
    }

    fn wait_until_idle(&self) {
        self.wait_until(|engine| {
            let gauges = engine.gauges();
            gauges.sequences_running == 0 && gauges.queue_depth == 0
        });
    }
}

/// Calls `observe` until it returns a value.
fn wait<T>(mut observe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(observed) = observe() {
            return observed;
        }
        assert!(started.elapsed() < PATIENCE, "timed out");
        thread::sleep(Duration::from_millis(1));
    }
}

fn collect(receiver: &Receiver<Event>) -> Answer {
    let mut tokens = Vec::new();
    loop {
        match receiver.recv_timeout(PATIENCE).expect("an event") {
            Event::Served(served) => panic!("{served:?}"),
            Event::Token { text } => tokens.push(text),
            Event::Done(done) => {
                return Answer {
                    tokens,
                    outcome: Ok(*done),
                };
            }
            Event::Failed(failed) => {
                return Answer {
                    tokens,
                    outcome: Err(*failed),
                };
            }
        }
    }
}

/// Returns the same job as a new request.
fn renewed(job: &Job) -> Job {
    static REQUESTS: Mutex<u32> = Mutex::new(0);
    let mut request = REQUESTS.lock().unwrap();
    *request += 1;
    Job {
        key: JobKey {
            request: *request,
            ..job.key
        },
        submitted: Moment::now(),
        ticket: Arc::new(Ticket::new(0)),
        ..job.clone()
    }
}

fn settings(parallel: u32, context: u32) -> Settings {
    Settings {
        id: "smollm2-135m-instruct".to_owned(),
        family: None,
        parallel,
        threads: 0,
        context,
        kv_type: None,
        queue: 256,
        prompt_budget: Duration::from_millis(250),
        is_reproducible: false,
        gpu_layers: 0,
        stall_timeout: Duration::from_secs(30),
        prefixes: None,
        own_words: None,
    }
}

fn model_path() -> PathBuf {
    common::model::path().to_owned()
}

fn question(index: usize) -> String {
    const TASKS: [&str; 8] = [
        "reverse a string",
        "sum of a list of numbers",
        "check whether a number is prime",
        "读取文件的每一行",
        "binary search in a sorted list",
        "count the words of a text",
        "计算斐波那契数列",
        "merge two sorted lists",
    ];
    format!(
        "{} (variant {})",
        TASKS[index % TASKS.len()],
        index / TASKS.len()
    )
}

fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// Returns text of about this many tokens.
fn long_text(tokens: usize) -> String {
    const WORDS: [&str; 8] = [
        "time", "water", "house", "people", "place", "work", "day", "world",
    ];
    let words: Vec<&str> = (0..tokens)
        .map(|index| WORDS[(index * 3 + index / 5) % 8])
        .collect();
    words.join(" ")
}

fn tokens_of(answers: &[Done]) -> u64 {
    answers
        .iter()
        .map(|done| u64::from(done.usage.completion_tokens))
        .sum()
}

fn assert_parses(program: &str) {
    let mut python = Command::new("python3")
        .args(["-c", "import ast, sys; ast.parse(sys.stdin.read())"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("python3");
    python
        .stdin
        .take()
        .unwrap()
        .write_all(program.as_bytes())
        .unwrap();
    assert!(python.wait().unwrap().success(), "not Python:\n{program}");
}
