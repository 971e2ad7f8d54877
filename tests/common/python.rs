//! A Python environment with the imports of the tests' clients, made once per target folder and
//! list of requirements.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment's interpreter.
pub fn interpreter() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = File::create(target.join("python.lock")).expect("cargo made the folder");
    lock.lock().expect("the lock of the environment's making");
    let folder = target.join("python");
    let finished = folder.join("finished");
    let wanted = include_str!("../python/requirements.txt");
    let made = std::fs::read_to_string(&finished).ok();
    if made.as_deref() != Some(wanted) {
        make(&folder);
        std::fs::write(finished, wanted).expect("the environment's folder");
    }
    folder.join("bin/python")
}

fn make(folder: &Path) {
    run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(folder),
        "On Debian and Ubuntu: apt-get install python3-venv",
    );
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/requirements.txt");
    run(
        Command::new(folder.join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(requirements),
        "The clients need the packages that tests/python/requirements.txt lists.",
    );
}

fn run(command: &mut Command, hint: &str) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}. {hint}"));
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}{}\n{hint}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}
