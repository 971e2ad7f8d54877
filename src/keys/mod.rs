//! API keys as the service sees them: what a key may do, and how to find the presented one.
//!
//! Owns the text form of a key, its hash, its scopes and the immutable [`KeyRing`] that every
//! reactor reads. Must never touch a file, a clock or a thread, and never keeps a key's text: the
//! database, a core dump or a log contains only hashes.
//!
//! Why BLAKE3 and not a slow password hash: a key is 32 bytes from the kernel's generator, so
//! guessing is hopeless. Argon2 or bcrypt make each guess of a *human's* password expensive;
//! against 256 random bits a guess fails at any price, and every request would pay that price.
//!
//! Why the map lookup leaks nothing useful: its time depends on the BLAKE3 hash of the presented
//! text, not on the text itself. An attacker who measures how far a comparison came learns leading
//! bits of a stored *hash*. To use them, a text must be found whose hash begins with them, and each
//! further bit doubles that search, up to a preimage of the whole hash. Comparing texts would
//! reveal the key character by character; this does not. The map's own seed (SipHash, random in
//! each process) blurs even that. Finally, all 32 bytes are compared in constant time, so that the
//! decision itself never depends on where two hashes differ.
//!
//! Invariants:
//!  1. A ring never changes; a change in the store makes a new ring.
//!  2. Each hash in a ring names one record. Several hashes may name records of one `id`: after a
//!     rotation the old secret stays valid, for a while, beside the new one.
//!  3. A record found by an old secret expires no later than that secret does.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::limits::keys as limits;

/// The start of every key, by which secret scanners and people recognise one.
pub const KEY_PREFIX: &str = "agk_";

/// The start of every key's public name.
pub const KEY_ID_PREFIX: &str = "key_";

/// One API key. The times are seconds since 1970 (UTC).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The key's public name, such as `key_5f0c92ab61d7`: safe to log, and the argument of
    /// `revoke`.
    pub id: String,
    /// The owner's name for it. May be empty.
    pub name: String,
    /// BLAKE3 of the key's text.
    pub hash: [u8; 32],
    pub scopes: Scopes,
    pub created_at: u64,
    /// The first second at which it is no longer accepted. `None`: never.
    pub expires_at: Option<u64>,
    /// `None`: the value of the configuration. `Some(0)`: no bound.
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u32>,
    pub concurrency: Option<u32>,
    /// Its share of the engine beside other keys: from 1 to [`limits::WEIGHT_MAX`].
    pub weight: u16,
    pub revoked: bool,
}

impl KeyRecord {
    /// Returns whether the key is valid at this second. Revocation outranks expiry.
    pub fn standing(&self, now: u64) -> Standing {
        if self.revoked {
            return Standing::Revoked;
        }
        match self.expires_at {
            Some(end) if now >= end => Standing::Expired,
            _ => Standing::Valid,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Valid,
    Expired,
    Revoked,
}

impl Standing {
    pub const fn as_str(self) -> &'static str {
        match self {
            Standing::Valid => "valid",
            Standing::Expired => "expired",
            Standing::Revoked => "revoked",
        }
    }
}

/// A set of rights.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Scopes(u8);

impl Scopes {
    pub const NONE: Scopes = Scopes(0);
    /// Generate code, and read what belongs to that: models, languages, own records.
    pub const GENERATE: Scopes = Scopes(1);
    /// Everything under `/api/v1/admin`.
    pub const ADMIN: Scopes = Scopes(1 << 1);
    /// Read `/metrics`.
    pub const METRICS: Scopes = Scopes(1 << 2);
    pub const ALL: Scopes = Scopes(Self::GENERATE.0 | Self::ADMIN.0 | Self::METRICS.0);

