//! Defaults < file < environment < flags, with every mistake reported at once.
//!
//! Each value is checked even if a later source overrides it: a mistake in the file must not wait
//! for the day on which the variable goes away.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::deprecated::Deprecated;
use super::named::{MODELS, NamedSection};
use super::problem::{ConfigErrors, Document, Problem, nearest, printable, printable_path, quote};
use super::rules::{self, Finding};
use super::schema::{Config, Key, SECTIONS, Section, find, keys};
use super::sources::{Origin, Sources, is_readable};
use super::value::{Refused, Value, describe};
use crate::limits::config as limits;

/// A configuration without mistakes.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// The file that was read; `None` if the defaults are in force.
    pub file: Option<PathBuf>,
    /// The origins of keys, by path; a key that is missing here has its default.
    pub origins: BTreeMap<String, Origin>,
    pub state_dir_origin: Origin,
    pub cache_dir_origin: Origin,
    /// Settings that are allowed but seldom meant.
    pub warnings: Vec<Problem>,
}

impl Loaded {
    /// Returns where a key's value comes from.
    pub fn origin(&self, path: &str) -> &Origin {
        self.origins.get(path).unwrap_or(&Origin::Default)
    }
}

/// Reads and checks everything.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let mut draft = Draft::default();
    draft.open_file(sources);
    draft.read_file();
    draft.read_environment(sources);
    draft.read_flags(sources);
    let state = draft.folder(sources.state_dir());
    let cache = draft.folder(sources.cache_dir());
    for finding in rules::errors(&draft.config) {
        draft.report(&finding);
    }
    let (Some((state_dir, state_dir_origin)), Some((cache_dir, cache_dir_origin)), true) =
        (state, cache, draft.is_clean())
    else {
        return Err(draft.into_errors());
    };
    let warnings = rules::warnings(&draft.config);
    let warnings = warnings.iter().map(|finding| draft.problem(finding));
    let warnings = warnings.chain(draft.deprecated.iter().cloned()).collect();
    Ok(Loaded {
        config: Config {
            state_dir,
            cache_dir,
            ..draft.config
        },
        file: draft.document.map(|document| document.path),
        origins: draft.origins,
        state_dir_origin,
        cache_dir_origin,
        warnings,
    })
}

/// A configuration that is being built.
#[derive(Default)]
struct Draft {
    config: Config,
    origins: BTreeMap<String, Origin>,
    /// Keys whose value was refused somewhere: rules about them are skipped.
    refused: BTreeSet<&'static str>,
    document: Option<Document>,
    /// Mistakes in the file, by their bytes.
    in_file: Vec<(Range<usize>, String)>,
    elsewhere: Vec<Problem>,
    /// Warnings about keys of earlier versions.
    deprecated: Vec<Problem>,
}

impl Draft {
    fn open_file(&mut self, sources: &Sources) {
        for candidate in sources.candidates() {
            let error = match read_bounded(&candidate.path) {
                Ok(bytes) => return self.decode(candidate.path, bytes),
                Err(error) => error,
            };
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let message = match candidate.named_by {
                None if missing => continue,
                None => format!("cannot be read: {error}"),
                Some(by) => format!("cannot be read: {error}; {by} names this file"),
            };
            self.elsewhere
                .push(Problem::new(printable_path(&candidate.path), message));
            return;
        }
    }

