//! The interface of a store, whatever database is behind it.
//!
//! Each kind of data has a trait and a file of its own here, and one in the folder of each database
//! that implements it: [`keys`], [`jobs`],
//! [`callbacks`], [`generations`], [`usage`], [`transfer`], [`entries`]. [`Store`] is all of them
//! together.
//!
//! Must never name a database. The threads and the commands know only these traits.

pub mod keys;

pub mod jobs;

pub mod callbacks;

pub mod generations;

pub mod usage;

pub mod transfer;

pub mod entries;

use std::time::Duration;

use super::error::StoreError;
use crate::core::disk_shares::DiskShares;
use callbacks::Callbacks;
use entries::Entries;
use generations::Generations;
use jobs::Jobs;
use keys::Keys;
use transfer::Transfer;
use usage::Usage;

/// An open store. It is one connection, so it must be used from one thread at a time. Each call may
/// wait for a disk, a network or another process's lock, so none may be made on a reactor's thread.
pub trait Store:
    Keys + Jobs + Callbacks + Generations + Usage + Transfer + Entries + Groups + Send
{
    /// Returns a number that changes when another connection has changed the store, even one of
    /// this process.
    fn version(&self) -> Result<i64, StoreError>;

    /// Returns once there is room in the state folder for a transaction that writes about `bytes`,
    /// and keeps the store's files there within their shares. A database server has its own disk.
    fn make_room(&mut self, _shares: &DiskShares, _bytes: u64) -> Result<(), StoreError> {
        Ok(())
    }

    /// Waits up to `patience` for the end of all transactions that have written something so far:
    /// their rows are seen from then on. Returns `false` if one of them still runs, perhaps in
    /// another database of the server. A store with one writer at a time has none here.
    fn await_earlier_writes(&mut self, _patience: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Overwrites what removed rows have left in the store's file. A database server does so in its
    /// own time, and its administrator decides when. Takes as long as writing the whole file.
    fn overwrite_removed(&mut self) -> Result<(), StoreError>;

    /// Returns whether the store must be opened again: its name now means another database, as
    /// after a restored backup, or a later program has changed it so that this one may not work
    /// with it.
    fn is_replaced(&self) -> bool;
}

/// One task's part of a group.
pub type Work<'a> = &'a mut dyn FnMut(&mut dyn Store) -> Result<(), StoreError>;

/// Tasks that share one transaction, and its commit. The writes of the other traits between
/// [`Groups::begin`] and [`Groups::commit`] belong to it.
pub trait Groups {
    fn begin(&mut self) -> Result<(), StoreError>;

    /// Runs one task at a savepoint. The inner error is the task's own: what it wrote is taken
    /// back, and the group goes on. The outer one means that the whole group is lost.
    fn attempt(&mut self, work: Work<'_>) -> Result<Result<(), StoreError>, StoreError>;

    /// Returns once all of it would survive a power cut.
    fn commit(&mut self) -> Result<(), StoreError>;

    /// Takes back all of the group, if it is not lost already.
    fn roll_back(&mut self);
}

/// The findings of a look at a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examination {
    pub version: usize,
    pub min_reader: usize,
    /// The version of this program.
    pub known: usize,
    /// The numbers of keys and of secrets; `None`: the tables cannot be read.
    pub keys: Option<u32>,
    pub secrets: Option<u32>,
    /// The faults, for people.
    pub problems: Vec<String>,
}

impl Examination {
    /// Returns whether this program may work with the store.
    pub fn is_readable(&self) -> bool {
        self.min_reader <= self.known
    }
}
