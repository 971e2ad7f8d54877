//! Networks that are not public and to which the daemon may connect all the same
//! (`jobs.callback_networks`).

use std::sync::Arc;

use crate::core::address_policy::AddressPolicy;
use crate::core::network::Network;

/// See the file's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks(Arc<[Network]>);

impl Default for Networks {
    fn default() -> Networks {
        Networks(Arc::new([]))
    }
}

impl Networks {
    pub(crate) const EXAMPLE: &'static str = "10.0.0.0/8";

    pub(crate) const EXPECTED: &'static str =
        "a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an address";

    /// Returns whether this text is allowed in the list.
    pub(crate) fn takes(text: &str) -> bool {
        Network::parse(text).is_some()
    }

    /// Parses the elements of the list. `None` if one of them is not a network.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Option<Networks> {
        let networks = texts.iter().map(|text| Network::parse(text.as_ref()));
        let networks: Option<Vec<Network>> = networks.collect();
        Some(Networks(networks?.into()))
    }

    /// Returns the policy that permits public addresses and those in these networks.
    pub fn policy(&self) -> AddressPolicy {
        AddressPolicy::PublicAnd(Arc::clone(&self.0))
    }

    /// Returns the elements as they are written in a file.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.iter().map(Network::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_and_written_and_permits_what_it_names() {
        let networks = Networks::parse(&["10.1.2.3/8", "::1"]).expect("networks");
        assert_eq!(networks.texts(), ["10.0.0.0/8", "::1"]);
        assert_eq!(Networks::parse(&["unix"]), None);
        let policy = networks.policy();
        assert!(policy.permits([10, 0, 0, 1].into()));
        assert!(!policy.permits([192, 168, 0, 1].into()));
    }
}
