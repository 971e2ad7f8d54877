//! Checks the metadata of a GGUF file before llama.cpp sees it.
//!
//! Owns the reasons to refuse a file without loading it: llama.cpp would fail an assertion (which
//! ends the process), compute nonsense, or hang. Reads only the file's head, in bounded pieces.
//! Knows only the number of tensors; a child process finds other faults by trying the file
//! (`prove`).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::limits::engine as limits;

/// Refuses a file that cannot become a model that writes text. The reason is for people.
pub fn check(path: &Path) -> Result<(), String> {
    let file = File::open(path);
    let file = file.map_err(|error| format!("{error}; download it with `autoglmd model pull`"))?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut reader = Reader {
        file: BufReader::new(file),
        left: length,
    };
    let metadata = reader.metadata()?;
    metadata.check_architecture()?;
    metadata.check_numbers()?;
    metadata.check_vocabulary()?;
    metadata.check_template()
}

/// A value, as far as the checks need it.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Array(Array),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Array {
    kind: u32,
    count: u64,
    /// The first duplicate in an array of texts.
    twice: Option<String>,
    has_nan: bool,
}

impl Value {
    fn describe(&self) -> &'static str {
        match self {
            Value::Integer(_) => "a number",
            Value::Float(_) => "a fraction",
            Value::Bool(_) => "true or false",
            Value::Text(_) => "a string",
            Value::Array(_) => "a list",
        }
    }
}

/// The metadata that the checks use.
#[derive(Debug, Default)]
struct Metadata {
    entries: HashMap<String, Value>,
}

const KIND_TEXT: u32 = 8;
const KIND_ARRAY: u32 = 9;
/// Model kinds that llama.cpp can load but that keep no KV cache: most make embeddings.
const WRITES_NO_TEXT: &[&str] = &[
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "modern-bert",
    "eurobert",
    "gemma-embedding",
    "t5encoder",
    "clip",
    "wavtokenizer-dec",
];

