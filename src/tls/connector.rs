//! The state that all of the daemon's own TLS connections share: trusted authorities, versions,
//! tickets.
//!
//! Owns rustls' configuration of the client's side. The authorities are those of Mozilla, which are
//! built in, or those of a file, such as the system's own list. Must never accept a server without
//! the check of its certificate against its name: there is no switch for it.

use std::path::Path;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, Error, RootCertStore};

use super::Session;
use super::files::{Problem, read_authorities};
use crate::core::pool::BufferPool;
use crate::http::origin::Host;

/// See the file's head.
pub struct Connector {
    config: Arc<ClientConfig>,
}

/// The protocols offered: a server that speaks HTTP/2 alone would refuse, and rightly.
const PROTOCOLS: [&[u8]; 1] = [b"http/1.1"];

impl Connector {
    /// Reads the authorities of a file (`outbound.ca`), which may be a credential in that folder;
    /// `None`: those that are built in.
    pub fn load(
        authorities: Option<&Path>,
        credentials: Option<&Path>,
    ) -> Result<Connector, Problem> {
        const KEY: &str = "outbound.ca";
        let roots = match authorities {
            Some(path) => read_authorities(KEY, path, credentials)?,
            None => RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder
            .with_safe_default_protocol_versions()
            .map_err(|error| Problem {
                key: KEY.to_owned(),
                message: format!("cannot set up TLS: {error}"),
            })?;
        let builder = builder.with_root_certificates(roots);
        Ok(Connector::of(builder.with_no_client_auth()))
    }

    /// Uses a configuration as it is, apart from the protocols.
    pub(super) fn of(mut config: ClientConfig) -> Connector {
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Connector {
            config: Arc::new(config),
        }
    }

    /// Begins a session with a server: its first message is in the queue.
    pub fn session(
        &self,
        host: &Host,
        pool: &mut BufferPool,
    ) -> Result<Box<Session<UnbufferedClientConnection>>, Error> {
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.to_string())
                .map_err(|error| Error::General(error.to_string()))?,
            Host::Address(address) => ServerName::from(*address),
        };
        let tls = UnbufferedClientConnection::new(self.config.clone(), name)?;
        let mut session = Box::new(Session::of(tls));
        // Without input: rustls hands out its ClientHello.
        session
            .handle_input(&mut [], &mut [], pool)
            .map_err(|failed| failed.error)?;
        Ok(session)
    }
}
