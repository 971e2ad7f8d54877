//! The house's architecture, kept by a test: which module may know which, where `unsafe` and
//! `mio` may stand, and how wide a line is.
//!
//! `main -> cli -> supervisor -> reactor -> {service, http, offload, os} -> core`. Each row below
//! names a module and everything of this crate that it may use. A module that is in no row fails
//! the test, so a new one has to be given its place.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What each module may use, itself apart.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("error", &[]),
    ("limits", &[]),
    ("core", &["limits"]),
    ("http", &["limits", "error"]),
    ("grpc", &["limits", "error", "http"]),
    ("offload", &["limits", "core", "engine"]),
    ("engine", &["limits", "error", "core", "offload"]),
    ("os", &["limits", "core"]),
    ("config", &["limits", "core", "os"]),
    ("sandbox", &["limits", "os"]),
    ("keys", &["limits"]),
    ("models", &["limits", "os"]),
    ("store", &["limits", "keys"]),
    (
        "telemetry",
        &[
            "limits", "error", "core", "http", "offload", "engine", "config", "os",
        ],
    ),
    ("tls", &["limits", "core", "config", "os"]),
    (
        "service",
        &[
            "limits",
            "error",
            "core",
            "http",
            "grpc",
            "offload",
            "engine",
            "config",
            "keys",
            "telemetry",
        ],
    ),
    (
        "reactor",
        &[
            "limits",
            "error",
            "core",
            "http",
            "offload",
            "engine",
            "config",
            "os",
            "keys",
            "telemetry",
            "tls",
            "service",
        ],
    ),
    ("console", &["limits", "models", "store"]),
    (
        "supervisor",
        &[
            "limits",
            "core",
            "offload",
            "engine",
            "config",
            "os",
            "keys",
            "models",
            "store",
            "telemetry",
            "tls",
            "service",
            "reactor",
            "console",
        ],
    ),
    (
        "cli",
        &[
            "limits",
            "error",
            "http",
            "engine",
            "config",
            "os",
            "sandbox",
            "keys",
            "models",
            "store",
            "tls",
            "service",
            "console",
            "supervisor",
        ],
    ),
];

/// What `core` may use of other crates: it is pure.
const CRATES_OF_CORE: &[&str] = &[
    "std", "core", "alloc", "bytes", "slab", "proptest", "self", "super",
];

/// What `http` must not touch: no socket, no thread, no clock.
const FOREIGN_TO_HTTP: &[&str] = &[
    "std::net",
    "std::thread",
    "std::time::Instant",
    "SystemTime",
    "std::fs",
    "std::io::",
];

const COLUMNS_MAX: usize = 100;

