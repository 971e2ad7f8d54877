//! Moves jobs between their lines and the slots, and lets them pause.
//!
//! Owns the moves; [`super::queue`] and [`super::seats`] decide. A job that yields keeps a copy of
//! its sequence if there is room for one, and otherwise reads its tokens again when its turn comes,
//! at no charge to its line. In reproducible mode it does not yield without a copy, because tokens
//! that are read again are rounded differently (invariant 5).
//!
//! ```text
//!             ┌────────────── yield: a lower line waits ─────────────┐
//!             v                                                      │
//!   waiting in its line ── seat ──> slot: computing <── credit ── paused in its slot
//!             ^                                                      │ yield: any job waits
//!             └──────────── credit ── aside <────────────────────────┘
//! ```

use super::super::backend::Backend;
use super::super::owed::Owed;
use super::queue::{Line, Place};
use super::run::{Run, Tenure, Yielded};
use super::seats::{self, Candidate, Seat};
use super::slot::{self, Reuse, Slot, Wanted};
use super::{Prepared, Scheduler, Waiting};
use crate::core::Moment;
use crate::engine::{Class, Event, FailReason, FinishReason};
use crate::error::ErrorCode;
use crate::limits::engine as limits;
use crate::offload::CancelReason;

/// A line that may have a sequence now.
struct Grant {
    line: Line,
    is_aged: bool,
    /// The slot whose job yields to it; `None` if one is free.
    from: Option<usize>,
}

impl<B: Backend> Scheduler<B> {
    /// Removes cancelled and expired jobs: they cost no further token and need no slot to learn
    /// their end. Looks at up to `waiting_max` of those that wait, in turn; all others at once.
    pub(super) fn sweep(&mut self, waiting_max: usize) {
        let now = self.backend.now();
        let is_over = |waiting: &Waiting<B::Sampler>| waiting.owed().end(now).is_some();
        for waiting in self.queue.sweep(waiting_max, is_over) {
            self.end_if_over(waiting, now);
        }
        let aside = std::mem::take(&mut self.aside).into_iter();
        let (over, aside) = aside.partition(|yielded| yielded.run.end(now).is_some());
        self.aside = aside;
        let over: Vec<Yielded<B::Sampler>> = over;
        for yielded in over {
            self.end_if_over(Waiting::Begun(Box::new(yielded)), now);
        }
        for index in 0..self.slots.len() {
            if let Some(end) = self.slots[index].run.as_ref().and_then(|run| run.end(now)) {
                self.fail(index, end.reason(), end.message().to_owned());
            }
        }
    }

    /// Ends a job that is not on a slot, if there is a reason; otherwise returns it.
    fn end_if_over(
        &mut self,
        waiting: Waiting<B::Sampler>,
        now: Moment,
    ) -> Option<Waiting<B::Sampler>> {
        let Some(end) = waiting.owed().end(now) else {
            return Some(waiting);
        };
        self.end_waiting(waiting, end);
        None
    }

    /// Follows the credit of the streams: delivers what waited for it, and returns paused jobs that
    /// have some to their lines.
    pub(super) fn pace(&mut self) {
        let (now, patience) = (self.backend.now(), self.terms.credit_patience);
        for run in self.slots.iter_mut().filter_map(|slot| slot.run.as_mut()) {
            if let Some(text) = run.pace(now, patience) {
                self.events.push((run.job().key, Event::Token { text }));
            }
        }
        for mut yielded in std::mem::take(&mut self.aside) {
            let run = &mut yielded.run;
            if let Some(text) = run.pace(now, patience) {
                self.events.push((run.job().key, Event::Token { text }));
            }
            match yielded.run.is_paused() {
                true => self.aside.push(yielded),
                false => self.put_back(yielded),
            }
        }
    }

    /// Assigns sequences to waiting jobs: the free ones, and a bounded number of those whose job
    /// has to yield.
    pub(super) fn seat(&mut self) {
        let now = self.backend.now();
        self.note_background(now);
        let (before, mut yields) = (self.seated, 0);
        while let Some(grant) = self.next_grant(now, yields < limits::YIELDED_JOBS_PER_STEP_MAX) {
            if let Some(index) = grant.from {
                yields += 1;
                if !self.take_slot(index) {
                    break;
                }
            }
            let Some((place, waiting)) = self.queue.pop(grant.line) else {
                break;
            };
            let Some(waiting) = self.end_if_over(waiting, now) else {
                continue;
            };
            self.seated += 1;
            let tenure = Tenure {
                since: now,
                is_aged: grant.is_aged,
                ..Tenure::default()
            };
            match waiting {
                Waiting::Fresh { owed, prepared } => self.start((*owed, place), prepared, tenure),
                Waiting::Begun(yielded) => self.resume_run(*yielded, tenure),
            }
            if grant.is_aged {
                self.background_since = None;
            }
        }
        self.is_stuck = self.seated == before && !self.queue.is_empty();
    }

