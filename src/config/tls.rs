//! The values of `[server.tls]`: versions, whether clients need certificates, and which key a
//! client's certificate stands for.
//!
//! Owns their written form, and the comparison of a certificate's names with them. Must never read
//! a file or a certificate: the caller provides a [`ClientIdentity`].

use std::fmt;
use std::path::{Path, PathBuf};

use super::words::{Word, word};

/// The value of `server.tls.min_version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    V12,
    V13,
}

/// The value of `server.tls.client_certificates`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Clients are not asked for one.
    Off,
    /// Clients are asked; one that shows none is served by its key alone.
    Optional,
    /// A handshake without one fails.
    Required,
}

impl ClientCertificates {
    pub fn as_str(self) -> &'static str {
        word(self)
    }
}

impl Word for TlsVersion {
    const WORDS: &'static [(&'static str, Self)] =
        &[("1.2", TlsVersion::V12), ("1.3", TlsVersion::V13)];
}

impl Word for ClientCertificates {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", ClientCertificates::Off),
        ("optional", ClientCertificates::Optional),
        ("required", ClientCertificates::Required),
    ];
}

/// A client's identity by its certificate, which one of our authorities has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// SHA-256 of the certificate's DER.
    pub fingerprint: [u8; 32],
    pub names: Vec<ClientName>,
}

/// One of the names in a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClientName {
    Dns(String),
    Uri(String),
    Email(String),
    CommonName(String),
}

/// One element of `server.tls.client_keys`: a certificate's name, and the key that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientKey {
    pattern: Pattern,
    /// A key's id or, if no key has this id, its name.
    pub key: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Name(ClientName),
    Fingerprint([u8; 32]),
}

impl ClientKey {
    pub(crate) const EXAMPLE: &'static str = "dns:agent.example = key_5f0c92ab61d7";

    pub(crate) const EXPECTED: &'static str = "a name and a key such as \"dns:agent.example = \
                                               key_5f0c92ab61d7\"; the name begins with dns:, \
                                               uri:, email: or cn:, or is sha256: and 64 \
                                               hexadecimal digits";

    /// Parses the written form; see [`ClientKey::EXPECTED`].
    pub fn parse(text: &str) -> Option<ClientKey> {
        // A key's name may contain an equals sign, a common name seldom does: the first one
        // separates.
        let (pattern, key) = text.split_once(" = ")?;
        let (kind, value) = pattern.trim().split_once(':')?;
        let (value, key) = (value.trim(), key.trim());
        if value.is_empty() || key.is_empty() || text.contains('\0') {
            return None;
        }
        let pattern = match kind {
            // Host names are compared without case (RFC 4343).
            "dns" => Pattern::Name(ClientName::Dns(value.to_ascii_lowercase())),
            "uri" => Pattern::Name(ClientName::Uri(value.to_owned())),
            "email" => Pattern::Name(ClientName::Email(value.to_owned())),
            "cn" => Pattern::Name(ClientName::CommonName(value.to_owned())),
            "sha256" => Pattern::Fingerprint(parse_fingerprint(value)?),
            _ => return None,
        };
        let key = key.to_owned();
        Some(ClientKey { pattern, key })
    }

    /// Returns whether this element is about this certificate.
    pub fn fits(&self, identity: &ClientIdentity) -> bool {
        match &self.pattern {
            Pattern::Name(name) => identity.names.contains(name),
            Pattern::Fingerprint(fingerprint) => *fingerprint == identity.fingerprint,
        }
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pattern {
            Pattern::Name(ClientName::Dns(name)) => write!(f, "dns:{name}")?,
            Pattern::Name(ClientName::Uri(name)) => write!(f, "uri:{name}")?,
            Pattern::Name(ClientName::Email(name)) => write!(f, "email:{name}")?,
            Pattern::Name(ClientName::CommonName(name)) => write!(f, "cn:{name}")?,
            Pattern::Fingerprint(bytes) => {
                f.write_str("sha256:")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            }
        }
        write!(f, " = {}", self.key)
    }
}

