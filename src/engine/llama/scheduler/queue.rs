//! The jobs that wait for a sequence: a line for each tenant and class, served by tokens.
//!
//! Owns the lines and the account of each. Pure: knows no clock, no backend, and nothing of a job
//! but its place. A *level* is the number of tokens that were computed for a line, divided by its
//! weight. The line with the lowest level goes next, so tokens divide by weight, however long the
//! jobs are.
//!
//! This is fair queueing in the form that suits work whose length shows only at its end. Deficit
//! round robin would hand out a quantum and wait until it is spent; a level is the same deficit
//! against all other lines at once, so it also decides which running job yields its sequence. The
//! method is known as a virtual token counter (Sheng and others, "Fairness in Serving Large
//! Language Models", OSDI 2024).
//!
//! ```text
//!   push ──> waiting ── pop, seat ──> running: charge, charge, ... ── unseat ──> gone, or put_back
//! ```
//!
//! * A job that gets a sequence reserves tokens: otherwise the lowest line would get all sequences
//!   that are free at one moment. Tokens that are computed replace reserved ones; [`Queue::unseat`]
//!   returns the rest.
//! * A line that was at rest begins at the level of the lowest active line of its class: time
//!   without work earns no credit. A line that is ahead of the others stays so if it rests.
//! * Once all lines of a class rest, their levels are forgotten: no job had to wait.
//!
//! Each operation takes O(log n). Invariants:
//!  1. The jobs of a line leave in their order of arrival; one that is put back keeps its place.
//!  2. The base of a class never falls, and no active line begins below it.
//!  3. Each index holds exactly the lines that its description names.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::Class;
use crate::limits::engine as limits;

/// Tokens divided by a weight, in units of 1/2^24: a weight of 65,535 is off by 0.4 %, and a line
/// of weight 1 overflows after 10^12 tokens.
pub type Level = u64;

const LEVEL_PER_TOKEN: Level = 1 << 24;

/// A tenant's jobs of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    pub class: Class,
    pub tenant: u64,
}

/// A job's place among all that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

#[derive(Debug)]
pub struct Queue<T> {
    accounts: BTreeMap<Line, Account<T>>,
    /// Every waiting job, so that a sweep can go round.
    places: BTreeMap<Place, Line>,
    /// The lines with waiting jobs, the next one first.
    waiting: BTreeSet<(Class, Level, Place, Line)>,
    /// The lines with jobs that wait or run, by what was computed.
    active: BTreeSet<(Class, Level, Line)>,
    /// The lines without jobs whose level is above the base.
    resting: BTreeSet<(Class, Level, Line)>,
    /// The live lines by the number of jobs that have not begun.
    longest: BTreeSet<(u32, Line)>,
    /// The base of each class: see invariant 2.
    bases: [Level; 2],
    arrived: u64,
    /// The waiting jobs that have begun.
    begun: usize,
    /// Where the next sweep begins.
    swept: Place,
}

#[derive(Debug)]
struct Account<T> {
    weight: u16,
    computed: Level,
    /// Tokens that running jobs have reserved and not computed yet.
    reserved: u64,
    /// Jobs of this line that run.
    seats: u32,
    jobs: BTreeMap<Place, Waiting<T>>,
    /// The jobs among them that have not begun.
    fresh: u32,
}

#[derive(Debug)]
struct Waiting<T> {
    job: T,
    has_begun: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue {
            accounts: BTreeMap::new(),
            places: BTreeMap::new(),
            waiting: BTreeSet::new(),
            active: BTreeSet::new(),
            resting: BTreeSet::new(),
            longest: BTreeSet::new(),
            bases: [0; 2],
            arrived: 0,
            begun: 0,
            swept: Place(0),
        }
    }
}

impl<T> Queue<T> {
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Returns how many of the waiting jobs have begun.
    pub fn begun(&self) -> usize {
        self.begun
    }

