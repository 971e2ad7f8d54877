//! The languages that a program may be requested in.
//!
//! Owns their table. Invariant: names, aliases and fence words are lower case; each name or alias
//! is in the table once.

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
    use std::collections::HashSet;

    use super::*;

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
}
