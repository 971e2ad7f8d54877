//! No public function without a caller outside tests.
//!
//! The compiler does not find them, because other crates may call a `pub` function of a library.
//! This test looks for each name in all product code and in the benches; it misses a function that
//! shares its name with another one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::source::{collect, root, sources, without_comments_and_literals};

/// Functions that only tests call, from another crate (`tests/fuzz`, `tests/request_smuggling.rs`),
/// so that `cfg(test)` would hide them: `src/file.rs: name`. The test fails when one of them has
/// got a caller.
const EXCEPTIONS: &[&str] = &[
    "src/core/pool.rs: outstanding",
    "src/http/http1/reception.rs: restart",
];

/// Mutation: `pub fn uncalled(&self) {}` in `src/core/wheel.rs` fails here.
#[test]
fn each_public_function_has_a_caller_outside_tests() {
    let mut declared: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut called: BTreeSet<String> = BTreeSet::new();
    for file in sources() {
        for (name, is_public) in functions(&file.product) {
            if is_public {
                declared.entry(name).or_default().push(file.name.clone());
            }
        }
        called.extend(mentioned(&file.product));
    }
    called.extend(mentioned_in_benches());
    let mut uncalled = BTreeSet::new();
    for (name, files) in &declared {
        if !called.contains(name) {
            uncalled.extend(files.iter().map(|file| format!("{file}: {name}")));
        }
    }
    let mut wrong = String::new();
    for name in uncalled
        .iter()
        .filter(|name| !EXCEPTIONS.contains(&name.as_str()))
    {
        writeln!(wrong, "{name} has no caller").unwrap();
    }
    for name in EXCEPTIONS.iter().filter(|name| !uncalled.contains(**name)) {
        writeln!(wrong, "{name} is gone or has a caller: drop the exception").unwrap();
    }
    assert!(wrong.is_empty(), "public functions:\n{wrong}");
}

/// Returns the functions that `code` declares, and whether each is public to some extent.
fn functions(code: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = &code[..at];
        if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let name = name_at(&code[at + 3..]);
        let line = before
            .rsplit(['\n', ';', '{', '}'])
            .next()
            .unwrap_or_default();
        if !name.is_empty() {
            found.push((name, line.trim_start().starts_with("pub")));
        }
    }
    found
}

/// Returns every name that `code` mentions, except the names that a `fn` before them declares.
fn mentioned(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut previous = "";
    for word in code.split(|c: char| !c.is_alphanumeric() && c != '_') {
        if word.is_empty() {
            continue;
        }
        if previous != "fn" {
            found.insert(word.to_owned());
        }
        previous = word;
    }
    found
}

fn mentioned_in_benches() -> BTreeSet<String> {
    let mut paths = Vec::new();
    collect(&root().join("benches"), &mut paths);
    let texts = paths
        .iter()
        .map(|path| std::fs::read_to_string(path).expect("a bench"));
    let codes = texts.map(|text| without_comments_and_literals(&text));
    codes.flat_map(|code| mentioned(&code)).collect()
}

fn name_at(path: &str) -> String {
    path.chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect()
}
