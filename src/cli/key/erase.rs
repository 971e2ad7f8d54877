//! `autoglmd key erase`: removes a key with everything that was kept for it.
//!
//! Owns the order, in which nothing that a running daemon still adds survives: the key is revoked,
//! the daemons get the time to learn it, the rows go, the key goes, and after a second pause
//! whatever came in between goes as well.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal};
use std::path::Path;
use std::thread;

use clap::Args;

use super::lookup::find;
use crate::bus::Notice;
use crate::cli::announce::announce;
use crate::cli::database::explain;
use crate::config::Sources;
use crate::console::exit::{self, Code};
use crate::console::{fail, note, printable, show};
use crate::engine::prefixes;
use crate::keys::{self, KeyRecord};
use crate::limits::store as limits;
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
        let key = find(store, &self.key)?.record;
        if !self.yes && !confirm(&key)? {
            note("nothing was erased");
            return Err(exit::NO);
        }
        let id = key.id.as_str();
        let tell = |notice: Notice| {
            announce(&[notice], sources);
            thread::sleep(limits::ERASURE_PAUSE);
        };
        patiently(|| store.revoke(id, now)).map_err(|error| explain(&error))?;
        tell(Notice::Key(id.to_owned()));
        let first = erase(store, id).map_err(|error| explain(&error))?;
        let files = erase_files(state_dir, &key)?;
        patiently(|| store.remove(id)).map_err(|error| explain(&error))?;
        tell(Notice::Tenant(id.to_owned()));
        let second = erase(store, id).map_err(|error| explain(&error))?;
        let late = erase_files(state_dir, &key)?;
        report(id, &first.and(second), files + late);
        store.overwrite_removed().map_err(|error| {
            note("the rows are gone, but their text may still be in the database's file");
            explain(&error)
        })
    }
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
    let failed = |path: &Path, error: &io::Error| {
        fail(
            exit::of_file(error),
            format_args!("{}: {error}", path.display()),
        )
    };
    let folder = prefixes::folder(state_dir);
    let removed = prefixes::erase(state_dir, keys::tenant_of(&key.id));
    let removed = removed.map_err(|error| failed(&folder, &error))?;
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

/// Asks whether to erase the key. Anything but yes means no.
fn confirm(key: &KeyRecord) -> Result<bool, Code> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(fail(
            exit::USAGE,
            "erasing asks for confirmation, which needs a terminal; pass --yes to erase without it",
        ));
    }
    let name = printable(&key.name).replace(['\n', '\t'], " ");
    show(&format!(
        "Erase {} ({name}) with its generations, usage, jobs and cached results? This cannot be \
         undone. [y/N] ",
        key.id
    ));
    let mut reply = String::new();
    let read = io::stdin().read_line(&mut reply);
    read.map_err(|error| fail(exit::IO, format_args!("stdin: {error}")))?;
    let reply = reply.trim();
    Ok(reply.eq_ignore_ascii_case("y") || reply.eq_ignore_ascii_case("yes"))
}
