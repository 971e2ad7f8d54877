//! Reads certificates and private keys from PEM files into the types of rustls.
//!
//! Owns reading, checking, and the messages about problems. Every problem names its file and the
//! way out, because its reader has just broken a daemon that worked. Must never show a key's bytes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::{ClientIdentity, ClientName, Config, CredentialPath};
use crate::limits::tls as limits;
use crate::os;

/// A problem with a file of `[server.tls]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// Such as `server.tls.certificates[1]`.
    pub key: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// A certificate with its key. It need not be valid now: a machine whose clock is wrong at boot
/// must still start, and clients check the time themselves.
#[derive(Debug)]
pub struct Material {
    pub certified: Arc<CertifiedKey>,
    /// The host names that it is for, in lower case, `*.example` among them.
    pub names: Vec<String>,
    pub validity: Validity,
    pub file: PathBuf,
}

/// The period in which a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub begins_at: i64,
    pub expires_at: i64,
}

/// Reads every certificate with its key. Reports all problems at once, as the configuration does.
pub fn read_materials(
    config: &Config,
    credentials: Option<&Path>,
    provider: &CryptoProvider,
) -> Result<Vec<Material>, Vec<Problem>> {
    let (mut materials, mut problems) = (Vec::new(), Vec::new());
    for (index, certificate) in config.tls.certificates.iter().enumerate() {
        let source = Source {
            index,
            certificate,
            key: config.tls.keys.get(index).map(PathBuf::as_path),
            credentials,
        };
        match source.read(provider) {
            Ok(material) => materials.push(material),
            Err(problem) => problems.push(problem),
        }
    }
    match problems.is_empty() {
        true => Ok(materials),
        false => Err(problems),
    }
}

/// Reads the authorities that sign the certificates of peers, for the configuration's `key`.
pub fn read_authorities(
    key: &str,
    path: &Path,
    credentials: Option<&Path>,
) -> Result<RootCertStore, Problem> {
    let (file, bytes) = read(path, credentials).map_err(|message| problem(key, message))?;
    let file = file.display();
    let chain = certificates(&bytes).map_err(|why| problem(key, format!("{file} {why}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in chain {
        let added = roots.add(certificate);
        added.map_err(|error| {
            problem(
                key,
                format!("{file} holds a certificate that is not an authority's: {error}"),
            )
        })?;
    }
    Ok(roots)
}

/// One pair of files from the configuration.
struct Source<'a> {
    index: usize,
    certificate: &'a Path,
    /// `None`: the key is in the certificate's file.
    key: Option<&'a Path>,
    credentials: Option<&'a Path>,
}

impl Source<'_> {
    fn read(&self, provider: &CryptoProvider) -> Result<Material, Problem> {
        let name = format!("server.tls.certificates[{}]", self.index);
        let (file, bytes) =
            read(self.certificate, self.credentials).map_err(|message| problem(&name, message))?;
        let fail = |why: String| problem(&name, format!("{} {why}", file.display()));
        let chain = certificates(&bytes).map_err(fail)?;
        let leaf = Leaf::parse(&chain[0]).map_err(fail)?;
        let (key, key_file) = self.read_key(&file, &bytes)?;
        let certified = CertifiedKey::from_der(chain, key, provider)
            .map_err(|error| self.unfit_key(&file, &key_file, &error))?;
        Ok(Material {
            certified: Arc::new(certified),
            names: leaf.names,
            validity: leaf.validity,
            file,
        })
    }

    fn key_name(&self) -> String {
        match self.key {
            Some(_) => format!("server.tls.keys[{}]", self.index),
            None => format!("server.tls.certificates[{}]", self.index),
        }
    }

    fn read_key(
        &self,
        certificate_file: &Path,
        certificate: &[u8],
    ) -> Result<(PrivateKeyDer<'static>, PathBuf), Problem> {
        let name = self.key_name();
        let (file, bytes) = match self.key {
            Some(path) => {
                let read = read(path, self.credentials);
                read.map_err(|message| problem(&name, message))?
            }
            None => (certificate_file.to_owned(), certificate.to_owned()),
        };
        match PrivateKeyDer::from_pem_slice(&bytes) {
            Ok(key) => Ok((key, file)),
            Err(error) => {
                let why = unreadable_key(&bytes, &error, self.key.is_none());
                Err(problem(&name, format!("{} {why}", file.display())))
            }
        }
    }

    fn unfit_key(&self, certificate: &Path, key: &Path, error: &Error) -> Problem {
        let (certificate, key) = (certificate.display(), key.display());
        let message = match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
                "the private key in {key} does not belong to the first certificate in \
                 {certificate}; put the server's own certificate first, and name the key that it \
                 was made with"
            ),
            other => format!(
                "cannot use the private key in {key}: {other}; expected RSA of 2,048 bits or more, \
                 ECDSA on P-256, P-384 or P-521, or Ed25519"
            ),
        };
        problem(&self.key_name(), message)
    }
}

