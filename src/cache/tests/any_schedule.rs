//! Any schedule of joins, leaves, tokens, credit, deadlines and ends, and of deeds of another
//! thread while events are on their way.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Action {
    Submit {
        prompt: usize,
        tenant: u64,
        /// `None`: in one piece.
        credit: Option<u32>,
        mode: CacheMode,
        patience: u32,
    },
    Token {
        job: usize,
        bytes: usize,
    },
    Done {
        job: usize,
    },
    Fail {
        job: usize,
    },
    Leave {
        request: usize,
    },
    Grant {
        request: usize,
        events: u32,
    },
    /// The clock goes on, and the deadlines that pass are reported.
    Wait {
        seconds: u32,
    },
    /// Another thread does something in the middle of the next delivery.
    Meanwhile(Deed),
}

#[derive(Clone, Debug)]
enum Deed {
    Token { job: usize, bytes: usize },
    Done { job: usize },
    Grant { request: usize, events: u32 },
}

fn action() -> impl Strategy<Value = Action> {
    let mode = prop_oneof![
        6 => Just(CacheMode::Use),
        1 => Just(CacheMode::Refresh),
        1 => Just(CacheMode::Bypass),
    ];
    let submit = (
        0..2_usize,
        1..3_u64,
        prop::option::of(1..4_u32),
        mode,
        1..20_u32,
    );
    let submit = submit.prop_map(|(prompt, tenant, credit, mode, patience)| Action::Submit {
        prompt,
        tenant,
        credit,
        mode,
        patience,
    });
    let grant = (0..40_usize, 1..4_u32);
    let grant = grant.prop_map(|(request, events)| Action::Grant { request, events });
    let deed = prop_oneof![
        3 => (0..4_usize, 0..5_000_usize).prop_map(|(job, bytes)| Deed::Token { job, bytes }),
        1 => (0..4_usize).prop_map(|job| Deed::Done { job }),
        2 => (0..40_usize, 1..4_u32).prop_map(|(request, events)| Deed::Grant { request, events }),
    ];
    prop_oneof![
        4 => deed.prop_map(Action::Meanwhile),
        6 => submit,
        6 => (0..4_usize, 0..5_000_usize).prop_map(|(job, bytes)| Action::Token { job, bytes }),
        2 => (0..4_usize).prop_map(|job| Action::Done { job }),
        1 => (0..4_usize).prop_map(|job| Action::Fail { job }),
        2 => (0..40_usize).prop_map(|request| Action::Leave { request }),
        4 => grant,
        1 => (1..10_u32).prop_map(|seconds| Action::Wait { seconds }),
    ]
}

/// The world around the cache: the requests, the engine's jobs, and what both know.
struct World {
    bench: Bench,
    now: Moment,
    requests: Vec<Request>,
    /// The jobs that the engine behind has not ended, and what each has written.
    running: Vec<(Job, String)>,
    taken: usize,
    /// All that a generation has written, by its request.
    written: HashMap<u32, String>,
    /// What the engine has done in the middle of a delivery.
    done_meanwhile: Arc<Mutex<Vec<(JobKey, Event)>>>,
}

struct Request {
    job: Job,
    text: String,
    end: Option<Event>,
    is_told: bool,
}

