//! From the members of a JSON body to a request whose every value is within its bounds.
//!
//! Owns the fields of `POST /api/v1/generate`: their names and types, and the messages about wrong
//! ones. Nothing here guesses: a wrong type, an unknown name or a value out of range is refused
//! with the field's path, its bound and the way out. `null` is the same as absence, because clients
//! with optional fields send it.

use std::borrow::Cow;
use std::time::Duration;

use crate::config::Limits;
use crate::engine::language::Language;
use crate::engine::{CacheMode, ContextFile, Prompt, Sampling};
use crate::error::ApiError;
use crate::limits::engine as engine_limits;
use crate::limits::http as http_limits;
use crate::limits::service as limits;
use crate::service::dialect::{Asked, Narrator};
use crate::service::excerpt::excerpt;

use super::body::{Kind, ListError, Member, Value, members};
use super::bounds::{
    Interval, MIN_P, PENALTY, REPEAT_PENALTY, TEMPERATURE, TOP_P, check_text, checked_timeout,
    empty_stop, known_seed, language_of, no_prompt, out_of_interval, out_of_range, too_many, wrong,
};

/// A request that can be turned into a job.
#[derive(Debug, PartialEq)]
pub struct GenerateRequest {
    pub prompt: String,
    pub language: Option<&'static Language>,
    pub timeout: Duration,
    /// `None`: the loaded one, whichever it is.
    pub model: Option<String>,
    /// All of it but `repeat_penalty`, whose default depends on the model.
    pub sampling: Sampling,
    /// `None`: the model's default.
    pub repeat_penalty: Option<f32>,
    /// `None`: the model's default.
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub context: Vec<ContextFile>,
    /// `None`: `Accept` decides.
    pub stream: Option<bool>,
    pub cache: CacheMode,
    /// Of durable jobs alone.
    pub callback_url: Option<String>,
}

/// Every field that a body may have.
const FIELDS: &[&str] = &[
    "prompt",
    "language",
    "timeout",
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "repeat_penalty",
    "context",
    "stream",
    "cache",
    "callback_url",
];

const CONTEXT_FIELDS: &[&str] = &["path", "text"];

/// The similarity from which a name is taken for a typo of a known one (Jaro-Winkler).
const SIMILAR: f64 = 0.75;

impl GenerateRequest {
    /// The defaults of every field but the prompt.
    pub fn new(limits: &Limits) -> GenerateRequest {
        GenerateRequest {
            prompt: String::new(),
            language: None,
            timeout: limits.default_request_timeout,
            model: None,
            sampling: Sampling::default(),
            repeat_penalty: None,
            max_tokens: None,
            stop: Vec::new(),
            context: Vec::new(),
            stream: None,
            cache: CacheMode::default(),
            callback_url: None,
        }
    }