#[test]
fn arrows_between_modules_run_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = String::new();
    for file in sources() {
        if file.module == "lib" {
            continue;
        }
        let Some(may_use) = allowed.get(file.module.as_str()) else {
            writeln!(
                wrong,
                "{}: `{}` has no row in ARROWS",
                file.name, file.module
            )
            .unwrap();
            continue;
        };
        // The library is another crate to `main.rs`.
        let prefix = if file.module == "main" {
            "autoglmd::"
        } else {
            "crate::"
        };
        for used in modules_used(&file.code, prefix) {
            let known = allowed.contains_key(used.as_str());
            if known && used != file.module && !may_use.contains(&used.as_str()) {
                writeln!(wrong, "{}: {} must not use {used}", file.name, file.module).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that run the wrong way:\n{wrong}");
}

/// The rows themselves have no cycle but the one that is a border: a job (engine) names whom its
/// events belong to (offload), and the mailbox carries the events.
#[test]
fn rows_have_no_cycle() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for (module, may_use) in ARROWS {
        for used in *may_use {
            let back = allowed[used].contains(module);
            let border = matches!(
                (*module, *used),
                ("offload", "engine") | ("engine", "offload")
            );
            assert!(!back || border, "{module} and {used} may use each other");
        }
    }
}

#[test]
fn core_uses_std_bytes_and_slab_only_and_http_does_no_io() {
    let mut wrong = String::new();
    for file in sources() {
        for line in file.code.lines().map(str::trim) {
            let used = line
                .strip_prefix("use ")
                .or_else(|| line.strip_prefix("pub use "));
            let root = used.map(|path| path.split([':', ';', ' ']).next().unwrap_or_default());
            let own = root.is_some_and(|root| {
                // `use Level::High;` names a type of the same file.
                let is_type = root.starts_with(char::is_uppercase);
                let is_child = file.code.contains(&format!("mod {root};"));
                root == "crate" || is_type || is_child
            });
            let pure = root.is_none_or(|root| own || CRATES_OF_CORE.contains(&root));
            if file.module == "core" && !pure {
                writeln!(wrong, "{}: {line}", file.name).unwrap();
            }
            let foreign = FOREIGN_TO_HTTP.iter().any(|path| line.contains(path));
            if file.module == "http" && foreign {
                writeln!(wrong, "{}: {line}", file.name).unwrap();
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "what pure modules must not touch:\n{wrong}"
    );
}

#[test]
fn mio_is_known_to_the_reactor_only() {
    assert_only("mio::", |file| file.module == "reactor");
    assert_only("use mio", |file| file.module == "reactor");
}

#[test]
fn unsafe_stands_in_os_and_at_the_border_to_llama_only() {
    let allowed = |file: &Source| file.module == "os" || file.name.starts_with("src/engine/llama");
    for word in ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"] {
        assert_only(word, allowed);
    }
    let mut wrong = String::new();
    for file in sources() {
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let is_unsafe = line.contains("unsafe {") || line.contains("unsafe impl");
            let comment = !line.trim_start().starts_with("//");
            let above = &lines[number.saturating_sub(6)..=number];
            let explained = above.iter().any(|line| line.contains("SAFETY:"));
            if is_unsafe && comment && !explained {
                writeln!(wrong, "{}:{}", file.name, number + 1).unwrap();
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe without `// SAFETY:` above it:\n{wrong}"
    );
}

/// What `engine/llama/ffi` takes from the binding directly: plain reads of a field, callbacks,
/// defaults and destructors; `ggml_abort` does not return, and only a test calls it. Everything
/// else may throw, and is declared in `calls.rs`.
const CALLS_THAT_NEVER_THROW: &[&str] = &[
    "ggml_abort",
    "ggml_set_abort_callback",
    "llama_backend_init",
    "llama_context_default_params",
    "llama_free",
    "llama_get_memory",
    "llama_log_set",
    "llama_model_default_params",
    "llama_model_free",
    "llama_model_get_vocab",
    "llama_model_has_decoder",
    "llama_model_has_encoder",
    "llama_model_n_ctx_train",
    "llama_model_n_embd",
    "llama_model_n_head",
    "llama_model_n_head_kv",
    "llama_model_n_layer",
    "llama_model_quantize_default_params",
    "llama_n_batch",
    "llama_n_ctx_seq",
    "llama_sampler_chain_default_params",
    "llama_sampler_free",
    "llama_set_abort_callback",
    "llama_vocab_bos",
    "llama_vocab_eos",
    "llama_vocab_get_add_bos",
    "llama_vocab_n_tokens",
    "llama_vocab_type",
];

/// Mutation: `sys::llama_decode(` in `context.rs` fails here.
#[test]
fn calls_that_may_throw_go_through_the_guard() {
    let mut wrong = String::new();
    for file in sources() {
        for (at, _) in file.code.match_indices("sys::") {
            let rest = &file.code[at + "sys::".len()..];
            let name = first_name(rest);
            let is_call = rest[name.len()..].starts_with('(');
            if is_call && !CALLS_THAT_NEVER_THROW.contains(&name.as_str()) {
                writeln!(wrong, "{}: {name}", file.name).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "calls without a guard:\n{wrong}");
}

#[test]
fn lines_are_at_most_100_columns_wide() {
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

fn assert_only(text: &str, allowed: impl Fn(&Source) -> bool) {
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|file| !allowed(file) && file.code.contains(text))
        .map(|file| file.name)
        .collect();
    assert!(wrong.is_empty(), "`{text}` stands in {wrong:?}");
}

/// A file of `src`.
struct Source {
    /// Relative to the repository.
    name: String,
    /// The first folder under `src`, or the file's own name.
    module: String,
    text: String,
    /// The text without comment lines.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&root.join("src"), &mut paths);
    assert!(paths.len() > 20, "where are the sources?");
    paths.iter().map(|path| Source::read(root, path)).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

impl Source {
    fn read(root: &Path, path: &Path) -> Source {
        let text = std::fs::read_to_string(path).expect("sources are UTF-8");
        let name = path
            .strip_prefix(root)
            .expect("it lies below")
            .display()
            .to_string();
        let module = name.split('/').nth(1).expect("src/ stands first");
        let module = module.trim_end_matches(".rs").to_owned();
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let code = text.lines().filter(is_code).collect::<Vec<_>>().join("\n");
        Source {
            name,
            module,
            text,
            code,
        }
    }
}

/// The modules behind every `crate::`, groups in braces included.
fn modules_used(code: &str, prefix: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => used.extend(first_names(group)),
            None => used.push(first_name(rest)),
        }
    }
    used
}

/// The first name of each path in a group, up to its closing brace.
fn first_names(group: &str) -> Vec<String> {
    let mut depth = 1;
    let mut start = 0;
    let mut names = Vec::new();
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        let ends = depth == 0 || (depth == 1 && character == ',');
        if ends {
            names.push(first_name(group[start..at].trim()));
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    names
}

fn first_name(path: &str) -> String {
    path.chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect()
}

#[test]
fn groups_of_paths_are_read_to_their_end() {
    let code = "use crate::{core::{Key, Moment}, http};\nuse crate::os::signals;\ncrate::error::X";
    assert_eq!(
        modules_used(code, "crate::"),
        ["core", "http", "os", "error"]
    );
}
