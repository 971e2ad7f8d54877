//! Model families: how to ask a model for a program and how to sample its output.
//!
//! Owns the table of families. Each row holds the specifics of one kind of model: the wording
//! around a task, the opening of the output, the sampling defaults, the system message of the
//! family's own template, the tokens for filling a gap, and the KV cache's type. Knows no file and
//! no token ids: an engine asks for the row of its model and applies it.
//!
//! A model's row is found in this order:
//!
//!  1. by the catalogue, which names a family for each of its models;
//!  2. by the metadata of the GGUF file: architecture and name, or architecture and a phrase of the
//!     chat template ([`Family::recognise`]);
//!  3. [`NEUTRAL`], which states the language and changes nothing else.
//!
//! The values of a row are chosen by measuring; `docs/prompts.md` has the figures and the command.
//!
//! Invariants:
//!  1. Names are unique, and a name once published stays: records and the catalogue refer to it.
//!  2. No file is recognised as two families.

use super::language::Language;
use super::{Defaults, Sampling};
use crate::limits::engine as limits;

/// Models that are prompted in the same way.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    pub name: &'static str,
    pub asking: Asking,
    /// For a request that does not set `repeat_penalty`; 1 switches the penalty off.
    pub repeat_penalty: f32,
    /// For a request that does not set `max_tokens`.
    pub max_tokens: u32,
    /// How keys and values are kept if the configuration leaves it open; `docs/benchmarks.md` has
    /// the figures.
    pub kv_type: KvType,
    /// The system message that the family's template inserts if a conversation has none. Used for a
    /// file that came without a template.
    pub default_system: Option<&'static str>,
    /// `None`: the family cannot fill a gap.
    pub fill: Option<FillTokens>,
    pub signs: Signs,
}

/// The format of keys and values in the KV cache, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 16 bits per value.
    F16,
    /// 8 bits per value, and a scale for each 32 of them: half the memory.
    Q8_0,
}

/// The wording that asks for a program. In every text `{}` stands for the language's title.
#[derive(Clone, Debug, PartialEq)]
pub struct Asking {
    /// `None` leaves the template its own system message.
    pub system: Option<&'static str>,
    /// Comes before the task.
    pub before: &'static str,
    /// Replaces `before` for some languages, by their names.
    pub before_in: &'static [(&'static str, &'static str)],
    /// Comes before the task if the request names no language.
    pub before_any: &'static str,
    /// Comes after the task.
    pub after: &'static str,
    /// Replaces `after` for some languages, by their names.
    pub after_in: &'static [(&'static str, &'static str)],
    pub opening: Opening,
    /// Whether an output ends where the model begins an example that was not requested.
    pub cuts_examples: bool,
}

/// The text with which the daemon begins the output, before the model goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A fence with the language's word: the model has no room left for prose, and the end of the
    /// fence is the end of the output.
    Fence,
    /// Nothing: the model chooses the form of its output.
    Nothing,
}

/// The texts of the special tokens around the parts of a program with a gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FillTokens {
    pub prefix: &'static str,
    pub suffix: &'static str,
    pub middle: &'static str,
    /// Before the name of a repository, and before the path of each of its files.
    pub repository: &'static str,
    pub file: &'static str,
}

/// How to recognise a file of the family: by its architecture, and one of the other fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signs {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// The beginning of `general.basename` or `general.name`, in lower case with `-` for spaces.
    pub name: &'static str,
    /// A phrase of the chat template.
    pub template: &'static str,
}

/// The metadata of a GGUF file that show its family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    pub architecture: String,
    pub name: String,
    pub basename: String,
    pub template: String,
}

/// For unknown models: the language is stated, the template keeps its own system message and
/// nothing is penalized. The opening fence stays, because it makes the output a program, and every
/// known chat model continues after it.
pub const NEUTRAL: Family = Family {
    name: "neutral",
    asking: Asking {
        system: None,
        before: "Write a {} program.\n",
        before_in: &[],
        before_any: "",
        after: "",
        after_in: &[],
        opening: Opening::Fence,
        cuts_examples: true,
    },
    repeat_penalty: 1.0,
    max_tokens: limits::GENERATED_TOKENS_DEFAULT,
    kv_type: KvType::F16,
    default_system: None,
    fill: None,
    signs: Signs {
        architecture: "",
        name: "",
        template: "",
    },
};

