//! The contents of one sequence, on their way to the disk.

/// A token's number in the model's vocabulary.
pub type Token = i32;

/// The use that an archive has for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Keep it.
    Copy,
    /// Perhaps keep it later: the room is used up now, or too much was written.
    Later,
    /// Nothing: its tokens are there, or they are few.
    Nothing,
}

#[derive(Debug)]
pub struct Copied {
    pub tenant: u64,
    pub tokens: Vec<Token>,
    pub state: Vec<u8>,
    /// The folder's epoch when the sequence was used last.
    pub epoch: u64,
}
