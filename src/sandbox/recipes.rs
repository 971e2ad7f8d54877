//! How to build and run a program in each language: its file, its command, and its requirements.

use super::tools::Tools;

/// A language that the sandbox can run.
#[derive(Debug)]
pub struct Recipe {
    /// The name that `engine::prompt` uses.
    pub language: &'static str,
    /// The file that the program is written to.
    pub file: &'static str,
    /// The command, in the folder of that file.
    pub command: &'static [&'static str],
    /// A program that must be installed.
    pub needs: &'static str,
    /// The package that contains it, on Debian and Ubuntu.
    pub package: &'static str,
}

/// `exec` makes the program's end that of the command, signals included.
const fn built(line: &'static str) -> [&'static str; 3] {
    ["sh", "-c", line]
}

const C: &[&str] = &built("gcc -std=gnu17 -O1 -o program main.c -lm && exec ./program");
const CPP: &[&str] = &built("g++ -std=c++20 -O1 -o program main.cpp && exec ./program");
const GO: &[&str] = &built("go build -o program main.go && exec ./program");
const RUST: &[&str] =
    &built("rustc --edition 2021 -A warnings -o program main.rs && exec ./program");
const SQL: &[&str] = &["sqlite3", "-batch", "-bail", ":memory:", ".read main.sql"];

macro_rules! recipes {
    ($($language:literal $file:literal $command:expr, $needs:literal $package:literal;)+) => {
        /// Every language that the sandbox can run.
        pub const RECIPES: &[Recipe] = &[$(Recipe {
            language: $language,
            file: $file,
            command: $command,
            needs: $needs,
            package: $package,
        }),+];
    };
}

recipes! {
    // language   file       command                        needs     package
    "python"     "main.py"  &["python3", "main.py"],       "python3" "python3";
    "javascript" "main.js"  &["node", "main.js"],          "node"    "nodejs";
    "bash"       "main.sh"  &["bash", "main.sh"],          "bash"    "bash";
    "c"          "main.c"   C,                             "gcc"     "gcc";
    "cpp"        "main.cpp" CPP,                           "g++"     "g++";
    "go"         "main.go"  GO,                            "go"      "golang-go";
    "rust"       "main.rs"  RUST,                          "rustc"   "rustc";
    "sql"        "main.sql" SQL,                           "sqlite3" "sqlite3";
    "ruby"       "main.rb"  &["ruby", "main.rb"],          "ruby"    "ruby";
    "perl"       "main.pl"  &["perl", "main.pl"],          "perl"    "perl";
    "php"        "main.php" &["php", "main.php"],          "php"     "php-cli";
    "lua"        "main.lua" &["lua", "main.lua"],          "lua"     "lua5.4";
}

/// Returns the recipe of a language.
pub fn recipe(language: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.language == language)
}

impl Recipe {
    /// Returns whether the sandbox finds the required program.
    pub fn is_installed(&self) -> bool {
        Tools::of_machine().locate(self.needs).is_some()
    }
}
