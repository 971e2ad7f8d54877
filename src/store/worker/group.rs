//! A group: the tasks of one transaction.
//!
//! Owns the tasks from the time they are taken until they are finished. Knows no queue and no
//! thread; the invariants are those of [`worker`](super).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::jobs::Candidate;
use crate::limits::store as limits;
use crate::store::accepting;
use crate::store::error::StoreError;
use crate::store::interface::generations::GenerationRecord;
use crate::store::interface::usage::Hits;
use crate::store::interface::{Store, Work};
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

/// Runs work at a savepoint. Returns its own error; the outer one means that the whole group is
/// lost. `may_repeat`: a conflict is of the second kind.
fn attempt(
    store: &mut dyn Store,
    may_repeat: bool,
    work: Work<'_>,
) -> Result<Result<(), StoreError>, StoreError> {
    let own = store.attempt(&mut |store| {
        let ran = catch_unwind(AssertUnwindSafe(|| work(store)));
        ran.unwrap_or(Err(StoreError::Panicked))
    })?;
    match own {
        Err(conflict) if may_repeat && conflict.is_conflict() => Err(conflict),
        own => Ok(own),
    }
}

/// Locks the jobs that tasks will change, all at once and before new jobs are accepted: each task
/// would lock its own in its turn, and two groups with the same jobs in different orders would wait
/// for each other. A task that is the only one with locks does not need it. If a lock is not to be
/// had in time, the task that needs it will find out.
fn lock_jobs(
    store: &mut dyn Store,
    new: &Tasks,
    others: &Tasks,
    may_repeat: bool,
) -> Result<(), StoreError> {
    let (mut jobs, mut locking) = (Vec::new(), usize::from(!new.is_empty()));
    for task in others {
        let known = jobs.len();
        task.name_jobs(&mut jobs);
        locking += usize::from(jobs.len() > known);
    }
    if jobs.is_empty() || locking < 2 {
        return Ok(());
    }
    if let Err(error) = attempt(store, may_repeat, &mut |store| store.lock_jobs(&jobs))? {
        log::debug!("a group cannot lock its jobs: {error}");
    }
    Ok(())
}

fn accept_all(store: &mut dyn Store, tasks: &mut [Box<dyn StoreTask>]) -> Result<(), StoreError> {
    let candidates: Vec<&Candidate> = tasks.iter_mut().filter_map(|it| it.candidate()).collect();
    let outcomes = accepting::accept(store, &candidates)?;
    for (task, outcome) in tasks.iter_mut().zip(outcomes) {
        task.take_outcome(outcome);
    }
    Ok(())
}

type Tasks = VecDeque<Box<dyn StoreTask>>;

/// A task, and its failure if it failed alone.
type Ran = (Box<dyn StoreTask>, Option<Arc<StoreError>>);

/// The tasks of one transaction.
#[derive(Default)]
pub(super) struct Group {
    tasks: Vec<Ran>,
    /// About what they and the records write.
    pub written: u64,
}

