//! The members of a generation's response, and `?fields=`, which selects among them.

use std::ops::Range;

use crate::engine::Usage;
use crate::error::{ApiError, ErrorCode};
use crate::service::dialect::Generation;
use crate::service::excerpt::excerpt;
use crate::service::response::json::{
    Object, WriteJson, push_number, push_optional_text, push_text, push_text_around, write_json,
};

/// A member of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    Id,
    Code,
    Language,
    Text,
    Model,
    FinishReason,
    Cached,
    Usage,
    LatencyMs,
}

impl Member {
    /// In the order in which they are written.
    const ALL: [Member; 9] = [
        Member::Id,
        Member::Code,
        Member::Language,
        Member::Text,
        Member::Model,
        Member::FinishReason,
        Member::Cached,
        Member::Usage,
        Member::LatencyMs,
    ];

    const fn name(self) -> &'static str {
        match self {
            Member::Id => "id",
            Member::Code => "code",
            Member::Language => "language",
            Member::Text => "text",
            Member::Model => "model",
            Member::FinishReason => "finish_reason",
            Member::Cached => "cached",
            Member::Usage => "usage",
            Member::LatencyMs => "latency_ms",
        }
    }
}

/// A set of members: bit `n` represents `Member::ALL[n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection(u16);

impl Selection {
    pub const ALL: Selection = Selection((1 << Member::ALL.len()) - 1);

    /// Reads the value of `fields`: names between commas, which may be percent-encoded.
    pub fn parse(value: Option<&str>) -> Result<Selection, ApiError> {
        let Some(value) = value else {
            return Ok(Selection::ALL);
        };
        let mut selection = Selection(0);
        for name in value.split([',']).flat_map(split_encoded_commas) {
            let Some(member) = Member::ALL.iter().find(|member| member.name() == name) else {
                let (name, all) = (excerpt(name), Member::ALL.map(Member::name).join(", "));
                let message = format!("unknown field `{name}`; expected {all}");
                let error = ApiError::new(ErrorCode::InvalidParameter, message);
                return Err(error.with_param("fields"));
            };
            selection.0 |= 1 << *member as u16;
        }
        Ok(selection)
    }

    pub fn contains(self, member: Member) -> bool {
        self.0 & 1 << member as u16 != 0
    }
}

/// Most HTTP libraries write a comma within a query as `%2C`; members' names need no other escape,
/// so nothing else is decoded.
fn split_encoded_commas(text: &str) -> impl Iterator<Item = &str> {
    text.split("%2C").flat_map(|part| part.split("%2c"))
}

/// A complete generation as the native API shows it.
pub struct GenerationObject<'a> {
    pub selection: Selection,
    pub language: Option<&'static str>,
    /// The program within the generation's text.
    pub code: &'a str,
    pub generation: &'a Generation<'a>,
}

impl GenerationObject<'_> {
    /// Writes the model's whole output, of which the code is usually a part: its escapes are taken
    /// from `code`, where `out` has them, and made once.
    fn write_text(&self, out: &mut Vec<u8>, code: &Range<usize>) {
        let text = self.generation.text;
        match place_in(text, self.code) {
            Some(place) if !code.is_empty() => {
                let after = &text[place + self.code.len()..];
                push_text_around(out, &text[..place], code.clone(), after);
            }
            _ => push_text(out, text),
        }
    }
}

/// Returns where the code begins in the output, if that is its beginning or its second line,
/// after a fence. Elsewhere it would have to be searched for, which takes more than writing it.
fn place_in(text: &str, code: &str) -> Option<usize> {
    let second = text.find('\n').map_or(0, |end| end + 1);
    [second, 0]
        .into_iter()
        .find(|&place| text[place..].starts_with(code))
}