/// Parses a fingerprint as `openssl x509 -fingerprint` prints it, with or without colons.
fn parse_fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |character: u8| char::from(character).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

/// A path of the configuration that may name a credential of the service manager.
#[derive(Clone, Copy, Debug)]
pub struct CredentialPath<'a>(pub &'a Path);

impl CredentialPath<'_> {
    const PREFIX: &'static str = "credential:";

    /// Returns the file itself. `folder` is `$CREDENTIALS_DIRECTORY` (systemd.exec(5)).
    pub fn resolve(self, folder: Option<&Path>) -> Result<PathBuf, String> {
        let text = self.0.to_string_lossy();
        let Some(name) = text.strip_prefix(CredentialPath::PREFIX) else {
            return Ok(self.0.to_owned());
        };
        let Some(folder) = folder else {
            return Err(format!(
                "{text}: $CREDENTIALS_DIRECTORY is not set; add LoadCredential={name}:/path to the \
                 unit, or use the path of the file"
            ));
        };
        // A credential's name is a plain file name and leads nowhere else.
        match name.contains('/') || name == ".." || name.is_empty() {
            true => Err(format!("{text}: expected credential:NAME without a slash")),
            false => Ok(folder.join(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_a_type_is_in_its_table() {
        assert_eq!([TlsVersion::V12, TlsVersion::V13].map(word), ["1.2", "1.3"]);
        assert_eq!(
            [
                ClientCertificates::Off,
                ClientCertificates::Optional,
                ClientCertificates::Required,
            ]
            .map(word),
            ["off", "optional", "required"]
        );
    }

    #[test]
    fn pairs_are_read_and_written_alike() {
        let digits = "0123456789abcdef".repeat(4);
        for text in [
            "dns:agent.example = key_5f0c92ab61d7",
            "uri:spiffe://house/agent = agents",
            "email:a@b.example = a = b",
            "cn:the phone = key_5f0c92ab61d7",
            &format!("sha256:{digits} = phones"),
        ] {
            let read = ClientKey::parse(text).expect(text);
            assert_eq!(read.to_string(), text);
        }
        for text in [
            "",
            "agent.example = key",
            "dns:agent.example",
            "dns: = key",
            "dns:a = ",
            "ip:1.2.3.4 = key",
            "sha256:0123 = key",
            &format!("sha256:{}zz = key", &digits[2..]),
        ] {
            assert_eq!(ClientKey::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_certificate_is_recognised_by_any_of_its_names_or_its_fingerprint() {
        let identity = ClientIdentity {
            fingerprint: [0xab; 32],
            names: vec![
                ClientName::Dns("agent.example".into()),
                ClientName::CommonName("agent".into()),
            ],
        };
        let fits = |text: &str| ClientKey::parse(text).expect(text).fits(&identity);
        assert!(fits("dns:AGENT.example = k") && fits("cn:agent = k"));
        let colons = ["AB"; 32].join(":");
        assert!(fits(&format!("sha256:{colons} = k")));
        assert!(!fits("cn:agent.example = k"), "a name of another kind");
        assert!(!fits("dns:other.example = k"));
        assert!(!fits(&format!("sha256:{} = k", "ac".repeat(32))));
    }

    #[test]
    fn a_credential_lies_in_its_folder_and_nowhere_else() {
        let resolve = |text: &str, folder: Option<&str>| {
            CredentialPath(Path::new(text)).resolve(folder.map(Path::new))
        };
        assert_eq!(resolve("/etc/a.pem", None), Ok("/etc/a.pem".into()));
        let found = resolve("credential:site", Some("/run/credentials/a"));
        assert_eq!(found, Ok("/run/credentials/a/site".into()));
        let unset = resolve("credential:site", None).expect_err("no folder");
        assert!(unset.contains("LoadCredential=site:"), "{unset}");
        for text in ["credential:../a", "credential:", "credential:.."] {
            assert!(resolve(text, Some("/run")).is_err(), "{text}");
        }
    }
}
