//! A key that is created, and the file of the first one.
//!
//! Knows no database.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::keys::{KeyRecord, Scopes, Secret, random_id};
use crate::store::error::StoreError;
use crate::store::interface::keys::NewKey;

/// Returns the properties of the first key.
pub fn bootstrap_key() -> NewKey {
    NewKey {
        name: "bootstrap".into(),
        scopes: Scopes::ALL,
        ..NewKey::default()
    }
}

pub fn draw(new: &NewKey, now: u64) -> Result<(KeyRecord, Secret), StoreError> {
    let secret = Secret::random()?;
    let record = KeyRecord {
        id: random_id()?,
        name: new.name.clone(),
        hash: secret.hash(),
        scopes: new.scopes,
        created_at: now,
        expires_at: new.expires_at,
        requests_per_minute: new.requests_per_minute,
        tokens_per_minute: new.tokens_per_minute,
        concurrency: new.concurrency,
        weight: new.weight,
        revoked: false,
    };
    Ok((record, secret))
}

/// Writes the key and a line end to a new file that only its owner may read, and renames it once it
/// is on the disk. The caller holds the database's write lock, so no other process uses the
/// temporary name; one found there is left from a crash.
pub fn write_secret(path: &Path, secret: &Secret) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    writeln!(file, "{}", secret.reveal())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}
