//! Model files for tests: the small model's file with some metadata changed, a tiny model with the
//! same vocabulary, and a model that makes embeddings.
//!
//! Owns the parts of a GGUF file: entries of metadata, and tensors. Values stay in their binary
//! form, so that a test can also write values that no tool would.

use std::fs;
use std::path::Path;

use super::model;

/// A value of the metadata: its type's number, and its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub kind: u32,
    pub bytes: Vec<u8>,
}

pub const KIND_U32: u32 = 4;
pub const KIND_I32: u32 = 5;
pub const KIND_F32: u32 = 6;
pub const KIND_BOOL: u32 = 7;
pub const KIND_TEXT: u32 = 8;
pub const KIND_ARRAY: u32 = 9;

impl Value {
    pub fn u32(value: u32) -> Value {
        Value {
            kind: KIND_U32,
            bytes: value.to_le_bytes().to_vec(),
        }
    }

    pub fn f32(value: f32) -> Value {
        Value {
            kind: KIND_F32,
            bytes: value.to_le_bytes().to_vec(),
        }
    }

    pub fn bool(value: bool) -> Value {
        Value {
            kind: KIND_BOOL,
            bytes: vec![u8::from(value)],
        }
    }

    pub fn text(value: &str) -> Value {
        Value {
            kind: KIND_TEXT,
            bytes: text_bytes(value.as_bytes()),
        }
    }

    pub fn texts(values: &[Vec<u8>]) -> Value {
        let items = values.iter().map(|value| text_bytes(value));
        Value::array(KIND_TEXT, values.len() as u64, items.flatten().collect())
    }

    pub fn i32s(values: &[i32]) -> Value {
        let items = values.iter().flat_map(|value| value.to_le_bytes());
        Value::array(KIND_I32, values.len() as u64, items.collect())
    }

    pub fn f32s(values: &[f32]) -> Value {
        let items = values.iter().flat_map(|value| value.to_le_bytes());
        Value::array(KIND_F32, values.len() as u64, items.collect())
    }

    /// An array that claims to have `count` items, whatever its bytes are.
    pub fn array(kind: u32, count: u64, items: Vec<u8>) -> Value {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(items);
        Value {
            kind: KIND_ARRAY,
            bytes,
        }
    }

    /// Returns the items of an array of texts.
    pub fn as_texts(&self) -> Vec<Vec<u8>> {
        assert_eq!(self.kind, KIND_ARRAY);
        let mut reader = Reader(&self.bytes);
        assert_eq!(reader.u32(), KIND_TEXT);
        let count = reader.u64();
        (0..count).map(|_| reader.text().to_vec()).collect()
    }
}

fn text_bytes(value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value);
    bytes
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dimensions: Vec<u64>,
    /// ggml's number of the type.
    pub kind: u32,
    pub data: Vec<u8>,
}

const TENSOR_F32: u32 = 0;