/// The names in a server's or client's own certificate.
struct Leaf {
    names: Vec<String>,
    validity: Validity,
}

impl Leaf {
    fn parse(der: &[u8]) -> Result<Leaf, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| {
            format!("holds something that is not an X.509 certificate: {error}")
        })?;
        let validity = certificate.validity();
        Ok(Leaf {
            names: host_names(&certificate),
            validity: Validity {
                begins_at: validity.not_before.timestamp(),
                expires_at: validity.not_after.timestamp(),
            },
        })
    }
}

fn host_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = alternative_names(certificate).into_iter();
    let hosts = names.filter_map(|name| match name {
        ClientName::Dns(name) => Some(name),
        _ => None,
    });
    hosts.collect()
}

/// Returns the client that a certificate names. Its signature must have been verified already.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<ClientIdentity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut names = alternative_names(&parsed);
    let common = parsed.subject().iter_common_name();
    let common = common.filter_map(|attribute| attribute.as_str().ok());
    names.extend(common.map(|name| ClientName::CommonName(name.to_owned())));
    names.truncate(limits::CLIENT_NAMES_MAX);
    Some(ClientIdentity {
        fingerprint: sha256(certificate),
        names,
    })
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<ClientName> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    let known = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(ClientName::Dns(name.to_ascii_lowercase())),
        GeneralName::URI(name) => Some(ClientName::Uri((*name).to_owned())),
        GeneralName::RFC822Name(name) => Some(ClientName::Email((*name).to_owned())),
        _ => None,
    });
    known.collect()
}

/// Parses the certificates of a PEM file, at least one.
fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match found {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(
            "holds no certificate; expected PEM with a line -----BEGIN CERTIFICATE-----".to_owned(),
        ),
        Err(error) => Err(format!("is not PEM: {}", pem_error(&error))),
    }
}

fn unreadable_key(bytes: &[u8], error: &pem::Error, in_certificate_file: bool) -> String {
    let holds = |words: &[u8]| bytes.windows(words.len()).any(|part| part == words);
    if holds(b"ENCRYPTED PRIVATE KEY") || holds(b"Proc-Type: 4,ENCRYPTED") {
        return "holds a key that is protected by a passphrase; remove it with `openssl pkey -in \
                FILE -out NEW` and protect the file by its mode"
            .to_owned();
    }
    match error {
        pem::Error::NoItemsFound if in_certificate_file => {
            "holds no private key, and server.tls.keys names no file for it; add the key's file \
             there"
                .to_owned()
        }
        pem::Error::NoItemsFound => "holds no private key; expected PEM with a line -----BEGIN \
                                     PRIVATE KEY-----"
            .to_owned(),
        other => format!("is not PEM: {}", pem_error(other)),
    }
}

/// Rewords the library's errors, which show lines as lists of numbers.
fn pem_error(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "a section has no -----END line; the file seems to be cut off".to_owned()
        }
        pem::Error::IllegalSectionStart { .. } => "a -----BEGIN line is malformed".to_owned(),
        pem::Error::Base64Decode(_) => "a section is not base64".to_owned(),
        other => other.to_string(),
    }
}

fn read(path: &Path, credentials: Option<&Path>) -> Result<(PathBuf, Vec<u8>), String> {
    let file = CredentialPath(path).resolve(credentials)?;
    let shown = file.display();
    match os::file::read_up_to(&file, limits::CERTIFICATES_BYTES_MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(format!(
            "cannot read {shown}: {error}; let this user read it, or pass it as a credential \
             (LoadCredential=)"
        )),
        Err(error) => Err(format!("cannot read {shown}: {error}")),
        Ok(bytes) if bytes.len() as u64 > limits::CERTIFICATES_BYTES_MAX => Err(format!(
            "{shown} is larger than 16 MiB; expected a PEM file"
        )),
        Ok(bytes) => Ok((file, bytes)),
    }
}

fn problem(key: &str, message: String) -> Problem {
    let key = key.to_owned();
    Problem { key, message }
}

/// Formats a date as `2027-01-31 12:00:00 UTC`.
pub fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| format!("second {seconds} since 1970"),
        |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}
