//! The calls into llama.cpp that may throw, and the guard that they run in.
//!
//! The binding declares llama.cpp's functions as `extern "C"`: the compiler assumes that such a
//! call never unwinds, and an exception from it ends the process. Here the same functions are
//! declared as `extern "C-unwind"`, with the binding's own types, and [`guarded`] runs them under a
//! C++ `catch` (`guard.cpp`).
//!
//! Invariant: the other files of this folder call functions that allocate, index or compute only
//! from here and only inside [`guarded`]. From the binding they use directly only plain reads of a
//! field, callbacks and destructors; `tests/tidy/borders.rs` has the list.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;

use llama_cpp_sys_2 as sys;

use crate::limits::engine as limits;

/// Declares functions of llama.cpp as functions that may unwind.
macro_rules! throwing {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)+) => {
        unsafe extern "C-unwind" {
            $(pub fn $name($($argument: $type),*) $(-> $result)?;)+
        }
    };
}

throwing! {
    fn llama_model_load_from_file(
        path: *const c_char,
        parameters: sys::llama_model_params,
    ) -> *mut sys::llama_model;
    fn llama_model_quantize(
        from: *const c_char,
        to: *const c_char,
        parameters: *const sys::llama_model_quantize_params,
    ) -> u32;
    fn llama_model_desc(model: *const sys::llama_model, text: *mut c_char, room: usize) -> i32;
    fn llama_model_meta_val_str(
        model: *const sys::llama_model,
        key: *const c_char,
        text: *mut c_char,
        room: usize,
    ) -> i32;
    fn llama_model_chat_template(
        model: *const sys::llama_model,
        name: *const c_char,
    ) -> *const c_char;
    fn llama_vocab_get_text(vocabulary: *const sys::llama_vocab, token: i32) -> *const c_char;
    fn llama_vocab_get_attr(
        vocabulary: *const sys::llama_vocab,
        token: i32,
    ) -> sys::llama_token_attr;
    fn llama_vocab_is_eog(vocabulary: *const sys::llama_vocab, token: i32) -> bool;
    fn llama_tokenize(
        vocabulary: *const sys::llama_vocab,
        text: *const c_char,
        length: i32,
        tokens: *mut i32,
        room: i32,
        adds_special: bool,
        parses_special: bool,
    ) -> i32;
    fn llama_token_to_piece(
        vocabulary: *const sys::llama_vocab,
        token: i32,
        piece: *mut c_char,
        room: i32,
        lstrip: i32,
        special: bool,
    ) -> i32;
    fn llama_init_from_model(
        model: *mut sys::llama_model,
        parameters: sys::llama_context_params,
    ) -> *mut sys::llama_context;
    fn llama_decode(context: *mut sys::llama_context, batch: sys::llama_batch) -> i32;
    fn llama_synchronize(context: *mut sys::llama_context);
    fn llama_get_logits_ith(context: *mut sys::llama_context, index: i32) -> *mut f32;
    fn llama_memory_seq_rm(
        memory: sys::llama_memory_t,
        sequence: sys::llama_seq_id,
        from: sys::llama_pos,
        to: sys::llama_pos,
    ) -> bool;
    fn llama_memory_seq_pos_max(
        memory: sys::llama_memory_t,
        sequence: sys::llama_seq_id,
    ) -> sys::llama_pos;
    fn llama_state_seq_get_size(context: *mut sys::llama_context, id: sys::llama_seq_id) -> usize;
    fn llama_state_seq_get_data(
        context: *mut sys::llama_context,
        state: *mut u8,
        room: usize,
        id: sys::llama_seq_id,
    ) -> usize;
    fn llama_state_seq_set_data(
        context: *mut sys::llama_context,
        state: *const u8,
        length: usize,
        id: sys::llama_seq_id,
    ) -> usize;
    fn llama_print_system_info() -> *const c_char;
    fn llama_sampler_chain_init(
        parameters: sys::llama_sampler_chain_params,
    ) -> *mut sys::llama_sampler;
    fn llama_sampler_chain_add(chain: *mut sys::llama_sampler, sampler: *mut sys::llama_sampler);
    fn llama_sampler_init_penalties(
        vocabulary_size: i32,
        window: i32,
        repeat: f32,
        frequency: f32,
        presence: f32,
    ) -> *mut sys::llama_sampler;
    fn llama_sampler_init_top_k(k: i32) -> *mut sys::llama_sampler;
    fn llama_sampler_init_top_p(p: f32, keep: usize) -> *mut sys::llama_sampler;
    fn llama_sampler_init_min_p(p: f32, keep: usize) -> *mut sys::llama_sampler;
    fn llama_sampler_init_temp(temperature: f32) -> *mut sys::llama_sampler;
    fn llama_sampler_init_dist(seed: u32) -> *mut sys::llama_sampler;
    fn llama_sampler_init_greedy() -> *mut sys::llama_sampler;
    fn llama_sampler_accept(sampler: *mut sys::llama_sampler, token: i32);
    fn llama_sampler_sample(
        sampler: *mut sys::llama_sampler,
        context: *mut sys::llama_context,
        index: i32,
    ) -> i32;
}

