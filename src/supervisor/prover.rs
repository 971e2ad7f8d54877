//! Tries a model in a child process before the daemon reports that it is ready.
//!
//! A damaged or malicious file can crash any process that loads it: llama.cpp asserts, divides by
//! zero, or recurses without end. Here that process is a child
//! (`autoglmd engine-worker --prove FILE`), and its end becomes one line for the operator.
//!
//! Owns the child's command line as the daemon writes it, and the reading of its last lines.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::config::word;
use crate::console::{exit, printable};
use crate::engine::llama::KvType;
use crate::limits::engine as engine_limits;
use crate::os::wait::wait_readable;

/// Lets a child process try the model. Ends early, with an error that is not used, once `is_wanted`
/// returns false. The error is one line for people.
pub fn prove(
    path: &Path,
    kv_type: Option<KvType>,
    gpu_layers: u32,
    is_wanted: &dyn Fn() -> bool,
) -> Result<(), String> {
    let name = path.display();
    let mut child = Command::new("/proc/self/exe")
        .arg("engine-worker")
        .args(["--kv-type", word(kv_type)])
        .args(["--gpu-layers", &gpu_layers.to_string()])
        .arg("--prove")
        .arg(path)
        // A program reads its panics.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{name}: cannot start a process to test the model: {error}"))?;
    let said = last_words(&mut child, is_wanted);
    let status = child.wait().map_err(|error| {
        format!("{name}: cannot wait for the process that tests the model: {error}")
    })?;
    judge(path, status, &said)
}

/// Returns the useful part of the child's output up to its end.
fn last_words(child: &mut Child, is_wanted: &dyn Fn() -> bool) -> String {
    let Some(mut stderr) = child.stderr.take() else {
        return String::new();
    };
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let is_ready = wait_readable([stderr.as_fd()], Some(engine_limits::PROOF_POLL_INTERVAL));
        if !is_wanted() {
            // It may have ended by itself.
            let _ = child.kill();
            break;
        }
        if let Ok([false]) = is_ready {
            continue;
        }
        match stderr.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => said.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
        let beyond = said
            .len()
            .saturating_sub(engine_limits::PROOF_LAST_WORDS_BYTES_MAX);
        said.drain(..beyond);
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn judge(path: &Path, status: ExitStatus, said: &str) -> Result<(), String> {
    if status.success() {
        return Ok(());
    }
    let cause = cause(said);
    if status.code() == Some(i32::from(exit::UNAVAILABLE.0)) {
        return Err(cause.unwrap_or_else(|| path.display().to_string()));
    }
    let end = match status.signal() {
        Some(libc::SIGKILL) => "was killed (is there enough memory?)".to_owned(),
        Some(libc::SIGXCPU) => "took too much processor time".to_owned(),
        Some(signal) => format!("was ended by {}", signal_name(signal)),
        None => format!("ended with {status}"),
    };
    let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    Err(format!(
        "{}: this model cannot be used; the process that tested it {end}{cause}",
        path.display()
    ))
}

/// Returns the most useful line: an assertion's, otherwise the last one that is not advice.
fn cause(said: &str) -> Option<String> {
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut lines = lines.filter(|line| !line.starts_with("note:"));
    let assertion = lines.clone().find(|line| line.contains("ends the process"));
    assertion.or_else(|| lines.next_back()).map(one_line)
}

/// Removes line ends and control characters, and cuts the text to one line's length.
pub fn one_line(text: &str) -> String {
    let text = printable(&text.replace(['\n', '\t'], " "));
    match text
        .char_indices()
        .nth(engine_limits::PROOF_CAUSE_BYTES_MAX / 4)
    {
        Some((end, _)) if text.len() > engine_limits::PROOF_CAUSE_BYTES_MAX => {
            format!("{}…", &text[..end])
        }
        _ => text,
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: i32, said: &str) -> String {
        judge(Path::new("a.gguf"), ExitStatus::from_raw(status), said).unwrap_err()
    }

    #[test]
    fn end_of_the_child_becomes_one_line_with_its_cause() {
        let path = Path::new("a.gguf");
        assert_eq!(judge(path, ExitStatus::from_raw(0), "chatter"), Ok(()));
        assert_eq!(
            judged(69 << 8, "chatter\na.gguf: block_count is 0\n"),
            "a.gguf: block_count is 0"
        );
        let said = "x\nllama.cpp ends the process: assertion failed: a.cpp:1: GGML_ASSERT(b)\ny\n";
        let line = judged(libc::SIGABRT, said);
        assert!(
            line.starts_with("a.gguf: ") && line.contains("ended by SIGABRT"),
            "{line}"
        );
        assert!(line.ends_with("GGML_ASSERT(b)"), "{line}");
        let panicked = "thread 'main' panicked at x.rs:1:\nno such thing\nnote: run with it\n";
        assert!(judged(101 << 8, panicked).ends_with("exit status: 101: no such thing"));
        assert!(judged(libc::SIGKILL, "").contains("enough memory"));
        assert!(judged(libc::SIGFPE, "").ends_with("ended by SIGFPE"));
    }

    #[test]
    fn a_line_is_one_and_no_terminal_obeys_it() {
        assert_eq!(one_line("a\nb\x1b[2J\tc"), "a b[2J c");
        assert!(one_line(&"中".repeat(9999)).len() <= engine_limits::PROOF_CAUSE_BYTES_MAX);
    }
}
