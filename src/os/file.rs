//! Reads a whole file that an operator has named, whatever kind of file it is.
//!
//! A path in a configuration may lead to a FIFO without a writer, to a terminal or to `/dev/zero`,
//! where open(2) and read(2) would wait for ever or never end. [`read_up_to`] bounds the bytes of
//! every file, and the time of every file that is not a regular one: a daemon that cannot start
//! because of a path must report it, and must obey SIGTERM meanwhile.
//!
//! Must never be called on a reactor's thread: a disk takes its time, and a network file system
//! takes longer.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::wait::wait_readable;
use crate::limits::os as limits;

/// Returns the file's content. Content longer than `most_bytes` is cut one byte after that, which
/// shows the caller that there is more.
///
/// A pipe is read until its writers close it: `--config <(generate-it)` works.
pub fn read_up_to(path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
    read_within(path, most_bytes, limits::STREAM_FILE_TIMEOUT)
}

/// Opens a file of a folder that only this program writes to. A link, a FIFO or a device in its
/// place is an error.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is not a regular file",
        )),
    }
}

fn read_within(path: &Path, most_bytes: u64, patience: Duration) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        // Without O_NONBLOCK, open(2) of a FIFO waits for a writer. Regular files ignore it.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(most_bytes.saturating_add(1))
            .read_to_end(&mut bytes)?;
    } else {
        read_stream(&file, most_bytes, patience, &mut bytes)?;
    }
    Ok(bytes)
}

/// Reads a FIFO, a device, or a directory (which read(2) refuses). A FIFO that no process has
/// opened for writing yet is not at its end: poll(2) waits there, where read(2) would return no
/// bytes.
fn read_stream(
    mut file: &File,
    most_bytes: u64,
    patience: Duration,
    bytes: &mut Vec<u8>,
) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut piece = [0; 4_096];
    while bytes.len() as u64 <= most_bytes {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || wait_readable([file.as_fd()], Some(left))? == [false] {
            let message = format!(
                "it is not a regular file and did not end within {} s",
                patience.as_secs_f32()
            );
            return Err(io::Error::new(ErrorKind::TimedOut, message));
        }
        match file.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => bytes.extend_from_slice(&piece[..length]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(usize::try_from(most_bytes.saturating_add(1)).unwrap_or(usize::MAX));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::Command;

    fn fifo(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("fifo");
        let made = Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo (apt-get install coreutils)").success());
        path
    }

    #[test]
    fn a_regular_file_is_read_up_to_one_byte_beyond_the_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_up_to(&path, 5).unwrap(), b"12345");
        assert_eq!(read_up_to(&path, 3).unwrap(), b"1234");
    }

    /// Mutation: `O_NOFOLLOW` left out.
    #[test]
    fn only_a_regular_file_itself_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&path, "12345").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(open_regular(&path).is_ok());
        assert!(open_regular(&link).is_err());
        assert!(open_regular(&fifo(folder.path())).is_err());
        assert!(open_regular(folder.path()).is_err());
    }

    #[test]
    fn a_fifo_without_a_writer_is_an_error_and_not_an_empty_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let error = read_within(&path, 5, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        // A writer that never closes the pipe must not hold the reader up either.
        let mut writer = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        writer.write_all(b"12").unwrap();
        let error = read_within(&path, 5, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_pipe_is_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = fifo(folder.path());
        let writer = path.clone();
        let writer = std::thread::spawn(move || std::fs::write(writer, "from a pipe"));
        let read = read_within(&path, 100, Duration::from_secs(60));
        assert_eq!(read.unwrap(), b"from a pipe");
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn devices_without_an_end_are_cut_and_folders_refused() {
        assert_eq!(read_up_to(Path::new("/dev/zero"), 5).unwrap(), [0; 6]);
        assert_eq!(read_up_to(Path::new("/dev/null"), 5).unwrap(), b"");
        let error = read_up_to(Path::new("/"), 5).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
    }
}
