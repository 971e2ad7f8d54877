//! The acceptance of the new jobs of a group.
//!
//! A database server is a round trip away, so a group's jobs are accepted together: the store is
//! asked for all that decides about them, the decisions are made here, one after the other, and all
//! new rows are written at once. The number of statements does not depend on that of the jobs.
//!
//! Knows no thread, no clock and no database. Its caller runs it in one transaction.
//!
//! Mutations that the tests catch: `reached` without one of its bounds; `Round::count` left out
//! (`the_jobs_of_a_group_count_against_each_other`); a digest that is not compared; `remembered`
//! that is not kept up to date (`equal_keys_of_idempotency_in_one_group_...`).

use std::collections::{HashMap, HashSet};

use super::error::StoreError;
use super::interface::Store;
use super::interface::jobs::IdempotencyKey;
use crate::jobs::{
    Acceptance, Bound, Bounds, Candidate, JobId, JobRecord, JobTotals, NewJob, RememberedJob,
};
use crate::limits::jobs as limits;

/// Accepts each job unless a bound is reached. Returns the outcomes in the same order.
pub fn accept(
    store: &mut dyn Store,
    candidates: &[&Candidate],
) -> Result<Vec<Acceptance>, StoreError> {
    let mut round = Round::read(store, candidates)?;
    let outcomes: Vec<Acceptance> = candidates.iter().map(|one| round.decide(one)).collect();
    round.write(store)?;
    Ok(outcomes)
}

/// All that the decisions depend on, with what those before have changed.
struct Round<'a> {
    signing: HashSet<String>,
    remembered: HashMap<IdempotencyKey<'a>, RememberedJob>,
    /// The jobs that are remembered, as far as they still exist.
    records: HashMap<JobId, JobRecord>,
    totals: HashMap<&'a str, JobTotals>,
    all: JobTotals,
    new: Vec<&'a NewJob>,
    /// The keys of `remembered` that have changed.
    named: HashSet<IdempotencyKey<'a>>,
}

impl<'a> Round<'a> {
    fn read(store: &mut dyn Store, candidates: &[&'a Candidate]) -> Result<Round<'a>, StoreError> {
        let with_callback = |one: &&&'a Candidate| one.job.callback_url.is_some();
        let signers = distinct(
            candidates
                .iter()
                .filter(with_callback)
                .map(|one| key_of(one)),
        );
        let signing = match &signers[..] {
            [] => Vec::new(),
            signers => store.signing_keys(signers)?,
        };
        let names = distinct(candidates.iter().filter_map(|one| name_of(one)));
        let known = match &names[..] {
            [] => Vec::new(),
            names => store.remembered_jobs(names)?,
        };
        let remembered = names.into_iter().zip(known);
        let remembered: HashMap<_, _> = remembered
            .filter_map(|(name, known)| known.map(|known| (name, known)))
            .collect();
        let ids: Vec<JobId> = remembered.values().map(|known| known.id).collect();
        let records = match &ids[..] {
            [] => Vec::new(),
            ids => store.jobs(ids)?,
        };
        let keys = distinct(candidates.iter().map(|one| key_of(one)));
        let (totals, all) = store.totals_of_keys(&keys)?;
        Ok(Round {
            signing: signing.into_iter().collect(),
            remembered,
            records: records.into_iter().map(|job| (job.id, job)).collect(),
            totals: keys.into_iter().zip(totals).collect(),
            all,
            new: Vec::new(),
            named: HashSet::new(),
        })
    }

    fn decide(&mut self, one: &'a Candidate) -> Acceptance {
        let job = &one.job;
        if job.callback_url.is_some() && !self.signing.contains(&job.key_id) {
            return Acceptance::Unsigned;
        }
        if let Some(name) = name_of(one)
            && let Some(idempotency) = &job.idempotency
            && let Some(known) = self.remembered.get(&name)
            && known.expires_at > job.created_at
            // A key means nothing without its job, such as one that an import has left out.
            && let Some(record) = self.records.get(&known.id)
        {
            return match known.digest == idempotency.digest {
                true => Acceptance::Known(Box::new(record.clone())),
                false => Acceptance::Conflict,
            };
        }
        let own = self.totals.entry(key_of(one)).or_default();
        if let Some(bound) = reached(own, &self.all, job, &one.bounds) {
            return Acceptance::Full(bound);
        }
        self.count(one);
        Acceptance::New(Box::new(JobRecord::of_new(job)))
    }

    /// Lets the decisions about later jobs see this one.
    fn count(&mut self, one: &'a Candidate) {
        let job = &one.job;
        let own = self.totals.entry(key_of(one)).or_default();
        for totals in [own, &mut self.all] {
            totals.queued += 1;
            totals.bytes += job.bytes();
        }
        self.new.push(job);
        if let Some(name) = name_of(one)
            && let Some(idempotency) = &job.idempotency
        {
            let remembered = RememberedJob {
                id: job.id,
                digest: idempotency.digest,
                expires_at: idempotency.expires_at,
            };
            self.remembered.insert(name, remembered);
            self.records.insert(job.id, JobRecord::of_new(job));
            self.named.insert(name);
        }
    }

    fn write(self, store: &mut dyn Store) -> Result<(), StoreError> {
        if !self.new.is_empty() {
            store.insert_jobs(&self.new)?;
        }
        let named = self.named.iter();
        let named: Vec<_> = named
            .filter_map(|name| Some((*name, *self.remembered.get(name)?)))
            .collect();
        match &named[..] {
            [] => Ok(()),
            named => store.remember_jobs(named),
        }
    }
}

/// Returns the bound that another job would exceed.
fn reached(own: &JobTotals, all: &JobTotals, job: &NewJob, bounds: &Bounds) -> Option<Bound> {
    let bytes = job.bytes();
    if own.unfinished() >= bounds.jobs_of_key {
        return Some(Bound::JobsOfKey);
    }
    if own.bytes + bytes > bounds.bytes / limits::KEY_BYTES_DIVISOR {
        return Some(Bound::BytesOfKey);
    }
    if all.unfinished() >= bounds.jobs {
        return Some(Bound::Jobs);
    }
    (all.bytes + bytes > bounds.bytes).then_some(Bound::Bytes)
}

fn key_of(one: &Candidate) -> &str {
    &one.job.key_id
}

fn name_of(one: &Candidate) -> Option<IdempotencyKey<'_>> {
    let idempotency = one.job.idempotency.as_ref()?;
    Some((key_of(one), &idempotency.key))
}

/// Returns each value once, in their order: so groups ask for the same rows in the same order.
fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values.dedup();
    values
}

#[cfg(test)]
mod tests;
