//! The maximum lengths of functions, files and lines.
//!
//! A function that fits on a screen can be read without scrolling back; a file that has grown
//! above its bound usually holds two things. Tests are not counted.

use std::fmt::Write as _;

use crate::source::{Source, matching, sources};

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;

/// Files that are still longer. The test fails when one of them has become shorter.
const LONG_FILES: &[&str] = &[];

/// Functions that are still longer, as `src/file.rs: name`.
const LONG_FUNCTIONS: &[&str] = &[];

/// Mutation: seventy more lines in `Reactor::turn` fail here.
#[test]
fn functions_have_at_most_70_lines() {
    let long = sources().iter().flat_map(long_functions).collect();
    assert_excepted(long, LONG_FUNCTIONS, "functions above 70 lines");
}

/// Mutation: 600 lines of comment at the end of `src/core/pool.rs` fail here.
#[test]
fn files_have_at_most_600_lines() {
    let mut long = Vec::new();
    for file in sources() {
        let lines = product_lines(&file);
        if lines > FILE_LINES_MAX {
            long.push((file.name, lines));
        }
    }
    assert_excepted(long, LONG_FILES, "files above 600 lines of product code");
}

/// Mutation: a comment of 101 columns fails here.
#[test]
fn lines_have_at_most_100_columns() {
    let mut wrong = String::new();
    for file in sources() {
        for (number, line) in file.text.lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX {
                writeln!(wrong, "{}:{}", file.name, number + 1).unwrap();
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "lines above {COLUMNS_MAX} columns:\n{wrong}"
    );
}

fn assert_excepted(long: Vec<(String, usize)>, excepted: &[&str], what: &str) {
    let mut wrong = String::new();
    for (name, lines) in &long {
        if !excepted.contains(&name.as_str()) {
            writeln!(wrong, "{name}: {lines}").unwrap();
        }
    }
    for name in excepted {
        if !long.iter().any(|(long, _)| long == name) {
            writeln!(wrong, "{name} is short enough: drop the exception").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{what}:\n{wrong}");
}

/// Returns the number of a file's lines, comments included and tests excluded.
fn product_lines(file: &Source) -> usize {
    let is_of_test = |(code, product): &(&str, &str)| code != product;
    let all = file.text.lines().count();
    let tests = file.code.lines().zip(file.product.lines());
    all - tests.filter(is_of_test).count()
}

fn long_functions(file: &Source) -> Vec<(String, usize)> {
    let code = &file.product;
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let name = code[at + 3..].split(|c: char| !c.is_alphanumeric() && c != '_');
        let name = name.clone().next().unwrap_or_default();
        let Some(body) = body_at(code, at).filter(|_| !name.is_empty()) else {
            continue;
        };
        let lines = code[at..matching(code, body)].matches('\n').count() + 1;
        if lines > FUNCTION_LINES_MAX {
            found.push((format!("{}: {name}", file.name), lines));
        }
    }
    found
}

/// Returns the position of the brace at which a function's body begins; none for a declaration or a
/// type.
fn body_at(code: &str, from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(byte) = code.as_bytes().get(at) {
        match byte {
            b'(' | b'[' => at = matching(code, at),
            b'{' => return Some(at),
            b';' | b')' | b',' | b'}' | b'=' => return None,
            _ => {}
        }
        at += 1;
    }
    None
}
