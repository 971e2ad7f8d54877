//! `--run`: asks, runs the program in the sandbox, and passes on its output and exit code.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::Path;

use crate::console::exit::{self, Code};
use crate::console::{fail, note, printable};
use crate::limits::cli as limits;
use crate::sandbox::{self, Ended, Limits, RECIPES, Recipe, Report, SandboxError, Task};

/// The recipe of a language, whose programs must be installed.
pub fn recipe(language: &str) -> Result<&'static Recipe, Code> {
    let Some(recipe) = sandbox::recipe(language) else {
        let known: Vec<&str> = RECIPES.iter().map(|recipe| recipe.language).collect();
        let known = known.join(", ");
        let reason = format!("--run cannot run {language}; it runs {known}");
        return Err(fail(exit::USAGE, reason));
    };
    match recipe.is_installed() {
        true => Ok(recipe),
        false => Err(not_installed(recipe)),
    }
}

fn not_installed(recipe: &Recipe) -> Code {
    let Recipe { needs, package, .. } = recipe;
    let reason = format!("{needs} is not installed; `apt-get install {package}` installs it");
    fail(exit::UNAVAILABLE, reason)
}

/// Reads the program's standard input: a file, stdin for `-`, or nothing.
pub fn read_input(path: Option<&Path>) -> Result<Vec<u8>, Code> {
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let mut input = Vec::new();
    let limit = limits::PROGRAM_INPUT_BYTES_MAX + 1;
    let read = match path == Path::new("-") {
        true => io::stdin().lock().take(limit).read_to_end(&mut input),
        false => File::open(path).and_then(|file| file.take(limit).read_to_end(&mut input)),
    };
    let name = path.display();
    match read {
        Ok(_) if input.len() as u64 > limits::PROGRAM_INPUT_BYTES_MAX => Err(fail(
            exit::DATA,
            format_args!(
                "{name}: longer than {most} bytes",
                most = limits::PROGRAM_INPUT_BYTES_MAX
            ),
        )),
        Ok(_) => Ok(input),
        Err(error) => Err(fail(exit::of_file(&error), format_args!("{name}: {error}"))),
    }
}

/// Checks that there is a terminal to ask on, before the daemon works.
pub fn check_terminal() -> Result<(), Code> {
    match Terminal::open() {
        Some(_) => Ok(()),
        None => Err(fail(
            exit::USAGE,
            "--run asks for confirmation, which needs a terminal; pass --yes to run without it",
        )),
    }
}

/// Asks whether to run the program that was just shown. Anything but yes means no.
pub fn confirm() -> Result<bool, Code> {
    let Some(mut terminal) = Terminal::open() else {
        check_terminal()?;
        return Ok(false);
    };
    let asked = terminal.ask("Run this program in the sandbox? [y/N] ");
    let line = asked.map_err(|error| fail(exit::IO, format_args!("terminal: {error}")))?;
    let reply = line.trim();
    Ok(reply.eq_ignore_ascii_case("y") || reply.eq_ignore_ascii_case("yes"))
}

/// The user's terminal, even if stdin is a pipe.
enum Terminal {
    Standard,
    Controlling(File),
}

impl Terminal {
    fn open() -> Option<Terminal> {
        if io::stdin().is_terminal() && io::stderr().is_terminal() {
            return Some(Terminal::Standard);
        }
        let opened = OpenOptions::new().read(true).write(true).open("/dev/tty");
        opened.ok().map(Terminal::Controlling)
    }

    fn ask(&mut self, question: &str) -> io::Result<String> {
        let mut line = String::new();
        match self {
            Terminal::Standard => {
                io::stderr().lock().write_all(question.as_bytes())?;
                io::stdin().lock().read_line(&mut line)?;
            }
            Terminal::Controlling(file) => {
                file.write_all(question.as_bytes())?;
                BufReader::new(file).read_line(&mut line)?;
            }
        }
        Ok(line)
    }
}