    const WORDS: [(&'static str, Scopes); 3] = [
        ("generate", Scopes::GENERATE),
        ("admin", Scopes::ADMIN),
        ("metrics", Scopes::METRICS),
    ];

    /// Returns whether all rights in `wanted` are included.
    pub const fn contains(self, wanted: Scopes) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    #[must_use]
    pub const fn union(self, other: Scopes) -> Scopes {
        Scopes(self.0 | other.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Parses words between commas, in any order: `generate,metrics`. At least one is required.
    pub fn parse(text: &str) -> Result<Scopes, UnknownScope> {
        let mut scopes = Scopes::NONE;
        for word in text.split(',').map(str::trim) {
            let known = Self::WORDS.iter().find(|(name, _)| *name == word);
            let (_, scope) = known.ok_or_else(|| UnknownScope(word.to_owned()))?;
            scopes = scopes.union(*scope);
        }
        Ok(scopes)
    }

    /// Like [`Scopes::parse`], but an unknown word grants no right and is not an error: for text
    /// that an earlier or a later version of this program has written.
    pub fn parse_known(text: &str) -> Scopes {
        let words = text.split(',').map(str::trim);
        let known = words.filter_map(|word| Scopes::parse(word).ok());
        known.fold(Scopes::NONE, Scopes::union)
    }

    /// Yields the words of the rights, in a fixed order.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let held =
            move |(word, scope): (&'static str, Scopes)| self.contains(scope).then_some(word);
        Self::WORDS.into_iter().filter_map(held)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.words().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(word)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scopes({self})")
    }
}

/// A word that names no scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownScope(pub String);

impl fmt::Display for UnknownScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UnknownScope(word) = self;
        write!(
            f,
            "unknown scope \"{word}\"; expected generate, admin or metrics"
        )
    }
}

impl std::error::Error for UnknownScope {}

/// All keys at one moment, including revoked ones. Cheap to share, and never changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeyRing {
    by_hash: HashMap<[u8; 32], Arc<KeyRecord>>,
    by_id: HashMap<String, Arc<KeyRecord>>,
    by_name: HashMap<String, Arc<KeyRecord>>,
}

impl KeyRing {
    pub fn new(records: Vec<KeyRecord>) -> KeyRing {
        let mut ring = KeyRing::default();
        for record in records.into_iter().map(Arc::new) {
            prefer(&mut ring.by_id, &record.id, &record);
            if !record.name.is_empty() {
                prefer(&mut ring.by_name, &record.name, &record);
            }
            ring.by_hash.insert(record.hash, record);
        }
        ring
    }

    /// Returns the key with this id or, if there is none, with this name; of several secrets or
    /// namesakes the one that is valid for longest. For clients that are known by other means than
    /// the secret.
    pub fn find_named(&self, id_or_name: &str) -> Option<&Arc<KeyRecord>> {
        let named = self.by_id.get(id_or_name);
        named.or_else(|| self.by_name.get(id_or_name))
    }

    /// Returns the record of the key with this text, whatever its standing: the caller
    /// distinguishes a revoked key from an unknown one, and counts them separately.
    pub fn find(&self, presented: &str) -> Option<&Arc<KeyRecord>> {
        // The shape of a key is public, so refusing another shape early reveals nothing, and it
        // bounds the bytes that a stranger can make us hash.
        if presented.len() != limits::TEXT_BYTES || !presented.starts_with(KEY_PREFIX) {
            return None;
        }
        let hash = hash(presented);
        let record = self.by_hash.get(&hash)?;
        // The comparison of blake3's own type takes constant time.
        let is_same = blake3::Hash::from(record.hash) == blake3::Hash::from(hash);
        is_same.then_some(record)
    }

    /// Returns how many secrets there are, including revoked and expired ones.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    pub fn records(&self) -> impl Iterator<Item = &Arc<KeyRecord>> {
        self.by_hash.values()
    }
}

/// Enters a record under a name, unless a better one is there.
fn prefer(known: &mut HashMap<String, Arc<KeyRecord>>, name: &str, record: &Arc<KeyRecord>) {
    let worth = |record: &KeyRecord| {
        let end = record.expires_at.unwrap_or(u64::MAX);
        (!record.revoked, end, record.created_at, record.hash)
    };
    let is_better = |other: &Arc<KeyRecord>| worth(record) > worth(other);
    if known.get(name).is_none_or(is_better) {
        known.insert(name.to_owned(), Arc::clone(record));
    }
}

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

