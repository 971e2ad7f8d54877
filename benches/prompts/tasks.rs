//! The tasks: what to ask, and how to check the program.
//!
//! Owns the files in `tasks/`, which are compiled in; `tasks/README.md` describes their format and
//! the rules for writing them. Knows no model and runs nothing.
//!
//! Invariants, checked by `tests/evaluation.rs`:
//!  1. Each language has five tasks of each tier.
//!  2. The halves are of equal size, over all and in each tier.

use serde::Deserialize;

/// The languages with their tasks, in the order of the tables.
const FILES: &[(&str, &str)] = &[
    ("python", include_str!("tasks/python.toml")),
    ("javascript", include_str!("tasks/javascript.toml")),
    ("bash", include_str!("tasks/bash.toml")),
    ("c", include_str!("tasks/c.toml")),
    ("cpp", include_str!("tasks/cpp.toml")),
    ("go", include_str!("tasks/go.toml")),
    ("rust", include_str!("tasks/rust.toml")),
    ("sql", include_str!("tasks/sql.toml")),
];

/// One request in English and Chinese, with its check.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Canonical name of the language; the file decides it.
    #[serde(skip)]
    pub language: &'static str,
    pub name: String,
    pub tier: u8,
    pub half: Half,
    en: String,
    zh: String,
    /// Statements that call the functions of the program.
    pub check: Option<String>,
    /// Runs of a program that is complete in itself.
    #[serde(default, rename = "case")]
    pub cases: Vec<Case>,
    /// Files that the model sees.
    #[serde(default)]
    pub context: Vec<File>,
    pub right: String,
    pub wrong: String,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Half {
    /// Chooses wording and parameters.
    Tuning,
    /// Is reported, but decides nothing.
    HeldOut,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub stdin: String,
    pub stdout: String,
    /// SQL only: statements before and after the program.
    #[serde(default)]
    pub setup: String,
    #[serde(default)]
    pub after: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub path: String,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tongue {
    English,
    Chinese,
}

impl Tongue {
    pub const ALL: [Tongue; 2] = [Tongue::English, Tongue::Chinese];
}

impl Task {
    pub fn request(&self, tongue: Tongue) -> &str {
        match tongue {
            Tongue::English => &self.en,
            Tongue::Chinese => &self.zh,
        }
    }
}

/// Returns all tasks. Panics if a file does not follow `tasks/README.md`.
pub fn all() -> Vec<Task> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Tasks {
        task: Vec<Task>,
    }

    let mut all = Vec::new();
    for (language, text) in FILES {
        let tasks: Tasks =
            toml::from_str(text).unwrap_or_else(|error| panic!("tasks/{language}.toml: {error}"));
        all.extend(tasks.task.into_iter().map(|task| Task { language, ..task }));
    }
    for task in &all {
        let has_one_form = task.check.is_some() == task.cases.is_empty();
        assert!(
            has_one_form,
            "{}: {} needs either `check` or `case`",
            task.language, task.name
        );
    }
    all
}
