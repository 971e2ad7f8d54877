//! Checks whether a program does what its task asks, by running it in the sandbox.
//!
//! Owns the verdict. Must never run a program outside `autoglmd::sandbox`.

use autoglmd::sandbox::{self, Ended, Limits, Report};
use serde::{Deserialize, Serialize};

use super::languages::{self, DID_NOT_PARSE, MARK, WRONG_RESULT};
use super::tasks::Task;

/// The verdict on an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    Passed,
    DidNotParse,
    DidNotRun,
    WrongResult,
    /// The output, or the program, did not end within its bound.
    TooLong,
}

impl Verdict {
    /// Ways to fail, in the order of the tables.
    pub const FAILURES: [Verdict; 4] = [
        Verdict::DidNotParse,
        Verdict::DidNotRun,
        Verdict::WrongResult,
        Verdict::TooLong,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::DidNotParse => "did not parse",
            Verdict::DidNotRun => "did not run",
            Verdict::WrongResult => "wrong result",
            Verdict::TooLong => "too long",
        }
    }
}

/// A verdict, and the program's last lines for people.
#[derive(Clone, Debug)]
pub struct Judgement {
    pub verdict: Verdict,
    pub because: String,
}

/// Runs `program` for `task`.
pub fn judge(task: &Task, program: &str) -> Judgement {
    if program.trim().is_empty() {
        return Judgement {
            verdict: Verdict::DidNotParse,
            because: "the answer holds no program".to_owned(),
        };
    }
    let run = languages::prepare(task, program);
    let files: Vec<(&str, &[u8])> = run
        .files
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_bytes()))
        .collect();
    let job = sandbox::Task {
        files: &files,
        command: &["bash", "-c", &run.script],
        stdin: b"",
        limits: Limits::default(),
    };
    let report = sandbox::run(&job).unwrap_or_else(|error| panic!("the sandbox: {error}"));
    let stdout = String::from_utf8_lossy(&report.stdout);
    let verdict = match (report.ended, &task.check) {
        (Ended::OutOfTime | Ended::OutOfOutput, _) => Verdict::TooLong,
        (Ended::Exited(DID_NOT_PARSE), _) => Verdict::DidNotParse,
        (Ended::Exited(WRONG_RESULT), Some(_)) => Verdict::WrongResult,
        (Ended::Exited(0), Some(_)) if stdout.contains(MARK) => Verdict::Passed,
        (_, Some(_)) => Verdict::DidNotRun,
        (_, None) => compare(task, &stdout),
    };
    Judgement {
        verdict,
        because: last_words(&report),
    }
}

/// Compares what a program printed in each of its cases.
fn compare(task: &Task, stdout: &str) -> Verdict {
    let mut rest = stdout;
    for case in &task.cases {
        let Some((printed, after)) = rest.split_once(MARK) else {
            return Verdict::DidNotRun;
        };
        let (status, after) = after.split_once('\n').unwrap_or((after, ""));
        rest = after;
        if is_same_text(printed, &case.stdout) {
            continue;
        }
        // A status counts only if the output is wrong: `exit 1` at the end of a script whose last
        // test was false is common, and harmless.
        return match status.trim() {
            "0" => Verdict::WrongResult,
            _ => Verdict::DidNotRun,
        };
    }
    Verdict::Passed
}

/// White space at the ends of lines and of the text is ignored.
fn is_same_text(printed: &str, expected: &str) -> bool {
    let lines = |text: &str| -> Vec<String> {
        let text = text.trim_end();
        text.lines()
            .map(|line| line.trim_end().to_owned())
            .collect()
    };
    lines(printed) == lines(expected)
}

fn last_words(report: &Report) -> String {
    let stderr = String::from_utf8_lossy(&report.stderr);
    let words: Vec<&str> = stderr
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = words.len().saturating_sub(6);
    format!("{:?}: {}", report.ended, words[last..].join("\n"))
}
