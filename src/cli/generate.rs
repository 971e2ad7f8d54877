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
use super::client::{self, Post, Response, Target};
use super::times::parse_timeout_ms;
use crate::config::{Overrides, Sources};
use crate::console::exit::{self, Code};
use crate::console::{fail, note, printable, put};
use crate::engine::language;
use crate::error::ErrorCode;
use crate::limits::cli as limits;
use crate::os::file;
use crate::store::BOOTSTRAP_FILE;

const PATH: &str = "/api/v1/generate";
const KEY_VARIABLE: &str = "AUTOGLMD_KEY";

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
    /// The daemon's address: http://HOST:PORT or unix:/PATH.
    #[arg(long, default_value = "http://127.0.0.1:8080", value_parser = Target::parse)]
    url: Target,
    /// The API key. Other users can see it in the list of processes, so prefer $AUTOGLMD_KEY
    /// [default: $AUTOGLMD_KEY, else the bootstrap key].
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    key: Option<String>,
    /// The folder of the bootstrap key [default: $STATE_DIRECTORY, else ~/.local/state/autoglmd].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
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
        let key = self.find_key();
        let body = self.body(mode);
        let post = Post {
            path: PATH,
            accept: match mode {
                Mode::Stream | Mode::StreamJson => "text/event-stream, application/json",
                Mode::Whole | Mode::WholeJson => "application/json",
            },
            key: key.as_deref(),
            body: body.as_bytes(),
        };
        // The daemon keeps the deadline itself; ours is for a daemon that does not respond at all.
        let patience = match self.timeout {
            Some(milliseconds) => {
                Duration::from_millis(milliseconds).saturating_add(limits::CLIENT_GRACE)
            }
            None => limits::CLIENT_PATIENCE,
        };
        let response = client::post(&self.url, &post, patience);
        let response = response.map_err(|error| self.unreachable(&error))?;
        let printed = print_answer(response, mode, printer);
        printed.map_err(|end| end.explain(&self.url))
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

    /// Returns the key from the flag, the variable, or the bootstrap file. Without any the request
    /// is sent without a key: a daemon may require none.
    fn find_key(&self) -> Option<String> {
        if let Some(key) = &self.key {
            return Some(key.clone());
        }
        let flags = Overrides {
            state_dir: self.state_dir.clone(),
            ..Overrides::default()
        };
        let sources = Sources::of_process(None, flags);
        if let Some(key) = sources.variable(KEY_VARIABLE) {
            return parse_key(key).ok();
        }
        let (state_dir, _) = sources.state_dir().ok()?;
        let path = state_dir.join(BOOTSTRAP_FILE);
        let bytes = file::read_up_to(&path, limits::CLIENT_KEY_BYTES_MAX as u64).ok()?;
        parse_key(std::str::from_utf8(&bytes).ok()?.trim()).ok()
    }

    fn unreachable(&self, error: &io::Error) -> Code {
        let hint = match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                "; is the daemon running? Start it with `autoglmd serve`, or set its address with \
                 --url"
            }
            _ => "",
        };
        fail(
            exit::UNAVAILABLE,
            format_args!("{}: {error}{hint}", self.url),
        )
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

/// The error object of every failed response.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
    code: String,
    param: Option<String>,
    request_id: Option<String>,
    retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Wrapped {
    error: Refusal,
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
        return Err(refusal(response.status, &text));
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
                return Err(refusal(status, &event.data));
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

fn refusal(status: u16, text: &str) -> End {
    let wrapped: Result<Wrapped, _> = serde_json::from_str(text);
    End::Refused(Box::new(match wrapped {
        Ok(wrapped) => wrapped.error,
        // Not our daemon, or a proxy before it.
        Err(_) => Refusal {
            message: format!("the server responded with status {status}"),
            ..Refusal::default()
        },
    }))
}

impl Refusal {
    fn explain(&self) -> Code {
        let known = ErrorCode::ALL
            .iter()
            .find(|code| code.as_str() == self.code);
        let message = printable(&self.message);
        let exit_code = known.map_or(exit::UNAVAILABLE, |code| exit_code(*code));
        match self.code.as_str() {
            "" => fail(exit_code, message),
            code => fail(exit_code, format_args!("{}: {message}", printable(code))),
        };
        if let Some(param) = &self.param {
            note(format_args!("  field: {}", printable(param)));
        }
        if let Some(way_out) = known.and_then(|code| way_out(*code)) {
            note(format_args!("  {way_out}"));
        }
        if let Some(milliseconds) = self.retry_after_ms {
            note(format_args!(
                "  try again in {} s",
                milliseconds.div_ceil(1_000)
            ));
        }
        if let Some(id) = &self.request_id {
            note(format_args!("  request id: {}", printable(id)));
        }
        exit_code
    }
}

/// Returns the remedy in terms of this command's flags. The daemon's message has the remedy for
/// clients in general.
fn way_out(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::MissingCredentials => Some(
            "set a key with --key or AUTOGLMD_KEY (`autoglmd key create` makes one), or the folder \
             of the bootstrap key with --state-dir",
        ),
        ErrorCode::GenerationTimeout => Some("use a longer --timeout"),
        ErrorCode::DeadlineUnmeetable => Some("use a longer --timeout, or try again later"),
        ErrorCode::ContextLengthExceeded => Some("shorten the prompt, or lower --max-tokens"),
        _ => None,
    }
}

fn exit_code(code: ErrorCode) -> Code {
    match code.status() {
        401 | 403 => exit::NO_PERMISSION,
        408 | 429 | 503 | 504 => exit::TEMPORARY,
        500 => exit::SOFTWARE,
        501 | 502 => exit::UNAVAILABLE,
        _ => exit::DATA,
    }
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

/// A key becomes part of a header field, so it must be one word.
fn parse_key(text: &str) -> Result<String, String> {
    let fits = (1..=limits::CLIENT_KEY_BYTES_MAX).contains(&text.len());
    match fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err("expected a key such as `autoglmd key create` prints".to_owned()),
    }
}
