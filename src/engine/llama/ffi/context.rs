//! The KV cache of one model, and computing with it.
//!
//! Owns the pointer to the context, and frees it once.
//!
//! Invariants:
//!  1. `lengths[s]` is the number of tokens that sequence `s` holds in the KV cache, at the
//!     positions 0 to `lengths[s] - 1`. Positions are assigned here and nowhere else.
//!  2. A [`Context`] is used by one thread at a time (it is not `Sync`). Contexts must be created
//!     one after the other (creating them in parallel is unsound in llama.cpp).

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use llama_cpp_sys_2 as sys;

use super::super::KvType;
use super::super::backend::{Batch, DecodeError, Token};
use super::calls::{self, Thrown, guarded};
use super::{Chain, IS_STOPPING, LoadError, Model, take_first_error};

/// The parameters of a [`Context`].
#[derive(Clone, Copy, Debug)]
pub struct ContextSettings {
    /// Sequences that can be in the KV cache at once. 1 to [`Context::MAX_SEQUENCES`].
    pub sequences: u32,
    /// Tokens of each sequence.
    pub context: u32,
    pub kv_type: KvType,
    /// Maximum number of tokens of one `decode`.
    pub batch: u32,
    pub threads: u32,
}

/// The KV cache, and the working memory for computing with one model.
#[derive(Debug)]
pub struct Context {
    context: NonNull<sys::llama_context>,
    memory: sys::llama_memory_t,
    model: Arc<Model>,
    /// Tokens in the cache, by sequence (invariant 1).
    lengths: Vec<usize>,
    context_length: usize,
    batch_limit: usize,
    kv_type: KvType,
    arrays: Arrays,
    /// Which entries of the last successful batch have logits.
    has_logits: Vec<bool>,
}

/// A batch in C's form, kept for its memory.
#[derive(Debug, Default)]
struct Arrays {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    sequence_counts: Vec<i32>,
    sequences: Vec<sys::llama_seq_id>,
    sequence_pointers: Vec<*mut sys::llama_seq_id>,
    wants_logits: Vec<i8>,
}

// SAFETY: nothing in a context is bound to the thread that made it; `&mut self` excludes other
// users.
unsafe impl Send for Context {}

impl Context {
    /// llama.cpp's `LLAMA_MAX_SEQ`.
    pub const MAX_SEQUENCES: u32 = 256;

    pub fn new(model: Arc<Model>, settings: ContextSettings) -> Result<Context, LoadError> {
        static ONE_AFTER_THE_OTHER: Mutex<()> = Mutex::new(());
        let sequences = settings.sequences.clamp(1, Context::MAX_SEQUENCES);
        let batch = settings.batch.max(sequences);
        let threads = i32::try_from(settings.threads.max(1)).unwrap_or(1);
        // SAFETY: a plain struct of defaults.
        let mut parameters = unsafe { sys::llama_context_default_params() };
        parameters.n_ctx = settings.context.saturating_mul(sequences);
        parameters.n_seq_max = sequences;
        parameters.n_batch = batch;
        parameters.n_ubatch = batch;
        parameters.n_outputs_max = sequences;
        parameters.n_threads = threads;
        parameters.n_threads_batch = threads;
        // Separate streams with flash attention: a sequence attends only to its own cells, which is
        // faster and makes its output independent of other sequences in the batch.
        parameters.kv_unified = false;
        parameters.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_ENABLED;
        parameters.no_perf = true;
        let make = |kv_type: KvType| {
            parameters.type_k = ggml_type(kv_type);
            parameters.type_v = ggml_type(kv_type);
            let _guard = ONE_AFTER_THE_OTHER.lock();
            // SAFETY: the model is loaded and outlives the context; the parameters are in range.
            let made = guarded(|| unsafe {
                calls::llama_init_from_model(model.model.as_ptr(), parameters)
            });
            made.inspect_err(|thrown| super::note_error(&thrown.to_string()))
                .ok()
                .and_then(NonNull::new)
                .map(|context| (context, kv_type))
        };
        let (context, kv_type) = with_suitable_type(settings.kv_type, make).ok_or_else(|| {
            let tokens = u64::from(settings.context) * u64::from(sequences);
            let mebibytes =
                tokens.saturating_mul(model.cache_bytes_per_token(settings.kv_type)) >> 20;
            LoadError::with_reason(format_args!(
                "cannot allocate a context for {sequences} sequences of {} tokens (about \
                 {mebibytes} MiB); lower engine.context or engine.parallel",
                settings.context
            ))
        })?;
        // SAFETY: the context has just been made.
        let (memory, context_length, batch_limit) = unsafe {
            (
                sys::llama_get_memory(context.as_ptr()),
                sys::llama_n_ctx_seq(context.as_ptr()) as usize,
                sys::llama_n_batch(context.as_ptr()) as usize,
            )
        };
        // From here on the context is freed with its owner.
        let made = Context {
            context,
            memory,
            model,
            lengths: vec![0; sequences as usize],
            context_length,
            batch_limit,
            kv_type,
            arrays: Arrays::default(),
            has_logits: Vec::new(),
        };
        match memory.is_null() {
            true => Err(LoadError(
                "this model has no memory between tokens: it produces embeddings and cannot \
                 generate text"
                    .to_owned(),
            )),
            false => Ok(made),
        }
    }