impl Group {
    /// Runs tasks, and commits. An error means that none of them left anything.
    ///
    /// Rows are locked in one order where it is known which they are. Otherwise a server may have
    /// to end one of two transactions that wait for each other. That one has left nothing and holds
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
        let start = Instant::now();
        let (mut jobs, mut others) = self.choose(taken, bounds.upkeep.transaction_bytes());
        let mut ran = lock_jobs(store, &jobs, &others, may_repeat);
        while ran.is_ok() && !(jobs.is_empty() && others.is_empty()) {
            ran = match jobs.is_empty() {
                false => self.accept(store, &mut jobs, &mut others, may_repeat),
                true => self.run_next(store, &mut others, may_repeat),
            };
            if start.elapsed() >= bounds.time {
                break;
            }
        }
        if let Err(lost) = ran {
            let left = jobs.into_iter().chain(others).chain(taken.drain(..));
            self.tasks.extend(left.map(|task| (task, None)));
            store.roll_back();
            return Err(lost);
        }
        taken.splice(0..0, others);
        store.commit().inspect_err(|_| store.roll_back())
    }

    /// Takes the first tasks, as many as there is room for, and divides them: those that have a job
    /// accepted, and others.
    ///
    /// New jobs are no more than one statement takes: with a second one, keys of idempotency would
    /// be locked in any order.
    fn choose(&mut self, taken: &mut Vec<Box<dyn StoreTask>>, bytes_max: u64) -> (Tasks, Tasks) {
        let (mut chosen, mut accepted) = (Vec::new(), 0);
        let mut waiting = std::mem::take(taken).into_iter().peekable();
        let accepted_bytes = |task: &dyn StoreTask| match task.accepts_job() {
            true => task.bytes() as usize,
            false => 0,
        };
        // A task that is larger than any group is one alone.
        while let Some(task) = waiting.next_if(|task| {
            let written = self.written.saturating_add(task_bytes(&**task));
            let accepted = accepted + accepted_bytes(&**task);
            let fits = written <= bytes_max && accepted <= limits::ACCEPTED_BYTES_MAX;
            fits || chosen.is_empty()
        }) {
            if task.is_wanted() {
                self.written += task_bytes(&*task);
                accepted += accepted_bytes(&*task);
                chosen.push(task);
            }
        }
        taken.extend(waiting);
        chosen.into_iter().partition(|task| task.accepts_job())
    }

    fn run_next(
        &mut self,
        store: &mut dyn Store,
        tasks: &mut Tasks,
        may_repeat: bool,
    ) -> Result<(), StoreError> {
        let Some(mut task) = tasks.pop_front() else {
            return Ok(());
        };
        match attempt(store, may_repeat, &mut |store| task.run(store)) {
            Ok(own) => self.tasks.push((task, own.err().map(Arc::new))),
            Err(lost) => {
                self.tasks.push((task, None));
                return Err(lost);
            }
        }
        Ok(())
    }

    /// Accepts the new jobs together. If one of them may have made all fail, they join the other
    /// tasks, which run one by one.
    fn accept(
        &mut self,
        store: &mut dyn Store,
        jobs: &mut Tasks,
        others: &mut Tasks,
        may_repeat: bool,
    ) -> Result<(), StoreError> {
        let mut batch = std::mem::take(jobs);
        let accepted = attempt(store, may_repeat, &mut |store| {
            accept_all(store, batch.make_contiguous())
        });
        match accepted {
            Ok(Err(error)) if batch.len() > 1 && error.may_concern_one() => {
                batch.append(others);
                *others = batch;
            }
            Ok(own) => {
                let error = own.err().map(Arc::new);
                self.tasks
                    .extend(batch.into_iter().map(|task| (task, error.clone())));
            }
            Err(lost) => {
                self.tasks
                    .extend(batch.into_iter().map(|task| (task, None)));
                return Err(lost);
            }
        }
        Ok(())
    }

    pub fn take_all(&mut self, taken: &mut Vec<Box<dyn StoreTask>>) {
        self.tasks.extend(taken.drain(..).map(|task| (task, None)));
    }

    pub fn finish(self, committed: Result<(), &StoreError>) {
        for (task, own) in self.tasks {
            let finished = catch_unwind(AssertUnwindSafe(|| match (&committed, &own) {
                (Err(error), _) => task.lose(error),
                (Ok(()), Some(error)) => task.finish(Err(error)),
                (Ok(()), None) => task.finish(Ok(())),
            }));
            if finished.is_err() {
                log::error!("a task of the store panicked, see above; its request fails");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::store::tests::accept_task;

    struct Other;

    impl StoreTask for Other {
        fn bytes(&self) -> u32 {
            limits::ACCEPTED_BYTES_MAX as u32
        }

        fn run(&mut self, _store: &mut dyn Store) -> Result<(), StoreError> {
            Ok(())
        }

        fn finish(self: Box<Self>, _result: Result<(), &StoreError>) {}
    }

    /// Returns how many new jobs of these sizes, in parts of a statement's bytes, a group takes.
    fn chosen(parts: &[u32]) -> usize {
        let (results, _) = channel();
        let mut tasks: Vec<Box<dyn StoreTask>> = vec![Box::new(Other)];
        for (number, part) in parts.iter().enumerate() {
            let mut task = accept_task(number as u64, "key_a", &results);
            task.bytes = limits::ACCEPTED_BYTES_MAX as u32 / part;
            tasks.push(Box::new(task));
        }
        let (jobs, others) = Group::default().choose(&mut tasks, u64::MAX);
        assert_eq!((others.len(), jobs.len() + tasks.len()), (1, parts.len()));
        jobs.len()
    }

    /// Mutations: `choose` without the bound of one statement, or that counts other tasks as well.
    #[test]
    fn a_group_takes_no_more_new_jobs_than_one_statement() {
        assert_eq!(chosen(&[1]), 1);
        assert_eq!(chosen(&[2, 2, 2]), 2);
        assert_eq!(chosen(&[3, 3, 3, 2]), 3);
    }
}
