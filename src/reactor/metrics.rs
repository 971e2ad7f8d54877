//! The reactor's series in `/metrics`.

use crate::core::buffered::Claim;
use crate::core::glitch::Glitch;
use crate::limits::telemetry as telemetry_limits;

use super::close_reason::CloseReason;

crate::families! {
    /// Connections, turns of the loop, and TLS.
    pub struct ReactorSeries {
        /// Connections that are open now.
        connections: Gauge = "connections", "autoglmd.connection.open";
        /// Connections that were accepted.
        connections_accepted: Counter = "connections_accepted", "autoglmd.connection.accepted";
        /// Work of one turn of the loop, without its wait for events.
        loop_turn: Histogram(telemetry_limits::LOOP_TURN_BUCKETS_MICROS) = "loop_turn_seconds",
            "autoglmd.loop.turn.duration";
        /// Turns that began with a ring of the mailbox's bell.
        wakeups: Counter = "wakeups", "autoglmd.loop.wakeup";
        /// Readiness events for a connection that was gone.
        stale_events: Counter = "stale_events", "autoglmd.loop.stale_event";
        /// Engine events for a request that was gone.
        stale_completions: Counter = "stale_completions", "autoglmd.loop.stale_completion";
        /// Times that accepting paused because descriptors or slots ran out.
        accept_paused: Counter = "accept_paused", "autoglmd.accept.paused";
        /// Handshake steps that were deferred because the turn's steps were used up.
        tls_handshakes_deferred: Counter = "tls_handshakes_deferred",
            "autoglmd.tls.handshake.deferred";
        /// TLS sessions that the daemon ended with an alert after their handshake.
        tls_broken: Counter = "tls_broken", "autoglmd.tls.broken";
        /// TLS connections that ended without close_notify.
        tls_truncated: Counter = "tls_truncated", "autoglmd.tls.truncated";
        /// Ended connections.
        closed: Counter = "connections_closed" { reason: CloseReason },
            "autoglmd.connection.closed";
        /// Anomalies of peers: legal, but too many of them end a connection.
        glitches: Counter = "glitches" { kind: Glitch }, "autoglmd.connection.glitch";
        /// Requests refused, and connections closed, because no memory may be held for their rest.
        buffers_refused: Counter = "buffers_refused" { claim: Claim, part: Part },
            "autoglmd.buffer.refused";
        /// Connections that were not read until their output had been taken, for lack of memory.
        held_back: Counter = "connections_held_back" { claim: Claim },
            "autoglmd.connection.held_back";
        /// TLS handshakes, by outcome.
        tls_handshakes: Counter = "tls_handshakes"
            { outcome: HandshakeOutcome, version: &'static str }, "autoglmd.tls.handshake";
        /// Connections that sent TLS to a clear-text address, or clear text to a TLS address.
        tls_refused: Counter = "tls_refused" { reason: TlsRefusal }, "autoglmd.tls.refused";
        /// Connections closed for a PROXY header that was missing, malformed or not trusted.
        proxy_refused: Counter = "proxy_refused" { reason: &'static str },
            "autoglmd.proxy.refused";
    }
}

/// The part of a request whose rest is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A TLS record, or a frame of HTTP/2.
    Frame,
    Head,
    Body,
}

impl Part {
    const fn as_str(self) -> &'static str {
        match self {
            Part::Frame => "frame",
            Part::Head => "head",
            Part::Body => "body",
        }
    }
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeOutcome {
    Full,
    Resumed,
    Failed,
    Timeout,
    Abandoned,
}

impl HandshakeOutcome {
    const fn as_str(self) -> &'static str {
        match self {
            HandshakeOutcome::Full => "full",
            HandshakeOutcome::Resumed => "resumed",
            HandshakeOutcome::Failed => "failed",
            HandshakeOutcome::Timeout => "timeout",
            HandshakeOutcome::Abandoned => "abandoned",
        }
    }
}

/// Why the first bytes of a connection were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsRefusal {
    ClearOnTls,
    TlsOnClear,
}

impl TlsRefusal {
    const fn as_str(self) -> &'static str {
        match self {
            TlsRefusal::ClearOnTls => "clear_on_tls",
            TlsRefusal::TlsOnClear => "tls_on_clear",
        }
    }
}

crate::label!(CloseReason, as_str);
crate::label!(Glitch, as_str);
crate::label!(Claim, as_str);
crate::label!(HandshakeOutcome, as_str);
crate::label!(Part, as_str);
crate::label!(TlsRefusal, as_str);
