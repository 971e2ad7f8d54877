//! Chooses the next token of a sequence.
//!
//! Owns the choice between two ways. The first takes the greatest score, read straight from the row
//! of logits; most requests for code want that, and it is nearly free. The second is llama.cpp's
//! chain of samplers, which first copies the row into a list of candidates. Penalties alone do not
//! need the chain: they change the scores of a few tokens, by llama.cpp's rule.

use std::collections::VecDeque;
use std::sync::Arc;

use super::backend::Token;
use super::ffi::{self, Chain, Context, Model};
use crate::engine::Sampling;
use crate::limits::engine as limits;

#[derive(Debug)]
pub enum Sampler {
    Greedy,
    Penalized(Box<Penalties>),
    Chain(Box<Chain>),
}

impl Sampler {
    /// Creates a sampler for the text after `prompt`, the end of which counts for the penalties.
    pub fn new(model: &Arc<Model>, sampling: &Sampling, prompt: &[Token]) -> Sampler {
        let has_penalties = ffi::has_penalties(sampling);
        if sampling.temperature <= 0.0 && !has_penalties {
            return Sampler::Greedy;
        }
        if sampling.temperature <= 0.0 {
            return Sampler::Penalized(Box::new(Penalties::new(sampling, prompt)));
        }
        let seed = sampling.seed.map_or_else(drawn_seed, llama_seed);
        let counted = match has_penalties {
            true => prompt
                .len()
                .saturating_sub(limits::PENALTY_WINDOW_TOKENS as usize),
            false => prompt.len(),
        };
        let chain = Chain::new(model.clone(), sampling, seed).and_then(|mut chain| {
            prompt[counted..]
                .iter()
                .try_for_each(|token| chain.accept(*token))?;
            Ok(chain)
        });
        match chain {
            Ok(chain) => Sampler::Chain(Box::new(chain)),
            Err(thrown) => {
                log::error!(
                    "cannot build the sampler chain, so this response is decoded greedily: {thrown}"
                );
                Sampler::Greedy
            }
        }
    }

    /// Chooses the token after the entry at `index` of the last batch.
    pub fn sample(&mut self, context: &mut Context, index: usize) -> Option<Token> {
        match self {
            Sampler::Greedy => context.logits(index).map(|scores| greatest(scores)),
            Sampler::Penalized(penalties) => {
                context.logits(index).map(|scores| penalties.choose(scores))
            }
            Sampler::Chain(chain) => context.sample(index, chain),
        }
    }
}

/// Lowers the scores of the tokens that came last.
#[derive(Debug)]
pub struct Penalties {
    repeat: f32,
    frequency: f32,
    presence: f32,
    /// The last tokens of prompt and output, at most [`limits::PENALTY_WINDOW_TOKENS`].
    window: VecDeque<Token>,
}

impl Penalties {
    fn new(sampling: &Sampling, prompt: &[Token]) -> Penalties {
        let mut penalties = Penalties {
            repeat: sampling.repeat_penalty.clamp(f32::MIN_POSITIVE, 2.0),
            frequency: sampling.frequency_penalty,
            presence: sampling.presence_penalty,
            window: VecDeque::with_capacity(limits::PENALTY_WINDOW_TOKENS as usize),
        };
        let start = prompt
            .len()
            .saturating_sub(limits::PENALTY_WINDOW_TOKENS as usize);
        prompt[start..]
            .iter()
            .for_each(|token| penalties.accept(*token));
        penalties
    }

    /// Lowers the scores in place, and returns the token with the greatest.
    fn choose(&mut self, scores: &mut [f32]) -> Token {
        let mut seen: Vec<Token> = self.window.iter().copied().collect();
        seen.sort_unstable();
        for same in seen.chunk_by(|one, other| one == other) {
            let Some(score) = usize::try_from(same[0])
                .ok()
                .and_then(|i| scores.get_mut(i))
            else {
                continue;
            };
            // Dividing would raise a score below zero.
            *score = match *score > 0.0 {
                true => *score / self.repeat,
                false => *score * self.repeat,
            };
            *score -= same.len() as f32 * self.frequency + self.presence;
        }
        let token = greatest(scores);
        self.accept(token);
        token
    }

