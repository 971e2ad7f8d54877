//! Models that cannot work: each is refused when it is loaded, in one line with the reason, and
//! ends no process except for the child that tried it.
//!
//! The files are made here (`common::gguf`): the small model's file, a tiny model, or one that
//! makes embeddings, each with an error.

#![cfg(feature = "llama")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use common::gguf::{Gguf, KIND_TEXT, KIND_U32, Value};

/// How a command ended, and its lines on stderr.
struct End {
    code: Option<i32>,
    lines: Vec<String>,
}

impl End {
    /// Returns the first line that contains all of these.
    fn line_with(&self, words: &[&str]) -> &str {
        let mut lines = self.lines.iter();
        lines
            .find(|line| words.iter().all(|word| line.contains(word)))
            .unwrap_or_else(|| panic!("no line with {words:?} in {:#?}", self.lines))
    }
}

/// Runs under `timeout`: a command that should end and does not must not hang the test.
fn run(arguments: &[&str], home: &Path) -> End {
    let output = Command::new("timeout")
        .args(["120", env!("CARGO_BIN_EXE_autoglmd")])
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home)
        .env("STATE_DIRECTORY", home.join("state"))
        // As the daemon sets it for itself.
        .env("GOMP_SPINCOUNT", "1000")
        .stdin(Stdio::null())
        .output()
        .expect("timeout(1)");
    let said = String::from_utf8(output.stderr).expect("messages are UTF-8");
    End {
        code: output.status.code(),
        lines: said.lines().map(str::to_owned).collect(),
    }
}

fn serve(gguf: &Gguf) -> End {
    let home = tempfile::tempdir().expect("a temporary folder");
    let path = home.path().join("model.gguf");
    gguf.write(&path);
    let model = path.to_str().expect("the path is plain");
    run(&["--listen", "127.0.0.1:0", "--model", model], home.path())
}

fn prove(gguf: &Gguf) -> End {
    let home = tempfile::tempdir().expect("a temporary folder");
    let path = home.path().join("model.gguf");
    gguf.write(&path);
    let model = path.to_str().expect("the path is plain");
    run(&["engine-worker", "--prove", model], home.path())
}

fn template(source: &str) -> Value {
    Value::text(source)
}

/// Mutation: without `metadata::check` the child ends by SIGABRT, and the daemon with the
/// assertion's text instead of these reasons.
#[test]
fn what_ends_llama_cpp_is_refused_at_the_start_with_its_reason() {
    let tokens = Gguf::tiny().get("tokenizer.ggml.tokens").as_texts();
    let mut twice = tokens.clone();
    twice[70] = b"same".to_vec();
    twice[71] = b"same".to_vec();
    twice[72] = b"same".to_vec();
    let tiny = Gguf::tiny;
    let epsilon = "llama.attention.layer_norm_rms_epsilon";
    for (gguf, words) in [
        (Gguf::bert(), &["bert", "embeddings"][..]),
        (
            tiny().with(epsilon, Value::f32(f32::NAN)),
            &[epsilon, "NaN"],
        ),
        (
            tiny().with("llama.block_count", Value::u32(0)),
            &["block_count is 0", "from 1 to 512"],
        ),
        (
            tiny().with("llama.block_count", Value::u32(4_000_000_000)),
            &["block_count is 4000000000"],
        ),
        (
            tiny().with("tokenizer.ggml.tokens", Value::texts(&twice)),
            &["tokens", "\"same\""],
        ),
        (
            tiny().with("tokenizer.ggml.model", Value::text("no_vocab")),
            &["tokenizer.ggml.model", "no vocabulary"],
        ),
        (
            tiny().with("tokenizer.chat_template", Value::u32(7)),
            &["tokenizer.chat_template", "a number"],
        ),
        (
            tiny().with("tokenizer.chat_template", Value::texts(&[b"a".to_vec()])),
            &["tokenizer.chat_template", "a list"],
        ),
        (
            tiny().with("tokenizer.chat_template", template("You are helpful.")),
            &["chat template", "leaves the user's message out"],
        ),
        (
            tiny().with("tokenizer.chat_template", template("{{ nofunc() }}")),
            &["chat template", "nofunc"],
        ),
    ] {
        let end = serve(&gguf);
        assert_eq!(end.code, Some(69), "{words:?}: {:#?}", end.lines);
        let line = end.line_with(words);
        assert!(line.contains("model.gguf"), "{line}");
    }
}

/// The same files, made from the small model itself, as users would damage it.
#[test]
fn the_small_model_with_wrong_metadata_is_refused() {
    let small = Gguf::small();
    for (key, value) in [
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::f32(f32::NAN),
        ),
        ("llama.block_count", Value::u32(0)),
        ("tokenizer.ggml.model", Value::text("no_vocab")),
    ] {
        let end = serve(&small.clone().with(key, value));
        assert_eq!(end.code, Some(69), "{key}: {:#?}", end.lines);
        end.line_with(&[key, "model.gguf"]);
    }
}

/// Assertions of llama.cpp that no check of ours foresees, in loading and in tokenizing: the
/// child's end is reported with its last message. Mutation: without the child the daemon ends.
#[test]
fn an_end_of_the_child_is_one_line_with_its_cause() {
    let rope = Gguf::tiny().with("llama.rope.scaling.type", Value::text("sideways"));
    let end = serve(&rope);
    assert_eq!(end.code, Some(69), "{:#?}", end.lines);
    end.line_with(&["model.gguf", "SIGABRT", "GGML_ASSERT"]);
    // A space is part of a word here, which llama.cpp's own merges rule out.
    let whitespace = Gguf::tiny().with("tokenizer.ggml.pre", Value::text("whitespace"));
    let end = serve(&whitespace);
    assert_eq!(end.code, Some(69), "{:#?}", end.lines);
    end.line_with(&["model.gguf", "SIGABRT", "GGML_ASSERT"]);
}

