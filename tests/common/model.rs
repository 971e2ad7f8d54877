//! Finds the small model for tests that compute. The first test that needs it fetches it with the
//! daemon's own `model pull`; tests that run at the same time wait for that one. The default model,
//! five times its size, is used if it is there.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

const NAME: &str = "smollm2-135m-instruct";

/// Returns the model's file: `$AUTOGLMD_TEST_MODEL`, or the one in the daemon's own cache.
pub fn path() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(find_or_pull)
}

fn find_or_pull() -> PathBuf {
    if let Some(chosen) = std::env::var_os("AUTOGLMD_TEST_MODEL") {
        let chosen = PathBuf::from(chosen);
        assert!(
            chosen.is_file(),
            "AUTOGLMD_TEST_MODEL={} is no file",
            chosen.display()
        );
        return chosen;
    }
    let file = cache_folder().join("models").join(format!("{NAME}.gguf"));
    // Held by one test process at a time, and released by the kernel even if that one dies.
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("model.lock"));
    let lock = lock.expect("cargo made the folder");
    lock.lock().expect("the lock of the model's download");
    if !file.is_file() {
        pull(NAME);
    }
    assert!(
        file.is_file(),
        "`autoglmd model pull {NAME}` left no {}",
        file.display()
    );
    file
}

const DEFAULT: &str = "qwen2.5-coder-0.5b-instruct";

/// Returns the default model's file, if it may be used: `$AUTOGLMD_TEST_DEFAULT_MODEL` is its path,
/// or `1`, which fetches it; otherwise the one in the daemon's own cache, if it is there.
pub fn default_path() -> Option<PathBuf> {
    let file = cache_folder()
        .join("models")
        .join(format!("{DEFAULT}.gguf"));
    match std::env::var_os("AUTOGLMD_TEST_DEFAULT_MODEL") {
        Some(chosen) if chosen == "1" => {
            pull(DEFAULT);
            Some(file)
        }
        Some(chosen) => {
            let chosen = PathBuf::from(chosen);
            let what = "AUTOGLMD_TEST_DEFAULT_MODEL is neither 1 nor a file";
            assert!(chosen.is_file(), "{what}: {}", chosen.display());
            Some(chosen)
        }
        None => file.is_file().then_some(file),
    }
}

/// Returns a request that never ends by itself: it generates until its context is full, or up to
/// another `max_tokens`. Each token becomes likelier the more often it has come, in the prompt as
/// well, so the program is one word again and again.
pub fn endless(prompt: &str) -> Value {
    json!({"prompt": endless_prompt(prompt), "language": "python", "max_tokens": 1_000_000,
        "temperature": 0, "frequency_penalty": -2, "stop": [], "timeout": 600_000})
}

/// Returns the prompt of such a request, whose `frequency_penalty` must be -2.
pub fn endless_prompt(prompt: &str) -> String {
    format!("{prompt}:{}", " again".repeat(64))
}

fn pull(name: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_autoglmd"))
        .args(["model", "pull", name])
        .output()
        .expect("the binary was built for this test");
    assert!(
        output.status.success(),
        "these tests need the model {name}, and `autoglmd model pull` failed:\n{}{}\n\
         Or set AUTOGLMD_TEST_MODEL to a GGUF file.",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

fn cache_folder() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let home = std::env::var_os("HOME").expect("HOME is set");
            Path::new(&home).join(".cache")
        });
    base.join("autoglmd")
}
