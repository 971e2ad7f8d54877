//! `autoglmd generate`: asks a daemon for a program and prints it as it is written.
//!
//! stdout gets the program and nothing else; with `--run` it gets the program's output, and the
//! program itself is shown on stderr. Ctrl-C needs no code here: SIGINT ends the process, the
//! kernel closes its connection, and the daemon cancels the work of a client that left.

mod destination;
mod execution;
mod highlight;
mod printer;

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value};

use self::destination::Destination;
use self::printer::{Printer, Stream};
use super::client::{self, Request, Response, Target};
use super::daemon::{DaemonFlags, Refusal, refusal};
use super::times::parse_timeout_ms;
use crate::console::exit::{self, Code};
use crate::console::{fail, note, put};
use crate::engine::language;
use crate::limits::cli as limits;

const PATH: &str = "/api/v1/generate";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Generate {
    /// The task, in any natural language; `-` reads it from stdin.
    prompt: String,
    /// The programming language.
    #[arg(short, long)]
    language: Option<String>,
    /// Print the program as it is written: the default, but not with --json.
    #[arg(long, overrides_with = "no_stream")]
    stream: bool,
    /// Print the program once it is complete.
    #[arg(long, overrides_with = "stream")]
    no_stream: bool,
    /// The longest time to wait, such as 30s.
    #[arg(long, value_name = "TIME", value_parser = parse_timeout_ms)]
    timeout: Option<u64>,
    /// The model [default: the daemon's].
    #[arg(long)]
    model: Option<String>,
    /// The maximum length of the program, in tokens.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// 0 always chooses the most likely token; higher values vary more.
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    #[command(flatten)]
    daemon: DaemonFlags,
    /// Print the whole response as JSON; with --stream each event as a line.
    #[arg(long)]
    json: bool,
    /// Write the program to a file, which must not exist; with --stream print it too.
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// Let --out replace a file.
    #[arg(long, requires = "out")]
    force: bool,
    /// Show the program, ask for confirmation, and run it in a sandbox: no network, none of your
    /// files, limited time and memory.
    #[arg(long, conflicts_with = "json")]
    run: bool,
    /// Run the program without asking for confirmation.
    #[arg(long, requires = "run")]
    yes: bool,
    /// The program's standard input for --run: a file, or `-` for stdin [default: empty].
    #[arg(long, value_name = "FILE", requires = "run")]
    input: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  autoglmd generate \"quicksort\" --language python > quicksort.py
  autoglmd generate 实现快速排序算法 -l rust --timeout 30s
  git diff | autoglmd generate - --no-stream
  autoglmd generate \"a stack\" -l go --json | jq .usage
  autoglmd generate \"hello\" --url unix:/run/autoglmd.sock

Ctrl-C stops the daemon's work too.";

/// How the response comes and is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The program as it is written.
    Stream,
    /// Each event as a line of JSON.
    StreamJson,
    /// The program, once it is complete.
    Whole,
    /// The response's JSON object.
    WholeJson,
}

impl Generate {
    pub fn run(mut self) -> Result<(), Code> {
        let mode = self.mode();
        let language = self.language.as_deref().and_then(language::language);
        let language = language.map(|language| language.name);
        // Everything that can be refused without the daemon is refused before the daemon works.
        let destination = self.destination()?;
        let input = self.check_run(language)?;
        self.prompt = read_prompt(self.prompt)?;
        let mut printer = Printer::new(self.stream(), language);
        let answer = self.ask(mode, &mut printer)?;
        if let Some(destination) = destination {
            destination.write(printer.program())?;
            note(format_args!("wrote {}", destination.path().display()));
        }
        match self.run {
            true => self.execute(language, &answer, printer.program(), &input),
            false => Ok(()),
        }
    }

