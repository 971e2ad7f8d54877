//! Requests about jobs that end with the store's reply: a new job, one job, lists, and the end of
//! a job by its client.
//!
//! The body of the response is written on the store's thread, because a job's result may be long.

use std::fmt;

use crate::error::ApiError;
use crate::jobs::{Acceptance, Candidate, JobId, JobRecord, State};
use crate::runner::change;
use crate::runner::{Journal, Note};
use crate::service::asking::unavailable;
use crate::service::call::Call;
use crate::service::desk::Desk;
use crate::service::question::Question;
use crate::service::response::buffer::ResponseBuffer;
use crate::store::{Store, StoreError};

use super::notation::Notation;
use super::object::write_page;
use super::work::{Accept, Accepted, accept, key_id, no_job};

/// The wishes of a client.
pub enum Wish {
    Accept(Box<Accept>),
    Show(JobId),
    Cancel {
        id: JobId,
        now: u64,
        keep_ms: u64,
    },
    List {
        state: Option<State>,
        before: Option<JobId>,
        limit: u32,
    },
}

/// See the file's head.
pub struct JobQuestion {
    wish: Wish,
    notation: Notation,
    /// The id of the caller's key.
    key_id: String,
    journal: Journal,
    /// For the runner, once the result is durable.
    note: Option<Note>,
    found: Result<Body, ApiError>,
}

/// A response, as far as it depends on the store.
struct Body {
    status: u16,
    /// The job that the response is about, for `Location`.
    created: Option<JobId>,
    bytes: Vec<u8>,
}

impl JobQuestion {
    pub fn new(desk: &Desk, call: &Call, wish: Wish) -> JobQuestion {
        JobQuestion {
            wish,
            notation: Notation::of(call),
            key_id: key_id(call),
            journal: desk.parts.jobs.journal.clone(),
            note: None,
            found: Err(unavailable()),
        }
    }

    fn look(&mut self, store: &mut dyn Store) -> Result<Result<Body, ApiError>, StoreError> {
        let (key_id, notation) = (self.key_id.as_str(), self.notation);
        let shown = |job: Option<JobRecord>| {
            let job = job.ok_or_else(no_job)?;
            Ok(Body::of(&job, notation))
        };
        match &mut self.wish {
            Wish::Accept(asked) => {
                let accepted = accept(store, asked, key_id)?;
                let is_new = accepted.as_ref().is_ok_and(|accepted| accepted.is_new);
                self.note = is_new.then(|| asked.note(key_id));
                Ok(accepted.map(|accepted| Body::of_accepted(&accepted, notation)))
            }
            Wish::Show(id) => Ok(shown(store.job(*id)?.filter(|job| job.key_id == key_id))),
            Wish::Cancel { id, now, keep_ms } => {
                let job = change::cancel(store, key_id, *id, *now, *keep_ms)?;
                let is_cancelled = job
                    .as_ref()
                    .is_some_and(|job| job.finished_at == Some(*now));
                self.note = is_cancelled.then_some(Note::Cancelled(*id));
                Ok(shown(job))
            }
            Wish::List {
                state,
                before,
                limit,
            } => {
                let jobs = store.job_page(key_id, *state, *before, *limit)?;
                let is_full = jobs.len() == *limit as usize;
                let last = jobs.last().filter(|_| is_full);
                let last = last.map(|job| job.id.to_string());
                let mut bytes = Vec::new();
                write_page(&mut bytes, &jobs, last.as_deref());
                Ok(Ok(Body {
                    status: 200,
                    created: None,
                    bytes,
                }))
            }
        }
    }
}

impl Body {
    fn of(job: &JobRecord, notation: Notation) -> Body {
        let mut bytes = Vec::new();
        notation.append_job(&mut bytes, job);
        Body {
            status: 200,
            created: None,
            bytes,
        }
    }

    fn of_accepted(accepted: &Accepted, notation: Notation) -> Body {
        Body {
            status: 202,
            created: Some(accepted.job.id),
            ..Body::of(&accepted.job, notation)
        }
    }
}

impl Question for JobQuestion {
    fn ask(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.found = self.look(store)?;
        Ok(())
    }

    fn name_jobs(&self, jobs: &mut Vec<JobId>) {
        if let Wish::Cancel { id, .. } = &self.wish {
            jobs.push(*id);
        }
    }

    fn accepts_job(&self) -> bool {
        matches!(self.wish, Wish::Accept(_))
    }

    fn candidate(&mut self) -> Option<&Candidate> {
        match &mut self.wish {
            Wish::Accept(asked) => Some(asked.candidate(&self.key_id)),
            _ => None,
        }
    }

    fn take_outcome(&mut self, outcome: Acceptance) {
        if let Wish::Accept(asked) = &mut self.wish {
            let accepted = asked.conclude(outcome, &self.key_id);
            let is_new = accepted.as_ref().is_ok_and(|accepted| accepted.is_new);
            self.note = is_new.then(|| asked.note(&self.key_id));
            let notation = self.notation;
            self.found = accepted.map(|accepted| Body::of_accepted(&accepted, notation));
        }
    }

    fn handle_commit(&mut self) {
        if let Some(note) = self.note.take() {
            self.journal.note(note);
        }
    }

    fn outlives_client(&self) -> bool {
        matches!(self.wish, Wish::Accept(_) | Wish::Cancel { .. })
    }

    fn bytes(&self) -> u32 {
        match &self.wish {
            Wish::Accept(asked) => asked.bytes(),
            _ => 0,
        }
    }

    fn write(self: Box<Self>, buffer: &mut ResponseBuffer) -> Result<u16, ApiError> {
        let body = self.found?;
        if let Some(id) = body.created.filter(|_| self.notation == Notation::Json) {
            let location = format!("/api/v1/jobs/{id}");
            buffer.fields.push("location", &location);
        }
        buffer.body = body.bytes;
        Ok(body.status)
    }
}

impl fmt::Debug for JobQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobQuestion")
    }
}