    /// Adds a job that has just arrived. Its weight becomes that of the line.
    pub fn push(&mut self, line: Line, weight: u16, job: T) {
        self.arrived += 1;
        let place = Place(self.arrived);
        self.places.insert(place, line);
        self.change(line, |account| {
            account.weight = weight.max(1);
            account.fresh += 1;
            let has_begun = false;
            account.jobs.insert(place, Waiting { job, has_begun });
        });
    }

    /// Returns a job that has begun to its old place.
    pub fn put_back(&mut self, line: Line, weight: u16, place: Place, job: T) {
        self.places.insert(place, line);
        self.begun += 1;
        self.change(line, |account| {
            // The line may have been forgotten meanwhile.
            account.weight = weight.max(1);
            let has_begun = true;
            account.jobs.insert(place, Waiting { job, has_begun });
        });
    }

    /// Yields the lines of a class with waiting jobs, the next one first.
    pub fn lines(&self, class: Class) -> impl Iterator<Item = Line> {
        let first = Line { class, tenant: 0 };
        let from = self.waiting.range((class, 0, Place(0), first)..);
        let of_class = from.take_while(move |entry| entry.0 == class);
        of_class.map(|(_, _, _, line)| *line)
    }

    /// Takes the first job of a line.
    pub fn pop(&mut self, line: Line) -> Option<(Place, T)> {
        let place = *self.accounts.get(&line)?.jobs.first_key_value()?.0;
        self.remove(place).map(|job| (place, job))
    }

    /// Returns the live line with the most jobs that have not begun.
    pub fn longest(&self) -> Option<Line> {
        self.longest.last().map(|(_, line)| *line)
    }

    /// Takes the newest job that has not begun from the live line with the most of them.
    pub fn pop_newest_of_longest(&mut self) -> Option<T> {
        let (_, line) = *self.longest.last()?;
        let jobs = self.accounts.get(&line)?.jobs.iter().rev();
        let newest = jobs.filter(|(_, waiting)| !waiting.has_begun);
        let place = newest.map(|(place, _)| *place).next()?;
        self.remove(place)
    }

    /// Takes the jobs that are over. Looks at no more than `jobs_max`, and begins where the last
    /// sweep ended.
    pub fn sweep(&mut self, jobs_max: usize, is_over: impl Fn(&T) -> bool) -> Vec<T> {
        let after = self.places.range(self.swept..);
        let before = self.places.range(..self.swept);
        let looked_at = after.chain(before).take(jobs_max.min(self.places.len()));
        let mut over = Vec::new();
        let mut end = self.swept;
        for (place, line) in looked_at {
            end = Place(place.0 + 1);
            let account = self.accounts.get(line);
            let waiting = account.and_then(|account| account.jobs.get(place));
            if waiting.is_some_and(|waiting| is_over(&waiting.job)) {
                over.push(*place);
            }
        }
        self.swept = end;
        over.into_iter()
            .filter_map(|place| self.remove(place))
            .collect()
    }

    /// Yields every waiting job.
    pub fn jobs(&self) -> impl Iterator<Item = &T> {
        let jobs = self
            .accounts
            .values()
            .flat_map(|account| account.jobs.values());
        jobs.map(|waiting| &waiting.job)
    }

    // ---- accounts ------------------------------------------------------------------------------

    /// Returns a line's level with its reservations.
    pub fn level(&self, line: Line) -> Level {
        let account = self.accounts.get(&line);
        account.map_or(self.base(line.class), Account::level)
    }

    /// Returns how many jobs of a line run.
    pub fn seats(&self, line: Line) -> u32 {
        self.accounts.get(&line).map_or(0, |account| account.seats)
    }

    /// A job of the line has got a sequence, and reserves tokens.
    pub fn seat(&mut self, line: Line, reserved: u32) {
        self.change(line, |account| {
            account.seats += 1;
            account.reserved += u64::from(reserved);
        });
    }

    /// Tokens were computed for a job of the line, some of them reserved.
    pub fn charge(&mut self, line: Line, computed: u32, reserved: u32) {
        self.change(line, |account| {
            account.computed += Level::from(computed) * account.per_token();
            account.reserved = account.reserved.saturating_sub(u64::from(reserved));
        });
    }

