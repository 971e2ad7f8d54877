//! A pipe that serves h2's client as its socket: two buffers in memory. The test holds the other
//! end, and polls h2 after every change, so no waker is ever needed.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The test's end.
#[derive(Debug, Default)]
pub struct Pipe(Arc<Mutex<Buffers>>);

/// h2's end.
#[derive(Debug)]
pub struct PipeEnd(Arc<Mutex<Buffers>>);

#[derive(Debug, Default)]
struct Buffers {
    inbound: Vec<u8>,
    outbound: Vec<u8>,
}

impl Pipe {
    pub fn new() -> (Pipe, PipeEnd) {
        let buffers = Arc::new(Mutex::new(Buffers::default()));
        (Pipe(Arc::clone(&buffers)), PipeEnd(buffers))
    }

    /// Adds bytes that h2's peer has sent.
    pub fn feed(&self, bytes: &[u8]) {
        lock(&self.0).inbound.extend_from_slice(bytes);
    }

    /// Takes the bytes that h2 has written.
    pub fn take_output(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.0).outbound)
    }
}

impl AsyncRead for PipeEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffers = lock(&self.0);
        if buffers.inbound.is_empty() {
            return Poll::Pending;
        }
        let count = buffers.inbound.len().min(buffer.remaining());
        buffer.put_slice(&buffers.inbound[..count]);
        buffers.inbound.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).outbound.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn lock(buffers: &Mutex<Buffers>) -> MutexGuard<'_, Buffers> {
    buffers.lock().unwrap_or_else(PoisonError::into_inner)
}
