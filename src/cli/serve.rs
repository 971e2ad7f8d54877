//! `autoglmd serve`: reads the configuration, and leaves the rest to the supervisor.

use crate::config::{self, Sources};
use crate::console::exit::{self, Code};
use crate::console::note;
use crate::supervisor;

/// Runs the daemon until it is asked to stop.
pub fn run(sources: &Sources) -> Code {
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(errors) => {
            note(errors);
            return exit::CONFIG;
        }
    };
    match supervisor::start(sources, loaded) {
        Ok(daemon) => daemon.supervise(),
        Err(failure) => {
            log::logger().flush();
            note(format_args!("autoglmd cannot start: {failure}"));
            failure.code
        }
    }
}
