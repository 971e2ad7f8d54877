//! The database that `store.url` names.
//!
//! Owns the accepted forms of the URL. A password is not one of its parts: the configuration is
//! shown, compared and logged, so the password has a file of its own (`store.password_file`).

use std::fmt;

use tokio_postgres::config::{Host, SslMode};

/// The value of `store.url`.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreUrl {
    /// A file in the state folder.
    Sqlite,
    Postgres(Box<PostgresUrl>),
}

/// The URL of a PostgreSQL database, which was checked.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresUrl {
    text: String,
    settings: tokio_postgres::Config,
}

/// Why a URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Form,
    /// A URL without a server.
    Host,
    /// Parameters behind the `?` that the client does not know.
    Parameters,
    Password,
    SslMode,
    Timeout,
}

impl StoreUrl {
    const SQLITE: &'static str = "sqlite";

    pub(crate) const EXPECTED: &'static str = "\"sqlite\", or the URL of a PostgreSQL database \
        such as \"postgres://autoglmd@db.example.com/autoglmd?sslmode=require\" or \
        \"postgres://autoglmd@%2Frun%2Fpostgresql/autoglmd\"";

    pub fn parse(text: &str) -> Option<StoreUrl> {
        StoreUrl::read(text).ok()
    }

    /// Returns better advice than [`StoreUrl::EXPECTED`] for some texts.
    pub(crate) fn advice(text: &str) -> Option<&'static str> {
        match StoreUrl::read(text).err()? {
            Wrong::Form => None,
            Wrong::Host => Some(
                "a URL with the server's name or address, as in \
                 \"postgres://autoglmd@db.example.com/autoglmd\", or with the folder of its Unix \
                 socket, as in \"postgres://autoglmd@%2Frun%2Fpostgresql/autoglmd\"",
            ),
            Wrong::Parameters => Some(
                "a URL whose parameters are some of sslmode, application_name, options, \
                 target_session_attrs, keepalives, keepalives_idle and tcp_user_timeout",
            ),
            Wrong::Password => Some(
                "a URL without a password, because the configuration is shown and logged; put the \
                 password into a file and name that in store.password_file",
            ),
            Wrong::SslMode => Some(
                "sslmode=require (encrypted, and the server's certificate is verified with \
                 store.ca) or sslmode=disable",
            ),
            Wrong::Timeout => Some("a URL without a timeout; set store.connect_timeout"),
        }
    }

    fn read(text: &str) -> Result<StoreUrl, Wrong> {
        if text == StoreUrl::SQLITE {
            return Ok(StoreUrl::Sqlite);
        }
        let is_url = ["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| text.starts_with(scheme));
        if !is_url {
            return Err(Wrong::Form);
        }
        let (base, parameters) = text.split_once('?').unwrap_or((text, ""));
        let parameters = parameters.split('&').filter(|pair| !pair.is_empty());
        let (modes, others): (Vec<&str>, Vec<&str>) =
            parameters.partition(|pair| pair.starts_with("sslmode="));
        let settings = format!("{base}?{}", others.join("&"));
        let mut settings: tokio_postgres::Config = settings.parse().map_err(|_| {
            let is_base_good = base.parse::<tokio_postgres::Config>().is_ok();
            if is_base_good {
                Wrong::Parameters
            } else {
                Wrong::Form
            }
        })?;
        if settings.get_hosts().is_empty() {
            return Err(Wrong::Host);
        }
        if settings.get_password().is_some() {
            return Err(Wrong::Password);
        }
        if settings.get_connect_timeout().is_some() {
            return Err(Wrong::Timeout);
        }
        let is_local = settings.get_hosts().iter().all(is_local);
        settings.ssl_mode(match modes[..] {
            [] if is_local => SslMode::Disable,
            ["sslmode=disable"] => SslMode::Disable,
            // `verify-full` is what `require` means here.
            [] | ["sslmode=require" | "sslmode=verify-full"] => SslMode::Require,
            _ => return Err(Wrong::SslMode),
        });
        let text = text.to_owned();
        Ok(StoreUrl::Postgres(Box::new(PostgresUrl { text, settings })))
    }

    pub fn as_str(&self) -> &str {
        match self {
            StoreUrl::Sqlite => StoreUrl::SQLITE,
            StoreUrl::Postgres(url) => &url.text,
        }
    }

    /// Returns the database if connections to it must be encrypted.
    pub(crate) fn needs_tls(&self) -> bool {
        match self {
            StoreUrl::Sqlite => false,
            StoreUrl::Postgres(url) => url.settings.get_ssl_mode() == SslMode::Require,
        }
    }
}

