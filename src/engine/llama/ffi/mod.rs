//! llama.cpp behind safe types: the only folder of the engine that holds `unsafe`.
//!
//! llama.cpp asserts its preconditions by aborting the process, which would cut every connection.
//! So each argument is checked here before it is passed down, and code above this folder cannot
//! trip an assertion. It also throws C++ exceptions; each call that may do so runs in a guard that
//! turns them into errors. Must never call back into Rust code that can panic: a panic may not
//! cross C++ frames.
//!
//! * `library`: the library as a whole, its log and its assertions;
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
mod library;
mod model;
mod quantize;
mod tokenizer;

pub use chain::{Chain, has_penalties};
pub use context::{Context, ContextSettings};
use library::{IS_STOPPING, initialize, note_error, take_first_error};
pub use library::{LoadError, build};
pub use model::Model;
pub use quantize::optimize;

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
            unsafe { llama_cpp_sys_2::ggml_abort(c"model.cpp".as_ptr(), 7, c"injected".as_ptr()) };
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
