//! Keeps what the feature `portable` promises: a build for the building machine's own processor is
//! refused under it. A Cargo feature cannot take a compiler flag back, but it can insist.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_portable = std::env::var_os("CARGO_FEATURE_PORTABLE").is_some();
    let flags = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    if is_portable && flags.contains("target-cpu=native") {
        println!(
            "cargo::error=the feature `portable` needs the flags of the processors that it is for: \
             RUSTFLAGS=\"-C target-cpu=x86-64-v3\" cargo build --release --features portable"
        );
    }
}
