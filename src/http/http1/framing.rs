//! Where a request's body ends (RFC 9112, section 6): from two fields, one verdict.
//!
//! This file owns the decision that request smuggling attacks. It must never repair a request: a
//! proxy in front of the daemon may have read the same bytes the other way. So it is stricter than
//! the RFC, which lets a server repair some of these, and as strict as nginx:
//!
//! 1. `Transfer-Encoding` with `Content-Length`, on HTTP/1.0, repeated, or other than exactly
//!    `chunked`: refused. The RFC would let a server send 501 for a coding that it does not know; a
//!    coding that we misread is more likely, so it gets 400 like the rest.
//! 2. `Content-Length` repeated (even with equal values), a list, signed, empty, hexadecimal or
//!    beyond 64 bits: refused.
//! 3. Neither field: there is no body.

use super::Malformed;
use crate::http::Version;

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// This many bytes follow the head.
    Length(u64),
    /// Chunks follow the head, the last of size zero, then a trailer section.
    Chunked,
}

/// Collects the two fields in one pass over the head's fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct FramingFields {
    length: Option<u64>,
    is_chunked: bool,
}

impl FramingFields {
    /// Takes the value of a `Content-Length` field, without the white space around it.
    pub fn handle_content_length(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.length.is_some() {
            return Err(Malformed::bad("Content-Length is repeated"));
        }
        self.length = Some(decimal(value)?);
        Ok(())
    }

    /// Takes the value of a `Transfer-Encoding` field, without the white space around it.
    pub fn handle_transfer_encoding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.is_chunked {
            return Err(Malformed::bad("Transfer-Encoding is repeated"));
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Malformed::bad(
                "the only Transfer-Encoding accepted is chunked",
            ));
        }
        self.is_chunked = true;
        Ok(())
    }

    /// Returns the verdict, after the last field.
    pub fn conclude(self, version: Version) -> Result<Framing, Malformed> {
        match (self.is_chunked, self.length) {
            (true, Some(_)) => Err(Malformed::bad(
                "a request must not have both Transfer-Encoding and Content-Length",
            )),
            (true, None) if version == Version::Http10 => Err(Malformed::bad(
                "an HTTP/1.0 request must not have Transfer-Encoding",
            )),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(length)) => Ok(Framing::Length(length)),
            (false, None) => Ok(Framing::None),
        }
    }
}

/// Parses `1*DIGIT` and nothing else: `str::parse` would accept a plus sign.
fn decimal(value: &[u8]) -> Result<u64, Malformed> {
    if value.is_empty() {
        return Err(Malformed::bad("Content-Length is empty"));
    }
    let mut number: u64 = 0;
    for &byte in value {
        if !byte.is_ascii_digit() {
            return Err(Malformed::bad("Content-Length is not a decimal number"));
        }
        number = number
            .checked_mul(10)
            .and_then(|tens| tens.checked_add(u64::from(byte - b'0')))
            .ok_or(Malformed::bad("Content-Length does not fit in 64 bits"))?;
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lengths: &[&str], codings: &[&str], version: Version) -> Result<Framing, Malformed> {
        let mut fields = FramingFields::default();
        for value in lengths {
            fields.handle_content_length(value.as_bytes())?;
        }
        for value in codings {
            fields.handle_transfer_encoding(value.as_bytes())?;
        }
        fields.conclude(version)
    }

    #[test]
    fn each_clear_case_has_one_reading() {
        let v11 = Version::Http11;
        assert_eq!(verdict(&[], &[], v11), Ok(Framing::None));
        assert_eq!(verdict(&["0"], &[], v11), Ok(Framing::Length(0)));
        assert_eq!(verdict(&["0042"], &[], v11), Ok(Framing::Length(42)));
        let most = u64::MAX.to_string();
        assert_eq!(verdict(&[&most], &[], v11), Ok(Framing::Length(u64::MAX)));
        assert_eq!(verdict(&[], &["Chunked"], v11), Ok(Framing::Chunked));
    }

    #[test]
    fn whatever_could_be_read_in_two_ways_is_refused() {
        let lengths = [
            "",
            "+5",
            "-5",
            "5,5",
            "5, 5",
            "5 5",
            "0x5",
            "5.0",
            "5_0",
            "five",
            "٥",
            "18446744073709551616",
            "99999999999999999999999999",
        ];
        for value in lengths {
            assert!(verdict(&[value], &[], Version::Http11).is_err(), "{value}");
        }
        let codings = [
            "",
            "identity",
            "gzip, chunked",
            "chunked, chunked",
            "xchunked",
            "chunked;",
        ];
        for value in codings {
            assert!(verdict(&[], &[value], Version::Http11).is_err(), "{value}");
        }
        assert!(verdict(&["5", "5"], &[], Version::Http11).is_err());
        assert!(verdict(&[], &["chunked", "chunked"], Version::Http11).is_err());
        assert!(verdict(&["5"], &["chunked"], Version::Http11).is_err());
        assert!(verdict(&[], &["chunked"], Version::Http10).is_err());
    }
}
