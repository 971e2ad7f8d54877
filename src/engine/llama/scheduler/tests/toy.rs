//! A toy model whose every token is a hash of all tokens before it: one wrong token in a cache, at
//! any place, changes the output. And a host that runs the scheduler over it.

pub use std::collections::HashMap;
pub use std::panic::{AssertUnwindSafe, catch_unwind};
pub use std::sync::Arc;
pub use std::time::Duration;

use std::cell::Cell;
use std::sync::Mutex;

pub use super::super::run::Phase;
pub use super::super::*;
use crate::core::Key;
pub use crate::engine::llama::backend::DecodeError;
use crate::engine::llama::backend::Prepare;
use crate::engine::llama::scheduler::pieces::divided;
use crate::engine::{CacheMode, ContextFile, GenerationId, Prompt};
pub use crate::engine::{Class, Done, Failed, Job, Sampling};
pub use crate::limits::engine as limits;
pub use crate::offload::Ticket;

pub const CONTEXT: usize = 64;
pub const CHUNK: usize = 4;
pub const BATCH: usize = 16;
pub const END: Token = 0;
pub const TOKEN_TIME: Duration = Duration::from_millis(1);

pub struct Toy {
    pub now: Cell<Moment>,
    pub sequences: Vec<Vec<Token>>,
    /// The next token for each entry of the last batch that asked for one.
    pub rows: Vec<Option<Token>>,
    pub computed: usize,
    /// The same by the first token of the sequence.
    pub tally: HashMap<Token, usize>,
    /// Cancels a ticket once this many tokens were computed.
    pub cancel_at: Option<(usize, Arc<Ticket>)>,
    pub fails_next: Option<DecodeError>,
    pub panics_next: bool,
    pub can_be_cut: bool,
    /// The time of a copy, per token.
    pub copy_time: Duration,
    /// A token's effect on the cache depends on its batch's size and its place in it, as with
    /// kernels that round differently for different sizes.
    pub rounds: bool,
}

impl Toy {
    pub fn new(sequences: usize) -> Toy {
        Toy {
            now: Cell::new(Moment::from_micros(1)),
            sequences: vec![Vec::new(); sequences],
            rows: Vec::new(),
            computed: 0,
            tally: HashMap::new(),
            cancel_at: None,
            fails_next: None,
            panics_next: false,
            can_be_cut: true,
            copy_time: Duration::ZERO,
            rounds: false,
        }
    }
}

impl Toy {
    fn pass(&self, copied: usize) {
        self.now.set(self.now() + self.copy_time * copied as u32);
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
            let first = sequence[0];
            self.now.set(self.now() + TOKEN_TIME);
            self.computed += 1;
            *self.tally.entry(first).or_default() += 1;
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
        self.pass(self.sequences[sequence].len());
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
        self.pass(length);
        assert_eq!(self.sequences[sequence].len(), length);
        true
    }
}

