//! The computed states of the daemon's own words, on disk: they hold nothing of any client.
//!
//! Owns the folder `own` within the folder of the prefixes, and the thread that writes there. There
//! is a state for each language that was asked for, some 20 tokens with the default model, so a
//! daemon that starts reads all of them before it serves. They have the format of the other files
//! ([`file`]), with the digest of no tenant, and a secret of their own: it is there also without
//! prefixes of tenants.
//!
//! Must never be given a token that came from a request.
//!
//! Invariants:
//!  1. The files have at most [`OwnPlace::bytes_max`] bytes together, the unfinished one included,
//!     and there are at most [`limits::OWN_FILES_MAX`]. Others are not written, and those of a
//!     larger share are removed.
//!  2. After a start, all files are of this engine.
//!  3. One thread uses the folder at a time. An engine that is restarted waits until the writer of
//!     the one before has ended, and keeps no words if that hangs in the disk.
//!
//! A folder that cannot be used costs one line in the log; the words are computed.
//!
//! Mutations that tests catch: files that are not read, a damaged or foreign one that is used or
//! left there, no bound on their number or their bytes, one that leaves out the heads, a file that
//! stays unfinished, an engine that does not wait for the writer before it (below); words that
//! are not handed on, or not taken (`own_words_come_...` in
//! `tests/prefixes.rs`); a share that is not that of the folder (`own_words_stay_...` there).

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::copied::Token;
use super::file::{self, Fault, Head};
use super::names::{self, Kind, Secret, TenantDigest, UNFINISHED, entries, remove};
use super::origin::Origin;
use crate::limits::prefixes as limits;
use crate::os::file::open_regular;
use crate::os::process::give_way;

/// Tokens and the state that was computed from them.
pub type OwnState = (Vec<Token>, Vec<u8>);

/// Where the states are kept, and how much room they have there. Its clones know of each other's
/// writers.
#[derive(Clone, Debug)]
pub struct OwnPlace {
    /// The folder of the prefixes.
    prefixes: PathBuf,
    bytes_max: u64,
    /// Disconnected when the last writer has ended.
    writer_ended: Arc<Mutex<Receiver<Infallible>>>,
}

impl OwnPlace {
    /// `prefixes` is the folder of the prefixes.
    pub fn new(prefixes: PathBuf, bytes_max: u64) -> OwnPlace {
        let (_, ended) = bounded(0);
        OwnPlace {
            prefixes,
            bytes_max,
            writer_ended: Arc::new(Mutex::new(ended)),
        }
    }

    /// Waits until the last writer has ended. The next one must drop the sender when it ends.
    fn follow_writer(&self, patience: Duration) -> io::Result<Sender<Infallible>> {
        let last = self.writer_ended.lock();
        let mut last = last.unwrap_or_else(PoisonError::into_inner);
        if last.recv_timeout(patience) != Err(RecvTimeoutError::Disconnected) {
            let message = "the disk has not taken those of the engine before";
            return Err(io::Error::new(ErrorKind::TimedOut, message));
        }
        let (ending, ended) = bounded(0);
        *last = ended;
        Ok(ending)
    }
}

/// The way of new states to the disk. Once it is dropped, its thread writes what was kept and ends.
#[derive(Debug)]
pub struct OwnWords(Sender<OwnState>);

impl OwnWords {
    /// Reads all states of this engine, and removes other files. Takes as long as the disk does,
    /// but waits for a thread that hangs in it no longer than [`limits::STOP_PATIENCE`].
    pub fn open(place: &OwnPlace, origin: &Origin) -> Option<(OwnWords, Vec<OwnState>)> {
        OwnWords::open_within(place, origin, limits::STOP_PATIENCE)
    }

    fn open_within(
        place: &OwnPlace,
        origin: &Origin,
        patience: Duration,
    ) -> Option<(OwnWords, Vec<OwnState>)> {
        let opened = place.follow_writer(patience).and_then(|ending| {
            let mut store = Store::open(place, origin)?;
            let states = store.read()?;
            let (sender, orders) = bounded::<OwnState>(limits::OWN_FILES_MAX);
            let body = move || {
                let _ending = ending;
                give_way();
                for (tokens, state) in orders {
                    store.write(tokens, &state);
                }
            };
            thread::Builder::new()
                .name("own-words".to_owned())
                .spawn(body)?;
            Ok((OwnWords(sender), states))
        });
        opened
            .inspect_err(|error| {
                let path = place.prefixes.display();
                log::warn!("cannot keep the daemon's own prompts in {path}: {error}");
            })
            .ok()
    }

    /// Writes a state soon. Never waits.
    pub fn keep(&self, tokens: Vec<Token>, state: Vec<u8>) {
        // A full channel: the disk stands still. The next start computes these words again.
        let _ = self.0.try_send((tokens, state));
    }
}

