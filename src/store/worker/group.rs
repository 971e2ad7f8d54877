//! A group: the tasks of one transaction.
//!
//! Owns the tasks from the time they are taken until they are finished. Knows no queue and no
//! thread; the invariants are those of [`worker`](super).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::limits::store as limits;
use crate::store::error::StoreError;
use crate::store::interface::Store;
use crate::store::interface::generations::GenerationRecord;
use crate::store::interface::usage::Hits;
use crate::store::task::StoreTask;
use crate::store::upkeep::Upkeep;

/// The rows of a group beside its tasks. They are kept until they are written.
#[derive(Default)]
pub(super) struct Beside {
    #[expect(clippy::vec_box, reason = "they come as pointers, and are not copied")]
    pub records: Vec<Box<GenerationRecord>>,
    pub hits: Hits,
}

impl Beside {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.hits.is_empty()
    }

    /// Returns about what these rows write into the log.
    fn bytes(&self) -> u64 {
        let rows = (self.records.len() + self.hits.len()) as u64;
        let text: u64 = self
            .records
            .iter()
            .map(|record| record.bytes() as u64)
            .sum();
        rows * limits::RECORD_PAGES_BYTES + text
    }

    /// Writes these rows at the beginning of a group: the tasks see them.
    fn write(&self, store: &mut dyn Store) -> Result<(), StoreError> {
        if !self.records.is_empty() {
            store.add_generations(&self.records)?;
        }
        if !self.hits.is_empty() {
            store.add_hits(&self.hits)?;
        }
        Ok(())
    }
}

/// How much a group takes.
pub(super) struct GroupBounds {
    pub time: Duration,
    pub upkeep: Upkeep,
}

/// Returns about what a task writes into the log.
fn task_bytes(task: &dyn StoreTask) -> u64 {
    limits::TASK_PAGES_BYTES + 2 * u64::from(task.bytes())
}

/// The tasks of one transaction, with the failures of single ones.
#[derive(Default)]
pub(super) struct Group {
    tasks: Vec<(Box<dyn StoreTask>, Option<StoreError>)>,
    /// About what they and the records write.
    pub written: u64,
}

impl Group {
    /// Runs tasks in order, and commits. An error means that none of them left anything.
    ///
    /// Tasks come in any order, and so their rows are locked in any order: the server may have to
    /// end one of two transactions that wait for each other. That one has left nothing and holds
    /// nothing any more, so it is run again.
    pub fn run(
        &mut self,
        store: &mut dyn Store,
        beside: &Beside,
        taken: &mut Vec<Box<dyn StoreTask>>,
        bounds: &GroupBounds,
    ) -> Result<(), StoreError> {
        for _ in 1..limits::GROUP_ATTEMPTS_MAX {
            match self.try_run(store, beside, taken, bounds, true) {
                Err(error) if error.is_conflict() => self.give_back(taken),
                committed => return committed,
            }
        }
        self.try_run(store, beside, taken, bounds, false)
    }

    /// Begins once there is room for the first task.
    fn begin(
        &mut self,
        store: &mut dyn Store,
        beside: &Beside,
        first: Option<&dyn StoreTask>,
        bounds: &GroupBounds,
    ) -> Result<(), StoreError> {
        self.written = beside.bytes();
        let least = self.written + first.map_or(0, task_bytes);
        store.make_room(&bounds.upkeep.shares, least)?;
        store.begin()?;
        beside.write(store)
    }

    /// Puts all tasks back, in front of those that have had no turn.
    pub fn give_back(&mut self, taken: &mut Vec<Box<dyn StoreTask>>) {
        let tasks = self.tasks.drain(..).map(|(task, _)| task);
        taken.splice(0..0, tasks);
    }

    /// `may_repeat`: a task that meets a conflict ends the whole transaction, and not only itself.
    fn try_run(
        &mut self,
        store: &mut dyn Store,
        beside: &Beside,
        taken: &mut Vec<Box<dyn StoreTask>>,
        bounds: &GroupBounds,
        may_repeat: bool,
    ) -> Result<(), StoreError> {
        let first = taken.first().map(|task| &**task);
        if let Err(error) = self.begin(store, beside, first, bounds) {
            self.take_all(taken);
            store.roll_back();
            return Err(error);
        }
        let (start, bytes_max) = (Instant::now(), bounds.upkeep.transaction_bytes());
        let mut waiting = std::mem::take(taken).into_iter().peekable();
        while let Some(mut task) = waiting.next_if(|task| self.has_room_for(&**task, bytes_max)) {
            if !task.is_wanted() {
                continue;
            }
            self.written += task_bytes(&*task);
            let ran = store.attempt(&mut |store| {
                let ran = catch_unwind(AssertUnwindSafe(|| task.run(store)));
                ran.unwrap_or(Err(StoreError::Panicked))
            });
            let ran = match ran {
                Ok(Err(conflict)) if may_repeat && conflict.is_conflict() => Err(conflict),
                ran => ran,
            };
            match ran {
                Ok(own) => self.tasks.push((task, own.err())),
                Err(lost) => {
                    self.tasks.push((task, None));
                    self.tasks.extend(waiting.map(|task| (task, None)));
                    store.roll_back();
                    return Err(lost);
                }
            }
            if start.elapsed() >= bounds.time {
                break;
            }
        }
        taken.extend(waiting);
        store.commit().inspect_err(|_| store.roll_back())
    }

    /// A task that is larger than any group is one alone.
    fn has_room_for(&self, task: &dyn StoreTask, bytes_max: u64) -> bool {
        self.tasks.is_empty() || self.written.saturating_add(task_bytes(task)) <= bytes_max
    }

    pub fn take_all(&mut self, taken: &mut Vec<Box<dyn StoreTask>>) {
        self.tasks.extend(taken.drain(..).map(|task| (task, None)));
    }

    pub fn finish(self, committed: Result<(), &StoreError>) {
        for (task, own) in self.tasks {
            let result = match (&committed, &own) {
                (Err(error), _) => Err(*error),
                (Ok(()), Some(error)) => Err(error),
                (Ok(()), None) => Ok(()),
            };
            let finished = catch_unwind(AssertUnwindSafe(|| task.finish(result)));
            if finished.is_err() {
                log::error!("a task of the store panicked, see above; its request fails");
            }
        }
    }
}