    /// Sends the request and prints the response.
    fn ask(&self, mode: Mode, printer: &mut Printer) -> Result<Answer, Code> {
        let key = self.daemon.find_key()?;
        let body = self.body(mode);
        let request = Request {
            method: "POST",
            path: PATH,
            accept: match mode {
                Mode::Stream | Mode::StreamJson => "text/event-stream, application/json",
                Mode::Whole | Mode::WholeJson => "application/json",
            },
            key: key.as_deref(),
            json: Some(body.as_bytes()),
        };
        // The daemon keeps the deadline itself; ours is for a daemon that does not respond at all.
        let patience = match self.timeout {
            Some(milliseconds) => {
                Duration::from_millis(milliseconds).saturating_add(limits::CLIENT_GRACE)
            }
            None => limits::CLIENT_PATIENCE,
        };
        let response = client::send(&self.daemon.url, &request, patience);
        let response = response.map_err(|error| self.daemon.unreachable(&error))?;
        let printed = print_answer(response, mode, printer);
        printed.map_err(|end| end.explain(&self.daemon.url))
    }

    fn destination(&self) -> Result<Option<Destination>, Code> {
        let path = self.out.clone();
        path.map(|path| Destination::new(path, self.force))
            .transpose()
    }

    /// Returns where the program is shown.
    fn stream(&self) -> Stream {
        match (self.run, &self.out) {
            // A program must be shown before the user can agree to it.
            (true, _) => Stream::Stderr,
            (false, Some(_)) if !self.stream => Stream::Nowhere,
            (false, _) => Stream::Stdout,
        }
    }

    /// Checks the requirements of --run, as far as they are known. Returns the program's input.
    fn check_run(&self, language: Option<&str>) -> Result<Vec<u8>, Code> {
        if !self.run {
            return Ok(Vec::new());
        }
        if let Some(language) = language {
            execution::recipe(language)?;
        }
        if !self.yes {
            execution::check_terminal()?;
        }
        let takes_stdin = |path: &PathBuf| path.as_os_str() == "-";
        if self.prompt == "-" && self.input.as_ref().is_some_and(takes_stdin) {
            let reason = "stdin cannot be the prompt and the program's --input";
            return Err(fail(exit::USAGE, reason));
        }
        execution::read_input(self.input.as_deref())
    }

    /// Asks, and runs the program.
    fn execute(
        &self,
        language: Option<&str>,
        answer: &Answer,
        program: &str,
        input: &[u8],
    ) -> Result<(), Code> {
        let Some(language) = language.or(answer.language.as_deref()) else {
            let reason = "the program's language is unknown; set it with --language";
            return Err(fail(exit::USAGE, reason));
        };
        let recipe = execution::recipe(language)?;
        if !self.yes && !execution::confirm()? {
            note("not run");
            return Err(exit::NO);
        }
        execution::execute(recipe, program, input)
    }

    fn mode(&self) -> Mode {
        match (self.json, self.stream, self.no_stream) {
            (true, true, _) => Mode::StreamJson,
            (true, false, _) => Mode::WholeJson,
            (false, _, true) => Mode::Whole,
            (false, _, false) => Mode::Stream,
        }
    }

    fn body(&self, mode: Mode) -> String {
        let mut body = Map::new();
        body.insert("prompt".into(), self.prompt.as_str().into());
        body.insert(
            "stream".into(),
            matches!(mode, Mode::Stream | Mode::StreamJson).into(),
        );
        let options = [
            ("language", self.language.as_deref().map(Value::from)),
            ("model", self.model.as_deref().map(Value::from)),
            ("timeout", self.timeout.map(Value::from)),
            ("max_tokens", self.max_tokens.map(Value::from)),
            ("temperature", self.temperature.map(Value::from)),
        ];
        for (name, value) in options {
            if let Some(value) = value {
                body.insert(name.into(), value);
            }
        }
        Value::from(body).to_string()
    }
}

/// Why no whole program was printed.
enum End {
    /// The daemon refused, or failed.
    Refused(Box<Refusal>),
    /// The connection failed in the middle.
    Broken(io::Error),
    /// stdout failed, and that was reported.
    Output(Code),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Broken(error)
    }
}

impl From<Code> for End {
    fn from(code: Code) -> End {
        End::Output(code)
    }
}

