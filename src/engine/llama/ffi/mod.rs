//! llama.cpp behind safe types: the only folder of the engine that holds `unsafe`.
//!
//! llama.cpp asserts its preconditions by aborting the process, which would cut every connection.
//! So each argument is checked here before it is passed down, and code above this folder cannot
//! trip an assertion. It also throws C++ exceptions; each call that may do so runs in a guard that
//! turns them into errors. Must never call back into Rust code that can panic: a panic may not
//! cross C++ frames.
//!
//! * this file: the library as a whole, its log and its assertions;
//! * `calls`: the functions that may throw, and the guard;
//! * `model`: weights and vocabulary;
//! * `tokenizer`: text into tokens, on a stack that is large enough;
//! * `context`: the KV cache, and computing with it;
//! * `chain`: samplers;
//! * `quantize`: a file with its weights in another type.
//!
//! Invariant: a model outlives its contexts and chains, which hold it by `Arc`.

mod calls;
mod chain;
mod context;
mod model;
mod quantize;
mod tokenizer;

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use llama_cpp_sys_2 as sys;

pub use chain::{Chain, has_penalties};
pub use context::{Context, ContextSettings};
pub use model::Model;
pub use quantize::optimize;

/// Whether errors that llama.cpp reports now follow from a stop that we asked for.
static IS_STOPPING: AtomicBool = AtomicBool::new(false);

/// Prepares the library once per process: its log lines and failed assertions go to our log.
fn initialize() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: both callbacks are `extern "C"`, never panic, and live as long as the process.
        // With an abort callback in place llama.cpp starts no debugger for a backtrace.
        unsafe {
            sys::llama_log_set(Some(forward_log), ptr::null_mut());
            sys::ggml_set_abort_callback(Some(report_abort));
            sys::llama_backend_init();
        }
        calls::report_end(report_exception);
    });
}

/// Passes one line of llama.cpp's log on, at debug level: it is for people who debug the model. An
/// error also becomes the reason in a message of ours.
unsafe extern "C" fn forward_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a string that ends in NUL and stays valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let line = text.trim_end();
    if line.is_empty() || line == "." {
        return;
    }
    if level == sys::GGML_LOG_LEVEL_ERROR && !IS_STOPPING.load(Ordering::Relaxed) {
        note_error(line);
    }
    log::debug!(target: "llama", "{line}");
}

/// The first error that llama.cpp has logged about a failure: it names the cause, while later lines
/// only name the consequences. The functions themselves only return null.
static FIRST_ERROR: Mutex<String> = Mutex::new(String::new());

fn note_error(line: &str) {
    // A text that is replaced as a whole: it is never half written.
    let mut first = FIRST_ERROR.lock().unwrap_or_else(PoisonError::into_inner);
    if first.is_empty() {
        line.clone_into(&mut first);
    }
}

/// Takes llama.cpp's error about the present failure.
fn take_first_error() -> Option<String> {
    let mut first = FIRST_ERROR.lock().unwrap_or_else(PoisonError::into_inner);
    Some(std::mem::take(&mut *first)).filter(|text| !text.is_empty())
}

/// Reports which assertion failed; the process ends right after.
unsafe extern "C" fn report_abort(message: *const c_char) {
    // SAFETY: as in `forward_log`.
    report_last_words("assertion failed", unsafe { CStr::from_ptr(message) });
}

/// Reports an exception that could not be caught; the process ends right after.
unsafe extern "C" fn report_exception(message: *const c_char) {
    // SAFETY: as in `forward_log`.
    report_last_words("exception", unsafe { CStr::from_ptr(message) });
}

/// Writes one line, to the log if there is one, otherwise to stderr, where operators look first.
fn report_last_words(what: &str, message: &CStr) {
    let message = message.to_string_lossy();
    let message = message.trim_end();
    if log::log_enabled!(target: "llama", log::Level::Error) {
        log::error!(target: "llama", "llama.cpp ends the process: {what}: {message}");
        log::logger().flush();
    } else {
        eprintln!("llama.cpp ends the process: {what}: {message}");
    }
}

/// Why a model or a context could not be created. For people, with the way out.
#[derive(Debug)]
pub struct LoadError(pub String);

impl LoadError {
    /// Adds llama.cpp's first error, for a call that only returns null.
    fn with_reason(what: fmt::Arguments<'_>) -> LoadError {
        match take_first_error() {
            Some(cause) => LoadError(format!("{what}: {cause}")),
            None => LoadError(what.to_string()),
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LoadError {}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The test below runs this in its own process: an assertion that fails in llama.cpp.
    const ABORTS: &str = "AUTOGLMD_TEST_ABORTS";

    /// Mutation: without `ggml_set_abort_callback` there are the lines of a debugger's backtrace.
    #[test]
    fn an_assertion_is_reported_in_one_line_before_the_process_ends() {
        if std::env::var_os(ABORTS).is_some() {
            initialize();
            // SAFETY: texts that end in NUL; the format takes no argument.
            unsafe { sys::ggml_abort(c"model.cpp".as_ptr(), 7, c"injected".as_ptr()) };
        }
        let name = "ffi::tests::an_assertion_is_reported_in_one_line_before_the_process_ends";
        let output = Command::new(std::env::current_exe().expect("this test"))
            .args(["--nocapture", name])
            .env(ABORTS, "1")
            .output()
            .expect("this test runs again");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().collect();
        let expected = "llama.cpp ends the process: assertion failed: model.cpp:7: injected";
        assert_eq!(lines, [expected]);
    }
}
