//! Where Redis is (`cache.shared.url`): one server, a set under Sentinel, or a cluster.
//!
//! Owns the syntax of the address. Knows no socket. A password in it is refused: the address is
//! printed by `autoglmd check --show` and in log lines.

use std::fmt;
use std::path::PathBuf;

use crate::http::origin::{HostText, split_port};
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

/// Why a text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Form,
    Password,
    Host,
    /// Several hosts of one server.
    ManyHosts,
    TooManyHosts,
    /// Sentinels without the name of a master.
    NoMaster,
    Database,
    ClusterDatabase,
    Socket,
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
        match RedisUrl::read(text).err()? {
            Wrong::Form => None,
            Wrong::Password => Some(
                "an address without a password; put the password into a file and name that in \
                 cache.shared.password_file",
            ),
            Wrong::Host => Some(
                "each host as a name or an address with a port from 1 to 65535, as in \
                 \"redis.example:6379\", \"10.0.0.1:6379\" or \"[fd00::1]:6379\"",
            ),
            Wrong::ManyHosts => Some(
                "one host; several are the sentinels of a set, \
                 \"redis+sentinel://HOST:PORT,HOST:PORT/MASTER\", or nodes of a cluster, \
                 \"redis+cluster://HOST:PORT,HOST:PORT\"",
            ),
            Wrong::TooManyHosts => Some("at most 32 hosts; they name the others themselves"),
            Wrong::NoMaster => Some(
                "the name under which the sentinels know the master, behind the hosts: \
                 \"redis+sentinel://HOST:PORT,HOST:PORT/MASTER\", often \"/mymaster\"",
            ),
            Wrong::Database => Some(
                "a number from 0 to 255 as the database, behind the host (\"redis://HOST:PORT/3\") \
                 or the master (\"redis+sentinel://HOST:PORT/MASTER/3\")",
            ),
            Wrong::ClusterDatabase => Some(
                "a cluster without a database, because it has only one: \
                 \"redis+cluster://HOST:PORT,HOST:PORT\"",
            ),
            Wrong::Socket => Some(
                "the absolute path of a socket, as in \"redis+unix:/run/redis/redis.sock\", \
                 without user, database and TLS",
            ),
        }
    }

    pub fn parse(text: &str) -> Option<RedisUrl> {
        RedisUrl::read(text).ok()
    }

    fn read(text: &str) -> Result<RedisUrl, Wrong> {
        if let Some(path) = text.strip_prefix("redis+unix:") {
            return match path.starts_with('/') {
                true => Ok(RedisUrl::of_socket(path)),
                false => Err(Wrong::Socket),
            };
        }
        let (scheme, rest) = text.split_once("://").ok_or(Wrong::Form)?;
        let (security, form) = scheme.split_once('+').unwrap_or((scheme, ""));
        let is_tls = match security {
            "redis" => false,
            "rediss" => true,
            _ => return Err(Wrong::Form),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        if user.contains(':') {
            return Err(Wrong::Password);
        }
        if user.contains('@') {
            return Err(Wrong::Form);
        }
        let (servers, database) = match form {
            "" if hosts.contains(',') => return Err(Wrong::ManyHosts),
            "" => {
                let host = host(hosts, PORT).ok_or(Wrong::Host)?;
                (RedisServers::Single(host), database(path)?)
            }
            "sentinel" => {
                let hosts = list(hosts, SENTINEL_PORT)?;
                let (master, number) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(Wrong::NoMaster);
                }
                let database = database(number)?;
                (RedisServers::Sentinel(hosts, master.into()), database)
            }
            "cluster" if path.is_empty() => (RedisServers::Cluster(list(hosts, PORT)?), 0),
            "cluster" => return Err(Wrong::ClusterDatabase),
            "unix" => return Err(Wrong::Socket),
            _ => return Err(Wrong::Form),
        };
        Ok(RedisUrl {
            servers,
            is_tls,
            user: user.to_owned(),
            database,
        })
    }

    fn of_socket(path: &str) -> RedisUrl {
        RedisUrl {
            servers: RedisServers::Socket(path.into()),
            is_tls: false,
            user: String::new(),
            database: 0,
        }
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

fn database(text: &str) -> Result<u8, Wrong> {
    match text {
        "" => Ok(0),
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().map_err(|_| Wrong::Database)
        }
        _ => Err(Wrong::Database),
    }
}