/// Qwen2.5-Coder, and other models of Qwen2.5, which share its vocabulary and its template. In
/// Python more outputs pass if the request ends with a reminder; without it they forget imports.
pub const QWEN_CODER: Family = Family {
    name: "qwen2.5-coder",
    asking: Asking {
        before: "Write a {} program.\n",
        after_in: &[(
            "python",
            "\n\nThe code must be complete and correct, with all imports.",
        )],
        ..NEUTRAL.asking
    },
    repeat_penalty: 1.0,
    max_tokens: limits::GENERATED_TOKENS_DEFAULT,
    kv_type: KvType::F16,
    default_system: Some("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    fill: Some(FillTokens {
        prefix: "<|fim_prefix|>",
        suffix: "<|fim_suffix|>",
        middle: "<|fim_middle|>",
        repository: "<|repo_name|>",
        file: "<|file_sep|>",
    }),
    signs: Signs {
        architecture: "qwen2",
        name: "qwen2.5",
        template: "You are Qwen, created by Alibaba Cloud.",
    },
};

/// SmolLM2. Without a penalty the smallest of them reaches its bound in every fifth output; at 1.1
/// more outputs no longer parse. In Python more outputs parse if a function is asked for.
pub const SMOLLM: Family = Family {
    name: "smollm2",
    asking: Asking {
        before_in: &[("python", "Write a {} function.\n")],
        ..NEUTRAL.asking
    },
    repeat_penalty: 1.05,
    max_tokens: limits::GENERATED_TOKENS_DEFAULT,
    kv_type: KvType::Q8_0,
    default_system: Some("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    fill: None,
    signs: Signs {
        architecture: "llama",
        name: "smollm2",
        template: "named SmolLM",
    },
};

/// Every family.
pub static FAMILIES: &[&Family] = &[&NEUTRAL, &QWEN_CODER, &SMOLLM];

impl Family {
    /// Finds a family by its name.
    pub fn find(name: &str) -> Option<&'static Family> {
        let mut families = FAMILIES.iter().copied();
        families.find(|family| family.name == name)
    }

    /// Returns the family of a file that the catalogue does not know; [`NEUTRAL`] if no sign fits.
    pub fn recognise(traits: &Traits) -> &'static Family {
        let mut families = FAMILIES.iter().copied();
        families
            .find(|family| family.signs.fit(traits))
            .unwrap_or(&NEUTRAL)
    }

    /// Returns the values for parameters that a request leaves open.
    pub fn defaults(&self) -> Defaults {
        Defaults {
            repeat_penalty: self.repeat_penalty,
            max_tokens: self.max_tokens,
        }
    }

    /// Returns how an output is sampled if the request sets nothing.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            repeat_penalty: self.repeat_penalty,
            ..Sampling::default()
        }
    }
}

impl Asking {
    /// Returns the daemon's own words before the task.
    pub fn before(&self, language: Option<&Language>) -> String {
        language.map_or_else(
            || self.before_any.to_owned(),
            |language| wording(self.before, self.before_in, language),
        )
    }

    /// Returns the daemon's own words after the task.
    pub fn after(&self, language: Option<&Language>) -> String {
        language.map_or_else(String::new, |language| {
            wording(self.after, self.after_in, language)
        })
    }

    pub fn system(&self, language: Option<&Language>) -> Option<String> {
        let title = language.map_or("", |language| language.title);
        self.system.map(|text| text.replace("{}", title))
    }
}

/// Returns the language's own text if there is one, else the text for all, with the title in it.
fn wording(
    text: &str,
    exceptions: &'static [(&'static str, &'static str)],
    language: &Language,
) -> String {
    let exception = exceptions.iter().find(|(name, _)| *name == language.name);
    exception
        .map_or(text, |(_, text)| text)
        .replace("{}", language.title)
}

impl Signs {
    fn fit(&self, traits: &Traits) -> bool {
        let is_named = |name: &str| {
            let name = name.to_ascii_lowercase().replace(' ', "-");
            name.starts_with(self.name)
        };
        !self.architecture.is_empty()
            && self.architecture == traits.architecture
            && (is_named(&traits.basename)
                || is_named(&traits.name)
                || traits.template.contains(self.template))
    }
}

