//! Pages that are generated from tables in the code. `AUTOGLMD_BLESS=1 cargo test --test
//! generated_docs` rewrites them; without it, a page that differs from its table fails.

use std::path::{Path, PathBuf};

use autoglmd::config::{self, Config, Overrides, Sources};
use autoglmd::error::ErrorCode;

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name)
}

fn compare(name: &str, expected: &str) {
    let path = page(name);
    if std::env::var_os("AUTOGLMD_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("docs/")).expect("the folder is made");
        std::fs::write(&path, expected).expect("the page is written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = expected
        .lines()
        .zip(found.lines())
        .find(|(new, old)| new != old);
    assert!(
        found == expected,
        "docs/{name} differs from its table, first at {differs:?}; \
         AUTOGLMD_BLESS=1 cargo test --test generated_docs rewrites it"
    );
}

#[test]
fn configuration_page() {
    compare("configuration.md", &config::reference());
}

#[test]
fn errors_page() {
    let mut text = "\
# Errors

Every error response has the same shape, on every route:

    {\"error\": {\"message\", \"type\", \"param\", \"code\", \"request_id\"}}

with `retry_after_ms` where a retry may succeed and `partial` where a part of the text was generated.
`code` is a stable word: it also appears in the log line, in the label of `autoglmd_errors_total`
and in the reason of a gRPC status. `message` is for people and may change.

This page is generated from `src/error.rs`; a test compares the two.

| code | HTTP | gRPC | type | what was wrong and what to do |
| --- | --- | --- | --- | --- |
"
    .to_owned();
    for code in ErrorCode::ALL {
        let (status, grpc) = (code.status(), grpc_name(code.grpc_status()));
        let (family, help) = (
            code.family().as_str(),
            code.help().trim().replace('|', "\\|"),
        );
        text.push_str(&format!(
            "| `{code}` | {status} | {grpc} | `{family}` | {help} |\n"
        ));
    }
    compare("errors.md", &text);
}

#[test]
fn the_example_file_is_the_defaults_without_a_warning() {
    compare("deploy/autoglmd.toml", &config::example());
    let sources = Sources {
        file: Some(page("deploy/autoglmd.toml")),
        environment: vec![("HOME".into(), "/home/a".into())],
        flags: Overrides::default(),
    };
    let loaded = config::load(&sources).expect("the example is good");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let Config {
        state_dir,
        cache_dir,
        ..
    } = loaded.config.clone();
    assert_eq!(
        loaded.config,
        Config {
            state_dir,
            cache_dir,
            ..Config::default()
        }
    );
}

/// The names of grpc/grpc `doc/statuscodes.md`.
fn grpc_name(status: u8) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES[usize::from(status)]
}
