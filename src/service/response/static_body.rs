//! Bodies that never change, each kept in the content codings that clients asked for.
//!
//! Owns a body and its coded variants. A variant is compressed when a client first asks for it,
//! with more effort than a response that is sent once would be worth. [`StaticBodies`] holds at
//! most one body per route, so their number is bounded.

use crate::http::compress::Coding;
use crate::http::compress::encode::{Compressor, Effort};
use crate::limits::service as limits;

use crate::service::router::Route;

/// One body in all requested variants.
#[derive(Debug)]
pub struct StaticBody {
    plain: Box<[u8]>,
    /// By `Coding as usize`.
    variants: [Variant; Coding::ALL.len()],
}

#[derive(Debug, Default)]
enum Variant {
    #[default]
    NotAskedFor,
    /// It would be longer than the plain body.
    Useless,
    Made(Box<[u8]>),
}

impl StaticBody {
    /// Returns `None` if the body is too long to be kept.
    pub fn new(plain: &[u8]) -> Option<StaticBody> {
        (plain.len() <= limits::STATIC_BODY_BYTES_MAX).then(|| StaticBody {
            plain: plain.into(),
            variants: Default::default(),
        })
    }

    pub fn plain(&self) -> &[u8] {
        &self.plain
    }

    /// Returns whether this variant was requested before.
    pub fn has(&self, coding: Coding) -> bool {
        !matches!(self.variants[coding as usize], Variant::NotAskedFor)
    }

    /// Creates this variant.
    pub fn make(&mut self, coding: Coding, compressor: &mut Compressor) {
        let mut out = Vec::new();
        let is_shorter = compressor.compress(coding, Effort::Kept, &self.plain, &mut out);
        self.variants[coding as usize] = if is_shorter {
            Variant::Made(out.into())
        } else {
            Variant::Useless
        };
    }

    /// Returns this variant, if it exists and is useful.
    pub fn coded(&self, coding: Coding) -> Option<&[u8]> {
        match &self.variants[coding as usize] {
            Variant::Made(bytes) => Some(bytes),
            Variant::NotAskedFor | Variant::Useless => None,
        }
    }
}

/// The responses that never change, by their route.
#[derive(Debug, Default)]
pub struct StaticBodies([Option<StaticBody>; Route::COUNT]);

impl StaticBodies {
    /// Returns the body of a route, built by `make` at the first request. `None` if it is too long
    /// to be kept.
    pub fn of(&mut self, route: Route, make: impl FnOnce(&mut Vec<u8>)) -> Option<&mut StaticBody> {
        let place = &mut self.0[route as usize];
        if place.is_none() {
            let mut plain = Vec::new();
            make(&mut plain);
            *place = StaticBody::new(&plain);
        }
        place.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_made_once() {
        let plain = b"again and again and again and again ".repeat(50);
        let mut body = StaticBody::new(&plain).unwrap();
        let mut compressor = Compressor::default();
        for coding in Coding::ALL {
            assert!(!body.has(coding) && body.coded(coding).is_none());
            body.make(coding, &mut compressor);
            assert!(body.has(coding) && body.coded(coding).unwrap().len() * 5 < plain.len());
        }
        let mut short = StaticBody::new(b"x").unwrap();
        short.make(Coding::Gzip, &mut compressor);
        assert!(short.has(Coding::Gzip) && short.coded(Coding::Gzip).is_none());
        assert!(StaticBody::new(&vec![0; limits::STATIC_BODY_BYTES_MAX + 1]).is_none());
    }

    #[test]
    fn a_static_body_is_made_once() {
        let mut bodies = StaticBodies::default();
        for _ in 0..2 {
            let body = bodies.of(Route::Index, |out| out.push(b'x')).unwrap();
            assert_eq!(body.plain(), b"x");
            let again = bodies.of(Route::Index, |_| panic!("made again"));
            assert!(again.is_some());
        }
    }
}
