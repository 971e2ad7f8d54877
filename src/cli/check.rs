//! `autoglmd check [--show]`: reports whether the configuration can be used, and shows it.
//!
//! Starts nothing, opens no socket and no database. Reads the certificates that the configuration
//! names.

use std::io::{self, Write};

use crate::config::{self, ConfigErrors, Loaded, Origin, Sources};
use crate::console::exit;
use crate::core::UnixSeconds;
use crate::tls::{Acceptor, Problem};

const GOOD: u8 = 0;
const BAD: u8 = 1;

/// Runs the command. `out` gets the verdict or, with `show`, the configuration as TOML; `err` gets
/// mistakes and warnings. Returns the exit code. A closed `out` does not change it; after any other
/// failure, such as a full disk, the output is incomplete and the code reports that.
pub fn run(sources: &Sources, show: bool, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let (code, written) = match config::load(sources) {
        Ok(loaded) => check_certificates(&loaded, sources, show, out, err),
        Err(errors) => (BAD, refuse(&errors, err)),
    };
    let written = written
        .and_then(|()| out.flush())
        .and_then(|()| err.flush());
    match written {
        // `autoglmd check | head` closes the pipe early; there is no reader left.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(err, "error: stdout: {error}");
            exit::IO.0
        }
        _ => code,
    }
}

/// A configuration that can be read may still name certificates that cannot be used.
fn check_certificates(
    loaded: &Loaded,
    sources: &Sources,
    show: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> (u8, io::Result<()>) {
    let now = UnixSeconds::now().as_i64();
    let credentials = sources.credentials_dir();
    match Acceptor::load(&loaded.config, credentials.as_deref(), None) {
        Ok(acceptor) => {
            let certificates = acceptor.iter().flat_map(|one| one.certificates());
            let mut warnings = certificates.filter_map(|one| one.warning(now));
            let written = warnings.try_for_each(|warning| writeln!(err, "warning: {warning}"));
            (GOOD, written.and_then(|()| accept(loaded, show, out, err)))
        }
        Err(problems) => (BAD, refuse_certificates(loaded, &problems, err)),
    }
}

fn refuse_certificates(
    loaded: &Loaded,
    problems: &[Problem],
    err: &mut dyn Write,
) -> io::Result<()> {
    for problem in problems {
        let path = problem.key.split('[').next().unwrap_or_default();
        match (loaded.origin(path), &loaded.file) {
            (Origin::File { line, .. }, Some(file)) => {
                writeln!(err, "{}:{line}: {problem}", file.display())?;
            }
            (Origin::Environment(name), _) => writeln!(err, "{name}: {problem}")?,
            _ => writeln!(err, "{problem}")?,
        }
    }
    let count = problems.len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    writeln!(err, "{count} {noun}")
}

fn accept(loaded: &Loaded, show: bool, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    for warning in &loaded.warnings {
        writeln!(err, "warning: {warning}")?;
    }
    match (show, &loaded.file) {
        (true, _) => write!(out, "{}", config::show(loaded)),
        (false, Some(file)) => writeln!(out, "{}: good", file.display()),
        (false, None) => writeln!(out, "no configuration file; the defaults are in force"),
    }
}

fn refuse(errors: &ConfigErrors, err: &mut dyn Write) -> io::Result<()> {
    let count = errors.problems.len() + errors.more;
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    writeln!(err, "{errors}\n{count} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn check(toml: &str, show: bool) -> (u8, String, String) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("a.toml");
        std::fs::write(&file, toml).expect("the file is written");
        let sources = Sources {
            file: Some(file.clone()),
            environment: vec![("HOME".into(), "/home/a".into())],
            flags: Overrides::default(),
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(&sources, show, &mut out, &mut err);
        let text = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).expect("UTF-8");
            text.replace(&file.display().to_string(), "a.toml")
        };
        (code, text(out), text(err))
    }

    #[test]
    fn a_good_file_exits_with_0_and_warnings_do_not_change_that() {
        assert_eq!(
            check("[log]\nlevel = \"debug\"", false),
            (0, "a.toml: good\n".into(), "".into())
        );
        let (code, _, err) = check("[engine]\nkind = \"echo\"", false);
        assert_eq!(code, 0);
        assert!(
            err.starts_with("warning: a.toml:2:8: engine.kind is \"echo\""),
            "{err}"
        );
    }

    #[test]
    fn a_bad_file_exits_with_1_and_prints_every_mistake() {
        let (code, out, err) = check("[limits]\nmax_body = \"1kb\"\nmax_hed = 1", true);
        assert_eq!((code, out.as_str()), (1, ""));
        assert_eq!(
            err,
            "a.toml:2:12: limits.max_body is \"1kb\"; \
             expected a size such as \"64KiB\", from 1KiB to 1GiB\n  \
               2 | max_body = \"1kb\"\n    |            ^^^^^\n\
             a.toml:3:1: unknown key max_hed in [limits]; did you mean max_head?\n  \
               3 | max_hed = 1\n    | ^^^^^^^\n\
             2 mistakes\n"
        );
    }

    #[test]
    fn show_prints_sources() {
        let (code, out, err) = check("[limits]\nmax_body = \"2MiB\"", true);
        assert_eq!((code, err.as_str()), (0, ""));
        let line = out
            .lines()
            .find(|line| line.starts_with("max_body"))
            .expect("the key");
        assert!(
            line.starts_with("max_body = \"2MiB\" ") && line.ends_with("# a.toml:2"),
            "{line}"
        );
        assert!(
            out.contains("# State: /home/a/.local/state/autoglmd ($HOME)\n"),
            "{out}"
        );
    }

    #[test]
    fn a_closed_pipe_does_not_panic() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let environment = vec![("HOME".to_owned(), "/home/a".to_owned())];
        let sources = Sources {
            environment,
            ..Sources::default()
        };
        assert_eq!(run(&sources, true, &mut Closed, &mut Closed), 0);
    }
}
