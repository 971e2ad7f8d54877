//! Finds where a program ends and an example of its use begins.
//!
//! Models like to add a few calls below the function that was asked for. These calls are the most
//! common reason why a correct function does not run: they read input that does not exist, fail, or
//! repeat themselves up to the bound of the output. Owns the comments that introduce such calls.
//! Such a comment at the start of a line ends the output, so a stream is cut at the same place as a
//! whole output, and the tokens after it are never computed.
//!
//! A request that asks for a whole program, for examples or for tests keeps everything: the text
//! below such a comment may be what it asked for.

use super::language::Language;

/// The words after the comment's mark.
const PHRASES: &[&str] = &[
    "Example usage",
    "Example Usage",
    "Example use",
    "Usage example",
    "Usage:",
    "Test the ",
    "Testing the ",
    "Test cases",
    "Check function",
    "Check the ",
    "Run the check",
    "Run the test",
    "示例用法",
    "使用示例",
    "示例：",
    "测试",
    "检查函数",
    "调用示例",
];

/// Languages in which statements may follow a function, with the mark of their comments. In the
/// others an example is part of `main`, without which the program does not build.
const MARKS: &[(&str, &str)] = &[
    ("python", "# "),
    ("ruby", "# "),
    ("bash", "# "),
    ("perl", "# "),
    ("r", "# "),
    ("julia", "# "),
    ("javascript", "// "),
    ("typescript", "// "),
    ("php", "// "),
    ("lua", "-- "),
];

/// A request with one of these words wants more than a function. In lower case.
const WANTS_MORE: &[&str] = &[
    "program",
    "script",
    "stdin",
    "standard input",
    "command line",
    "command-line",
    "an example",
    "examples",
    "usage",
    "demo",
    "test",
    "程序",
    "脚本",
    "标准输入",
    "命令行",
    "示例",
    "例子",
    "演示",
    "测试",
];

/// Returns the texts before which the output for this request ends.
pub fn epilogues(language: Option<&Language>, request: &str) -> Vec<String> {
    let mark = language.and_then(|language| {
        let mut marks = MARKS.iter();
        marks.find(|(name, _)| *name == language.name)
    });
    let Some((_, mark)) = mark else {
        return Vec::new();
    };
    let request = request.to_lowercase();
    if WANTS_MORE.iter().any(|word| request.contains(word)) {
        return Vec::new();
    }
    let phrases = PHRASES.iter();
    phrases.map(|phrase| format!("\n{mark}{phrase}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::language::language;
    use super::*;

    fn ends(name: &str, request: &str) -> bool {
        let epilogues = epilogues(language(name), request);
        let answer = "def f():\n    # Example usage\n    pass\n\n# Example usage:\nf()";
        let answer = match name {
            "javascript" => answer.replace("# ", "// "),
            _ => answer.to_owned(),
        };
        let starts = epilogues
            .iter()
            .filter_map(|text| answer.find(text.as_str()));
        // The comment within the function is part of it.
        starts
            .min()
            .is_some_and(|start| answer[..start].ends_with("pass\n"))
    }

    /// Mutations that this test catches: a phrase without the line break before it, which cuts
    /// functions; the request not read; a mark for a language that needs its `main`.
    #[test]
    fn examples_end_an_answer_unless_they_were_asked_for() {
        assert!(ends("python", "quicksort"));
        assert!(ends(
            "javascript",
            "Write a function f. For example, f(1) returns 2."
        ));
        assert!(!ends("python", "Write a Program that reads a number"));
        assert!(!ends("python", "f, with an example"));
        assert!(!ends("python", "编写一个程序，从标准输入读取"));
        assert!(!ends("go", "quicksort"));
        assert!(epilogues(None, "quicksort").is_empty());
    }

    #[test]
    fn languages_are_known_and_words_are_lower_case() {
        for (name, _) in MARKS {
            assert_eq!(language(name).map(|known| known.name), Some(*name));
        }
        assert!(WANTS_MORE.iter().all(|word| word.to_lowercase() == **word));
    }
}
