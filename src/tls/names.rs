//! Chooses the certificate for a client, by the server name that it asks for and the signatures
//! that it supports.
//!
//! Invariants:
//!  1. A client that asks for an unknown name, or for none, gets the first certificate: the client
//!     decides whether that one will do.
//!  2. Of several certificates for one name, the first is used whose signature the client supports.
//!     So an ECDSA certificate may be listed before an RSA one for old clients.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::files::Material;

pub struct Names {
    /// In the order of the configuration; the first is the default.
    all: Vec<Arc<CertifiedKey>>,
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl Names {
    pub fn new(materials: &[Material]) -> Names {
        let mut by_name: HashMap<String, Vec<Arc<CertifiedKey>>> = HashMap::new();
        for material in materials {
            for name in &material.names {
                let known = by_name.entry(name.clone()).or_default();
                known.push(material.certified.clone());
            }
        }
        let all = materials.iter().map(|material| material.certified.clone());
        Names {
            all: all.collect(),
            by_name,
        }
    }

    fn choose(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let fits = |one: &&Arc<CertifiedKey>| one.key.choose_scheme(schemes).is_some();
        let named = name.and_then(|name| self.find(name));
        let named = named.and_then(|known| known.iter().find(fits));
        named.or_else(|| self.all.iter().find(fits)).cloned()
    }

    /// Looks up the name itself, then a wildcard for its first label (RFC 9525, section 6.3). A
    /// final dot, which RFC 6066 forbids and some clients send, is ignored.
    fn find(&self, name: &str) -> Option<&Vec<Arc<CertifiedKey>>> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let name = name.to_ascii_lowercase();
        self.by_name.get(&name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.by_name.get(&format!("*.{parent}"))
        })
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes())
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_name.keys()).finish()
    }
}
