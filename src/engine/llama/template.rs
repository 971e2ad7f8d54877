//! Renders conversations as text, with the Jinja template that came with the model.
//!
//! Owns the template's environment: the functions, methods and tags that models' templates expect
//! from the Python library that they are written for. Knows no token. A template must never make it
//! hang or grow without bound: rendering has a budget of steps.
//!
//! A model without a template, or with an empty one, gets ChatML. An unusable template is found
//! when the model is loaded ([`Template::new`], [`Template::check`]), not by the first client.

mod source;

use std::fmt;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};

use crate::engine::Message;
use crate::limits::engine as limits;

/// The format of most small models.
const CHATML: &str = "{% for message in messages %}\
     {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
     {% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const NAME: &str = "chat";

/// The text that [`Template::check`] searches. Digits come through a template unchanged, whatever
/// it does to letters.
pub const PROBE: &str = "7208 3415 9961";

#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    start_text: String,
    end_text: String,
}

/// Why a conversation cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplateError {
    /// The template refuses the conversation by `raise_exception`, with this reason.
    Refused(String),
    /// The template has an error, or needs something that is not supported here: the conversation
    /// is not at fault.
    Broken(String),
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TemplateError::Refused(says) => write!(f, "it rejects the messages: {says}"),
            TemplateError::Broken(says) => f.write_str(says),
        }
    }
}

impl Template {
    /// `source` is the model's template; the texts are those of its special tokens. The error is
    /// for the operator: the template is too long, or does not parse.
    pub fn new(source: Option<&str>, start_text: &str, end_text: &str) -> Result<Template, String> {
        let source = source.filter(|source| !source.trim().is_empty());
        let source = source.unwrap_or(CHATML);
        if source.len() > limits::TEMPLATE_BYTES_MAX {
            let bytes = source.len();
            return Err(format!(
                "it has {bytes} bytes; at most {most} are accepted",
                most = limits::TEMPLATE_BYTES_MAX
            ));
        }
        let environment = environment(&source::adapted(source)).map_err(|error| says(&error))?;
        Ok(Template {
            environment,
            start_text: start_text.to_owned(),
            end_text: end_text.to_owned(),
        })
    }

    /// Renders a conversation whose last message contains [`PROBE`], and searches the result for
    /// it: a template that always fails, or leaves the messages out, is reported before the model
    /// serves a client.
    pub fn check(&self, messages: &[Message]) -> Result<(), String> {
        let text = self
            .render(messages, false)
            .map_err(|error| error.to_string())?;
        match text.contains(PROBE) {
            true => Ok(()),
            false => Err("it leaves the user's message out of the prompt".to_owned()),
        }
    }

    /// Renders the conversation, up to where the assistant's next turn begins. `thinks` lets a
    /// model that can reason aloud do so.
    pub fn render(&self, messages: &[Message], thinks: bool) -> Result<String, TemplateError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => &message.role, content => &message.content })
            .collect();
        let values = context! {
            messages,
            add_generation_prompt => true,
            enable_thinking => thinks,
            bos_token => &self.start_text,
            eos_token => &self.end_text,
        };
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(values))
            .map_err(|error| match refusal(&error) {
                Some(Refusal(says)) => TemplateError::Refused(says.clone()),
                None => TemplateError::Broken(says(&error)),
            })
    }
}

/// Returns the engine's message and the line, without the excerpt that spans lines.
fn says(error: &Error) -> String {
    let kind = error.kind().to_string();
    let text = match error.detail() {
        Some(detail) => format!("{kind}: {detail}"),
        None => kind,
    };
    match error.line() {
        Some(line) => format!("{text} (line {line})"),
        None => text,
    }
}

fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.set_fuel(Some(limits::TEMPLATE_INSTRUCTIONS_MAX));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.add_function(source::GROWING, source::growing);
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

/// The message of `raise_exception`, carried as the cause of the error.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Templates call this when a conversation does not fit their model.
fn raise_exception(message: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Refusal(message)))
}

/// Returns the refusal behind an error: macros and includes wrap it.
fn refusal(error: &Error) -> Option<&Refusal> {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |cause| cause.source()).find_map(|cause| cause.downcast_ref())
}

