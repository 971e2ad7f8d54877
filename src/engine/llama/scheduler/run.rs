//! One job while it has a slot: its progress, its text, and its accounts.
//!
//! ```text
//!   Prompt ── the prompt's last token is computed ──> Answer ── end, stop string or bound ──> over
//! ```

use super::super::text::{Stop, Text};
use super::{End, FinishReason, Moment, Owed, Prepared, Timings, Token, Usage};
use crate::engine::Job;

pub struct Run<S> {
    pub owed: Owed,
    pub prompt: Vec<Token>,
    pub sampler: S,
    pub phase: Phase,
    /// The maximum number of output tokens.
    pub max_tokens: u32,
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
    pub usage: Usage,
    pub timings: Timings,
}

impl<S> Run<S> {
    /// `cached` tokens of the prompt are computed already; the context has `room` for the output.
    pub fn new(
        owed: Owed,
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
            owed,
            prompt: prepared.tokens,
            sampler,
            phase: Phase::Prompt,
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

    /// Ends the run, whatever the reason.
    pub fn end_with_text(mut self) -> Ended {
        self.text.finish();
        let submitted = self.owed.job().submitted;
        let (first, last) = self.answered.unwrap_or((self.started, self.started));
        Ended {
            text: self.text.take(),
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
