//! Workers that do their tasks when the dice decide: late, in another order, after their client has
//! left, or not at all, as if the task had panicked.
//!
//! Mutations that the seeds catch: a task without an answer in its drop (a client waits for ever);
//! `is_last` that is false for a body that was read (a reset stream stays among the orphans);
//! `handle_deadline` of a body that is being read without an end.

use std::sync::Arc;

use super::Dice;
use crate::offload::{Task, Workers};

/// See the file's head.
pub struct SimulatedWorkers {
    pub pool: Arc<Workers>,
    /// Tasks that a thread has taken and not run yet.
    held: Vec<Box<dyn Task>>,
}

impl SimulatedWorkers {
    pub fn new() -> SimulatedWorkers {
        SimulatedWorkers::of(Arc::default())
    }

    /// Runs the tasks of another pool, such as the resolver's.
    pub fn of(pool: Arc<Workers>) -> SimulatedWorkers {
        SimulatedWorkers {
            pool,
            held: Vec::new(),
        }
    }

    /// Takes tasks, runs one of those that were taken, or loses it.
    pub fn step(&mut self, dice: &mut Dice) {
        while dice.one_in(2)
            && let Some(task) = self.pool.take_one()
        {
            self.held.push(task);
        }
        if self.held.is_empty() || dice.one_in(2) {
            return;
        }
        let index = dice.below(self.held.len() as u64) as usize;
        let task = self.held.swap_remove(index);
        if task.is_wanted() && !dice.one_in(20) {
            task.run();
        }
    }

    /// Runs everything, as idle threads do. Returns whether there was anything.
    pub fn run_all(&mut self) -> bool {
        let mut has_run = false;
        while self.pool.run_one() {
            has_run = true;
        }
        has_run
    }

    /// Ends the pool as the supervisor does, once all reactors have ended.
    pub fn end(&mut self) {
        for task in self.held.drain(..).filter(|task| task.is_wanted()) {
            task.run();
        }
        self.pool.close();
        assert_eq!(self.pool.figures().waiting, 0);
    }
}
