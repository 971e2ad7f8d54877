//! The languages that a program may be requested in, and the conversation that requests one.
//!
//! Owns the table of languages and the form of a [`Prompt::Code`](super::Prompt::Code): files
//! first, then the task between the words of the model's [`Family`]. Knows no template and no
//! token: it creates messages, which an engine renders with the model's own template.
//!
//! Invariants:
//!  1. Names, aliases and fence words are lower case; each name or alias is in the table once.
//!  2. Text that all requests share comes first, text that one tenant repeats (files) next, new
//!     text last: a computed prefix is reused as far as it is the same.

use super::epilogue::epilogues;
use super::family::{Family, Opening};
use super::{ContextFile, Message};

/// A language that a program may be requested in.
#[derive(Debug, PartialEq, Eq)]
pub struct Language {
    /// The canonical name, which responses use.
    pub name: &'static str,
    /// The usual spelling, which prompts use.
    pub title: &'static str,
    /// Further names that a request may use.
    pub aliases: &'static [&'static str],
    /// The extension of a source file, without the dot.
    pub extension: &'static str,
    /// The words after the back quotes of a fenced block; the first is the usual one.
    pub fences: &'static [&'static str],
}

/// Finds a language by its name or an alias, in upper or lower case.
pub fn language(name: &str) -> Option<&'static Language> {
    LANGUAGES.iter().find(|language| language.is_called(name))
}

impl Language {
    /// Returns whether `name` is this language's name or one of its aliases.
    fn is_called(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
            || self
                .aliases
                .iter()
                .any(|alias| alias.eq_ignore_ascii_case(name))
    }