/// Runs a program to its end, and passes on its output and its exit code.
pub fn execute(recipe: &Recipe, program: &str, input: &[u8]) -> Result<(), Code> {
    let task = Task {
        files: &[(recipe.file, program.as_bytes())],
        command: recipe.command,
        stdin: input,
        limits: Limits::default(),
    };
    let report = sandbox::run(&task).map_err(|error| explain(&error, recipe))?;
    pass_on(io::stdout(), &report.stdout)?;
    pass_on(io::stderr(), &report.stderr)?;
    code_of(&report, &task.limits)
}

fn explain(error: &SandboxError, recipe: &Recipe) -> Code {
    let code = match error {
        SandboxError::NoProgram { .. } => return not_installed(recipe),
        SandboxError::Refused { .. } => exit::OS_ERROR,
        SandboxError::BadTask { .. } => exit::SOFTWARE,
        SandboxError::NotStarted { .. } | SandboxError::Io { .. } => exit::IO,
    };
    fail(code, error)
}

/// Passes on every byte, except that a terminal gets no control characters.
fn pass_on(mut stream: impl Write + IsTerminal, bytes: &[u8]) -> Result<(), Code> {
    let written = match stream.is_terminal() {
        true => stream.write_all(printable(&String::from_utf8_lossy(bytes)).as_bytes()),
        false => stream.write_all(bytes),
    };
    let written = written.and_then(|()| stream.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => exit::CLOSED_PIPE,
        _ => fail(exit::IO, error),
    })
}

/// Returns the program's own code, as a shell would; a line reports which limit it has reached.
fn code_of(report: &Report, limits: &Limits) -> Result<(), Code> {
    let Limits { cpu, wall, .. } = limits;
    match report.ended {
        Ended::Exited(0) => return Ok(()),
        Ended::Exited(code) => return Err(Code(code as u8)),
        Ended::Signalled(signal) => {
            note(format_args!(
                "note: the program was ended by signal {signal}"
            ));
            return Err(Code(128_u8.wrapping_add(signal as u8)));
        }
        Ended::OutOfTime => note(format_args!(
            "note: the program was ended at the limit of {cpu:?} CPU time or {wall:?} in total"
        )),
        Ended::OutOfOutput => note(format_args!(
            "note: the program was ended at its limit of {} bytes of output",
            limits.output_bytes
        )),
        Ended::OutOfMemory => note(format_args!(
            "note: the program was ended at its limit of {} MiB of memory",
            limits.memory_bytes >> 20
        )),
    }
    match report.ended {
        Ended::OutOfTime => Err(exit::OUT_OF_TIME),
        _ => Err(exit::KILLED),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::language;

    #[test]
    fn every_recipe_is_for_a_language_of_the_table() {
        for recipe in RECIPES {
            let row = language::language(recipe.language).expect(recipe.language);
            assert_eq!(row.name, recipe.language);
            assert_eq!(recipe.file, format!("main.{}", row.extension));
        }
    }

    #[test]
    fn ends_become_the_codes_that_a_shell_shows() {
        let code = |ended| {
            let report = Report {
                ended,
                stdout: Vec::new(),
                stderr: Vec::new(),
                cpu: Duration::ZERO,
            };
            code_of(&report, &Limits::default())
        };
        assert_eq!(code(Ended::Exited(0)), Ok(()));
        assert_eq!(code(Ended::Exited(7)), Err(Code(7)));
        assert_eq!(code(Ended::Signalled(11)), Err(Code(139)));
        assert_eq!(code(Ended::OutOfTime), Err(Code(124)));
        assert_eq!(code(Ended::OutOfMemory), Err(Code(137)));
        assert_eq!(code(Ended::OutOfOutput), Err(Code(137)));
    }

    #[test]
    fn languages_and_programs_that_are_missing_have_their_codes() {
        assert_eq!(recipe("haskell").expect_err("no recipe"), exit::USAGE);
        let missing = Recipe {
            language: "fantasy",
            file: "main.f",
            command: &["no-such-program"],
            needs: "no-such-program",
            package: "fantasy",
        };
        assert!(!missing.is_installed());
        let code = execute(&missing, "", b"").expect_err("nothing to run");
        assert_eq!(code, exit::UNAVAILABLE);
    }
}