impl Tensor {
    /// Small numbers that differ: a model of them computes nonsense, but it computes.
    fn noise(name: &str, dimensions: &[u64]) -> Tensor {
        let count: u64 = dimensions.iter().product();
        let value = |index: u64| ((index.wrapping_mul(2_654_435_761) >> 7) % 255) as f32 / 512.0;
        let data = (0..count).flat_map(|index| (value(index) - 0.25).to_le_bytes());
        Tensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            kind: TENSOR_F32,
            data: data.collect(),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Gguf {
    pub entries: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
    /// The counts in the file's head, if they are to differ from the real ones.
    pub claims: Option<(u64, u64)>,
}

const ALIGNMENT: usize = 32;

impl Gguf {
    /// Reads the whole small model.
    pub fn small() -> Gguf {
        Gguf::read(model::path())
    }

    pub fn read(path: &Path) -> Gguf {
        let bytes = fs::read(path).expect("the model can be read");
        let mut reader = Reader(&bytes);
        assert_eq!(reader.take(4), b"GGUF");
        assert_eq!(reader.u32(), 3, "the version of the format");
        let (tensor_count, entry_count) = (reader.u64(), reader.u64());
        let entries = (0..entry_count)
            .map(|_| {
                let key = String::from_utf8(reader.text().to_vec()).expect("keys are ASCII");
                let kind = reader.u32();
                let bytes = reader.value(kind).to_vec();
                (key, Value { kind, bytes })
            })
            .collect();
        let mut places = Vec::new();
        for _ in 0..tensor_count {
            let name = String::from_utf8(reader.text().to_vec()).expect("names are ASCII");
            let rank = reader.u32();
            let dimensions = (0..rank).map(|_| reader.u64()).collect();
            let kind = reader.u32();
            places.push((name, dimensions, kind, reader.u64() as usize));
        }
        let start = (bytes.len() - reader.0.len()).next_multiple_of(ALIGNMENT);
        let data = &bytes[start..];
        let mut ends: Vec<usize> = places.iter().map(|place| place.3).collect();
        ends.push(data.len());
        ends.sort_unstable();
        let end_of = |offset| ends[ends.partition_point(|end| *end <= offset)];
        let tensors = places
            .into_iter()
            .map(|(name, dimensions, kind, offset)| Tensor {
                name,
                dimensions,
                kind,
                data: data[offset..end_of(offset)].to_vec(),
            });
        Gguf {
            entries,
            tensors: tensors.collect(),
            claims: None,
        }
    }

    /// Builds a model of one layer with the small model's vocabulary: it loads in a moment.
    pub fn tiny() -> Gguf {
        const WIDTH: u64 = 64;
        let mut gguf = Gguf::vocabulary_of_small();
        let vocabulary = gguf.get("tokenizer.ggml.tokens").as_texts().len() as u64;
        for (key, value) in [
            ("general.architecture", Value::text("llama")),
            ("llama.block_count", Value::u32(1)),
            ("llama.context_length", Value::u32(32_768)),
            ("llama.embedding_length", Value::u32(WIDTH as u32)),
            ("llama.feed_forward_length", Value::u32(WIDTH as u32)),
            ("llama.attention.head_count", Value::u32(2)),
            ("llama.attention.head_count_kv", Value::u32(1)),
            ("llama.attention.layer_norm_rms_epsilon", Value::f32(1e-5)),
            ("llama.rope.dimension_count", Value::u32(32)),
            ("llama.rope.freq_base", Value::f32(10_000.0)),
        ] {
            gguf = gguf.with(key, value);
        }
        gguf.tensors = [
            ("token_embd.weight", &[WIDTH, vocabulary][..]),
            ("output_norm.weight", &[WIDTH]),
            ("blk.0.attn_norm.weight", &[WIDTH]),
            ("blk.0.attn_q.weight", &[WIDTH, WIDTH]),
            ("blk.0.attn_k.weight", &[WIDTH, WIDTH / 2]),
            ("blk.0.attn_v.weight", &[WIDTH, WIDTH / 2]),
            ("blk.0.attn_output.weight", &[WIDTH, WIDTH]),
            ("blk.0.ffn_norm.weight", &[WIDTH]),
            ("blk.0.ffn_gate.weight", &[WIDTH, WIDTH]),
            ("blk.0.ffn_up.weight", &[WIDTH, WIDTH]),
            ("blk.0.ffn_down.weight", &[WIDTH, WIDTH]),
        ]
        .map(|(name, dimensions)| Tensor::noise(name, dimensions))
        .to_vec();
        gguf
    }

    /// Builds a BERT of one layer: it makes embeddings, and writes no text.
    pub fn bert() -> Gguf {
        const WIDTH: u64 = 64;
        const CONTEXT: u64 = 512;
        let mut gguf = Gguf::vocabulary_of_small();
        let vocabulary = gguf.get("tokenizer.ggml.tokens").as_texts().len() as u64;
        for (key, value) in [
            ("general.architecture", Value::text("bert")),
            ("bert.block_count", Value::u32(1)),
            ("bert.context_length", Value::u32(CONTEXT as u32)),
            ("bert.embedding_length", Value::u32(WIDTH as u32)),
            ("bert.feed_forward_length", Value::u32(WIDTH as u32)),
            ("bert.attention.head_count", Value::u32(2)),
            ("bert.attention.layer_norm_epsilon", Value::f32(1e-12)),
            ("bert.attention.causal", Value::bool(false)),
            ("bert.pooling_type", Value::u32(1)),
            ("tokenizer.ggml.token_type_count", Value::u32(2)),
        ] {
            gguf = gguf.with(key, value);
        }
        let norms = [
            "token_embd_norm",
            "blk.0.attn_output_norm",
            "blk.0.layer_output_norm",
        ];
        let matrices = [
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_up",
            "ffn_down",
        ];
        let mut tensors = vec![
            Tensor::noise("token_embd.weight", &[WIDTH, vocabulary]),
            Tensor::noise("token_types.weight", &[WIDTH, 2]),
            Tensor::noise("position_embd.weight", &[WIDTH, CONTEXT]),
        ];
        for name in norms {
            tensors.push(Tensor::noise(&format!("{name}.weight"), &[WIDTH]));
            tensors.push(Tensor::noise(&format!("{name}.bias"), &[WIDTH]));
        }
        for name in matrices {
            tensors.push(Tensor::noise(
                &format!("blk.0.{name}.weight"),
                &[WIDTH, WIDTH],
            ));
            tensors.push(Tensor::noise(&format!("blk.0.{name}.bias"), &[WIDTH]));
        }
        gguf.tensors = tensors;
        gguf
    }

    /// The small model's tokenizer and template, and nothing to compute with.
    fn vocabulary_of_small() -> Gguf {
        let mut gguf = Gguf::small();
        gguf.tensors.clear();
        gguf.entries
            .retain(|(key, _)| key.starts_with("tokenizer."));
        gguf
    }

    pub fn get(&self, key: &str) -> &Value {
        let found = self.entries.iter().find(|(name, _)| name == key);
        &found.unwrap_or_else(|| panic!("no {key}")).1
    }

    /// Replaces the entry of this name, or adds a new one.
    pub fn with(mut self, key: &str, value: Value) -> Gguf {
        match self.entries.iter_mut().find(|(name, _)| name == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key.to_owned(), value)),
        }
        self
    }

