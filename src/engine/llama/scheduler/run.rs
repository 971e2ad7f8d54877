//! One job while it has a slot: its progress, its text, and its accounts.
//!
//! ```text
//!   Prompt ── the prompt's last token is computed ──> Answer ── end, stop string or bound ──> over
//! ```
//!
//! A job may leave its slot in either phase, and go on later where it was ([`Yielded`]). Its text,
//! its sampler and its accounts stay with it.

use std::time::Duration;

use super::super::text::{Stop, Text};
use super::queue::{Line, Place};
use super::saved::State;
use super::{End, FinishReason, Moment, Owed, Prepared, Timings, Token, Usage};
use crate::engine::Job;

pub struct Run<S> {
    pub owed: Owed,
    pub line: Line,
    pub place: Place,
    /// The tokens to read before the output goes on: the prompt, or, if the job has lost its
    /// sequence, also the output so far.
    pub prompt: Vec<Token>,
    pub sampler: S,
    pub phase: Phase,
    /// The maximum number of output tokens.
    pub max_tokens: u32,
    pub tenure: Tenure,
    /// The steps that have read other prompts since its last piece.
    pub passed: u32,
    /// The prefix that it waits for.
    loading: Option<Loading>,
    pace: Pace,
    /// Tokens that were computed before and are computed again. They are not charged.
    lost: u32,
    /// Tokens of the prompt that were computed for this job.
    read: u32,
    text: Text,
    usage: Usage,
    started: Moment,
    /// When the first and the last token of the output came.
    answered: Option<(Moment, Moment)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The prompt has not been computed to its end yet.
    Prompt,
    /// `next` is part of the output and has not been computed yet.
    Answer { next: Token },
}

/// The time of a job on its present slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tenure {
    pub since: Moment,
    /// Tokens computed since then.
    pub tokens: u32,
    /// Tokens that are reserved in the account of its line.
    pub reserved: u32,
    /// It is a background job that got the slot because it had waited too long.
    pub is_aged: bool,
}

/// A prefix that is being loaded for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loading {
    pub load: u64,
    pub since: Moment,
}

/// Whether the client reads the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Going,
    /// Text waits for credit.
    Starved {
        since: Moment,
    },
    /// The job computes nothing until there is credit.
    Paused,
}

/// A job that has yielded its slot.
pub struct Yielded<S> {
    pub run: Box<Run<S>>,
    /// The tokens of its sequence, and how many of the first tokens are the daemon's own text.
    pub tokens: Vec<Token>,
    pub common: usize,
    /// A copy of the sequence, if there was room for it.
    pub state: Option<State>,
}

/// Whether the output goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Going,
    Finished(FinishReason),
}

/// The rest of a finished run.
pub struct Ended {
    pub owed: Owed,
    /// The text that no event has carried yet.
    pub text: String,
    /// Tokens of the prompt that were computed for it.
    pub read: u32,
    pub usage: Usage,
    pub timings: Timings,
}

impl<S> Run<S> {
    /// `cached` tokens of the prompt are computed already; the context has `room` for the output.
    pub fn new(
        (owed, place): (Owed, Place),
        prepared: Prepared,
        cached: usize,
        room: usize,
        sampler: S,
        now: Moment,
    ) -> Run<S> {
        let job = owed.job();
        let own = prepared.closing.map(|text| Stop {
            text: text.to_owned(),
            is_kept: true,
        });
        let asked = job.stop.iter().chain(&prepared.epilogues);
        let asked = asked.map(|text| Stop {
            text: text.clone(),
            is_kept: false,
        });
        Run {
            max_tokens: job.max_tokens.min(u32::try_from(room).unwrap_or(u32::MAX)),
            text: Text::new(prepared.opening, asked.chain(own).collect()),
            usage: Usage {
                prompt_tokens: prepared.tokens.len() as u32,
                cached_tokens: cached as u32,
                completion_tokens: 0,
            },
            line: line_of(job),
            owed,
            place,
            prompt: prepared.tokens,
            sampler,
            phase: Phase::Prompt,
            tenure: Tenure::default(),
            passed: 0,
            loading: None,
            pace: Pace::Going,
            lost: 0,
            read: 0,
            started: now,
            answered: None,
        }
    }

    pub fn job(&self) -> &Job {
        self.owed.job()
    }

    /// Returns why the job must end now, if there is a reason.
    pub fn end(&self, now: Moment) -> Option<End> {
        self.owed.end(now)
    }

    /// The model has ended its output.
    pub fn handle_end(&mut self, now: Moment) -> Progress {
        self.note_time(now);
        Progress::Finished(FinishReason::Stop)
    }