    /// Returns how many tokens one sequence has room for.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Returns how many tokens one batch may have.
    pub fn batch_limit(&self) -> usize {
        self.batch_limit
    }

    /// Returns the type of keys and values.
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// Returns how many tokens of a sequence are in the cache.
    pub fn length(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Computes a batch; each entry goes to the end of its sequence. Stops early with
    /// [`DecodeError::Stopped`] soon after `should_stop` returns true; [`Context::length`] then
    /// returns what the sequences hold.
    pub fn decode(
        &mut self,
        batch: &Batch,
        should_stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), DecodeError> {
        self.has_logits.clear();
        self.fill_arrays(batch)?;
        let c_batch = sys::llama_batch {
            n_tokens: batch.len() as i32,
            token: self.arrays.tokens.as_mut_ptr(),
            embd: ptr::null_mut(),
            pos: self.arrays.positions.as_mut_ptr(),
            n_seq_id: self.arrays.sequence_counts.as_mut_ptr(),
            seq_id: self.arrays.sequence_pointers.as_mut_ptr(),
            logits: self.arrays.wants_logits.as_mut_ptr(),
        };
        let mut should_stop = should_stop;
        IS_STOPPING.store(false, Ordering::Relaxed);
        let context = self.context.as_ptr();
        // SAFETY: `fill_arrays` has checked every entry, and made the arrays as long as `n_tokens`.
        // The callback's data outlives the call, and the callback is taken back after it.
        let status = unsafe {
            let data = ptr::from_mut(&mut should_stop).cast();
            sys::llama_set_abort_callback(context, Some(forward_stop), data);
            let status = guarded(|| {
                let status = calls::llama_decode(context, c_batch);
                calls::llama_synchronize(context);
                status
            });
            sys::llama_set_abort_callback(context, None, ptr::null_mut());
            status
        };
        let status = status.unwrap_or_else(|thrown| {
            log::error!("cannot compute a batch: {thrown}");
            STATUS_THROWN
        });
        if status != 0 {
            self.measure_lengths(batch);
        }
        match status {
            0 => {
                for entry in batch.entries() {
                    self.lengths[entry.sequence] += 1;
                }
                self.has_logits
                    .extend(batch.entries().map(|entry| entry.wants_logits));
                Ok(())
            }
            1 => Err(DecodeError::Full),
            2 => Err(DecodeError::Stopped),
            _ => {
                let reason = take_first_error().unwrap_or_default();
                log::error!("llama.cpp cannot compute a batch (status {status}): {reason}");
                Err(DecodeError::Failed(status))
            }
        }
    }

    /// Returns the scores of all tokens after the entry at `index` of the last batch. They may be
    /// changed: only the caller reads them.
    pub fn logits(&mut self, index: usize) -> Option<&mut [f32]> {
        if !self.has_logits.get(index).copied().unwrap_or(false) {
            return None;
        }
        let context = self.context.as_ptr();
        // SAFETY: the entry has logits, as checked; they are one float for each token of the
        // vocabulary and stay in place until the next `decode`, which needs `&mut self`.
        unsafe {
            let row = told(guarded(|| {
                calls::llama_get_logits_ith(context, index as i32)
            }))?;
            (!row.is_null())
                .then(|| std::slice::from_raw_parts_mut(row, self.model.vocabulary_size))
        }
    }

    /// Chooses the token after the entry at `index`, and updates the chain with it.
    pub fn sample(&mut self, index: usize, chain: &mut Chain) -> Option<Token> {
        self.logits(index)?;
        let (chain, context) = (chain.chain.as_ptr(), self.context.as_ptr());
        // SAFETY: the entry has logits, as `logits` has found; the chain is whole.
        let token =
            guarded(|| unsafe { calls::llama_sampler_sample(chain, context, index as i32) });
        told(token).filter(|token| self.model.is_token(*token))
    }

    /// Removes a sequence's tokens from `length` on. A model whose memory cannot be cut loses all
    /// of them; [`Context::length`] shows it.
    pub fn truncate(&mut self, sequence: usize, length: usize) {
        if length >= self.lengths[sequence] {
            return;
        }
        let (memory, id) = (self.memory, sequence as sys::llama_seq_id);
        // SAFETY: the id is below the number of sequences (the index above has checked it).
        // Removing the whole of a sequence never fails.
        let is_cut = guarded(|| unsafe {
            calls::llama_memory_seq_rm(memory, id, length as sys::llama_pos, -1)
                || !calls::llama_memory_seq_rm(memory, id, -1, -1)
        });
        self.lengths[sequence] = match told(is_cut) {
            Some(true) => length,
            Some(false) => 0,
            None => self.measured_length(sequence),
        };
    }

    /// Returns a copy of the cache contents of a sequence.
    pub fn save(&mut self, sequence: usize) -> Option<Vec<u8>> {
        assert!(sequence < self.lengths.len(), "no such sequence");
        let id = sequence as sys::llama_seq_id;
        let context = self.context.as_ptr();
        // SAFETY: the id is in range.
        let size = guarded(|| unsafe { calls::llama_state_seq_get_size(context, id) });
        let mut state = vec![0_u8; told(size)?];
        let (data, room) = (state.as_mut_ptr(), state.len());
        // SAFETY: the id is in range, and the buffer as long as llama.cpp has asked for.
        let written =
            guarded(|| unsafe { calls::llama_state_seq_get_data(context, data, room, id) });
        (told(written)? == room && room > 0).then_some(state)
    }

    /// Replaces the contents of a sequence by `length` tokens that [`Context::save`] has copied. On
    /// failure the sequence is empty.
    pub fn restore(&mut self, sequence: usize, state: &[u8], length: usize) -> bool {
        self.truncate(sequence, 0);
        let (context, id) = (self.context.as_ptr(), sequence as sys::llama_seq_id);
        // SAFETY: the id is in range (`truncate` has indexed by it); the state comes from `save`,
        // with its length: of this context, or, verified, of one with the same settings.
        let read = guarded(|| unsafe {
            calls::llama_state_seq_set_data(context, state.as_ptr(), state.len(), id)
        });
        self.lengths[sequence] = self.measured_length(sequence);
        if told(read).unwrap_or(0) == 0 || self.lengths[sequence] != length {
            self.truncate(sequence, 0);
        }
        self.lengths[sequence] == length
    }

    /// Checks what llama.cpp would assert, and writes the batch in C's form.
    fn fill_arrays(&mut self, batch: &Batch) -> Result<(), DecodeError> {
        if batch.is_empty() || batch.len() > self.batch_limit {
            return Err(DecodeError::Refused(
                "the batch is empty or larger than the context accepts",
            ));
        }
        let arrays = &mut self.arrays;
        arrays.clear();
        let mut ends = self.lengths.clone();
        for entry in batch.entries() {
            let Some(end) = ends.get_mut(entry.sequence) else {
                return Err(DecodeError::Refused(
                    "the batch names a sequence that the context does not have",
                ));
            };
            if !self.model.is_token(entry.token) {
                return Err(DecodeError::Refused(
                    "the batch holds a token that the model does not have",
                ));
            }
            if *end >= self.context_length {
                return Err(DecodeError::Full);
            }
            arrays.tokens.push(entry.token);
            arrays.positions.push(*end as sys::llama_pos);
            arrays.sequence_counts.push(1);
            arrays.sequences.push(entry.sequence as sys::llama_seq_id);
            arrays.wants_logits.push(i8::from(entry.wants_logits));
            *end += 1;
        }
        if batch.entries().filter(|entry| entry.wants_logits).count() > self.lengths.len() {
            return Err(DecodeError::Refused(
                "the batch asks for more rows of logits than there are sequences",
            ));
        }
        // The vector of ids no longer moves.
        arrays
            .sequence_pointers
            .extend(arrays.sequences.iter_mut().map(ptr::from_mut));
        Ok(())
    }

    /// Reads the lengths of the sequences again after a batch that was not computed as a whole.
    fn measure_lengths(&mut self, batch: &Batch) {
        for entry in batch.entries() {
            if entry.sequence < self.lengths.len() {
                self.lengths[entry.sequence] = self.measured_length(entry.sequence);
            }
        }
    }

    fn measured_length(&self, sequence: usize) -> usize {
        let (memory, id) = (self.memory, sequence as sys::llama_seq_id);
        // SAFETY: the caller has checked the id; for an empty sequence the result is -1.
        let last = guarded(|| unsafe { calls::llama_memory_seq_pos_max(memory, id) });
        usize::try_from(told(last).unwrap_or(-1) + 1).unwrap_or(0)
    }
}

/// Replaces llama.cpp's status if it threw an exception. Its own values are above this one.
const STATUS_THROWN: i32 = i32::MIN;

/// Returns the result of a guarded call, and logs its exception.
fn told<T>(result: Result<T, Thrown>) -> Option<T> {
    result.inspect_err(|thrown| log::error!("{thrown}")).ok()
}

/// llama.cpp creates no context if the width of a head is not a multiple of the type's blocks.
/// `F16` suits every width.
fn with_suitable_type<T>(wanted: KvType, mut make: impl FnMut(KvType) -> Option<T>) -> Option<T> {
    let made = make(wanted);
    if made.is_some() || wanted == KvType::F16 {
        return made;
    }
    let made = make(KvType::F16);
    if made.is_some() {
        log::warn!("engine.kv_type does not fit the width of this model's heads; using f16");
    }
    made
}

fn ggml_type(kv_type: KvType) -> sys::ggml_type {
    match kv_type {
        KvType::F16 => sys::GGML_TYPE_F16,
        KvType::Q8_0 => sys::GGML_TYPE_Q8_0,
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: created by `new`, freed only here, before the model that `self` still holds.
        unsafe { sys::llama_free(self.context.as_ptr()) };
    }
}

impl Arrays {
    fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequence_counts.clear();
        self.sequences.clear();
        self.sequence_pointers.clear();
        self.wants_logits.clear();
    }
}

/// Called by llama.cpp after each operation of its graph.
unsafe extern "C" fn forward_stop(data: *mut c_void) -> bool {
    // SAFETY: `data` is the `should_stop` of `Context::decode`, which waits for this call.
    let should_stop = unsafe { *data.cast::<&(dyn Fn() -> bool + Sync)>() };
    let stops = should_stop();
    if stops {
        IS_STOPPING.store(true, Ordering::Relaxed);
    }
    stops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_does_not_suit_gives_way_to_one_that_always_does() {
        let only = |suitable: KvType| move |tried| (tried == suitable).then_some(tried);
        for wanted in [KvType::F16, KvType::Q8_0] {
            assert_eq!(with_suitable_type(wanted, only(wanted)), Some(wanted));
            assert_eq!(
                with_suitable_type(wanted, only(KvType::F16)),
                Some(KvType::F16)
            );
            assert_eq!(with_suitable_type(wanted, |_| None::<KvType>), None);
        }
    }
}
