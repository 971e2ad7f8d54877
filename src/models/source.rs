//! The sources of models: the catalogue, URLs, a hub's names, files, and other models. Pure.

use std::fmt;
use std::path::PathBuf;

use super::catalogue::Entry;
use super::error::ModelError;
use crate::limits::models as limits;

/// The source of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Catalogue(&'static Entry),
    Url(String),
    /// `hub:OWNER/REPO/FILE.gguf`; the file may be in folders of the repository.
    Hub {
        owner: String,
        repository: String,
        file: String,
    },
    /// The model of this name, with its weights stored in another way.
    Optimized(String),
    /// A file of this machine.
    File(PathBuf),
}

impl Source {
    pub fn parse(text: &str) -> Result<Source, ModelError> {
        if let Some(place) = text.strip_prefix("hub:") {
            let mut parts = place.splitn(3, '/').map(str::to_owned);
            let (Some(owner), Some(repository), Some(file)) =
                (parts.next(), parts.next(), parts.next())
            else {
                return Err(ModelError::BadSource(text.to_owned()));
            };
            if owner.is_empty() || repository.is_empty() || !file.ends_with(".gguf") {
                return Err(ModelError::BadSource(text.to_owned()));
            }
            return Ok(Source::Hub {
                owner,
                repository,
                file,
            });
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Source::Url(text.to_owned()));
        }
        Entry::find(text)
            .map(Source::Catalogue)
            .ok_or_else(|| ModelError::UnknownName(text.to_owned()))
    }

    /// Returns the name under which the file is kept: its own, without folders, query and `.gguf`;
    /// the name of an optimized one shows how its weights are stored.
    pub fn name(&self) -> Result<String, ModelError> {
        let path = match self {
            Source::Catalogue(entry) => return Ok(entry.name.to_owned()),
            Source::Optimized(name) => {
                check_name(name)?;
                return Ok(format!("{name}-q8_0"));
            }
            Source::Url(url) => url.split(['?', '#']).next().unwrap_or(url),
            Source::Hub { file, .. } => file,
            Source::File(path) => &path.to_string_lossy(),
        };
        let last = path.rsplit('/').next().unwrap_or(path);
        let name = last.strip_suffix(".gguf").unwrap_or(last);
        check_name(name)?;
        Ok(name.to_owned())
    }
}

/// The form of the command line, so that it can be used there again.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Catalogue(entry) => f.write_str(entry.name),
            Source::Url(url) => f.write_str(url),
            Source::Hub {
                owner,
                repository,
                file,
            } => {
                write!(f, "hub:{owner}/{repository}/{file}")
            }
            Source::Optimized(name) => write!(f, "optimize:{name}"),
            Source::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// Checks that a name is one path component that cannot be `..`, hidden or an option.
pub(super) fn check_name(name: &str) -> Result<(), ModelError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let good = (1..=limits::MODEL_NAME_BYTES_MAX).contains(&name.len())
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(inner);
    match good {
        true => Ok(()),
        false => Err(ModelError::BadName(name.to_owned())),
    }
}

/// Percent-encodes bytes that are not allowed in a URL's path (RFC 3986, section 3.3).
pub(super) fn escape_path(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::DEFAULT_MODEL;
    use super::*;

    #[test]
    fn sources_are_read_and_named() {
        for (text, name) in [
            (DEFAULT_MODEL, DEFAULT_MODEL),
            (
                "https://example.org/a/Some-Model.Q4_0.gguf?download=true#x",
                "Some-Model.Q4_0",
            ),
            ("http://127.0.0.1:1/m.gguf", "m"),
            ("hub:owner/repository/m.gguf", "m"),
            ("hub:owner/repository/folder/m.gguf", "m"),
        ] {
            assert_eq!(Source::parse(text).unwrap().name().unwrap(), name, "{text}");
        }
        for wrong in [
            "hub:",
            "hub:a/b",
            "hub:a/b/",
            "hub:a/b/c.bin",
            "hub://c.gguf",
            "ftp://x/y",
        ] {
            assert!(Source::parse(wrong).is_err(), "{wrong}");
        }
        let optimized = Source::Optimized("m.Q4_1".to_owned());
        assert_eq!(optimized.name().unwrap(), "m.Q4_1-q8_0");
        // An impossible name is refused before anything is fetched.
        for unnamed in [
            "https://example.org/",
            "https://example.org/..",
            "http://x/-a.gguf",
        ] {
            let name = Source::parse(unnamed).unwrap().name();
            assert!(matches!(name, Err(ModelError::BadName(_))), "{unnamed}");
        }
    }

    #[test]
    fn source_is_shown_as_it_is_given() {
        for text in [DEFAULT_MODEL, "http://h/m.gguf?x", "hub:o/r/d/m.gguf"] {
            assert_eq!(Source::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn paths_are_escaped_but_for_their_slashes() {
        assert_eq!(
            escape_path("a/b c+\u{e9}?.gguf"),
            "a/b%20c%2B%C3%A9%3F.gguf"
        );
    }
}
