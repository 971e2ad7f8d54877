//! The inputs of a pull from its process and its machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::source::escape_path;
use crate::limits::models as limits;
use crate::os::room;

/// The environment of a pull: the caller reads it once, so that tests have their own.
#[derive(Clone, Debug)]
pub struct Means {
    /// The Python that has pip.
    pub python: PathBuf,
    /// `$HF_ENDPOINT`, such as a mirror, for `hub:` names.
    pub hub_endpoint: String,
    /// `$HF_TOKEN`: sent only to the hub, never to where it redirects or to another URL.
    pub hub_token: Option<String>,
    /// `$SSL_CERT_FILE`, such as a company proxy's certificates, otherwise the system's bundle;
    /// `None` means those that are built in.
    pub certificates: Option<PathBuf>,
    /// How long a source may take to accept a connection.
    pub connect_timeout: Duration,
    /// How long it may take to begin its response, if there is another source.
    pub response_timeout: Duration,
    /// The pause before the first retry; doubled for each further one.
    pub retry_pause: Duration,
    /// For `model optimize`.
    pub optimize: Optimize,
    /// Bytes of memory that are available. `None`: unknown, and not checked.
    pub available_memory: fn() -> Option<u64>,
    /// Bytes of disk space that are available below a folder.
    pub free_disk: fn(&Path) -> Option<u64>,
}

/// Where distributions keep the certificates that the system trusts, in one file.
const SYSTEM_CERTIFICATES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Writes the first file's model to the second with its weights stored in 8 bits each. The error is
/// for people; the caller deletes what was written until then.
pub type Optimize = fn(&Path, &Path) -> Result<(), String>;

impl Means {
    /// Reads the environment and the machine. `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are read
    /// where a connection is made, and pip reads its own variables and files.
    pub fn of_process() -> Means {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Means {
            hub_endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| Means::default().hub_endpoint),
            hub_token: variable("HF_TOKEN"),
            certificates: variable("SSL_CERT_FILE")
                .map(PathBuf::from)
                .or_else(system_certificates),
            available_memory: room::available_memory,
            free_disk: room::free_disk,
            ..Means::default()
        }
    }

    /// Returns the URL of a file of the hub, whose endpoint may end in a slash or not.
    pub(super) fn hub_url(&self, place: &str) -> String {
        let endpoint = self.hub_endpoint.trim_end_matches('/');
        format!("{endpoint}/{}", escape_path(place))
    }
}

fn system_certificates() -> Option<PathBuf> {
    let mut bundles = SYSTEM_CERTIFICATES.iter().map(PathBuf::from);
    bundles.find(|path| path.is_file())
}

impl Default for Means {
    fn default() -> Means {
        Means {
            python: PathBuf::from("python3"),
            hub_endpoint: "https://huggingface.co".to_owned(),
            hub_token: None,
            certificates: None,
            connect_timeout: limits::PULL_CONNECT_TIMEOUT,
            response_timeout: limits::PULL_RESPONSE_TIMEOUT,
            retry_pause: limits::PULL_RETRY_PAUSE,
            optimize: |_, _| Err("no engine is available".to_owned()),
            available_memory: || None,
            free_disk: |_| None,
        }
    }
}