    // ---- decisions -----------------------------------------------------------------------------

    /// Notes since when background jobs wait while none of them runs.
    fn note_background(&mut self, now: Moment) {
        let mut runs = self.slots.iter().filter_map(|slot| slot.run.as_ref());
        let is_served = runs.any(|run| run.line.class == Class::Background);
        let waits = self.queue.lines(Class::Background).next().is_some();
        self.background_since = match waits && !is_served {
            true => self.background_since.or(Some(now)),
            false => None,
        };
    }

    /// Returns the line that gets the next sequence: the lowest live one, or else the lowest one of
    /// the background. A background line that has waited too long goes first.
    fn next_grant(&self, now: Moment, may_yield: bool) -> Option<Grant> {
        let is_late = |since: Moment| now.since(since) >= self.terms.background_patience;
        let aged = self.background_since.is_some_and(is_late);
        let aged = self.queue.lines(Class::Background).take(usize::from(aged));
        let lines = [Class::Live, Class::Background].map(|class| self.queue.lines(class));
        let lines = lines.into_iter().flatten().map(|line| (line, false));
        let mut lines = aged.map(|line| (line, true)).chain(lines);
        if self.slots.iter().any(Slot::is_free) {
            let from = None;
            let (line, is_aged) = lines.next()?;
            return Some(Grant {
                line,
                is_aged,
                from,
            });
        }
        if !may_yield || self.queue.is_empty() {
            return None;
        }
        let seats = self.occupied(now);
        // One more than there are slots: at least one of these lines has none.
        let mut lines = lines.take(self.slots.len() + 1);
        lines.find_map(|(line, is_aged)| {
            let candidate = Candidate {
                line,
                level: self.queue.level(line),
                seats: self.queue.seats(line),
                is_aged,
            };
            let from = Some(seats::victim(&seats, candidate, self.terms.share)?);
            Some(Grant {
                line,
                is_aged,
                from,
            })
        })
    }

    fn occupied(&self, now: Moment) -> Vec<Seat> {
        let has_room = self.queue.begun() + self.aside.len() < limits::YIELDED_JOBS_MAX;
        let runs = self.slots.iter().enumerate();
        let runs = runs.filter_map(|(index, slot)| Some((index, slot, slot.run.as_ref()?)));
        // A prefix comes soon, or not at all.
        let runs = runs.filter(|(_, _, run)| !run.is_loading());
        let seats = runs.map(|(index, slot, run)| Seat {
            index,
            line: run.line,
            level: self.queue.level(run.line),
            seats: self.queue.seats(run.line),
            held: now.since(run.tenure.since),
            tokens: run.tenure.tokens,
            lost: match self.saved.has_room(slot.tokens.len()) {
                true => 0,
                false if self.terms.is_reproducible => u32::MAX,
                false => slot.tokens.len() as u32,
            },
            is_paused: run.is_paused(),
            is_aged: run.tenure.is_aged,
        });
        // At the bound only paused jobs yield: the oldest of those aside makes room.
        seats.filter(|seat| has_room || seat.is_paused).collect()
    }

    // ---- moves ---------------------------------------------------------------------------------

    /// Puts a new job on a free slot, reusing as much of its prompt as is already computed.
    fn start(&mut self, (mut owed, place): (Owed, Place), prepared: Prepared, tenure: Tenure) {
        owed.leave_queue();
        let now = self.backend.now();
        let reuse = Reuse::of(self.terms.is_reproducible);
        let wanted = Wanted {
            tenant: owed.job().tenant,
            tokens: &prepared.tokens,
            common: prepared.common,
        };
        // The caller has made sure that a slot is free.
        let Some(index) = slot::choose(&self.slots, wanted, reuse) else {
            return;
        };
        let reusable = self.slots[index].reusable(wanted, reuse);
        self.archive_slot(index, reusable);
        let slot = &mut self.slots[index];
        self.backend.truncate(index, reusable);
        slot.truncate(self.backend.length(index));
        // The last token is always computed again, because its scores are needed.
        if slot.tokens.len() < prepared.common && prepared.common < prepared.tokens.len() {
            let common = &prepared.tokens[..prepared.common];
            if let Some(state) = self.prefixes.find(common) {
                self.restore(index, common, &state);
            }
        }
        let slot = &mut self.slots[index];
        slot.common = prepared.common;
        let held = slot.tokens.len();
        let sampler = self.backend.sampler(&owed.job().sampling, &prepared.tokens);
        let room = self.backend.context_length() - prepared.tokens.len();
        self.gauges.prompt_tokens += held as u64;
        self.gauges.prompt_cached_tokens += held as u64;
        let run = Run::new((owed, place), prepared, held, room, sampler, now);
        let wants_nothing = run.max_tokens == 0;
        self.occupy(index, Box::new(run), tenure);
        match wants_nothing {
            true => self.finish(index, FinishReason::Length),
            false => self.begin_load(index),
        }
    }

