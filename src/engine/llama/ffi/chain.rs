//! Samplers: they choose a token by its scores, if it is not simply the greatest.
//!
//! Owns the pointer to a chain, and frees it once, with the samplers in it.

use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::super::backend::Token;
use super::Model;
use super::calls::{self, Thrown, guarded};
use crate::engine::Sampling;
use crate::limits::engine as limits;

/// One sequence's samplers, in llama.cpp's order.
#[derive(Debug)]
pub struct Chain {
    pub(super) chain: NonNull<sys::llama_sampler>,
    /// Needed for its vocabulary.
    model: Arc<Model>,
}

// SAFETY: a chain is plain data, used through `&mut`.
unsafe impl Send for Chain {}

impl Chain {
    /// Creates a chain that ends in a draw by `seed`, or greedily at temperature 0.
    pub fn new(model: Arc<Model>, sampling: &Sampling, seed: u32) -> Result<Chain, Thrown> {
        // SAFETY: the parameters are a plain struct.
        let chain = guarded(|| unsafe {
            NonNull::new(calls::llama_sampler_chain_init(
                sys::llama_sampler_chain_default_params(),
            ))
        })?;
        let chain = chain.ok_or_else(Thrown::no_memory)?;
        // From here on the chain is freed, with its contents, whatever happens.
        let chain = Chain { chain, model };
        chain.add_parts(sampling, seed)?;
        Ok(chain)
    }

    fn add_parts(&self, sampling: &Sampling, seed: u32) -> Result<(), Thrown> {
        let vocabulary_size = i32::try_from(self.model.vocabulary_size).unwrap_or(i32::MAX);
        let top_k = i32::try_from(sampling.top_k).unwrap_or(i32::MAX);
        let chain = self.chain.as_ptr();
        // SAFETY: each call creates a sampler from plain numbers; `chain_add` passes its ownership
        // to the chain, which frees it. Values whose range llama.cpp asserts are clamped.
        guarded(|| unsafe {
            if has_penalties(sampling) {
                let penalties = calls::llama_sampler_init_penalties(
                    vocabulary_size,
                    limits::PENALTY_WINDOW_TOKENS,
                    sampling.repeat_penalty.clamp(f32::MIN_POSITIVE, 2.0),
                    sampling.frequency_penalty.clamp(-2.0, 2.0),
                    sampling.presence_penalty.clamp(-2.0, 2.0),
                );
                calls::llama_sampler_chain_add(chain, penalties);
            }
            if sampling.temperature <= 0.0 {
                let greedy = calls::llama_sampler_init_greedy();
                return calls::llama_sampler_chain_add(chain, greedy);
            }
            if top_k > 0 {
                calls::llama_sampler_chain_add(chain, calls::llama_sampler_init_top_k(top_k));
            }
            if sampling.top_p < 1.0 {
                let top_p = calls::llama_sampler_init_top_p(sampling.top_p.max(0.0), 1);
                calls::llama_sampler_chain_add(chain, top_p);
            }
            if sampling.min_p > 0.0 {
                let min_p = calls::llama_sampler_init_min_p(sampling.min_p.min(1.0), 1);
                calls::llama_sampler_chain_add(chain, min_p);
            }
            let temperature = calls::llama_sampler_init_temp(sampling.temperature);
            calls::llama_sampler_chain_add(chain, temperature);
            calls::llama_sampler_chain_add(chain, calls::llama_sampler_init_dist(seed));
        })
    }

    /// Makes the penalties count a token of the prompt.
    pub fn accept(&mut self, token: Token) -> Result<(), Thrown> {
        if !self.model.is_token(token) {
            return Ok(());
        }
        let chain = self.chain.as_ptr();
        // SAFETY: the chain is whole and the token within the vocabulary.
        guarded(|| unsafe { calls::llama_sampler_accept(chain, token) })
    }
}

/// Returns whether any penalty is on.
pub fn has_penalties(sampling: &Sampling) -> bool {
    sampling.repeat_penalty != 1.0
        || sampling.frequency_penalty != 0.0
        || sampling.presence_penalty != 0.0
}

impl Drop for Chain {
    fn drop(&mut self) {
        // SAFETY: created by `new`, freed only here, with the samplers that it owns.
        unsafe { sys::llama_sampler_free(self.chain.as_ptr()) };
    }
}
