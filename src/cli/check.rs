//! `autoglmd check [--show]`: reports whether the configuration can be used, and shows it.
//!
//! Starts nothing, opens no socket and no database. Reads the certificates that the configuration
//! names, and opens its other files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use crate::config::{
    self, Config, ConfigErrors, CredentialPath, HeaderValue, Loaded, Origin, PushHeader, Sources,
};
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
        Ok(loaded) => check_files(&loaded, sources, show, out, err),
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

/// A configuration that can be read may still name files that cannot be used.
fn check_files(
    loaded: &Loaded,
    sources: &Sources,
    show: bool,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> (u8, io::Result<()>) {
    let now = UnixSeconds::now().as_i64();
    let credentials = sources.credentials_dir();
    let mut problems = unreadable(&loaded.config, credentials.as_deref());
    match Acceptor::load(&loaded.config, credentials.as_deref(), None) {
        Ok(acceptor) if problems.is_empty() => {
            let certificates = acceptor.iter().flat_map(|one| one.certificates());
            let mut warnings = certificates.filter_map(|one| one.warning(now));
            let written = warnings.try_for_each(|warning| writeln!(err, "warning: {warning}"));
            (GOOD, written.and_then(|()| accept(loaded, show, out, err)))
        }
        loaded_certificates => {
            problems.extend(loaded_certificates.err().into_iter().flatten());
            (BAD, refuse_files(loaded, &problems, err))
        }
    }
}

/// Returns the problems of secrets and authorities, which the daemon reads when it connects.
fn unreadable(config: &Config, credentials: Option<&Path>) -> Vec<Problem> {
    let shared = &config.cache_shared;
    let push = &config.metrics_push;
    let named = [
        ("cache.shared.password_file", &shared.password_file),
        ("cache.shared.ca", &shared.ca),
        ("store.password_file", &config.store.password_file),
        ("store.ca", &config.store.ca),
        ("outbound.ca", &config.outbound.ca),
        ("bus.secret_file", &config.bus.secret_file),
        ("metrics.push.token_file", &push.token_file),
    ];
    let named = named
        .into_iter()
        .filter_map(|(key, path)| Some((key, path.as_deref()?)));
    let headers = PushHeader::parse_all(&push.headers, push.token_file.is_some());
    let (headers, wrong) = match headers {
        Ok(headers) => (headers, None),
        Err((key, message)) => (Vec::new(), Some(Problem { key, message })),
    };
    let files = headers.iter().filter_map(|header| match &header.value {
        HeaderValue::File(path) => Some(("metrics.push.headers", path.as_path())),
        HeaderValue::Text(_) => None,
    });
    let problem = |(key, path): (&str, &Path)| {
        let path = CredentialPath(path).resolve(credentials);
        let opened = path.and_then(|path| open(&path));
        opened.err().map(|message| Problem {
            key: key.to_owned(),
            message,
        })
    };
    let opened = named.chain(files).filter_map(problem);
    opened.chain(wrong).collect()
}

/// Opens a file, which a pipe would delay.
fn open(path: &Path) -> Result<(), String> {
    let opened = fs::metadata(path).and_then(|metadata| match metadata.is_dir() {
        true => Err(io::ErrorKind::IsADirectory.into()),
        false if metadata.is_file() => File::open(path).map(drop),
        false => Ok(()),
    });
    opened.map_err(|error| {
        format!(
            "{}: {error}; name a file that the daemon can read",
            path.display()
        )
    })
}

fn refuse_files(loaded: &Loaded, problems: &[Problem], err: &mut dyn Write) -> io::Result<()> {
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

    /// Mutations: a key left out of `unreadable`; certificates whose problems are then not shown.
    #[test]
    fn files_that_cannot_be_read_are_mistakes_of_the_lines_that_name_them() {
        let (code, out, err) = check(
            "[cache.shared]\nurl = \"redis://a:1\"\npassword_file = \"/no/a\"\nca = \"/no/b\"\n\
             [store]\nurl = \"postgres://a@b/c\"\npassword_file = \"/no/c\"\nca = \"/no/d\"\n\
             [outbound]\nca = \"/no/e\"\n\
             [bus]\nkind = \"gossip\"\nlisten = \"127.0.0.1:1\"\nsecret_file = \"/no/f\"\n\
             [metrics.push]\nurl = \"http://a/b\"\ntoken_file = \"/\"\n\
             [server.tls]\ncertificates = [\"/no/g\"]\nkeys = [\"/no/h\"]",
            false,
        );
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        for name in ["a", "b", "c", "d", "e", "f", "g"] {
            assert!(err.contains(&format!("/no/{name}: ")), "{name} in {err}");
        }
        assert!(
            err.starts_with(
                "a.toml:3: cache.shared.password_file: /no/a: No such file or directory \
                 (os error 2); name a file that the daemon can read\n"
            ),
            "{err}"
        );
        assert!(
            err.contains("metrics.push.token_file: /: is a directory"),
            "{err}"
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
