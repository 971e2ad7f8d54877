//! Connects to a Redis server: directly, to the master that sentinels name, or to a node of a
//! cluster.
//!
//! Owns the settings of a connection, and the search for a server that responds. Each call makes
//! one attempt, within the timeout for each step, so a thread that calls it can be stopped soon.
//! The crate's own clients for Sentinel and clusters are not used: the first one connects without
//! a time limit, and the second one repeats each command of a failed pipeline alone, with pauses.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::redis::io::tcp::TcpSettings;
use ::redis::{
    Client, Connection, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError,
    RedisResult, TlsCertificates, cmd,
};

use crate::config::{CacheShared, CredentialPath, RedisHost, RedisServers, RedisUrl};
use crate::limits::redis as limits;
use crate::os::file::read_up_to;

/// The address, and the files with secrets, which are read at each connect.
#[derive(Clone, Debug)]
pub struct Settings {
    pub url: RedisUrl,
    pub timeout: Duration,
    password_file: Option<PathBuf>,
    authorities_file: Option<PathBuf>,
}

impl Settings {
    /// Returns the settings of the configuration; `None` without Redis. `credentials` is
    /// `$CREDENTIALS_DIRECTORY`.
    pub fn of(
        config: &CacheShared,
        credentials: Option<PathBuf>,
    ) -> Result<Option<Settings>, String> {
        let Some(url) = config.url.clone() else {
            return Ok(None);
        };
        let resolve = |path: &Option<PathBuf>| match path {
            Some(path) => CredentialPath(path)
                .resolve(credentials.as_deref())
                .map(Some),
            None => Ok(None),
        };
        Ok(Some(Settings {
            url,
            timeout: config.timeout,
            password_file: resolve(&config.password_file)?,
            authorities_file: resolve(&config.ca)?,
        }))
    }

    fn password(&self) -> RedisResult<Option<String>> {
        let Some(path) = &self.password_file else {
            return Ok(None);
        };
        let key = "cache.shared.password_file";
        let bytes = read_named(key, path, limits::PASSWORD_BYTES_MAX)?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(_) => Err(misused(
                "the file of cache.shared.password_file is not UTF-8",
            )),
        }
    }

    fn certificates(&self) -> RedisResult<TlsCertificates> {
        let authorities = self.authorities_file.as_ref();
        let most = limits::AUTHORITY_BYTES_MAX;
        let read = authorities.map(|path| read_named("cache.shared.ca", path, most));
        Ok(TlsCertificates {
            client_tls: None,
            root_cert: read.transpose()?,
        })
    }
}

/// Reads the file of a key of the configuration. Its errors are logged beside the server's address,
/// so they must say that a file is meant, and which one.
fn read_named(key: &str, path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_up_to(path, most).map_err(|error| {
        let message = format!("{key}: {}: {error}", path.display());
        io::Error::new(error.kind(), message)
    })
}

/// The place of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Host(RedisHost),
    Socket(PathBuf),
}

/// Makes connections.
#[derive(Debug)]
pub struct Dialer {
    settings: Settings,
    /// The sentinel or node to ask next: after a failure another one is asked.
    next: usize,
}

impl Dialer {
    pub fn new(settings: Settings) -> Dialer {
        Dialer { settings, next: 0 }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes one attempt to connect to the server, to the master, or to one node of the cluster.
    pub fn dial(&mut self) -> RedisResult<Connection> {
        let dialed = match &self.settings.url.servers {
            RedisServers::Single(host) => self.dial_place(&Place::Host(host.clone())),
            RedisServers::Socket(path) => self.dial_place(&Place::Socket(path.clone())),
            RedisServers::Sentinel(hosts, name) => self.dial_master(&hosts[self.next], name),
            RedisServers::Cluster(hosts) => self.dial_place(&Place::Host(hosts[self.next].clone())),
        };
        if dialed.is_err()
            && let RedisServers::Sentinel(hosts, _) | RedisServers::Cluster(hosts) =
                &self.settings.url.servers
        {
            self.next = (self.next + 1) % hosts.len();
        }
        dialed
    }

    /// Connects to this server, with user, password and database.
    pub fn dial_place(&self, place: &Place) -> RedisResult<Connection> {
        let url = &self.settings.url;
        let mut info = self.info(place)?;
        let mut redis = info.redis_settings().clone().set_db(url.database.into());
        if let Some(password) = self.settings.password()? {
            redis = redis.set_password(password);
        }
        if !url.user.is_empty() {
            redis = redis.set_username(&url.user);
        }
        info = info.set_redis_settings(redis);
        self.connect(info)
    }

    /// Asks a sentinel for the master, connects to that, and checks that it is one: a sentinel may
    /// not know yet that another server has become the master.
    fn dial_master(&self, sentinel: &RedisHost, name: &str) -> RedisResult<Connection> {
        let place = Place::Host(sentinel.clone());
        let mut connection = self.connect(self.info(&place)?)?;
        let mut question = cmd("SENTINEL");
        question.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
        let found: Option<(String, u16)> = question.query(&mut connection)?;
        let (name, port) = found.ok_or_else(|| misused("the sentinel does not know this name"))?;
        let mut master = self.dial_place(&Place::Host(RedisHost { name, port }))?;
        let role: Vec<::redis::Value> = cmd("ROLE").query(&mut master)?;
        let is_master = match role.first() {
            Some(::redis::Value::BulkString(word)) => word == b"master",
            _ => false,
        };
        match is_master {
            true => Ok(master),
            false => Err(misused(
                "the sentinel names a server that is not the master",
            )),
        }
    }

    fn info(&self, place: &Place) -> RedisResult<ConnectionInfo> {
        let address = match place {
            Place::Socket(path) => ConnectionAddr::Unix(path.clone()),
            Place::Host(host) if self.settings.url.is_tls => ConnectionAddr::TcpTls {
                host: host.name.clone(),
                port: host.port,
                insecure: false,
                tls_params: None,
            },
            Place::Host(host) => ConnectionAddr::Tcp(host.name.clone(), host.port),
        };
        address.into_connection_info()
    }

    fn connect(&self, info: ConnectionInfo) -> RedisResult<Connection> {
        let timeout = self.settings.timeout;
        // A peer that has gone without a word is given up by the kernel, too.
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_user_timeout(timeout.max(Duration::from_secs(1)));
        let redis = info.redis_settings().clone().set_skip_set_lib_name();
        let info = info.set_tcp_settings(tcp).set_redis_settings(redis);
        let client = match info.addr() {
            ConnectionAddr::TcpTls { .. } => {
                Client::build_with_tls(info, self.settings.certificates()?)?
            }
            _ => Client::open(info)?,
        };
        let mut connection = client.get_connection_with_timeout(timeout)?;
        connection.set_read_timeout(Some(timeout))?;
        connection.set_write_timeout(Some(timeout))?;
        // The kernel accepts connections for a process that is stopped.
        cmd("PING").exec(&mut connection)?;
        Ok(connection)
    }
}

fn misused(message: &'static str) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, message))
}
