//! The key that a command means by a name or an id.

use crate::cli::database::explain;
use crate::console::exit::{self, Code};
use crate::console::fail;
use crate::store::{Keys, ListedKey};

/// Finds a key by its id, or else by its name. Names need not be unique; one that several keys have
/// names none of them.
pub fn find<S: Keys + ?Sized>(store: &S, text: &str) -> Result<ListedKey, Code> {
    find_or_none(store, text)?.ok_or_else(|| unknown(text))
}

/// Like [`find`], but a revoked key has no name any more: its successor may have it.
pub fn find_valid<S: Keys + ?Sized>(store: &S, text: &str) -> Result<ListedKey, Code> {
    let found = find_among(store, text, |key| !key.record.revoked)?;
    found.ok_or_else(|| unknown(text))
}

/// Reports that no key is meant.
pub fn unknown(text: &str) -> Code {
    fail(
        exit::NO_INPUT,
        format_args!("no key has the id or name {text}; `autoglmd key list` shows both"),
    )
}

/// Like [`find`]; `None`: no key has this id or name.
pub fn find_or_none<S: Keys + ?Sized>(store: &S, text: &str) -> Result<Option<ListedKey>, Code> {
    find_among(store, text, |_| true)
}

/// `has_name`: whether a key can be meant by its name.
fn find_among<S: Keys + ?Sized>(
    store: &S,
    text: &str,
    has_name: impl Fn(&ListedKey) -> bool,
) -> Result<Option<ListedKey>, Code> {
    let mut keys = store.list().map_err(|error| explain(&error))?;
    if let Some(index) = keys.iter().position(|key| key.record.id == text) {
        return Ok(Some(keys.swap_remove(index)));
    }
    keys.retain(|key| key.record.name == text && has_name(key));
    match keys.len() {
        0 | 1 => Ok(keys.pop()),
        _ => {
            let ids: Vec<_> = keys.iter().map(|key| key.record.id.as_str()).collect();
            let ids = ids.join(", ");
            Err(fail(
                exit::DATA,
                format_args!("several keys have the name {text}; give one of their ids: {ids}"),
            ))
        }
    }
}
