//! The contents of one sequence, on their way to the disk.

/// A token's number in the model's vocabulary.
pub type Token = i32;

#[derive(Debug)]
pub struct Copied {
    pub tenant: u64,
    pub tokens: Vec<Token>,
    pub state: Vec<u8>,
    /// The folder's epoch when the sequence was used last.
    pub epoch: u64,
}
