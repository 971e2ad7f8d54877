//! Makes the Protobuf messages' code and descriptors out of `src/proto/`, without `protoc`;
//! compiles the guard around llama.cpp and names its version; and keeps what the feature `portable` promises.

use std::path::{Path, PathBuf};

use protox::prost::Message as _;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    refuse_native_build_under_portable();
    compile_messages();
    compile_guard();
    name_llama();
}

/// A build for the building machine's own processor is refused under `portable`. A Cargo feature
/// cannot take a compiler flag back, but it can insist.
fn refuse_native_build_under_portable() {
    let is_portable = std::env::var_os("CARGO_FEATURE_PORTABLE").is_some();
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if is_portable && flags.contains("target-cpu=native") {
        println!(
            "cargo::error=the feature `portable` needs the flags of the processors that it is for: \
             RUSTFLAGS=\"-C target-cpu=x86-64-v3\" cargo build --release --features portable"
        );
    }
}

/// What reflection shows, and what code is made of.
const FILES: &[&str] = &[
    "autoglm.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
    "grpc/health/v1/health.proto",
    "grpc/reflection/v1/reflection.proto",
    "grpc/reflection/v1alpha/reflection.proto",
    "jobs.proto",
];

/// The messages of v1alpha are those of v1, byte for byte: one code reads both.
const WITHOUT_CODE: &str = "grpc.reflection.v1alpha";

fn compile_messages() {
    let folder = Path::new("src/proto");
    for file in FILES {
        println!("cargo::rerun-if-changed={}", folder.join(file).display());
    }
    let mut descriptors = match protox::compile(FILES, [folder]) {
        Ok(descriptors) => descriptors,
        Err(error) => {
            println!("cargo::error=src/proto: {error:?}");
            return;
        }
    };
    for file in &mut descriptors.file {
        // Comments are for readers of the sources; reflection's clients look at names.
        file.source_code_info = None;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())
        .expect("cargo made the folder");
    descriptors
        .file
        .retain(|file| file.package() != WITHOUT_CODE);
    prost_build::Config::new()
        .default_package_filename("autoglm")
        .compile_fds(descriptors)
        .expect("code can be made of what the compiler took");
}

/// The few lines of C++ that catch what llama.cpp throws. They need no header of llama.cpp.
fn compile_guard() {
    const GUARD: &str = "src/engine/llama/ffi/guard.cpp";
    println!("cargo::rerun-if-changed={GUARD}");
    if std::env::var_os("CARGO_FEATURE_LLAMA").is_none() {
        return;
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(true)
        .file(GUARD)
        .compile("autoglmd_guard");
}

/// Names the version of llama.cpp, for files that only the same one may read. The crate's version
/// stands for it: the crate contains the sources.
fn name_llama() {
    const LOCK: &str = "Cargo.lock";
    println!("cargo::rerun-if-changed={LOCK}");
    if std::env::var_os("CARGO_FEATURE_LLAMA").is_none() {
        return;
    }
    let lock = std::fs::read_to_string(LOCK).unwrap_or_default();
    let mut lines = lock
        .lines()
        .skip_while(|line| *line != "name = \"llama-cpp-sys-2\"");
    let version = lines.find_map(|line| line.strip_prefix("version = "));
    match version {
        Some(version) => {
            let version = version.trim_matches('"');
            println!("cargo::rustc-env=AUTOGLMD_LLAMA_BUILD=llama-cpp-sys-2 {version}");
        }
        None => println!("cargo::error={LOCK} does not name llama-cpp-sys-2"),
    }
}
