//! The series of the bus in `/metrics`.

crate::families! {
    /// Notices between daemons.
    pub struct BusSeries {
        /// Whether notices of other daemons arrive: 1, or 0.
        up: Gauge = "bus_up", "autoglmd.bus.up";
        /// Other members of the bus that are alive, by gossip.
        members: Gauge = "bus_members", "autoglmd.bus.members";
        /// Notices that have arrived.
        received: Counter = "bus_notices_received", "autoglmd.bus.received";
        /// Messages of the bus that were not notices.
        refused: Counter = "bus_messages_refused", "autoglmd.bus.refused";
    }
}
