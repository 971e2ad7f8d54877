//! The engine's way to the folder, and the threads behind it.
//!
//! Owns two threads: one reads, one writes, so that a prompt does not wait behind a write. Copies
//! wait in memory within one bound for both ([`room`]); above it a copy is not taken. The writer
//! keeps to a rate while the daemon serves, and so does each tenant in the long run ([`wear`]).
//!
//! Must never wait on the engine's thread, except in [`Archive::await_room`] and
//! [`Archive::finish`], which the end of the daemon calls.
//!
//! [`room`]: super::room
//! [`wear`]: super::wear

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::copied::{Copied, Token, Wish};
use super::folder::Folder;
use super::index::Entry;
use super::origin::Origin;
use super::room::{Claimed, Room};
use crate::core::Moment;
use crate::limits::prefixes as limits;
use crate::os::process::give_way;

/// Copies of computed prefixes outside of the engine, as the engine's thread uses them.
pub trait Archive {
    /// Returns a number that is another one once copies were forgotten. Sequences that were
    /// computed before must not be kept any more.
    fn epoch(&self) -> u64;

    /// Returns whether [`Archive::keep`] would keep a copy of these tokens.
    fn wish(&self, tenant: u64, tokens: &[Token]) -> Wish;

    /// Keeps a copy, if there is room for it.
    fn keep(&mut self, copied: Copied);

    /// Counts a copy that would have been kept, and is not taken.
    fn skip(&self);

    /// Begins to load the copy from which a prompt can go on furthest, if there is one with at
    /// least [`limits::TOKENS_MIN`] tokens more than the prompt has. Returns the load's number.
    fn begin_load(&mut self, wanted: Wanted<'_>) -> Option<u64>;

    /// Returns a load that has ended.
    fn poll_loaded(&mut self) -> Option<Loaded>;

    /// Reports that a load has ended, and whether its state was used.
    fn end_load(&mut self, load: u64, is_used: bool);

    /// Waits until there is room for a copy of this many tokens, or until `is_over`. Returns
    /// whether there is.
    fn await_room(&self, tokens: usize, is_over: &dyn Fn() -> bool) -> bool;

    /// Waits until all copies are kept, or until `is_over`.
    fn finish(&mut self, is_over: &dyn Fn() -> bool);
}

/// A prompt that may go on from a copy.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub tenant: u64,
    pub prompt: &'a [Token],
    /// How many of its tokens are computed already.
    pub held: usize,
    /// A copy of more tokens would hold other prompts up for too long.
    pub longest: usize,
}

/// A load that has ended.
#[derive(Debug)]
pub struct Loaded {
    pub load: u64,
    /// `None`: no copy can be used.
    pub copy: Option<LoadedCopy>,
}

#[derive(Debug)]
pub struct LoadedCopy {
    pub tokens: Vec<Token>,
    pub state: Vec<u8>,
    /// Keeps the place in memory.
    pub claimed: Option<Claimed>,
}

/// The archive on disk.
pub struct Disk {
    folder: Arc<Folder>,
    /// Bytes of a token in the last copy; 0 before there was one.
    token_bytes: usize,
    /// The loads that the engine waits for.
    wanted: HashMap<u64, Arc<AtomicBool>>,
    last_load: u64,
    flags: Arc<Flags>,
    reader: Option<Reader>,
    writer: Writer,
}

#[derive(Debug, Default)]
struct Flags {
    /// Whether all work must end at once.
    is_stopping: AtomicBool,
    /// Whether no rate is to be kept to any more.
    is_hurrying: AtomicBool,
}

struct Reader {
    loads: Sender<Load>,
    loaded: Receiver<Loaded>,
    ended: Receiver<Infallible>,
}

struct Writer {
    /// `None`: no more copies will come.
    copies: Option<Sender<(Copied, Claimed)>>,
    ended: Receiver<Infallible>,
}

/// An order to the reader.
struct Load {
    number: u64,
    entry: Arc<Entry>,
    is_wanted: Arc<AtomicBool>,
}

impl Disk {
    /// Starts the threads; the reader begins with the files that are there. It calls `wake` after
    /// each load, so that an engine that waits for it looks.
    pub fn start(
        folder: Arc<Folder>,
        origin: Origin,
        wake: Box<dyn Fn() + Send>,
    ) -> io::Result<Disk> {
        let flags = Arc::new(Flags::default());
        Ok(Disk {
            reader: Some(start_reader(&folder, origin, &flags, wake)?),
            writer: start_writer(&folder, &flags)?,
            folder,
            token_bytes: 0,
            wanted: HashMap::new(),
            last_load: 0,
            flags,
        })
    }

