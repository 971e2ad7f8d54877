//! Plans how much context a model gets in the available memory.
//!
//! Owns the plan for the KV cache, which is made once and never grows: memory promised to a
//! sequence is there when it needs it. If even the smallest useful context exceeds the memory, the
//! start fails; otherwise the kernel would kill the process while it serves. A configured context
//! that exceeds it only logs a warning.
//!
//! Mutation that a test catches: `affordable` that always returns the minimum
//! (`a_machine_or_a_container_that_is_too_small_is_an_error`).

use super::Settings;
use super::ffi::{Context, ContextSettings, LoadError, Model};
use crate::engine::family::Family;
use crate::limits::engine as limits;
use crate::os::room::available_memory;

/// Returns the parameters of the context: the settings, and where they leave it open, values chosen
/// for the model and the machine or container.
pub fn plan(
    settings: &Settings,
    model: &Model,
    family: &Family,
) -> Result<ContextSettings, LoadError> {
    let kv_type = settings.kv_type.unwrap_or(family.kv_type);
    let sequences = settings.parallel.clamp(1, Context::MAX_SEQUENCES);
    let trained = match model.trained_context() {
        0 => u32::MAX,
        tokens => tokens,
    };
    let per_token = model.cache_bytes_per_token(kv_type);
    let available = available_memory();
    let context = match settings.context {
        0 => affordable(available, sequences, per_token)
            .map_err(LoadError)?
            .min(trained),
        tokens => {
            let wanted = cache_bytes(tokens, sequences, per_token);
            if available.is_some_and(|available| wanted > available) {
                log::warn!("{}", too_large(tokens, sequences, wanted, available));
            }
            tokens
        }
    };
    if context > trained {
        log::warn!(
            "engine.context is {context}, but the model was trained with {trained} tokens; it may \
             write nonsense beyond them"
        );
    }
    let threads = match settings.threads {
        0 => cores(),
        threads => threads,
    };
    Ok(ContextSettings {
        sequences,
        context,
        kv_type,
        batch: limits::PREFILL_BATCH_TOKENS_MAX,
        threads,
    })
}

/// Returns the tokens for each of `sequences` within a share of the free memory. Returns the useful
/// minimum if there is only just enough for it, and an error, for people, if there is less. If the
/// free memory is unknown, returns the minimum.
fn affordable(available: Option<u64>, sequences: u32, bytes_per_token: u64) -> Result<u32, String> {
    let least = cache_bytes(limits::CONTEXT_TOKENS_MIN, sequences, bytes_per_token);
    if available.is_some_and(|available| least > available) {
        return Err(too_large(
            limits::CONTEXT_TOKENS_MIN,
            sequences,
            least,
            available,
        ));
    }
    let bytes = available.unwrap_or(0) / limits::CONTEXT_MEMORY_DIVISOR;
    let tokens = bytes / (u64::from(sequences) * bytes_per_token.max(1));
    let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    let whole_steps = tokens / limits::CONTEXT_STEP_TOKENS * limits::CONTEXT_STEP_TOKENS;
    Ok(whole_steps.clamp(limits::CONTEXT_TOKENS_MIN, limits::CONTEXT_TOKENS_DEFAULT))
}

fn cache_bytes(tokens: u32, sequences: u32, bytes_per_token: u64) -> u64 {
    (u64::from(tokens) * u64::from(sequences)).saturating_mul(bytes_per_token)
}

fn too_large(tokens: u32, sequences: u32, wanted: u64, available: Option<u64>) -> String {
    let (wanted, available) = (wanted >> 20, available.unwrap_or(0) >> 20);
    format!(
        "{tokens} tokens of context for each of {sequences} sequences need {wanted} MiB, but the \
         machine and its control groups have {available} MiB free; lower engine.parallel or \
         engine.context, choose a smaller model, or raise the limit (MemoryMax= of the unit, \
         --memory of the container)"
    )
}

pub(super) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_fits_its_share_of_memory_in_whole_steps() {
        let gibibyte = 1 << 30;
        let affordable = |bytes| affordable(bytes, 16, 23_040).unwrap();
        assert_eq!(
            affordable(Some(1000 * gibibyte)),
            limits::CONTEXT_TOKENS_DEFAULT
        );
        assert_eq!(affordable(None), limits::CONTEXT_TOKENS_MIN);
        let tokens = affordable(Some(2 * gibibyte));
        assert!(
            tokens.is_multiple_of(limits::CONTEXT_STEP_TOKENS)
                && tokens > limits::CONTEXT_TOKENS_MIN
        );
        assert!(u64::from(tokens) * 16 * 23_040 <= 2 * gibibyte / limits::CONTEXT_MEMORY_DIVISOR);
    }

    /// A regression test: a model of 7 billion parameters without grouped heads, in a container of
    /// 4 GiB: 512 tokens were promised to each of 16 sequences, whatever the memory.
    #[test]
    fn a_machine_or_a_container_that_is_too_small_is_an_error() {
        let per_token = 544 * 1024;
        let least = cache_bytes(limits::CONTEXT_TOKENS_MIN, 16, per_token);
        assert_eq!(
            affordable(Some(least), 16, per_token),
            Ok(limits::CONTEXT_TOKENS_MIN)
        );
        let error = affordable(Some(least - 1), 16, per_token).unwrap_err();
        for part in ["512 tokens", "16 sequences", "4352 MiB", "engine.parallel"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