    fn accept(&mut self, token: Token) {
        if self.window.len() == limits::PENALTY_WINDOW_TOKENS as usize {
            self.window.pop_front();
        }
        self.window.push_back(token);
    }
}

fn drawn_seed() -> u32 {
    // Without the system's random numbers every output has the same seed, which is harmless.
    llama_seed(getrandom::u32().unwrap_or(0).into())
}

/// llama.cpp's seeds have 32 bits, and this one means "draw one" (`LLAMA_DEFAULT_SEED`).
const LLAMA_DRAWS: u32 = u32::MAX;

/// Converts a seed of 64 bits to one of llama.cpp's. Seeds that fit stay the same; all others are
/// mixed (the finalizer of SplitMix64), so that seeds that differ only in their upper half stay
/// different.
fn llama_seed(seed: i64) -> u32 {
    if let Ok(small) = u32::try_from(seed)
        && small != LLAMA_DRAWS
    {
        return small;
    }
    let mut mixed = seed as u64;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    match (mixed >> 32) as u32 {
        LLAMA_DRAWS => 0,
        small => small,
    }
}

/// Returns the index of the greatest score, the first of equals. NaN scores never win.
fn greatest(scores: &[f32]) -> Token {
    /// As many maxima side by side as fit twice into the widest registers: the compiler keeps them
    /// there. A single maximum would make each comparison wait for the previous one.
    const LANES: usize = 32;
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let chunks = scores.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (maximum, score) in maxima.iter_mut().zip(chunk) {
            *maximum = if *score > *maximum { *score } else { *maximum };
        }
    }
    let greatest = maxima
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    scores
        .iter()
        .position(|score| *score == greatest)
        .unwrap_or(0) as Token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_lower_what_came_within_the_window() {
        let sampling = Sampling {
            repeat_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..Sampling::default()
        };
        let mut penalties = Penalties::new(&sampling, &[1, 2, 2]);
        let mut scores = [0.0, 4.0, -1.0, 1.0];
        assert_eq!(penalties.choose(&mut scores), 1);
        assert_eq!(scores, [0.0, 1.25, -3.25, 1.0]);
        // The chosen token counts from now on: 4.0 / 2 - 2 * 0.5 - 0.25.
        assert_eq!(penalties.choose(&mut [0.0, 4.0, -1.0, 1.0]), 3);
        for _ in 0..limits::PENALTY_WINDOW_TOKENS {
            penalties.accept(0);
        }
        assert_eq!(
            penalties.choose(&mut [5.0, 4.0, -1.0, 1.0]),
            1,
            "0 has come 64 times"
        );
    }

    #[test]
    fn a_seed_of_64_bits_becomes_one_of_32_and_never_the_one_that_draws() {
        for small in [0, 1, 7, u32::MAX - 1] {
            assert_eq!(llama_seed(small.into()), small);
        }
        let large = [u32::MAX.into(), 1 << 32, 1 << 33, i64::MAX, i64::MIN, -2];
        let mut seeds: Vec<_> = large.map(llama_seed).into();
        assert!(!seeds.contains(&LLAMA_DRAWS));
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), large.len());
    }

    #[test]
    fn greatest_is_the_first_of_equals_wherever_it_stands() {
        for length in [1, 31, 32, 33, 100] {
            for place in 0..length {
                let mut scores = vec![-1.0; length];
                scores[place] = 2.0;
                scores[length - 1] = 2.0;
                assert_eq!(greatest(&scores), place as Token);
            }
        }
        assert_eq!(greatest(&[f32::NAN, 1.0, f32::NAN]), 1);
        assert_eq!(greatest(&[]), 0);
    }
}
