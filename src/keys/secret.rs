//! The text of an API key and its hash, and the public id of a key.
//!
//! Owns the form of both. Must never keep a text longer than until it has been shown.

use std::fmt;

use crate::limits::keys as limits;

/// The start of every key, by which secret scanners and people recognise one.
pub const KEY_PREFIX: &str = "agk_";

/// The start of every key's public name.
pub const KEY_ID_PREFIX: &str = "key_";

/// The text of a new key, between its creation and the one time that it is shown. Deliberately
/// neither `Clone` nor printed by `Debug`: the only way out is [`Secret::reveal`].
pub struct Secret(String);

impl Secret {
    /// Takes 32 bytes from the kernel's generator.
    pub fn random() -> Result<Secret, getrandom::Error> {
        let mut bytes = [0; limits::RANDOM_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Secret::from_bytes(&bytes))
    }

    pub fn from_bytes(bytes: &[u8; limits::RANDOM_BYTES]) -> Secret {
        let mut text = String::with_capacity(limits::TEXT_BYTES);
        text.push_str(KEY_PREFIX);
        push_base64url(bytes, &mut text);
        debug_assert_eq!(text.len(), limits::TEXT_BYTES);
        Secret(text)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub fn hash(&self) -> [u8; 32] {
        hash(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Returns a new public name for a key. It has few bits: it must be unique in a store, not secret.
pub fn random_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; limits::ID_RANDOM_BYTES];
    getrandom::fill(&mut bytes)?;
    let mut id = String::from(KEY_ID_PREFIX);
    for byte in bytes {
        id.push(char::from(HEX[usize::from(byte >> 4)]));
        id.push(char::from(HEX[usize::from(byte & 0xf)]));
    }
    Ok(id)
}

/// Returns whether a text has the form of a key's public name.
pub fn is_id(text: &str) -> bool {
    let digits = text.strip_prefix(KEY_ID_PREFIX).unwrap_or_default();
    digits.len() == 2 * limits::ID_RANDOM_BYTES && digits.bytes().all(|digit| HEX.contains(&digit))
}

const HEX: &[u8; 16] = b"0123456789abcdef";

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Returns the BLAKE3 hash of a text.
pub fn hash(text: &str) -> [u8; 32] {
    *blake3::hash(text.as_bytes()).as_bytes()
}

/// Encodes by RFC 4648, section 5, without padding: three bytes become four characters, one or two
/// left over become two or three.
fn push_base64url(bytes: &[u8], text: &mut String) {
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(group);
        for place in 0..=chunk.len() {
            let index = (bits >> (18 - 6 * place)) & 0x3f;
            text.push(char::from(BASE64URL[index as usize]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_that_of_rfc_4648() {
        let cases: [(&[u8], &str); 8] = [
            (b"", ""),
            (b"f", "Zg"),
            (b"fo", "Zm8"),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg"),
            (b"fooba", "Zm9vYmE"),
            (b"foobar", "Zm9vYmFy"),
            (b"\xff\xef\xfe", "_-_-"),
        ];
        for (bytes, expected) in cases {
            let mut text = String::new();
            push_base64url(bytes, &mut text);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn two_secrets_differ_and_have_the_public_shape() {
        let (one, two) = (Secret::random().unwrap(), Secret::random().unwrap());
        assert_ne!(one.reveal(), two.reveal());
        for secret in [one, two] {
            assert_eq!(secret.reveal().len(), limits::TEXT_BYTES);
            assert!(secret.reveal().starts_with(KEY_PREFIX));
            assert!(!format!("{secret:?}").contains(secret.reveal()));
        }
    }
}
