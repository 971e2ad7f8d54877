//! The generation that a job is for, and how it ended, in the form in which both are stored.
//!
//! Both are JSON objects, and members may be added: a daemon of another version that shares the
//! store ignores those that it does not know. Everything that decides the output is fixed when the
//! job is accepted, also the seed, so that a second attempt writes what the first one would have.

use serde::{Deserialize, Serialize};

/// The generation that a client has asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobRequest {
    pub prompt: String,
    /// The name of a language.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub context: Vec<File>,
    /// `None`: the model that is loaded when the job runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: u32,
    pub min_p: f32,
    pub seed: i64,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    /// `None`: the model's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f32>,
    /// `None`: the model's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// The word for the use of cached results.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cache: String,
    /// How long one attempt may take.
    pub timeout_ms: u64,
    /// A client waits for it: it is not of the engine's background class.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_live: bool,
}

/// A file that the model is to see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct File {
    pub path: String,
    pub text: String,
}

/// How a job ended, if it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Completed(Completion),
    Failed(Failure),
}

/// A complete generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Completion {
    /// The id of the generation.
    pub id: String,
    /// The name of the language.
    pub language: Option<String>,
    /// All that the model wrote.
    pub text: String,
    pub model: Option<String>,
    /// The word of the OpenAI API.
    pub finish_reason: String,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    /// Whether another generation computed it; `id` and `latency_ms` are then of that one.
    pub cached: bool,
    /// From the beginning of the attempt to its end.
    pub latency_ms: u64,
}

/// An error of the catalogue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// The catalogue's word.
    pub code: String,
    pub message: String,
}

impl JobRequest {
    /// Reads a stored request. `None`: it is not one of ours.
    pub fn parse(stored: &str) -> Option<JobRequest> {
        serde_json::from_str(stored).ok()
    }

    pub fn to_json(&self) -> String {
        json(self)
    }

    /// Returns the bytes of its texts.
    pub fn bytes(&self) -> usize {
        let files = self.context.iter();
        let files: usize = files.map(|file| file.path.len() + file.text.len()).sum();
        let stops: usize = self.stop.iter().map(String::len).sum();
        self.prompt.len() + files + stops
    }
}

impl Ending {
    /// Reads a stored ending. `None`: it is not one of ours.
    pub fn parse(stored: &str) -> Option<Ending> {
        serde_json::from_str(stored).ok()
    }

    pub fn to_json(&self) -> String {
        json(self)
    }
}

/// Strings, numbers and lists of them can always be written.
fn json(value: &impl Serialize) -> String {
    let written = serde_json::to_string(value);
    debug_assert!(written.is_ok());
    written.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutation: `deny_unknown_fields`.
    #[test]
    fn what_is_stored_is_read_again_and_may_have_more_members() {
        let request = JobRequest {
            prompt: "a \u{0}\"prompt\"".to_owned(),
            language: Some("python".to_owned()),
            context: vec![File {
                path: "a.py".to_owned(),
                text: "x = 1".to_owned(),
            }],
            temperature: 0.7,
            seed: i64::MIN,
            stop: vec!["end".to_owned()],
            timeout_ms: 1,
            ..JobRequest::default()
        };
        assert_eq!(JobRequest::parse(&request.to_json()), Some(request));
        let of_later = r#"{"prompt":"x","seed":7,"thinking":{"budget":1}}"#;
        let read = JobRequest::parse(of_later).unwrap();
        assert_eq!((read.prompt.as_str(), read.seed), ("x", 7));
        assert_eq!(JobRequest::parse("7"), None);

        let failed = Ending::Failed(Failure {
            code: "engine_failed".to_owned(),
            message: "why".to_owned(),
        });
        assert_eq!(Ending::parse(&failed.to_json()), Some(failed));
        let completed = r#"{"completed":{"text":"x","finish_reason":"stop"}}"#;
        assert!(matches!(
            Ending::parse(completed),
            Some(Ending::Completed(_))
        ));
        assert_eq!(Ending::parse("{}"), None);
    }
}