    pub fn language_name(&self) -> Option<&'static str> {
        self.language.map(|language| language.name)
    }

    /// The request in the terms that all APIs share; `stream` has become the kind of narrator.
    pub fn narrated_by(self, narrator: Narrator) -> Asked {
        // Without `..`: no field is forgotten on its way to the job.
        let GenerateRequest {
            prompt,
            language,
            timeout,
            model,
            sampling,
            repeat_penalty,
            max_tokens,
            stop,
            context,
            stream: _,
            cache,
            callback_url,
        } = self;
        Asked {
            digest: [0; 32],
            prompt: Prompt::Code {
                language: language.map(|language| language.name),
                prompt,
                context,
            },
            model,
            timeout,
            sampling,
            repeat_penalty,
            max_tokens,
            stop,
            cache,
            callback_url,
            narrator,
        }
    }

    pub fn parse(body: &[u8], limits: &Limits) -> Result<GenerateRequest, ApiError> {
        let members = members(body)?;
        let mut request = GenerateRequest::new(limits);
        let mut has_prompt = false;
        for member in &members {
            if member.value.kind() != Kind::Null {
                has_prompt |= member.name == "prompt";
                request.set(member, limits)?;
            } else if !FIELDS.contains(&&*member.name) {
                return Err(unknown(&member.name, FIELDS, ""));
            }
        }
        if !has_prompt {
            return Err(no_prompt());
        }
        Ok(request)
    }

    /// Takes one member whose value is not `null`; refuses a name that is not in [`FIELDS`].
    fn set(&mut self, member: &Member<'_>, limits: &Limits) -> Result<(), ApiError> {
        let value = member.value;
        let sampling = &mut self.sampling;
        match &*member.name {
            "prompt" => self.prompt = owned_text("prompt", value, 1, limits::PROMPT_BYTES_MAX)?,
            "language" => self.language = Some(known_language(value)?),
            "timeout" => self.timeout = timeout(value, limits)?,
            "model" => self.model = Some(owned_text("model", value, 1, limits::NAME_BYTES_MAX)?),
            "temperature" => sampling.temperature = number("temperature", value, &TEMPERATURE)?,
            "top_p" => sampling.top_p = number("top_p", value, &TOP_P)?,
            "top_k" => sampling.top_k = integer("top_k", value, 0, u32::MAX)?,
            "min_p" => sampling.min_p = number("min_p", value, &MIN_P)?,
            "max_tokens" => {
                let max_tokens =
                    integer("max_tokens", value, 1, engine_limits::GENERATED_TOKENS_MAX)?;
                self.max_tokens = Some(max_tokens);
            }
            "seed" => sampling.seed = seed(value)?,
            "stop" => self.stop = stop(value)?,
            "frequency_penalty" => {
                sampling.frequency_penalty = number("frequency_penalty", value, &PENALTY)?;
            }
            "presence_penalty" => {
                sampling.presence_penalty = number("presence_penalty", value, &PENALTY)?;
            }
            "repeat_penalty" => {
                let penalty = number("repeat_penalty", value, &REPEAT_PENALTY)?;
                self.repeat_penalty = Some(penalty);
            }
            "context" => self.context = context(value)?,
            "stream" => self.stream = Some(boolean("stream", value)?),
            "cache" => self.cache = cache_mode(value)?,
            "callback_url" => {
                let url = owned_text("callback_url", value, 1, http_limits::URL_BYTES_MAX)?;
                self.callback_url = Some(url);
            }
            other => return Err(unknown(other, FIELDS, "")),
        }
        Ok(())
    }
}

fn number(field: &str, value: Value<'_>, interval: &Interval) -> Result<f32, ApiError> {
    expect(field, value, Kind::Number)?;
    let number = value.read::<f64>();
    let number = number.filter(|number| interval.contains(*number));
    number
        .map(|number| number as f32)
        .ok_or_else(|| out_of_interval(field, interval, &excerpt(value.text())))
}

fn integer(field: &str, value: Value<'_>, low: u32, high: u32) -> Result<u32, ApiError> {
    expect(field, value, Kind::Number)?;
    let number = value.read_integer().and_then(|it| u32::try_from(it).ok());
    number
        .filter(|number| (low..=high).contains(number))
        .ok_or_else(|| out_of_range(field, low, high, &excerpt(value.text())))
}

/// Reads any integer of 64 bits, of which -1 asks for a random seed.
fn seed(value: Value<'_>) -> Result<Option<i64>, ApiError> {
    expect("seed", value, Kind::Number)?;
    let seed = value.read_integer().ok_or_else(|| {
        let given = excerpt(value.text());
        out_of_range("seed", i64::MIN, i64::MAX, &given)
    })?;
    Ok(known_seed(seed))
}

fn boolean(field: &str, value: Value<'_>) -> Result<bool, ApiError> {
    let problem = || {
        wrong(
            field,
            &format!("must be true or false, not {}", value.kind().as_str()),
        )
    };
    value.read().ok_or_else(problem)
}

/// Like `text`, but owned.
fn owned_text(field: &str, value: Value<'_>, low: usize, high: usize) -> Result<String, ApiError> {
    // Allocates per request: a prompt outlives the buffer that it came in.
    text(field, value, low, high).map(Cow::into_owned)
}

/// Reads a string of `low` to `high` bytes. If it must not be empty, white space alone is refused
/// too.
fn text<'a>(
    field: &str,
    value: Value<'a>,
    low: usize,
    high: usize,
) -> Result<Cow<'a, str>, ApiError> {
    expect(field, value, Kind::String)?;
    let text = value.read_text().ok_or_else(|| {
        // The scan has checked quotes and escapes; the only error left is half a surrogate pair.
        wrong(field, "has a \\u escape that is not a character")
    })?;
    check_text(field, &text, low, high)?;
    Ok(text)
}

fn timeout(value: Value<'_>, limits: &Limits) -> Result<Duration, ApiError> {
    expect("timeout", value, Kind::Number)?;
    let given = || excerpt(value.text());
    let milliseconds = value.read_integer().and_then(|it| u32::try_from(it).ok());
    checked_timeout("timeout", milliseconds, limits, given)
}

