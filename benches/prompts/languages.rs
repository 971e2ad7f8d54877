//! Runs a program: the files and the shell script for a task in each language.
//!
//! Owns how a program and a check become one. Everything of a task runs in one script, in one
//! sandbox: its first lines build the program, the others run it. The script's exit status is the
//! verdict on a check; programs with cases print, and [`super::judge`] compares.
//!
//! A check ends with printing [`MARK`]. A program that exits with 0 before the check is complete
//! has not passed.

use super::tasks::{Case, Task};

/// The program does not compile, or its syntax is wrong.
pub const DID_NOT_PARSE: i32 = 97;
/// The check found a wrong result.
pub const WRONG_RESULT: i32 = 98;

/// A line that a check prints at its end, and a script after each case. No model knows it.
pub const MARK: &str = "--8<-- 7d0c1e52";

/// A script and the files beside it.
pub struct Run {
    pub files: Vec<(String, String)>,
    pub script: String,
}

/// Prepares a run of `program` for `task`.
pub fn prepare(task: &Task, program: &str) -> Run {
    let mut files: Vec<(String, String)> = task
        .context
        .iter()
        .map(|file| (file.path.clone(), file.text.clone()))
        .collect();
    let script = match &task.check {
        Some(check) => check_script(task.language, program, check, &mut files),
        None => case_script(task, program, &mut files),
    };
    Run { files, script }
}

fn check_script(
    language: &str,
    program: &str,
    check: &str,
    files: &mut Vec<(String, String)>,
) -> String {
    let fill = |frame: &str| {
        frame
            .replace("@MARK@", MARK)
            .replace("@CHECK@", check)
            .replace("@ANSWER@", program)
    };
    let mut add = |name: &str, text: String| files.push((name.to_owned(), text));
    match language {
        "python" => {
            add("answer.py", program.to_owned());
            add("statements.py", check.to_owned());
            add("check.py", fill(PYTHON));
            format!("{PYTHON_PARSES}python3 check.py")
        }
        "javascript" => {
            add("check.js", fill(JAVASCRIPT));
            format!("node check.js 2>errors && exit 0\n{JAVASCRIPT_FAILED}")
        }
        "bash" => {
            add("answer.sh", program.to_owned());
            add("check.sh", fill(BASH));
            format!("{BASH_PARSES}bash check.sh")
        }
        "c" => {
            add("answer.c", program.to_owned());
            add("check.c", fill(C));
            format!("{} || {C_FAILED}./program", c("check.c"))
        }
        "cpp" => {
            add("answer.cpp", program.to_owned());
            add("check.cpp", fill(CPP));
            format!("{} || {CPP_FAILED}./program", cpp("check.cpp"))
        }
        "go" => {
            add("answer.go", program.to_owned());
            let main = match program.contains("func main()") {
                true => "",
                false => "func main() {}",
            };
            add("check.go", fill(GO) + main);
            format!("{} || {GO_FAILED}./program", go("answer.go check.go"))
        }
        "rust" => {
            add("answer.rs", program.to_owned());
            add("check.rs", fill(RUST));
            format!(
                "{} --test check.rs || {RUST_FAILED}./program -q --nocapture --exact hidden_check::runs",
                RUSTC
            )
        }
        other => panic!("no check is known for {other}"),
    }
}

fn case_script(task: &Task, program: &str, files: &mut Vec<(String, String)>) -> String {
    let (answer, build, run) = match task.language {
        "python" => ("answer.py", PYTHON_PARSES.to_owned(), "python3 answer.py"),
        "javascript" => (
            "answer.js",
            "node --check answer.js || exit 97\n".to_owned(),
            "node answer.js",
        ),
        "bash" => ("answer.sh", BASH_PARSES.to_owned(), "bash answer.sh"),
        "c" => (
            "answer.c",
            format!("{} || exit 97\n", c("answer.c")),
            "./program",
        ),
        "cpp" => (
            "answer.cpp",
            format!("{} || exit 97\n", cpp("answer.cpp")),
            "./program",
        ),
        "go" => (
            "answer.go",
            format!("{} || exit 97\n", go("answer.go")),
            "./program",
        ),
        "rust" => (
            "answer.rs",
            format!("{RUSTC} answer.rs || exit 97\n"),
            "./program",
        ),
        "sql" => ("answer.sql", String::new(), ""),
        other => panic!("no run is known for {other}"),
    };
    files.push((answer.to_owned(), program.to_owned()));
    let mut script = build;
    for (index, case) in task.cases.iter().enumerate() {
        let input = format!("case-{index}.in");
        let line = match task.language {
            "sql" => {
                files.push((input.clone(), sql_input(case)));
                format!("sqlite3 -batch -bail :memory: < {input} 2>errors")
            }
            _ => {
                files.push((input.clone(), case.stdin.clone()));
                format!("{run}{} < {input}", arguments(case))
            }
        };
        script.push_str(&line);
        script.push_str("\nstatus=$?\n");
        if task.language == "sql" {
            script.push_str(SQL_FAILED);
        }
        script.push_str(&format!("echo; echo \"{MARK} $status\"\n"));
    }
    script
}

