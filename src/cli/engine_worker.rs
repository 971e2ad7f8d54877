//! `autoglmd engine-worker`: runs in a child process of the daemon.
//!
//! `--prove FILE` tries a model before the daemon reports that it is ready.
//! [`crate::supervisor::prover`] has the daemon's side, and the reason for a separate process.
//!
//! Owns the child's command line and its limits.

use std::fs;
use std::path::PathBuf;

use clap::Args;

use crate::config;
use crate::console::exit::{self, Code};
use crate::console::{fail, note};
use crate::engine::llama;
use crate::limits::engine as engine_limits;
use crate::os::worker;
use crate::supervisor::prover::one_line;

/// The daemon's own child process; not for direct use.
#[derive(Args, Debug)]
pub struct EngineWorker {
    /// Load a model, render its template, compute some tokens; exit 0, or 69 with the reason.
    #[arg(long, value_name = "FILE")]
    prove: PathBuf,
    /// The type of the KV cache: f16, q8_0, or auto for that of the model's family.
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    kv_type: String,
    /// Layers on the GPU.
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu_layers: u32,
}

impl EngineWorker {
    pub fn run(self) -> Result<(), Code> {
        let kv_type = config::parse_word(&self.kv_type)
            .ok_or_else(|| fail(exit::USAGE, "unknown --kv-type; expected auto, f16 or q8_0"))?;
        let bytes = fs::metadata(&self.prove).map_or(0, |metadata| metadata.len());
        let for_bytes = bytes / engine_limits::PROOF_BYTES_PER_CPU_SECOND;
        worker::confine(engine_limits::PROOF_CPU_TIME.as_secs() + for_bytes)
            .map_err(|error| fail(exit::OS_ERROR, error))?;
        llama::prove(&self.prove, kv_type, self.gpu_layers).map_err(|reason| {
            note(one_line(&reason));
            exit::UNAVAILABLE
        })
    }
}