fn known_language(value: Value<'_>) -> Result<&'static Language, ApiError> {
    let name = text("language", value, 1, limits::NAME_BYTES_MAX)?;
    language_of(&name)
}

/// Reads one string or a list of them.
fn stop(value: Value<'_>) -> Result<Vec<String>, ApiError> {
    // White space can be a stop string, so `text` may return invisible text.
    let one = |field: &str, value: Value<'_>| {
        let text = owned_text(field, value, 0, limits::STOP_STRING_BYTES_MAX)?;
        let is_empty = text.is_empty();
        if is_empty {
            Err(empty_stop(field))
        } else {
            Ok(text)
        }
    };
    if value.kind() == Kind::String {
        return Ok(vec![one("stop", value)?]);
    }
    let most = limits::STOP_STRINGS_MAX;
    let items = list("stop", value, most, "must be a string or a list of strings")?;
    let item = |(index, value)| one(&format!("stop[{index}]"), value);
    items.into_iter().enumerate().map(item).collect()
}

fn context(value: Value<'_>) -> Result<Vec<ContextFile>, ApiError> {
    let most = limits::CONTEXT_FILES_MAX;
    let items = list(
        "context",
        value,
        most,
        "must be a list of objects with \"path\" and \"text\"",
    )?;
    let item = |(index, value)| context_file(&format!("context[{index}]"), value);
    items.into_iter().enumerate().map(item).collect()
}

fn context_file(field: &str, value: Value<'_>) -> Result<ContextFile, ApiError> {
    let shape = "must be an object with \"path\" and \"text\", each once";
    let members = value.members().ok_or_else(|| wrong(field, shape))?;
    let (mut path, mut content) = (None, None);
    for member in &members {
        let name = format!("{field}.{}", excerpt(&member.name));
        match &*member.name {
            "path" => {
                path = Some(owned_text(
                    &name,
                    member.value,
                    1,
                    limits::CONTEXT_PATH_BYTES_MAX,
                )?);
            }
            "text" => {
                content = Some(owned_text(
                    &name,
                    member.value,
                    0,
                    limits::PROMPT_BYTES_MAX,
                )?)
            }
            other => return Err(unknown(other, CONTEXT_FIELDS, &format!("{field}."))),
        }
    }
    match (path, content) {
        (Some(path), Some(text)) => Ok(ContextFile { path, text }),
        _ => Err(wrong(field, shape)),
    }
}

fn cache_mode(value: Value<'_>) -> Result<CacheMode, ApiError> {
    // Compared as a string, not as the text in the body: escapes can spell the same word.
    let word = match value.kind() {
        Kind::String => value.read_text(),
        _ => None,
    };
    match word.as_deref() {
        Some("use") => Ok(CacheMode::Use),
        Some("refresh") => Ok(CacheMode::Refresh),
        Some("bypass") => Ok(CacheMode::Bypass),
        _ => {
            let problem = format!(
                "must be \"use\", \"refresh\" or \"bypass\", not {}",
                excerpt(value.text())
            );
            Err(wrong("cache", &problem))
        }
    }
}

fn list<'a>(
    field: &str,
    value: Value<'a>,
    most: usize,
    shape: &str,
) -> Result<Vec<Value<'a>>, ApiError> {
    value.list(most).map_err(|error| match error {
        ListError::OtherKind => wrong(field, &format!("{shape}, not {}", value.kind().as_str())),
        ListError::TooLong => too_many(field, most),
    })
}

fn expect(field: &str, value: Value<'_>, kind: Kind) -> Result<(), ApiError> {
    if value.kind() == kind {
        return Ok(());
    }
    let (kind, found) = (kind.as_str(), value.kind().as_str());
    Err(wrong(field, &format!("must be {kind}, not {found}")))
}

/// The error of a name that is not in `known`; `prefix` is the path of the object around it.
fn unknown(name: &str, known: &[&str], prefix: &str) -> ApiError {
    let field = format!("{prefix}{}", excerpt(name));
    let problem = match nearest(name, known) {
        Some(nearest) => format!("is not a field; did you mean `{prefix}{nearest}`?"),
        None => format!("is not a field; expected {}", known.join(", ")),
    };
    wrong(&field, &problem)
}

