//! The name of a job: a UUID of version 7, written `job_01890a5d-ac96-774b-bcce-b302099a8057`.
//!
//! Ids sort by the time of their creation, so a list of jobs is paged by them. An id is a name and
//! not a secret: each look-up compares the job's key as well.

use std::fmt;

/// The beginning of each id's text.
const PREFIX: &str = "job_";

/// Digits before each dash.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

/// See the file's head.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId([u8; JobId::BYTES]);

impl JobId {
    pub const BYTES: usize = 16;

    /// Characters of an id's text.
    pub const TEXT_BYTES: usize = 40;

    /// Makes an id of the time in milliseconds since 1970 and of 10 random bytes.
    pub fn new(now_ms: u64, random: [u8; 10]) -> JobId {
        let mut bytes = [0; JobId::BYTES];
        bytes[..6].copy_from_slice(&now_ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        // Version and variant (RFC 9562, section 5.7).
        bytes[6] = bytes[6] & 0x0f | 0x70;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        JobId(bytes)
    }

    pub const fn from_bytes(bytes: [u8; JobId::BYTES]) -> JobId {
        JobId(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; JobId::BYTES] {
        &self.0
    }

    /// Reads an id as it is written: in lower case, with its dashes. There is one text for each id.
    pub fn parse(text: &str) -> Option<JobId> {
        let mut rest = text.strip_prefix(PREFIX)?;
        let mut bytes = Vec::with_capacity(JobId::BYTES);
        for (index, digits) in GROUPS.into_iter().enumerate() {
            if index > 0 {
                rest = rest.strip_prefix('-')?;
            }
            let (group, after) = rest.split_at_checked(digits)?;
            for pair in group.as_bytes().as_chunks::<2>().0 {
                bytes.push(digit(pair[0])? << 4 | digit(pair[1])?);
            }
            rest = after;
        }
        let bytes = bytes.try_into().ok()?;
        rest.is_empty().then_some(JobId(bytes))
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        let mut bytes = self.0.iter();
        for (index, digits) in GROUPS.into_iter().enumerate() {
            if index > 0 {
                f.write_str("-")?;
            }
            for byte in bytes.by_ref().take(digits / 2) {
                write!(f, "{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: `new` without the version; `parse` that takes upper case or ignores a rest.
    #[test]
    fn an_id_has_one_text_and_sorts_by_its_time() {
        let id = JobId::new(0x0189_0a5d_ac96, [0xff; 10]);
        let text = id.to_string();
        assert_eq!(text, "job_01890a5d-ac96-7fff-bfff-ffffffffffff");
        assert_eq!(text.len(), JobId::TEXT_BYTES);
        assert_eq!(JobId::parse(&text), Some(id));
        assert!(id < JobId::new(0x0189_0a5d_ac97, [0; 10]));
        assert_eq!(JobId::from_bytes(*id.as_bytes()), id);
        let upper = text.to_uppercase();
        let others = [
            "",
            "job_",
            "gen_01890a5d-ac96-7fff-bfff-ffffffffffff",
            "01890a5d-ac96-7fff-bfff-ffffffffffff",
            "job_01890a5dac967fffbfffffffffffffff",
            "job_01890a5d-ac96-7fff-bfff-fffffffffff",
            "job_01890a5d-ac96-7fff-bfff-ffffffffffff0",
            "job_01890a5d-ac96-7fff-bfff-fffffffffffg",
            "job_01890a5-dac96-7fff-bfff-ffffffffffff",
            "job_01890a5d-ac96-7fff-bfff-ffffffffff\u{e9}",
            &upper,
        ];
        for other in others {
            assert_eq!(JobId::parse(other), None, "{other}");
        }
    }
}
