//! Reads the configuration and the certificates on a separate thread.
//!
//! Owns that thread while it reads. A file on a network disk that does not respond holds up a
//! `read` for as long as it likes, and the supervisor must feed a watchdog meanwhile.
//!
//! Invariants:
//!  1. At most one thread reads, so a disk that never responds costs one thread.
//!  2. A request that comes during a reading leads to one more reading after it: files may have
//!     changed since.
//!
//! Mutations that the tests below catch: reading in `begin` itself (`a_reading_that_hangs_...`),
//! `again` that is never set (`what_was_asked_for_meanwhile_...`).

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::Instant;

use crate::limits::supervisor as limits;

/// Reads a `T` whenever it is asked to.
pub struct Reading<T> {
    /// Why the running thread reads, and since when.
    running: Option<(Cause, Instant)>,
    /// Whether a warning about its duration was logged.
    is_told: bool,
    /// The cause of a request that came meanwhile.
    again: Option<Cause>,
    results: Receiver<Option<T>>,
    sender: Sender<Option<T>>,
    /// A byte for each result, so that the supervisor can wait for it.
    bell: PipeReader,
    ringer: PipeWriter,
}

/// Why it is read: a signal's name, or what has happened to a file.
pub type Cause = &'static str;

impl<T: Send + 'static> Reading<T> {
    pub fn new() -> io::Result<Reading<T>> {
        let (bell, ringer) = io::pipe()?;
        let (sender, results) = mpsc::channel();
        Ok(Reading {
            running: None,
            is_told: false,
            again: None,
            results,
            sender,
            bell,
            ringer,
        })
    }

    /// Begins to read. If a thread reads already, keeps the cause for [`Reading::take_again`].
    pub fn begin(
        &mut self,
        cause: Cause,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<()> {
        if self.running.is_some() {
            self.again = Some(cause);
            return Ok(());
        }
        let (sender, mut ringer) = (self.sender.clone(), self.ringer.try_clone()?);
        thread::Builder::new()
            .name("reading".to_owned())
            .spawn(move || {
                // A panic was reported where it happened, and has no result.
                let result = catch_unwind(AssertUnwindSafe(read)).ok();
                // Neither fails while the supervisor exists.
                let _ = sender.send(result);
                let _ = ringer.write_all(&[1]);
            })?;
        self.running = Some((cause, Instant::now()));
        self.is_told = false;
        Ok(())
    }

    /// Returns the result and its cause, if it has come. A panic has no result.
    pub fn take(&mut self) -> Option<(Cause, Option<T>)> {
        match self.results.try_recv() {
            Ok(result) => {
                // The byte is there or about to come: it is written after the result is sent.
                let _ = self.bell.read_exact(&mut [0]);
                let cause = self.running.take().map(|(cause, _)| cause);
                Some((cause.unwrap_or_default(), result))
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    /// Returns the cause of a reading that has taken too long at `now`; once for each reading.
    pub fn take_overdue(&mut self, now: Instant) -> Option<Cause> {
        let (cause, since) = self.running?;
        let is_overdue = now.saturating_duration_since(since) >= limits::READING_OVERDUE_AFTER;
        let is_news = is_overdue && !std::mem::replace(&mut self.is_told, is_overdue);
        is_news.then_some(cause)
    }

    /// Returns the cause of a request that came during the last reading.
    pub fn take_again(&mut self) -> Option<Cause> {
        self.again.take()
    }
}

impl<T> AsFd for Reading<T> {
    /// Becomes readable when there is a result.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::wait::wait_readable;

    fn wait(reading: &Reading<u32>) {
        assert_eq!(wait_readable([reading.as_fd()], None).unwrap(), [true]);
    }

    #[test]
    fn a_reading_that_hangs_holds_up_no_other_work() {
        let mut reading = Reading::new().unwrap();
        let (release, hanging) = mpsc::channel::<u32>();
        // Returns at once, although nothing can be read.
        reading
            .begin("SIGHUP", move || hanging.recv().unwrap_or(0))
            .unwrap();
        assert_eq!(reading.take(), None);
        let now = Instant::now();
        assert_eq!(reading.take_overdue(now), None);
        let later = now + limits::READING_OVERDUE_AFTER;
        assert_eq!(reading.take_overdue(later), Some("SIGHUP"));
        assert_eq!(reading.take_overdue(later), None, "once");
        release.send(7).unwrap();
        wait(&reading);
        assert_eq!(reading.take(), Some(("SIGHUP", Some(7))));
        assert_eq!(reading.take(), None);
        assert_eq!(reading.take_again(), None);
    }

    #[test]
    fn what_was_asked_for_meanwhile_is_read_once_more() {
        let mut reading = Reading::new().unwrap();
        let (release, hanging) = mpsc::channel::<u32>();
        reading
            .begin("one", move || hanging.recv().unwrap_or(0))
            .unwrap();
        reading
            .begin("two", || unreachable!("one thread at a time"))
            .unwrap();
        reading
            .begin("three", || unreachable!("one thread at a time"))
            .unwrap();
        release.send(1).unwrap();
        wait(&reading);
        assert_eq!(reading.take(), Some(("one", Some(1))));
        assert_eq!(reading.take_again(), Some("three"));
        reading.begin("three", || 3).unwrap();
        wait(&reading);
        assert_eq!(reading.take(), Some(("three", Some(3))));
        reading.begin("four", || panic!("it says so")).unwrap();
        wait(&reading);
        assert_eq!(reading.take(), Some(("four", None)));
    }
}
