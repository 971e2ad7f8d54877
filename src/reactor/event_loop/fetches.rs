//! The loop's side of the requests that it makes itself: lends [`Outbound`] what it needs for a
//! call, in each phase.
//!
//! Owns no state. A loop without fetches does nothing here, and reads no clock for it.
//!
//! [`Outbound`]: crate::reactor::outbound::Outbound

use super::Reactor;
use crate::core::Key;
use crate::offload::fetch::Order;
use crate::offload::resolver::Addresses;
use crate::reactor::outbound::{Lent, Outbound};
use crate::reactor::system::System;

impl<S: System> Reactor<S> {
    /// Phase 5.
    pub(super) fn handle_order(&mut self, order: Order) {
        let (outbound, mut lent) = self.lend();
        outbound.handle_order(order, &mut lent);
    }

    /// Phase 5.
    pub(super) fn handle_addresses(&mut self, key: Key, found: Addresses) {
        let (outbound, mut lent) = self.lend();
        outbound.handle_addresses(key, found, &mut lent);
    }

    /// Phase 6, behind the clients' connections.
    pub(super) fn run_outbound(&mut self) {
        if self.outbound.has_work() {
            let (outbound, mut lent) = self.lend();
            outbound.run(&mut lent);
        }
    }

    /// Phase 7.
    pub(super) fn expire_outbound(&mut self) {
        let now = self.shared.now;
        if self.outbound.next_expiry().is_some_and(|at| at <= now) {
            let (outbound, mut lent) = self.lend();
            outbound.expire(&mut lent);
        }
    }

    /// The reactor ends.
    pub(super) fn end_outbound(&mut self) {
        let (outbound, mut lent) = self.lend();
        outbound.end(&mut lent);
    }

    fn lend(&mut self) -> (&mut Outbound<S>, Lent<'_, S>) {
        let lent = Lent {
            system: &mut self.system,
            pool: &mut self.shared.pool,
            account: self.shared.buffered.account(),
            scratch: &mut self.scratch,
            handshake_steps: &mut self.shared.handshake_steps,
            now: self.shared.now,
        };
        (&mut self.outbound, lent)
    }
}
