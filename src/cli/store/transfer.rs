//! `autoglmd store export` and `import`: all of a store in one file.
//!
//! Must never leave a file that others may read, or one that is not whole under its own name.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::database::explain;
use crate::console::exit::{self, Code};
use crate::console::{fail, note};
use crate::store::transfer::{self, Counts, Imported, TransferError};
use crate::store::{Place, Store};

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
        let rows = if self.file == Path::new("-") {
            let mut out = BufWriter::new(io::stdout().lock());
            let written = transfer::export(&*store, &mut out);
            written.map_err(|error| refuse("stdout", &error))?
        } else {
            let file = self.target()?;
            let mut partial = file.clone().into_os_string();
            partial.push(".partial");
            let written = write_whole(&*store, Path::new(&partial), &file);
            written.map_err(|error| {
                // The error of the export is the one to report.
                let _ = fs::remove_file(&partial);
                refuse_output(&file, &error)
            })?
        };
        note(format_args!(
            "exported {}; the file has secrets of keys",
            total(&rows)
        ));
        Ok(())
    }

    /// Returns the file to write, behind a link the one that it leads to. A device or a FIFO is
    /// refused: the finished file would take its place.
    fn target(&self) -> Result<PathBuf, Code> {
        let file = self.file.as_path();
        let shown = file.display();
        let of_file = |error| refuse(&shown, &TransferError::Stream(error));
        match fs::metadata(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(file.to_owned()),
            Err(error) => Err(of_file(error)),
            Ok(found) if !found.is_file() => Err(fail(
                exit::CANT_CREATE,
                format_args!(
                    "{shown} is not a regular file; export to - instead, which is stdout, and \
                     redirect that"
                ),
            )),
            Ok(_) if !self.force => Err(fail(
                exit::CANT_CREATE,
                format_args!("{shown} exists; pass --force to replace it"),
            )),
            Ok(_) => fs::canonicalize(file).map_err(of_file),
        }
    }
}

/// Writes a file under another name, and gives it its own once it is whole.
fn write_whole(store: &dyn Store, partial: &Path, file: &Path) -> Result<Counts, TransferError> {
    let mut out = BufWriter::new(create(partial).map_err(TransferError::Stream)?);
    let rows = transfer::export(store, &mut out)?;
    let named = out.get_ref().sync_all();
    let named = named.and_then(|()| fs::rename(partial, file));
    named.map_err(TransferError::Stream)?;
    Ok(rows)
}

impl Import {
    pub fn run(self, place: &Place) -> Result<(), Code> {
        // Before the store, which is created if it is missing: a wrong name leaves no empty one.
        let (file, mut source) = self.source()?;
        let mut store = place.open().map_err(|error| explain(&error))?;
        let imported = transfer::import(&mut *store, &mut *source, self.merge);
        let Imported { added, skipped } = imported.map_err(|error| match error {
            TransferError::NotEmpty(_) => refuse(place, &error),
            error => refuse(file.display(), &error),
        })?;
        note(match self.merge {
            true => format!("{place}: imported {added} rows; {skipped} were there already"),
            false => format!("{place}: imported {added} rows"),
        });
        Ok(())
    }

    /// Returns the file, and its name for messages.
    fn source(&self) -> Result<(&Path, Box<dyn BufRead>), Code> {
        if self.file == Path::new("-") {
            return Ok((Path::new("stdin"), Box::new(io::stdin().lock())));
        }
        let file = self.file.as_path();
        let of_file = |error| refuse(file.display(), &TransferError::Stream(error));
        let opened = File::open(file).map_err(of_file)?;
        match opened.metadata().map_err(of_file)?.is_dir() {
            true => Err(of_file(io::ErrorKind::IsADirectory.into())),
            false => Ok((file, Box::new(BufReader::new(opened)))),
        }
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

/// An export whose folder is missing cannot be created, and lacks no input.
fn refuse_output(file: &Path, error: &TransferError) -> Code {
    match (refuse(file.display(), error), error) {
        (exit::NO_INPUT, TransferError::Stream(_)) => exit::CANT_CREATE,
        (code, _) => code,
    }
}

/// `file`: the name of what the error is about.
fn refuse(file: impl fmt::Display, error: &TransferError) -> Code {
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
        TransferError::NotEmpty(_) => fail(exit::CANT_CREATE, format_args!("{file}: {error}")),
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