unsafe extern "C" {
    fn autoglmd_guard(
        call: unsafe extern "C-unwind" fn(*mut c_void),
        data: *mut c_void,
        cause: *mut c_char,
        room: usize,
    ) -> c_int;
    fn autoglmd_report_end(report: unsafe extern "C" fn(*const c_char));
}

/// The text of an exception from llama.cpp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thrown(String);

impl Thrown {
    /// For a call that reports a lack of memory by null.
    pub fn no_memory() -> Thrown {
        Thrown("not enough memory".to_owned())
    }

    /// For a result that llama.cpp's own interface rules out.
    pub fn nonsense(what: &str) -> Thrown {
        Thrown(what.to_owned())
    }
}

impl fmt::Display for Thrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "llama.cpp failed: {}", self.0)
    }
}

impl std::error::Error for Thrown {}

/// Runs `call` and catches the exceptions of llama.cpp. `call` may contain calls into llama.cpp and
/// nothing that panics. After an exception, borrowed data is as llama.cpp left it.
pub fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, Thrown> {
    let mut task = Task {
        call: Some(call),
        result: None,
    };
    let mut cause: [c_char; limits::EXCEPTION_CAUSE_BYTES_MAX] =
        [0; limits::EXCEPTION_CAUSE_BYTES_MAX];
    let data = (&raw mut task).cast();
    // SAFETY: `data` is the task that `run_task` of the same types expects, and outlives the call;
    // the buffer comes with its length, and the guard ends its text with NUL.
    let (status, text) = unsafe {
        let run = task.runner();
        let status = autoglmd_guard(run, data, cause.as_mut_ptr(), cause.len());
        (status, CStr::from_ptr(cause.as_ptr()))
    };
    match (status, task.result) {
        (0, Some(result)) => Ok(result),
        _ => Err(Thrown(text.to_string_lossy().trim_end().to_owned())),
    }
}

/// Installs `report`, which learns why C++ code ends the process where nothing can catch.
pub fn report_end(report: unsafe extern "C" fn(*const c_char)) {
    // SAFETY: a function that lives as long as the process.
    unsafe { autoglmd_report_end(report) }
}

struct Task<F, T> {
    call: Option<F>,
    result: Option<T>,
}

impl<F: FnOnce() -> T, T> Task<F, T> {
    fn runner(&self) -> unsafe extern "C-unwind" fn(*mut c_void) {
        run_task::<F, T>
    }
}

unsafe extern "C-unwind" fn run_task<F: FnOnce() -> T, T>(data: *mut c_void) {
    // SAFETY: `guarded` passes a task of these types, and waits for this call.
    let task = unsafe { &mut *data.cast::<Task<F, T>>() };
    task.result = task.call.take().map(|call| call());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    unsafe extern "C-unwind" {
        /// `std::__throw_runtime_error` of libstdc++: throws an exception that any C++ caller may
        /// meet.
        #[link_name = "_ZSt21__throw_runtime_errorPKc"]
        fn throw_runtime_error(text: *const c_char) -> !;
    }

    /// Mutation: without the `catch` of `std::exception` in `guard.cpp` this process ends.
    #[test]
    fn exception_becomes_an_error_and_what_was_held_is_dropped() {
        let held = Rc::new(());
        let moved = held.clone();
        let thrown: Result<(), Thrown> = guarded(move || {
            let _moved = moved;
            // SAFETY: a text that ends in NUL.
            unsafe { throw_runtime_error(c"no such thing".as_ptr()) }
        });
        let error = thrown.unwrap_err();
        assert_eq!(error.to_string(), "llama.cpp failed: no such thing");
        assert_eq!(
            Rc::strong_count(&held),
            1,
            "unwinding has dropped the closure's own"
        );
    }

    #[test]
    fn long_message_is_cut() {
        let text =
            std::ffi::CString::new("x".repeat(2 * limits::EXCEPTION_CAUSE_BYTES_MAX)).unwrap();
        // SAFETY: a text that ends in NUL.
        let thrown: Result<(), Thrown> = guarded(|| unsafe { throw_runtime_error(text.as_ptr()) });
        let error = thrown.unwrap_err();
        assert!(error.to_string().len() < limits::EXCEPTION_CAUSE_BYTES_MAX + 32);
    }

    #[test]
    fn a_call_that_does_not_throw_returns_its_result() {
        assert_eq!(guarded(|| 7), Ok(7));
    }
}
