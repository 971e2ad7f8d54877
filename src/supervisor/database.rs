//! The store's place, from the configuration.
//!
//! Owns the way from keys of `[store]` to a [`Place`]. Opens nothing.

use crate::config::{Config, CredentialPath, Sources, StoreUrl};
use crate::store::{DATABASE_FILE, Place, Target};

/// The error names the key.
pub fn place(config: &Config, sources: &Sources) -> Result<Place, String> {
    let store = &config.store;
    let StoreUrl::Postgres(url) = &store.url else {
        return Ok(Place::Sqlite(config.state_dir.join(DATABASE_FILE)));
    };
    let credentials = sources.credentials_dir();
    let file = |name: &str, path: &Option<_>| {
        let resolved = path.as_deref().map(|path| {
            let file = CredentialPath(path).resolve(credentials.as_deref());
            file.map_err(|reason| format!("{name}: {reason}"))
        });
        resolved.transpose()
    };
    Ok(Place::Postgres(Box::new(Target {
        name: url.to_string(),
        settings: url.settings().clone(),
        password_file: file("store.password_file", &store.password_file)?,
        ca: file("store.ca", &store.ca)?,
        connect_timeout: store.connect_timeout,
        statement_timeout: store.statement_timeout,
    })))
}
