//! One stream (RFC 9113, section 5.1), as long as one of its sides is open.
//!
//! ```text
//!                 peer: Open ──── END_STREAM ────> Ended
//!   we: Head ── response ──> Body ── its end ──> Ending ── nothing waits ──> Ended
//!         └── response without a body ──────────────────────────────────────^
//! ```
//!
//! A stream is gone once both sides have ended, or when either has reset it.
//!
//! Invariants:
//!  1. `send_window` may be negative (section 6.9.2); nothing is sent while it is not positive.
//!  2. Bytes wait only in `Body` and `Ending`; in `Ending` there are always some.

use bytes::{Buf, BytesMut};

use super::frame::Reason;
use super::window::{ReceiveWindow, SendWindow};
use crate::limits::http2 as limits;

/// See the file's head.
#[derive(Debug)]
pub struct Stream {
    pub remote: Remote,
    pub local: Local,
    pub send_window: SendWindow,
    pub receive_window: ReceiveWindow,
    /// The bytes of the body that the peer has announced and not yet sent.
    pub content_left: Option<u64>,
    /// The response to HEAD has no body (RFC 9110, section 9.3.2).
    pub head_only: bool,
    /// The stream is in the connection's queue.
    pub is_queued: bool,
    /// Bytes that wait because the peer has granted no window, or the socket has no room.
    pub waiting: BytesMut,
    /// Bytes that were sent since [`Stream::take_progress`].
    pub sent: usize,
}

/// The peer's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    Open,
    /// The body is no longer wanted: no more window is granted for it.
    Unwanted,
    Ended,
}

/// Our side.
#[derive(Debug, PartialEq, Eq)]
pub enum Local {
    /// No response yet, but perhaps an interim one.
    Head,
    Body,
    /// The body is complete; trailers may follow it, as a field block.
    Ending(Option<Vec<u8>>),
    Ended,
}

impl Stream {
    pub fn new(send_window: SendWindow) -> Stream {
        Stream {
            remote: Remote::Open,
            local: Local::Head,
            send_window,
            receive_window: ReceiveWindow::new(limits::STREAM_WINDOW_BYTES),
            content_left: None,
            head_only: false,
            is_queued: false,
            waiting: BytesMut::new(),
            sent: 0,
        }
    }

    pub fn is_over(&self) -> bool {
        self.remote == Remote::Ended && self.local == Local::Ended
    }

    /// Returns whether DATA could be sent now, if the connection's window and the socket have room.
    pub fn is_sendable(&self) -> bool {
        !self.waiting.is_empty() && self.send_window.is_open()
    }

    /// Returns the bytes sent since the last call, and those that wait.
    pub fn take_progress(&mut self) -> (usize, usize) {
        (std::mem::take(&mut self.sent), self.waiting.len())
    }

    /// Removes `count` bytes from those that wait.
    pub fn advance(&mut self, count: usize) {
        self.waiting.advance(count);
        if self.waiting.is_empty() {
            self.waiting = BytesMut::new();
        }
    }

    /// Counts content of DATA. It must not exceed the announced length (RFC 9113, section 8.1.1).
    pub fn handle_content(&mut self, bytes: usize) -> Result<(), Reason> {
        if let Some(left) = &mut self.content_left {
            *left = left
                .checked_sub(bytes as u64)
                .ok_or(Reason::PROTOCOL_ERROR)?;
        }
        Ok(())
    }

    /// Ends the peer's side. No announced byte may be missing.
    pub fn handle_end(&mut self) -> Result<(), Reason> {
        self.remote = Remote::Ended;
        match self.content_left {
            None | Some(0) => Ok(()),
            Some(_) => Err(Reason::PROTOCOL_ERROR),
        }
    }

    pub fn check_invariants(&self) {
        match self.local {
            Local::Head | Local::Ended => assert!(self.waiting.is_empty()),
            Local::Body => {}
            Local::Ending(_) => assert!(!self.waiting.is_empty(), "its end is due"),
        }
        assert!(!self.is_over());
    }
}
