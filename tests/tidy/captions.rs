//! Each module has a caption of one line in `src/lib.rs`.

use std::fmt::Write as _;

use crate::source::{root, sources};

/// Mutation: a module without the line above it fails here.
#[test]
fn each_module_has_a_caption() {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let lines: Vec<&str> = text.lines().collect();
    let mut wrong = String::new();
    for (number, line) in lines.iter().enumerate() {
        let is_module = line.starts_with("pub mod ") || line.starts_with("mod ");
        let above = number.checked_sub(1).map_or("", |number| lines[number]);
        if is_module && !above.starts_with("/// ") && !above.starts_with("// ") {
            writeln!(wrong, "{line}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "modules without a caption:\n{wrong}");
    for file in sources() {
        let is_named = text.contains(&format!("mod {};", file.module));
        let is_root = ["lib", "main"].contains(&file.module.as_str());
        assert!(
            is_named || is_root,
            "src/lib.rs does not name {}",
            file.module
        );
    }
}
