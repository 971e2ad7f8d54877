//! Pages generated from the schema: `docs/configuration.md` and the annotated example file.

use super::named::MODELS;
use super::schema::{Config, Key, SECTIONS};
use super::value::Value;

const HEAD: &str = "\
# Configuration

The configuration is one TOML file: the one that `--config FILE` names, else `$AUTOGLMD_CONFIG`,
else the first that exists of `$CONFIGURATION_DIRECTORY/autoglmd.toml` and
`/etc/autoglmd/autoglmd.toml`. Without a file the defaults below are in force.
[deploy/autoglmd.toml](deploy/autoglmd.toml) is an example with every key.

The file overrides a default, the environment overrides the file, and a flag overrides both. The
variable of a key is `AUTOGLMD_SECTION__KEY`, such as `AUTOGLMD_LIMITS__MAX_BODY=2MiB`. The
addresses in `AUTOGLMD_SERVER__LISTEN` are separated by commas. The keys of sections with names,
such as `[models.\"NAME\"]`, have no variables.

    autoglmd check           every mistake with file, line, column and the accepted values
    autoglmd check --show    the whole configuration in force, with each value's source

Unknown sections, keys and variables are mistakes. A *duration* is a whole number with `ms`, `s`,
`m` or `h`; a *size* is a number of bytes or a whole number with `B`, `KiB`, `MiB` or `GiB`. SIGHUP
reloads: the whole file is checked first, and with any mistake the old configuration stays in force.
Keys marked *restart* keep their running value until the next start.

Two folders are not keys. State (database, bootstrap key): `--state-dir`, else `$STATE_DIRECTORY`,
else `$XDG_STATE_HOME/autoglmd`, else `~/.local/state/autoglmd`. Models: `$CACHE_DIRECTORY`, else
`$XDG_CACHE_HOME/autoglmd`, else `~/.cache/autoglmd`.

This page is generated from `src/config/schema.rs`; a test compares the two.
";

/// Returns the text of `docs/configuration.md`.
pub fn reference() -> String {
    let defaults = Config::default();
    let mut text = HEAD.to_owned();
    for section in SECTIONS {
        text.push_str(&format!(
            "\n## `[{}]`\n\n{}\n\n",
            section.name,
            section.help()
        ));
        text.push_str("| key | type | default | range | meaning | in force after |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- |\n");
        for key in section.keys {
            text.push_str(&row(key, &defaults));
        }
    }
    let (name, help) = (MODELS.name, MODELS.help());
    text.push_str(&format!("\n## `[{name}.\"NAME\"]`\n\n{help}\n\n"));
    text.push_str("| key | type | range | meaning | in force after |\n");
    text.push_str("| --- | --- | --- | --- | --- |\n");
    for key in MODELS.keys {
        let (name, kind, range, help) = (key.name, key.kind.name(), key.kind.range(), key.help());
        text.push_str(&format!(
            "| `{name}` | {kind} | {range} | {help} | restart |\n"
        ));
    }
    text
}

/// Returns the text of `docs/deploy/autoglmd.toml`: every key with its default and its meaning.
pub fn example() -> String {
    let defaults = Config::default();
    let mut text = "\
# autoglmd.toml: every key with its default. Keep the lines that you change and remove the rest.
# `autoglmd check --config FILE` reports mistakes; SIGHUP (systemctl reload autoglmd) reloads.
"
    .to_owned();
    for section in SECTIONS {
        text.push_str(&format!(
            "\n{}[{}]\n",
            comment(section.help()),
            section.name
        ));
        for (index, key) in section.keys.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            let help = match (key.read)(&defaults) {
                Value::Switch(_) => key.help().to_owned(),
                _ => format!("{} Range: {}.", key.help(), key.kind.range()),
            };
            let setting = format!("{} = {}", key.name, key.print(&defaults));
            text.push_str(&format!("{separator}{}{setting}\n", comment(&help)));
        }
    }
    let model = defaults.engine.model.first().map_or("", String::as_str);
    text.push_str(&format!(
        "\n{}# [{}]\n",
        comment(MODELS.help()),
        MODELS.path(model)
    ));
    for key in MODELS.keys {
        text.push_str(&format!("{}# {} = ...\n", comment(key.help()), key.name));
    }
    text
}

fn row(key: &Key, defaults: &Config) -> String {
    let (name, kind, default) = (key.name, key.kind.name(), key.print(defaults));
    let (range, help, effect) = (key.kind.range(), key.help(), key.effect.as_str());
    // A bar would end the cell.
    let help = help.replace('|', "\\|");
    format!("| `{name}` | {kind} | `{default}` | {range} | {help} | {effect} |\n")
}

/// Wraps words into comment lines of at most 100 columns.
fn comment(words: &str) -> String {
    const COLUMNS: usize = 100;
    let mut lines = String::new();
    let mut line = "#".to_owned();
    for word in words.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push_str(&line);
            lines.push('\n');
            line = "#".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    lines.push_str(&line);
    lines.push('\n');
    lines
}