impl World {
    fn new() -> World {
        World {
            bench: Bench::new(),
            now: Moment::ZERO,
            requests: Vec::new(),
            running: Vec::new(),
            taken: 0,
            written: HashMap::new(),
            done_meanwhile: Arc::default(),
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Submit {
                prompt,
                tenant,
                credit,
                mode,
                patience,
            } => self.submit(["x", "y"][*prompt], *tenant, *credit, *mode, *patience),
            Action::Token { job, bytes } => {
                // A job that passes through has credit of its own. One of a flight may have none.
                if let Some((job, text)) = self.running.get_mut(*job)
                    && (job.key.reactor != FLIGHTS || job.ticket.take_credit())
                {
                    // Two bytes each, so that pieces may be cut within a character.
                    let more = "é".repeat(bytes / 2);
                    text.push_str(&more);
                    if job.key.reactor == FLIGHTS {
                        self.bench.token(job, &more);
                    }
                }
            }
            Action::Done { job } => self.end(*job, true),
            Action::Fail { job } => self.end(*job, false),
            Action::Leave { request } => {
                if let Some(request) = self.requests.get(*request)
                    && request.end.is_none()
                {
                    self.bench.leave(&request.job);
                }
            }
            Action::Grant { request, events } => {
                if let Some(request) = self.requests.get(*request)
                    && request.job.ticket.is_streamed()
                    && request.job.ticket.grant(*events)
                {
                    self.bench.cached.handle_credit(request.job.key);
                }
            }
            Action::Wait { seconds } => self.wait(*seconds),
            Action::Meanwhile(deed) => self.prepare(deed),
        }
        self.look();
    }

    /// Has another thread do something in the middle of the next delivery.
    fn prepare(&self, deed: &Deed) {
        let hook: Hook = match deed {
            Deed::Token { job, bytes } => {
                let text = "ü".repeat(bytes / 2);
                match self.deed_of_engine(*job, Event::Token { text }) {
                    Some(hook) => hook,
                    None => return,
                }
            }
            Deed::Done { job } => match self.deed_of_engine(*job, done("")) {
                Some(hook) => hook,
                None => return,
            },
            Deed::Grant { request, events } => {
                let Some(request) = self.requests.get(*request) else {
                    return;
                };
                let (key, ticket) = (request.job.key, request.job.ticket.clone());
                let (cached, events) = (self.bench.cached.clone(), *events);
                Box::new(move || {
                    if ticket.is_streamed() && ticket.grant(events) {
                        cached.handle_credit(key);
                    }
                })
            }
        };
        *self.bench.mailbox.1.lock().unwrap() = Some(hook);
    }

    /// Only a flight's job: the events of another one pass by.
    fn deed_of_engine(&self, job: usize, event: Event) -> Option<Hook> {
        let (job, _) = self.running.get(job)?;
        let (job, results) = (job.clone(), self.bench.results.clone());
        let log = self.done_meanwhile.clone();
        (job.key.reactor == FLIGHTS).then(|| {
            let hook = move || {
                let may = match &event {
                    Event::Token { .. } => job.ticket.take_credit(),
                    _ => job.ticket.cancelled().is_none(),
                };
                // It may have ended since.
                if may && results.waiting(job.key) != Some(Vec::new()) {
                    log.lock().unwrap().push((job.key, event.clone()));
                    results.deliver_one(job.key, event);
                }
            };
            Box::new(hook) as Hook
        })
    }

    fn submit(
        &mut self,
        prompt: &str,
        tenant: u64,
        credit: Option<u32>,
        cache: CacheMode,
        patience: u32,
    ) {
        let job = Job {
            tenant,
            cache,
            submitted: self.now,
            deadline: self.now + patience * SECOND,
            ..stream(prompt, self.requests.len() as u32, credit.unwrap_or(0))
        };
        self.bench.submit(&job);
        self.requests.push(Request {
            job,
            text: String::new(),
            end: None,
            is_told: false,
        });
    }

    fn end(&mut self, index: usize, is_done: bool) {
        if index >= self.running.len() {
            return;
        }
        let (job, text) = self.running.remove(index);
        let owed = match job.key.reactor {
            FLIGHTS => "",
            _ => text.as_str(),
        };
        if is_done && job.ticket.cancelled().is_none() {
            return self.bench.done(&job, owed);
        }
        let reason = match job.ticket.cancelled() {
            Some(reason) => FailReason::Cancelled(reason),
            None => FailReason::Error(ErrorCode::EngineFailed),
        };
        self.bench.fail(&job, reason, owed);
    }