impl Default for Defaults {
    fn default() -> Defaults {
        NEUTRAL.defaults()
    }
}

#[cfg(test)]
mod tests {
    use super::super::language::language;
    use super::*;

    fn traits(architecture: &str, name: &str, basename: &str, template: &str) -> Traits {
        Traits {
            architecture: architecture.to_owned(),
            name: name.to_owned(),
            basename: basename.to_owned(),
            template: template.to_owned(),
        }
    }

    #[test]
    fn names_are_unique_and_found() {
        for (index, family) in FAMILIES.iter().enumerate() {
            assert_eq!(Family::find(family.name), Some(*family));
            let earlier = &FAMILIES[..index];
            assert!(earlier.iter().all(|other| other.name != family.name));
            let asking = &family.asking;
            for (name, _) in asking.before_in.iter().chain(asking.after_in) {
                assert_eq!(language(name).map(|known| known.name), Some(*name));
            }
        }
        assert_eq!(Family::find("gpt"), None);
    }

    /// Mutations that this test catches: `||` for the first `&&` of `Signs::fit` (every llama
    /// becomes SmolLM2), no lower case in `is_named` (the catalogue's files are not found), and
    /// `NEUTRAL` recognised by its empty signs.
    #[test]
    fn files_are_recognised_by_their_metadata() {
        for (file, family) in [
            // The files of the catalogue.
            (
                traits(
                    "qwen2",
                    "Qwen2.5 Coder 0.5B Instruct AWQ",
                    "Qwen2.5-Coder",
                    "",
                ),
                &QWEN_CODER,
            ),
            (
                traits("llama", "Smollm2 135M 8k Lc100K Mix1 Ep2", "smollm2", ""),
                &SMOLLM,
            ),
            // A converter that writes no base name, and a file that was renamed.
            (traits("qwen2", "qwen2.5 coder 3b", "", ""), &QWEN_CODER),
            (
                traits(
                    "qwen2",
                    "models",
                    "",
                    "{{'You are Qwen, created by Alibaba Cloud. You'}}",
                ),
                &QWEN_CODER,
            ),
            // Another model of the same architecture, and one that only has the name.
            (
                traits("llama", "Llama 3.2 1B", "Llama-3.2", "named Llama"),
                &NEUTRAL,
            ),
            (traits("gemma", "smollm2", "smollm2", ""), &NEUTRAL),
            (
                traits("qwen2", "DeepSeek R1 Distill Qwen 7B", "", ""),
                &NEUTRAL,
            ),
            (Traits::default(), &NEUTRAL),
        ] {
            assert_eq!(Family::recognise(&file), family, "{file:?}");
            let fitting = FAMILIES.iter().filter(|family| family.signs.fit(&file));
            assert!(fitting.count() <= 1, "{file:?}");
        }
    }

    #[test]
    fn wording_names_the_language_and_has_exceptions() {
        let before = |family: &Family, name: &str| family.asking.before(language(name));
        assert_eq!(before(&SMOLLM, "python"), "Write a Python function.\n");
        assert_eq!(before(&SMOLLM, "c++"), "Write a C++ program.\n");
        assert_eq!(before(&NEUTRAL, "go"), "Write a Go program.\n");
        for family in FAMILIES {
            let words = before(family, "python") + &family.asking.after(language("python"));
            assert!(words.contains("Python"), "{}: {words}", family.name);
            assert!(!family.asking.before(None).contains("{}"));
        }
    }

    #[test]
    fn defaults_stay_within_what_a_request_may_ask_for() {
        for family in FAMILIES {
            let defaults = family.defaults();
            assert!(defaults.repeat_penalty > 0.0 && defaults.repeat_penalty <= 2.0);
            assert!((1..=limits::GENERATED_TOKENS_MAX).contains(&defaults.max_tokens));
            assert_eq!(family.sampling().repeat_penalty, defaults.repeat_penalty);
        }
        assert_eq!(Defaults::default(), NEUTRAL.defaults());
    }
}
