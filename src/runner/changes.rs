//! Changes of several jobs that are saved together.
//!
//! Owns the lives of jobs between one reading of the store and one writing: each change is a
//! transition of [`Life`], and later changes of the same job see it. So the number of statements
//! depends neither on that of the jobs nor on that of their events. Its caller runs reading and
//! writing in one transaction. Knows no thread, no clock and no database.
//!
//! Mutations that the tests of [`change`](super::change) catch: `write` that appends before it has
//! checked the attempt, or that forgets the life it has changed; a lost job that does not count; an
//! end without its event; a repeated part whose text is appended again, or whose end is refused.

use std::collections::{BTreeMap, HashMap};

use crate::error::ErrorCode;
use crate::jobs::{Ending, EventId, EventKind, Failure, Fenced, JobId, Life, State, TakenBack};
use crate::limits::jobs as limits;
use crate::store::{JobChange, JobEnd, Store, StoreError};

/// The part of an attempt that is to be saved.
///
/// The reply to a commit may be lost, and the part is then saved again, although it may be there.
/// `after` shows that, as long as it is repeated unchanged and no other part comes before it.
#[derive(Clone, Debug)]
pub struct Write {
    pub id: JobId,
    pub attempt: u32,
    /// The sequence number of the attempt's last event before this part.
    pub after: u32,
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

impl Write {
    /// Returns the sequence number behind the text.
    pub fn behind_text(&self) -> u32 {
        self.after.saturating_add(u32::from(!self.text.is_empty()))
    }

    /// Returns whether the part ends its attempt, and the job is as it leaves it.
    fn is_over(&self, life: &Life) -> bool {
        let state = match &self.next {
            Next::Run { .. } => return false,
            Next::Wait { .. } => State::Queued,
            Next::End(ending) => state_of(ending),
            // Often enough, that ends the job.
            Next::Lose if life.state == State::Failed => State::Failed,
            Next::Lose => State::Queued,
        };
        let last = EventId {
            attempt: self.attempt,
            sequence: self
                .behind_text()
                .saturating_add(u32::from(state.is_finished())),
        };
        life.state == state && life.last_event() == last
    }
}

fn state_of(ending: &Ending) -> State {
    match ending {
        Ending::Completed(_) => State::Completed,
        Ending::Failed(_) => State::Failed,
    }
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

    /// Adds a part of an attempt, or what is missing of it.
    pub fn write(&mut self, part: &Write) -> Result<(), Fenced> {
        let (id, attempt) = (part.id, part.attempt);
        let mut life = self.life(id).ok_or(Fenced)?;
        if part.is_over(&life) {
            return Ok(());
        }
        if !life.holds(attempt) {
            return Err(Fenced);
        }
        if life.sequence != part.behind_text() {
            if life.sequence != part.after {
                return Err(Fenced);
            }
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
                life.finish(attempt, state_of(ending))?;
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
