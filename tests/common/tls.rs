//! Certificates made for one test, and TLS clients that trust them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SignatureAlgorithm,
};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

/// An authority that the test owns.
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub certificate: Certificate,
}

/// A certificate that an authority has signed, with its key.
pub struct Issued {
    pub certificate: Certificate,
    pub key: KeyPair,
}

/// The contents of a certificate.
#[derive(Clone, Default)]
pub struct Wanted<'a> {
    pub hosts: &'a [&'a str],
    pub uri: Option<&'a str>,
    pub common_name: &'a str,
    /// The first day, counted from today; some years ago by default.
    pub begins_in_days: Option<i64>,
    /// Counted from today; a year by default. May be negative.
    pub days: Option<i64>,
    pub algorithm: Option<&'static SignatureAlgorithm>,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Authority {
            params,
            key,
            certificate,
        }
    }

    pub fn issue(&self, wanted: &Wanted<'_>) -> Issued {
        let hosts: Vec<String> = wanted.hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("good names");
        if let Some(uri) = wanted.uri {
            let uri = uri.try_into().expect("a URI is ASCII");
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params
            .distinguished_name
            .push(DnType::CommonName, wanted.common_name);
        let (year, month, day) = in_days(wanted.days.unwrap_or(365));
        params.not_after = rcgen::date_time_ymd(year, month, day);
        let (year, month, day) = wanted.begins_in_days.map_or((2020, 1, 1), in_days);
        params.not_before = rcgen::date_time_ymd(year, month, day);
        let algorithm = wanted.algorithm.unwrap_or(&rcgen::PKCS_ECDSA_P256_SHA256);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Issued { certificate, key }
    }

    /// Issues the certificate of a server with this name.
    pub fn server(&self, host: &str) -> Issued {
        self.issue(&Wanted {
            hosts: &[host],
            ..Wanted::default()
        })
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.certificate.der().clone())
            .expect("an authority's certificate");
        roots
    }

    /// Returns a client that trusts this authority, and shows `client` if the server asks.
    pub fn client(&self, client: Option<&Issued>) -> ClientConfig {
        self.client_of(client, &[&rustls::version::TLS13, &rustls::version::TLS12])
    }

    /// Like `client`, for these versions only.
    pub fn client_of(
        &self,
        client: Option<&Issued>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("known versions")
            .with_root_certificates(self.roots());
        match client {
            None => builder.with_no_client_auth(),
            Some(issued) => builder
                .with_client_auth_cert(vec![issued.certificate.der().clone()], issued.private_key())
                .expect("a key that fits"),
        }
    }
}

impl Issued {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// Writes certificate and key into two files of `folder`.
    pub fn save(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let certificate = folder.join(format!("{name}.pem"));
        let key = folder.join(format!("{name}.key"));
        std::fs::write(&certificate, self.certificate.pem()).expect("the folder can be written");
        std::fs::write(&key, self.key.serialize_pem()).expect("the folder can be written");
        (certificate, key)
    }

    /// Writes both into one file, replacing its contents, as a renewal does.
    pub fn save_together(&self, file: &Path) {
        let text = format!("{}{}", self.certificate.pem(), self.key.serialize_pem());
        let temporary = file.with_extension("new");
        std::fs::write(&temporary, text).expect("the folder can be written");
        std::fs::rename(temporary, file).expect("the folder can be written");
    }
}

/// A configuration that never resumes a session.
pub fn without_resumption(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Returns the date this many days from now.
fn in_days(days: i64) -> (i32, u8, u8) {
    let at = jiff::Timestamp::now().as_second() + days * 24 * 3_600;
    let at = jiff::Timestamp::from_second(at).expect("a date of our time");
    let date = jiff::tz::Offset::UTC.to_datetime(at).date();
    (
        date.year().into(),
        date.month().unsigned_abs(),
        date.day().unsigned_abs(),
    )
}
