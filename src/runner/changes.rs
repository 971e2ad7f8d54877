//! Changes of several jobs that are saved together.
//!
//! Owns the lives of jobs between one reading of the store and one writing: each change is a
//! transition of [`Life`], and later changes of the same job see it. So the number of statements
//! depends neither on that of the jobs nor on that of their events. Its caller runs reading and
//! writing in one transaction. Knows no thread, no clock and no database.
//!
//! Mutations that the tests of [`change`](super::change) catch: `write` that appends before it has
//! checked the attempt, or that forgets the life it has changed; a lost job that does not count; an
//! end without its event.

use std::collections::{BTreeMap, HashMap};

use crate::error::ErrorCode;
use crate::jobs::{Ending, EventKind, Failure, Fenced, JobId, Life, State, TakenBack};
use crate::limits::jobs as limits;
use crate::store::{JobChange, JobEnd, Store, StoreError};

/// The part of an attempt that is to be saved.
#[derive(Clone, Debug)]
pub struct Write {
    pub id: JobId,
    pub attempt: u32,
    /// The addition to the program since the last part.
    pub text: String,
    pub next: Next,
}

/// How an attempt continues.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// It runs on, with a lease until then.
    Run {
        lease_until: u64,
    },
    End(Box<Ending>),
    /// The job waits again. With `postponed`, the key's jobs wait until then.
    Wait {
        postponed: Option<u64>,
    },
    /// The engine has failed under it: it waits again, but not for ever.
    Lose,
}

/// See the file's head.
pub struct Changes {
    lives: HashMap<JobId, Life>,
    changed: BTreeMap<JobId, JobChange>,
    /// Until when the jobs of these jobs' keys wait.
    postponed: Vec<(JobId, u64)>,
    now: u64,
    /// How long a job is kept after its end.
    keep_ms: u64,
}

impl Changes {
    /// Reads jobs, and locks them. A job that is gone is changed by nothing.
    pub fn read(
        store: &mut dyn Store,
        ids: impl Iterator<Item = JobId>,
        now: u64,
        keep_ms: u64,
    ) -> Result<Changes, StoreError> {
        let ids: Vec<JobId> = ids.collect();
        let lives = match &ids[..] {
            [] => Vec::new(),
            ids => store.job_lives(ids)?,
        };
        Ok(Changes {
            lives: lives.into_iter().collect(),
            changed: BTreeMap::new(),
            postponed: Vec::new(),
            now,
            keep_ms,
        })
    }

    /// Writes all changes.
    pub fn save(self, store: &mut dyn Store) -> Result<(), StoreError> {
        let changed: Vec<JobChange> = self.changed.into_values().collect();
        if !changed.is_empty() {
            store.save_jobs(&changed, self.now)?;
        }
        match &self.postponed[..] {
            [] => Ok(()),
            postponed => store.postpone_jobs(postponed),
        }
    }

    // ---- changes ----

    /// Begins an attempt of a job. Returns whether the job waited.
    pub fn claim(&mut self, id: JobId, lease_until: u64) -> bool {
        let Some(mut life) = self.life(id) else {
            return false;
        };
        let opening = life.claim(lease_until);
        if let Some(opening) = &opening {
            self.note(id, life).push(opening.id, opening.kind, "");
        }
        opening.is_some()
    }

    /// Adds a part of an attempt.
    pub fn write(&mut self, part: &Write) -> Result<(), Fenced> {
        let (id, attempt) = (part.id, part.attempt);
        let mut life = self.life(id).ok_or(Fenced)?;
        if !life.holds(attempt) {
            return Err(Fenced);
        }
        if !part.text.is_empty() {
            let event = life.push_event(attempt)?;
            self.note(id, life)
                .push(event, EventKind::Delta, &part.text);
        }
        match &part.next {
            Next::Run { lease_until } => {
                life.renew(attempt, *lease_until)?;
                self.note(id, life);
            }
            Next::Wait { postponed } => {
                life.release(attempt)?;
                self.note(id, life);
                self.postponed.extend(postponed.map(|until| (id, until)));
            }
            Next::End(ending) => {
                let state = match **ending {
                    Ending::Completed(_) => State::Completed,
                    Ending::Failed(_) => State::Failed,
                };
                life.finish(attempt, state)?;
                self.end(id, life, Some(ending));
            }
            Next::Lose => {
                let taken = life.lose(limits::LOST_ATTEMPTS_MAX);
                self.settle_lost(id, life, taken);
            }
        }
        Ok(())
    }

    /// Returns whether the job was there and not finished.
    pub fn cancel(&mut self, id: JobId) -> bool {
        let Some(mut life) = self.life(id) else {
            return false;
        };
        let is_cancelled = life.cancel().is_some();
        if is_cancelled {
            self.end(id, life, None);
        }
        is_cancelled
    }

    /// Takes back a job whose lease has run out.
    pub fn take_back(&mut self, id: JobId) {
        if let Some(mut life) = self.life(id)
            && let Some(taken) = life.take_back(self.now, limits::LOST_ATTEMPTS_MAX)
        {
            self.settle_lost(id, life, taken);
        }
    }

    /// Ends a job that has waited for too long.
    pub fn expire(&mut self, id: JobId) {
        if let Some(mut life) = self.life(id)
            && life.expire().is_some()
        {
            self.end(id, life, None);
        }
    }

    fn life(&self, id: JobId) -> Option<Life> {
        self.lives.get(&id).copied()
    }

    fn settle_lost(&mut self, id: JobId, life: Life, taken: TakenBack) {
        match taken {
            TakenBack::Queued => {
                self.note(id, life);
            }
            TakenBack::Failed(_) => {
                let failure = Ending::Failed(Failure {
                    code: ErrorCode::EngineFailed.as_str().to_owned(),
                    message: format!("the job was lost {} times while it ran", life.lost),
                });
                self.end(id, life, Some(&failure));
            }
        }
    }

    /// Notes the end of a job with its last event, whose id is the life's.
    fn end(&mut self, id: JobId, life: Life, ending: Option<&Ending>) {
        let (now, keep_ms) = (self.now, self.keep_ms);
        let change = self.note(id, life);
        if let Some(kind) = life.state.last_event() {
            change.push(life.last_event(), kind, "");
        }
        change.end = Some(JobEnd {
            finished_at: now,
            expires_at: now.saturating_add(keep_ms),
            ending: ending.map(Ending::to_json),
        });
    }

    /// Notes the life of a job after a transition.
    fn note(&mut self, id: JobId, life: Life) -> &mut JobChange {
        self.lives.insert(id, life);
        let change = self.changed.entry(id);
        let change = change.or_insert_with(|| JobChange::new(id, life));
        change.life = life;
        change
    }
}
