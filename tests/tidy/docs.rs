//! The docs are true: every name in backticks exists, and a value beside a constant or a
//! configuration key is that constant's or key's value.
//!
//! The test reads the tour, the architecture, the operations page, the glossary and the head of
//! each source file: everything in backticks outside blocks of code. A name is one of
//!
//!  * a file or folder: it is there;
//!  * a constant: `const` declares it;
//!  * a metric, a configuration key: the table that makes it has it;
//!  * a name with an underscore, a `::`, a capital or a call's parentheses: the code has it;
//!  * in a page, any other word: the code has it, or `FOREIGN` in `tests/tidy/tree.rs` lists it as
//!    another program's.
//!
//! `name` in `path` promises more: the file at that path has the name. A stop of the tour names at
//! least three things that a reader can look up.
//!
//! Mutations: a name in a page with one letter changed; `16 reads` beside `READS_PER_PUMP_MAX` made
//! 17; `every_kind_of_untruth_is_found` shows each kind red.

use std::collections::BTreeSet;

use super::tree::{OWN, Place, Span, Tree, is_foreign, is_identifier, last_name, quantity, shown};

const PAGES: [&str; 4] = [
    "docs/tour.md",
    "docs/architecture.md",
    "docs/operations.md",
    "docs/glossary.md",
];

/// A stop with fewer names teaches words and not the code.
const NAMES_OF_A_STOP_MIN: usize = 3;

// ---- the tests ------------------------------------------------------------------------------