    /// The output goes on with `token`; `append_piece` appends its bytes.
    pub fn handle_token(
        &mut self,
        token: Token,
        now: Moment,
        append_piece: impl FnOnce(&mut Vec<u8>),
    ) -> Progress {
        self.note_time(now);
        self.phase = Phase::Answer { next: token };
        self.usage.completion_tokens += 1;
        let mut bytes = Vec::new();
        append_piece(&mut bytes);
        if self.text.push(&bytes) {
            Progress::Finished(FinishReason::Stop)
        } else if self.usage.completion_tokens >= self.max_tokens {
            Progress::Finished(FinishReason::Length)
        } else {
            Progress::Going
        }
    }

    /// Returns the text for a token event, if there is some and credit for it. Without credit it
    /// stays, and the following text joins it.
    pub fn poll_text(&mut self) -> Option<String> {
        let may_go = self.text.is_ready() && self.owed.job().ticket.take_credit();
        may_go.then(|| self.text.take())
    }

    /// Returns how many tokens to reserve: those that are still to be read from the `held` ones on,
    /// and an output of at most `share` tokens.
    pub fn expected_tokens(&self, held: usize, share: u32) -> u32 {
        let reading = self.prompt.len().saturating_sub(held) as u32;
        let left = self.max_tokens - self.usage.completion_tokens.min(self.max_tokens);
        reading
            .saturating_sub(self.lost)
            .saturating_add(left.min(share))
    }

    /// Counts computed tokens. Returns how many of them are charged to the job's line, and how many
    /// of those its prompt had: a job that has lost its sequence also reads its output.
    pub fn note_computed(&mut self, tokens: u32) -> (u32, u32) {
        self.tenure.tokens += tokens;
        let again = tokens.min(self.lost);
        self.lost -= again;
        let new = tokens - again;
        if self.phase != Phase::Prompt {
            return (new, 0);
        }
        let unread = self.usage.prompt_tokens - self.usage.cached_tokens - self.read;
        let read = new.min(unread);
        self.read += read;
        (new, read)
    }

    /// Its sequence is lost except for `held` tokens: reads the others again, and then goes on.
    pub fn read_again(&mut self, mut tokens: Vec<Token>, held: usize) {
        self.lost += (tokens.len() - held) as u32;
        if let Phase::Answer { next } = self.phase {
            tokens.push(next);
            self.prompt = tokens;
            self.phase = Phase::Prompt;
        }
    }

    /// Returns whether its prompt can be read on now.
    pub fn reads(&self) -> bool {
        self.phase == Phase::Prompt && !self.is_paused() && !self.is_loading()
    }

    pub fn is_loading(&self) -> bool {
        self.loading.is_some()
    }

    pub fn loading(&self) -> Option<Loading> {
        self.loading
    }

    /// Waits for a prefix: reads nothing of its prompt until it comes.
    pub fn begin_loading(&mut self, loading: Loading) {
        self.loading = Some(loading);
    }

    pub fn end_loading(&mut self) -> Option<Loading> {
        self.loading.take()
    }

    /// Nothing was computed for it yet, and `held` tokens of its prompt are there.
    pub fn note_held(&mut self, held: usize) {
        self.usage.cached_tokens = held as u32;
    }

    pub fn is_paused(&self) -> bool {
        self.pace == Pace::Paused
    }

    /// Follows the client's credit: without any for `patience`, the job pauses. Returns text that
    /// was waiting for credit.
    pub fn pace(&mut self, now: Moment, patience: Duration) -> Option<String> {
        // Only a streamed output that has begun can have a reader that has stopped.
        let is_streaming = self.answered.is_some() && self.owed.job().ticket.is_streamed();
        if !is_streaming || !self.text.is_ready() {
            self.pace = Pace::Going;
            return None;
        }
        let text = self.poll_text();
        self.pace = match (&text, self.pace) {
            (Some(_), _) => Pace::Going,
            (None, Pace::Going) => Pace::Starved { since: now },
            (None, Pace::Starved { since }) if now.since(since) < patience => self.pace,
            (None, _) => Pace::Paused,
        };
        text
    }

    /// Ends the run, whatever the reason.
    pub fn end_with_text(mut self) -> Ended {
        self.text.finish();
        let submitted = self.owed.job().submitted;
        let (first, last) = self.answered.unwrap_or((self.started, self.started));
        Ended {
            text: self.text.take(),
            read: self.read,
            usage: self.usage,
            timings: Timings {
                queue: self.started.since(submitted),
                prefill: first.since(self.started),
                decode: last.since(first),
            },
            owed: self.owed,
        }
    }

    fn note_time(&mut self, now: Moment) {
        let first = self.answered.map_or(now, |(first, _)| first);
        self.answered = Some((first, now));
    }
}

/// Returns the line that a job waits in.
pub fn line_of(job: &Job) -> Line {
    Line {
        class: job.class,
        tenant: job.tenant,
    }
}
