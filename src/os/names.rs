//! Names, as the system resolves them: files, DNS, and whatever else nsswitch.conf(5) names.
//!
//! Owns the one call of getaddrinfo(3). `std` makes the same call and keeps the code of its error
//! to itself, which tells a name that does not exist from name servers that do not respond.

use std::ffi::CString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// It does not exist, or has no address.
    NotFound,
    /// No name server responded in time, or one of them has a fault of its own.
    NoResponse,
    /// The system cannot ask: no memory, no descriptor, a wrong configuration.
    Failed,
}

/// Looks up a name, and waits for the result.
pub fn look_up(name: &str) -> Result<Vec<IpAddr>, NoAddress> {
    let name = CString::new(name).map_err(|_| NoAddress::NotFound)?;
    let hints = libc::addrinfo {
        ai_flags: 0,
        ai_family: libc::AF_UNSPEC,
        // One result for each address, and not one for each kind of socket.
        ai_socktype: libc::SOCK_STREAM,
        ai_protocol: 0,
        ai_addrlen: 0,
        ai_addr: ptr::null_mut(),
        ai_canonname: ptr::null_mut(),
        ai_next: ptr::null_mut(),
    };
    let mut list = ptr::null_mut();
    // SAFETY: the name ends with a zero byte, and all pointers are valid for the call.
    let code = unsafe { libc::getaddrinfo(name.as_ptr(), ptr::null(), &hints, &mut list) };
    match code {
        0 => {}
        libc::EAI_NONAME | libc::EAI_NODATA => return Err(NoAddress::NotFound),
        libc::EAI_AGAIN => return Err(NoAddress::NoResponse),
        _ => return Err(NoAddress::Failed),
    }
    let mut found = Vec::new();
    let mut at = list;
    // SAFETY: getaddrinfo(3) has returned a list that ends with a null pointer.
    while let Some(entry) = unsafe { at.as_ref() } {
        found.extend(address_of(entry));
        at = entry.ai_next;
    }
    // SAFETY: the list is that of the call, and nothing points into it any more.
    unsafe { libc::freeaddrinfo(list) };
    Ok(found)
}

fn address_of(entry: &libc::addrinfo) -> Option<IpAddr> {
    match entry.ai_family {
        libc::AF_INET => {
            let address = entry.ai_addr.cast::<libc::sockaddr_in>();
            // SAFETY: an address of this family is a `sockaddr_in` (ip(7)).
            let address = unsafe { address.read_unaligned() }.sin_addr;
            Some(Ipv4Addr::from_bits(u32::from_be(address.s_addr)).into())
        }
        libc::AF_INET6 => {
            let address = entry.ai_addr.cast::<libc::sockaddr_in6>();
            // SAFETY: an address of this family is a `sockaddr_in6` (ipv6(7)).
            let address = unsafe { address.read_unaligned() }.sin6_addr;
            Some(Ipv6Addr::from(address.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: an address whose bytes are in the processor's order; one family left out.
    #[test]
    fn the_system_knows_this_machine() {
        let found = look_up("localhost").expect("a name of this machine");
        let is_own = |address: &IpAddr| {
            [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].contains(address)
        };
        assert!(!found.is_empty() && found.iter().all(is_own), "{found:?}");
        // Numbers need no name server.
        for text in ["192.0.2.7", "2001:db8::7"] {
            let address: IpAddr = text.parse().expect("an address");
            assert_eq!(look_up(text), Ok(vec![address]));
        }
        assert_eq!(look_up("a\0b"), Err(NoAddress::NotFound));
    }
}