/// Returns today's date, in the format that the template asks for.
fn strftime_now(format: String) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// Writes JSON as Python does: minijinja's own filter escapes for HTML.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let text = match indent {
        Some(_) => serde_json::to_string_pretty(&value),
        None => serde_json::to_string(&value),
    };
    text.map(Value::from_safe_string)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message {
            role: role.to_owned(),
            content: content.to_owned(),
        }
    }

    fn template(source: &str) -> Template {
        Template::new(Some(source), "<s>", "</s>").unwrap()
    }

    fn rendered(source: &str, content: &str) -> String {
        let messages = [message("user", content)];
        template(source).render(&messages, false).unwrap()
    }

    #[test]
    fn model_without_a_template_gets_chatml() {
        for source in [None, Some(""), Some(" \n")] {
            let template = Template::new(source, "", "").unwrap();
            let text = template.render(&[message("user", "hi")], false).unwrap();
            assert_eq!(
                text,
                "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
            );
        }
    }

    #[test]
    fn python_methods_and_functions_are_there() {
        let source = "{{ bos_token }}{% for m in messages %}\n    \
                      {%- if m['content'].startswith('a') %}{{ m.content.strip() | upper }}\
                      {%- endif %}{% endfor %}{{ {'a': '<b>'} | tojson }}\
                      {{ strftime_now('%Y') | length }}";
        assert_eq!(rendered(source, "ab "), "<s>AB{\"a\":\"<b>\"}4");
    }

    /// Mutation: without the cause in `raise_exception` a client's mistake looks like the model's.
    #[test]
    fn refusal_and_broken_template_are_different_errors() {
        let messages = [message("tool", "x")];
        let refusing = "{% macro no() %}{{ raise_exception('the first message is the user\\'s') }}\
                        {% endmacro %}{{ no() }}";
        let error = template(refusing).render(&messages, false).unwrap_err();
        let says = "the first message is the user's".to_owned();
        assert_eq!(error, TemplateError::Refused(says));

        let broken = template("a\n{{ nofunc() }}").render(&messages, false);
        let Err(TemplateError::Broken(says)) = broken else {
            panic!("{broken:?}");
        };
        assert!(says.contains("nofunc") && says.contains("line 2"), "{says}");
    }

    #[test]
    fn template_that_never_ends_is_stopped() {
        let source =
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        let broken = template(source).render(&[], false);
        assert!(
            matches!(broken, Err(TemplateError::Broken(_))),
            "{broken:?}"
        );
    }

    /// Mutation: a check that only renders accepts the constant text and the number.
    #[test]
    fn useless_template_is_found_by_the_check() {
        let probe = [message("user", &format!("a {PROBE} b"))];
        let print = "{% for m in messages %}{{ m.content | trim | upper }}{% endfor %}";
        assert_eq!(template(print).check(&probe), Ok(()));
        for useless in [
            "Hello!",
            "5",
            "[a, b]",
            "{{ messages | length }}",
            "{{ nofunc() }}",
        ] {
            assert!(template(useless).check(&probe).is_err(), "{useless}");
        }
        for unreadable in ["{% broken", "{% for %}", "{% nosuchtag %}"] {
            assert!(
                Template::new(Some(unreadable), "", "").is_err(),
                "{unreadable}"
            );
        }
        let long = "x".repeat(limits::TEMPLATE_BYTES_MAX + 1);
        assert!(Template::new(Some(&long), "", "").is_err());
    }

    #[test]
    fn marks_of_training_are_left_out() {
        let source = "{% for m in messages %}\n{%- generation -%}\n  {{ m.content }}\n\
                      {%- endgeneration %}{% endfor %}{%generation%}!{%endgeneration%}";
        assert_eq!(rendered(source, "hi"), "hi!");
    }

    #[test]
    fn lists_and_maps_that_grow_do_so() {
        let list = "{% set l = [] %}{% for m in messages %}{% do l.append(m.content) %}\
                    {% do l.append('b') %}{% endfor %}\
                    {{ l | join(',') }} {{ l[0] }} {{ l | length }}";
        assert_eq!(rendered(list, "a"), "a,b a 2");
        let other = "{%- set l = ['x', \"]\"] -%}{% set _ = l.extend([1, 2]) %}{{ l.pop() }}\
                     {% set _ = l.insert(0, 'y') %}{% for x in l %}{{ x }}{% endfor %}";
        assert_eq!(rendered(other, "a"), "2yx]1");
        let inner = "{% set ns = namespace(found=[], n=1) %}{% for m in messages %}\
                     {% set _ = ns.found.append(m) %}{% endfor %}{{ ns.found[0].content }}";
        assert_eq!(rendered(inner, "a"), "a");
        let map = "{% set d = {} %}{% do d.update({'k': messages[0].content}) %}{{ d.k }}\
                   {{ d['k'] }}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}";
        assert_eq!(rendered(map, "a"), "aaka");
    }
}
