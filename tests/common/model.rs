//! Where the default model is. The first test that needs it lets the daemon's own `model pull`
//! bring it; tests that run at the same time wait for that one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const NAME: &str = "smollm2-135m-instruct";

/// The model's file: `$AUTOGLMD_TEST_MODEL`, else the one in the daemon's own cache.
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
    // Held by one test process at a time, and given back by the kernel even if that one dies.
    let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("model.lock"));
    let lock = lock.expect("cargo made the folder");
    lock.lock().expect("the lock of the model's download");
    if !file.is_file() {
        pull();
    }
    assert!(
        file.is_file(),
        "`autoglmd model pull {NAME}` left no {}",
        file.display()
    );
    file
}

fn pull() {
    let output = Command::new(env!("CARGO_BIN_EXE_autoglmd"))
        .args(["model", "pull", NAME])
        .output()
        .expect("the binary was built for this test");
    assert!(
        output.status.success(),
        "these tests need the model {NAME}, and `autoglmd model pull` failed:\n{}{}\n\
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