impl WriteJson for GenerationObject<'_> {
    fn write_json(&self, out: &mut Vec<u8>) {
        let generation = self.generation;
        let mut object = Object::begin(out);
        let mut code = 0..0;
        for member in Member::ALL {
            if !self.selection.contains(member) {
                continue;
            }
            let out = object.member(member.name());
            match member {
                Member::Id => push_text(out, generation.id),
                Member::Code => {
                    let start = out.len() + 1;
                    push_text(out, self.code);
                    code = start..out.len() - 1;
                }
                Member::Language => push_optional_text(out, self.language),
                Member::Text => self.write_text(out, &code),
                Member::Model => push_optional_text(out, generation.model),
                Member::FinishReason => push_text(out, generation.finish_reason.as_str()),
                Member::Cached => write_json(out, &generation.is_cached),
                Member::Usage => write_usage(out, &generation.usage),
                Member::LatencyMs => push_number(out, generation.latency.as_millis() as u64),
            }
        }
        object.end();
    }
}

/// With the names that the OpenAI API uses.
fn write_usage(out: &mut Vec<u8>, usage: &Usage) {
    let total = usage.prompt_tokens.saturating_add(usage.completion_tokens);
    let mut object = Object::begin(out);
    push_number(object.member("prompt_tokens"), usage.prompt_tokens.into());
    push_number(
        object.member("completion_tokens"),
        usage.completion_tokens.into(),
    );
    push_number(object.member("total_tokens"), total.into());
    // Tokens that were already computed: a shared prefix, or a retry.
    let mut details = Object::begin(object.member("prompt_tokens_details"));
    push_number(details.member("cached_tokens"), usage.cached_tokens.into());
    details.end();
    object.end();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FinishReason;
    use std::time::Duration;

    fn written(selection: Selection) -> serde_json::Value {
        written_with(selection, "```\nx\n```", "x")
    }

    fn written_with(selection: Selection, text: &str, code: &str) -> serde_json::Value {
        let usage = Usage {
            prompt_tokens: 5,
            cached_tokens: 3,
            completion_tokens: 7,
        };
        let generation = Generation {
            id: "r",
            text,
            model: Some("m"),
            finish_reason: FinishReason::Stop,
            usage,
            is_cached: false,
            latency: Duration::from_micros(2_900),
        };
        let object = GenerationObject {
            selection,
            language: None,
            code,
            generation: &generation,
        };
        let mut out = Vec::new();
        object.write_json(&mut out);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn the_whole_response_has_the_members_of_the_contract() {
        let expected = serde_json::json!({
            "id": "r", "code": "x", "language": null, "text": "```\nx\n```", "model": "m",
            "finish_reason": "stop", "cached": false, "latency_ms": 2,
            "usage": {
                "prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12,
                "prompt_tokens_details": {"cached_tokens": 3},
            },
        });
        assert_eq!(written(Selection::ALL), expected);
    }

    /// Mutations that this test catches: the quote of `code` taken as a part of it; `after` without
    /// the length of the code.
    #[test]
    fn code_is_found_in_the_text_wherever_it_is() {
        let text = "a \"é\"\n\"b\"\n\\";
        let parts =
            (0..=text.len()).flat_map(|start| (start..=text.len()).map(move |end| start..end));
        let parts = parts.filter_map(|part| text.get(part));
        for code in parts.chain(["longer than the whole text", "\"b\"c"]) {
            let object = written_with(Selection::ALL, text, code);
            assert_eq!(
                (&object["text"], &object["code"]),
                (&text.into(), &code.into())
            );
            let alone = written_with(Selection::parse(Some("text")).unwrap(), text, code);
            assert_eq!(alone, serde_json::json!({"text": text}));
        }
        let places = ["\"b\"\n", "a \"", "b", "é"].map(|code| place_in(text, code));
        assert_eq!(places, [Some(7), Some(0), None, None]);
    }

    #[test]
    fn fields_choose_members() {
        for value in [
            "code,latency_ms",
            "latency_ms%2Ccode",
            "code%2clatency_ms,code",
        ] {
            let selection = Selection::parse(Some(value)).unwrap();
            let expected = serde_json::json!({"code": "x", "latency_ms": 2});
            assert_eq!(written(selection), expected, "{value}");
        }
        assert_eq!(Selection::parse(None), Ok(Selection::ALL));
        for value in ["", "kode", "code,,text", "code%20"] {
            let error = Selection::parse(Some(value)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("fields"), "{value}");
        }
    }
}
