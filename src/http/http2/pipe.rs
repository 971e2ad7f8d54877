//! The pipe that h2 takes for its socket: two buffers in memory.
//!
//! h2 wants to own something that it can read and write. What it gets is one end of this pipe; the
//! connection holds the other, puts in what the socket brought and takes out what is to be sent.
//! h2's I/O traits are tokio's, and nothing else of tokio is used: nobody is ever woken here. An
//! empty pipe and a full one say `Pending` and forget who asked, for whoever fills or empties the
//! other end polls h2 afterwards, always.
//!
//! Both ends belong to one connection and so to one thread; the lock is there because h2 owns its
//! end, and is never contended.
//!
//! Invariants:
//!  1. Bytes leave in the order in which they came, each exactly once.
//!  2. h2 is given room for `room` bytes more; what it writes at once beyond that is the rest of
//!     one frame (16 KiB), so that no frame is cut.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::http2 as limits;

/// The connection's end.
#[derive(Debug, Default)]
pub struct Pipe(Arc<Mutex<Buffers>>);

/// h2's end.
#[derive(Debug)]
pub struct PipeEnd(Arc<Mutex<Buffers>>);

#[derive(Debug, Default)]
struct Buffers {
    /// From the peer to h2; the part before `read` has been read.
    inbound: Vec<u8>,
    read: usize,
    /// From h2 to the peer.
    outbound: Vec<u8>,
    /// Bytes that h2 may still write before it is told to wait.
    room: usize,
    /// h2 was told to wait.
    was_full: bool,
}

impl Pipe {
    pub fn new() -> (Pipe, PipeEnd) {
        let buffers = Arc::new(Mutex::new(Buffers::default()));
        (Pipe(Arc::clone(&buffers)), PipeEnd(buffers))
    }

    /// Puts in what the peer has sent.
    pub fn feed(&self, bytes: &[u8]) {
        lock(&self.0).inbound.extend_from_slice(bytes);
    }

    /// Says how much h2 may write until this is said again.
    pub fn set_room(&self, room: usize) {
        let mut buffers = lock(&self.0);
        buffers.room = room;
        buffers.was_full = false;
    }

    /// Whether h2 has more to say than there was room for.
    pub fn was_full(&self) -> bool {
        lock(&self.0).was_full
    }

    /// If what h2 has written ends in a GOAWAY without debug data (RFC 9113, section 6.8): its last
    /// stream, and a chance to change its code.
    pub fn amend_goaway(&self, amend: impl FnOnce(u32) -> Option<u32>) {
        const HEADER: [u8; 9] = [0, 0, 8, 7, 0, 0, 0, 0, 0];
        let mut buffers = lock(&self.0);
        let Some(frame) = buffers.outbound.last_chunk_mut::<17>() else {
            return;
        };
        if let [header @ .., l0, l1, l2, l3, _, _, _, _] = *frame
            && header == HEADER
            && let Some(code) = amend(u32::from_be_bytes([l0, l1, l2, l3]))
        {
            frame[13..].copy_from_slice(&code.to_be_bytes());
        }
    }

    /// What h2 has written. Afterwards an idle pipe holds no memory.
    pub fn take_output(&self) -> Option<Vec<u8>> {
        let mut buffers = lock(&self.0);
        if buffers.read == buffers.inbound.len() {
            buffers.inbound = Vec::new();
            buffers.read = 0;
        }
        let outbound = std::mem::take(&mut buffers.outbound);
        (!outbound.is_empty()).then_some(outbound)
    }
}

impl AsyncRead for PipeEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffers = lock(&self.0);
        let unread = &buffers.inbound[buffers.read..];
        if unread.is_empty() {
            return Poll::Pending;
        }
        let count = unread.len().min(buffer.remaining());
        buffer.put_slice(&unread[..count]);
        buffers.read += count;
        if buffers.read == buffers.inbound.len() {
            buffers.inbound.clear();
            buffers.read = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut buffers = lock(&self.0);
        if buffers.room == 0 {
            buffers.was_full = true;
            return Poll::Pending;
        }
        let count: usize = slices.iter().map(|slice| slice.len()).sum();
        if buffers.outbound.capacity() == 0 {
            // Answers come several at a time; growing step by step would copy the first ones often.
            buffers.outbound.reserve(count.max(limits::OUTBOUND_BYTES));
        }
        for slice in slices {
            buffers.outbound.extend_from_slice(slice);
        }
        buffers.room = buffers.room.saturating_sub(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A panic while the lock was held leaves bytes where they were: nothing here is half done.
fn lock(buffers: &Mutex<Buffers>) -> MutexGuard<'_, Buffers> {
    buffers.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn read(end: &mut PipeEnd, most: usize) -> Option<Vec<u8>> {
        let mut storage = vec![0; most];
        let mut buffer = ReadBuf::new(&mut storage);
        let mut context = Context::from_waker(Waker::noop());
        match Pin::new(end).poll_read(&mut context, &mut buffer) {
            Poll::Ready(done) => {
                done.unwrap();
                Some(buffer.filled().to_vec())
            }
            Poll::Pending => None,
        }
    }

    fn write(end: &mut PipeEnd, bytes: &[u8]) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        match Pin::new(end).poll_write(&mut context, bytes) {
            Poll::Ready(count) => {
                assert_eq!(count.unwrap(), bytes.len());
                true
            }
            Poll::Pending => false,
        }
    }

    #[test]
    fn bytes_come_out_in_order_however_they_are_read() {
        let (pipe, mut end) = Pipe::new();
        pipe.feed(b"abc");
        assert_eq!(read(&mut end, 2).unwrap(), b"ab");
        pipe.feed(b"de");
        assert_eq!(read(&mut end, 9).unwrap(), b"cde");
        assert_eq!(read(&mut end, 9), None);
    }

    #[test]
    fn a_goaway_at_the_end_is_amended_and_nothing_else() {
        let (pipe, mut end) = Pipe::new();
        pipe.set_room(100);
        let goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x05\0\0\0\x01";
        write(&mut end, goaway);
        pipe.amend_goaway(|last| {
            assert_eq!(last, 5);
            Some(9)
        });
        write(&mut end, b"x");
        pipe.amend_goaway(|_| panic!("no GOAWAY is last"));
        let sent = pipe.take_output().unwrap();
        assert_eq!(sent[..16], goaway[..16]);
        assert_eq!(sent[16..], *b"\x09x");
        pipe.amend_goaway(|_| panic!("nothing was written"));
    }

    #[test]
    fn a_full_pipe_lets_the_writer_wait_until_there_is_room_again() {
        let (pipe, mut end) = Pipe::new();
        assert!(!write(&mut end, b"x"));
        assert!(pipe.was_full());
        pipe.set_room(1);
        assert!(!pipe.was_full());
        // One frame may be longer than the room that is left.
        assert!(write(&mut end, b"abc"));
        assert!(!write(&mut end, b"d"));
        assert_eq!(pipe.take_output().unwrap(), b"abc");
        assert_eq!(pipe.take_output(), None);
    }
}