    pub fn without(mut self, key: &str) -> Gguf {
        self.entries.retain(|(name, _)| name != key);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let (tensors, entries) = self
            .claims
            .unwrap_or((self.tensors.len() as u64, self.entries.len() as u64));
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        for (key, value) in &self.entries {
            bytes.extend(text_bytes(key.as_bytes()));
            bytes.extend(value.kind.to_le_bytes());
            bytes.extend(&value.bytes);
        }
        let mut offset = 0_usize;
        for tensor in &self.tensors {
            bytes.extend(text_bytes(tensor.name.as_bytes()));
            bytes.extend((tensor.dimensions.len() as u32).to_le_bytes());
            let dimensions = tensor.dimensions.iter();
            bytes.extend(dimensions.flat_map(|dimension| dimension.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend((offset as u64).to_le_bytes());
            offset += tensor.data.len().next_multiple_of(ALIGNMENT);
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        for tensor in &self.tensors {
            bytes.extend(&tensor.data);
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        }
        bytes
    }

    pub fn write(&self, path: &Path) {
        fs::write(path, self.bytes()).expect("the folder can be written");
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn text(&mut self) -> &'a [u8] {
        let length = self.u64();
        self.take(length as usize)
    }

    /// The bytes of a value.
    fn value(&mut self, kind: u32) -> &'a [u8] {
        let start = self.0;
        self.skip(kind);
        &start[..start.len() - self.0.len()]
    }

    fn skip(&mut self, kind: u32) {
        match kind {
            KIND_TEXT => {
                self.text();
            }
            KIND_ARRAY => {
                let item = self.u32();
                let count = self.u64();
                (0..count).for_each(|_| self.skip(item));
            }
            0 | 1 | KIND_BOOL => {
                self.take(1);
            }
            2 | 3 => {
                self.take(2);
            }
            KIND_U32 | KIND_I32 | KIND_F32 => {
                self.take(4);
            }
            10..=12 => {
                self.take(8);
            }
            _ => panic!("a type that GGUF does not have: {kind}"),
        }
    }
}