/// The folder, as its threads use it one after the other.
struct Store {
    path: PathBuf,
    secret: Secret,
    origin: Origin,
    bytes_max: u64,
    bytes: u64,
    files: usize,
}

impl Store {
    fn open(place: &OwnPlace, origin: &Origin) -> io::Result<Store> {
        let path = folder(&place.prefixes);
        Ok(Store {
            secret: Secret::open(&path)?,
            path,
            origin: origin.clone(),
            bytes_max: place.bytes_max,
            bytes: 0,
            files: 0,
        })
    }

    fn read(&mut self) -> io::Result<Vec<OwnState>> {
        let mut states = Vec::new();
        for item in entries(&self.path)? {
            let path = item?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let kind = names::kind(&name);
            if kind == Kind::Other {
                continue;
            }
            match self.read_file(&path).map(|read| (read, kind)) {
                Ok(((state, bytes), Kind::Prefix)) if self.has_room(bytes) => {
                    self.note(bytes);
                    states.push(state);
                }
                // Of another engine, damaged, unfinished or too many.
                _ => remove(&path)?,
            }
        }
        Ok(states)
    }

    /// Returns a state, and the bytes of its file.
    fn read_file(&self, path: &Path) -> Result<(OwnState, u64), Fault> {
        let mut file = open_regular(path)?;
        let bytes = file.metadata()?.len();
        if bytes > self.bytes_max {
            return Err(Fault::Damaged("it is too long"));
        }
        let head = Head::read(&mut file, bytes, &self.secret, &self.origin)?;
        if head.tenant != self.tenant() {
            return Err(Fault::Foreign("it is of a tenant"));
        }
        let state = head.read_state(&mut file, &self.secret, &|| true)?;
        Ok(((head.tokens, state), bytes))
    }

    fn write(&mut self, tokens: Vec<Token>, state: &[u8]) {
        let head = Head::new(&self.secret, self.tenant(), tokens, state);
        let bytes = head.file_bytes(&self.origin);
        if !self.has_room(bytes) {
            return;
        }
        match self.try_write(&head, state) {
            Ok(()) => self.note(bytes),
            Err(fault) => log::debug!("one of the daemon's own prompts is not kept: {fault:?}"),
        }
    }

    fn try_write(&self, head: &Head, state: &[u8]) -> Result<(), Fault> {
        let name = self.secret.name(head.tenant, &head.tokens);
        let unfinished = self.path.join(format!("{name}{UNFINISHED}"));
        let mut new: File = names::create(&unfinished)?;
        let encoded = head.encode(&self.secret, &self.origin);
        let written = file::write(&mut new, &encoded, state, &mut |_| true)
            .and_then(|()| Ok(fs::rename(&unfinished, self.path.join(name))?));
        if written.is_err() {
            // Its bytes would take room that nothing counts.
            remove(&unfinished)?;
        }
        written
    }

    fn tenant(&self) -> TenantDigest {
        self.secret.no_tenant()
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.files < limits::OWN_FILES_MAX && self.bytes + bytes <= self.bytes_max
    }

