//! The names of this machine other than those of loopback (`server.hosts`).
//!
//! Owns the syntax of a name, and the comparison with a request's `host[:port]`. Knows no request.
//! Must never ask a resolver: an attacker chooses what a name resolves to.

use std::net::IpAddr;

use crate::limits::http as limits;

/// Host names and addresses in the form in which they are compared: lower case, no brackets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts {
    names: Vec<String>,
}

impl Hosts {
    pub(crate) const EXAMPLE: &'static str = "gpu.example";

    pub(crate) const EXPECTED: &'static str =
        "a host name such as \"gpu.example\" or an address, without scheme and port";

    /// Returns whether this text is allowed in the list.
    pub(crate) fn takes(text: &str) -> bool {
        parse(text).is_some()
    }

    /// Parses the elements of the list. `None` if one of them is not a host name.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Option<Hosts> {
        let names = texts.iter().map(|text| parse(text.as_ref()));
        Some(Hosts {
            names: names.collect::<Option<_>>()?,
        })
    }

    /// Returns whether `host[:port]` names this machine: by a loopback name (RFC 6761, section
    /// 6.3), by a loopback address, or by a name of the list. Any port is accepted, because a
    /// forwarded port differs from the daemon's own.
    pub fn are_named_by(&self, host: &str) -> bool {
        let name = without_port(host);
        if let Ok(address) = name.parse::<IpAddr>() {
            let address = address.to_canonical();
            return address.is_loopback() || self.names.contains(&address.to_string());
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_local = match name.len().checked_sub(LOCALHOST.len()) {
            Some(0) => name.eq_ignore_ascii_case(LOCALHOST),
            Some(at) => name.as_bytes()[at - 1] == b'.' && ends_with(name, LOCALHOST),
            None => false,
        };
        // Compared in place: this is asked for each request.
        is_local || self.names.iter().any(|it| it.eq_ignore_ascii_case(name))
    }

    /// Returns the elements as they are written in a file.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.names.clone()
    }
}

const LOCALHOST: &str = "localhost";

/// Returns whether `text` ends with `end`, in upper or lower case.
fn ends_with(text: &str, end: &str) -> bool {
    let tail = text.len().checked_sub(end.len());
    tail.is_some_and(|at| text.as_bytes()[at..].eq_ignore_ascii_case(end.as_bytes()))
}

/// Returns the name in the form in which it is compared.
fn parse(text: &str) -> Option<String> {
    if let Ok(address) = without_brackets(text).parse::<IpAddr>() {
        return Some(address.to_canonical().to_string());
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_name = (1..=limits::HOST_NAME_BYTES_MAX).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    is_name.then(|| name.to_ascii_lowercase())
}

fn without_brackets(text: &str) -> &str {
    text.strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text)
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations that this test catches: `ends_with("localhost")`, and a name that is compared with
    /// its port.
    #[test]
    fn loopback_names_and_those_of_the_list_name_this_machine() {
        let hosts = Hosts::parse(&["GPU.example.", "192.0.2.7", "[2001:db8:0::1]"]).expect("hosts");
        for host in [
            "localhost",
            "LOCALHOST:80",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1",
            "127.9.9.9:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]",
            "gpu.example",
            "gpu.EXAMPLE.:8080",
            "192.0.2.7:80",
            "[2001:db8::1]:80",
        ] {
            assert!(hosts.are_named_by(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil-localhost",
            "10.0.0.1",
            "[::2]",
            "0.0.0.0",
            "a.gpu.example",
            "gpu.example.evil.example",
            "192.0.2.70",
        ] {
            assert!(!hosts.are_named_by(host), "{host}");
        }
        assert!(!Hosts::default().are_named_by("gpu.example"));
    }

    #[test]
    fn the_list_is_read_and_written() {
        let hosts = Hosts::parse(&["Gpu.example", "[::ffff:192.0.2.7]", "::2"]).expect("hosts");
        assert_eq!(hosts.texts(), ["gpu.example", "192.0.2.7", "::2"]);
        assert_eq!(Hosts::parse(&hosts.texts()), Some(hosts));
        let long = "a".repeat(limits::HOST_NAME_BYTES_MAX + 1);
        for text in [
            "",
            ".",
            "*",
            "*.example",
            ".example",
            "a:80",
            "http://a",
            "a b",
            "a/",
            "[::1",
            "\u{e9}.example",
            &long,
        ] {
            assert!(!Hosts::takes(text), "{text}");
        }
    }
}
