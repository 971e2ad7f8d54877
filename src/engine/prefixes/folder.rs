//! The folder of the files: index, files, and the order in which they change.
//!
//! Owns everything in the folder. The engine's thread and the reactors only look at the index,
//! under a lock that is never held during input or output; one reading and one writing thread do
//! the rest.
//!
//! A write, so that no moment at which the process is killed leaves a file that is not whole:
//!
//! ```text
//!   make room ─> NAME.new ─> write ─> rename to NAME ─> index
//! ```
//!
//! A name is made of the tokens, so a file may come back under the name of one that is about to be
//! removed. `naming` is held while a file gets its name and its place in the index, and while one
//! that has lost its place is removed. A writer, a reader or a worker may wait for it as long as
//! the disk takes for one name; the engine's thread and the reactors never take it.
//!
//! The folder is read when an engine starts, also after a failure of the one before. Meanwhile no
//! file is found and none gets its name, and purges are kept for its end.
//!
//! No step waits for the disk. A loss of power may leave a file that has its name and not all of
//! its contents; its checksums show it, and it is removed like any damaged file.
//!
//! A failure of the disk costs a warning and a count. No copy is taken for some seconds after it.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::copied::{Copied, Token, Wish};
use super::file::{self, Fault, Head};
use super::files::finish_erasures;
use super::index::{self, Entry, Index};
use super::names::{self, Kind, Secret, TenantDigest, UNFINISHED, entries, remove};
use super::origin::Origin;
use super::purges::Purges;
use super::room::Room;
use super::wear::Wear;
use crate::core::Moment;
use crate::limits::prefixes as limits;
use crate::os::file::open_regular;

#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    bytes_max: u64,
    state: Mutex<State>,
    /// See the file's head. Locked before `state`.
    naming: Mutex<()>,
    /// The memory of copies on their way.
    pub(super) room: Room,
    pub(super) counts: Counts,
}

#[derive(Default)]
struct State {
    /// `None` until the folder was read, while it is read again, and while it cannot be used.
    opened: Option<Arc<Opened>>,
    /// Whether this process has read the folder before.
    was_opened: bool,
    index: Index,
    /// Bytes of the file that is being written.
    unfinished_bytes: u64,
    /// Those that came while the folder was not read.
    purges: Purges<u64>,
    /// Forgotten entries whose files still exist.
    forgotten: VecDeque<Arc<Entry>>,
    /// How often entries were forgotten.
    epoch: u64,
    /// The number of the last use.
    uses: u64,
    /// No copy is taken before.
    suspended_until: Moment,
    wear: Wear,
    logged_at: Option<Moment>,
}

/// The things that verify files.
struct Opened {
    secret: Secret,
    origin: Origin,
}

/// Events since the start.
#[derive(Debug, Default)]
pub struct Counts {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub written: AtomicU64,
    pub evicted: AtomicU64,
    pub skipped: AtomicU64,
    damaged: AtomicU64,
    foreign: AtomicU64,
    failed: AtomicU64,
}

/// The numbers of the folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub entries: usize,
    /// On disk.
    pub bytes: u64,
    pub max_bytes: u64,
    /// Memory of copies on their way to the disk or from it.
    pub copies_bytes: usize,
    /// Prompts that went on from a file, and long ones that did not.
    pub hits: u64,
    pub misses: u64,
    pub written: u64,
    /// Files that made room for others.
    pub evicted: u64,
    /// Copies that were not taken or not written, for lack of room.
    pub skipped: u64,
    /// Files that were removed because they were damaged, or not from this engine and tenant.
    pub damaged: u64,
    pub foreign: u64,
    /// Reads and writes that failed.
    pub failed: u64,
}

