//! The structure of the code, kept by tests: one rule per file under `tests/tidy/`.
//!
//! Where the code still breaks a rule, the rule has a list of exceptions. It can only shrink: an
//! exception that is no longer needed fails the test.
//!
//! This file uses only `std`, so that plain `rustc --edition=2024 --test` compiles it too.

#[path = "tidy/source.rs"]
mod source;

#[path = "tidy/paths.rs"]
mod paths;

#[path = "tidy/rows.rs"]
mod rows;

#[path = "tidy/circles.rs"]
mod circles;

#[path = "tidy/borders.rs"]
mod borders;

#[path = "tidy/sizes.rs"]
mod sizes;

#[path = "tidy/bounds.rs"]
mod bounds;

#[path = "tidy/callers.rs"]
mod callers;

#[path = "tidy/captions.rs"]
mod captions;

#[path = "tidy/tree.rs"]
mod tree;

#[path = "tidy/docs.rs"]
mod docs;

#[path = "tidy/prose.rs"]
mod prose;
