//! Proves that a model works, before the daemon reports that it is ready.
//!
//! Owns the trial: a model is loaded, its template renders a prompt, and tokens are computed,
//! chosen, saved and restored, in two sequences as in the scheduler. A bad file may make llama.cpp
//! fail an assertion, divide by zero or loop for ever. Here that is harmless, because the trial
//! runs in a child process (`supervisor::prover`).

use std::path::Path;

use super::backend::{Backend, Batch, PrepareError};
use super::ffi::{ContextSettings, Model};
use super::model::Llama;
use super::{KvType, memory};
use crate::engine::family::Family;
use crate::engine::{Prompt, Sampling};
use crate::limits::engine as limits;

/// Characters of each class, alone and beside others, as a request may contain them.
const TEXTS: &[&str] = &[
    "a",
    "A",
    "中",
    "é",
    "\u{301}",
    "0",
    " ",
    "\n",
    "\t",
    "\r\n",
    "\u{a0}",
    "\u{3000}",
    ".",
    "<|",
    "$",
    "👍",
    "\0",
    "\u{10FFFF}",
    "a ",
    " a",
    "'s",
    "a\n",
    "0a",
    "\u{2581}",
    "  a\n\n b",
];
const TEXT_REPEATS: usize = 16;

/// Tries a model. The error is for people, and names the file.
pub fn prove(path: &Path, kv_type: Option<KvType>, gpu_layers: u32) -> Result<(), String> {
    let plan = |_: &Model, family: &Family| {
        Ok(ContextSettings {
            sequences: 2,
            context: limits::PROOF_CONTEXT_TOKENS,
            kv_type: kv_type.unwrap_or(family.kv_type),
            batch: limits::PROOF_PROMPT_TOKENS_MAX,
            threads: memory::cores(),
        })
    };
    let mut llama = Llama::load(path, None, gpu_layers, &mut |_| true, plan)
        .map_err(|error| error.to_string())?;
    compute(&mut llama).map_err(|reason| format!("{}: {reason}", path.display()))
}

fn compute(llama: &mut Llama) -> Result<(), String> {
    let prompt = Prompt::Code {
        language: Some("python"),
        prompt: "add".to_owned(),
        context: Vec::new(),
    };
    let preparer = llama.preparer();
    let tokens = match preparer.prepare(&prompt) {
        Ok(prepared) => prepared.tokens,
        Err(PrepareError::TooLong) => {
            return Err("its tokenizer rejects a short prompt as too long".to_owned());
        }
        Err(PrepareError::Template(says)) => {
            return Err(format!("its chat template rejects a prompt: {says}"));
        }
        // The template was tried when the model was loaded, so this is an exception of the
        // tokenizer. Other texts may work, and those that do not fail only their own requests.
        Err(PrepareError::Engine(_)) => vec![0],
    };
    // An exception of the tokenizer fails one request; a failed assertion would end the daemon.
    for text in TEXTS {
        let _ = preparer.prepare(&Prompt::Raw(text.repeat(TEXT_REPEATS)));
    }
    let tokens = &tokens[..tokens.len().min(limits::PROOF_PROMPT_TOKENS_MAX as usize)];
    if tokens.is_empty() {
        return Err("its tokenizer returns no tokens for a prompt".to_owned());
    }
    let mut batch = Batch::default();
    for (index, token) in tokens.iter().enumerate() {
        batch.push(0, *token, index + 1 == tokens.len());
    }
    let last = batch.len() - 1;
    run(llama, &batch)?;
    if !llama.has_scores(last) {
        return Err(
            "it computes values that are not numbers: weights or metadata are damaged".to_owned(),
        );
    }
    for temperature in [0.0, 1.0] {
        let sampling = Sampling {
            temperature,
            repeat_penalty: 1.1,
            ..Sampling::default()
        };
        let mut sampler = llama.sampler(&sampling, tokens);
        let token = llama.sample(last, &mut sampler);
        let token = token.ok_or_else(|| "its sampler chooses no token".to_owned())?;
        llama.append_piece(token, &mut Vec::new());
    }
    // A model that cannot do this reads a prompt twice; it is tried because it must not end the
    // daemon.
    if let Some(state) = llama.save(0) {
        llama.restore(1, &state, tokens.len());
    }
    batch.clear();
    batch.push(0, tokens[0], true);
    batch.push(1, tokens[0], true);
    run(llama, &batch)?;
    llama.truncate(0, 1);
    llama.truncate(0, 0);
    Ok(())
}

fn run(llama: &mut Llama, batch: &Batch) -> Result<(), String> {
    llama
        .decode(batch, &|_| false)
        .map_err(|error| format!("it cannot compute a prompt: {error:?}"))
}
