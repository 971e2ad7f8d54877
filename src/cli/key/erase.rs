//! `autoglmd key erase`: removes a key with everything that was kept for it.
//!
//! Owns the order, in which nothing that a running daemon still adds survives: the key is revoked,
//! the daemons get the time to learn it, the rows go, the key goes, and after a second pause, and
//! the end of transactions that run, whatever came in between goes as well. The command can be
//! interrupted anywhere and run again, with the id if the key has gone by then.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal};
use std::path::Path;
use std::thread;

use clap::Args;

use super::lookup::{find_or_none, unknown};
use crate::bus::Notice;
use crate::cache::shared::pattern_of;
use crate::cli::announce::announce;
use crate::cli::database::explain;
use crate::config::{self, Sources};
use crate::console::exit::{self, Code};
use crate::console::{fail, note, printable, show};
use crate::engine::prefixes;
use crate::keys::{self, KeyRecord};
use crate::leases;
use crate::limits::store as limits;
use crate::redis::{self, Settings};
use crate::store::erasure::{Erased, erase, patiently};
use crate::store::{BOOTSTRAP_FILE, Store};

#[derive(Args, Debug)]
pub struct Erase {
    /// The name or the id of the key.
    #[arg(value_name = "NAME|ID")]
    key: String,
    /// Erase without asking; required without a terminal.
    #[arg(long)]
    yes: bool,
}

impl Erase {
    pub fn run(
        self,
        store: &mut dyn Store,
        state_dir: &Path,
        sources: &Sources,
        now: u64,
    ) -> Result<(), Code> {
        let key = find_or_none(store, &self.key)?.map(|key| key.record);
        let id = match &key {
            Some(key) => key.id.as_str(),
            // An erasure that was interrupted after the key itself had gone is repeated by its id.
            None if keys::secret::is_id(&self.key) => self.key.as_str(),
            None => return Err(unknown(&self.key)),
        };
        let name = key.as_ref().map_or("", |key| key.name.as_str());
        if !self.yes && !confirm(id, name)? {
            note("nothing was erased");
            return Err(exit::NO);
        }
        let tell = |notice: Notice| {
            announce(&[notice], sources);
            thread::sleep(limits::ERASURE_PAUSE);
        };
        let mut erased = Erased::default();
        let mut files = 0;
        if let Some(key) = &key {
            patiently(|| store.revoke(id, now)).map_err(|error| explain(&error))?;
            tell(Notice::Key(id.to_owned()));
            erased = erase(store, id).map_err(|error| explain(&error))?;
            files = erase_files(state_dir, key)?;
            patiently(|| store.remove(id)).map_err(|error| explain(&error))?;
        }
        tell(Notice::Tenant(id.to_owned()));
        let sees_all = store.await_earlier_writes(limits::ERASURE_PATIENCE);
        let sees_all = sees_all.map_err(|error| explain(&error))?;
        erased = erased.and(erase(store, id).map_err(|error| explain(&error))?);
        files += erase_prefixes(state_dir, id)?;
        let shared = erase_shared(id, sources);
        store.overwrite_removed().map_err(|error| {
            note(format_args!(
                "the rows are gone, but their text may still be in the database's file; run \
                 `autoglmd key erase {id}` again"
            ));
            explain(&error)
        })?;
        report(id, &erased, files);
        if !sees_all {
            note(format_args!(
                "a transaction of the database server has been open for {} s, and may add rows of \
                 the key; run `autoglmd key erase {id}` again once it has ended",
                limits::ERASURE_PATIENCE.as_secs()
            ));
            return Err(exit::UNAVAILABLE);
        }
        shared.map_err(|error| {
            fail(
                exit::UNAVAILABLE,
                format_args!(
                    "the key's results in Redis are not removed, and expire after `cache.ttl`: \
                     {error}; run `autoglmd key erase {id}` again once Redis is there"
                ),
            )
        })
    }
}

/// Removes the key's results, and the counts of its limits, from the Redis of the configuration.
fn erase_shared(id: &str, sources: &Sources) -> Result<(), String> {
    let loaded = config::load(sources).map_err(|errors| errors.to_string())?;
    let settings = Settings::of(&loaded.config.cache_shared, sources.credentials_dir())?;
    let Some(settings) = settings else {
        return Ok(());
    };
    let remove = |pattern: &str| {
        redis::delete_matching(settings.clone(), pattern).map_err(|error| error.to_string())
    };
    remove(&leases::pattern_of(id))?;
    let removed = remove(&pattern_of(keys::tenant_of(id)))?;
    note(format_args!("removed {removed} results from Redis"));
    Ok(())
}

fn report(id: &str, erased: &Erased, files: usize) {
    note(format_args!(
        "{id} is erased: generations {}, days of usage {}, jobs {}, cache entries {}, files of \
         prefixes {files}",
        erased.generations, erased.usage_days, erased.jobs, erased.entries,
    ));
}

/// Removes files of the state folder that hold something of the key. Returns how many prefixes.
fn erase_files(state_dir: &Path, key: &KeyRecord) -> Result<usize, Code> {
    let removed = erase_prefixes(state_dir, &key.id)?;
    let path = state_dir.join(BOOTSTRAP_FILE);
    let is_its_own = match fs::read_to_string(&path) {
        Ok(text) => keys::secret::hash(text.trim_end()) == key.hash,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(failed(&path, &error)),
    };
    if is_its_own {
        fs::remove_file(&path).map_err(|error| failed(&path, &error))?;
    }
    Ok(removed)
}

/// Removes the computed prefixes of prompts. Returns how many.
fn erase_prefixes(state_dir: &Path, id: &str) -> Result<usize, Code> {
    let removed = prefixes::erase(state_dir, keys::tenant_of(id));
    removed.map_err(|error| failed(&prefixes::folder(state_dir), &error))
}

fn failed(path: &Path, error: &io::Error) -> Code {
    fail(
        exit::of_file(error),
        format_args!("{}: {error}", path.display()),
    )
}

/// Asks whether to erase the key. Anything but yes means no.
fn confirm(id: &str, name: &str) -> Result<bool, Code> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(fail(
            exit::USAGE,
            "erasing asks for confirmation, which needs a terminal; pass --yes to erase without it",
        ));
    }
    let name = printable(name).replace(['\n', '\t'], " ");
    show(&format!(
        "Erase {id} ({name}) with its generations, usage, jobs and cached results? This cannot be \
         undone. [y/N] "
    ));
    let mut reply = String::new();
    let read = io::stdin().read_line(&mut reply);
    read.map_err(|error| fail(exit::IO, format_args!("stdin: {error}")))?;
    let reply = reply.trim();
    Ok(reply.eq_ignore_ascii_case("y") || reply.eq_ignore_ascii_case("yes"))
}
