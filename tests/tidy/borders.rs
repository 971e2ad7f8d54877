//! The borders of some folders: no sockets and clocks in the pure ones, no `mio` outside the
//! reactor, no `unsafe` outside `os` and the border to llama.cpp.

use std::fmt::Write as _;

use crate::source::{Source, sources};

/// The crates and modules that `core` may use: it is pure.
const CRATES_OF_CORE: &[&str] = &[
    "std", "core", "alloc", "bytes", "slab", "proptest", "self", "super",
];

/// The names that `http` must not use: no socket, no thread, no clock.
const FOREIGN_TO_HTTP: &[&str] = &[
    "std::net",
    "std::thread",
    "std::time::Instant",
    "SystemTime",
    "std::fs",
    "std::io::",
];

/// Mutation: `use std::net::TcpStream;` in `src/http/negotiate.rs` fails here.
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
            // An address is a part of a URL, and no I/O.
            let is_address = line == "use std::net::{IpAddr, Ipv6Addr};";
            let foreign = !is_address && FOREIGN_TO_HTTP.iter().any(|path| line.contains(path));
            if file.module == "http" && foreign {
                writeln!(wrong, "{}: {line}", file.name).unwrap();
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "pure modules must not touch these:\n{wrong}"
    );
}

/// Mutation: `use mio::Token;` in `src/service/mod.rs` fails here.
#[test]
fn only_the_reactor_uses_mio() {
    assert_only("mio::", |file| file.module == "reactor");
    assert_only("use mio", |file| file.module == "reactor");
}

/// Mutation: an `unsafe` block in `src/core/pool.rs`, or one in `src/os/socket.rs` without the
/// comment, fails here.
#[test]
fn unsafe_is_in_os_and_at_the_border_to_llama_only() {
    let allowed = |file: &Source| file.module == "os" || file.name.starts_with("src/engine/llama");
    for word in ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"] {
        assert_only(word, allowed);
    }
    let mut wrong = String::new();
    for file in sources() {
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, line) in file.code.lines().enumerate() {
            let is_unsafe = line.contains("unsafe {") || line.contains("unsafe impl");
            let above = &lines[number.saturating_sub(6)..=number];
            let explained = above.iter().any(|line| line.contains("SAFETY:"));
            if is_unsafe && !explained {
                writeln!(wrong, "{}:{}", file.name, number + 1).unwrap();
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe without `// SAFETY:` above it:\n{wrong}"
    );
}

/// The functions of the binding that `engine/llama/ffi` calls directly: plain reads of a field,
/// callbacks, defaults and destructors; `ggml_abort` does not return, and only a test calls it. All
/// other functions may throw, and are declared in `calls.rs`.
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
            let name = name_at(rest);
            let is_call = rest[name.len()..].starts_with('(');
            if is_call && !CALLS_THAT_NEVER_THROW.contains(&name.as_str()) {
                writeln!(wrong, "{}: {name}", file.name).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "calls without a guard:\n{wrong}");
}

fn assert_only(text: &str, allowed: impl Fn(&Source) -> bool) {
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|file| !allowed(file) && file.code.contains(text))
        .map(|file| file.name)
        .collect();
    assert!(wrong.is_empty(), "`{text}` is in {wrong:?}");
}

fn name_at(path: &str) -> String {
    path.chars()
        .take_while(|character| character.is_alphanumeric() || *character == '_')
        .collect()
}