impl PostgresUrl {
    /// Returns the parts of the URL. TLS is either required or disabled.
    pub fn settings(&self) -> &tokio_postgres::Config {
        &self.settings
    }
}

/// The URL without its parameters: enough to recognise the database in a message.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self
            .text
            .split_once('?')
            .map_or(&*self.text, |(base, _)| base);
        f.write_str(base)
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            let address: Result<std::net::IpAddr, _> = name.parse();
            name == "localhost" || address.is_ok_and(|address| address.is_loopback())
        }
        Host::Unix(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SslMode, Wrong> {
        match StoreUrl::read(text)? {
            StoreUrl::Sqlite => panic!("it is a URL"),
            StoreUrl::Postgres(url) => Ok(url.settings.get_ssl_mode()),
        }
    }

    /// Mutation that this test catches: `is_local` that is true for each name.
    #[test]
    fn connections_to_other_machines_are_encrypted_unless_the_url_refuses() {
        for local in [
            "127.0.0.1:5433",
            "localhost",
            "[::1]",
            "%2Frun%2Fpostgresql",
        ] {
            let url = format!("postgres://me@{local}/db");
            assert_eq!(read(&url), Ok(SslMode::Disable), "{url}");
            let url = format!("postgresql://me@{local}/db?sslmode=require");
            assert_eq!(read(&url), Ok(SslMode::Require), "{url}");
        }
        for (parameters, mode) in [
            ("", SslMode::Require),
            ("?sslmode=disable", SslMode::Disable),
            ("?application_name=a&sslmode=verify-full", SslMode::Require),
        ] {
            for hosts in ["db.example.com", "127.0.0.1,10.0.0.1"] {
                let url = format!("postgres://me@{hosts}/db{parameters}");
                assert_eq!(read(&url), Ok(mode), "{url}");
            }
        }
    }

    #[test]
    fn a_password_and_a_promise_that_is_not_kept_are_refused() {
        for (url, wrong) in [
            ("postgres://me:secret@db/a", Wrong::Password),
            ("postgres://me@db/a?password=secret", Wrong::Password),
            ("postgres://me@db/a?sslmode=prefer", Wrong::SslMode),
            (
                "postgres://me@db/a?sslmode=require&sslmode=disable",
                Wrong::SslMode,
            ),
            ("postgres://me@db/a?connect_timeout=3", Wrong::Timeout),
            ("postgres://me@db/a?colour=red", Wrong::Parameters),
            ("postgres://me@db/a?keepalives_idle=soon", Wrong::Parameters),
            ("postgres:///a", Wrong::Host),
            ("postgres://me@db:port/a", Wrong::Form),
            ("mysql://me@db/a", Wrong::Form),
            ("", Wrong::Form),
        ] {
            assert_eq!(read(url), Err(wrong), "{url}");
        }
    }

    #[test]
    fn a_message_names_the_database_alone() {
        let text = "postgres://me@db/a?sslmode=require&options=-c%20x=y";
        let Some(StoreUrl::Postgres(url)) = StoreUrl::parse(text) else {
            panic!("it is a URL");
        };
        assert_eq!(url.to_string(), "postgres://me@db/a");
        assert_eq!(StoreUrl::Postgres(url).as_str(), text);
    }
}
