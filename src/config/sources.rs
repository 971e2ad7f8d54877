//! The sources of configuration: a file, the environment, flags; and the two folders.
//!
//! The caller reads everything from the process into [`Sources`] once. All functions here work on
//! that, so that tests control their environment and a reload sees the same as the start.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// The place in the file's bytes, and its line, from 1.
    File {
        span: Range<usize>,
        line: usize,
    },
    Environment(String),
    Flag(&'static str),
}

/// The inputs of a configuration. The daemon keeps them for its reloads.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    pub environment: Vec<(String, String)>,
    pub flags: Overrides,
}

/// The values of flags. The schema checks the texts, as it does those of the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--listen`, which may be given several times.
    pub listen: Vec<String>,
    pub state_dir: Option<PathBuf>,
    pub model: Option<String>,
    pub engine: Option<String>,
    pub parallel: Option<String>,
    pub threads: Option<String>,
    pub reactors: Option<String>,
    pub log_level: Option<String>,
}

/// A possible path of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Candidate {
    pub path: PathBuf,
    /// The flag or variable that names it. Such a file must exist; others may be missing.
    pub named_by: Option<&'static str>,
}

const FILE_NAME: &str = "autoglmd.toml";
const SYSTEM_FILE: &str = "/etc/autoglmd/autoglmd.toml";
/// It names the file, so it does not belong to any section.
pub const FILE_VARIABLE: &str = "AUTOGLMD_CONFIG";

impl Sources {
    /// Takes the environment of this process, with the given file and flags. A variable that is not
    /// UTF-8 keeps replacement characters, which [`is_readable`] finds.
    pub fn of_process(file: Option<PathBuf>, flags: Overrides) -> Sources {
        let environment = std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect();
        Sources {
            file,
            environment,
            flags,
        }
    }

    /// Returns a variable's value. An empty one counts as unset, as the XDG specification requires.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let found = self.environment.iter().find(|(known, _)| known == name);
        found
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// Returns the folder of the files that `LoadCredential=` names (systemd.exec(5)).
    pub fn credentials_dir(&self) -> Option<PathBuf> {
        self.variable("CREDENTIALS_DIRECTORY").map(PathBuf::from)
    }

    /// Returns the possible files; the first that exists is used.
    pub fn candidates(&self) -> Vec<Candidate> {
        if let Some(path) = &self.file {
            return vec![Candidate {
                path: path.clone(),
                named_by: Some("--config"),
            }];
        }
        if let Some(path) = self.variable(FILE_VARIABLE) {
            return vec![Candidate {
                path: path.into(),
                named_by: Some(FILE_VARIABLE),
            }];
        }
        let unnamed = |path: PathBuf| Candidate {
            path,
            named_by: None,
        };
        let service = self.variable("CONFIGURATION_DIRECTORY").map(first_of_list);
        let mut candidates: Vec<_> = service
            .map(|folder| unnamed(folder.join(FILE_NAME)))
            .into_iter()
            .collect();
        candidates.push(unnamed(SYSTEM_FILE.into()));
        candidates
    }

    /// Returns the folder of the database and the bootstrap key.
    pub fn state_dir(&self) -> Result<(PathBuf, Origin), String> {
        if let Some(path) = &self.flags.state_dir {
            return match path.as_os_str().is_empty() {
                true => Err("--state-dir is empty; expected a folder".to_owned()),
                false => Ok((path.clone(), Origin::Flag("--state-dir"))),
            };
        }
        let state = Folder {
            what: "the database",
            service: "STATE_DIRECTORY",
            xdg: "XDG_STATE_HOME",
            below_home: ".local/state",
            flag: "--state-dir, ",
        };
        self.folder(&state)
    }

    /// Returns the folder of the models.
    pub fn cache_dir(&self) -> Result<(PathBuf, Origin), String> {
        let cache = Folder {
            what: "models",
            service: "CACHE_DIRECTORY",
            xdg: "XDG_CACHE_HOME",
            below_home: ".cache",
            flag: "",
        };
        self.folder(&cache)
    }

    fn folder(&self, folder: &Folder) -> Result<(PathBuf, Origin), String> {
        let Folder {
            what,
            service,
            xdg,
            below_home,
            flag,
        } = *folder;
        let (path, variable) = if let Some(list) = self.variable(service) {
            (first_of_list(list), service)
        } else if let Some(base) = self.absolute(xdg) {
            (base.join("autoglmd"), xdg)
        } else if let Some(home) = self.absolute("HOME") {
            (home.join(below_home).join("autoglmd"), "HOME")
        } else {
            return Err(format!(
                "no folder for {what}: HOME is not set to an absolute path; \
                 set {flag}{service}, {xdg} or HOME"
            ));
        };
        match path.to_str().is_some_and(is_readable) {
            true => Ok((path, Origin::Environment(variable.to_owned()))),
            false => Err(format!("{variable} is not UTF-8; expected a path in UTF-8")),
        }
    }