const HEX: &[u8; 16] = b"0123456789abcdef";

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

fn hash(text: &str) -> [u8; 32] {
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

    fn record(secret: &Secret) -> KeyRecord {
        KeyRecord {
            id: "key_000000000000".into(),
            name: "test".into(),
            hash: secret.hash(),
            scopes: Scopes::GENERATE,
            created_at: 100,
            expires_at: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrency: None,
            weight: limits::WEIGHT_DEFAULT,
            revoked: false,
        }
    }

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

    #[test]
    fn a_ring_finds_its_keys_and_no_others() {
        let (mine, other) = (Secret::from_bytes(&[1; 32]), Secret::from_bytes(&[2; 32]));
        let ring = KeyRing::new(vec![record(&mine)]);
        assert_eq!(ring.find(mine.reveal()).unwrap().name, "test");
        assert_eq!(ring.find(other.reveal()), None);
        assert_eq!(ring.find(""), None);
        assert_eq!(ring.find(&mine.reveal()[..limits::TEXT_BYTES - 1]), None);
        assert_eq!(ring.find(&format!("{}A", mine.reveal())), None);
        // The last character carries only four bits of the key: a text that decodes to the same
        // bytes is still another text.
        let mut altered = mine.reveal().to_owned();
        let last = altered.pop().unwrap();
        altered.push(if last == 'E' { 'F' } else { 'E' });
        assert_eq!(ring.find(&altered), None);
    }

    #[test]
    fn a_key_is_found_by_id_before_name_and_the_best_of_several() {
        let make = |seed: u8, id: &str, name: &str, expires_at| KeyRecord {
            id: id.into(),
            name: name.into(),
            expires_at,
            ..record(&Secret::from_bytes(&[seed; 32]))
        };
        let mut revoked = make(4, "key_c", "phones", None);
        revoked.revoked = true;
        let ring = KeyRing::new(vec![
            make(1, "key_a", "phones", Some(50)),
            make(2, "key_a", "phones", Some(90)),
            make(3, "key_b", "key_a", None),
            revoked,
        ]);
        let found = |name: &str| ring.find_named(name).map(|one| (one.hash, one.expires_at));
        let second = Secret::from_bytes(&[2; 32]).hash();
        assert_eq!(
            found("key_a"),
            Some((second, Some(90))),
            "an id, not a name"
        );
        assert_eq!(
            found("phones"),
            Some((second, Some(90))),
            "not the revoked one"
        );
        assert_eq!(
            found("key_c").map(|(_, end)| end),
            Some(None),
            "it has no other"
        );
        assert_eq!((found(""), found("nobody")), (None, None));
    }

    #[test]
    fn a_revoked_key_is_found_so_that_it_is_not_called_unknown() {
        let secret = Secret::from_bytes(&[3; 32]);
        let mut revoked = record(&secret);
        revoked.revoked = true;
        revoked.expires_at = Some(1);
        let ring = KeyRing::new(vec![revoked]);
        let found = ring.find(secret.reveal()).unwrap();
        assert_eq!(found.standing(50), Standing::Revoked);
    }

    #[test]
    fn a_key_expires_with_the_second_it_names() {
        let mut key = record(&Secret::from_bytes(&[4; 32]));
        assert_eq!(key.standing(u64::MAX), Standing::Valid);
        key.expires_at = Some(200);
        assert_eq!(key.standing(199), Standing::Valid);
        assert_eq!(key.standing(200), Standing::Expired);
    }

    #[test]
    fn scopes_are_parsed_and_shown_in_a_fixed_order() {
        let scopes = Scopes::parse("metrics, generate").unwrap();
        assert_eq!(scopes.to_string(), "generate,metrics");
        assert!(scopes.contains(Scopes::METRICS));
        assert!(!scopes.contains(Scopes::ADMIN));
        assert!(!scopes.contains(Scopes::ALL));
        assert_eq!(Scopes::parse("generate,admin,metrics"), Ok(Scopes::ALL));
        for wrong in ["", "root", "generate,", "Generate"] {
            assert!(Scopes::parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
