//! Conversations as text, by the Jinja template that came with the model.
//!
//! Owns the template's environment: the functions and methods that models' templates expect from
//! the Python library that they are written for. Knows no token. Must never hang or grow without
//! bound over what a template does: rendering has a budget of steps.
//!
//! A model without a template, or with one that does not parse, gets ChatML.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};

use crate::engine::Message;
use crate::limits::{TEMPLATE_FUEL, TEMPLATE_MAX_BYTES};

/// The format of most small models.
const CHATML: &str = "{% for message in messages %}\
     {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
     {% endfor %}\
     {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const NAME: &str = "chat";

#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    start_text: String,
    end_text: String,
}

impl Template {
    /// `source` is the model's template; the texts are those of its special tokens.
    pub fn new(source: Option<&str>, start_text: &str, end_text: &str) -> Template {
        let source = source
            .filter(|source| source.len() <= TEMPLATE_MAX_BYTES)
            .unwrap_or(CHATML);
        let environment = environment(source).unwrap_or_else(|error| {
            log::warn!("the model's chat template does not parse, ChatML is used: {error}");
            // The constant above parses: a test renders it.
            environment(CHATML).expect("ChatML parses")
        });
        Template {
            environment,
            start_text: start_text.to_owned(),
            end_text: end_text.to_owned(),
        }
    }

    /// The conversation, up to where the assistant's next turn begins. `thinks` lets a model that
    /// can reason aloud do so. The error is what the template says about the conversation.
    pub fn render(&self, messages: &[Message], thinks: bool) -> Result<String, String> {
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
            .map_err(|error| error.detail().unwrap_or("the template failed").to_owned())
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
    environment.set_fuel(Some(TEMPLATE_FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

/// What a template calls when a conversation does not fit its model.
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Today's date, in the form that the template asks for.
fn strftime_now(format: String) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::ZonedDateTime::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// JSON as Python writes it: minijinja's own filter escapes for HTML.
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

    #[test]
    fn model_without_a_template_gets_chatml() {
        for source in [
            None,
            Some("{% broken"),
            Some(&*"x".repeat(TEMPLATE_MAX_BYTES + 1)),
        ] {
            let template = Template::new(source, "", "");
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
        let template = Template::new(Some(source), "<s>", "</s>");
        let text = template.render(&[message("user", "ab ")], false).unwrap();
        assert_eq!(text, "<s>AB{\"a\":\"<b>\"}4");
    }

    #[test]
    fn exception_of_a_template_is_told() {
        let source = "{% if messages[0].role != 'user' %}\
                      {{ raise_exception('the first message is the user\\'s') }}{% endif %}";
        let template = Template::new(Some(source), "", "");
        let error = template.render(&[message("tool", "x")], false).unwrap_err();
        assert_eq!(error, "the first message is the user's");
    }

    #[test]
    fn template_that_never_ends_is_stopped() {
        let source =
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        let template = Template::new(Some(source), "", "");
        assert!(template.render(&[], false).is_err());
    }
}