    /// "If an implementation encounters a relative path [...] it should consider the path invalid
    /// and ignore it" (XDG Base Directory Specification).
    fn absolute(&self, name: &str) -> Option<&Path> {
        self.variable(name)
            .map(Path::new)
            .filter(|path| path.is_absolute())
    }
}

/// The names and variables that may name a folder.
struct Folder {
    what: &'static str,
    service: &'static str,
    xdg: &'static str,
    below_home: &'static str,
    flag: &'static str,
}

impl Overrides {
    /// Returns the flags that are given: name, key, text.
    pub fn texts(&self) -> Vec<(&'static str, &'static str, String)> {
        let listen = (!self.listen.is_empty()).then(|| self.listen.join(","));
        [
            ("--listen", "server.listen", &listen),
            ("--reactors", "server.reactors", &self.reactors),
            ("--engine", "engine.kind", &self.engine),
            ("--model", "engine.model", &self.model),
            ("--parallel", "engine.parallel", &self.parallel),
            ("--threads", "engine.threads", &self.threads),
            ("--log-level", "log.level", &self.log_level),
        ]
        .into_iter()
        .filter_map(|(flag, key, text)| Some((flag, key, text.clone()?)))
        .collect()
    }
}

/// Returns whether a variable was valid UTF-8.
pub fn is_readable(text: &str) -> bool {
    !text.contains(char::REPLACEMENT_CHARACTER)
}

/// The service manager joins several folders with colons (systemd.exec(5)); the first is ours.
fn first_of_list(list: &str) -> PathBuf {
    list.split(':')
        .find(|item| !item.is_empty())
        .unwrap_or(list)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(environment: &[(&str, &str)]) -> Sources {
        let own = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        Sources {
            environment: environment.iter().map(own).collect(),
            ..Sources::default()
        }
    }

    fn paths(sources: &Sources) -> Vec<String> {
        sources
            .candidates()
            .iter()
            .map(|c| c.path.display().to_string())
            .collect()
    }

    #[test]
    fn the_file_is_searched_in_the_documented_order() {
        let mut sources = sources(&[
            ("CONFIGURATION_DIRECTORY", "/a:/b"),
            ("AUTOGLMD_CONFIG", "/c/x.toml"),
        ]);
        assert_eq!(paths(&sources), ["/c/x.toml"]);
        sources.file = Some("y.toml".into());
        assert_eq!(paths(&sources), ["y.toml"]);
        assert_eq!(sources.candidates()[0].named_by, Some("--config"));
        sources.file = None;
        sources.environment.pop();
        assert_eq!(paths(&sources), ["/a/autoglmd.toml", SYSTEM_FILE]);
        assert!(
            sources
                .candidates()
                .iter()
                .all(|candidate| candidate.named_by.is_none())
        );
    }

    #[test]
    fn folders_follow_flag_service_manager_xdg_and_home() {
        let state = |sources: &Sources| {
            sources
                .state_dir()
                .map(|(path, origin)| (path.display().to_string(), origin))
        };
        let from = |variable: &str| Origin::Environment(variable.to_owned());
        let mut all = sources(&[
            ("HOME", "/h"),
            ("XDG_STATE_HOME", "/x"),
            ("STATE_DIRECTORY", "/s/one:/s/two"),
        ]);
        all.flags.state_dir = Some("/flag".into());
        assert_eq!(
            state(&all),
            Ok(("/flag".into(), Origin::Flag("--state-dir")))
        );
        all.flags.state_dir = None;
        assert_eq!(state(&all), Ok(("/s/one".into(), from("STATE_DIRECTORY"))));
        all.environment.pop();
        assert_eq!(
            state(&all),
            Ok(("/x/autoglmd".into(), from("XDG_STATE_HOME")))
        );
        all.environment[1].1 = "relative".into();
        assert_eq!(
            state(&all),
            Ok(("/h/.local/state/autoglmd".into(), from("HOME")))
        );
        assert_eq!(
            all.cache_dir().map(|(path, _)| path),
            Ok(PathBuf::from("/h/.cache/autoglmd"))
        );
    }

    #[test]
    fn without_any_folder_the_error_names_what_to_set() {
        assert_eq!(
            sources(&[("HOME", "")]).state_dir(),
            Err(
                "no folder for the database: HOME is not set to an absolute path; \
                 set --state-dir, STATE_DIRECTORY, XDG_STATE_HOME or HOME"
                    .to_owned()
            )
        );
        let bad = sources(&[("CACHE_DIRECTORY", "/var/\u{fffd}")]);
        assert!(
            bad.cache_dir()
                .is_err_and(|text| text.contains("not UTF-8"))
        );
    }
}