    fn wait(&mut self, seconds: u32) {
        let before = self.now;
        self.now = self.now + seconds * SECOND;
        self.bench.set_now(self.now);
        for request in &self.requests {
            let deadline = request.job.deadline;
            if request.end.is_none() && before < deadline && deadline <= self.now {
                self.bench.cached.handle_deadline(request.job.key);
            }
        }
        let is_over = |(job, _): &(Job, String)| job.ticket.expire(job.deadline, self.now);
        while let Some(index) = self.running.iter().position(is_over) {
            let (job, _) = self.running.remove(index);
            let reason = FailReason::Error(ErrorCode::GenerationTimeout);
            self.bench.fail(&job, reason, "");
        }
    }

    /// Takes new jobs and events, and checks everything that must hold at any time.
    fn look(&mut self) {
        let jobs = self.bench.jobs();
        self.running.extend(
            jobs[self.taken..]
                .iter()
                .cloned()
                .map(|job| (job, String::new())),
        );
        self.taken = jobs.len();
        for (key, event) in self.done_meanwhile.lock().unwrap().drain(..) {
            let index = self.running.iter().position(|(job, _)| job.key == key);
            // Its deadline may have passed in the same step.
            let Some(index) = index else { continue };
            match event {
                Event::Token { text } => self.running[index].1.push_str(&text),
                _ => {
                    let (job, text) = self.running.remove(index);
                    self.written.insert(name_of(&job), text);
                }
            }
        }
        for request in &mut self.requests {
            for event in self.bench.events(&request.job) {
                assert!(request.end.is_none(), "an event after the end");
                match event {
                    Event::Served(_) => {
                        assert!(!request.is_told && request.text.is_empty());
                        request.is_told = true;
                    }
                    Event::Token { text } => {
                        assert!(request.is_told || request.job.cache == CacheMode::Bypass);
                        assert!(text.len() <= limits::PIECE_BYTES_MAX);
                        request.text.push_str(&text);
                    }
                    end => request.end = Some(end),
                }
            }
        }
        for (job, text) in &self.running {
            if job.key.reactor == FLIGHTS {
                self.written.insert(name_of(job), text.clone());
                let is_wanted = self.bench.results.waiting(job.key) != Some(Vec::new());
                let is_ending = job.ticket.cancelled().is_some() || job.deadline <= self.now;
                assert!(is_wanted || is_ending, "it runs for no client");
            }
        }
        self.bench.results.check_invariants();
    }

    /// Lets everything end, and checks what every request has got.
    fn finish(mut self) {
        while !self.running.is_empty() {
            self.end(0, true);
            self.look();
        }
        for index in 0..self.requests.len() {
            let mut rounds = 0;
            while self.requests[index].end.is_none() {
                self.act(&Action::Grant {
                    request: index,
                    events: 3,
                });
                rounds += 1;
                assert!(rounds < 1_000, "request {index} does not end");
            }
        }
        let texts: Vec<&String> = self.written.values().collect();
        for request in &self.requests {
            if let Some(Event::Done(done)) = &request.end
                && done.served.verdict != Verdict::Bypass
            {
                let text = request.text.clone() + &done.text;
                assert!(
                    text.is_empty() || texts.contains(&&text),
                    "a text of no generation"
                );
                assert!(request.job.cache != CacheMode::Bypass);
                assert!(
                    request.job.cache != CacheMode::Refresh || done.served.verdict != Verdict::Hit
                );
            }
        }
        assert!(self.bench.results.is_empty());
        assert_eq!(self.bench.account.held(), 0);
    }
}

/// Returns a number that a flight's job has to itself.
fn name_of(job: &Job) -> u32 {
    job.key.request << 16 | job.key.connection.index
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_schedule(actions in prop::collection::vec(action(), 0..60)) {
        let mut world = World::new();
        actions.iter().for_each(|action| world.act(action));
        world.finish();
    }
}
