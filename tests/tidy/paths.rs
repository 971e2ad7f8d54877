//! Collects the paths that a file's code names: `use` trees unfolded, and paths in expressions and
//! types.

/// A path as it is written, such as `["super", "call", "Call"]`.
pub type Written = Vec<String>;

/// A file's imports, and every other path of two names and more.
#[derive(Default)]
pub struct Paths {
    /// The path, and the file's name for it; `*` for a glob.
    pub imports: Vec<(Written, String)>,
    pub others: Vec<Written>,
}

pub fn paths(code: &str) -> Paths {
    let mut paths = Paths::default();
    let mut rest = String::with_capacity(code.len());
    let mut from = 0;
    while let Some(at) = next_use(code, from) {
        rest.push_str(&code[from..at]);
        let length = code[at..].find(';').unwrap_or(code.len() - at);
        let tree = &code[at + "use ".len()..at + length];
        unfold(tree, &mut Vec::new(), &mut paths.imports);
        from = at + length;
    }
    rest.push_str(&code[from..]);
    paths.others = others(&rest);
    paths
}

/// Returns the start of the next `use` declaration.
fn next_use(code: &str, from: usize) -> Option<usize> {
    code[from..].match_indices("use ").find_map(|(at, _)| {
        let before = code[..from + at].trim_end_matches([' ', '\t']);
        let begins = before.is_empty() || before.ends_with(['\n', ';', '{', '}', ']', ')']);
        let is_public = before.ends_with("pub");
        (begins || is_public).then_some(from + at)
    })
}

/// Turns `a::{b, c::d as e}` into `a::b` and `a::c::d`.
fn unfold(tree: &str, prefix: &mut Written, found: &mut Vec<(Written, String)>) {
    let tree = tree.trim();
    if tree.is_empty() {
        return;
    }
    let depth = prefix.len();
    let mut tree = tree.trim_start_matches("::");
    loop {
        if let Some(group) = tree.strip_prefix('{') {
            for branch in branches(group) {
                unfold(branch, prefix, found);
            }
            break;
        }
        match tree.split_once("::") {
            Some((name, rest)) if !name.contains(char::is_whitespace) => {
                prefix.push(name.to_owned());
                tree = rest.trim_start();
            }
            _ => {
                let (name, known) = tree.split_once(" as ").unwrap_or((tree, tree));
                let (name, known) = (name.trim(), known.trim());
                if name == "self" {
                    let known = if tree == "self" {
                        prefix.last().cloned()
                    } else {
                        None
                    };
                    found.push((prefix.clone(), known.unwrap_or_else(|| "_".to_owned())));
                } else {
                    prefix.push(name.to_owned());
                    found.push((prefix.clone(), known.to_owned()));
                }
                break;
            }
        }
    }
    prefix.truncate(depth);
}

/// Returns the parts between the commas of a group, which ends at its closing brace.
fn branches(group: &str) -> Vec<&str> {
    let mut depth = 1;
    let mut start = 0;
    let mut found = Vec::new();
    for (at, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 || (depth == 1 && byte == b',') {
            found.push(&group[start..at]);
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// Returns the paths of two names and more outside `use`.
fn others(code: &str) -> Vec<Written> {
    let bytes = code.as_bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let starts = is_word(bytes[at]) && (at == 0 || !is_word(bytes[at - 1]));
        if !starts {
            at += 1;
            continue;
        }
        let mut path = Vec::new();
        loop {
            let length = bytes[at..]
                .iter()
                .take_while(|byte| is_word(**byte))
                .count();
            path.push(code[at..at + length].to_owned());
            at += length;
            let goes_on = code[at..].starts_with("::")
                && bytes.get(at + 2).is_some_and(|byte| is_word(*byte));
            if !goes_on {
                break;
            }
            at += 2;
        }
        if path.len() > 1 {
            found.push(path);
        }
    }
    found
}

#[test]
fn use_trees_are_unfolded() {
    let code = "pub use a::{self, b::{C, D as E}, f::*};\nuse super::G;\nfn h() { i::j(K) }";
    let Paths { imports, others } = paths(code);
    let imports: Vec<String> = imports
        .iter()
        .map(|(path, known)| format!("{} {known}", path.join("::")))
        .collect();
    assert_eq!(
        imports,
        ["a a", "a::b::C C", "a::b::D E", "a::f::* *", "super::G G"]
    );
    assert_eq!(others, [["i", "j"]]);
}
