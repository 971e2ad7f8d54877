//! `autoglmd store`: looks after the database of keys.
//!
//! Must never create a database, except for an import: the others are for one that exists.

mod transfer;

use clap::{Args, Subcommand};
use serde_json::json;

use super::database::{Database, explain, explain_missing};
use crate::config::Config;
use crate::console::exit::{self, Code};
use crate::console::{fail, note, put};
use crate::engine::prefixes;
use crate::store::folder::{Part, measure};
use crate::store::{Examination, Place};

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Store {
    #[command(flatten)]
    database: Database,
    #[command(subcommand)]
    command: StoreCommand,
}

const EXAMPLES: &str = "\
Examples:
  autoglmd store check                                   exit 0 if the database is sound, else 65
  autoglmd store check --json | jq .version
  autoglmd store migrate --state-dir /var/lib/autoglmd   before the new daemon starts
  autoglmd store export backup.jsonl                     keys, records, usage and jobs
  autoglmd store import backup.jsonl --config new.toml   into an empty database of either kind

All but `import` may run beside a daemon. A daemon that runs under a service manager has its own
state folder: name it with --state-dir.";

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Check the database without changing it: version, damage, keys without secrets; and show
    /// what the state folder holds.
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Bring the database to this program's version. A daemon does so, too, when it starts.
    Migrate,
    /// Write keys, records, usage and jobs to a file, which either kind of database can import.
    Export(transfer::Export),
    /// Read such a file into an empty database. Nothing is kept of a file that is not whole.
    Import(transfer::Import),
}

impl Store {
    pub fn run(self) -> Result<(), Code> {
        let place = self.database.place()?;
        if let StoreCommand::Import(import) = self.command {
            return import.run(&place);
        }
        let found = place.examine().map_err(|error| explain_missing(&error))?;
        match self.command {
            StoreCommand::Check { json } => {
                let folder = Folder::measure(&self.database.config()?)?;
                check(&place, &found, &folder, json)
            }
            StoreCommand::Migrate => migrate(&place, &found),
            StoreCommand::Export(export) => export.run(&place),
            // It needs no database that exists.
            StoreCommand::Import(import) => import.run(&place),
        }
    }
}

/// The state folder: each part with its bytes and its share of `store.max_size`.
struct Folder([(Part, u64, u64); Part::ALL.len()]);

impl Folder {
    fn measure(config: &Config) -> Result<Folder, Code> {
        let (state_dir, shares) = (&config.state_dir, config.disk_shares());
        let sizes = measure(state_dir, prefixes::bytes).map_err(|error| {
            let message = format!("{}: {error}", state_dir.display());
            fail(exit::of_file(&error), message)
        })?;
        let row = |part: Part| (part, sizes.of(part), part.share(&shares));
        Ok(Folder(Part::ALL.map(row)))
    }

    fn to_text(&self) -> String {
        let (used, budget) = self.0.iter().fold((0, 0), |sum, (_, bytes, share)| {
            (sum.0 + bytes, sum.1 + share)
        });
        let line = |name: &str, bytes, share: u64| {
            format!("{name}: {} of {} MiB\n", mebibytes(bytes), share >> 20)
        };
        let parts = self.0.iter().map(|(part, bytes, share)| {
            let name = format!("  {}", part.as_str());
            line(&name, *bytes, *share)
        });
        line("state folder", used, budget) + &parts.collect::<String>()
    }

    fn to_json(&self) -> serde_json::Value {
        let entry = |(part, bytes, share): &(Part, u64, u64)| {
            let sizes = json!({ "bytes": bytes, "max_bytes": share });
            (part.as_str().to_owned(), sizes)
        };
        serde_json::Value::Object(self.0.iter().map(entry).collect())
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn check(place: &Place, found: &Examination, folder: &Folder, as_json: bool) -> Result<(), Code> {
    put(&match as_json {
        true => format!("{:#}\n", to_json(place, found, folder)),
        false => to_text(place, found) + &folder.to_text(),
    })?;
    refuse_unsound(place, found)
}

/// Prints each problem, and returns an error if there is one.
fn refuse_unsound(place: &Place, found: &Examination) -> Result<(), Code> {
    if !found.is_readable() {
        return Err(fail(
            exit::DATA,
            format_args!(
                "{place}: the database needs an autoglmd that supports version {} of it, but this \
                 one supports {}; install the newer autoglmd again",
                found.min_reader, found.known
            ),
        ));
    }
    if found.problems.is_empty() {
        return Ok(());
    }
    found.problems.iter().for_each(note);
    Err(fail(
        exit::DATA,
        format_args!(
            "{place}: the database is not sound; put a backup in its place, or delete the rows \
             named above"
        ),
    ))
}

fn migrate(place: &Place, found: &Examination) -> Result<(), Code> {
    refuse_unsound(place, found)?;
    // Opening applies the steps.
    place.open_existing().map_err(|error| explain(&error))?;
    note(match found.version < found.known {
        true => format!("{place}: from version {} to {}", found.version, found.known),
        false => format!("{place}: already at version {}", found.version),
    });
    Ok(())
}

fn to_text(place: &Place, found: &Examination) -> String {
    let Examination { version, known, .. } = found;
    let comparison = if version == known {
        "the version of this program".to_owned()
    } else {
        format!(
            "this program has {known}, the database needs at least {}",
            found.min_reader
        )
    };
    let number = |count: Option<u32>| count.map_or("unknown".to_owned(), |count| count.to_string());
    format!(
        "{place}\nversion: {version} ({comparison})\nkeys: {}\nsecrets: {}\nproblems: {}\n",
        number(found.keys),
        number(found.secrets),
        found.problems.len()
    )
}

fn to_json(place: &Place, found: &Examination, folder: &Folder) -> serde_json::Value {
    json!({
        "folder": folder.to_json(),
        "path": place.to_string(),
        "version": found.version,
        "min_reader": found.min_reader,
        "supported": found.known,
        "keys": found.keys,
        "secrets": found.secrets,
        "problems": found.problems,
    })
}
