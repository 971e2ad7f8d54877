//! Samplers: what chooses a token by its scores, where that is not simply the greatest.
//!
//! Owns the pointer to a chain, and frees it once, with the samplers that it owns.

use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::super::backend::Token;
use super::Model;
use crate::engine::Sampling;
use crate::limits::PENALTY_WINDOW_TOKENS;

/// One sequence's samplers, in llama.cpp's order.
#[derive(Debug)]
pub struct Chain {
    pub(super) chain: NonNull<sys::llama_sampler>,
    /// Knows which tokens there are.
    model: Arc<Model>,
}

// SAFETY: a chain is plain data, used through `&mut`.
unsafe impl Send for Chain {}

impl Chain {
    /// A chain that ends in a draw by `seed`, or greedily at temperature 0.
    pub fn new(model: Arc<Model>, sampling: &Sampling, seed: u32) -> Option<Chain> {
        let vocabulary_size = i32::try_from(model.vocabulary_size).ok()?;
        let mut parts = Vec::new();
        // SAFETY: each call makes a sampler of its own from plain numbers; `chain_add` passes its
        // ownership to the chain, which frees it. The ranges that llama.cpp asserts are clamped.
        let chain = unsafe {
            if has_penalties(sampling) {
                parts.push(sys::llama_sampler_init_penalties(
                    vocabulary_size,
                    PENALTY_WINDOW_TOKENS,
                    sampling.repeat_penalty.clamp(f32::MIN_POSITIVE, 2.0),
                    sampling.frequency_penalty.clamp(-2.0, 2.0),
                    sampling.presence_penalty.clamp(-2.0, 2.0),
                ));
            }
            if sampling.temperature > 0.0 {
                if sampling.top_k > 0 {
                    let top_k = i32::try_from(sampling.top_k).unwrap_or(i32::MAX);
                    parts.push(sys::llama_sampler_init_top_k(top_k));
                }
                if sampling.top_p < 1.0 {
                    parts.push(sys::llama_sampler_init_top_p(sampling.top_p.max(0.0), 1));
                }
                if sampling.min_p > 0.0 {
                    parts.push(sys::llama_sampler_init_min_p(sampling.min_p.min(1.0), 1));
                }
                parts.push(sys::llama_sampler_init_temp(sampling.temperature));
                parts.push(sys::llama_sampler_init_dist(seed));
            } else {
                parts.push(sys::llama_sampler_init_greedy());
            }
            let chain = NonNull::new(sys::llama_sampler_chain_init(
                sys::llama_sampler_chain_default_params(),
            ))?;
            for part in parts {
                sys::llama_sampler_chain_add(chain.as_ptr(), part);
            }
            chain
        };
        Some(Chain { chain, model })
    }

    /// Lets the penalties count a token of the prompt.
    pub fn accept(&mut self, token: Token) {
        if self.model.is_token(token) {
            // SAFETY: the chain is whole and the token within the vocabulary.
            unsafe { sys::llama_sampler_accept(self.chain.as_ptr(), token) };
        }
    }
}

/// Whether any penalty is on.
pub fn has_penalties(sampling: &Sampling) -> bool {
    sampling.repeat_penalty != 1.0
        || sampling.frequency_penalty != 0.0
        || sampling.presence_penalty != 0.0
}

impl Drop for Chain {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed here only, with the samplers that it owns.
        unsafe { sys::llama_sampler_free(self.chain.as_ptr()) };
    }
}
