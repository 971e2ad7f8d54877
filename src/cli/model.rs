//! `autoglmd model`: manages the GGUF files that the daemon can serve.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::times;
use crate::config::{Overrides, Sources};
use crate::console::exit::{self, Code};
use crate::console::progress::ProgressDisplay;
use crate::console::progress::size;
use crate::console::{fail, note, put, table};
use crate::engine;
use crate::models::{
    CATALOGUE, DEFAULT_MODEL, Entry, Means, ModelError, ModelFile, Models, Pull, Pulled, Source,
    Verdict,
};

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Model {
    #[command(subcommand)]
    command: ModelCommand,
}

const EXAMPLES: &str = "\
Examples:
  autoglmd model catalogue
  autoglmd model pull
  autoglmd model pull hub:Qwen/Qwen2.5-Coder-3B-Instruct-GGUF/qwen2.5-coder-3b-instruct-q4_k_m.gguf
  autoglmd model pull https://example.org/some-model.gguf --name some-model --sha256 4f9a...
  autoglmd serve --model some-model
  autoglmd model import /media/usb/some-model.gguf
  autoglmd model optimize some-model

Files lie in $CACHE_DIRECTORY/models, else ~/.cache/autoglmd/models. HF_ENDPOINT names another hub,
HF_TOKEN opens private files, SSL_CERT_FILE names trusted certificates, HTTPS_PROXY and NO_PROXY are
honoured. Models of the catalogue come from the hub, else from Python packages through pip, which
reads its own settings (such as PIP_INDEX_URL).";

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// List the models that are known by name, with their purpose and sources.
    Catalogue {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Download a model; continues where an earlier attempt was cut off.
    Pull(PullFlags),
    /// Import a GGUF file from this machine, for instance without a network.
    Import(ImportFlags),
    /// Convert a model's weights to 8 bits, which speeds up many concurrent requests.
    #[command(after_help = OPTIMIZE_HELP)]
    Optimize(OptimizeFlags),
    /// List the stored models.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Compare a model with its checksum: exit 0, or 1 if it is damaged.
    Verify {
        /// The name as in `model list` [default: every model].
        name: Option<String>,
    },
    /// Delete a model.
    Remove {
        /// The name as in `model list`.
        name: String,
    },
}

const OPTIMIZE_HELP: &str = "\
Makes a new model beside the old one, named NAME-q8_0. llama.cpp computes weights of this type in
blocks on every processor, and those of some others (Q4_1, Q5_0, Q5_1) one by one. With many
concurrent requests the new model is up to one and a half times as fast; a single request may be a
little slower, because there is more memory to read. docs/benchmarks.md has figures; measure your
own model.";

