//! The way of generation records to the store's thread.
//!
//! Owns a bounded channel. A reactor pushes one pointer and goes on: it neither waits nor wakes a
//! thread, because the store's thread looks here several times in a second. A record that finds no
//! place is dropped and counted.
//!
//! Invariant: the records in the channel hold at most `RECORDS_BYTES_MAX` of text together, and one
//! record more.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::interface::generations::GenerationRecord;
use crate::limits::store as limits;

/// See the file's head.
pub struct Records {
    sender: Sender<Box<GenerationRecord>>,
    receiver: Receiver<Box<GenerationRecord>>,
    /// Of the text in the channel.
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

impl Default for Records {
    fn default() -> Records {
        Records::new(limits::RECORDS_MAX)
    }
}

impl Records {
    pub fn new(most: usize) -> Records {
        let (sender, receiver) = bounded(most);
        Records {
            sender,
            receiver,
            bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Passes a record on, or drops it if there is no place.
    pub fn push(&self, record: Box<GenerationRecord>) {
        let bytes = record.bytes();
        // Most records have no text, and touch no shared number.
        if bytes > 0 && self.bytes.fetch_add(bytes, Ordering::Relaxed) > limits::RECORDS_BYTES_MAX {
            return self.drop_one(bytes);
        }
        match self.sender.try_send(record) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.drop_one(bytes),
        }
    }

    fn drop_one(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves waiting records to `taken`, until that has `most`, or `bytes_max` of text.
    pub fn take(&self, taken: &mut Vec<Box<GenerationRecord>>, most: usize, bytes_max: usize) {
        let mut bytes: usize = taken.iter().map(|record| record.bytes()).sum();
        while taken.len() < most && bytes < bytes_max {
            let Ok(mut record) = self.receiver.try_recv() else {
                return;
            };
            bytes += record.bytes();
            self.bytes.fetch_sub(record.bytes(), Ordering::Relaxed);
            record.seal();
            taken.push(record);
        }
    }

    /// Counts records that were lost on the other side.
    pub fn count_lost(&self, records: usize) {
        self.dropped.fetch_add(records as u64, Ordering::Relaxed);
    }

    pub fn waiting(&self) -> usize {
        self.receiver.len()
    }

    /// Returns how many records were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}
