//! The series of the daemon's own requests in `/metrics`.

crate::families! {
    /// Requests of the daemon to other servers, and their connections.
    pub struct OutboundSeries {
        /// Requests of the daemon to other servers, by their result.
        fetches: Counter = "fetches" { outcome: &'static str }, "autoglmd.fetch";
        /// Sockets of the daemon's own that are open now, kept ones among them.
        sockets: Gauge = "outbound_connections", "autoglmd.outbound.connection.open";
        /// Requests that went over a connection that an earlier one had left open.
        reused: Counter = "outbound_reused", "autoglmd.outbound.connection.reused";
        /// Requests sent once more because a kept connection had ended.
        retried: Counter = "outbound_retried", "autoglmd.outbound.retried";
    }
}
