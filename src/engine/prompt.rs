//! The conversation that requests a program.
//!
//! Owns the form of a [`Prompt::Code`](super::Prompt::Code): files first, then the task between the
//! words of the model's [`Family`]. Knows no template and no token: it creates messages, which an
//! engine renders with the model's own template.
//!
//! Invariant: text that all requests share comes first, text that one tenant repeats (files) next,
//! new text last. A computed prefix is reused as far as it is the same.

use super::epilogue::epilogues;
use super::family::{Family, Opening};
use super::language::Language;
use super::{ContextFile, Message};

/// A conversation that asks for a program, with the beginning of the reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// How many bytes at the start of the last message are the daemon's own, the same for all
    /// tenants.
    pub own: usize,
    /// The reply begins with this. The model goes on from here: it has no room left for prose.
    pub opening: String,
    /// The reply is complete once the model has written this, which closes the opening.
    pub closing: Option<&'static str>,
    /// The reply ends before any of these, which begin text that was not requested.
    pub epilogues: Vec<String>,
}

/// Closes a fenced block: the first line with a fence alone.
const CLOSING_FENCE: &str = "\n```";

/// Asks a model of this family for a program.
pub fn conversation(
    family: &Family,
    language: Option<&'static Language>,
    prompt: &str,
    context: &[ContextFile],
) -> Conversation {
    let asking = &family.asking;
    let mut content = String::new();
    for file in context {
        append_file(&mut content, file);
    }
    content.push_str(&asking.before(language));
    let own = if context.is_empty() { content.len() } else { 0 };
    content.push_str(prompt);
    content.push_str(&asking.after(language));
    let message = |role: &str, content| Message {
        role: role.to_owned(),
        content,
    };
    let system = asking.system(language);
    let mut messages: Vec<Message> = system
        .map(|text| message("system", text))
        .into_iter()
        .collect();
    messages.push(message("user", content));
    let (opening, closing) = match (asking.opening, language) {
        (Opening::Nothing, _) => (String::new(), None),
        (Opening::Fence, Some(language)) => {
            (format!("```{}\n", language.fences[0]), Some(CLOSING_FENCE))
        }
        // The model names its own choice of language after the fence.
        (Opening::Fence, None) => ("```".to_owned(), Some(CLOSING_FENCE)),
    };
    Conversation {
        messages,
        own,
        opening,
        closing,
        epilogues: if asking.cuts_examples {
            epilogues(language, prompt)
        } else {
            Vec::new()
        },
    }
}

/// Appends a file under its path, in a fence that is longer than any within the file.
fn append_file(content: &mut String, file: &ContextFile) {
    let longest = file
        .text
        .split(|c| c != '`')
        .map(str::len)
        .max()
        .unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    content.push_str("File ");
    content.push_str(&file.path);
    content.push_str(":\n");
    content.push_str(&fence);
    content.push('\n');
    content.push_str(file.text.trim_end_matches('\n'));
    content.push('\n');
    content.push_str(&fence);
    content.push_str("\n\n");
}

#[cfg(test)]
mod tests {
    use super::super::family::{Asking, NEUTRAL};
    use super::super::language::language;
    use super::*;

    /// Mutations that this test catches: `own` counted after the task, no closing for a fence, a
    /// closing without an opening, the system message after the user's.
    #[test]
    fn conversation_has_the_form_of_its_family() {
        const FAMILY: Family = Family {
            asking: Asking {
                system: Some("You write {}."),
                before: "In {}: ",
                before_in: &[],
                before_any: "Any: ",
                after: " ({} only)",
                after_in: &[("python", ", all of it")],
                opening: Opening::Fence,
                cuts_examples: true,
            },
            ..NEUTRAL
        };
        let asked = conversation(&FAMILY, language("c++"), "sum", &[]);
        let said: Vec<_> = asked
            .messages
            .iter()
            .map(|message| (message.role.as_str(), message.content.as_str()))
            .collect();
        let user = "In C++: sum (C++ only)";
        assert_eq!(said, [("system", "You write C++."), ("user", user)]);
        assert_eq!(&user[..asked.own], "In C++: ");
        assert_eq!(
            (asked.opening.as_str(), asked.closing),
            ("```cpp\n", Some("\n```"))
        );

        let asked = conversation(&FAMILY, language("python"), "sum", &[]);
        assert_eq!(asked.messages[1].content, "In Python: sum, all of it");

        let asked = conversation(&FAMILY, None, "sum", &[]);
        assert_eq!(asked.messages[1].content, "Any: sum");
        assert_eq!(
            (asked.opening.as_str(), asked.closing),
            ("```", Some("\n```"))
        );

        const OPEN: Family = Family {
            asking: Asking {
                opening: Opening::Nothing,
                cuts_examples: false,
                ..NEUTRAL.asking
            },
            ..NEUTRAL
        };
        let cut = conversation(&FAMILY, language("python"), "sum", &[]);
        assert!(cut.epilogues.contains(&"\n# Example usage".to_owned()));
        let whole = conversation(&OPEN, language("python"), "sum", &[]);
        assert!(whole.epilogues.is_empty());
        let asked = conversation(&OPEN, language("c"), "sum", &[]);
        assert_eq!(asked.messages.len(), 1);
        assert_eq!((asked.opening.as_str(), asked.closing), ("", None));
    }

    #[test]
    fn files_come_before_the_task_in_a_fence_of_their_own() {
        let file = ContextFile {
            path: "notes.md".to_owned(),
            text: "see:\n```\ncode\n```\n".to_owned(),
        };
        let asked = conversation(&NEUTRAL, language("go"), "sum a slice", &[file]);
        let content = &asked.messages.last().unwrap().content;
        assert!(content.starts_with("File notes.md:\n````\nsee:\n```\ncode\n```\n````\n\n"));
        assert!(content.ends_with("sum a slice"));
        // A tenant's files are never a prefix for others.
        assert_eq!(asked.own, 0);
        assert_eq!(asked.opening, "```go\n");
    }
}
