//! From the addresses of a name to a connection: checks them, opens sockets, and waits for the
//! first handshake that succeeds.
//!
//! Owns no state: [`Dial`] has the addresses and the attempts. `connect` is the one place that
//! opens a socket, and it looks at the address itself, whatever was checked before.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::Outbound;
use super::connection::Connection;
use super::dial::Dial;
use super::fetch::{Running, Step};
use super::lent::Lent;
use crate::core::{Key, Moment};
use crate::offload::fetch::FetchError;
use crate::reactor::system::System;

impl<S: System> Outbound<S> {
    /// Begins to connect to one of these addresses.
    pub(super) fn dial(&mut self, key: Key, found: &[IpAddr], lent: &mut Lent<'_, S>) {
        let Some(fetch) = self.fetches.get_mut(key) else {
            return;
        };
        let policy = &fetch.admitted.policy;
        let permitted: Vec<IpAddr> = found
            .iter()
            .copied()
            .filter(|address| policy.permits(*address))
            .collect();
        if permitted.is_empty() {
            let error = match found.is_empty() {
                true => FetchError::Unresolved,
                false => FetchError::Forbidden,
            };
            return self.finish(key, Err(error), lent);
        }
        fetch.step = Step::Dialing(Dial::new(&permitted));
        self.try_addresses(key, lent);
    }

    /// Begins the attempts whose time has come.
    pub(super) fn try_addresses(&mut self, key: Key, lent: &mut Lent<'_, S>) {
        while let Some(address) = self.poll_address(key, lent.now) {
            let attempt = self.connect(key, address, lent);
            let Some(Running {
                step: Step::Dialing(dial),
                ..
            }) = self.fetches.get_mut(key)
            else {
                return;
            };
            match attempt {
                Ok(socket) => dial.handle_started(socket, lent.now),
                Err(error) => dial.handle_refused(error.kind()),
            }
        }
        let failure = match self.fetches.get(key).map(|fetch| &fetch.step) {
            Some(Step::Dialing(dial)) => dial.failure(),
            _ => None,
        };
        match failure {
            Some(kind) => self.finish(key, Err(FetchError::Unreachable(kind)), lent),
            None => self.schedule(key),
        }
    }

    fn poll_address(&mut self, key: Key, now: Moment) -> Option<IpAddr> {
        match &mut self.fetches.get_mut(key)?.step {
            Step::Dialing(dial) => dial.poll_address(now),
            Step::Waiting | Step::Starting | Step::Resolving(_) | Step::Exchanging(_) => None,
        }
    }

    /// The one place that opens a socket.
    fn connect(&mut self, fetch: Key, address: IpAddr, lent: &mut Lent<'_, S>) -> io::Result<Key> {
        while self.sockets.len() >= self.parts.sockets_most
            && let Some(oldest) = self.kept.oldest()
        {
            self.close(oldest, lent);
        }
        let admitted = match self.fetches.get(fetch) {
            Some(fetch) => &fetch.admitted,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        // Right before the call, whatever was checked before: see the file's head.
        if !admitted.policy.permits(address) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let Some(key) = self.sockets.vacant_key() else {
            // Many closed in this turn, and their slots open after it.
            return Err(io::ErrorKind::ResourceBusy.into());
        };
        let address = SocketAddr::new(address, admitted.origin.port);
        let socket = lent.system.connect(address)?;
        if let Err(error) = lent.system.register(&socket, key) {
            lent.system.close(socket);
            return Err(error);
        }
        let origin = admitted.origin.clone();
        self.metrics.sockets.inc();
        Ok(self
            .sockets
            .insert(Connection::new(socket, origin, address, fetch)))
    }

    /// An attempt's edge: `SO_ERROR` holds its result.
    pub(super) fn handle_attempt(&mut self, socket: Key, fetch: Key, lent: &mut Lent<'_, S>) {
        let Some(connection) = self.sockets.get(socket) else {
            return;
        };
        match lent.system.is_connected(connection.socket()) {
            // A spurious edge.
            Ok(false) => {}
            Ok(true) => {
                let running = self.fetches.get(fetch);
                let Some(Step::Dialing(dial)) = running.map(|fetch| &fetch.step) else {
                    return self.close(socket, lent);
                };
                let others = dial
                    .attempts()
                    .iter()
                    .copied()
                    .filter(|attempt| *attempt != socket);
                for other in others.collect::<Vec<_>>() {
                    self.close(other, lent);
                }
                self.exchange(fetch, socket, lent);
            }
            Err(error) => {
                self.close(socket, lent);
                if let Some(Running {
                    step: Step::Dialing(dial),
                    ..
                }) = self.fetches.get_mut(fetch)
                {
                    dial.handle_failed(socket, error.kind());
                    self.try_addresses(fetch, lent);
                }
            }
        }
    }
}