#[derive(Args, Debug)]
struct OptimizeFlags {
    /// The name as in `model list`.
    name: String,
    /// The name of the new model [default: NAME-q8_0].
    #[arg(long = "name", value_name = "NAME")]
    new_name: Option<String>,
    /// Replace a stored model of the new name.
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
struct ImportFlags {
    /// The GGUF file; it is copied.
    file: PathBuf,
    /// The name of the model [default: the catalogue's for its digest, else the file's].
    #[arg(long)]
    name: Option<String>,
    /// Replace a stored model of this name.
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
struct PullFlags {
    /// A name, a URL, or hub:OWNER/REPO/FILE.gguf.
    #[arg(value_name = "NAME|URL|hub:...", default_value = DEFAULT_MODEL)]
    source: String,
    /// The name of the model [default: the file's].
    #[arg(long)]
    name: Option<String>,
    /// The expected SHA-256 of the file.
    #[arg(long, value_name = "HEX", value_parser = parse_sha256)]
    sha256: Option<[u8; 32]>,
    /// Download it even if a model of this name is stored.
    #[arg(long)]
    force: bool,
}

impl Model {
    pub fn run(self) -> Result<(), Code> {
        let sources = Sources::of_process(None, Overrides::default());
        let cache_dir = sources.cache_dir().map(|(path, _)| path);
        let cache_dir = cache_dir.map_err(|reason| fail(exit::CONFIG, reason))?;
        let models = Models::new(&cache_dir);
        match self.command {
            ModelCommand::Catalogue { json } => catalogue(json),
            ModelCommand::Pull(flags) => pull(&models, flags),
            ModelCommand::Import(flags) => import(&models, flags),
            ModelCommand::Optimize(flags) => optimize(&models, flags),
            ModelCommand::List { json } => list(&models, json),
            ModelCommand::Verify { name } => verify(&models, name),
            ModelCommand::Remove { name } => remove(&models, &name),
        }
    }
}

fn catalogue(as_json: bool) -> Result<(), Code> {
    if as_json {
        let entries: Vec<_> = CATALOGUE.iter().map(entry_to_json).collect();
        return put(&format!("{:#}\n", serde_json::Value::from(entries)));
    }
    let texts: Vec<_> = CATALOGUE.iter().map(entry_to_text).collect();
    put(&texts.join("\n"))
}

fn entry_to_text(entry: &Entry) -> String {
    let mark = match entry.name == DEFAULT_MODEL {
        true => " (the default)",
        false => "",
    };
    let Entry {
        name,
        parameters,
        weights,
        licence,
        purpose,
        sha256,
        bytes,
        ..
    } = entry;
    let mut text = format!(
        "{name}{mark}\n  {purpose}\n  {parameters} million parameters, {weights}, {}, {licence}\n  \
         SHA-256 {sha256}\n",
        size(*bytes)
    );
    for origin in entry.origins {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  from {origin}");
    }
    text
}

fn entry_to_json(entry: &Entry) -> serde_json::Value {
    let origins = entry.origins.iter().map(ToString::to_string);
    json!({
        "name": entry.name,
        "is_default": entry.name == DEFAULT_MODEL,
        "purpose": entry.purpose,
        "family": entry.family,
        "parameters_millions": entry.parameters,
        "weights": entry.weights,
        "bytes": entry.bytes,
        "licence": entry.licence,
        "sha256": entry.sha256,
        "sources": origins.collect::<Vec<_>>(),
    })
}

fn import(models: &Models, flags: ImportFlags) -> Result<(), Code> {
    let mut display = ProgressDisplay::new();
    let imported = models.import(&flags.file, flags.name, flags.force, &mut |step| {
        display.watch(step)
    });
    drop(display);
    show_path(imported, "already present")
}

fn pull(models: &Models, flags: PullFlags) -> Result<(), Code> {
    let source = Source::parse(&flags.source).map_err(|error| explain(&error))?;
    let pull = Pull {
        source,
        name: flags.name,
        sha256: flags.sha256,
        force: flags.force,
    };
    let means = Means::of_process();
    bring(
        models,
        &pull,
        &means,
        "already present; pass --force to download it again",
    )
}

fn optimize(models: &Models, flags: OptimizeFlags) -> Result<(), Code> {
    let pull = Pull {
        name: flags.new_name,
        force: flags.force,
        ..Pull::new(Source::Optimized(flags.name))
    };
    let means = Means {
        optimize: engine::optimize,
        ..Means::of_process()
    };
    bring(
        models,
        &pull,
        &means,
        "already present; pass --force to make it again",
    )
}

/// Prints where the model is.
fn bring(models: &Models, pull: &Pull, means: &Means, when_present: &str) -> Result<(), Code> {
    let mut display = ProgressDisplay::new();
    let pulled = models.pull(pull, means, &mut |step| display.watch(step));
    drop(display);
    show_path(pulled, when_present)
}

fn show_path(pulled: Result<Pulled, ModelError>, when_present: &str) -> Result<(), Code> {
    let path = match pulled.map_err(|error| explain(&error))? {
        Pulled::Fetched(path) => path,
        Pulled::Present(path) => {
            note(when_present);
            path
        }
    };
    put(&format!("{}\n", path.display()))
}

fn list(models: &Models, as_json: bool) -> Result<(), Code> {
    let files = models.list().map_err(|error| explain(&error))?;
    if as_json {
        let files: Vec<_> = files.iter().map(to_json).collect();
        return put(&format!("{:#}\n", serde_json::Value::from(files)));
    }
    if files.is_empty() {
        note("no model is stored yet; download the default one with `autoglmd model pull`");
        return Ok(());
    }
    let mut rows = vec![
        ["NAME", "SIZE", "PULLED", "FROM"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(files.iter().map(to_row));
    put(&table(&rows))
}

fn to_row(file: &ModelFile) -> Vec<String> {
    let (pulled_at, source) = match &file.record {
        Some(record) => (times::show(record.pulled_at), record.source.clone()),
        None => ("-".to_owned(), "-".to_owned()),
    };
    vec![file.name.clone(), size(file.bytes), pulled_at, source]
}

fn to_json(file: &ModelFile) -> serde_json::Value {
    json!({
        "name": file.name,
        "path": file.path,
        "bytes": file.bytes,
        "source": file.record.as_ref().map(|record| &record.source),
        "sha256": file.record.as_ref().map(|record| &record.sha256),
        "pulled_at": file.record.as_ref().map(|record| record.pulled_at),
    })
}

fn verify(models: &Models, name: Option<String>) -> Result<(), Code> {
    let names = match name {
        Some(name) => vec![name],
        None => {
            let files = models.list().map_err(|error| explain(&error))?;
            files.into_iter().map(|file| file.name).collect()
        }
    };
    let mut end = Ok(());
    for name in names {
        let mut display = ProgressDisplay::new();
        let verdict = models.verify(&name, &mut |step| display.watch(step));
        drop(display);
        let text = match verdict.map_err(|error| explain(&error))? {
            Verdict::Good { sha256 } => format!("{name}: good, SHA-256 {sha256}\n"),
            Verdict::Unknown { sha256 } => {
                format!("{name}: no checksum is on record; SHA-256 {sha256}\n")
            }
            Verdict::Damaged { expected, found } => {
                end = Err(exit::NO);
                format!(
                    "{name}: damaged: SHA-256 is {found}, expected {expected}; download it again \
                     with `autoglmd model pull --force`\n"
                )
            }
        };
        put(&text)?;
    }
    end
}

fn remove(models: &Models, name: &str) -> Result<(), Code> {
    let mut display = ProgressDisplay::new();
    let removed = models.remove(name, &mut |step| display.watch(step));
    drop(display);
    let bytes = removed.map_err(|error| explain(&error))?;
    note(format_args!("deleted {name}; freed {}", size(bytes)));
    Ok(())
}

fn parse_sha256(text: &str) -> Result<[u8; 32], String> {
    let expected = || "expected 64 hexadecimal digits".to_owned();
    let mut sum = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return Err(expected());
    }
    for (byte, digits) in sum.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or_else(expected);
        // Two digits are at most 255.
        *byte = (digit(digits[0])? * 16 + digit(digits[1])?) as u8;
    }
    Ok(sum)
}

/// Prints an error about a model, and returns the exit code.
pub fn explain(error: &ModelError) -> Code {
    let code = match error {
        ModelError::BadSource(_)
        | ModelError::BadName(_)
        | ModelError::UnknownName(_)
        | ModelError::NameTaken { .. }
        | ModelError::OtherFile { .. } => exit::USAGE,
        ModelError::Missing(_) => exit::NO_INPUT,
        ModelError::File(_, error) => exit::of_file(error),
        ModelError::NoPip
        | ModelError::PipFailed(_)
        | ModelError::Unreachable { .. }
        | ModelError::NoSource { .. }
        | ModelError::NoneOf(_)
        | ModelError::TooLittle { .. } => exit::UNAVAILABLE,
        ModelError::BadWheel(_)
        | ModelError::WrongSize { .. }
        | ModelError::WrongChecksum { .. }
        | ModelError::BadRedirect { .. }
        | ModelError::NotGguf(_)
        | ModelError::NotOptimized { .. } => exit::DATA,
        ModelError::Refused {
            status: 401 | 403, ..
        } => exit::NO_PERMISSION,
        ModelError::Refused { .. } => exit::NO_INPUT,
        ModelError::BadCertificates(_) => exit::CONFIG,
        ModelError::Cancelled => exit::TEMPORARY,
    };
    fail(code, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_64_digits() {
        let mut expected = [0; 32];
        (expected[0], expected[31]) = (0xab, 0x0f);
        let text = format!("Ab{}0f", "00".repeat(30));
        assert_eq!(parse_sha256(&text), Ok(expected));
        let long = "0".repeat(65);
        let umlauts = "ä".repeat(32);
        for wrong in ["", "ab", &long, &umlauts, &"g".repeat(64), &"+f".repeat(32)] {
            assert!(parse_sha256(wrong).is_err(), "{wrong}");
        }
    }
}
