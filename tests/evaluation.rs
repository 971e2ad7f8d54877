//! Checks the evaluation's tasks: each correct program passes, each wrong one fails.
//!
//! The models themselves are judged by `cargo bench --bench prompts`.
//!
//! Mutations that `right_programs_pass_and_wrong_ones_fail` catches: a check without its last
//! statement, `Verdict::Passed` for an exit status of 0 without the mark, `compare` that looks at
//! only the first case.

#[allow(dead_code)]
#[path = "../benches/prompts/judge.rs"]
mod judge;
#[path = "../benches/prompts/languages.rs"]
mod languages;
#[allow(dead_code)]
#[path = "../benches/prompts/statistics.rs"]
mod statistics;
#[allow(dead_code)]
#[path = "../benches/prompts/tasks.rs"]
mod tasks;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use judge::{Verdict, judge};
use statistics::{Pairs, Share};
use tasks::{Half, Task, Tongue};

/// The interpreters and compilers for the programs, with the packages that contain them.
const TOOLS: &[(&str, &str)] = &[
    ("python3", "python3"),
    ("node", "nodejs"),
    ("gcc", "gcc"),
    ("g++", "g++"),
    ("go", "golang-go"),
    ("sqlite3", "sqlite3"),
];

#[test]
fn right_programs_pass_and_wrong_ones_fail() {
    let missing: Vec<&str> = TOOLS
        .iter()
        .filter(|(program, _)| !is_installed(program))
        .map(|(_, package)| *package)
        .collect();
    assert!(
        missing.is_empty(),
        "programs of the evaluation need more: apt-get install {}",
        missing.join(" ")
    );
    let tasks = tasks::all();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut faults = Vec::new();
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            faults.extend(faults_of(task));
        }
        faults
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let faults: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        results.flatten().collect()
    });
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

fn faults_of(task: &Task) -> Vec<String> {
    let expected = [
        ("right", &task.right, Verdict::Passed),
        ("wrong", &task.wrong, Verdict::WrongResult),
    ];
    let mut faults = Vec::new();
    for (which, program, expected) in expected {
        let found = judge(task, program.trim_start_matches('\n'));
        if found.verdict != expected {
            faults.push(format!(
                "{}: {}: the {which} program {}: {}",
                task.language,
                task.name,
                found.verdict.title(),
                found.because
            ));
        }
    }
    faults
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Python, Bash, C++ and Rust hold out 2, 3 and 2 tasks of the tiers, the others 3, 2 and 3.
#[test]
fn halves_are_balanced_by_language_and_tier() {
    let tasks = tasks::all();
    let mut names = HashSet::new();
    for task in &tasks {
        assert!(
            names.insert((task.language, &task.name)),
            "{}: {} stands twice",
            task.language,
            task.name
        );
    }
    let languages: HashSet<&str> = tasks.iter().map(|task| task.language).collect();
    assert_eq!(languages.len(), 8);
    for language in languages {
        let holds_out_fewer = matches!(language, "python" | "bash" | "cpp" | "rust");
        for tier in 1..=3 {
            let of_tier = |half: Option<Half>| {
                tasks
                    .iter()
                    .filter(|task| task.language == language && task.tier == tier)
                    .filter(|task| half.is_none_or(|half| half == task.half))
                    .count()
            };
            let held_out = if holds_out_fewer == (tier == 2) { 3 } else { 2 };
            assert_eq!(of_tier(None), 5, "{language}, tier {tier}");
            assert_eq!(
                of_tier(Some(Half::HeldOut)),
                held_out,
                "{language}, tier {tier}"
            );
        }
    }
}

#[test]
fn requests_come_in_two_tongues_and_leave_the_language_to_its_own_member() {
    for task in tasks::all() {
        let [english, chinese] = Tongue::ALL.map(|tongue| task.request(tongue));
        let is_chinese = |text: &str| text.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
        assert!(!is_chinese(english), "{}", task.name);
        assert!(is_chinese(chinese), "{}", task.name);
        for named in ["Python", "JavaScript", "Bash", "C++", "Golang", "Rust"] {
            assert!(!english.contains(named), "{}: {named}", task.name);
        }
    }
}

/// Values of R's `binom.confint(method = "wilson")` and `binom.test`. Mutations that it catches: a
/// one-sided test, and a reach without the correction for small samples.
#[test]
fn intervals_and_tests_are_those_of_the_books() {
    let near = |found: f64, expected: f64| (found - expected).abs() < 0.05;
    for (passed, of, low, high) in [
        (8, 10, 49.0, 94.3),
        (0, 15, 0.0, 20.4),
        (72, 120, 51.1, 68.3),
    ] {
        let (from, to) = Share { passed, of }.interval();
        assert!(
            near(from, low) && near(to, high),
            "{passed}/{of}: {from} to {to}"
        );
    }
    for (first, second, p) in [(1, 9, 0.0215), (5, 5, 1.0), (0, 0, 1.0), (0, 6, 0.03125)] {
        let mut pairs = Pairs::default();
        for index in 0..20 {
            pairs.add(index < first, (first..first + second).contains(&index));
        }
        assert!((pairs.p_value() - p).abs() < 1e-4, "{}", pairs.p_value());
        assert_eq!(pairs.difference(), 5.0 * (second as f64 - first as f64));
    }
}
