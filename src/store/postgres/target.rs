//! Where the database is, and how to get there.
//!
//! Owns the way to a connection: password, certificate authorities, timeouts. The password is read
//! from its file for each connection and kept nowhere else, so that it may change while the daemon
//! runs, and no dump or log of the configuration has it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::limits::store as limits;

#[derive(Clone, Debug)]
pub struct Target {
    /// The URL without parameters, for messages.
    pub name: String,
    /// The URL's parts. TLS is either required or disabled.
    pub settings: Config,
    /// Its first line is the password.
    pub password_file: Option<PathBuf>,
    /// PEM file with the authorities that sign the server's certificate. Needed for TLS.
    pub ca: Option<PathBuf>,
    pub connect_timeout: Duration,
    pub statement_timeout: Duration,
}

impl Target {
    /// Returns the settings of a new connection, with the present password.
    pub fn present_settings(&self) -> Result<Config, String> {
        let mut settings = self.settings.clone();
        if let Some(path) = &self.password_file {
            settings.password(password(path)?);
        }
        if settings.get_application_name().is_none() {
            settings.application_name("autoglmd");
        }
        // The bound of a whole connection is the caller's; this one is for each address of a name.
        settings.connect_timeout(self.connect_timeout);
        settings.tcp_user_timeout(self.statement_timeout + limits::REPLY_MARGIN);
        settings.keepalives_idle(limits::SILENCE_BEFORE_PROBES);
        Ok(settings)
    }

    /// Returns the client's side of TLS; `None` if the connection is not encrypted.
    pub fn connector(&self) -> Result<Option<MakeRustlsConnect>, String> {
        if self.settings.get_ssl_mode() != SslMode::Require {
            return Ok(None);
        }
        let ca = self.ca.as_deref();
        let ca = ca.ok_or("TLS needs the file with the certificate authorities")?;
        let roots = roots(ca).map_err(|error| format!("{}: {error}", ca.display()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        Ok(Some(MakeRustlsConnect::new(config)))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

fn password(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let first = text.lines().next().unwrap_or_default();
    match first.is_empty() {
        true => Err(format!("{}: the first line is empty", path.display())),
        false => Ok(first.to_owned()),
    }
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    match roots.is_empty() {
        true => Err("no certificate; expected PEM".to_owned()),
        false => Ok(roots),
    }
}
