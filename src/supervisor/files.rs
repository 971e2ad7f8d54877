//! The files that a reload reads, and the watch over them.
//!
//! Owns the list of those files. A disk may take any time to read them, so [`read`] must run on a
//! thread that may wait.

use std::path::PathBuf;
use std::sync::Arc;

use super::certificates;
use crate::config::{self, Loaded, Sources};
use crate::os::watch::FileWatch;
use crate::tls::{Acceptor, Problem};

/// A configuration, and the certificates that it names.
pub type Fresh = (Loaded, Option<Arc<Acceptor>>);

/// Reads and checks everything that a reload may change, or returns every error in it. `running` is
/// the set of certificates in force until now.
pub fn read(sources: &Sources, running: Option<&Acceptor>) -> Result<Fresh, String> {
    let loaded = config::load(sources).map_err(|errors| errors.to_string())?;
    match certificates::load(&loaded.config, sources, running) {
        Ok(acceptor) => Ok((loaded, acceptor)),
        Err(problems) => Err(lines(&problems)),
    }
}

/// The files that [`read`] reads.
pub fn of(loaded: &Loaded, sources: &Sources) -> Vec<PathBuf> {
    let certificates = certificates::files(&loaded.config, sources);
    loaded.file.iter().cloned().chain(certificates).collect()
}

/// Watches the files if the configuration asks for that.
pub fn watch(loaded: &Loaded, sources: &Sources) -> Option<FileWatch> {
    let files = of(loaded, sources);
    if !loaded.config.server.watch_config || files.is_empty() {
        return None;
    }
    FileWatch::new(&files)
        .inspect_err(|error| log::error!("cannot watch the configuration's files: {error}"))
        .ok()
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}