    /// Returns whether a fenced block that is marked `word` is in this language.
    pub fn has_fence(&self, word: &str) -> bool {
        self.is_called(word)
            || self
                .fences
                .iter()
                .any(|fence| fence.eq_ignore_ascii_case(word))
    }
}

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
        epilogues: match asking.cuts_examples {
            true => epilogues(language, prompt),
            false => Vec::new(),
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

macro_rules! languages {
    ($(
        $name:literal $title:literal [$($alias:literal)*] $extension:literal [$($fence:literal)+];
    )+) => {
        /// Every language that a request may name.
        pub const LANGUAGES: &[Language] = &[$(Language {
            name: $name,
            title: $title,
            aliases: &[$($alias),*],
            extension: $extension,
            fences: &[$($fence),+],
        }),+];
    };
}

languages! {
    // name        title           aliases                         ext     fence words
    "python"       "Python"        ["py" "python3"]                "py"    ["python" "pycon"];
    "javascript" "JavaScript" ["js" "node" "nodejs" "ecmascript"] "js" ["javascript" "mjs" "jsx"];
    "typescript"   "TypeScript"    ["ts"]                          "ts"    ["typescript" "tsx"];
    "java"         "Java"          []                              "java"  ["java"];
    "c"            "C"             ["c99" "c11"]                   "c"     ["c" "h"];
    "cpp"          "C++"           ["c++" "cxx" "cc"]              "cpp"   ["cpp" "hpp"];
    "csharp"       "C#"            ["c#" "cs" "dotnet"]            "cs"    ["csharp"];
    "go"           "Go"            ["golang"]                      "go"    ["go"];
    "rust"         "Rust"          ["rs"]                          "rs"    ["rust"];
    "ruby"         "Ruby"          ["rb"]                          "rb"    ["ruby"];
    "php"          "PHP"           []                              "php"   ["php"];
    "swift"        "Swift"         []                              "swift" ["swift"];
    "kotlin"       "Kotlin"        ["kt"]                          "kt"    ["kotlin" "kts"];
    "scala"        "Scala"         []                              "scala" ["scala"];
    "dart"         "Dart"          []                              "dart"  ["dart"];
    "lua"          "Lua"           []                              "lua"   ["lua"];
    "perl"         "Perl"          ["pl"]                          "pl"    ["perl"];
    "r"            "R"             ["rlang"]                       "r"     ["r"];
    "julia"        "Julia"         ["jl"]                          "jl"    ["julia"];
    "haskell"      "Haskell"       ["hs"]                          "hs"    ["haskell"];
    "ocaml"        "OCaml"         ["ml"]                          "ml"    ["ocaml"];
    "fsharp"       "F#"            ["f#" "fs"]                     "fs"    ["fsharp"];
    "elixir"       "Elixir"        ["ex"]                          "ex"    ["elixir" "exs"];
    "erlang"       "Erlang"        ["erl"]                         "erl"   ["erlang"];
    "clojure"      "Clojure"       ["clj"]                         "clj"   ["clojure"];
    "lisp"         "Common Lisp"   ["common-lisp" "commonlisp" "cl"] "lisp" ["lisp"];
    "scheme"       "Scheme"        ["racket" "scm"]                "scm"   ["scheme"];
    "bash"         "Bash"          ["sh" "shell" "zsh"]            "sh"    ["bash" "console"];
    "powershell"   "PowerShell"    ["ps1" "pwsh"]                  "ps1"   ["powershell"];
    "sql"          "SQL"           ["sqlite" "postgresql" "mysql"] "sql"   ["sql"];
    "html"         "HTML"          []                              "html"  ["html" "htm"];
    "css"          "CSS"           []                              "css"   ["css" "scss"];
    "json"         "JSON"          []                              "json"  ["json" "jsonc"];
    "yaml"         "YAML"          ["yml"]                         "yaml"  ["yaml"];
    "xml"          "XML"           []                              "xml"   ["xml"];
    "dockerfile"   "Dockerfile"    ["docker"]                      "dockerfile" ["dockerfile"];
    "makefile"     "Makefile"      ["make"]                        "mk"    ["makefile"];
    "cmake"        "CMake"         []                              "cmake" ["cmake"];
    "zig"          "Zig"           []                              "zig"   ["zig"];
    "nim"          "Nim"           []                              "nim"   ["nim"];
    "d"            "D"             ["dlang"]                       "d"     ["d"];
    "fortran"      "Fortran"       ["f90"]                         "f90"   ["fortran"];
    "pascal"       "Pascal"        ["delphi"]                      "pas"   ["pascal"];
    "ada"          "Ada"           []                              "adb"   ["ada"];
    "assembly"     "x86-64 assembly" ["asm" "nasm"]                "asm"   ["asm" "s"];
    "matlab"       "MATLAB"        ["octave"]                      "m"     ["matlab"];
    "groovy"       "Groovy"        []                              "groovy" ["groovy"];
    "objective-c"  "Objective-C"   ["objc" "objectivec"]           "m" ["objectivec" "objective-c"];
    "visual-basic" "Visual Basic"  ["vb" "vbnet" "visualbasic"]    "vb"    ["vbnet"];
    "prolog"       "Prolog"        []                              "pro"   ["prolog"];
    "solidity"     "Solidity"      ["sol"]                         "sol"   ["solidity"];
    "verilog"      "Verilog"       ["systemverilog"]               "v"     ["verilog"];
    "vhdl"         "VHDL"          []                              "vhd"   ["vhdl"];
    "latex"        "LaTeX"         ["tex"]                         "tex"   ["latex"];
    "graphql"      "GraphQL"       ["gql"]                         "graphql" ["graphql"];
    "protobuf"     "Protocol Buffers" ["proto"]                    "proto" ["protobuf" "proto3"];
    "terraform"    "Terraform"     ["hcl" "tf"]                    "tf"    ["hcl"];
    "nix"          "Nix"           []                              "nix"   ["nix"];
    "awk"          "AWK"           ["gawk"]                        "awk"   ["awk"];
    "tcl"          "Tcl"           []                              "tcl"   ["tcl"];
}

#[cfg(test)]
mod tests {
    use super::super::family::{Asking, NEUTRAL};
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_aliases_are_lower_case_and_unique() {
        let mut seen = HashSet::new();
        for language in LANGUAGES {
            for name in [&language.name].into_iter().chain(language.aliases) {
                assert!(seen.insert(*name), "{name} stands twice");
                assert_eq!(name.to_ascii_lowercase(), **name);
            }
            assert!(
                !language.fences.is_empty(),
                "{} has no fence word",
                language.name
            );
        }
    }

    #[test]
    fn language_is_found_by_name_and_alias_in_any_case() {
        assert_eq!(language("Python").unwrap().name, "python");
        assert_eq!(language("C++").unwrap().name, "cpp");
        assert_eq!(language("golang").unwrap().name, "go");
        assert_eq!(language("klingon"), None);
        assert_eq!(language(""), None);
    }

    #[test]
    fn language_knows_its_own_fences_only() {
        let typescript = language("typescript").unwrap();
        assert!(typescript.has_fence("TSX") && typescript.has_fence("ts"));
        assert!(!typescript.has_fence("javascript"));
    }

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
