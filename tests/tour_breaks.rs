//! The deliberate breaks at the end of the tour's stops: each is a patch in `docs/tour/`, and the
//! simulation catches each.
//!
//! A patch begins with lines of its own, before the first `---`:
//!
//! ```text
//! Stop 4: a short read is taken for the end, even behind a FIN.
//!
//! seed: 0                                 or    test: the name of a scenario
//! says: has unread input
//! ```
//!
//! `every_break_fits_the_code` looks at the text: that each stop of the tour names its patch, that the
//! patch applies to this tree, and that the test exists. It needs no build, so it runs with all
//! others. `every_break_is_caught` builds each broken tree, without llama.cpp and in one folder, and
//! sees the test fail with the words that the patch promises:
//!
//! ```text
//!   cargo test --no-default-features --test tour_breaks -- --ignored --nocapture
//!   AUTOGLMD_BREAK=04 cargo test --no-default-features --test tour_breaks -- --ignored
//! ```
//!
//! Mutations: a patch that changes a comment alone is not caught, and fails; a patch with a changed
//! context line does not apply.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A broken tree must fail within this time, its build included.
const PATIENCE_SECONDS: &str = "600";

struct Break {
    /// `04_short_read`: the patch's name without its ending.
    name: String,
    path: PathBuf,
    /// The test's filter, and the seed if the test is the simulation's own.
    filter: String,
    seed: Option<String>,
    /// What the failing test prints.
    says: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn breaks() -> Vec<Break> {
    let folder = root().join("docs/tour");
    let entries = std::fs::read_dir(folder).expect("the tour has a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|it| it == "patch"))
        .collect();
    paths.sort();
    paths.into_iter().map(Break::read).collect()
}

impl Break {
    fn read(path: PathBuf) -> Break {
        let text = std::fs::read_to_string(&path).expect("a patch is text");
        let head = text.split("\n---").next().unwrap_or_default();
        let line = |key: &str| {
            let mut lines = head.lines();
            lines
                .find_map(|line| line.strip_prefix(key))
                .map(|value| value.trim().to_owned())
        };
        let seed = line("seed:");
        let filter = match &seed {
            Some(_) => Some("reactor::simulation::every_seed".to_owned()),
            None => line("test:"),
        };
        let name = path
            .file_stem()
            .expect("it has a name")
            .to_string_lossy()
            .into_owned();
        Break {
            filter: filter.unwrap_or_else(|| panic!("{name}: neither seed: nor test:")),
            says: line("says:").unwrap_or_else(|| panic!("{name}: no says:")),
            name,
            path,
            seed,
        }
    }

    /// Applies the patch to a tree, or only tries to.
    fn apply(&self, tree: &Path, options: &[&str]) -> Output {
        let mut patch = Command::new("git");
        // The copy is no repository, and must not be taken for a part of the one above it.
        let above = tree.parent().expect("the tree has a parent");
        patch
            .env("GIT_CEILING_DIRECTORIES", above)
            .current_dir(tree);
        patch.args(["apply", "-p1"]).args(options).arg(&self.path);
        patch.output().expect("git runs")
    }

    /// Runs the test that must fail in this tree.
    fn test(&self, tree: &Path) -> Output {
        let mut test = Command::new("timeout");
        test.arg(PATIENCE_SECONDS)
            .arg(env!("CARGO"))
            .current_dir(tree);
        test.args(["test", "--no-default-features", "--lib", &self.filter]);
        test.env("CARGO_TARGET_DIR", root().join("target"));
        test.env(
            "AUTOGLMD_SIM_SEED",
            self.seed.as_deref().unwrap_or_default(),
        );
        if self.seed.is_none() {
            test.env_remove("AUTOGLMD_SIM_SEED");
        }
        test.output().expect("cargo runs")
    }
}

#[test]
fn every_break_fits_the_code() {
    let breaks = breaks();
    let tour = std::fs::read_to_string(root().join("docs/tour.md")).expect("the tour is text");
    let stops: Vec<&str> = tour.lines().filter(|line| is_stop(line)).collect();
    assert_eq!(
        breaks.len(),
        stops.len(),
        "one break for each stop: {stops:?}"
    );
    let mut wrong = String::new();
    for broken in &breaks {
        let name = &broken.name;
        if !tour.contains(&format!("`docs/tour/{name}.patch`")) {
            writeln!(wrong, "{name}: no stop names it").expect("a string");
        }
        if let Some(seed) = &broken.seed
            && !tour.contains(&format!("AUTOGLMD_SIM_SEED={seed}"))
        {
            writeln!(wrong, "{name}: the tour does not name seed {seed}").expect("a string");
        }
        if !tour.contains(&broken.says) {
            writeln!(wrong, "{name}: the tour does not show {:?}", broken.says).expect("a string");
        }
        let checked = broken.apply(root(), &["--check"]);
        if !checked.status.success() {
            let why = String::from_utf8_lossy(&checked.stderr);
            writeln!(wrong, "{name} does not apply: {why}").expect("a string");
        }
        let test = broken.filter.rsplit("::").next().unwrap_or_default();
        if !has_test(&root().join("src/reactor/simulation"), test) {
            writeln!(wrong, "{name}: no test is called {test}").expect("a string");
        }
    }
    assert!(
        wrong.is_empty(),
        "breaks that do not fit the code:\n{wrong}"
    );
}

/// Minutes, not seconds: a command of docs/reliability.md, and not of every run.
#[test]
#[ignore = "builds the library once for each break: see the head of this file"]
fn every_break_is_caught() {
    let tree = root().join("target/tour");
    let chosen = std::env::var("AUTOGLMD_BREAK").unwrap_or_default();
    let mut wrong = String::new();
    for broken in breaks()
        .iter()
        .filter(|broken| broken.name.starts_with(&chosen))
    {
        copy_tree(&tree);
        let applied = broken.apply(&tree, &[]);
        assert!(applied.status.success(), "{}: {applied:?}", broken.name);
        let output = broken.test(&tree);
        let text = [output.stdout, output.stderr]
            .map(|it| String::from_utf8_lossy(&it).into_owned())
            .concat();
        // 101 is a test that failed; a build that failed says so instead.
        let is_caught = output.status.code() == Some(101) && text.contains("test result: FAILED");
        if is_caught && text.contains(&broken.says) {
            println!("{}: caught", broken.name);
        } else {
            let end = text.len().saturating_sub(2_000);
            let end = (end..text.len())
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0);
            writeln!(
                wrong,
                "{}: not caught as it says\n{}",
                broken.name,
                &text[end..]
            )
            .expect("a string");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn is_stop(line: &str) -> bool {
    let title = line.strip_prefix("## ").unwrap_or_default();
    title.starts_with(|first: char| first.is_ascii_digit())
}

fn has_test(folder: &Path, name: &str) -> bool {
    let entries = std::fs::read_dir(folder).expect("the simulation has a folder");
    entries
        .map(|entry| entry.expect("an entry").path())
        .any(|path| {
            if path.is_dir() {
                return has_test(&path, name);
            }
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            text.contains(&format!("fn {name}"))
        })
}

/// Copies the files that a build of the library reads. Leaves unchanged files alone, so that little
/// is built for each break. Leaves `.cargo` out: cargo finds the one above, and both together would
/// double the compiler's flags and so build every dependency again.
fn copy_tree(tree: &Path) {
    for name in [
        "src",
        "docs",
        "tests",
        "benches",
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
    ] {
        let from = root().join(name);
        if from.exists() {
            copy(&from, &tree.join(name));
        }
    }
}

fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        let is_same =
            std::fs::read(to).is_ok_and(|old| std::fs::read(from).is_ok_and(|new| new == old));
        if !is_same {
            std::fs::copy(from, to).expect("the tree is copied");
        }
        return;
    }
    std::fs::create_dir_all(to).expect("a folder below target/");
    for entry in std::fs::read_dir(to).expect("a folder") {
        let old = entry.expect("an entry");
        // A module that has moved would be there twice.
        if !from.join(old.file_name()).exists() {
            remove(&old.path());
        }
    }
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

fn remove(path: &Path) {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    removed.expect("a path below target/");
}
