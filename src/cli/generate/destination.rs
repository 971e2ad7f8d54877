//! The file of `--out`: written as a whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::console::exit::{self, Code};
use crate::console::fail;

/// The file for a program once it is complete.
pub struct Destination {
    path: PathBuf,
    may_replace: bool,
}

impl Destination {
    /// Refuses a file that cannot be written, before the daemon works for it.
    pub fn new(path: PathBuf, may_replace: bool) -> Result<Destination, Code> {
        match fs::metadata(&path) {
            Ok(found) if !found.is_file() => {
                let reason = format!(
                    "{}: not a regular file; --out writes regular files only",
                    path.display()
                );
                return Err(fail(exit::CANT_CREATE, reason));
            }
            Ok(_) if !may_replace => return Err(exists(&path)),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::metadata(folder(&path)).map_err(|error| cannot_write(&path, &error))?;
            }
            Err(error) => return Err(cannot_write(&path, &error)),
        }
        Ok(Destination { path, may_replace })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file beside it and moves it there, so that no reader sees half a program.
    pub fn write(&self, text: &str) -> Result<(), Code> {
        // A link stays a link: its target is replaced.
        let path = match self.may_replace {
            true => fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone()),
            false => self.path.clone(),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder(&path).join(format!(".{name}.{}.tmp", std::process::id()));
        let placed = write_new(&temporary, text).and_then(|()| self.place(&temporary, &path));
        if placed.is_err() {
            // The reason is the first error.
            let _ = fs::remove_file(&temporary);
        }
        placed.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(&self.path),
            _ => cannot_write(&self.path, &error),
        })
    }

    fn place(&self, temporary: &Path, path: &Path) -> io::Result<()> {
        if self.may_replace {
            if let Ok(found) = fs::metadata(path) {
                fs::set_permissions(temporary, found.permissions())?;
            }
            return fs::rename(temporary, path);
        }
        // A link is created only if the name is free, which rename(2) does not check.
        fs::hard_link(temporary, path)?;
        fs::remove_file(temporary)
    }
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn exists(path: &Path) -> Code {
    let reason = format!(
        "{} already exists; pass --force to replace it, or another name",
        path.display()
    );
    fail(exit::CANT_CREATE, reason)
}

fn cannot_write(path: &Path, error: &io::Error) -> Code {
    fail(
        exit::of_file(error),
        format_args!("{}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_made_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.py");
        let destination = Destination::new(path.clone(), false).unwrap();
        fs::write(&path, "another program's").unwrap();
        assert_eq!(destination.write("ours"), Err(exit::CANT_CREATE));
        assert_eq!(fs::read_to_string(&path).unwrap(), "another program's");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("a.py"), folder.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let destination = Destination::new(link.clone(), true).unwrap();
        destination.write("new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), "new");
    }
}
