//! Bounds of the mailboxes between other threads and a reactor.

/// Items for which a mailbox keeps its buffers after a burst: more than one engine step brings.
pub const MAILBOX_KEPT_ITEMS_MAX: usize = 1_024;