    /// A job of the line has left its sequence, and does not need the rest of its reservation.
    pub fn unseat(&mut self, line: Line, reserved: u32) {
        self.change(line, |account| {
            account.seats = account.seats.saturating_sub(1);
            account.reserved = account.reserved.saturating_sub(u64::from(reserved));
        });
    }

    // ---- the indexes ---------------------------------------------------------------------------

    fn remove(&mut self, place: Place) -> Option<T> {
        let line = self.places.remove(&place)?;
        let waiting = self.change(line, |account| {
            let waiting = account.jobs.remove(&place)?;
            account.fresh -= u32::from(!waiting.has_begun);
            Some(waiting)
        })?;
        self.begun -= usize::from(waiting.has_begun);
        Some(waiting.job)
    }

    fn base(&self, class: Class) -> Level {
        self.bases[class as usize]
    }

    /// Changes a line's account, and everything that depends on it: the only way to do so.
    fn change<R>(&mut self, line: Line, change: impl FnOnce(&mut Account<T>) -> R) -> R {
        let mut account = match self.accounts.remove(&line) {
            Some(account) => {
                self.leave_indexes(line, &account);
                account
            }
            None => Account::new(self.base(line.class)),
        };
        let result = change(&mut account);
        self.enter_indexes(line, &account);
        self.accounts.insert(line, account);
        self.raise_base(line.class);
        result
    }

    fn leave_indexes(&mut self, line: Line, account: &Account<T>) {
        if let Some(place) = account.first() {
            let entry = (line.class, account.level(), place, line);
            self.waiting.remove(&entry);
        }
        self.longest.remove(&(account.fresh, line));
        let entry = (line.class, account.computed, line);
        self.active.remove(&entry);
        self.resting.remove(&entry);
    }

    fn enter_indexes(&mut self, line: Line, account: &Account<T>) {
        if let Some(place) = account.first() {
            let entry = (line.class, account.level(), place, line);
            self.waiting.insert(entry);
        }
        if account.fresh > 0 && line.class == Class::Live {
            self.longest.insert((account.fresh, line));
        }
        let entry = (line.class, account.computed, line);
        match account.is_active() {
            true => self.active.insert(entry),
            false => self.resting.insert(entry),
        };
    }

    /// Raises a class's base to its lowest active line, and forgets the lines at rest that are not
    /// above it. Of those that are, it remembers a bounded number.
    fn raise_base(&mut self, class: Class) {
        let start = (class, 0, Line { class, tenant: 0 });
        let of_class = |entry: &&(Class, Level, Line)| entry.0 == class;
        let lowest = self.active.range(start..).next().filter(of_class);
        let base = match lowest {
            Some((_, computed, _)) => *computed,
            None => Level::MAX,
        };
        while let Some(entry) = self.resting.range(start..).next().filter(of_class).copied()
            && (entry.1 <= base || self.resting.len() > limits::RESTING_LINES_MAX)
        {
            self.resting.remove(&entry);
            self.accounts.remove(&entry.2);
            if lowest.is_none() {
                self.bases[class as usize] = self.base(class).max(entry.1);
            }
        }
        if base != Level::MAX {
            self.bases[class as usize] = self.base(class).max(base);
        }
    }
}

impl<T> Account<T> {
    fn new(base: Level) -> Account<T> {
        Account {
            weight: 1,
            computed: base,
            reserved: 0,
            seats: 0,
            jobs: BTreeMap::new(),
            fresh: 0,
        }
    }

    fn per_token(&self) -> Level {
        LEVEL_PER_TOKEN / Level::from(self.weight)
    }

    fn level(&self) -> Level {
        self.computed + self.reserved * self.per_token()
    }

    fn is_active(&self) -> bool {
        self.seats > 0 || !self.jobs.is_empty()
    }

    fn first(&self) -> Option<Place> {
        self.jobs.first_key_value().map(|(place, _)| *place)
    }
}

#[cfg(test)]
mod tests;