/// The program is read as its own file, so that it needs no semicolon at its end.
fn sql_input(case: &Case) -> String {
    format!(
        "{}\n.read answer.sql\n{}\n",
        case.setup.trim(),
        case.after.trim()
    )
}

fn arguments(case: &Case) -> String {
    case.args
        .iter()
        .map(|argument| format!(" '{}'", argument.replace('\'', r"'\''")))
        .collect()
}

const PYTHON_PARSES: &str = "python3 -c 'import ast
ast.parse(open(\"answer.py\", encoding=\"utf-8\").read())' || exit 97\n";

const PYTHON: &str = r#"
import sys
import answer

scope = {name: value for name, value in vars(answer).items() if not name.startswith("__")}
scope["answer"] = answer
try:
    exec(compile(open("statements.py", encoding="utf-8").read(), "statements.py", "exec"), scope)
except AssertionError as error:
    import traceback
    traceback.print_exc()
    sys.exit(98)
print("\n@MARK@")
"#;

/// The program may be an ES module or not: node detects it by the syntax.
const JAVASCRIPT: &str = r#"@ANSWER@
;(async () => {
  const check = (condition) => { if (!condition) { console.error("wrong", new Error().stack); process.exit(98); } };
  const same = (actual, expected) => {
    const { isDeepStrictEqual } = process.getBuiltinModule("node:util");
    const is_same = isDeepStrictEqual(actual, expected);
    if (!is_same) console.error("got", actual, "expected", expected);
    return is_same;
  };
  @CHECK@
  console.log("\n@MARK@");
})().catch((error) => { console.error(error); process.exit(1); });
"#;

const JAVASCRIPT_FAILED: &str =
    "status=$?\ncat errors >&2\ngrep -q '^SyntaxError' errors && exit 97\nexit $status";

const BASH_PARSES: &str = "bash -n answer.sh || exit 97\n";

const BASH: &str = r#"
wrong_result() { exit 98; }
same() { [ "$1" = "$2" ] || { printf 'got %q, expected %q\n' "$1" "$2" >&2; wrong_result; }; }
@CHECK@
echo; echo "@MARK@"
"#;

/// A function without a declaration is an error in C23 and in gcc 14.
fn c(file: &str) -> String {
    format!("gcc -std=gnu17 -w -Werror=implicit-function-declaration -o program {file} -lm")
}

fn cpp(file: &str) -> String {
    format!("g++ -std=c++20 -w -o program {file}")
}

fn go(files: &str) -> String {
    format!("go build -o program {files}")
}

const RUSTC: &str = "rustc --edition 2021 -A warnings -C debuginfo=0 -o program";

/// If the program alone compiles, it lacks a function that the check calls.
const C_FAILED: &str = "{ gcc -std=gnu17 -w -Werror=implicit-function-declaration -fsyntax-only \
                        answer.c 2>/dev/null || exit 97; exit 1; }\n";
const CPP_FAILED: &str =
    "{ g++ -std=c++20 -w -fsyntax-only answer.cpp 2>/dev/null || exit 97; exit 1; }\n";
const GO_FAILED: &str = "{ gofmt -e answer.go >/dev/null 2>&1 || exit 97; exit 1; }\n";
const RUST_FAILED: &str = "{ rustc --edition 2021 -A warnings --crate-type lib --emit metadata \
                           -o answer.rmeta answer.rs 2>/dev/null || exit 97; exit 1; }\n";

const C: &str = r#"
#define main answer_main
#include "answer.c"
#undef main
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define CHECK(condition) \
    do { if (!(condition)) { fprintf(stderr, "not so: %s\n", #condition); exit(98); } } while (0)
int main(void) {
@CHECK@
    printf("\n@MARK@\n");
    return 0;
}
"#;

const CPP: &str = r#"
#define main answer_main
#include "answer.cpp"
#undef main
#include <algorithm>
#include <cmath>
#include <iostream>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>
#define CHECK(...) \
    do { if (!(__VA_ARGS__)) { std::cerr << "not so: " #__VA_ARGS__ "\n"; std::exit(98); } } while (0)
int main() {
@CHECK@
    std::cout << "\n@MARK@" << std::endl;
    return 0;
}
"#;

/// Initialization runs before the program's `main`.
const GO: &str = r#"package main

import (
	"fmt"
	"os"
	"reflect"
	"sort"
	"strings"
)

var _, _, _ = reflect.DeepEqual, sort.Ints, strings.Join

func check(condition bool) {
	if !condition {
		fmt.Fprintln(os.Stderr, "wrong result")
		os.Exit(98)
	}
}

func init() {
@CHECK@
	fmt.Println("\n@MARK@")
	os.Exit(0)
}
"#;

/// A module within the program's crate sees its private items.
const RUST: &str = r#"@ANSWER@

#[cfg(test)]
mod hidden_check {
    #[allow(unused_imports)]
    use super::*;

    fn check(condition: bool) {
        if !condition {
            eprintln!("wrong result");
            std::process::exit(98);
        }
    }

    #[test]
    fn runs() {
        @CHECK@
        println!("\n@MARK@");
        std::process::exit(0);
    }
}
"#;

const SQL_FAILED: &str = "cat errors >&2
grep -Eq 'syntax error|incomplete input|unrecognized token' errors && exit 97\n";