#[test]
fn every_name_in_the_pages_exists_and_has_its_value() {
    let tree = Tree::read();
    let mut wrong = Vec::new();
    for page in PAGES {
        let text = tree
            .texts
            .get(page)
            .unwrap_or_else(|| panic!("{page} is gone"));
        for paragraph in paragraphs(text) {
            wrong.extend(
                faults(&tree, &paragraph, Place::Page)
                    .iter()
                    .map(|it| format!("{page}: {it}")),
            );
        }
        wrong.extend(
            faults_of_tables(&tree, text)
                .iter()
                .map(|it| format!("{page}: {it}")),
        );
    }
    assert!(
        wrong.is_empty(),
        "the docs are not true:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_name_in_a_head_exists_and_has_its_value() {
    let tree = Tree::read();
    let mut wrong = Vec::new();
    let sources = |path: &str| path.ends_with(".rs") && !OWN.contains(&path);
    for (path, text) in tree.texts.iter().filter(|(path, _)| sources(path)) {
        let head: Vec<&str> = text
            .lines()
            .map_while(|line| line.strip_prefix("//!"))
            .collect();
        for paragraph in paragraphs(&head.join("\n").replace("\n ", "\n")) {
            wrong.extend(
                faults(&tree, &paragraph, Place::Head)
                    .iter()
                    .map(|it| format!("{path}: {it}")),
            );
        }
    }
    assert!(
        wrong.is_empty(),
        "heads are not true:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_stop_of_the_tour_names_what_can_be_looked_up() {
    let tree = Tree::read();
    let stops = stops(&tree.texts["docs/tour.md"]);
    assert!(stops.len() > 10, "{} stops", stops.len());
    for (title, text) in stops {
        let names: BTreeSet<String> = paragraphs(&text)
            .iter()
            .flat_map(|paragraph| spans(paragraph))
            .map(|span| span.text)
            .filter(|name| tree.can_be_looked_up(name))
            .collect();
        assert!(
            names.len() >= NAMES_OF_A_STOP_MIN,
            "{title} names {names:?} alone"
        );
    }
}

/// The steps of the tour's smallest reactor contain the lines that the tour shows as added.
#[test]
fn every_line_that_the_tour_adds_stands_in_a_step() {
    let tree = Tree::read();
    let steps: BTreeSet<&str> = tree
        .texts
        .iter()
        .filter(|(path, _)| path.starts_with("docs/tour/"))
        .flat_map(|(_, text)| text.lines().map(str::trim))
        .collect();
    let added: Vec<&str> = tree.texts["docs/tour.md"]
        .lines()
        .filter_map(|line| line.strip_prefix("    +"))
        .collect();
    assert!(!added.is_empty(), "the tour shows no steps");
    for line in added {
        assert!(steps.contains(line.trim()), "no step has the line {line:?}");
    }
}

/// Each code on the page of errors is sent somewhere, or the page marks it as reserved.
#[test]
fn every_error_code_is_sent_or_reserved() {
    let tree = Tree::read();
    let catalogue = &tree.texts["src/error.rs"];
    let is_source = |path: &str| path.starts_with("src/") && path != "src/error.rs";
    let sources = tree.texts.iter().filter(|(path, _)| is_source(path));
    let sources: Vec<&str> = sources.map(|(_, text)| text.as_str()).collect();
    let (mut codes, mut is_reserved) = (0, false);
    for line in catalogue.lines().map(str::trim) {
        is_reserved |= line.starts_with("/// Reserved; this version does not send it.");
        let Some((name, rest)) = line.split_once(" = \"") else {
            continue;
        };
        if is_identifier(name) && rest.ends_with(';') {
            let sent = format!("ErrorCode::{name}");
            let is_sent = sources.iter().any(|text| text.contains(&sent));
            assert_ne!(
                is_sent, is_reserved,
                "{name}: is it sent, and what does its text say?"
            );
            (codes, is_reserved) = (codes + 1, false);
        }
    }
    assert!(codes > 30, "{codes} codes");
}

/// The commands on the pages must find their tests, because a filter that matches no test passes.
#[test]
fn every_cargo_command_in_the_docs_finds_what_it_names() {
    let tree = Tree::read();
    let mut wrong = Vec::new();
    for (page, text) in tree.texts.iter().filter(|(path, _)| path.ends_with(".md")) {
        for command in text.split("cargo ").skip(1) {
            let command = command
                .split(['`', '\n', '|', ')'])
                .next()
                .unwrap_or_default();
            wrong.extend(fault_of_command(&tree, command).map(|it| format!("{page}: {it}")));
        }
    }
    assert!(
        wrong.is_empty(),
        "commands that find nothing:\n{}",
        wrong.join("\n")
    );
}

/// A link to another page, or to a heading of one, leads there.
///
/// Mutation: a heading of the architecture renamed, to which the tour links.
#[test]
fn every_link_between_pages_leads_somewhere() {
    let tree = Tree::read();
    let pages = tree.texts.iter().filter(|(path, _)| path.ends_with(".md"));
    let mut wrong = Vec::new();
    for (page, text) in pages {
        let folder = page.rsplit_once('/').map_or("", |(folder, _)| folder);
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap_or_default();
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            if link.contains("://")
                || link.contains(' ')
                || !(file.is_empty() || file.ends_with(".md"))
            {
                continue;
            }
            let target = match (file, folder) {
                ("", _) => page.clone(),
                (file, "") => file.to_owned(),
                (file, folder) => match file.strip_prefix("../") {
                    Some(above) => above.to_owned(),
                    None => format!("{folder}/{file}"),
                },
            };
            let headings = |text: &String| {
                text.lines()
                    .any(|line| anchor(line).as_deref() == Some(heading))
            };
            let leads = tree
                .texts
                .get(&target)
                .is_some_and(|text| heading.is_empty() || headings(text));
            if !leads {
                wrong.push(format!("{page}: {link}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "links that lead nowhere:\n{}",
        wrong.join("\n")
    );
}

/// The anchor of a heading, as the usual readers of Markdown make it.
fn anchor(line: &str) -> Option<String> {
    let title = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = title
        .chars()
        .filter(|it| it.is_alphanumeric() || " -_".contains(*it));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

#[test]
fn every_kind_of_untruth_is_found() {
    let tree = Tree::read();
    for (text, found) in [
        ("Read `src/reactor/nowhere.rs`.", "no such file"),
        ("Read `core/nowhere.rs`.", "no such file"),
        ("Call `Reactor::no_such_call`.", "not in the code"),
        ("Call `no_such_call`.", "not in the code"),
        ("Call `vanished()`.", "not in the code"),
        ("It is `NO_SUCH_BOUND`.", "no such constant"),
        ("Look at `autoglmd_no_such_total`.", "no such metric"),
        ("Set `limits.no_such_key`.", "no such key"),
        ("It takes 17 reads (`READS_PER_PUMP_MAX`).", "is 16"),
        ("`READS_PER_PUMP_MAX` (17)", "is 16"),
        ("at the high mark (`OUTPUT_HIGH_BYTES`, 65 KiB)", "is 65536"),
        ("after 3 s (`LINGER_TIMEOUT`)", "is 2000 ms"),
        ("within `limits.write_timeout` (31 s)", "is 30000 ms"),
        (
            "See `turn` in `src/core/wheel.rs`.",
            "src/core/wheel.rs has no",
        ),
        ("a word such as `wibble`", "not in the code"),
    ] {
        let faults = faults(&tree, text, Place::Page);
        assert!(
            faults.iter().any(|fault| fault.contains(found)),
            "{text}: {faults:?}"
        );
    }
    for text in [
        "It takes 16 reads (`READS_PER_PUMP_MAX`), 64 KiB (`OUTPUT_HIGH_BYTES`) and `LINGER_TIMEOUT` (2 s).",
        "See `turn` in `src/reactor/event_loop.rs`, `limits.write_timeout` (30 s), `autoglmd_wakeups_total`.",
    ] {
        assert_eq!(faults(&tree, text, Place::Page), [""; 0], "{text}");
    }
    let table = "| `READS_PER_PUMP_MAX` | 17 | reads |";
    assert_eq!(faults_of_tables(&tree, table).len(), 1);
    for command in [
        "test --test no_such_file",
        "test --lib no_such_filter",
        "run --example no_such",
    ] {
        assert!(fault_of_command(&tree, command).is_some(), "{command}");
    }
}

// ---- what the pages say ---------------------------------------------------------------------

/// Returns the text without blocks of code, one string for each paragraph, item or row.
fn paragraphs(text: &str) -> Vec<String> {
    let (mut found, mut current) = (Vec::new(), String::new());
    let (mut is_fenced, mut was_blank) = (false, true);
    for line in text.lines() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("```") {
            is_fenced = !is_fenced;
            continue;
        }
        let is_item = ["* ", "- ", "| ", "#"]
            .iter()
            .any(|mark| trimmed.starts_with(mark))
            || trimmed
                .split_once(". ")
                .is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        // Four blanks begin a block after a blank line, and continue an item otherwise.
        let is_block = line.starts_with("    ") && was_blank && !is_item;
        if trimmed.is_empty() || is_item {
            found.push(std::mem::take(&mut current));
        }
        was_blank = trimmed.is_empty() || is_block;
        if !is_fenced && !is_block {
            current.push_str(trimmed);
            current.push(' ');
        }
    }
    found.push(current);
    found.retain(|paragraph| !paragraph.trim().is_empty());
    found
}

fn spans(paragraph: &str) -> Vec<Span<'_>> {
    let ticks: Vec<usize> = paragraph.match_indices('`').map(|(at, _)| at).collect();
    let pairs = ticks.chunks_exact(2).map(|pair| Span {
        text: paragraph[pair[0] + 1..pair[1]].to_owned(),
        before: &paragraph[..pair[0]],
        after: &paragraph[pair[1] + 1..],
    });
    pairs.collect()
}

fn faults(tree: &Tree, paragraph: &str, place: Place) -> Vec<String> {
    let spans = spans(paragraph);
    let mut wrong = Vec::new();
    for (at, span) in spans.iter().enumerate() {
        wrong.extend(tree.fault_of_name(&span.text, place));
        wrong.extend(tree.fault_of_value(span));
        // `name` in `path`, and `name` and `name` in `path`.
        let promised = spans[at..].windows(2).find_map(|pair| {
            let between = &pair[0].after[..pair[0].after.len() - pair[1].after.len()];
            let between = between.split('`').next().unwrap_or_default().trim();
            match between {
                "in" | "of" if tree.path_of(&pair[1].text).is_some() => {
                    Some(Some(pair[1].text.as_str()))
                }
                "," | "and" | ", and" => None,
                _ => Some(None),
            }
        });
        if let Some(Some(path)) = promised {
            let file = tree.path_of(path).expect("it was found above");
            let name = last_name(&span.text);
            let has_it = tree.path_of(&span.text).is_some() || tree.file_has(&file, &name);
            if is_identifier(&name) && !is_foreign(&name) && !has_it {
                wrong.push(format!("{file} has no `{}`", span.text));
            }
        }
    }
    wrong
}

/// Checks each row that has one constant or key and one value: they belong together.
fn faults_of_tables(tree: &Tree, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = |cell: &&str| {
            let name = cell.strip_prefix('`')?.strip_suffix('`')?;
            tree.value_of(name).map(|value| (name.to_owned(), value))
        };
        let names: Vec<_> = cells.iter().filter_map(name).collect();
        let stated: Vec<_> = cells.iter().filter_map(|cell| quantity(cell)).collect();
        if let ([(name, value)], [stated]) = (&names[..], &stated[..])
            && !value.iter().any(|value| value.is(*stated))
        {
            wrong.push(format!("`{name}` is {}: {row}", shown(value)));
        }
    }
    wrong
}

fn stops(tour: &str) -> Vec<(String, String)> {
    let mut stops: Vec<(String, String)> = Vec::new();
    for line in tour.lines() {
        let title = line.strip_prefix("## ");
        if let Some(title) = title {
            stops.push((title.to_owned(), String::new()));
        } else if let Some((_, text)) = stops.last_mut() {
            text.push_str(line);
            text.push('\n');
        }
    }
    stops.retain(|(title, _)| title.starts_with(|first: char| first.is_ascii_digit()));
    stops
}

fn fault_of_command(tree: &Tree, command: &str) -> Option<String> {
    let words: Vec<&str> = command
        .split_whitespace()
        .take_while(|word| *word != "--")
        .collect();
    let after = |flag: &str| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).copied()
    };
    for (flag, folder) in [
        ("--test", "tests"),
        ("--bench", "benches"),
        ("--example", "docs/tour"),
    ] {
        if let Some(name) = after(flag) {
            let is_there = tree.is_file(&format!("{folder}/{name}.rs"))
                || tree.is_file(&format!("{folder}/{name}/main.rs"));
            if !is_there && is_identifier(name) {
                return Some(format!("cargo {command}: {folder} has no {name}"));
            }
        }
    }
    if words.first() != Some(&"test") {
        return None;
    }
    let flags_with_value = ["--test", "--bench", "--example", "--features", "-p"];
    let mut filter = None;
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        if flags_with_value.contains(word) {
            words.next();
        } else if !word.starts_with('-') {
            filter = Some(*word);
        }
    }
    let filter = filter?;
    let folder = after("--test").map_or("src/".to_owned(), |name| format!("tests/{name}"));
    let files = tree
        .tests
        .iter()
        .filter(|(path, _)| path.starts_with(&folder));
    let mut names = files.flat_map(|(path, tests)| {
        let module = path.trim_end_matches(".rs").replace('/', "::");
        tests
            .iter()
            .map(move |test| format!("{module}::tests::{test}"))
    });
    let is_there =
        names.any(|name| name.contains(filter) || name.replace("::tests", "").contains(filter));
    (!is_there).then(|| format!("cargo {command}: no test of {folder} matches"))
}
