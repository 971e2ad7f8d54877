//! No circle among the files of a folder.
//!
//! Two files that need each other are really one file in two places: neither can be read, tested or
//! moved without the other. A folder's entries are its files and its folders; `mod.rs` (or the file
//! beside a folder, `http1.rs` for `http1/`) is one of them. A name that `mod.rs` only passes on by
//! `use` belongs to the file that defines it, so using it as `super::Name` makes no circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::paths::{Written, paths};
use crate::source::{Source, sources};

/// Folders that still have a circle, and the entries in it. The test fails when one of them has
/// left its circle: remove it from the list then.
const EXCEPTIONS: &[(&str, &[&str])] = &[];

/// Mutation: `use super::slots::Slots;` in `src/core/key.rs` fails here.
#[test]
fn no_circle_among_the_files_of_a_folder() {
    let graph = Graph::of(&sources());
    let mut wrong = String::new();
    let mut seen = BTreeSet::new();
    for (folder, edges) in graph.folders() {
        let excepted = EXCEPTIONS.iter().find(|(name, _)| *name == folder);
        let excepted = excepted.map_or(&[][..], |(_, entries)| entries);
        let in_circle = in_circles(&edges);
        seen.insert(folder.clone());
        for entry in &in_circle {
            if !excepted.contains(&entry.as_str()) {
                let ways = edges
                    .iter()
                    .filter(|((from, to), _)| from == entry && in_circle.contains(to));
                let ways: Vec<String> =
                    ways.map(|((_, to), why)| format!("{to} ({why})")).collect();
                writeln!(wrong, "{folder}: {entry} -> {}", ways.join(", ")).unwrap();
            }
        }
        for entry in excepted.iter().filter(|entry| !in_circle.contains(**entry)) {
            writeln!(
                wrong,
                "{folder}: {entry} is not in a circle: drop the exception"
            )
            .unwrap();
        }
    }
    for (folder, _) in EXCEPTIONS.iter().filter(|(name, _)| !seen.contains(*name)) {
        writeln!(
            wrong,
            "{folder}: the folder has no files: drop the exception"
        )
        .unwrap();
    }
    assert!(wrong.is_empty(), "circles:\n{wrong}");
}

/// The uses between files, each with one path that shows it.
struct Graph {
    edges: BTreeMap<(String, String), String>,
}

type Edges = BTreeMap<(String, String), String>;

impl Graph {
    fn of(sources: &[Source]) -> Graph {
        let crates = Crate::of(sources);
        let mut edges = BTreeMap::new();
        for source in sources {
            for (_, path) in crates.used_by(source) {
                if let Some(target) = crates.owner(&crates.absolute(source, &path), 0)
                    && target != source.name
                {
                    edges
                        .entry((source.name.clone(), target))
                        .or_insert_with(|| path.join("::"));
                }
            }
        }
        Graph { edges }
    }

    /// Returns the edges between the entries of each folder.
    fn folders(&self) -> BTreeMap<String, Edges> {
        let mut folders: BTreeMap<String, Edges> = BTreeMap::new();
        for ((from, to), why) in &self.edges {
            let (from_parts, to_parts) = (parts(from), parts(to));
            let shared = from_parts
                .iter()
                .zip(&to_parts)
                .take_while(|(a, b)| a == b)
                .count();
            let folder = from_parts[..shared].join("/");
            let entry = |parts: &[String]| parts.get(shared).cloned().unwrap_or("mod".to_owned());
            folders
                .entry(folder)
                .or_default()
                .entry((entry(&from_parts), entry(&to_parts)))
                .or_insert_with(|| format!("{from}: {why}"));
        }
        folders
    }
}

/// Returns `src`, `reactor`, `http1` for both `src/reactor/http1.rs` and
/// `src/reactor/http1/mod.rs`.
fn parts(name: &str) -> Vec<String> {
    let stem = name.trim_end_matches(".rs").trim_end_matches("/mod");
    stem.split('/').map(str::to_owned).collect()
}