    /// Returns whether the daemon ends: copies are kept at any rate then.
    fn is_ending(&self) -> bool {
        self.flags.is_hurrying.load(Ordering::Relaxed)
    }
}

impl Archive for Disk {
    fn epoch(&self) -> u64 {
        self.folder.epoch()
    }

    fn wish(&self, tenant: u64, tokens: &[Token]) -> Wish {
        let (now, bytes) = (Moment::now(), tokens.len() * self.token_bytes);
        match self.folder.wish(tenant, tokens, now) {
            Wish::Copy if !self.folder.room.has(bytes) => Wish::Later,
            Wish::Copy if !self.is_ending() && !self.folder.may_write(tenant, bytes, now) => {
                Wish::Later
            }
            wish => wish,
        }
    }

    fn keep(&mut self, copied: Copied) {
        let bytes = copied.state.len();
        self.token_bytes = bytes.div_ceil(copied.tokens.len().max(1));
        if !self.is_ending() {
            self.folder.note_write(copied.tenant, bytes, Moment::now());
        }
        let claimed = self.folder.room.claim(bytes);
        let (Some(claimed), Some(copies)) = (claimed, &self.writer.copies) else {
            return self.skip();
        };
        if copies.try_send((copied, claimed)).is_err() {
            self.skip();
        }
    }

    fn skip(&self) {
        self.folder.counts.skipped.fetch_add(1, Ordering::Relaxed);
    }