impl Folder {
    /// Makes the folder at `path` known; [`Folder::open`] reads it.
    pub fn new(path: PathBuf, bytes_max: u64) -> Folder {
        Folder {
            path,
            bytes_max,
            state: Mutex::default(),
            naming: Mutex::default(),
            room: Room::new(limits::COPIES_BYTES_MAX),
            counts: Counts::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The index checks itself; a holder that panicked has at worst left a count behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See the file's head.
    fn naming(&self) -> MutexGuard<'_, ()> {
        self.naming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) -> Option<Arc<Opened>> {
        self.lock().opened.clone()
    }

    /// Returns whether the folder was not read again since.
    fn has_opened(&self, opened: &Arc<Opened>) -> bool {
        let now = self.opened();
        now.is_some_and(|now| Arc::ptr_eq(&now, opened))
    }

    // ---- looks at the index: for any thread ----------------------------------------------------

    /// Returns the file from which a prompt of this tenant can go on furthest, and how far. Files
    /// with more than `longest` tokens are left out.
    pub fn find(
        &self,
        tenant: u64,
        prompt: &[Token],
        longest: usize,
    ) -> Option<(Arc<Entry>, usize)> {
        let (_, mut entries) = self.entries_of(tenant)?;
        entries.retain(|entry| entry.tokens.len() <= longest);
        let (entry, tokens) = index::longest(&entries, prompt)?;
        Some((entry.clone(), tokens))
    }

    /// Returns whether a copy of these tokens would be written.
    pub fn wish(&self, tenant: u64, tokens: &[Token], now: Moment) -> Wish {
        let is_suspended = now < self.lock().suspended_until;
        match self.entries_of(tenant) {
            _ if tokens.len() < limits::TOKENS_MIN => Wish::Nothing,
            Some((_, entries)) if !index::is_worth_keeping(&entries, tokens) => Wish::Nothing,
            Some(_) if !is_suspended => Wish::Copy,
            _ => Wish::Later,
        }
    }

    /// Returns whether a tenant has not written too much lately for a copy of `bytes`.
    pub fn may_write(&self, tenant: u64, bytes: usize, now: Moment) -> bool {
        self.lock().wear.allows(tenant, bytes, now)
    }

    /// Counts a copy that is going to be written.
    pub fn note_write(&self, tenant: u64, bytes: usize, now: Moment) {
        self.lock().wear.take(tenant, bytes, now);
    }

    fn entries_of(&self, tenant: u64) -> Option<(TenantDigest, Vec<Arc<Entry>>)> {
        let opened = self.opened()?;
        let tenant = opened.secret.tenant(tenant);
        Some((tenant, self.lock().index.of(tenant)))
    }

    /// Returns a number that is another one after [`Folder::forget`].
    pub fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Never uses a file again that a tenant, or any, has now. Copies on their way are dropped.
    pub fn forget(&self, tenant: Option<u64>) {
        let mut state = self.lock();
        state.epoch += 1;
        let Some(opened) = &state.opened else {
            state.purges.add(tenant);
            return;
        };
        let tenant = tenant.map(|tenant| opened.secret.tenant(tenant));
        let removed = state.index.remove_all(tenant);
        state.forgotten.extend(removed);
    }

    pub fn figures(&self) -> Figures {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        let state = self.lock();
        Figures {
            entries: state.index.count(),
            bytes: state.index.bytes() + state.unfinished_bytes,
            max_bytes: self.bytes_max,
            copies_bytes: self.room.taken(),
            hits: load(&counts.hits),
            misses: load(&counts.misses),
            written: load(&counts.written),
            evicted: load(&counts.evicted),
            skipped: load(&counts.skipped),
            damaged: load(&counts.damaged),
            foreign: load(&counts.foreign),
            failed: load(&counts.failed),
        }
    }

    // ---- the reading thread --------------------------------------------------------------------

    /// Reads the heads of all files, and removes those that this engine cannot use.
    pub fn open(&self, origin: &Origin) -> io::Result<()> {
        let opened = self.begin_open(origin)?;
        let found = self.read_entries(&opened)?;
        self.end_open(opened, found);
        Ok(())
    }

    fn begin_open(&self, origin: &Origin) -> io::Result<Arc<Opened>> {
        let naming = self.naming();
        let mut state = self.lock();
        state.opened = None;
        let was_opened = state.was_opened;
        drop((state, naming));
        let opened = Opened {
            secret: Secret::open(&self.path)?,
            origin: origin.clone(),
        };
        if !was_opened {
            finish_erasures(&self.path)?;
        }
        Ok(Arc::new(opened))
    }

    fn read_entries(&self, opened: &Opened) -> io::Result<Vec<(SystemTime, Entry)>> {
        let mut found = Vec::new();
        for item in entries(&self.path)? {
            let item = item?;
            let name = item.file_name().to_string_lossy().into_owned();
            match names::kind(&name) {
                Kind::Prefix => match self.read_entry(opened, &name) {
                    Ok(entry) => found.push(entry),
                    Err(fault) => self.handle_fault(&name, &fault),
                },
                // A writer that still has it gives it no name.
                Kind::Unfinished => remove(&item.path())?,
                Kind::Erased | Kind::Other => {}
            }
        }
        Ok(found)
    }

    fn end_open(&self, opened: Arc<Opened>, mut found: Vec<(SystemTime, Entry)>) {
        found.sort_by_key(|(modified, _)| *modified);
        let mut state = self.lock();
        let purges = std::mem::take(&mut state.purges).with(&opened.secret);
        let forgotten = state.forgotten.iter().map(|entry| entry.name.clone());
        let forgotten: HashSet<String> = forgotten.collect();
        state.index = Index::default();
        for (_, mut entry) in found {
            state.uses += 1;
            entry.used = state.uses;
            if purges.has(entry.tenant) {
                state.forgotten.push_back(Arc::new(entry));
            } else if !forgotten.contains(&entry.name) {
                state.index.insert(entry);
            }
        }
        state.opened = Some(opened);
        state.was_opened = true;
        let (count, bytes) = (state.index.count(), state.index.bytes());
        drop(state);
        log::info!("cache.prefixes: {count} prefixes, {} MiB", bytes >> 20);
        self.free_forgotten();
        // A bound that was lowered.
        self.make_room(TenantDigest([0; 32]), 0);
    }

    fn read_entry(&self, opened: &Opened, name: &str) -> Result<(SystemTime, Entry), Fault> {
        let mut file = open_regular(&self.path.join(name))?;
        let metadata = file.metadata()?;
        let head = Head::read(&mut file, metadata.len(), &opened.secret, &opened.origin)?;
        if opened.secret.name(head.tenant, &head.tokens) != name {
            return Err(Fault::Foreign("it has the name of another prefix"));
        }
        let entry = Entry {
            name: name.to_owned(),
            tenant: head.tenant,
            tokens: head.tokens.into(),
            bytes: metadata.len(),
            used: 0,
        };
        Ok((metadata.modified()?, entry))
    }

    /// Reads and verifies a state. `claim` is called with its bytes, before they take memory. A
    /// file that cannot be used is removed.
    pub fn load<T>(
        &self,
        entry: &Entry,
        claim: &mut dyn FnMut(usize) -> Option<T>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Option<(Vec<u8>, T)> {
        let loaded = self.try_load(entry, claim, is_wanted);
        match loaded {
            Ok(loaded) => {
                let mut state = self.lock();
                state.uses += 1;
                let used = state.uses;
                state.index.note_use(entry.tenant, &entry.name, used);
                Some(loaded)
            }
            Err(fault) => {
                if !matches!(fault, Fault::Cancelled) {
                    let _naming = self.naming();
                    self.lock().index.remove(entry.tenant, &entry.name);
                    self.handle_fault(&entry.name, &fault);
                }
                None
            }
        }
    }

    fn try_load<T>(
        &self,
        entry: &Entry,
        claim: &mut dyn FnMut(usize) -> Option<T>,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<(Vec<u8>, T), Fault> {
        let opened = self.opened().ok_or(Fault::Cancelled)?;
        let mut file = open_regular(&self.path.join(&entry.name))?;
        let file_bytes = file.metadata()?.len();
        let head = Head::read(&mut file, file_bytes, &opened.secret, &opened.origin)?;
        if head.tenant != entry.tenant || head.tokens != *entry.tokens {
            return Err(Fault::Foreign("it holds another prefix"));
        }
        let claimed = claim(head.state_bytes as usize).ok_or(Fault::Cancelled)?;
        let state = head.read_state(&mut file, &opened.secret, is_wanted)?;
        // The order of use survives a restart. A folder that cannot be written loses only that.
        let _ = file.set_modified(SystemTime::now());
        Ok((state, claimed))
    }

    /// Counts a file that cannot be used, and removes it.
    fn handle_fault(&self, name: &str, fault: &Fault) {
        let (count, reason) = match fault {
            Fault::Damaged(reason) => (&self.counts.damaged, *reason),
            Fault::Foreign(reason) => (&self.counts.foreign, *reason),
            // An operator has erased it.
            Fault::Disk(error) if error.kind() == ErrorKind::NotFound => return,
            Fault::Disk(error) => return self.handle_disk_error("read a prefix", error),
            Fault::Cancelled => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
        log::info!("cache.prefixes: a file is removed: {reason}");
        if let Err(error) = remove(&self.path.join(name)) {
            self.handle_disk_error("remove a prefix", &error);
        }
    }

    pub(super) fn handle_disk_error(&self, what: &str, error: &io::Error) {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        let now = Moment::now();
        let mut state = self.lock();
        let is_due = |at: Moment| now.since(at) >= limits::LOG_INTERVAL;
        if state.logged_at.is_none_or(is_due) {
            state.logged_at = Some(now);
            log::warn!(
                "cache.prefixes: cannot {what} in {}: {error}",
                self.path.display()
            );
        }
    }

    // ---- the writing thread --------------------------------------------------------------------

    /// Writes a copy, if there is room for it. `may_go_on` is called with the bytes of each piece.
    pub fn write(&self, copied: &Copied, may_go_on: &mut dyn FnMut(usize) -> bool) {
        let Some(opened) = self.opened() else { return };
        let tenant = opened.secret.tenant(copied.tenant);
        let worth = |state: &State| {
            let entries = state.index.of(tenant);
            state.epoch == copied.epoch && index::is_worth_keeping(&entries, &copied.tokens)
        };
        if !worth(&self.lock()) {
            return;
        }
        let tokens = copied.tokens.clone();
        let head = Head::new(&opened.secret, tenant, tokens, &copied.state);
        let bytes = head.file_bytes(&opened.origin);
        if bytes > self.bytes_max {
            self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !self.make_room(tenant, bytes) {
            self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.lock().unfinished_bytes = bytes;
        let written = self.write_file(&opened, &head, copied, may_go_on);
        self.lock().unfinished_bytes = 0;
        match written {
            Ok(()) => {}
            Err(Fault::Disk(error)) => {
                self.lock().suspended_until = Moment::now() + limits::WRITE_RETRY_PAUSE;
                self.handle_disk_error("write a prefix", &error);
            }
            Err(_) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn write_file(
        &self,
        opened: &Arc<Opened>,
        head: &Head,
        copied: &Copied,
        may_go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), Fault> {
        let name = opened.secret.name(head.tenant, &head.tokens);
        let (path, mark) = (self.path.join(&name), self.path.join(head.tenant.erased()));
        let unfinished = self.path.join(format!("{name}{UNFINISHED}"));
        let written = || {
            let mut file = names::create(&unfinished)?;
            let encoded = head.encode(&opened.secret, &opened.origin);
            file::write(&mut file, &encoded, &copied.state, may_go_on)?;
            let naming = self.naming();
            if !self.has_opened(opened) {
                return Err(Fault::Cancelled);
            }
            fs::rename(&unfinished, &path)?;
            Ok(naming)
        };
        let written: Result<_, Fault> = { written }();
        let _naming = match written {
            Ok(naming) => naming,
            Err(fault) => {
                let _ = remove(&unfinished);
                return Err(fault);
            }
        };
        if mark.exists() {
            remove(&path)?;
            return Err(Fault::Cancelled);
        }
        let mut state = self.lock();
        if state.epoch != copied.epoch {
            drop(state);
            remove(&path)?;
            return Err(Fault::Cancelled);
        }
        state.unfinished_bytes = 0;
        state.forgotten.retain(|entry| entry.name != name);
        let entries = state.index.of(head.tenant);
        let superseded: Vec<_> = index::superseded(&entries, &head.tokens).cloned().collect();
        for entry in &superseded {
            state.index.remove(entry.tenant, &entry.name);
        }
        state.uses += 1;
        let used = state.uses;
        state.index.insert(Entry {
            name,
            tenant: head.tenant,
            tokens: head.tokens.clone().into(),
            bytes: head.file_bytes(&opened.origin),
            used,
        });
        drop(state);
        self.counts.written.fetch_add(1, Ordering::Relaxed);
        for entry in superseded {
            remove(&self.path.join(&entry.name))?;
        }
        Ok(())
    }

    /// Removes files until there is room for `bytes` of a tenant. Returns whether there is.
    fn make_room(&self, tenant: TenantDigest, bytes: u64) -> bool {
        if !self.lock().has_room(bytes, self.bytes_max) {
            // No worker may have had time for them.
            self.free_forgotten();
        }
        loop {
            let _naming = self.naming();
            let mut state = self.lock();
            if state.has_room(bytes, self.bytes_max) {
                return true;
            }
            let Some(entry) = state.index.remove_next(tenant, bytes) else {
                return false;
            };
            drop(state);
            self.counts.evicted.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = remove(&self.path.join(&entry.name)) {
                self.handle_disk_error("remove a prefix", &error);
            }
        }
    }

    /// Removes the files of forgotten entries.
    pub fn free_forgotten(&self) {
        let state = self.lock();
        let unread = state.opened.is_none().then(|| state.purges.clone());
        let count = state.forgotten.len();
        drop(state);
        if let Some(purges) = unread {
            if let Err(error) = self.free_unread(&purges) {
                self.handle_disk_error("remove a prefix", &error);
            }
            return;
        }
        for _ in 0..count {
            let _naming = self.naming();
            let Some(entry) = self.lock().forgotten.pop_front() else {
                return;
            };
            if let Err(error) = remove(&self.path.join(&entry.name)) {
                self.handle_disk_error("remove a prefix", &error);
                // It must not be read again.
                self.lock().forgotten.push_back(entry);
            }
        }
    }

    /// Removes purged files that were not read: perhaps this process never does.
    fn free_unread(&self, purges: &Purges<u64>) -> io::Result<()> {
        let Some(secret) = Secret::read(&self.path)? else {
            return Ok(());
        };
        let purges = purges.with(&secret);
        for item in entries(&self.path)? {
            let item = item?;
            let _naming = self.naming();
            if self.opened().is_some() {
                // `end_open` has applied them, and newer files may have come.
                return Ok(());
            }
            if purges.has_file(&item.file_name().to_string_lossy()) {
                remove(&item.path())?;
            }
        }
        Ok(())
    }
}

impl State {
    /// Returns whether another file of `bytes` stays within the bounds.
    fn has_room(&self, bytes: u64, bytes_max: u64) -> bool {
        let forgotten: u64 = self.forgotten.iter().map(|entry| entry.bytes).sum();
        self.index.bytes() + forgotten + bytes <= bytes_max
            && self.index.count() + self.forgotten.len() < limits::FILES_MAX
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
