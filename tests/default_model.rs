//! The original client's request to the default model: the program that comes back runs.
//!
//! Uses the default model if its file is in the daemon's cache, or if `AUTOGLMD_TEST_DEFAULT_MODEL`
//! is `1`, which fetches it, or the path of its file. Otherwise the small model is used, and only
//! the form of the response is checked. The test prints which model it used, whether it passes or
//! not.

#![cfg(feature = "llama")]

mod common;

use std::io::Write as _;
use std::process::Command;

use serde_json::json;

use common::{Options, model};

/// Runs the program, and the first of its functions that sorts the lists as `sorted` does.
const JUDGE: &str = r#"
import random, sys

space = {"__name__": "program"}
exec(compile(open(sys.argv[1], encoding="utf-8").read(), "program", "exec"), space)

def result(function, items):
    for more in ((), (0, len(items) - 1)):
        copy = list(items)
        try:
            returned = function(copy, *more)
        except TypeError:
            continue
        return copy if returned is None else list(returned)

random.seed(20261128)
lists = [
    [random.randint(-1000, 1000) for _ in range(random.randint(0, 50))] for _ in range(100)
]
functions = [one for name, one in space.items() if callable(one) and "sort" in name.lower()]
if not any(all(result(f, items) == sorted(items) for items in lists) for f in functions):
    sys.exit("no function of the program sorts")
"#;

#[test]
fn chinese_quicksort_sorts() {
    let default = model::default_path();
    let (options, name) = match &default {
        Some(path) => {
            let path = path.to_str().expect("the path is plain");
            (
                Options::llama().set("engine.model", path),
                "the default model",
            )
        }
        None => (
            Options::llama(),
            "the small model, so its program is not run",
        ),
    };
    let used = default.as_deref().unwrap_or_else(|| model::path());
    // Written past the harness, which shows a test's output only if it fails.
    writeln!(
        std::io::stderr(),
        "chinese_quicksort_sorts uses {name}: {}",
        used.display()
    )
    .expect("stderr is open");
    let daemon = options.set_raw("engine.parallel", "1").start();
    let body = json!({"prompt": "实现快速排序算法", "language": "python", "timeout": 300_000});
    let answer = daemon.generate(&body).expect(200).json();
    let code = answer["code"].as_str().expect("code").to_owned();
    assert!(!code.trim().is_empty() && !code.contains("```"), "{code}");
    if default.is_none() {
        return;
    }
    assert_eq!(answer["finish_reason"], "stop", "{code}");
    let folder = daemon.folder();
    let (judge, program) = (
        folder.path().join("judge.py"),
        folder.path().join("program.py"),
    );
    std::fs::write(&judge, JUDGE).expect("the folder can be written");
    std::fs::write(&program, &code).expect("the folder can be written");
    let output = Command::new("timeout")
        .args(["60", "python3", "-I"])
        .args([judge, program])
        .output()
        .expect("timeout(1) is part of coreutils");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{code}");
}

/// Checks the judge itself: it must find a wrong program.
#[test]
fn judge_passes_a_program_that_sorts_and_fails_one_that_does_not() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let judge = folder.path().join("judge.py");
    std::fs::write(&judge, JUDGE).expect("the folder can be written");
    for (program, sorts) in [
        ("def quicksort(a):\n    return sorted(a)\n", true),
        ("def quick_sort(a, low, high):\n    a.sort()\n", true),
        ("def quicksort(a):\n    return sorted(set(a))\n", false),
        ("def quicksort(a):\n    return a\n", false),
        ("print('no function')\n", false),
        ("def broken(:\n", false),
    ] {
        let file = folder.path().join("program.py");
        std::fs::write(&file, program).expect("the folder can be written");
        let output = Command::new("timeout")
            .args(["60", "python3", "-I"])
            .args([&judge, &file])
            .output()
            .expect("timeout(1) is part of coreutils");
        assert_eq!(output.status.success(), sorts, "{program}");
    }
}