    /// Puts a job that has yielded on a free slot.
    fn resume_run(&mut self, yielded: Yielded<B::Sampler>, tenure: Tenure) {
        let Yielded {
            mut run,
            tokens,
            common,
            state,
        } = yielded;
        let wanted = Wanted {
            tenant: run.line.tenant,
            tokens: &tokens,
            common,
        };
        let reuse = Reuse::of(self.terms.is_reproducible);
        let Some(index) = slot::choose(&self.slots, wanted, reuse) else {
            return;
        };
        let reusable = self.slots[index].reusable(wanted, reuse);
        self.archive_slot(index, if state.is_some() { 0 } else { reusable });
        let is_restored = state.is_some_and(|state| self.restore(index, &tokens, state.bytes()));
        let is_lost = !is_restored && self.terms.is_reproducible;
        let slot = &mut self.slots[index];
        if !is_restored {
            let reusable = slot.reusable(wanted, reuse);
            self.backend.truncate(index, reusable);
            slot.truncate(self.backend.length(index));
            run.read_again(tokens, slot.tokens.len());
        }
        slot.common = common;
        self.occupy(index, run, tenure);
        if is_lost {
            let message = "the engine lost the state of this response; send the request again";
            let reason = FailReason::Error(ErrorCode::EngineFailed);
            self.fail(index, reason, message.to_owned());
        }
    }

    fn occupy(&mut self, index: usize, mut run: Box<Run<B::Sampler>>, tenure: Tenure) {
        let slot = &mut self.slots[index];
        slot.tenant = run.line.tenant;
        slot.used = self.seated;
        slot.keep_at = None;
        slot.epoch = self.archive.as_ref().map_or(0, |archive| archive.epoch());
        let reserved = run.expected_tokens(slot.tokens.len(), self.terms.share.tokens);
        self.queue.seat(run.line, reserved);
        run.tenure = Tenure { reserved, ..tenure };
        slot.run = Some(run);
    }

    /// Takes a slot from its job; returns whether it is free now.
    fn take_slot(&mut self, index: usize) -> bool {
        let tokens = self.slots[index].tokens.len();
        let copy = match self.saved.has_room(tokens) {
            true => self.save(index),
            false => None,
        };
        let state = copy.and_then(|copy| self.saved.keep(copy, tokens));
        if state.is_none() && self.terms.is_reproducible {
            return false;
        }
        let Some(run) = self.leave_slot(index) else {
            return true;
        };
        let slot = &self.slots[index];
        let yielded = Yielded {
            run,
            tokens: slot.tokens.clone(),
            common: slot.common,
            state,
        };
        match yielded.run.is_paused() {
            true => self.set_aside(yielded),
            false => self.put_back(yielded),
        }
        true
    }

    fn put_back(&mut self, yielded: Yielded<B::Sampler>) {
        let (line, place) = (yielded.run.line, yielded.run.place);
        let weight = yielded.run.job().weight;
        let waiting = Waiting::Begun(Box::new(yielded));
        self.queue.put_back(line, weight, place, waiting);
    }

    /// Keeps a paused job until its client reads again. Of too many, the one that has been aside
    /// longest ends.
    fn set_aside(&mut self, yielded: Yielded<B::Sampler>) {
        if self.aside.len() >= limits::YIELDED_JOBS_MAX {
            let oldest = self.aside.remove(0);
            oldest.run.job().ticket.cancel(CancelReason::SlowReader);
            let now = self.backend.now();
            self.end_if_over(Waiting::Begun(Box::new(oldest)), now);
        }
        self.aside.push(yielded);
    }
}