impl Metadata {
    fn text(&self, key: &str) -> Result<Option<&str>, String> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{key} is {}; expected a string", other.describe())),
        }
    }

    fn array(&self, key: &str) -> Result<Option<&Array>, String> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(array)),
            Some(other) => Err(format!("{key} is {}; expected a list", other.describe())),
        }
    }

    fn check_architecture(&self) -> Result<(), String> {
        let key = "general.architecture";
        let architecture = self.text(key)?.ok_or_else(|| format!("{key} is missing"))?;
        if WRITES_NO_TEXT.contains(&architecture) {
            return Err(format!(
                "{architecture} models produce embeddings and cannot generate text"
            ));
        }
        let of = |name: &str| format!("{architecture}.{name}");
        for (name, least, most) in [
            ("block_count", 1, limits::GGUF_LAYERS_MAX),
            ("context_length", 1, i128::from(u32::MAX)),
            ("embedding_length", 1, i128::from(i32::MAX)),
        ] {
            let key = of(name);
            match self.entries.get(&key) {
                Some(Value::Integer(value)) if (least..=most).contains(value) => {}
                Some(Value::Integer(value)) => {
                    return Err(format!(
                        "{key} is {value}; expected a number from {least} to {most}"
                    ));
                }
                Some(other) => {
                    return Err(format!("{key} is {}; expected a number", other.describe()));
                }
                None => return Err(format!("{key} is missing")),
            }
        }
        if self.entries.get(&of("attention.causal")) == Some(&Value::Bool(false)) {
            return Err("a model with bidirectional attention cannot generate text".to_owned());
        }
        match self.entries.get(&of("pooling_type")) {
            None | Some(Value::Integer(0)) => Ok(()),
            Some(_) => {
                Err("a model with pooling produces embeddings and cannot generate text".to_owned())
            }
        }
    }

    fn check_numbers(&self) -> Result<(), String> {
        for (key, value) in &self.entries {
            match value {
                Value::Float(value) if !value.is_finite() => {
                    return Err(format!("{key} is {value}; expected a number"));
                }
                Value::Float(value) if key.ends_with("_epsilon") && !(0.0..1.0).contains(value) => {
                    return Err(format!("{key} is {value}; expected a number from 0 to 1"));
                }
                Value::Array(array) if array.has_nan => {
                    return Err(format!("{key} has values that are not numbers"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_vocabulary(&self) -> Result<(), String> {
        let key = "tokenizer.ggml.model";
        match self.text(key)? {
            None => return Err(format!("{key} is missing")),
            Some(model @ ("" | "none" | "no_vocab")) => {
                return Err(format!("{key} is \"{model}\": the model has no vocabulary"));
            }
            Some(_) => {}
        }
        self.text("tokenizer.ggml.pre")?;
        let key = "tokenizer.ggml.tokens";
        let tokens = self
            .array(key)?
            .ok_or_else(|| format!("{key} is missing"))?;
        if tokens.kind != KIND_TEXT || tokens.count == 0 {
            return Err(format!("{key} is not a list of strings, or it is empty"));
        }
        if let Some(twice) = &tokens.twice {
            return Err(format!("{key} lists {twice:?} more than once"));
        }
        for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
            let Some(array) = self.array(key)? else {
                continue;
            };
            if array.count != tokens.count {
                let (count, tokens) = (array.count, tokens.count);
                return Err(format!(
                    "{key} has {count} items; expected one for each of {tokens} tokens"
                ));
            }
        }
        Ok(())
    }

    fn check_template(&self) -> Result<(), String> {
        self.text("tokenizer.chat_template").map(|_| ())
    }
}

/// Reads the head of a file, never beyond its end.
struct Reader {
    file: BufReader<File>,
    left: u64,
}

impl Reader {
    fn metadata(&mut self) -> Result<Metadata, String> {
        if self.take::<4>()? != *b"GGUF" {
            return Err("not a GGUF file".to_owned());
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!(
                "GGUF version {version} is not supported; expected 2 or 3"
            ));
        }
        let (tensors, entries) = (self.u64()?, self.u64()?);
        if tensors == 0 || tensors > limits::GGUF_ENTRIES_MAX || entries > limits::GGUF_ENTRIES_MAX
        {
            return Err(format!(
                "the header claims {tensors} tensors and {entries} metadata entries; expected 1 to \
                 {most}",
                most = limits::GGUF_ENTRIES_MAX
            ));
        }
        let mut metadata = Metadata::default();
        for _ in 0..entries {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self
                .value(kind)
                .map_err(|reason| format!("{key:.100}: {reason}"))?;
            if metadata.entries.insert(key.clone(), value).is_some() {
                return Err(format!("{key:.100} appears twice"));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.take()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.take()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.take()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.take()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.take()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.take()?).into()),
            7 => Value::Bool(self.take::<1>()? != [0]),
            KIND_TEXT => Value::Text(self.text()?),
            KIND_ARRAY => Value::Array(self.array()?),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.take()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.take()?)),
            _ => return Err(format!("unknown value type {kind}")),
        })
    }

    fn array(&mut self) -> Result<Array, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        if count > limits::GGUF_ITEMS_MAX {
            return Err(format!(
                "{count} items; at most {most} are accepted",
                most = limits::GGUF_ITEMS_MAX
            ));
        }
        let mut array = Array {
            kind,
            count,
            ..Array::default()
        };
        let mut seen = HashSet::new();
        for _ in 0..count {
            match self.item(kind)? {
                // llama.cpp names empty ones itself.
                Value::Text(text) if text.is_empty() => {}
                Value::Text(text) => {
                    if let Some(twice) = seen.replace(text) {
                        array.twice.get_or_insert(twice);
                    }
                }
                Value::Float(value) => array.has_nan |= value.is_nan(),
                _ => {}
            }
        }
        Ok(array)
    }

    fn item(&mut self, kind: u32) -> Result<Value, String> {
        match kind {
            KIND_ARRAY => Err("a list within a list is not accepted".to_owned()),
            _ => self.value(kind),
        }
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        if length > self.left {
            return Err(cut_off());
        }
        if length > limits::GGUF_TEXT_BYTES_MAX {
            // Some tools put whole licences and tables in; nothing here needs those.
            self.left -= length;
            let skipped = self.file.seek_relative(length as i64);
            skipped.map_err(|error| error.to_string())?;
            return Ok(String::new());
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.take().map(u64::from_le_bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        let length = bytes.len() as u64;
        self.left = self.left.checked_sub(length).ok_or_else(cut_off)?;
        self.file
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => cut_off(),
                _ => error.to_string(),
            })
    }
}

fn cut_off() -> String {
    "the file ends within its metadata; check it with `autoglmd model verify`".to_owned()
}
