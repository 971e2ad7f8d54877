//! The database of a command: that of the daemon with the same configuration.

use std::io::ErrorKind;
use std::path::PathBuf;

use clap::Args;

use crate::config::{self, Config, Overrides, Sources};
use crate::console::exit::{self, Code};
use crate::console::fail;
use crate::store::{Place, StoreError};
use crate::supervisor::database;

/// Flags that name the database.
#[derive(Args, Debug)]
pub struct Database {
    /// The configuration file [default: $AUTOGLMD_CONFIG, else /etc/autoglmd/autoglmd.toml].
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The folder of the database [default: $STATE_DIRECTORY, else ~/.local/state/autoglmd].
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
}

impl Database {
    /// Returns the sources of the daemon's configuration.
    pub fn sources(&self) -> Sources {
        let flags = Overrides {
            state_dir: self.state_dir.clone(),
            ..Overrides::default()
        };
        Sources::of_process(self.config.clone(), flags)
    }

    pub fn place(&self) -> Result<Place, Code> {
        let place = database::place(&self.config()?, &self.sources());
        place.map_err(|reason| fail(exit::CONFIG, reason))
    }

    /// Returns the state folder, which has more than the database.
    pub fn state_dir(&self) -> Result<PathBuf, Code> {
        Ok(self.config()?.state_dir)
    }

    pub fn config(&self) -> Result<Config, Code> {
        let loaded = config::load(&self.sources());
        let loaded = loaded.map_err(|errors| fail(exit::CONFIG, errors))?;
        Ok(loaded.config)
    }
}

/// Prints an error of the store and the way out, and returns the exit code.
pub fn explain(error: &StoreError) -> Code {
    let code = exit::of_store(error);
    match error.way_out() {
        Some(way_out) => fail(code, format_args!("{error}; {way_out}")),
        None => fail(code, error),
    }
}

/// The same, for a store that must be there.
pub fn explain_missing(error: &StoreError) -> Code {
    match error {
        StoreError::File(path, error) if error.kind() == ErrorKind::NotFound => {
            let advice = "the first start of a daemon creates it; --state-dir names its folder";
            let message = format!("{}: {error}; {advice}", path.display());
            fail(exit::NO_INPUT, message)
        }
        error => explain(error),
    }
}
