//! The state that all TLS sessions of the daemon share, built from configuration and files at once.
//!
//! Owns rustls' server configuration. It never changes: a reload creates another one, and running
//! sessions keep theirs. So a reload drops no connection, and is never half done.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{
    ProducesTickets, ServerSessionMemoryCache, StoresServerSessions, WebPkiClientVerifier,
};
use rustls::{ServerConfig, SupportedProtocolVersion};

use super::files::{self, Material, Problem, Validity};
use super::names::Names;
use super::server_name;
use crate::config::{ClientCertificates, Config, TlsVersion};
use crate::limits::tls as limits;

/// The protocols offered by ALPN (RFC 7301), the preferred one first.
pub const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

#[derive(Debug)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    certificates: Vec<Certificate>,
    resumption: Resumption,
    asks_clients: bool,
}

/// A certificate in use, with its period of validity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub file: String,
    pub validity: Validity,
}

/// The state that recognises earlier sessions.
#[derive(Clone, Debug)]
struct Resumption {
    /// For TLS 1.3, and for 1.2 clients that accept tickets: the client keeps the session,
    /// encrypted under a key that changes every six hours.
    tickets: Arc<dyn ProducesTickets>,
    /// For TLS 1.2 clients that accept no tickets: sessions by their number.
    sessions: Arc<dyn StoresServerSessions>,
}

impl Acceptor {
    /// Reads and checks all files. `Ok(None)`: no certificate is configured, so there is no TLS.
    ///
    /// `credentials` is `$CREDENTIALS_DIRECTORY`; `running` is the acceptor in use, whose clients
    /// may resume their sessions.
    pub fn load(
        config: &Config,
        credentials: Option<&Path>,
        running: Option<&Acceptor>,
    ) -> Result<Option<Arc<Acceptor>>, Vec<Problem>> {
        if config.tls.certificates.is_empty() {
            return Ok(None);
        }
        let provider = Arc::new(server_name::provider());
        let materials = files::read_materials(config, credentials, &provider);
        let authorities = match (config.tls.client_certificates, &config.tls.client_ca) {
            (ClientCertificates::Off, _) | (_, None) => Ok(None),
            (_, Some(path)) => {
                files::read_authorities("server.tls.client_ca", path, credentials).map(Some)
            }
        };
        let (materials, authorities) = match (materials, authorities) {
            (Ok(materials), Ok(authorities)) => (materials, authorities),
            (materials, authorities) => {
                let mut problems = materials.err().unwrap_or_default();
                problems.extend(authorities.err());
                return Err(problems);
            }
        };
        let asks_clients = authorities.is_some();
        let resumption = Resumption::continued(running, asks_clients).map_err(internal)?;
        let mut made = server_config(config, provider, &materials, authorities)?;
        made.session_storage = resumption.sessions.clone();
        made.ticketer = resumption.tickets.clone();
        Ok(Some(Arc::new(Acceptor {
            config: Arc::new(made),
            certificates: materials.iter().map(Certificate::of).collect(),
            resumption,
            asks_clients,
        })))
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Returns the certificates in the order of the configuration.
    pub fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }
}

impl Certificate {
    fn of(material: &Material) -> Certificate {
        Certificate {
            file: material.file.display().to_string(),
            validity: material.validity,
        }
    }

    /// Returns a warning if the certificate is not valid at `now` (seconds since 1970), or expires
    /// within `limits::CERTIFICATE_WARNING_PERIOD`.
    pub fn warning(&self, now: i64) -> Option<String> {
        let Validity {
            begins_at,
            expires_at,
        } = self.validity;
        let file = &self.file;
        if now < begins_at {
            let date = files::date(begins_at);
            return Some(format!(
                "the certificate in {file} is not valid before {date}, so clients will reject it; \
                 check the clock (`timedatectl`), or install the right certificate and reload"
            ));
        }
        let left = expires_at.saturating_sub(now);
        if left >= limits::CERTIFICATE_WARNING_PERIOD.as_secs() as i64 {
            return None;
        }
        let date = files::date(expires_at);
        Some(match left {
            ..=0 => format!(
                "the certificate in {file} expired on {date}, so clients will reject it; renew it \
                 and reload"
            ),
            _ => {
                let days = left / (24 * 3_600);
                format!(
                    "the certificate in {file} expires on {date}, in {days} days; renew it and \
                     reload"
                )
            }
        })
    }
}

impl Resumption {
    /// Returns the old state, so that sessions can be resumed after a reload, unless one of the two
    /// configurations verifies clients. A resumed session is not verified again, so it would carry
    /// an identity over to a configuration that may no longer trust it.
    fn continued(
        running: Option<&Acceptor>,
        asks_clients: bool,
    ) -> Result<Resumption, rustls::Error> {
        match running {
            Some(running) if !running.asks_clients && !asks_clients => {
                Ok(running.resumption.clone())
            }
            _ => Ok(Resumption {
                tickets: Ticketer::new()?,
                sessions: ServerSessionMemoryCache::new(limits::KEPT_SESSIONS_MAX),
            }),
        }
    }
}

fn server_config(
    config: &Config,
    provider: Arc<CryptoProvider>,
    materials: &[Material],
    authorities: Option<rustls::RootCertStore>,
) -> Result<ServerConfig, Vec<Problem>> {
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(config.tls.min_version))
        .map_err(internal)?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match config.tls.client_certificates {
                ClientCertificates::Required => verifier,
                _ => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build().map_err(|error| {
                let message = format!("cannot use these authorities: {error}");
                vec![Problem {
                    key: "server.tls.client_ca".to_owned(),
                    message,
                }]
            })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut made = builder.with_cert_resolver(Arc::new(Names::new(materials)));
    made.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    made.send_tls13_tickets = limits::TICKETS_PER_HANDSHAKE;
    Ok(made)
}

fn versions(least: TlsVersion) -> Vec<&'static SupportedProtocolVersion> {
    match least {
        TlsVersion::V12 => vec![&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V13 => vec![&rustls::version::TLS13],
    }
}

/// Wraps an error that no file can cause.
fn internal(error: rustls::Error) -> Vec<Problem> {
    vec![Problem {
        key: "server.tls".to_owned(),
        message: format!("cannot set up TLS: {error}"),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations that this test catches: `now < begins_at` reversed, `..=0` made `..0`.
    #[test]
    fn a_certificate_is_warned_of_before_its_time_after_it_and_shortly_before_its_end() {
        let certificate = Certificate {
            file: "site.pem".to_owned(),
            validity: Validity {
                begins_at: 1_000_000_000,
                expires_at: 1_100_000_000,
            },
        };
        let warning = |now| certificate.warning(now).unwrap_or_default();
        assert!(warning(0).contains("is not valid before 2001-09-09"));
        assert!(warning(999_999_999).contains("is not valid before"));
        assert_eq!(warning(1_000_000_000), "");
        assert!(warning(1_100_000_000 - 86_400).contains("in 1 days"));
        assert!(warning(1_100_000_000).contains("expired on 2004-11-09"));
        assert!(warning(i64::MAX).contains("expired on"));
    }
}
