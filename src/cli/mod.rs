//! The command line: a file for each command, and here their common parts: flags, help, dispatch.
//!
//! Owns the words that users type. Must never decide what a value means: flags that belong to the
//! configuration are passed on as text and checked like a line of its file, so that both have the
//! same rules and the same messages.

mod announce;
pub mod cache;
pub mod check;
pub mod client;
pub mod daemon;
pub mod database;
#[cfg(feature = "llama")]
pub mod engine_worker;
pub mod generate;
pub mod key;
pub mod model;
pub mod pages;
pub mod serve;
pub mod store;
pub mod times;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{Overrides, Sources};
use crate::console;
use crate::console::exit::{self, Code};

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    match Arguments::try_parse() {
        Ok(arguments) => arguments.run().into(),
        Err(error) => refuse(&error).into(),
    }
}

/// Prints help or the error in the flags. clap itself would exit with 2.
fn refuse(error: &clap::Error) -> Code {
    let printed = error.print().and_then(|()| io::stdout().flush());
    match (error.kind(), printed) {
        (ErrorKind::DisplayHelp | ErrorKind::DisplayVersion, Ok(())) => exit::OK,
        (ErrorKind::DisplayHelp | ErrorKind::DisplayVersion, Err(error)) => {
            console::unwritten(&error)
        }
        _ => exit::USAGE,
    }
}

/// Open-AutoGLM's daemon: LLM code generation over HTTP.
#[derive(Debug, Parser)]
#[command(name = "autoglmd", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true, infer_subcommands = false)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeFlags,
}

const EXAMPLES: &str = "\
Without a command, autoglmd serves.

Examples:
  autoglmd                                     serve on 127.0.0.1:8080
  autoglmd --listen 0.0.0.0:8080 --parallel 8  serve on all addresses, eight requests at a time
  autoglmd generate \"quicksort\" -l python      get a program from the daemon
  autoglmd key create --name ci --expires 30d  create a key
  autoglmd check --show                        print the configuration in force

Exit codes are those of sysexits(3): 64 wrong flags, 65 refused input, 69 not reachable,
75 try again later, 77 not allowed, 78 wrong configuration.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve. This is what autoglmd does without a command.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeFlags),
    /// Check the configuration: exit 0, or 1 with the place of every mistake.
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// Print the whole configuration in force, with each value's source.
        #[arg(long)]
        show: bool,
        #[command(flatten)]
        flags: ServeFlags,
    },
    /// Create, list, revoke and rotate keys. A running daemon applies a change within a second.
    Key(key::Key),
    /// Check the database, bring it to this program's version, export or import it.
    Store(store::Store),
    /// Show or purge the cache of a running daemon.
    Cache(cache::Cache),
    /// Download, list, verify and remove models.
    Model(model::Model),
    /// Get a program from the daemon and print it while it is generated.
    Generate(generate::Generate),
    /// The daemon's own child process; not for direct use.
    #[cfg(feature = "llama")]
    #[command(hide = true)]
    EngineWorker(engine_worker::EngineWorker),
    /// Print a completion script for a shell.
    #[command(after_help = pages::COMPLETION_EXAMPLES)]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, or write one for each command into a folder.
    #[command(after_help = pages::MAN_EXAMPLES)]
    Man {
        /// The folder for a page per command, instead of printing one page.
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
    },
}

const SERVE_EXAMPLES: &str = "\
Examples:
  autoglmd serve --config ./autoglmd.toml
  autoglmd serve --listen 127.0.0.1:0 --listen unix:/run/autoglmd.sock
  autoglmd serve --model ~/models/qwen2.5-coder-7b-q4_k_m.gguf --parallel 4
  autoglmd serve --engine echo               a fixed program, for measuring the daemon

Signals: TERM and INT drain, a second one ends at once; HUP reloads; USR1 reopens log files.";

const CHECK_EXAMPLES: &str = "\
Examples:
  autoglmd check --config /etc/autoglmd/autoglmd.toml && systemctl reload autoglmd
  autoglmd check --show";

/// Flags that override the configuration.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeFlags {
    /// The configuration file [default: $AUTOGLMD_CONFIG, else /etc/autoglmd/autoglmd.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// IP:PORT, unix:/PATH or fd:NAME; may be given several times [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// The folder of the database and the bootstrap key.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// A model's name, or the path of a GGUF file.
    #[arg(long, value_name = "NAME|FILE")]
    model: Option<String>,
    /// The engine: llama, or echo for measurements.
    #[arg(long, value_name = "KIND")]
    engine: Option<String>,
    /// Sequences that are decoded together.
    #[arg(long, value_name = "N")]
    parallel: Option<String>,
    /// Compute threads; 0 chooses by the machine's cores.
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Reactors: threads with an event loop.
    #[arg(long, value_name = "N")]
    reactors: Option<String>,
    /// The log level: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl ServeFlags {
    fn into_sources(self) -> Sources {
        let overrides = Overrides {
            listen: self.listen,
            state_dir: self.state_dir,
            model: self.model,
            engine: self.engine,
            parallel: self.parallel,
            threads: self.threads,
            reactors: self.reactors,
            log_level: self.log_level,
        };
        Sources::of_process(self.config, overrides)
    }
}

impl Arguments {
    fn run(self) -> Code {
        match self.command {
            None => serve::run(&self.serve.into_sources()),
            Some(Command::Serve(flags)) => serve::run(&flags.into_sources()),
            Some(Command::Check { show, flags }) => {
                let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
                Code(check::run(&flags.into_sources(), show, &mut out, &mut err))
            }
            Some(Command::Store(store)) => end(store.run()),
            Some(Command::Key(key)) => end(key.run()),
            Some(Command::Cache(cache)) => end(cache.run()),
            Some(Command::Model(model)) => end(model.run()),
            Some(Command::Generate(generate)) => end(generate.run()),
            #[cfg(feature = "llama")]
            Some(Command::EngineWorker(worker)) => end(worker.run()),
            Some(Command::Completions { shell }) => {
                end(pages::completions(Arguments::command(), shell))
            }
            Some(Command::Man { folder }) => {
                end(pages::man(Arguments::command(), folder.as_deref()))
            }
        }
    }
}

/// Commands report their own errors; only the code is left.
fn end(result: Result<(), Code>) -> Code {
    result.err().unwrap_or(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from([&["autoglmd"], words].concat())
    }

    #[test]
    fn the_definition_contradicts_itself_nowhere() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn serving_needs_no_word_and_takes_the_same_flags_with_it() {
        let bare = parse(&["--listen", "a", "--listen", "b", "--parallel", "4"]).unwrap();
        assert!(bare.command.is_none());
        let overrides = bare.serve.into_sources().flags;
        assert_eq!(overrides.listen, ["a", "b"]);
        assert_eq!(overrides.parallel.as_deref(), Some("4"));
        let spoken = parse(&["serve", "--listen", "a", "--config", "x.toml"]).unwrap();
        let Some(Command::Serve(flags)) = spoken.command else {
            panic!("another command");
        };
        assert_eq!(flags.into_sources().file, Some(PathBuf::from("x.toml")));
        assert!(parse(&["--listen", "a", "check"]).is_err());
    }

    #[test]
    fn every_command_and_flag_has_a_help_text() {
        fn walk(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                let described = argument.get_help().is_some() || argument.is_positional();
                assert!(described, "{} {}", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Arguments::command());
    }
}
