//! How long compute threads spin before they sleep.
//!
//! llama.cpp's threads meet at a barrier after each operation of the model, some 500 times a token.
//! GNU OpenMP lets a thread spin there for milliseconds before it sleeps. While every thread has
//! a core that is the fastest way; but as soon as any other thread wants one of those cores, the
//! one that works waits for the one that spins, and the whole falls to a tenth or less. A short
//! spin costs nothing measurable on an idle machine and keeps most of the speed on a busy one;
//! `docs/benchmarks.md` has the figures.
//!
//! GNU OpenMP reads its settings once, when it is loaded, and that is before `main`: the only way
//! to set them from within is to begin again.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What decides how long threads spin. If the user has set one of them, it is decided.
const VARIABLES: [&str; 2] = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"];

/// Rounds of the spinning loop: some microseconds, about as long as the longest regular wait at
/// a barrier. By measurement between "never" and "always".
const SPIN_ROUNDS: &str = "1000";

/// Starts this program anew, in the same process, with the setting in its environment, unless there
/// is one. To be called before anything else that starts: descriptors and process id stay,
/// everything else is lost. Comes back with `Ok` if nothing was to be done.
pub fn ensure_short_spin() -> io::Result<()> {
    if is_decided(|name| std::env::var_os(name).is_some()) {
        return Ok(());
    }
    match begin_again() {
        Ok(never) => match never {},
        Err(error) => Err(error),
    }
}

fn is_decided(is_set: impl Fn(&str) -> bool) -> bool {
    VARIABLES.into_iter().any(is_set)
}

fn begin_again() -> io::Result<Infallible> {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let program = std::env::current_exe()?;
    let error = Command::new(&program)
        .arg0(name.as_deref().unwrap_or(OsStr::new("autoglmd")))
        .args(arguments)
        .env(VARIABLES[0], SPIN_ROUNDS)
        .exec();
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_has_set_is_left_alone() {
        assert!(!is_decided(|_| false));
        assert!(is_decided(|name| name == "GOMP_SPINCOUNT"));
        assert!(is_decided(|name| name == "OMP_WAIT_POLICY"));
    }
}
