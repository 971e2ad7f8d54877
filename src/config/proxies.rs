//! Proxies whose information about their clients is trusted (`server.trusted_proxies`), and the
//! field that carries it (`server.forwarded_header`).

use std::net::IpAddr;

use super::words::Word;
use crate::core::network::Network;

/// Networks, and whether Unix sockets are among them. If empty, no peer is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    networks: Vec<Network>,
    unix: bool,
}

/// The value of `server.forwarded_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedField {
    /// Either field; neither if both are present and disagree.
    Any,
    Forwarded,
    XForwardedFor,
}

impl Word for ForwardedField {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("any", ForwardedField::Any),
        ("forwarded", ForwardedField::Forwarded),
        ("x-forwarded-for", ForwardedField::XForwardedFor),
    ];
}

impl TrustedProxies {
    /// The word for all peers on Unix sockets.
    const UNIX: &'static str = "unix";

    pub(crate) const EXAMPLE: &'static str = "10.0.0.0/8";

    pub(crate) const EXPECTED: &'static str = "a network such as \"10.0.0.0/8\" or \
        \"2001:db8::/32\", an address, or \"unix\" for the peers on Unix sockets";

    /// Returns whether this text is allowed in the list.
    pub(crate) fn takes(text: &str) -> bool {
        text == TrustedProxies::UNIX || Network::parse(text).is_some()
    }

    /// Parses the elements of the list. `None` if one of them is neither a network nor `unix`.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Option<TrustedProxies> {
        let mut proxies = TrustedProxies::default();
        for text in texts {
            match text.as_ref() {
                TrustedProxies::UNIX => proxies.unix = true,
                text => proxies.networks.push(Network::parse(text)?),
            }
        }
        Some(proxies)
    }

    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(address))
    }

    /// Returns whether peers on Unix sockets are trusted.
    pub fn has_unix(&self) -> bool {
        self.unix
    }

    /// Returns the first network that contains every address of its family.
    pub(crate) fn everything(&self) -> Option<&Network> {
        self.networks.iter().find(|network| network.is_everything())
    }

    /// Returns the elements as they are written in a file.
    pub(crate) fn texts(&self) -> Vec<String> {
        let networks = self.networks.iter().map(Network::to_string);
        let unix = self.unix.then(|| TrustedProxies::UNIX.to_owned());
        networks.chain(unix).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::words::word;

    #[test]
    fn every_word_of_a_type_is_in_its_table() {
        assert_eq!(
            [
                ForwardedField::Any,
                ForwardedField::Forwarded,
                ForwardedField::XForwardedFor,
            ]
            .map(word),
            ["any", "forwarded", "x-forwarded-for"]
        );
    }

    #[test]
    fn the_list_is_read_and_written() {
        let proxies = TrustedProxies::parse(&["unix", "10.1.2.3/8", "::1"]).expect("networks");
        assert_eq!(proxies.texts(), ["10.0.0.0/8", "::1", "unix"]);
        assert_eq!(
            TrustedProxies::parse(&proxies.texts()),
            Some(proxies.clone())
        );
        assert!(proxies.has_unix() && proxies.contains([10, 0, 0, 1].into()));
        assert!(!proxies.contains([127, 0, 0, 1].into()));
        assert_eq!(TrustedProxies::parse(&["unix:"]), None);
        assert!(TrustedProxies::default().is_empty());
    }
}
