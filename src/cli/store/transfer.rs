//! `autoglmd store export` and `import`: all of a store in one file.
//!
//! Must never leave a file that others may read, or one that is not whole under its own name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::database::explain;
use crate::console::exit::{self, Code};
use crate::console::{fail, note};
use crate::store::Place;
use crate::store::transfer::{self, Counts, Imported, TransferError};

#[derive(Args, Debug)]
pub struct Export {
    /// The new file, or - for stdout.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
pub struct Import {
    /// The file, or - for stdin.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Import into a store that is not empty: rows that it has stay as they are.
    #[arg(long)]
    merge: bool,
}

impl Export {
    pub fn run(self, place: &Place) -> Result<(), Code> {
        let store = place.open_existing().map_err(|error| explain(&error))?;
        let file = self.file.as_path();
        let failed = |error: &TransferError| refuse(file, error);
        let rows = if file == Path::new("-") {
            let mut out = BufWriter::new(io::stdout().lock());
            transfer::export(&*store, &mut out).map_err(|error| failed(&error))?
        } else {
            if !self.force && file.exists() {
                let message = format!("{} exists; pass --force to replace it", file.display());
                return Err(fail(exit::CANT_CREATE, message));
            }
            let of_file = |error| failed(&TransferError::Stream(error));
            let mut partial = file.as_os_str().to_owned();
            partial.push(".partial");
            let partial = PathBuf::from(partial);
            let mut out = BufWriter::new(create(&partial).map_err(of_file)?);
            let written = transfer::export(&*store, &mut out).inspect_err(|_| {
                // The error of the export is the one to report.
                let _ = fs::remove_file(&partial);
            });
            let rows = written.map_err(|error| failed(&error))?;
            out.get_ref().sync_all().map_err(of_file)?;
            fs::rename(&partial, file).map_err(of_file)?;
            rows
        };
        note(format_args!(
            "exported {}; the file has secrets of keys",
            total(&rows)
        ));
        Ok(())
    }
}

impl Import {
    pub fn run(self, place: &Place) -> Result<(), Code> {
        let mut store = place.open().map_err(|error| explain(&error))?;
        let file = self.file.as_path();
        let imported = if file == Path::new("-") {
            transfer::import(&mut *store, &mut io::stdin().lock(), self.merge)
        } else {
            let opened = File::open(file);
            let opened = opened.map_err(|error| refuse(file, &TransferError::Stream(error)))?;
            transfer::import(&mut *store, &mut BufReader::new(opened), self.merge)
        };
        let Imported { added, skipped } = imported.map_err(|error| refuse(file, &error))?;
        note(match self.merge {
            true => format!("{place}: imported {added} rows; {skipped} were there already"),
            false => format!("{place}: imported {added} rows"),
        });
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    // One that is left of an export that was killed.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

fn total(rows: &Counts) -> String {
    let counts = rows.iter().map(|(table, count)| format!("{count} {table}"));
    counts.collect::<Vec<_>>().join(", ")
}

fn refuse(file: &Path, error: &TransferError) -> Code {
    let file = file.display();
    match error {
        TransferError::Store(error) => explain(error),
        TransferError::Stream(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            exit::CLOSED_PIPE
        }
        TransferError::Stream(error) => fail(exit::of_file(error), format_args!("{file}: {error}")),
        TransferError::Content(..) => {
            let message = format!("{file}: {error}; nothing was imported");
            fail(exit::DATA, message)
        }
        TransferError::NotEmpty(_) => fail(exit::CANT_CREATE, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_file_is_its_owner_s_alone_and_an_old_partial_one_is_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.partial");
        fs::write(&path, "old").unwrap();
        create(&path).unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
