//! `autoglmd check --show`: the configuration in force as a file, with each value's source.

use std::path::Path;

use super::load::Loaded;
use super::named::MODELS;
use super::problem::printable_path;
use super::schema::SECTIONS;
use super::sources::Origin;

/// Returns valid TOML, which makes the same configuration when saved as a file.
pub fn show(loaded: &Loaded) -> String {
    let file = loaded.file.as_deref();
    let name = file.map_or_else(|| "none".to_owned(), printable_path);
    let mut text = format!("# The configuration in force. File: {name}\n");
    for (what, path, origin) in [
        ("State", &loaded.config.state_dir, &loaded.state_dir_origin),
        ("Models", &loaded.config.cache_dir, &loaded.cache_dir_origin),
    ] {
        let line = format!(
            "# {what}: {} ({})\n",
            printable_path(path),
            source(origin, file)
        );
        text.push_str(&line);
    }
    for section in SECTIONS {
        text.push_str(&format!("\n[{}]\n", section.name));
        for key in section.keys {
            let setting = format!("{} = {}", key.name, key.print(&loaded.config));
            let source = source(loaded.origin(key.path), file);
            text.push_str(&format!("{setting:<48} # {source}\n"));
        }
    }
    for (name, model) in &loaded.config.models {
        let path = MODELS.path(name);
        text.push_str(&format!("\n[{path}]\n"));
        for key in MODELS.keys {
            let Some(value) = (key.read)(model) else {
                continue;
            };
            let setting = format!("{} = {}", key.name, key.kind.print(&value));
            let source = source(loaded.origin(&format!("{path}.{}", key.name)), file);
            text.push_str(&format!("{setting:<48} # {source}\n"));
        }
    }
    text
}

fn source(origin: &Origin, file: Option<&Path>) -> String {
    match origin {
        Origin::Default => "default".to_owned(),
        Origin::File { line, .. } => {
            format!("{}:{line}", file.map_or_else(String::new, printable_path))
        }
        Origin::Environment(name) => format!("${name}"),
        Origin::Flag(flag) => (*flag).to_owned(),
    }
}
