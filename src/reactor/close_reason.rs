//! The reasons for which connections end, for the metrics and for their jobs.

use crate::offload::CancelReason;

/// Why a connection ended: the label of `autoglmd_connections_closed_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed after all responses, or we did after the last one.
    Done,
    /// Idle between two requests for too long, or closed to make room for a new connection.
    Idle,
    /// Without a job and a key, and closed to make room for a new connection, or because there was
    /// no memory for the rest of its record.
    Evicted,
    /// Its client network has too many connections.
    NetworkLimit,
    /// A request did not arrive in time.
    RequestTimeout,
    /// The peer did not take its response in time.
    WriteTimeout,
    /// The peer reset the connection, or left in the middle of a request.
    Reset,
    /// The daemon stops.
    Drain,
    /// A bug: the handling of the connection panicked.
    Panic,
}

impl CloseReason {
    pub const ALL: [CloseReason; 9] = [
        CloseReason::Done,
        CloseReason::Idle,
        CloseReason::Evicted,
        CloseReason::NetworkLimit,
        CloseReason::RequestTimeout,
        CloseReason::WriteTimeout,
        CloseReason::Reset,
        CloseReason::Drain,
        CloseReason::Panic,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            CloseReason::Done => "done",
            CloseReason::Idle => "idle",
            CloseReason::Evicted => "evicted",
            CloseReason::NetworkLimit => "network_limit",
            CloseReason::RequestTimeout => "request_timeout",
            CloseReason::WriteTimeout => "write_timeout",
            CloseReason::Reset => "reset",
            CloseReason::Drain => "drain",
            CloseReason::Panic => "panic",
        }
    }

    /// Returns the reason for which the connection's jobs are cancelled.
    pub const fn cancels_as(self) -> CancelReason {
        match self {
            CloseReason::WriteTimeout => CancelReason::SlowReader,
            CloseReason::Drain => CancelReason::Drain,
            _ => CancelReason::Disconnect,
        }
    }
}
