//! What an API key may do: its record, its standing and its scopes.
//!
//! Owns what a store keeps of a key, without its text.

use std::fmt;

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
    /// Its share of the engine beside other keys: from 1 to
    /// [`WEIGHT_MAX`](crate::limits::keys::WEIGHT_MAX).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_expires_with_the_second_it_names() {
        let mut key = KeyRecord {
            id: "key_000000000000".into(),
            name: "test".into(),
            hash: [0; 32],
            scopes: Scopes::GENERATE,
            created_at: 100,
            expires_at: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrency: None,
            weight: 1,
            revoked: false,
        };
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
