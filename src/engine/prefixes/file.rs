//! The format of a file, and its verification.
//!
//! ```text
//!   magic 8 │ version 4 │ bytes of the head 4 │ bytes of the state 8 │ number of tokens 4
//!   bytes of the origin 4 │ origin │ tenant 32 │ tokens, 4 each
//!   checksum of the state 32 │ checksum of the head 32 │ state
//! ```
//!
//! Numbers are little-endian. Both checksums are BLAKE3, keyed with the folder's secret: a file
//! from another folder fails like a damaged one. The head's checksum covers all before it, and so
//! the state's checksum, too.
//!
//! Must never return a byte of a state before the whole file was verified.

use std::io::{self, Read, Write};

use super::copied::Token;
use super::names::{Secret, TenantDigest};
use super::origin::Origin;
use crate::limits::prefixes as limits;

const MAGIC: [u8; 8] = *b"AGLMKV\r\n";
const VERSION: u32 = 1;
const DIGEST_BYTES: usize = 32;
/// From the magic to the length of the origin.
const FIXED_BYTES: usize = 32;

/// Why a file is not used.
#[derive(Debug)]
pub enum Fault {
    /// It is truncated, or its bytes are not those that were written.
    Damaged(&'static str),
    /// It is whole, but from another engine, another version, or another tenant.
    Foreign(&'static str),
    /// It cannot be read.
    Disk(io::Error),
    /// The rest of it is not wanted any more.
    Cancelled,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Fault::Damaged("it is truncated"),
            _ => Fault::Disk(error),
        }
    }
}

/// The verified head of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub tenant: TenantDigest,
    pub tokens: Vec<Token>,
    pub state_bytes: u64,
    state_digest: [u8; DIGEST_BYTES],
}

impl Head {
    /// Makes the head of a new file.
    pub fn new(secret: &Secret, tenant: TenantDigest, tokens: Vec<Token>, state: &[u8]) -> Head {
        Head {
            tenant,
            tokens,
            state_bytes: state.len() as u64,
            state_digest: *secret.hasher().update(state).finalize().as_bytes(),
        }
    }

    /// Returns the head as it stands in the file.
    pub fn encode(&self, secret: &Secret, origin: &Origin) -> Vec<u8> {
        let origin = origin.text();
        let head_bytes = head_bytes(origin.len(), self.tokens.len());
        let mut bytes = Vec::with_capacity(head_bytes);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((head_bytes as u32).to_le_bytes());
        bytes.extend(self.state_bytes.to_le_bytes());
        bytes.extend((self.tokens.len() as u32).to_le_bytes());
        bytes.extend((origin.len() as u32).to_le_bytes());
        bytes.extend(origin.as_bytes());
        bytes.extend(self.tenant.0);
        for token in &self.tokens {
            bytes.extend(token.to_le_bytes());
        }
        bytes.extend(self.state_digest);
        let digest = secret.hasher().update(&bytes).finalize();
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// Reads and verifies the head of a file with `file_bytes`.
    pub fn read(
        file: &mut impl Read,
        file_bytes: u64,
        secret: &Secret,
        origin: &Origin,
    ) -> Result<Head, Fault> {
        let mut fixed = [0; FIXED_BYTES];
        file.read_exact(&mut fixed)?;
        let mut fields = Fields(&fixed);
        if fields.take::<8>() != MAGIC {
            return Err(Fault::Damaged("it does not begin as a prefix does"));
        }
        if fields.u32() != VERSION {
            return Err(Fault::Foreign("its format has another version"));
        }
        let (told_bytes, state_bytes) = (fields.u32() as usize, fields.u64());
        let (tokens, origin_bytes) = (fields.u32() as usize, fields.u32() as usize);
        let is_sane = tokens <= limits::TOKENS_MAX
            && origin_bytes <= limits::ORIGIN_BYTES_MAX
            && told_bytes == head_bytes(origin_bytes, tokens)
            && (told_bytes as u64).checked_add(state_bytes) == Some(file_bytes);
        if !is_sane {
            return Err(Fault::Damaged("its lengths do not fit together"));
        }
        let mut head = fixed.to_vec();
        head.resize(told_bytes, 0);
        file.read_exact(&mut head[FIXED_BYTES..])?;
        let (covered, digest) = head.split_at(told_bytes - DIGEST_BYTES);
        if secret.hasher().update(covered).finalize() != digest_of(digest) {
            return Err(Fault::Damaged("the checksum of its head is wrong"));
        }
        let (its_origin, rest) = covered[FIXED_BYTES..].split_at(origin_bytes);
        if its_origin != origin.text().as_bytes() {
            return Err(Fault::Foreign("another engine has computed it"));
        }
        let mut fields = Fields(rest);
        Ok(Head {
            tenant: TenantDigest(fields.take()),
            tokens: (0..tokens).map(|_| fields.u32() as Token).collect(),
            state_bytes,
            state_digest: fields.take(),
        })
    }

    /// Reads and verifies the state behind the head. Ends early once `is_wanted` returns false.
    pub fn read_state(
        &self,
        file: &mut impl Read,
        secret: &Secret,
        is_wanted: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>, Fault> {
        let mut state = vec![0; self.state_bytes as usize];
        let mut hasher = secret.hasher();
        for piece in state.chunks_mut(limits::PIECE_BYTES) {
            if !is_wanted() {
                return Err(Fault::Cancelled);
            }
            file.read_exact(piece)?;
            hasher.update(piece);
        }
        match hasher.finalize() == digest_of(&self.state_digest) {
            true => Ok(state),
            false => Err(Fault::Damaged("the checksum of its state is wrong")),
        }
    }

    /// Returns the bytes of the whole file.
    pub fn file_bytes(&self, origin: &Origin) -> u64 {
        head_bytes(origin.text().len(), self.tokens.len()) as u64 + self.state_bytes
    }
}

/// Writes head and state in pieces. `may_go_on` is called with the bytes of each piece; once it
/// returns false the file stays unfinished. Does not wait for the disk: the checksums show what a
/// loss of power has left of a file.
pub fn write(
    file: &mut impl Write,
    head: &[u8],
    state: &[u8],
    may_go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<(), Fault> {
    file.write_all(head)?;
    for piece in state.chunks(limits::PIECE_BYTES) {
        if !may_go_on(piece.len()) {
            return Err(Fault::Cancelled);
        }
        file.write_all(piece)?;
    }
    Ok(())
}

fn head_bytes(origin_bytes: usize, tokens: usize) -> usize {
    FIXED_BYTES + origin_bytes + DIGEST_BYTES + tokens * size_of::<Token>() + 2 * DIGEST_BYTES
}

/// Wraps a digest; comparing two of these takes the same time wherever they differ.
fn digest_of(bytes: &[u8]) -> blake3::Hash {
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(bytes);
    blake3::Hash::from_bytes(digest)
}

/// Reads numbers from bytes whose length was checked.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        let (first, rest) = self.0.split_at(N);
        field.copy_from_slice(first);
        self.0 = rest;
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use super::super::origin::tests::origin;
    use super::*;

    const SECRET: &[u8; 32] = &[7; 32];

    fn secret() -> Secret {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), SECRET).unwrap();
        Secret::read(folder.path()).unwrap().unwrap()
    }

