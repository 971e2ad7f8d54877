//! A certificate for the tests of this crate, and clients that trust it.
//!
//! Ed25519, because its signatures have one length: lengths are the same in each run.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::{Acceptor, Connector};
use crate::config::Config;

/// Returns the acceptor of all tests, which has a certificate for `localhost`.
pub fn acceptor() -> Arc<Acceptor> {
    made().0.clone()
}

fn made() -> &'static (Arc<Acceptor>, CertificateDer<'static>) {
    static MADE: OnceLock<(Arc<Acceptor>, CertificateDer<'static>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]);
        let made = params.expect("a good name").self_signed(&key);
        let certificate = made.expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("site.pem");
        let text = format!("{}{}", certificate.pem(), key.serialize_pem());
        std::fs::write(&file, text).expect("a file");
        let mut config = Config::default();
        config.tls.certificates = vec![file];
        let acceptor = Acceptor::load(&config, None, None);
        let acceptor = acceptor.expect("good files").expect("a certificate");
        (acceptor, certificate.der().clone())
    })
}

/// Returns a server with that certificate, of which the test itself has the other end.
pub fn server() -> Arc<ServerConfig> {
    acceptor().config()
}

/// Returns the same with a group for which clients send no key share at first: each is asked for
/// another ClientHello (RFC 8446, section 4.1.4).
pub fn asking_server() -> Arc<ServerConfig> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1];
    let builder = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a known version");
    let resolver = server().cert_resolver.clone();
    Arc::new(builder.with_no_client_auth().with_cert_resolver(resolver))
}

/// Returns a client that speaks one version and resumes nothing.
pub fn client(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(made().1.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a known version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Returns the connector of all tests, which trusts the acceptor's certificate.
pub fn connector() -> Arc<Connector> {
    let config = client(&rustls::version::TLS13);
    Arc::new(Connector::of((*config).clone()))
}