fn list(text: &str, port: u16) -> Result<Vec<RedisHost>, Wrong> {
    let hosts: Option<Vec<RedisHost>> = text.split(',').map(|one| host(one, port)).collect();
    let hosts = hosts.ok_or(Wrong::Host)?;
    match limits::REDIS_HOSTS.contains(&hosts.len()) {
        true => Ok(hosts),
        false => Err(Wrong::TooManyHosts),
    }
}

fn host(text: &str, default_port: u16) -> Option<RedisHost> {
    let (name, port) = split_port(text).ok()?;
    let name = match name {
        HostText::V6(address) => address.to_string(),
        HostText::Plain(name) => name.to_owned(),
    };
    // A name may end with a dot here, unlike in a URL of HTTP: it comes from the operator.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    let lengths = 1..=http_limits::HOST_NAME_BYTES_MAX;
    (lengths.contains(&name.len()) && name.bytes().all(is_name)).then(|| RedisHost {
        name,
        port: port.unwrap_or(default_port),
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
            "redis+unix:///run/redis.sock",
            "redis+sentinel://a:26379,b:26380/mymaster",
            "rediss+sentinel://me@a:26379/mymaster/2",
            "redis+cluster://a:7000,b:7001",
        ] {
            let url = RedisUrl::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(url.to_string(), text);
        }
        let url = RedisUrl::parse("redis://[2001:DB8::0:1]").unwrap();
        assert_eq!(url.to_string(), "redis://[2001:db8::1]:6379");
        let url = RedisUrl::parse("redis://redis.svc.").unwrap();
        assert_eq!(url.to_string(), "redis://redis.svc.:6379");
        let short = RedisUrl::parse("redis+sentinel://a,b/m").unwrap();
        assert_eq!(short.to_string(), "redis+sentinel://a:26379,b:26379/m");
        assert_eq!(RedisUrl::parse(""), None);
    }

    /// Each refusal names the part that is wrong. Mutations: sentinels without a master's name that
    /// are taken, or refused by the general message.
    #[test]
    fn advice_names_the_part_that_is_missing_or_wrong() {
        let many = format!("redis+cluster://{}", ["a"; 33].join(","));
        for (text, wrong) in [
            ("http://a", Wrong::Form),
            ("redis+sentinels://a/m", Wrong::Form),
            ("a:6379", Wrong::Form),
            ("redis://me@you@a", Wrong::Form),
            ("redis://me:secret@a", Wrong::Password),
            ("redis+sentinel://me:secret@a", Wrong::Password),
            ("redis://", Wrong::Host),
            ("redis://a:0", Wrong::Host),
            ("redis://a:70000", Wrong::Host),
            ("redis://[::1:6379", Wrong::Host),
            ("redis://[::1]6379", Wrong::Host),
            ("redis://[a]:6379", Wrong::Host),
            ("redis://a:+1", Wrong::Host),
            ("redis://a:1:2", Wrong::Host),
            ("redis://a b", Wrong::Host),
            ("redis+cluster://a,,b", Wrong::Host),
            ("redis+sentinel:///m", Wrong::Host),
            ("redis://a,b", Wrong::ManyHosts),
            (&many, Wrong::TooManyHosts),
            ("redis+sentinel://a", Wrong::NoMaster),
            ("redis+sentinel://a:26379,b/", Wrong::NoMaster),
            ("rediss+sentinel://a//1", Wrong::NoMaster),
            ("redis://a/b", Wrong::Database),
            ("redis://a/256", Wrong::Database),
            ("redis+sentinel://a/m/-1", Wrong::Database),
            ("redis+cluster://a/1", Wrong::ClusterDatabase),
            ("redis+unix:redis.sock", Wrong::Socket),
            ("rediss+unix:///run/redis.sock", Wrong::Socket),
        ] {
            assert_eq!(RedisUrl::read(text), Err(wrong), "{text}");
        }
        let most = *limits::REDIS_HOSTS.end();
        let advice = RedisUrl::advice(&many).expect("advice");
        assert!(
            advice.contains(&format!("at most {most} hosts")),
            "{advice}"
        );
        let advice = RedisUrl::advice("redis+sentinel://a").expect("advice");
        assert!(
            advice.contains("redis+sentinel://HOST:PORT,HOST:PORT/MASTER"),
            "{advice}"
        );
    }

    #[test]
    fn a_password_belongs_into_a_file() {
        let advice = RedisUrl::advice("redis://me:secret@a").unwrap();
        assert!(advice.contains("password_file"));
        assert_eq!(RedisUrl::advice("redis://a:6379"), None);
    }
}