/// The crate's modules and the imports of each.
struct Crate {
    /// From the module (`["core", "wheel"]`) to the file.
    modules: BTreeMap<Written, String>,
    /// For each file its imports, by the name that the file uses; a glob under `*`.
    imports: BTreeMap<String, Vec<(Written, String)>>,
    used: BTreeMap<String, Vec<(bool, Written)>>,
}

impl Crate {
    fn of(sources: &[Source]) -> Crate {
        let mut modules = BTreeMap::new();
        let mut imports = BTreeMap::new();
        let mut used = BTreeMap::new();
        for source in sources {
            let found = paths(&source.product);
            let path = module_path(&source.name);
            modules.insert(path, source.name.clone());
            let imported = found.imports.iter().map(|(path, _)| (true, path.clone()));
            let others = found.others.iter().map(|path| (false, path.clone()));
            used.insert(source.name.clone(), imported.chain(others).collect());
            imports.insert(source.name.clone(), found.imports);
        }
        Crate {
            modules,
            imports,
            used,
        }
    }

    fn used_by(&self, source: &Source) -> Vec<(bool, Written)> {
        self.used[&source.name].clone()
    }

    /// Returns the path from the root of the crate.
    fn absolute(&self, source: &Source, path: &Written) -> Written {
        self.absolute_in(&module_path(&source.name), path)
    }

    fn absolute_in(&self, module: &Written, path: &Written) -> Written {
        let mut base = module.clone();
        let mut rest = &path[..];
        match rest.first().map(String::as_str) {
            Some("crate") => {
                base.clear();
                rest = &rest[1..];
            }
            Some("self") => rest = &rest[1..],
            Some("super") => {
                while rest.first().is_some_and(|name| name == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            Some(first) => {
                // A child module, or a name that the file has imported.
                let mut child = base.clone();
                child.push(first.to_owned());
                if !self.modules.contains_key(&child) {
                    return Vec::new();
                }
            }
            None => return Vec::new(),
        }
        base.extend(rest.iter().cloned());
        base
    }

    /// Returns the file that defines the target of an absolute path: the deepest module on it,
    /// unless that module imported the name from elsewhere.
    fn owner(&self, path: &Written, depth: usize) -> Option<String> {
        if path.is_empty() || depth > 8 {
            return None;
        }
        let length = (1..=path.len())
            .rev()
            .find(|length| self.modules.contains_key(&path[..*length]))?;
        let file = &self.modules[&path[..length]];
        let Some(name) = path.get(length) else {
            return Some(file.clone());
        };
        let module: Written = path[..length].to_vec();
        let imported = self.imports[file].iter().find(|(_, known)| known == name);
        if let Some((origin, _)) = imported {
            let origin = self.absolute_in(&module, origin);
            return self.owner(&origin, depth + 1);
        }
        Some(file.clone())
    }
}

/// Returns `core::wheel` for `src/core/wheel.rs`, and `core` for `src/core/mod.rs`.
fn module_path(name: &str) -> Written {
    let parts = parts(name);
    let parts = parts.into_iter().skip(1);
    parts
        .filter(|part| part != "lib" && part != "main")
        .collect()
}

/// Returns the entries from which a way leads back to themselves.
fn in_circles(edges: &Edges) -> BTreeSet<String> {
    let nodes: BTreeSet<&String> = edges.keys().flat_map(|(from, to)| [from, to]).collect();
    let reaches = |start: &String| {
        let mut reached = BTreeSet::new();
        let mut open = vec![start];
        while let Some(node) = open.pop() {
            for (_, to) in edges.keys().filter(|(from, _)| from == node) {
                if reached.insert(to.clone()) {
                    open.push(to);
                }
            }
        }
        reached
    };
    let nodes = nodes
        .into_iter()
        .filter(|node| reaches(node).contains(*node));
    nodes.cloned().collect()
}

#[test]
fn a_circle_is_found() {
    let edge = |from: &str, to: &str| ((from.to_owned(), to.to_owned()), String::new());
    let edges: Edges = [
        edge("a", "b"),
        edge("b", "c"),
        edge("c", "b"),
        edge("c", "d"),
    ]
    .into();
    let found: Vec<String> = in_circles(&edges).into_iter().collect();
    assert_eq!(found, ["b", "c"]);
}