/// Returns the known name that a client may have meant. The comparison takes the product of both
/// lengths, and a client chooses one of them: a name that is far too long is not compared at all.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    if name.len() > limits::SUGGESTION_NAME_BYTES_MAX {
        return None;
    }
    let scored = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate));
    scored
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .map(|(_, nearest)| nearest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::language::language;
    use crate::error::ErrorCode;

    fn limits() -> Limits {
        crate::config::Config::default().limits
    }

    fn parse(body: &str) -> Result<GenerateRequest, ApiError> {
        GenerateRequest::parse(body.as_bytes(), &limits())
    }

    /// Parses a body with a prompt and these members, which must be refused; returns field and
    /// message.
    fn refused(members: &str) -> (String, String) {
        let error = parse(&format!(r#"{{"prompt": "x", {members}}}"#)).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidParameter, "{members}");
        (error.param.unwrap(), error.message)
    }

    #[test]
    fn the_original_client_is_understood() {
        let body = r#"{"prompt": "实现快速排序算法", "language": "python", "timeout": 10000}"#;
        let request = parse(body).unwrap();
        assert_eq!(request.prompt, "实现快速排序算法");
        assert_eq!(request.language.unwrap().name, "python");
        assert_eq!(request.timeout, Duration::from_secs(10));
        assert_eq!((request.max_tokens, request.repeat_penalty), (None, None));
        assert_eq!(request.sampling, Sampling::default());
        // As Python's `json` writes it by default.
        let body = r#"{"prompt": "\u5b9e\u73b0", "language": "py"}"#;
        let request = parse(body).unwrap();
        assert_eq!(
            (request.prompt.as_str(), request.language.unwrap().name),
            ("实现", "python")
        );
    }

    #[test]
    fn every_field_is_read() {
        let request = parse(
            r#"{"prompt": "p", "language": "C++", "timeout": 1, "model": "m", "temperature": 0.5,
                "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 7,
                "seed": -9223372036854775808,
                "stop": ["a", "\n"], "frequency_penalty": -2, "presence_penalty": 2,
                "repeat_penalty": 1.1, "context": [{"path": "a.py", "text": ""}],
                "stream": false, "cache": "refresh"}"#,
        )
        .unwrap();
        let sampling = Sampling {
            temperature: 0.5,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.05,
            seed: Some(i64::MIN),
            frequency_penalty: -2.0,
            presence_penalty: 2.0,
            repeat_penalty: 1.0,
        };
        let file = ContextFile {
            path: "a.py".into(),
            text: String::new(),
        };
        let expected = GenerateRequest {
            prompt: "p".into(),
            language: language("cpp"),
            timeout: Duration::from_millis(1),
            model: Some("m".into()),
            sampling,
            repeat_penalty: Some(1.1),
            max_tokens: Some(7),
            stop: vec!["a".into(), "\n".into()],
            context: vec![file],
            stream: Some(false),
            cache: CacheMode::Refresh,
            callback_url: None,
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn numbers_and_words_may_be_spelt_in_every_way_that_json_has() {
        let body = r#"{"prompt": "x", "max_tokens": 10.0, "timeout": 1e3, "top_k": 4e1,
                       "seed": 9223372036854775807, "cache": "u\u0073e",
                       "l\u0061nguage": "pyth\u006fn"}"#;
        let request = parse(body).unwrap();
        assert_eq!((request.max_tokens, request.sampling.top_k), (Some(10), 40));
        assert_eq!(request.timeout, Duration::from_secs(1));
        assert_eq!(request.sampling.seed, Some(i64::MAX));
        assert_eq!(request.cache, CacheMode::Use);
        assert_eq!(request.language.unwrap().name, "python");
        for random in ["-1", "-1.0", "null"] {
            let body = format!(r#"{{"prompt": "x", "seed": {random}}}"#);
            assert_eq!(parse(&body).unwrap().sampling.seed, None);
        }
        for (members, given) in [
            (r#""max_tokens": 10.5"#, "10.5"),
            (r#""max_tokens": 1e9"#, "1e9"),
            (r#""timeout": 0.0"#, "0.0"),
            (r#""seed": 9223372036854775808"#, "9223372036854775808"),
            (r#""seed": 0.5"#, "0.5"),
        ] {
            let (_, words) = refused(members);
            assert!(words.contains(given), "{words}");
        }
    }

    #[test]
    fn null_is_absence_for_all_but_the_prompt() {
        let nulls: Vec<_> = FIELDS[1..]
            .iter()
            .map(|field| format!(r#""{field}": null"#))
            .collect();
        let with_nulls = parse(&format!(r#"{{"prompt": "x", {}}}"#, nulls.join(",")));
        assert_eq!(with_nulls, parse(r#"{"prompt": "x"}"#));
        for body in [
            r#"{"prompt": null}"#,
            "{}",
            r#"{"prompt": " \n"}"#,
            r#"{"prompt": ""}"#,
        ] {
            let error = parse(body).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParameter, "{body}");
            assert_eq!(error.param.as_deref(), Some("prompt"), "{body}");
        }
    }

    #[test]
    fn a_value_out_of_range_names_its_field_and_its_bound() {
        for (members, field, words) in [
            (
                r#""temperature": 2.1"#,
                "temperature",
                "from 0 to 2, not 2.1",
            ),
            (
                r#""temperature": "1""#,
                "temperature",
                "must be a number, not a string",
            ),
            (r#""temperature": 1e999"#, "temperature", "from 0 to 2"),
            (r#""top_p": 0"#, "top_p", "above 0 to 1"),
            (r#""min_p": -0.1"#, "min_p", "from 0 to 1"),
            (r#""repeat_penalty": 0"#, "repeat_penalty", "above 0 to 2"),
            (
                r#""frequency_penalty": 3"#,
                "frequency_penalty",
                "from -2 to 2",
            ),
            (r#""top_k": -1"#, "top_k", "integer from 0"),
            (r#""max_tokens": 0"#, "max_tokens", "from 1 to 1000000"),
            (r#""max_tokens": 1.5"#, "max_tokens", "integer"),
            (
                r#""seed": 9223372036854775808"#,
                "seed",
                "to 9223372036854775807",
            ),
            (r#""timeout": 0"#, "timeout", "from 1 to 600000"),
            (
                r#""timeout": 600001"#,
                "timeout",
                "limits.max_request_timeout",
            ),
            (
                r#""timeout": "10s""#,
                "timeout",
                "must be a number, not a string",
            ),
            (
                r#""language": "klingon""#,
                "language",
                "must be one of python, javascript",
            ),
            (r#""language": 5"#, "language", "must be a string"),
            (
                r#""stream": "yes""#,
                "stream",
                "true or false, not a string",
            ),
            (r#""cache": "no""#, "cache", "\"bypass\""),
            (r#""stop": 5"#, "stop", "a list of strings, not a number"),
            (r#""stop": """#, "stop", "must not be empty"),
            (r#""stop": ["a", ""]"#, "stop[1]", "must not be empty"),
            (
                r#""stop": ["a", null]"#,
                "stop[1]",
                "must be a string, not null",
            ),
            (r#""context": {}"#, "context", "not an object"),
            (r#""context": [5]"#, "context[0]", "must be an object"),
            (
                r#""context": [{"path": "a"}]"#,
                "context[0]",
                "\"path\" and \"text\"",
            ),
            (
                r#""context": [{"path": "a", "path": "b", "text": ""}]"#,
                "context[0]",
                "each once",
            ),
            (
                r#""context": [{"path": 1, "text": ""}]"#,
                "context[0].path",
                "a string, not a number",
            ),
            (
                r#""context": [{"pth": ""}]"#,
                "context[0].pth",
                "did you mean `context[0].path`?",
            ),
            (r#""model": "\ud800""#, "model", "is not a character"),
            (
                r#""max_token": 5"#,
                "max_token",
                "did you mean `max_tokens`?",
            ),
            (r#""zzz": 5"#, "zzz", "expected prompt, language"),
        ] {
            let (param, message) = refused(members);
            assert_eq!(param, field, "{members}");
            assert!(message.contains(words), "{members}: {message}");
        }
    }

    #[test]
    fn long_values_are_refused_and_not_repeated() {
        let long = "x".repeat(limits::PROMPT_BYTES_MAX + 1);
        let error = parse(&format!(r#"{{"prompt": "{long}"}}"#)).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("prompt"));
        assert!(error.message.len() < 256);
        let (param, message) = refused(&format!(r#""{long}": 1"#));
        assert!(param.len() + message.len() < 1_024);
        let strings = vec!["\"a\""; limits::STOP_STRINGS_MAX + 1].join(",");
        assert_eq!(refused(&format!(r#""stop": [{strings}]"#)).0, "stop");
        let file = r#"{"path": "a", "text": ""}"#;
        let files = vec![file; limits::CONTEXT_FILES_MAX + 1].join(",");
        assert_eq!(refused(&format!(r#""context": [{files}]"#)).0, "context");
    }

    #[test]
    fn deep_nesting_in_any_field_is_just_a_wrong_value() {
        let (open, close) = ("[".repeat(32_768), "]".repeat(32_768));
        for field in FIELDS {
            let body = format!(r#"{{"{field}": {open}{close}}}"#);
            let error = parse(&body).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidParameter, "{field}");
        }
    }
}