    fn note(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// Returns the folder within the folder of the prefixes.
pub fn folder(prefixes: &Path) -> PathBuf {
    prefixes.join("own")
}

#[cfg(test)]
mod tests {
    use super::super::origin::tests::origin;
    use super::*;

    const ROOM_BYTES: u64 = 1 << 20;

    fn open(prefixes: &Path, origin: &Origin, bytes_max: u64) -> Store {
        let place = OwnPlace::new(prefixes.to_owned(), bytes_max);
        Store::open(&place, origin).unwrap()
    }

    fn written(prefixes: &Path, words: impl IntoIterator<Item = Token>) {
        let mut store = open(prefixes, &origin(), ROOM_BYTES);
        store.read().unwrap();
        for word in words {
            store.write(vec![word], &[word as u8; 100]);
        }
    }

    fn read(prefixes: &Path, origin: &Origin) -> Vec<Token> {
        let states = open(prefixes, origin, ROOM_BYTES).read().unwrap();
        let mut words: Vec<Token> = states.iter().map(|(tokens, _)| tokens[0]).collect();
        words.sort_unstable();
        words
    }

    fn files(prefixes: &Path) -> Vec<PathBuf> {
        let items = fs::read_dir(folder(prefixes)).unwrap();
        let paths = items.map(|item| item.unwrap().path());
        paths.filter(|path| !path.ends_with("secret")).collect()
    }

    #[test]
    fn states_are_read_again_by_the_same_engine_only() {
        let place = tempfile::tempdir().unwrap();
        let prefixes = place.path().join("prefixes");
        written(&prefixes, [1, 2, 3]);
        assert_eq!(read(&prefixes, &origin()), [1, 2, 3]);
        let damaged = files(&prefixes).remove(0);
        let mut bytes = fs::read(&damaged).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&damaged, bytes).unwrap();
        // As if the process had been killed.
        fs::copy(
            files(&prefixes).pop().unwrap(),
            format!("{}{UNFINISHED}", damaged.display()),
        )
        .unwrap();
        assert_eq!(read(&prefixes, &origin()).len(), 2);
        assert_eq!(files(&prefixes).len(), 2);
        let kv_type = "q8_0";
        let other = Origin {
            kv_type,
            ..origin()
        };
        assert!(read(&prefixes, &other).is_empty());
        assert!(files(&prefixes).is_empty(), "they are of no use");
    }

    /// Mutation: no comparison of the tenant.
    #[test]
    fn prefix_of_a_tenant_is_not_taken_for_own_words() {
        let place = tempfile::tempdir().unwrap();
        let store = open(place.path(), &origin(), ROOM_BYTES);
        let tenant = store.secret.tenant(7);
        let head = Head::new(&store.secret, tenant, vec![1], b"state");
        let name = store.secret.name(tenant, &[1]);
        let bytes = [&head.encode(&store.secret, &origin())[..], b"state"].concat();
        fs::write(store.path.join(name), bytes).unwrap();
        assert!(read(place.path(), &origin()).is_empty());
    }

    fn bytes_in(prefixes: &Path) -> u64 {
        let files = files(prefixes);
        let bytes = files.iter().map(|path| fs::metadata(path).unwrap().len());
        bytes.sum()
    }

    #[test]
    fn files_are_bounded() {
        let place = tempfile::tempdir().unwrap();
        let most = limits::OWN_FILES_MAX as Token;
        written(place.path(), 0..most + 9);
        assert_eq!(files(place.path()).len(), limits::OWN_FILES_MAX);
        written(place.path(), most + 9..most + 11);
        assert_eq!(read(place.path(), &origin()).len(), limits::OWN_FILES_MAX);
    }

    /// The states are so short that most of their files are heads.
    #[test]
    fn bytes_of_files_are_bounded_and_those_of_a_larger_share_go() {
        const SHARE_BYTES: u64 = 4_000;
        let place = tempfile::tempdir().unwrap();
        let mut store = open(place.path(), &origin(), SHARE_BYTES);
        for word in 0..30 {
            store.write(vec![word], &[7; 10]);
            assert!(bytes_in(place.path()) <= SHARE_BYTES);
        }
        let (written, file) = (files(place.path()).len() as u64, store.bytes);
        let file = file / written;
        assert_eq!(written, SHARE_BYTES / file, "as many as there is room for");
        assert!(written > 2 && written < 30);
        let mut smaller = open(place.path(), &origin(), 2 * file);
        assert_eq!(smaller.read().unwrap().len(), 2);
        assert_eq!(bytes_in(place.path()), 2 * file);
        open(place.path(), &origin(), file - 1).read().unwrap();
        assert_eq!(bytes_in(place.path()), 0);
    }

    fn restarted(place: &OwnPlace, patience: Duration) -> Option<(OwnWords, Vec<Token>)> {
        let (words, states) = OwnWords::open_within(place, &origin(), patience)?;
        let mut tokens: Vec<Token> = states.iter().map(|(tokens, _)| tokens[0]).collect();
        tokens.sort_unstable();
        Some((words, tokens))
    }

    /// As after a panic of the engine. Mutation: `follow_writer` that does not wait.
    #[test]
    fn restarted_engine_reads_what_the_writer_before_it_was_writing() {
        let long = Duration::from_secs(60);
        let folder = tempfile::tempdir().unwrap();
        let place = OwnPlace::new(folder.path().to_owned(), 64 << 20);
        let (words, none) = restarted(&place, long).unwrap();
        assert!(none.is_empty());
        let most = limits::OWN_FILES_MAX as Token;
        // As many as wait in the channel.
        (0..most).for_each(|word| words.keep(vec![word], vec![0; 240 << 10]));
        drop(words);
        let (words, kept) = restarted(&place, long).unwrap();
        assert_eq!(kept, Vec::from_iter(0..most));
        // One that hangs in the disk has an order, and does not end.
        assert!(restarted(&place.clone(), Duration::ZERO).is_none());
        assert_eq!(files(folder.path()).len(), limits::OWN_FILES_MAX);
        drop(words);
        assert!(restarted(&place, long).is_some());
    }

    #[test]
    fn file_that_cannot_be_finished_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        let mut store = open(place.path(), &origin(), ROOM_BYTES);
        let name = store.secret.name(store.tenant(), &[1]);
        // No file can take the name of a folder with something in it.
        fs::create_dir_all(store.path.join(name).join("full")).unwrap();
        store.write(vec![1], b"state");
        assert_eq!(files(place.path()).len(), 1, "the folder");
        assert_eq!(store.bytes, 0);
    }
}
