//! The library as a whole: its start, its log, its failed assertions, and the errors of loading.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use llama_cpp_sys_2 as sys;

use super::calls;

/// Whether errors that llama.cpp reports now follow from a stop that we asked for.
pub(super) static IS_STOPPING: AtomicBool = AtomicBool::new(false);

/// Prepares the library once per process: its log lines and failed assertions go to our log.
pub(super) fn initialize() {
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

/// Returns the version of llama.cpp, and the processor's instructions that it uses.
pub fn build() -> String {
    // SAFETY: the library keeps the text; this is called by one thread at a time, like loading.
    let information = calls::guarded(|| unsafe {
        let text = calls::llama_print_system_info();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    });
    let information = information.ok().flatten().unwrap_or_default();
    format!("{}; {information}", env!("AUTOGLMD_LLAMA_BUILD"))
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

pub(super) fn note_error(line: &str) {
    // A text that is replaced as a whole: it is never half written.
    let mut first = FIRST_ERROR.lock().unwrap_or_else(PoisonError::into_inner);
    if first.is_empty() {
        line.clone_into(&mut first);
    }
}

/// Takes llama.cpp's error about the present failure.
pub(super) fn take_first_error() -> Option<String> {
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
    pub(super) fn with_reason(what: fmt::Arguments<'_>) -> LoadError {
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