impl End {
    fn explain(self, url: &Target) -> Code {
        match self {
            End::Output(code) => code,
            End::Refused(refusal) => refusal.explain(),
            End::Broken(error) => match error.kind() {
                io::ErrorKind::UnexpectedEof => fail(
                    exit::IO,
                    format_args!("{url}: the connection ended before the response was complete"),
                ),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => fail(
                    exit::TEMPORARY,
                    format_args!("{url}: the daemon sent nothing for too long"),
                ),
                _ => fail(exit::IO, format_args!("{url}: {error}")),
            },
        }
    }
}

/// The response's object, as far as it is printed.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    code: String,
    language: Option<String>,
    finish_reason: Option<String>,
}

fn print_answer(mut response: Response, mode: Mode, printer: &mut Printer) -> Result<Answer, End> {
    if response.content_type.starts_with("text/event-stream") {
        return print_events(response, mode, printer);
    }
    let mut bytes = Vec::new();
    response
        .by_ref()
        .take(limits::CLIENT_RESPONSE_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    if response.status != 200 {
        return Err(End::Refused(Box::new(refusal(response.status, &text))));
    }
    match mode {
        Mode::WholeJson | Mode::StreamJson => {
            put(&format!("{}\n", text.trim_end()))?;
            Ok(Answer::default())
        }
        Mode::Whole | Mode::Stream => {
            let answer = parse_answer(&text)?;
            printer.push(&with_line_end(&answer.code))?;
            printer.finish()?;
            note_cut(&answer);
            Ok(answer)
        }
    }
}

fn print_events(response: Response, mode: Mode, printer: &mut Printer) -> Result<Answer, End> {
    let status = response.status;
    let mut events = response.into_events();
    while let Some(event) = events.next_event()? {
        if mode == Mode::StreamJson {
            put(&format!(
                "{{\"event\":\"{}\",\"data\":{}}}\n",
                event.name, event.data
            ))?;
        }
        match event.name.as_str() {
            "delta" if mode != Mode::StreamJson => printer.push(&delta(&event.data)?)?,
            "done" => {
                printer.finish()?;
                let answer = parse_answer(&event.data)?;
                note_cut(&answer);
                return Ok(answer);
            }
            "error" => {
                printer.finish()?;
                return Err(End::Refused(Box::new(refusal(status, &event.data))));
            }
            _ => {}
        }
    }
    Err(End::Broken(io::ErrorKind::UnexpectedEof.into()))
}

fn parse_answer(text: &str) -> io::Result<Answer> {
    serde_json::from_str(text).map_err(io::Error::from)
}

fn delta(text: &str) -> io::Result<String> {
    #[derive(Deserialize)]
    struct Delta {
        text: String,
    }
    let delta: Delta = serde_json::from_str(text).map_err(io::Error::from)?;
    Ok(delta.text)
}

fn note_cut(answer: &Answer) {
    if answer.finish_reason.as_deref() == Some("length") {
        note("note: the program was cut off at the token limit; raise --max-tokens");
    }
}

fn with_line_end(text: &str) -> String {
    match text.ends_with('\n') {
        true => text.to_owned(),
        false => format!("{text}\n"),
    }
}

fn read_prompt(prompt: String) -> Result<String, Code> {
    if prompt != "-" {
        return Ok(prompt);
    }
    let mut text = String::new();
    let read = io::stdin()
        .lock()
        .take(limits::CLIENT_PROMPT_BYTES_MAX + 1)
        .read_to_string(&mut text);
    match read {
        Ok(_) if text.len() as u64 > limits::CLIENT_PROMPT_BYTES_MAX => Err(fail(
            exit::DATA,
            format_args!(
                "stdin: the prompt is longer than {most} bytes",
                most = limits::CLIENT_PROMPT_BYTES_MAX
            ),
        )),
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(fail(exit::DATA, "stdin: the prompt is not UTF-8"))
        }
        Err(error) => Err(fail(exit::IO, format_args!("stdin: {error}"))),
    }
}
