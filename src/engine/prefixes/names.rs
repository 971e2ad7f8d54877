//! The names of files in the folder, and the secret that they are made with.
//!
//! A name is two keyed digests, so that it shows nothing of a tenant or its text without the
//! secret, which lies in the same folder with mode 0600. All files of a tenant begin with the same
//! digest: they can be found, and erased, without being opened.
//!
//! ```text
//!   TENANT-TOKENS.kv      a prefix               TENANT-TOKENS.kv.new  one that is being written
//!   TENANT.erased         the tenant was erased  secret                32 bytes
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::copied::Token;
use crate::os::file;

const SECRET: &str = "secret";
const SUFFIX: &str = ".kv";
pub const UNFINISHED: &str = ".new";
const ERASED: &str = ".erased";
/// Hexadecimal digits of a digest in a name.
const DIGITS: usize = 32;

/// Makes digests that only this folder's files have.
#[derive(Clone)]
pub struct Secret([u8; 32]);

/// The keyed digest of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TenantDigest(pub [u8; 32]);

impl Secret {
    /// Reads the folder's secret. If there is none, or it is damaged, makes a new one: no file that
    /// is there can be verified then.
    pub fn open(folder: &Path) -> io::Result<Secret> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        if let Some(secret) = Secret::read(folder)? {
            return Ok(secret);
        }
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        let path = folder.join(SECRET);
        let unfinished = folder.join(format!("{SECRET}{UNFINISHED}"));
        let mut new = create(&unfinished)?;
        new.write_all(&bytes)?;
        new.sync_all()?;
        fs::rename(unfinished, path)?;
        Ok(Secret(bytes))
    }

    /// Reads the folder's secret, if it has one.
    pub fn read(folder: &Path) -> io::Result<Option<Secret>> {
        match file::read_up_to(&folder.join(SECRET), 32) {
            Ok(bytes) => Ok(bytes.try_into().ok().map(Secret)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns a hasher for the checksums of files.
    pub fn hasher(&self) -> blake3::Hasher {
        blake3::Hasher::new_keyed(&self.0)
    }

    pub fn tenant(&self, tenant: u64) -> TenantDigest {
        let mut hasher = self.hasher();
        hasher.update(b"tenant").update(&tenant.to_le_bytes());
        TenantDigest(*hasher.finalize().as_bytes())
    }

    /// Returns the digest of the daemon's own words, which no tenant has.
    pub fn no_tenant(&self) -> TenantDigest {
        TenantDigest(*self.hasher().update(b"own").finalize().as_bytes())
    }

    /// Returns the name of the file with this tenant's tokens.
    pub fn name(&self, tenant: TenantDigest, tokens: &[Token]) -> String {
        let mut hasher = self.hasher();
        hasher.update(b"tokens").update(&tenant.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        let digest = hasher.finalize().to_hex();
        format!("{}-{}{SUFFIX}", tenant.digits(), &digest[..DIGITS])
    }
}

impl TenantDigest {
    fn digits(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex()[..DIGITS].to_owned()
    }

    /// Returns whether the tenant has this file, finished or not.
    pub fn owns(self, name: &str) -> bool {
        name.starts_with(&format!("{}-", self.digits())) && !matches!(kind(name), Kind::Other)
    }

    /// Returns the name of the mark of a tenant that was erased.
    pub fn erased(self) -> String {
        format!("{}{ERASED}", self.digits())
    }
}

/// Returns whether a file belongs to the tenant that a mark names.
pub fn is_erased_by(name: &str, mark: &str) -> bool {
    let tenant = mark.strip_suffix(ERASED);
    let rest = tenant.and_then(|tenant| name.strip_prefix(tenant));
    rest.is_some_and(|rest| rest.starts_with('-')) && !matches!(kind(name), Kind::Other)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Prefix,
    Unfinished,
    Erased,
    /// Not from here.
    Other,
}

/// Returns the kind of file that a name stands for.
pub fn kind(name: &str) -> Kind {
    let is_digest = |text: &str| {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        text.len() == DIGITS && text.bytes().all(is_digit)
    };
    let is_prefix = |name: &str| {
        let digests = name
            .strip_suffix(SUFFIX)
            .and_then(|name| name.split_once('-'));
        digests.is_some_and(|(tenant, tokens)| is_digest(tenant) && is_digest(tokens))
    };
    match (name.strip_suffix(UNFINISHED), name.strip_suffix(ERASED)) {
        _ if is_prefix(name) => Kind::Prefix,
        (Some(name), _) if is_prefix(name) => Kind::Unfinished,
        (_, Some(tenant)) if is_digest(tenant) => Kind::Erased,
        _ => Kind::Other,
    }
}

/// Yields the items of a folder that may not exist.
pub fn entries(path: &Path) -> io::Result<impl Iterator<Item = io::Result<fs::DirEntry>> + use<>> {
    let items = match fs::read_dir(path) {
        Ok(items) => Some(items),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok(items.into_iter().flatten())
}

/// Removes a file that may have gone already.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Creates a file that only its owner can read. Replaces a file that a killed process has left.
pub fn create(path: &Path) -> io::Result<fs::File> {
    remove(path)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations that this test catches: a tenant's digest, or a file's, that is not keyed; a name
    /// that does not depend on the tenant; `owns` by a part of the digest.
    #[test]
    fn names_depend_on_tenant_tokens_and_secret() {
        let (one, other) = (Secret([1; 32]), Secret([2; 32]));
        let name =
            |secret: &Secret, tenant, tokens: &[Token]| secret.name(secret.tenant(tenant), tokens);
        let first = name(&one, 7, &[1, 2]);
        assert_eq!(first, name(&one, 7, &[1, 2]));
        for different in [
            name(&other, 7, &[1, 2]),
            name(&one, 8, &[1, 2]),
            name(&one, 7, &[1, 3]),
        ] {
            assert_ne!(first, different);
        }
        assert_ne!(one.tenant(7), other.tenant(7));
        assert_eq!(kind(&first), Kind::Prefix);
        assert_eq!(kind(&format!("{first}{UNFINISHED}")), Kind::Unfinished);
        assert_eq!(kind(&one.tenant(7).erased()), Kind::Erased);
        assert!(one.tenant(7).owns(&first) && !one.tenant(8).owns(&first));
        assert!(one.tenant(7).owns(&format!("{first}{UNFINISHED}")));
        for strange in ["secret", "notes.txt", "x.kv", "..kv", &first.to_uppercase()] {
            assert_eq!(kind(strange), Kind::Other, "{strange}");
        }
    }

    #[test]
    fn secret_is_made_once_and_again_if_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prefixes");
        assert!(Secret::read(&path).unwrap().is_none());
        let first = Secret::open(&path).unwrap();
        assert_eq!(Secret::open(&path).unwrap().0, first.0);
        let mode = |path: &Path| {
            use std::os::unix::fs::PermissionsExt;
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode(&path), mode(&path.join(SECRET))), (0o700, 0o600));
        fs::write(path.join(SECRET), "short").unwrap();
        assert_ne!(Secret::open(&path).unwrap().0, first.0);
    }
}