    fn decode(&mut self, path: PathBuf, bytes: Vec<u8>) {
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                // The valid part is the same in both, so the place is correct in either.
                let bad = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let document = Document::new(path, text);
                let message = "the file is not UTF-8; expected TOML in UTF-8".to_owned();
                self.elsewhere.push(document.problem(bad..bad + 1, message));
                return;
            }
        };
        self.document = Some(Document::new(path, text));
    }

    fn read_file(&mut self) {
        // Taken out for the walk, which borrows its text and changes the rest.
        let Some(document) = self.document.take() else {
            return;
        };
        let (table, syntax) = DeTable::parse_recoverable(&document.text);
        self.read_table(&document, table.get_ref());
        self.add_syntax(&document, &syntax);
        self.document = Some(document);
    }

    /// Adds the parser's errors: one mistake per line, and none that only follows from another. The
    /// parser's reading of a broken line does not reveal its author's intent.
    fn add_syntax(&mut self, document: &Document, errors: &[toml::de::Error]) {
        if errors.is_empty() {
            return;
        }
        let mut spans: Vec<_> = errors
            .iter()
            .map(|error| (error.span().unwrap_or_default(), error.message()))
            .collect();
        spans.sort_by_key(|(span, _)| span.start);
        let end = document.text.trim_end().len();
        let left_open = spans.last().is_some_and(|(span, _)| span.start >= end);
        let mut by_line = BTreeMap::new();
        for (span, message) in spans {
            let line = document.line(span.start);
            by_line.entry(line).or_insert((span, message));
        }
        let horizon = horizon(document, by_line.keys().copied(), left_open);
        self.in_file.retain(|(span, _)| {
            let line = document.line(span.start);
            !span.is_empty() && line < horizon && !by_line.contains_key(&line)
        });
        for (_, (span, message)) in by_line.range(..=horizon) {
            let message = format!("this is not TOML: {}", printable(message));
            self.in_file.push((span.clone(), message));
        }
    }

    fn read_table(&mut self, document: &Document, table: &DeTable<'_>) {
        for (name, value) in table {
            let known = SECTIONS
                .iter()
                .find(|section| section.name == name.get_ref() && !section.name.contains('.'));
            match (known, value.get_ref()) {
                (None, DeValue::Table(sections)) if name.get_ref() == MODELS.name => {
                    self.read_named(document, &MODELS, sections, |config| &mut config.models);
                }
                (None, other) if name.get_ref() == MODELS.name => {
                    let (name, found) = (MODELS.name, describe(other));
                    let message =
                        format!("{name} is {found}; expected sections: [{name}.\"NAME\"]");
                    self.in_file.push((value.span(), message));
                }
                (Some(section), DeValue::Table(keys)) => self.read_section(document, section, keys),
                (Some(section), other) => {
                    let (name, found) = (section.name, describe(other));
                    let message = format!("{name} is {found}; expected a section: [{name}]");
                    self.in_file.push((value.span(), message));
                }
                (None, other) => {
                    let message = unknown_at_top(name.get_ref(), is_section(other));
                    self.in_file.push((name.span(), message));
                }
            }
        }
    }

    fn read_section(&mut self, document: &Document, section: &Section, table: &DeTable<'_>) {
        for (name, value) in table {
            if let Some(inner) = inner_section(section, name.get_ref()) {
                self.read_inner(document, inner, value);
                continue;
            }
            if let Some(old) = Deprecated::find(section.name, name.get_ref()) {
                self.deprecated
                    .push(document.problem(name.span(), old.message()));
                continue;
            }
            let Some(key) = section.find(name.get_ref()) else {
                self.in_file
                    .push((name.span(), unknown_in(section, name.get_ref())));
                continue;
            };
            match read_key(key, value) {
                Ok(read) => {
                    let line = document.line(name.span().start);
                    self.set(
                        key,
                        read,
                        Origin::File {
                            span: value.span(),
                            line,
                        },
                    );
                }
                Err((span, message)) => {
                    self.refused.insert(key.path);
                    self.in_file.push((span, message));
                }
            }
        }
    }

    /// Reads a section within another, such as `[server.tls]`.
    fn read_inner(&mut self, document: &Document, section: &Section, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::Table(keys) => self.read_section(document, section, keys),
            other => {
                let (name, found) = (section.name, describe(other));
                let message = format!("{name} is {found}; expected a section: [{name}]");
                self.in_file.push((value.span(), message));
            }
        }
    }

    /// Reads all sections of one kind, such as `[models."NAME"]`.
    fn read_named<T: Default>(
        &mut self,
        document: &Document,
        table: &'static NamedSection<T>,
        sections: &DeTable<'_>,
        map: fn(&mut Config) -> &mut BTreeMap<String, T>,
    ) {
        for (name, value) in sections {
            let path = table.path(name.get_ref());
            let shown = quote(&path);
            let DeValue::Table(keys) = value.get_ref() else {
                let (kind, found) = (table.name, describe(value.get_ref()));
                let message = format!("{shown} is {found}; expected a section: [{kind}.\"NAME\"]");
                self.in_file.push((value.span(), message));
                continue;
            };
            let count = map(&mut self.config).len();
            if name.get_ref().trim().is_empty() || count >= limits::SECTION_NAMES_MAX {
                let most = limits::SECTION_NAMES_MAX;
                let message =
                    format!("[{shown}]: expected at most {most} sections, each with a name");
                self.in_file.push((name.span(), message));
                continue;
            }
            let mut section = T::default();
            for (key, value) in keys {
                let line = document.line(key.span().start);
                match read_named_key(table, &shown, key.get_ref(), value, &mut section) {
                    Ok(()) => {
                        let span = value.span();
                        let path = format!("{path}.{}", key.get_ref());
                        self.origins.insert(path, Origin::File { span, line });
                    }
                    Err((Some(span), message)) => self.in_file.push((span, message)),
                    Err((None, message)) => self.in_file.push((key.span(), message)),
                }
            }
            map(&mut self.config).insert(name.get_ref().clone().into_owned(), section);
        }
    }

    fn read_environment(&mut self, sources: &Sources) {
        for (name, text) in &sources.environment {
            let ours = name
                .strip_prefix("AUTOGLMD_")
                .is_some_and(|rest| rest.contains("__"));
            if !ours {
                continue;
            }
            if let Some(old) = Deprecated::find_variable(name) {
                self.deprecated.push(Problem::new(name, old.message()));
                continue;
            }
            match keys().find(|key| key.variable() == *name) {
                Some(key) => self.set_text(key, text, name, Origin::Environment(name.clone())),
                None => self
                    .elsewhere
                    .push(Problem::new(quote(name), unknown_variable(name))),
            }
        }
    }

    fn read_flags(&mut self, sources: &Sources) {
        for (flag, path, text) in sources.flags.texts() {
            if let Some(key) = find(path) {
                self.set_text(key, &text, flag, Origin::Flag(flag));
            }
        }
    }

    fn set_text(&mut self, key: &'static Key, text: &str, place: &str, origin: Origin) {
        let read = match is_readable(text) {
            true => key
                .kind
                .read_text(text)
                .map_err(|refused| refusal(key.path, &refused)),
            false => Err(format!(
                "{} is not UTF-8; expected {}",
                key.path,
                key.kind.expected()
            )),
        };
        match read {
            Ok(value) => self.set(key, value, origin),
            Err(message) => {
                self.refused.insert(key.path);
                self.elsewhere.push(Problem::new(place, message));
            }
        }
    }

    fn set(&mut self, key: &'static Key, value: Value, origin: Origin) {
        if (key.write)(&mut self.config, value) {
            self.origins.insert(key.path.to_owned(), origin);
        } else {
            // Only if kind and field of a row disagree, which the table's own test would find
            // first.
            let message = format!("{} cannot hold this value (a bug)", key.path);
            self.elsewhere.push(Problem::new("schema", message));
        }
    }

    fn folder(&mut self, found: Result<(PathBuf, Origin), String>) -> Option<(PathBuf, Origin)> {
        found
            .map_err(|message| self.elsewhere.push(Problem::new("environment", message)))
            .ok()
    }

    fn report(&mut self, finding: &Finding) {
        if finding.keys.iter().any(|path| self.refused.contains(path)) {
            return;
        }
        match self.place_of(finding) {
            Some(Origin::File { span, .. }) => {
                let span = span.clone();
                self.in_file.push((span, finding.message.clone()));
            }
            _ => self.elsewhere.push(self.problem(finding)),
        }
    }

    fn problem(&self, finding: &Finding) -> Problem {
        let message = finding.message.clone();
        match (self.place_of(finding), &self.document) {
            (Some(Origin::File { span, .. }), Some(document)) => {
                document.problem(span.clone(), message)
            }
            (Some(Origin::Environment(name)), _) => Problem::new(name, message),
            (Some(Origin::Flag(flag)), _) => Problem::new(*flag, message),
            _ => Problem::new("defaults", message),
        }
    }

    /// Returns where the first of the finding's keys was set.
    fn place_of(&self, finding: &Finding) -> Option<&Origin> {
        finding.keys.iter().find_map(|path| self.origins.get(*path))
    }

    fn is_clean(&self) -> bool {
        self.in_file.is_empty() && self.elsewhere.is_empty()
    }

    /// Returns the file's mistakes in its order, then the others.
    fn into_errors(mut self) -> ConfigErrors {
        self.in_file.sort_by_key(|(span, _)| span.start);
        let count = self.in_file.len() + self.elsewhere.len();
        let mut problems = Vec::new();
        if let Some(document) = &self.document {
            let shown = self.in_file.into_iter().take(limits::SHOWN_PROBLEMS_MAX);
            problems.extend(shown.map(|(span, message)| document.problem(span, message)));
        }
        problems.extend(self.elsewhere);
        problems.truncate(limits::SHOWN_PROBLEMS_MAX);
        ConfigErrors {
            more: count - problems.len(),
            problems,
        }
    }
}

