//! Where the daemon listens (`server.listen`), and how connections there begin.
//!
//! Owns the written form of an address. Must never open a socket.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use crate::limits::config as limits;

/// One listening address, and its protocols.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listen {
    pub place: Place,
    pub security: Security,
    /// `proxy:127.0.0.1:8081`: each connection begins with a header of the PROXY protocol.
    pub proxied: bool,
}

/// How the connections of a listener begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    pub proxied: bool,
    pub security: Security,
}

impl Opening {
    /// For an address without words before it.
    pub const PLAIN: Opening = Opening {
        proxied: false,
        security: Security::Sniffed,
    };
}

/// Whether a listener's connections are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// `127.0.0.1:8080`: if there are certificates, the first byte of a connection decides.
    Sniffed,
    /// `tls:127.0.0.1:8443`: clear text gets a 400.
    Tls,
    /// `clear:127.0.0.1:8080`: a TLS hello is refused.
    Clear,
}

/// Where a socket listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// `127.0.0.1:8080`, `[::1]:0`
    Tcp(SocketAddr),
    /// `unix:/run/autoglmd.sock`
    Unix(PathBuf),
    /// `fd:NAME`: a socket passed in by the service manager (`sd_listen_fds_with_names(3)`).
    Inherited(String),
}

impl Listen {
    /// Returns the address, if it is a TCP address.
    pub const fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.place {
            Place::Tcp(address) => Some(*address),
            Place::Unix(_) | Place::Inherited(_) => None,
        }
    }

    /// The default address: reachable from this machine only.
    pub const LOOPBACK: Listen = Listen {
        place: Place::Tcp(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080))),
        security: Security::Sniffed,
        proxied: false,
    };

    pub const fn opening(&self) -> Opening {
        Opening {
            proxied: self.proxied,
            security: self.security,
        }
    }

    pub(crate) const EXPECTED: &'static str = "an address such as \"127.0.0.1:8080\", \
                                               \"[::1]:8080\", \"unix:/run/autoglmd.sock\" or \
                                               \"fd:NAME\", optionally with \"tls:\", \"clear:\" \
                                               or \"proxy:\" before it";

    /// Other programs write an abstract socket (unix(7)) as a name that begins with `@`.
    const EXPECTED_PATH: &'static str = "the path of a file; every user of this machine could \
                                         connect to an abstract socket (for a file of this name \
                                         write \"unix:./@NAME\")";

    /// Returns better advice about this text than [`Listen::EXPECTED`], if there is any.
    pub(crate) fn advice(text: &str) -> Option<&'static str> {
        text.contains("unix:@").then_some(Listen::EXPECTED_PATH)
    }

    /// Parses the written form; see [`Listen::EXPECTED`].
    pub fn parse(text: &str) -> Option<Listen> {
        let (proxied, text) = match text.strip_prefix("proxy:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (security, place) = match text.split_once(':') {
            Some(("tls", place)) => (Security::Tls, place),
            Some(("clear", place)) => (Security::Clear, place),
            _ => (Security::Sniffed, text),
        };
        Some(Listen {
            place: Place::parse(place)?,
            security,
            proxied,
        })
    }

    /// Returns whether only this machine can reach the address. An inherited socket may be
    /// anything.
    pub fn is_local(&self) -> bool {
        match &self.place {
            Place::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Place::Unix(_) => true,
            Place::Inherited(_) => false,
        }
    }
}

impl Place {
    fn parse(text: &str) -> Option<Place> {
        if let Some(path) = text.strip_prefix("unix:") {
            let fits = (1..=limits::UNIX_PATH_BYTES_MAX).contains(&path.len());
            return (fits && is_file_name(path)).then(|| Place::Unix(path.into()));
        }
        if let Some(name) = text.strip_prefix("fd:") {
            // The service manager joins the names with colons (sd_listen_fds_with_names(3)).
            let valid = |byte: u8| byte.is_ascii_graphic() && byte != b':';
            let fits = (1..=limits::DESCRIPTOR_NAME_BYTES_MAX).contains(&name.len());
            return (fits && name.bytes().all(valid)).then(|| Place::Inherited(name.to_owned()));
        }
        text.parse().ok().map(Place::Tcp)
    }
}

/// Returns whether a path can be that of a socket's file. A space at an end or a control character
/// is an error of quoting, and a name that ends with a slash is a folder's.
fn is_file_name(path: &str) -> bool {
    let is_plain = path.trim() == path && !path.chars().any(char::is_control);
    is_plain && !path.starts_with('@') && !path.ends_with('/')
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.proxied {
            f.write_str("proxy:")?;
        }
        match self.security {
            Security::Sniffed => {}
            Security::Tls => f.write_str("tls:")?,
            Security::Clear => f.write_str("clear:")?,
        }
        match &self.place {
            Place::Tcp(address) => write!(f, "{address}"),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
            Place::Inherited(name) => write!(f, "fd:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        let longest = format!("unix:/{}", "x".repeat(limits::UNIX_PATH_BYTES_MAX - 1));
        for text in [
            "127.0.0.1:8080",
            "[::1]:0",
            "unix:/run/a,b.sock",
            "fd:web",
            "tls:127.0.0.1:8443",
            "clear:unix:/run/a.sock",
            "tls:fd:web",
            "proxy:127.0.0.1:8081",
            "proxy:tls:unix:/run/a.sock",
            &longest,
        ] {
            assert_eq!(Listen::parse(text).expect(text).to_string(), text);
        }
        let too_long = format!("{longest}x");
        for text in [
            "",
            "8080",
            "localhost:80",
            "unix:",
            "unix:@name",
            "tls:unix:@name",
            "unix:/run/a\nb",
            "unix: /run/a",
            "unix:/run/",
            "fd:",
            "fd:a:b",
            "fd:a b",
            "tls:",
            "tls:clear:127.0.0.1:1",
            "tls:proxy:127.0.0.1:1",
            "proxy:proxy:127.0.0.1:1",
            "proxy:",
            &too_long,
        ] {
            assert_eq!(Listen::parse(text), None, "{text}");
        }
    }

    #[test]
    fn local_is_what_only_this_machine_reaches() {
        for text in [
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
            "unix:/run/a",
        ] {
            assert!(
                Listen::parse(text).is_some_and(|listen| listen.is_local()),
                "{text}"
            );
        }
        for text in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "fd:web"] {
            assert!(
                Listen::parse(text).is_some_and(|listen| !listen.is_local()),
                "{text}"
            );
        }
    }
}
