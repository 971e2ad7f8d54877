//! Which module uses which: one row each, exactly as the code has it.
//!
//! A use without a permission fails, and so does a permission without a use. A module without a
//! row fails too, so that a new one is given its place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::paths::paths;
use crate::source::{Source, root, sources};

/// What each module uses, tests included; from the bottom up.
const ROWS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("limits", &[]),
    ("core", &["limits"]),
    ("http", &["limits", "error"]),
    ("grpc", &["limits", "error", "http"]),
    ("os", &["limits"]),
    ("telemetry", &["limits", "core", "os"]),
    ("offload", &["limits", "core", "http", "os", "telemetry"]),
    (
        "engine",
        &["error", "limits", "core", "os", "telemetry", "offload"],
    ),
    (
        "config",
        &["limits", "core", "http", "os", "telemetry", "engine"],
    ),
    ("tls", &["limits", "core", "http", "os", "config"]),
    ("sandbox", &["limits", "os"]),
    ("keys", &["limits", "core"]),
    ("models", &["limits", "core", "http", "os"]),
    ("jobs", &["limits", "core"]),
    (
        "store",
        &[
            "limits",
            "core",
            "os",
            "telemetry",
            "offload",
            "keys",
            "jobs",
        ],
    ),
    ("redis", &["limits", "core", "os", "config"]),
    (
        "cache",
        &[
            "error",
            "limits",
            "core",
            "telemetry",
            "offload",
            "engine",
            "config",
            "store",
            "redis",
        ],
    ),
    ("leases", &["limits", "core", "keys", "redis"]),
    (
        "runner",
        &[
            "error",
            "limits",
            "core",
            "os",
            "http",
            "offload",
            "engine",
            "config",
            "keys",
            "jobs",
            "store",
            "leases",
            "telemetry",
        ],
    ),
    (
        "bus",
        &["limits", "core", "os", "telemetry", "config", "redis"],
    ),
    (
        "service",
        &[
            "error",
            "limits",
            "core",
            "http",
            "grpc",
            "os",
            "offload",
            "engine",
            "config",
            "keys",
            "jobs",
            "store",
            "runner",
            "leases",
            "telemetry",
            "cache",
        ],
    ),
    (
        "reactor",
        &[
            "error",
            "limits",
            "core",
            "http",
            "os",
            "offload",
            "engine",
            "config",
            "tls",
            "cache",
            "keys",
            "jobs",
            "store",
            "telemetry",
            "runner",
            "service",
        ],
    ),
    ("console", &["limits", "models", "store"]),
    (
        "supervisor",
        &[
            "limits",
            "core",
            "http",
            "os",
            "offload",
            "engine",
            "config",
            "tls",
            "keys",
            "models",
            "store",
            "redis",
            "bus",
            "leases",
            "cache",
            "runner",
            "telemetry",
            "service",
            "reactor",
            "console",
        ],
    ),
    (
        "cli",
        &[
            "error",
            "limits",
            "core",
            "http",
            "os",
            "engine",
            "config",
            "tls",
            "sandbox",
            "keys",
            "jobs",
            "models",
            "store",
            "redis",
            "cache",
            "bus",
            "leases",
            "console",
            "supervisor",
        ],
    ),
    ("main", &["cli"]),
];

/// Mutation: `use crate::service::Service;` in `src/http/negotiate.rs` fails here, and so does `"os"`
/// in the row of `http`.
#[test]
fn modules_use_what_their_rows_name() {
    let used = used();
    let rows: BTreeMap<&str, &[&str]> = ROWS.iter().copied().collect();
    let mut wrong = String::new();
    for (module, uses) in &used {
        let Some(row) = rows.get(module.as_str()) else {
            writeln!(wrong, "{module} has no row; it uses {:?}", uses.keys()).unwrap();
            continue;
        };
        for (name, file) in uses
            .iter()
            .filter(|(name, _)| !row.contains(&name.as_str()))
        {
            writeln!(wrong, "{module} must not use {name}, and {file} does").unwrap();
        }
        for name in row.iter().filter(|name| !uses.contains_key(**name)) {
            writeln!(
                wrong,
                "{module} does not use {name}: take it out of the row"
            )
            .unwrap();
        }
    }
    for module in rows.keys().filter(|module| !used.contains_key(**module)) {
        writeln!(wrong, "{module} has a row and no files").unwrap();
    }
    assert!(wrong.is_empty(), "rows and code differ:\n{wrong}");
}

#[test]
fn rows_name_only_rows_above_them() {
    let mut above = BTreeSet::new();
    for (module, row) in ROWS {
        for name in *row {
            assert!(
                above.contains(name),
                "{module} uses {name}, which is not above it"
            );
        }
        above.insert(*module);
    }
}

/// `src/lib.rs` lists the modules in the same order.
#[test]
fn the_library_lists_its_modules_in_the_order_of_the_rows() {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let modules = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod "));
    let modules: Vec<&str> = modules.map(|name| name.trim_end_matches(';')).collect();
    let rows = ROWS.iter().map(|(module, _)| *module);
    let rows: Vec<&str> = rows.filter(|module| *module != "main").collect();
    assert_eq!(modules, rows);
}

/// For each module the modules that it uses, each with a file that does.
fn used() -> BTreeMap<String, BTreeMap<String, String>> {
    let sources = sources();
    let modules: BTreeSet<&String> = sources.iter().map(|source| &source.module).collect();
    let mut used: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.module != "lib") {
        let row = used.entry(source.module.clone()).or_default();
        for name in modules_used(source) {
            if name != source.module && modules.contains(&name) {
                row.entry(name).or_insert_with(|| source.name.clone());
            }
        }
    }
    used
}

fn modules_used(source: &Source) -> Vec<String> {
    // The library is another crate to `main.rs`.
    let root = if source.module == "main" {
        "autoglmd"
    } else {
        "crate"
    };
    let found = paths(&source.code);
    let imports = found.imports.into_iter().map(|(path, _)| path);
    let all = imports.chain(found.others);
    let below = all.filter(|path| path[0] == root && path.len() > 1);
    below.map(|path| path[1].clone()).collect()
}
