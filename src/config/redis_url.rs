//! Where Redis is (`cache.shared.url`): one server, a set under Sentinel, or a cluster.
//!
//! Owns the syntax of the address. Knows no socket. A password in it is refused: the address is
//! printed by `autoglmd check --show` and in log lines.

use std::fmt;
use std::path::PathBuf;

use crate::limits::config as limits;
use crate::limits::http as http_limits;

/// The address of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUrl {
    pub servers: RedisServers,
    pub is_tls: bool,
    /// The user's name (`AUTH USER PASSWORD`); empty: the default user.
    pub user: String,
    pub database: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisServers {
    Single(RedisHost),
    Socket(PathBuf),
    /// The sentinels, and the name under which they know the master.
    Sentinel(Vec<RedisHost>, String),
    /// Some nodes of the cluster: they name the others.
    Cluster(Vec<RedisHost>),
}

/// A host's name or address, without brackets, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RedisHost {
    pub name: String,
    pub port: u16,
}

const PORT: u16 = 6_379;
const SENTINEL_PORT: u16 = 26_379;

impl RedisUrl {
    pub(crate) const EXPECTED: &'static str = "\"redis://HOST:PORT/DATABASE\", \
         \"redis+unix:/PATH\", \"redis+sentinel://HOST:PORT,HOST:PORT/MASTER\" or \
         \"redis+cluster://HOST:PORT,HOST:PORT\", with \"rediss\" for TLS, or \"\"";

    /// Returns better advice than [`RedisUrl::EXPECTED`] for some texts.
    pub(crate) fn advice(text: &str) -> Option<&'static str> {
        let (_, rest) = text.split_once("://")?;
        let (user, _) = rest.split('/').next()?.rsplit_once('@')?;
        user.contains(':').then_some(
            "an address without a password; put the password into a file and name that in \
             cache.shared.password_file",
        )
    }

    pub fn parse(text: &str) -> Option<RedisUrl> {
        if let Some(path) = text.strip_prefix("redis+unix:") {
            return path.starts_with('/').then(|| RedisUrl {
                servers: RedisServers::Socket(path.into()),
                is_tls: false,
                user: String::new(),
                database: 0,
            });
        }
        let (scheme, rest) = text.split_once("://")?;
        let (security, form) = scheme.split_once('+').unwrap_or((scheme, ""));
        let is_tls = match security {
            "redis" => false,
            "rediss" => true,
            _ => return None,
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        if user.contains([':', '@']) {
            return None;
        }
        let (servers, database) = match form {
            "" => (RedisServers::Single(host(hosts, PORT)?), database(path)?),
            "sentinel" => {
                let (master, number) = path.split_once('/').unwrap_or((path, ""));
                let servers = RedisServers::Sentinel(list(hosts, SENTINEL_PORT)?, master.into());
                (!master.is_empty()).then_some((servers, database(number)?))?
            }
            // A cluster has one database.
            "cluster" if path.is_empty() => (RedisServers::Cluster(list(hosts, PORT)?), 0),
            _ => return None,
        };
        Some(RedisUrl {
            servers,
            is_tls,
            user: user.to_owned(),
            database,
        })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "rediss" } else { "redis" };
        let user = match self.user.as_str() {
            "" => String::new(),
            user => format!("{user}@"),
        };
        let joined = |hosts: &[RedisHost]| {
            let hosts: Vec<String> = hosts.iter().map(RedisHost::to_string).collect();
            hosts.join(",")
        };
        match &self.servers {
            RedisServers::Socket(path) => return write!(f, "redis+unix:{}", path.display()),
            RedisServers::Single(host) => write!(f, "{scheme}://{user}{host}")?,
            RedisServers::Sentinel(hosts, master) => {
                write!(f, "{scheme}+sentinel://{user}{}/{master}", joined(hosts))?;
            }
            RedisServers::Cluster(hosts) => {
                write!(f, "{scheme}+cluster://{user}{}", joined(hosts))?;
            }
        }
        match self.database {
            0 => Ok(()),
            number => write!(f, "/{number}"),
        }
    }
}

impl fmt::Display for RedisHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

fn database(text: &str) -> Option<u8> {
    match text {
        "" => Some(0),
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

fn list(text: &str, port: u16) -> Option<Vec<RedisHost>> {
    let hosts: Option<Vec<RedisHost>> = text.split(',').map(|one| host(one, port)).collect();
    hosts.filter(|hosts| limits::REDIS_HOSTS.contains(&hosts.len()))
}

fn host(text: &str, default_port: u16) -> Option<RedisHost> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, port) = rest.split_once(']')?;
            name.parse::<std::net::Ipv6Addr>().ok()?;
            (name, port)
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    let is_good =
        (1..=http_limits::HOST_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_name);
    let port = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
        None if port.is_empty() => default_port,
        None => return None,
    };
    (is_good && port != 0).then(|| RedisHost {
        name: name.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: a database of a cluster, and a second `@`.
    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "redis://127.0.0.1:6379",
            "rediss://autoglmd@redis.example:6380/3",
            "redis://[::1]:6379",
            "redis+unix:/run/redis.sock",
            "redis+sentinel://a:26379,b:26380/mymaster",
            "rediss+sentinel://me@a:26379/mymaster/2",
            "redis+cluster://a:7000,b:7001",
        ] {
            let url = RedisUrl::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(url.to_string(), text);
        }
        let short = RedisUrl::parse("redis+sentinel://a,b/m").unwrap();
        assert_eq!(short.to_string(), "redis+sentinel://a:26379,b:26379/m");
        for wrong in [
            "",
            "redis://",
            "redis://a:0",
            "redis://a:70000",
            "redis://a/b",
            "redis://a/256",
            "redis://me:secret@a",
            "redis://me@you@a",
            "redis://a,b",
            "redis+cluster://a/1",
            "redis+sentinel://a",
            "redis+unix:redis.sock",
            "http://a",
            "redis://[::1:6379",
            "redis://a b",
        ] {
            assert_eq!(RedisUrl::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_password_belongs_into_a_file() {
        let advice = RedisUrl::advice("redis://me:secret@a").unwrap();
        assert!(advice.contains("password_file"));
        assert_eq!(RedisUrl::advice("redis://a:6379"), None);
    }
}
