//! Converts weights to another type, from one file to another.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use llama_cpp_sys_2 as sys;

use super::calls::{self, guarded};
use super::{initialize, take_first_error};

/// Writes the GGUF model in `from` to `to` with its weights as `q8_0`. Blocks for about a second
/// per 100 MB, with all cores at work. The error is for people; `to` may then be incomplete.
pub fn optimize(from: &Path, to: &Path) -> Result<(), String> {
    initialize();
    let c_path = |path: &Path| {
        CString::new(path.as_os_str().as_bytes())
            .map_err(|_| format!("{}: a path cannot hold a NUL byte", path.display()))
    };
    let (from, to) = (c_path(from)?, c_path(to)?);
    // SAFETY: a plain struct of defaults.
    let mut parameters = unsafe { sys::llama_model_quantize_default_params() };
    parameters.ftype = sys::LLAMA_FTYPE_MOSTLY_Q8_0;
    // Quantized weights too: eight bits represent the remaining four closely enough.
    parameters.allow_requantize = true;
    // Forget errors about an earlier file.
    let _ = take_first_error();
    // SAFETY: both paths end in NUL and live through the call.
    let quantize = || unsafe {
        calls::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const parameters)
    };
    match guarded(quantize) {
        Ok(0) => Ok(()),
        Ok(_) => Err(refusal(take_first_error().as_deref())),
        Err(thrown) => Err(refusal(Some(&thrown.to_string()))),
    }
}

fn refusal(cause: Option<&str>) -> String {
    let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
    format!(
        "llama.cpp cannot convert this file{cause}; check it with `autoglmd model verify`, and \
         check that the disk has free space"
    )
}