#[test]
fn models_that_work_are_proved_and_templates_of_the_field_too() {
    let tiny = Gguf::tiny;
    let generation = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}\
                      {{ m.content }}{% endgeneration %}<|im_end|>{% endfor %}";
    let changing = "{% set all = [] %}{% for m in messages %}{% do all.append(m.content) %}\
                    {% endfor %}{{ all | join('\n') }}";
    for gguf in [
        tiny(),
        tiny().without("tokenizer.chat_template"),
        tiny().with("tokenizer.chat_template", template("")),
        tiny().with("tokenizer.chat_template", template(generation)),
        tiny().with("tokenizer.chat_template", template(changing)),
    ] {
        let end = prove(&gguf);
        assert_eq!(end.code, Some(0), "{:#?}", end.lines);
    }
}

#[test]
fn files_that_are_cut_off_or_lie_about_their_size_are_refused() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let path = home.path().join("model.gguf");
    let whole = Gguf::tiny().bytes();
    let mut lying = Gguf::tiny();
    lying.claims = Some((u64::MAX, u64::MAX));
    let huge = Gguf::tiny().with("x", Value::array(KIND_TEXT, u64::MAX, Vec::new()));
    let mut files = vec![
        b"GGUF\x03\0\0\0".to_vec(),
        b"PK".to_vec(),
        lying.bytes(),
        huge.bytes(),
    ];
    // The head, the vocabulary, the positions of the tensors, and their data.
    let lengths = [
        24,
        100,
        5_000,
        whole.len() / 16,
        whole.len() / 4,
        whole.len() - 1,
    ];
    files.extend(lengths.map(|length| whole[..length].to_vec()));
    for (index, bytes) in files.into_iter().enumerate() {
        std::fs::write(&path, bytes).expect("the folder can be written");
        let model = path.to_str().expect("the path is plain");
        let end = run(&["engine-worker", "--prove", model], home.path());
        assert_eq!(end.code, Some(69), "{index}: {:#?}", end.lines);
        end.line_with(&["model.gguf"]);
    }
}

/// Whatever the metadata contain, the daemon's own process ends with 0 or 69, and reports why.
#[test]
fn random_metadata_does_not_crash_the_daemon() {
    let tiny = Gguf::tiny();
    let keys: Vec<String> = tiny.entries.iter().map(|(key, _)| key.clone()).collect();
    let cases = std::env::var("AUTOGLMD_FUZZ_CASES").ok();
    let cases = cases.and_then(|cases| cases.parse().ok()).unwrap_or(24);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let change = (prop::sample::select(keys), any_value());
    let changes = prop::collection::vec(change, 1..3);
    let outcome = runner.run(&changes, |changes| {
        let gguf = changes
            .iter()
            .fold(tiny.clone(), |gguf, (key, value)| match value {
                Some(value) => gguf.with(key, value.clone()),
                None => gguf.without(key),
            });
        let home = tempfile::tempdir().expect("a temporary folder");
        let path = home.path().join("model.gguf");
        gguf.write(&path);
        // A daemon that would serve finds no address to listen on, after it has proved the model.
        let model = path.to_str().expect("the path is plain");
        let end = run(&["engine-worker", "--prove", model], home.path());
        let names: Vec<&String> = changes.iter().map(|(key, _)| key).collect();
        if !matches!(end.code, Some(0 | 69)) {
            // The child itself may end in any way: the daemon must not.
            let end = serve(&gguf);
            prop_assert_eq!(end.code, Some(69), "{:?}: {:#?}", names, end.lines);
            let told = end.lines.iter().any(|line| line.contains("model.gguf"));
            prop_assert!(told, "{names:?}: {:#?}", end.lines);
        } else if end.code == Some(69) {
            prop_assert!(!end.lines.is_empty(), "{names:?}");
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

fn any_value() -> impl Strategy<Value = Option<Value>> {
    let numbers = prop::sample::select(vec![0, 1, 2, 3, 255, 65_536, i32::MAX as u32, u32::MAX]);
    let floats = prop::sample::select(vec![0.0, -1.0, 1e30, f32::NAN, f32::INFINITY, 1e-40]);
    prop_oneof![
        Just(None),
        numbers.prop_map(|number| Some(Value::u32(number))),
        floats.prop_map(|number| Some(Value::f32(number))),
        "[a-z{}% ]{0,8}".prop_map(|text| Some(Value::text(&text))),
        any::<bool>().prop_map(|value| Some(Value::bool(value))),
        prop::collection::vec(any::<i32>(), 0..4).prop_map(|items| Some(Value::i32s(&items))),
        prop::collection::vec(any::<f32>(), 0..4).prop_map(|items| Some(Value::f32s(&items))),
        Just(Some(Value::texts(&[]))),
        Just(Some(Value::texts(&[b"a".to_vec(), b"a".to_vec()]))),
        Just(Some(Value::array(KIND_U32, 1 << 40, Vec::new()))),
        Just(Some(Value {
            kind: 99,
            bytes: Vec::new(),
        })),
    ]
}
