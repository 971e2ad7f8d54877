//! Computed prefixes of prompts, on disk: they survive the daemon.
//!
//! Owns the folder `prefixes` in the state folder, and the threads that read and write there. Knows
//! no model: the contents of a sequence are bytes, with the tokens that they were computed from.
//! The engine's thread must never wait here, except at its end.
//!
//! In reading order:
//!
//! * [`copied`]: the contents of one sequence.
//! * [`origin`]: everything that the contents of a sequence depend on beside its tokens.
//! * [`file`]: the format of a file, and its verification.
//! * [`names`]: the names of files, and the secret that they and the checksums are made with.
//! * [`files`]: the folder's place, its bytes, and the removals that need no index.
//! * [`index`]: which files there are, and which of them is the next to go.
//! * [`purges`]: the purges that come while the folder is not read.
//! * [`folder`]: the folder: index, files, and the order in which they change.
//! * [`room`], [`wear`]: the bounds on the memory of copies, and on the writes in the long run.
//! * [`archive`]: the threads, and the engine's way to them.
//! * [`own`]: the daemon's own words, which are kept always.
//!
//! ```text
//!   engine's thread                     other threads
//!   a sequence is needed ── copy ──────> writer: room on disk, temporary file, rename
//!   a prompt begins ────── find, load ─> reader: head, checksum ──> state ──> engine's thread
//! ```
//!
//! Invariants:
//!  1. A file serves only the tenant that its contents were computed for, and only an engine of the
//!     same origin. Both are verified, and so is the checksum of every byte, before the engine gets
//!     one.
//!  2. The files, those that are being written included, have at most `cache.prefixes` bytes.
//!  3. A file gets its final name when it is whole. A process that was killed leaves at most a
//!     temporary file, which the next one removes. Only a loss of power may leave a file without
//!     its contents, which is then found to be damaged.
//!  4. Nothing of a tenant is written after it was erased.

mod archive;
mod copied;
mod file;
mod files;
mod folder;
mod index;
mod names;
mod origin;
mod own;
mod purges;
mod room;
mod wear;

pub use archive::{Archive, Disk, Loaded, LoadedCopy, Wanted};
pub use copied::{Copied, Token, Wish};
pub use files::{bytes, clear, erase, folder};
pub use folder::{Figures, Folder};
pub use index::shared;
pub use origin::Origin;
pub use own::{OwnPlace, OwnState, OwnWords};
