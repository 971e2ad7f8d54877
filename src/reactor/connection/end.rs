//! The last bytes of a connection that is closed from outside.
//!
//! Owns no state. A connection that ends by itself writes its last response in the pump, and
//! lingers. One that is closed for another reason has no further pump: what it may still send, it
//! sends here, with calls that do not wait, and the caller closes the socket.

use super::{Connection, Phase};
use crate::core::pool::BufferPool;
use crate::limits::reactor as limits;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::connection::Pumped;
use crate::reactor::context::Turn;
use crate::reactor::machine::Machine;
use crate::reactor::system::System;

impl<K> Connection<K> {
    /// Ends the connection at the end of a drain: its requests get the error `draining`, as far as
    /// the kernel takes it at once. The FIN and the reads behind it keep that from being destroyed.
    /// The caller abandons the connection.
    pub fn cut_off<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Pumped {
        let reason = CloseReason::Drain;
        if matches!(self.phase, Phase::Lingering { .. }) || self.channel.is_hung_up() {
            return Pumped::Closed(reason);
        }
        if self.phase == Phase::Open && self.opening() == (false, false) {
            self.protocol.cut_off(&mut self.channel.lend(turn));
        }
        let is_sent = self.channel.flush(system, turn).is_ok() && !self.channel.has_output();
        if is_sent && self.channel.close_transport(turn.pool) {
            // The connection ends either way.
            let _ = self.channel.flush(system, turn);
        }
        if is_sent && self.channel.shut_down(system).is_ok() {
            for _ in 0..limits::CUT_OFF_READS_MAX {
                if !self.channel.is_readable() || self.channel.discard(system, scratch).is_err() {
                    break;
                }
            }
        }
        Pumped::Closed(reason)
    }

    /// Sends TLS's close_notify before the socket is closed, if the kernel takes it at once.
    pub fn say_goodbye<S: System<Socket = K>>(
        &mut self,
        reason: CloseReason,
        system: &mut S,
        pool: &mut BufferPool,
    ) {
        let in_good_order = matches!(
            reason,
            CloseReason::Done | CloseReason::Idle | CloseReason::Drain
        );
        if in_good_order {
            self.channel.say_goodbye(system, pool);
        }
    }
}