    fn written(state: &[u8]) -> Vec<u8> {
        let secret = secret();
        let head = Head::new(&secret, secret.tenant(7), vec![3, -1, 70_000], state);
        let mut bytes = head.encode(&secret, &origin());
        assert_eq!(
            (bytes.len() + state.len()) as u64,
            head.file_bytes(&origin())
        );
        bytes.extend(state);
        bytes
    }

    fn read(bytes: &[u8], origin: &Origin) -> Result<(Head, Vec<u8>), Fault> {
        let mut file = bytes;
        let head = Head::read(&mut file, bytes.len() as u64, &secret(), origin)?;
        let state = head.read_state(&mut file, &secret(), &|| true)?;
        Ok((head, state))
    }

    #[test]
    fn file_is_read_as_it_was_written() {
        for state in [&b""[..], b"state", &vec![9; limits::PIECE_BYTES + 1]] {
            let (head, found) = read(&written(state), &origin()).unwrap();
            assert_eq!(head.tokens, [3, -1, 70_000]);
            assert_eq!(head.tenant, secret().tenant(7));
            assert_eq!(found, state);
        }
    }

    /// Mutations that this test catches: either checksum not compared; a head whose checksum does
    /// not cover the state's; lengths that are not compared with the file's.
    #[test]
    fn one_flipped_bit_or_missing_byte_anywhere_is_a_fault() {
        let whole = written(b"state");
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            let fault = read(&flipped, &origin()).expect_err("a flipped bit");
            // The version stands before the checksum, so that a later one is recognised.
            let is_version = (8..12).contains(&at);
            match fault {
                Fault::Damaged(_) => assert!(!is_version),
                Fault::Foreign(_) => assert!(is_version),
                other => panic!("{other:?} at {at}"),
            }
            let truncated = read(&whole[..at], &origin()).expect_err("a truncated file");
            assert!(matches!(truncated, Fault::Damaged(_)), "{truncated:?}");
        }
        let longer = [&whole[..], b"x"].concat();
        assert!(matches!(read(&longer, &origin()), Err(Fault::Damaged(_))));
    }

    /// Mutations that this test catches: no comparison with the own origin; a checksum without key.
    #[test]
    fn whole_file_of_another_engine_or_folder_is_a_fault() {
        let whole = written(b"state");
        let other = Origin {
            kv_type: "q8_0",
            ..origin()
        };
        assert!(matches!(read(&whole, &other), Err(Fault::Foreign(_))));
        let folder = tempfile::tempdir().unwrap();
        let other = Secret::open(folder.path()).unwrap();
        let head = Head::read(&mut &whole[..], whole.len() as u64, &other, &origin());
        assert!(matches!(head, Err(Fault::Damaged(_))), "{head:?}");
    }

    /// Mutation that this test catches: a length that is believed before it is checked.
    #[test]
    fn lengths_of_a_hostile_file_take_no_memory() {
        let mut bytes = written(b"state");
        for field in [12..16, 16..24, 24..28, 28..32] {
            let good = bytes.clone();
            bytes[field].fill(0xff);
            assert!(matches!(read(&bytes, &origin()), Err(Fault::Damaged(_))));
            bytes = good;
        }
    }

    #[test]
    fn reading_ends_when_the_state_is_not_wanted_any_more() {
        let whole = written(&vec![1; 2 * limits::PIECE_BYTES]);
        let mut file = &whole[..];
        let head = Head::read(&mut file, whole.len() as u64, &secret(), &origin()).unwrap();
        let state = head.read_state(&mut file, &secret(), &|| false);
        assert!(matches!(state, Err(Fault::Cancelled)));
        assert_eq!(file.len(), 2 * limits::PIECE_BYTES, "no byte was read");
    }
}