/// Returns a letter, or sometimes the end, by FNV-1a over all tokens.
pub fn next_token(tokens: &[Token]) -> Token {
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

pub fn own_words(language: &str) -> String {
    format!("# {language}\n")
}

pub fn prepare(prompt: &Prompt) -> Prepared {
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

pub fn reference(prompt: &str, max_tokens: usize) -> String {
    reference_of(
        &prompt.bytes().map(Token::from).collect::<Vec<_>>(),
        max_tokens,
    )
}

/// Returns a prompt whose output has at least this many tokens.
pub fn talkative(tokens: usize) -> String {
    let prompts = (0..).map(|number| format!("p{number}"));
    let mut long = prompts.filter(|prompt| reference(prompt, tokens).len() == tokens);
    long.next().expect("one in three or so")
}

/// Returns the toy's output when no other job runs.
pub fn reference_of(prompt: &[Token], max_tokens: usize) -> String {
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

/// Every event that was delivered, by the call that delivered it.
#[derive(Default)]
pub struct Mailbox(Mutex<Vec<Vec<(JobKey, Event)>>>);

impl Deliver for Mailbox {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        self.0.lock().unwrap().push(std::mem::take(events));
    }
}

impl Mailbox {
    /// Returns how many times events were delivered.
    pub fn posts(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

pub struct Host {
    pub scheduler: Scheduler<Toy>,
    pub mailbox: Arc<Mailbox>,
    pub submitted: u32,
}

impl Host {
    pub fn new(sequences: usize) -> Host {
        let mailbox = Arc::new(Mailbox::default());
        let toy = Toy::new(sequences);
        // Time for a chunk and a bit.
        let budget = TOKEN_TIME * CHUNK as u32 + TOKEN_TIME / 2;
        let mut scheduler = Scheduler::new(toy, budget, false, mailbox.clone(), Arc::default());
        scheduler.budget.bounds = 1..=BATCH;
        let now = scheduler.backend.now();
        scheduler.budget.handle_batch(1, TOKEN_TIME, now);
        scheduler.terms.piece_tokens = CHUNK;
        // The toy's steps are all small.
        scheduler.terms.divide = divided;
        Host {
            scheduler,
            mailbox,
            submitted: 0,
        }
    }

    /// Builds a host over a toy that rounds.
    pub fn rounding(sequences: usize, is_reproducible: bool) -> Host {
        let mut host = Host::new(sequences);
        host.scheduler.backend.rounds = true;
        host.scheduler.terms.is_reproducible = is_reproducible;
        host
    }

    pub fn now(&self) -> Moment {
        self.scheduler.backend.now()
    }

    pub fn job(&self, prompt: &str, max_tokens: u32) -> Job {
        Job {
            key: JobKey {
                reactor: 0,
                connection: Key::new(0, 0),
                request: 0,
            },
            id: GenerationId::FIRST,
            tenant: 1,
            class: Class::Live,
            weight: 1,
            prompt: Prompt::Raw(prompt.to_owned()),
            sampling: Sampling::default(),
            max_tokens,
            stop: Vec::new(),
            deadline: Moment::NEVER,
            submitted: self.now(),
            cache: CacheMode::Bypass,
            ticket: Arc::new(Ticket::new(0)),
        }
    }

    pub fn code(&self, language: &'static str, prompt: &str) -> Job {
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
    pub fn submit(&mut self, mut job: Job) {
        job.key.request = self.submitted;
        self.submitted += 1;
        let prepared = Ok(prepare(&job.prompt));
        let owed = Owed::new(job, None, self.mailbox.clone());
        self.scheduler.admit(owed, prepared);
    }

    pub fn run(&mut self) {
        // Each step does something, so this many are enough for everything.
        for _ in 0..10_000 {
            self.step();
            if self.scheduler.is_idle() {
                return;
            }
        }
        panic!("the scheduler does not come to an end");
    }

    /// Lets the scheduler step, and time pass if nothing can be computed.
    pub fn step(&mut self) {
        self.scheduler.step();
        if let Some(pause) = self.scheduler.pause() {
            let now = &self.scheduler.backend.now;
            now.set(now.get() + pause);
        }
    }

    pub fn phase(&self, slot: usize) -> Option<Phase> {
        self.scheduler.slots[slot].run.as_ref().map(|run| run.phase)
    }

    pub fn events(&self, request: usize) -> Vec<Event> {
        let posts = self.mailbox.0.lock().unwrap();
        let events = posts.iter().flatten();
        let own = events.filter(|(key, _)| key.request as usize == request);
        own.map(|(_, event)| event.clone()).collect()
    }

    pub fn tokens(&self, request: usize) -> Vec<String> {
        let events = self.events(request).into_iter();
        events
            .filter_map(|event| match event {
                Event::Token { text } => Some(text),
                Event::Served(_) | Event::Done(_) | Event::Failed(_) => None,
            })
            .collect()
    }

    pub fn outcome(&self, request: usize) -> Option<Event> {
        outcome_in(&self.mailbox, request)
    }

    pub fn done(&self, request: usize) -> Done {
        match self.outcome(request) {
            Some(Event::Done(done)) => *done,
            other => panic!("request {request} is not done: {other:?}"),
        }
    }

    pub fn failed(&self, request: usize) -> Failed {
        match self.outcome(request) {
            Some(Event::Failed(failed)) => *failed,
            other => panic!("request {request} has not failed: {other:?}"),
        }
    }
}

pub fn outcome_in(mailbox: &Mailbox, request: usize) -> Option<Event> {
    let posts = mailbox.0.lock().unwrap();
    let events = posts.iter().flatten();
    let mut own = events.filter(|(key, _)| key.request as usize == request);
    own.rfind(|(_, event)| event.is_terminal())
        .map(|(_, event)| event.clone())
}
