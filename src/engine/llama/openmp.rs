//! How long compute threads spin before they sleep.
//!
//! llama.cpp's threads meet at a barrier after each operation of the model, some 500 times per
//! token. GNU OpenMP lets a thread spin there for milliseconds before it sleeps. That is fastest
//! while every thread has its own core. But as soon as any other thread wants one of those cores,
//! working threads wait for spinning ones, and the speed falls to a tenth or less. A short spin
//! costs nothing measurable on an idle machine and keeps most of the speed on a busy one;
//! `docs/benchmarks.md` has the figures.
//!
//! GNU OpenMP reads its settings once, when it is loaded, which is before `main`. The only way to
//! set them from within the program is to execute it again.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The variables that control how long threads spin. If the user has set one of them, it is
/// respected.
const VARIABLES: [&str; 2] = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"];

/// Rounds of the spinning loop: some microseconds, about as long as the longest regular wait at a
/// barrier. Measured to lie between "never" and "always".
const SPIN_ROUNDS: &str = "1000";

/// Executes this program again, in the same process, with the setting in its environment, unless
/// there is one already. Must be called before anything else starts: descriptors and the process id
/// survive, everything else is lost. Returns `Ok` if there was nothing to do.
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
