//! A request whose head has arrived, and its origin.

use std::borrow::Cow;

use crate::config;
use crate::core::Moment;
use crate::http::Request;
use crate::service::call::{Peer, PeerAddress};

use super::client_address;

/// The inputs of the checks of a head.
pub struct Arrival<'a> {
    pub request: &'a Request<'a>,
    /// The peer or, if that is a trusted proxy, its client.
    pub sender: &'a Peer,
    /// The other end of the connection.
    pub connected: PeerAddress,
    pub now: Moment,
}

impl Arrival<'_> {
    /// Returns whether the sender is on this machine. Requests through a proxy of this machine come
    /// from elsewhere.
    pub fn is_local(&self) -> bool {
        let came_through_proxy =
            self.sender.address == self.connected && client_address::is_forwarded(self.request);
        self.sender.address.is_local() && !came_through_proxy
    }
}

/// Returns the sender of a request: the peer or, if that is a trusted proxy, its client.
pub fn sender<'p>(request: &Request<'_>, peer: &'p Peer, server: &config::Server) -> Cow<'p, Peer> {
    if server.trusted_proxies.is_empty() {
        return Cow::Borrowed(peer);
    }
    let (proxies, field) = (&server.trusted_proxies, server.forwarded_header);
    let address = client_address::of(request, peer.address, proxies, field);
    if address == peer.address {
        return Cow::Borrowed(peer);
    }
    Cow::Owned(Peer {
        address,
        client: peer.client.clone(),
        is_counted: false,
        is_known: peer.is_known,
        is_greedy: peer.is_greedy,
        is_held_back: peer.is_held_back,
    })
}
