//! Prompts that have crashed other servers, and texts that look like a model's own marks.
//!
//! The models are tiny ones with the small model's vocabulary (`common::gguf`): the tests see a
//! text's way before anything is computed. An engine that crashes ends this whole process.

#![cfg(feature = "llama")]

mod common;

use autoglmd::engine::{FailReason, Prompt};
use autoglmd::error::ErrorCode;

use common::asker::Asker;
use common::gguf::{Gguf, Value};

/// Every name that llama.cpp knows for a pre-tokenizer of its BPE tokenizer.
const PRE_TOKENIZERS: &str = "default llama3 deepseek-llm deepseek-coder deepseek-v3 falcon mpt \
    starcoder gpt-2 jais jais-2 gemma4 mmbert sarvam-moe jina-v1-en refact command-r qwen2 qwen35 \
    stablelm2 olmo dbrx smaug-bpe poro-chat chatglm-bpe glm4 viking tekken smollm codeshell bloom \
    gpt3-finnish exaone exaone4 exaone-moe chameleon minerva-7b megrez gpt-4o llama4 \
    granite-embed-multi-97m tiny_aya superbpe trillion granite-docling bailingmoe seed-coder \
    hunyuan hunyuan-dense hy_v4 joyai-llm kimi-k2 ufakzeka grok-2 afmoe laguna minimax-m2 \
    solar-open mellum2 minicpm5 spark2_5 youtu";

/// One text of each class of characters, and some of several classes.
const RUNS: &[&str] = &[
    "a",
    "A",
    "中",
    "\u{301}",
    "0",
    " ",
    "\n",
    ".",
    "$",
    "👍",
    "\0",
    "a ",
    "\u{10FFFF}",
];

const RUN_CHARACTERS: usize = 60_000;

/// Mutation: with `TOKENIZER_PIECE_BYTES_MAX` at a megabyte this process ends at `deepseek-llm`. A
/// quarter of `TOKENIZER_STACK_BYTES` is still enough.
#[test]
fn long_runs_of_one_class_crash_no_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Gguf::tiny();
    for name in PRE_TOKENIZERS.split_whitespace() {
        let path = folder.path().join("model.gguf");
        // If this process ends, this was the cause.
        eprintln!("{name}");
        let pre = Value::text(name);
        tiny.clone().with("tokenizer.ggml.pre", pre).write(&path);
        let asker = Asker::start(&path);
        for run in RUNS {
            let count = RUN_CHARACTERS / run.chars().count();
            let outcome = asker.ask(Prompt::Raw(run.repeat(count)));
            // A vocabulary made for other words may have no token for a text at all.
            let refused = [ErrorCode::ContextLengthExceeded, ErrorCode::InvalidRequest];
            if let Err(failed) = outcome {
                let reason = failed.reason.clone();
                let is_expected = refused.map(FailReason::Error).contains(&reason);
                assert!(is_expected, "{name}: {run:?}: {failed:?}");
            }
        }
    }
}

/// Each line has its own tokens, so more lines are as many more tokens, even beyond the size of one
/// call to llama.cpp's tokenizer.
#[test]
fn long_ordinary_text_has_the_tokens_of_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    Gguf::tiny().write(&path);
    let asker = Asker::start(&path);
    let tokens = |lines: usize| {
        let line = "    if (value != other.value) { return; }\n读取每一行 and words of it\n";
        match asker.ask(Prompt::Raw(line.repeat(lines))) {
            Ok(done) => done.usage.prompt_tokens,
            // Nothing was computed, so nothing is charged: the message has the number.
            Err(failed) => {
                let mut words = failed
                    .message
                    .split(' ')
                    .filter_map(|word| word.parse().ok());
                words.next().unwrap_or_else(|| panic!("{failed:?}"))
            }
        }
    };
    let (few, more, many) = (tokens(10), tokens(20), tokens(1010));
    assert!(few > 0);
    assert_eq!(many - few, 100 * (more - few));
}

/// A BPE vocabulary under the name of another tokenizer: it has no token for a space, and llama.cpp
/// throws. Mutation: without the guard this process ends.
#[test]
fn tokenizer_that_throws_fails_its_request_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let print = Value::text("{% for m in messages %}{{ m.content }}{% endfor %}");
    Gguf::tiny()
        .with("tokenizer.ggml.model", Value::text("llama"))
        .with("tokenizer.chat_template", print)
        .write(&path);
    let asker = Asker::start(&path);
    for _ in 0..2 {
        let failed = asker.ask(Prompt::Raw("hello 🎉".to_owned())).unwrap_err();
        let expected = FailReason::Error(ErrorCode::EngineFailed);
        assert_eq!(failed.reason, expected, "{failed:?}");
    }
    let plain = asker.ask(Prompt::Raw("hello".to_owned()));
    assert!(plain.is_ok(), "{plain:?}");
}