    fn begin_load(&mut self, wanted: Wanted<'_>) -> Option<u64> {
        let least = wanted.held + limits::TOKENS_MIN;
        if wanted.prompt.len() < least {
            return None;
        }
        let found = self
            .folder
            .find(wanted.tenant, wanted.prompt, wanted.longest);
        let found = found.filter(|(_, tokens)| *tokens >= least);
        let load = found.map(|(entry, _)| {
            self.last_load += 1;
            Load {
                number: self.last_load,
                entry,
                is_wanted: Arc::new(AtomicBool::new(true)),
            }
        });
        let (number, is_wanted) = match &load {
            Some(load) => (load.number, load.is_wanted.clone()),
            None => {
                self.folder.counts.misses.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        };
        let reader = self.reader.as_ref()?;
        reader.loads.try_send(load?).ok()?;
        self.wanted.insert(number, is_wanted);
        Some(number)
    }

    fn poll_loaded(&mut self) -> Option<Loaded> {
        let reader = self.reader.as_ref()?;
        let mut loaded = reader.loaded.try_iter();
        loaded.find(|loaded| self.wanted.contains_key(&loaded.load))
    }

    fn end_load(&mut self, load: u64, is_used: bool) {
        if let Some(is_wanted) = self.wanted.remove(&load) {
            is_wanted.store(false, Ordering::Relaxed);
        }
        let counts = &self.folder.counts;
        let count = if is_used {
            &counts.hits
        } else {
            &counts.misses
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn await_room(&self, tokens: usize, is_over: &dyn Fn() -> bool) -> bool {
        let (room, bytes) = (&self.folder.room, tokens * self.token_bytes);
        self.flags.is_hurrying.store(true, Ordering::Relaxed);
        while !is_over() && room.can_have(bytes) {
            if room.has(bytes) {
                return true;
            }
            thread::sleep(limits::ROOM_POLL_INTERVAL);
        }
        false
    }

    fn finish(&mut self, is_over: &dyn Fn() -> bool) {
        self.flags.is_hurrying.store(true, Ordering::Relaxed);
        self.writer.copies = None;
        while !is_over() {
            let waited = self.writer.ended.recv_timeout(limits::ROOM_POLL_INTERVAL);
            if waited == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }
}

impl Disk {
    /// Ends both threads, and waits for them. Returns whether they have ended: one may hang in the
    /// disk.
    pub(super) fn end_within(&mut self, patience: Duration) -> bool {
        self.flags.is_stopping.store(true, Ordering::Relaxed);
        self.writer.copies = None;
        let until = Instant::now() + patience;
        let has_ended = |ended: &Receiver<Infallible>| {
            ended.recv_deadline(until) == Err(RecvTimeoutError::Disconnected)
        };
        let reader = self.reader.take().map(|reader| {
            // The thread waits for orders, or for a place for its last load.
            drop((reader.loads, reader.loaded));
            reader.ended
        });
        has_ended(&self.writer.ended) && reader.is_none_or(|ended| has_ended(&ended))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A piece of a file takes less.
        if !self.end_within(limits::STOP_PATIENCE) {
            log::warn!("cache.prefixes: stopping without waiting for the disk");
        }
    }
}

fn start_reader(
    folder: &Arc<Folder>,
    origin: Origin,
    flags: &Arc<Flags>,
    wake: Box<dyn Fn() + Send>,
) -> io::Result<Reader> {
    let (loads, orders) = bounded::<Load>(limits::LOADED_FILES_MAX);
    // One that the engine has not taken holds the next one up.
    let (sender, loaded) = bounded(1);
    let (ending, ended) = bounded(0);
    let (folder, flags) = (folder.clone(), flags.clone());
    let body = move || {
        let _ending: Sender<Infallible> = ending;
        while let Err(error) = folder.open(&origin) {
            folder.handle_disk_error("open the folder", &error);
            // No load is ordered as long as no file is known.
            let waited = orders.recv_timeout(limits::WRITE_RETRY_PAUSE);
            if !matches!(waited, Err(RecvTimeoutError::Timeout)) {
                return;
            }
        }
        for order in orders {
            let is_stopping = || flags.is_stopping.load(Ordering::Relaxed);
            let is_wanted = || order.is_wanted.load(Ordering::Relaxed) && !is_stopping();
            let mut claim = |bytes| await_claim(&folder.room, bytes, &is_wanted);
            let copy = folder.load(&order.entry, &mut claim, &is_wanted);
            let copy = copy.map(|(state, claimed)| LoadedCopy {
                tokens: order.entry.tokens.to_vec(),
                state,
                claimed: Some(claimed),
            });
            let load = order.number;
            if sender.send(Loaded { load, copy }).is_err() {
                return;
            }
            wake();
        }
    };
    thread::Builder::new()
        .name("prefix-reader".to_owned())
        .spawn(|| {
            give_way();
            body();
        })?;
    Ok(Reader {
        loads,
        loaded,
        ended,
    })
}

/// Waits for room while it is wanted: copies in memory are on their way to the disk.
fn await_claim(room: &Room, bytes: usize, is_wanted: &dyn Fn() -> bool) -> Option<Claimed> {
    while is_wanted() && room.can_have(bytes) {
        if let Some(claimed) = room.claim(bytes) {
            return Some(claimed);
        }
        thread::sleep(limits::ROOM_POLL_INTERVAL);
    }
    None
}

fn start_writer(folder: &Arc<Folder>, flags: &Arc<Flags>) -> io::Result<Writer> {
    let (copies, orders) = bounded::<(Copied, Claimed)>(limits::WAITING_FILES_MAX);
    let (ending, ended) = bounded(0);
    let (folder, flags) = (folder.clone(), flags.clone());
    let body = move || {
        let _ending: Sender<Infallible> = ending;
        for (copied, _claimed) in orders {
            let mut pace = Pace::new();
            let mut may_go_on = |bytes: usize| {
                if !flags.is_hurrying.load(Ordering::Relaxed) {
                    thread::sleep(pace.pause(bytes, Instant::now()));
                }
                !flags.is_stopping.load(Ordering::Relaxed)
            };
            folder.write(&copied, &mut may_go_on);
        }
    };
    thread::Builder::new()
        .name("prefix-writer".to_owned())
        .spawn(|| {
            give_way();
            body();
        })?;
    let copies = Some(copies);
    Ok(Writer { copies, ended })
}

/// Keeps a write to its rate.
struct Pace {
    start: Instant,
    bytes: u64,
}

impl Pace {
    fn new() -> Pace {
        Pace {
            start: Instant::now(),
            bytes: 0,
        }
    }

    /// Returns how long to wait before the next `bytes`.
    fn pause(&mut self, bytes: usize, now: Instant) -> Duration {
        let rate = limits::WRITTEN_BYTES_PER_SECOND as f64;
        let due = self.start + Duration::from_secs_f64(self.bytes as f64 / rate);
        self.bytes += bytes as u64;
        due.saturating_duration_since(now)
    }
}