/// Returns the line after which a broken file cannot be understood: the first broken line if
/// something was left open up to the file's end, otherwise the first broken section header.
fn horizon(
    document: &Document,
    mut broken_lines: impl Iterator<Item = usize>,
    left_open: bool,
) -> usize {
    let is_header = |line: &usize| document.source(*line).trim_start().starts_with('[');
    let last = match left_open {
        true => broken_lines.next(),
        false => broken_lines.find(is_header),
    };
    last.unwrap_or(usize::MAX)
}

fn read_bounded(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let bytes = crate::os::file::read_up_to(path, limits::FILE_BYTES_MAX)?;
    match bytes.len() as u64 > limits::FILE_BYTES_MAX {
        true => Err(std::io::Error::other(
            "more than 1 MiB; expected a configuration file",
        )),
        false => Ok(bytes),
    }
}

fn read_key(key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Value, (Range<usize>, String)> {
    key.kind
        .read_toml(value)
        .map_err(|(span, refused)| (span, refusal(key.path, &refused)))
}

/// Reads one key into its section. The error has the place of the value, or none if the key itself
/// is unknown.
fn read_named_key<T>(
    table: &'static NamedSection<T>,
    section_path: &str,
    name: &str,
    value: &Spanned<DeValue<'_>>,
    section: &mut T,
) -> Result<(), (Option<Range<usize>>, String)> {
    let Some(key) = table.find(name) else {
        let known: Vec<_> = table.keys.iter().map(|key| key.name).collect();
        let (shown, known) = (quote(name), known.join(", "));
        let message = format!("unknown key {shown} in [{section_path}]; expected one of {known}");
        return Err((None, message));
    };
    let read = key.kind.read_toml(value).map_err(|(span, refused)| {
        let path = format!("{section_path}.{}", key.name);
        (Some(span), refusal(&path, &refused))
    })?;
    match (key.write)(section, read) {
        true => Ok(()),
        // Only if kind and field of a row disagree, which the table's own test would find first.
        false => Err((
            None,
            format!("{name} cannot hold this value; this is a bug"),
        )),
    }
}

fn refusal(path: &str, refused: &Refused) -> String {
    let Refused {
        element,
        found,
        expected,
    } = refused;
    format!("{path}{element} is {found}; expected {expected}")
}

/// Returns the section called `name` within another.
fn inner_section(outer: &Section, name: &str) -> Option<&'static Section> {
    let is_wanted = |section: &&Section| {
        let inner = section.name.split_once('.');
        inner.is_some_and(|parts| parts == (outer.name, name))
    };
    SECTIONS.iter().find(is_wanted)
}

