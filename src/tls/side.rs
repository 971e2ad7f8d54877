//! The two sides of TLS: rustls has a type for each, with the same interface.
//!
//! Owns what differs between them and concerns a [`super::Session`]. Everything else is the
//! session's.

use std::ops::DerefMut;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{UnbufferedConnectionCommon, UnbufferedStatus};

use super::server_name;

/// One side of a session.
pub trait Side: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> {
    type Data;

    /// Whether the certificate of the peer says which client it is. A server's was checked against
    /// the name that was asked for, and says nothing more.
    const IDENTIFIES_ITS_PEER: bool;

    /// Processes the records in `bytes` up to the next state that its caller must handle.
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// Looks at input of a handshake before rustls does.
    fn prepare(_bytes: &mut [u8]) {}
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    const IDENTIFIES_ITS_PEER: bool = true;

    fn process<'c, 'i>(
        &'c mut self,
        bytes: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(bytes)
    }

    fn prepare(bytes: &mut [u8]) {
        server_name::hide(bytes);
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    const IDENTIFIES_ITS_PEER: bool = false;

    fn process<'c, 'i>(
        &'c mut self,
        bytes: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(bytes)
    }
}
