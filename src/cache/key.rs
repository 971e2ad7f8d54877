//! The canonical form of a request, as a digest.
//!
//! Owns two decisions: whether a request may get the result of another one at all, and which
//! requests are equal. Two are equal if the model's input and the choice of its tokens are the same
//! for both. Fields that decide neither (the form of the body, the form of the response, the
//! deadline, the weight) are not in the digest; values without an effect are brought to one.
//!
//! Only a reproducible request has a digest: its temperature is 0, or it has a seed.
//!
//! Invariants:
//!  1. Equal requests have one digest, in whatever way they are written.
//!  2. Unequal ones have different digests: each field has a fixed length or its length before it,
//!     so no end of one field can pass for the beginning of the next.
//!  3. Requests of different tenants are never equal.
//!  4. Each field of a job is in the digest or named here: a pattern without `..` does not compile
//!     once a field is added.
//!
//! Mutations that the tests below catch: `text` without the length
//! (`fields_do_not_run_into_each_other`), a field that is left out
//! (`every_field_that_decides_is_in_the_digest`), sampling that is written as it came
//! (`what_has_no_effect_does_not_decide`), stop strings in their order (`equal_requests_meet`).

use blake3::Hasher;

use crate::engine::{ContextFile, Job, Message, ModelInfo, Prompt, Sampling};

/// Names everything that decides a result.
pub type Digest = [u8; 32];

/// Separates these digests from those of other programs and of other versions of this form.
const CONTEXT: &str = "autoglmd 2026-11 canonical form of a generation, version 1";

/// Returns the digest of a job for this model; `None` if chance has a part in its result.
pub fn digest(job: &Job, model: &ModelInfo) -> Option<Digest> {
    let Job {
        tenant,
        prompt,
        sampling,
        max_tokens,
        stop,
        // The name of the job, when and where it runs, and its way through the cache.
        key: _,
        id: _,
        class: _,
        weight: _,
        deadline: _,
        submitted: _,
        cache: _,
        ticket: _,
    } = job;
    let is_greedy = sampling.temperature <= 0.0;
    if !is_greedy && sampling.seed.is_none() {
        return None;
    }
    let mut form = Form(Hasher::new_derive_key(CONTEXT));
    form.number(*tenant);
    form.model(model);
    form.prompt(prompt);
    form.sampling(sampling);
    form.number((*max_tokens).into());
    // The output ends before the first one that is met, so neither order nor repetition matters.
    let mut stop: Vec<&str> = stop.iter().map(String::as_str).collect();
    stop.sort_unstable();
    stop.dedup();
    form.number(stop.len() as u64);
    stop.into_iter().for_each(|text| form.text(text));
    Some(*form.0.finalize().as_bytes())
}

struct Form(Hasher);

impl Form {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    /// Equal numbers may have different bits: a zero has two signs.
    fn float(&mut self, number: f32) {
        self.0.update(&(number + 0.0).to_bits().to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn model(&mut self, model: &ModelInfo) {
        let ModelInfo {
            id,
            fingerprint,
            // The context's length is in the fingerprint, and the defaults are in the job.
            context_length: _,
            defaults: _,
            // These are only shown.
            engine: _,
            description: _,
            created: _,
        } = model;
        self.text(id);
        self.0.update(fingerprint);
    }

    fn prompt(&mut self, prompt: &Prompt) {
        match prompt {
            Prompt::Code {
                language,
                prompt,
                context,
            } => {
                self.number(1);
                // No language has an empty name.
                self.text(language.unwrap_or_default());
                self.text(prompt);
                self.number(context.len() as u64);
                for ContextFile { path, text } in context {
                    self.text(path);
                    self.text(text);
                }
            }
            Prompt::Chat(messages) => {
                self.number(2);
                self.number(messages.len() as u64);
                for Message { role, content } in messages {
                    self.text(role);
                    self.text(content);
                }
            }
            Prompt::Raw(text) => {
                self.number(3);
                self.text(text);
            }
        }
    }

    fn sampling(&mut self, sampling: &Sampling) {
        let Sampling {
            temperature,
            top_p,
            top_k,
            min_p,
            seed,
            frequency_penalty,
            presence_penalty,
            repeat_penalty,
        } = *sampling;
        self.float(frequency_penalty);
        self.float(presence_penalty);
        self.float(repeat_penalty);
        // Greedy: the likeliest token is taken, whatever else is asked for.
        if temperature <= 0.0 {
            return self.number(0);
        }
        self.number(1);
        self.float(temperature);
        self.float(top_p);
        self.number(top_k.into());
        self.float(min_p);
        // A request without a seed has no digest.
        self.number(seed.unwrap_or_default() as u64);
    }
}

#[cfg(test)]
mod tests;
