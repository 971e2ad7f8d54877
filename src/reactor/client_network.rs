//! Which connections count among those of their client's network, so that one client cannot take
//! all places (`limits.max_connections_per_network`).
//!
//! Exempt are peers of this machine, on loopback or a Unix socket, and the proxies of
//! `server.trusted_proxies`: their connections carry other clients' requests. A proxy that sends a
//! PROXY header names the client of the connection, which counts from then on. What
//! `X-Forwarded-For` names is the client of one request, and the next request may be another's.
//!
//! Invariant: a peer is marked as counted exactly while the table counts it. The event loop calls
//! [`leave`] wherever a connection ends.
//!
//! Mutations: no `leave` in `close` (the simulation's check of an empty table); `enter` that counts
//! loopback (`peers_of_this_machine_...` in `scenarios/networks.rs`).

use crate::config::Config;
use crate::core::Moment;
use crate::core::places::Places;
use crate::service::{Peer, PeerAddress};

/// Counts a connection among those of its peer's network. `false`: there are too many already.
pub fn enter(peer: &mut Peer, places: &Places, config: &Config, now: Moment) -> bool {
    let PeerAddress::Ip(address) = peer.address else {
        return true;
    };
    if address.is_loopback() || config.server.trusted_proxies.contains(address) {
        return true;
    }
    let most = places.network_maximum(config.limits.max_connections_per_network as usize);
    peer.is_counted = places.networks().enter(address, most);
    if !peer.is_counted && places.may_warn_of_network(now) {
        log::warn!(
            "refused a connection of {address}, whose network has {most} already \
             (limits.max_connections_per_network); for a minute others are only counted, in \
             autoglmd_connections_closed_total{{reason=\"network_limit\"}}"
        );
    }
    peer.is_counted
}

/// The connection has ended.
pub fn leave(peer: &Peer, places: &Places) {
    if let PeerAddress::Ip(address) = peer.address
        && peer.is_counted
    {
        places.networks().leave(address);
    }
}
