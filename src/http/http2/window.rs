//! Flow control (RFC 9113, section 5.2): the bytes that we may send, and those that the peer may
//! send.

use super::frame::{Reason, STREAM_MAX};

/// RFC 9113, section 6.9.1.
const WINDOW_MAX: i64 = STREAM_MAX as i64;

/// RFC 9113, section 6.9.2: before any SETTINGS.
pub const WINDOW_DEFAULT: u32 = 65_535;

/// The window that the peer has granted us. SETTINGS may make it negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWindow(i64);

impl SendWindow {
    pub const fn new(bytes: u32) -> SendWindow {
        SendWindow(bytes as i64)
    }

    /// Returns the bytes that may be sent.
    pub fn bytes(self) -> usize {
        self.0.max(0) as usize
    }

    pub fn is_open(self) -> bool {
        self.0 > 0
    }

    pub fn take(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.bytes());
        self.0 -= bytes as i64;
    }

    /// Grows by a grant of the peer, or changes with its SETTINGS.
    pub fn grow(&mut self, bytes: i64) -> Result<(), Reason> {
        self.0 += bytes;
        match self.0 <= WINDOW_MAX {
            true => Ok(()),
            false => Err(Reason::FLOW_CONTROL_ERROR),
        }
    }
}

/// The window that we have granted the peer. Bytes are credited once they are read, which is at
/// once, and a WINDOW_UPDATE is due when half of the window is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveWindow {
    size: u32,
    /// The bytes that the peer may still send.
    left: u32,
}

impl ReceiveWindow {
    pub const fn new(size: u32) -> ReceiveWindow {
        ReceiveWindow { size, left: size }
    }

    /// Counts a frame with this payload, padding included.
    pub fn take(&mut self, bytes: usize) -> Result<(), Reason> {
        let left = (self.left as usize).checked_sub(bytes);
        self.left = left.ok_or(Reason::FLOW_CONTROL_ERROR)? as u32;
        Ok(())
    }

    /// Returns the increment of the WINDOW_UPDATE that is due, if one is.
    pub fn credit(&mut self) -> Option<u32> {
        if self.left > self.size / 2 {
            return None;
        }
        let increment = self.size - self.left;
        self.left = self.size;
        Some(increment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: `grow` without its bound; a window that is clamped at zero.
    #[test]
    fn what_may_be_sent_can_be_less_than_nothing() {
        let mut window = SendWindow::new(20);
        window.take(20);
        assert!(!window.is_open());
        assert_eq!(window.grow(-15), Ok(()));
        assert_eq!(window.grow(10), Ok(()));
        assert_eq!((window.bytes(), window.is_open()), (0, false));
        assert_eq!(window.grow(10), Ok(()));
        assert_eq!(window.bytes(), 5);
        assert_eq!(window.grow(WINDOW_MAX - 5), Ok(()));
        assert_eq!(window.grow(1), Err(Reason::FLOW_CONTROL_ERROR));
    }

    /// Mutations: credit at every byte; credit of what was not used.
    #[test]
    fn credit_is_due_when_half_is_used_up() {
        let mut window = ReceiveWindow::new(100);
        assert_eq!(window.take(49), Ok(()));
        assert_eq!(window.credit(), None);
        assert_eq!(window.take(1), Ok(()));
        assert_eq!(window.credit(), Some(50));
        assert_eq!(window.take(101), Err(Reason::FLOW_CONTROL_ERROR));
        assert_eq!(window.take(100), Ok(()));
        assert_eq!(window.take(1), Err(Reason::FLOW_CONTROL_ERROR));
    }
}
