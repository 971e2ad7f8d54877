//! How much context a model gets, by the memory there is.
//!
//! Owns the plan for the KV cache, which is made once and never grows: what is promised to a
//! sequence is there when it needs it.

use super::Settings;
use super::ffi::{Context, ContextSettings, Model};
use crate::limits::{
    CONTEXT_DEFAULT_TOKENS, CONTEXT_MEMORY_SHARE, CONTEXT_MIN_TOKENS, CONTEXT_STEP_TOKENS,
    PREFILL_BATCH_TOKENS,
};

/// What the context is made with: the settings, and for what they leave open the model and the
/// machine.
pub fn plan(settings: &Settings, model: &Model) -> ContextSettings {
    let sequences = settings.parallel.clamp(1, Context::MAX_SEQUENCES);
    let trained = match model.trained_context() {
        0 => u32::MAX,
        tokens => tokens,
    };
    let context = match settings.context {
        0 => {
            let per_token = model.cache_bytes_per_token(settings.kv_type);
            affordable(available_bytes(), sequences, per_token).min(trained)
        }
        tokens => tokens,
    };
    if context > trained {
        log::warn!("engine.context is {context}, the model was trained with {trained} tokens");
    }
    let threads = match settings.threads {
        0 => cores(),
        threads => threads,
    };
    ContextSettings {
        sequences,
        context,
        kv_type: settings.kv_type,
        batch: PREFILL_BATCH_TOKENS,
        threads,
    }
}

/// Tokens for each of `sequences` within a share of the memory that is free.
fn affordable(available_bytes: u64, sequences: u32, bytes_per_token: u64) -> u32 {
    let bytes = available_bytes / CONTEXT_MEMORY_SHARE;
    let tokens = bytes / (u64::from(sequences) * bytes_per_token.max(1));
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    let whole_steps = tokens / CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS;
    whole_steps.clamp(CONTEXT_MIN_TOKENS, CONTEXT_DEFAULT_TOKENS)
}

/// What the kernel says can be had without swapping; where it says nothing, nothing is promised.
fn available_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_fits_its_share_of_memory_in_whole_steps() {
        let gibibyte = 1 << 30;
        assert_eq!(
            affordable(1000 * gibibyte, 16, 23_040),
            CONTEXT_DEFAULT_TOKENS
        );
        assert_eq!(affordable(0, 16, 23_040), CONTEXT_MIN_TOKENS);
        let tokens = affordable(2 * gibibyte, 16, 23_040);
        assert!(tokens.is_multiple_of(CONTEXT_STEP_TOKENS) && tokens > CONTEXT_MIN_TOKENS);
        assert!(u64::from(tokens) * 16 * 23_040 <= 2 * gibibyte / CONTEXT_MEMORY_SHARE);
    }

    #[test]
    fn kernel_tells_how_much_is_available() {
        assert!(available_bytes() > 1 << 20);
    }
}