/// Returns whether it was written as `[name]` or `[[name]]`.
fn is_section(value: &DeValue<'_>) -> bool {
    let first = value.as_array().and_then(|items| items.first());
    value.is_table() || first.is_some_and(|item| item.get_ref().is_table())
}

/// Returns the message about a key before any section, or about an unknown section.
fn unknown_at_top(name: &str, is_section: bool) -> String {
    let shown = quote(name);
    if is_section {
        let known = SECTIONS.iter().map(|section| section.name);
        let known = known.chain([MODELS.name]);
        return match nearest(name, known.clone()) {
            Some(near) => format!("unknown section [{shown}]; did you mean [{near}]?"),
            None => {
                let header = |name: &str| match name == MODELS.name {
                    true => format!("[{name}.\"NAME\"]"),
                    false => format!("[{name}]"),
                };
                let known: Vec<_> = known.map(header).collect();
                format!(
                    "unknown section [{shown}]; expected one of {}",
                    known.join(", ")
                )
            }
        };
    }
    match nearest_key(name) {
        Some(key) => {
            let section = key.path.rsplit_once('.').unwrap_or_default().0;
            format!(
                "key {shown} is outside any section; did you mean {} in [{section}]?",
                key.name
            )
        }
        None => format!("unknown key {shown} outside any section"),
    }
}

fn unknown_in(section: &Section, name: &str) -> String {
    let shown = quote(name);
    let start = format!("unknown key {shown} in [{}]", section.name);
    if let Some(near) = nearest(name, section.keys.iter().map(|key| key.name)) {
        return format!("{start}; did you mean {near}?");
    }
    match nearest_key(name) {
        Some(key) => format!("{start}; did you mean {}?", key.path),
        None => {
            let known: Vec<_> = section.keys.iter().map(|key| key.name).collect();
            format!("{start}; expected one of {}", known.join(", "))
        }
    }
}

fn unknown_variable(name: &str) -> String {
    let known: Vec<_> = keys().map(Key::variable).collect();
    match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("unknown variable; did you mean {near}?"),
        None => "unknown variable; expected AUTOGLMD_SECTION__KEY, such as \
                 AUTOGLMD_LIMITS__MAX_BODY"
            .to_owned(),
    }
}

fn nearest_key(name: &str) -> Option<&'static Key> {
    let near = nearest(name, keys().map(|key| key.name))?;
    keys().find(|key| key.name == near)
}

#[cfg(test)]
mod tests;
