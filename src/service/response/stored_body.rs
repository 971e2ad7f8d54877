//! The body of a response that is sent again, in each content coding that a client asked for.
//!
//! Owns a body and its coded variants. All reactors share it, so a variant is made once and then
//! never changes. Two reactors that make the same one at the same time do not wait for each other:
//! the first one stays.

use std::sync::OnceLock;

use crate::http::compress::Coding;

/// See the file's head.
#[derive(Debug)]
pub struct StoredBody {
    plain: Box<[u8]>,
    /// By `Coding as usize`. `None` within: the coding does not make it shorter.
    variants: [OnceLock<Option<Box<[u8]>>>; Coding::ALL.len()],
}

impl StoredBody {
    pub fn new(plain: &[u8]) -> StoredBody {
        StoredBody {
            plain: plain.into(),
            variants: Default::default(),
        }
    }

    pub fn plain(&self) -> &[u8] {
        &self.plain
    }

    /// Returns a variant, which is `None` within if it would be longer. `None`: it was not made.
    pub fn variant(&self, coding: Coding) -> Option<Option<&[u8]>> {
        let variant = self.variants[coding as usize].get()?;
        Some(variant.as_deref())
    }

    /// Keeps a variant, unless there is one.
    pub fn keep(&self, coding: Coding, coded: Option<&[u8]>) {
        let place = &self.variants[coding as usize];
        place.get_or_init(|| coded.map(Box::from));
    }

    /// Returns the lengths of the blocks that it owns.
    pub fn blocks(&self) -> impl Iterator<Item = usize> {
        let variants = self.variants.iter().filter_map(OnceLock::get).flatten();
        std::iter::once(self.plain.len()).chain(variants.map(|variant| variant.len()))
    }
}
