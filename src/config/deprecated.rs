//! Keys of earlier versions.
//!
//! A configuration that sets one of them still works: the daemon starts, and warns which key to set
//! instead. The old value is ignored, because the new key has another unit or meaning.

/// A key that no longer exists.
#[derive(Debug)]
pub struct Deprecated {
    /// Such as `engine.prefill_chunk`.
    pub path: &'static str,
    /// The key that took its place, and how its values differ.
    successor: &'static str,
    difference: &'static str,
}

pub const DEPRECATED: &[Deprecated] = &[Deprecated {
    path: "engine.prefill_chunk",
    successor: "engine.prompt_budget",
    difference: "a time instead of a number of tokens",
}];

impl Deprecated {
    /// Finds a key by its section and name.
    pub fn find(section: &str, name: &str) -> Option<&'static Deprecated> {
        let matches = |path: &str| path.split_once('.') == Some((section, name));
        DEPRECATED.iter().find(|key| matches(key.path))
    }

    /// Finds a key by its environment variable.
    pub fn find_variable(variable: &str) -> Option<&'static Deprecated> {
        let (section, name) = variable.strip_prefix("AUTOGLMD_")?.split_once("__")?;
        Deprecated::find(&section.to_lowercase(), &name.to_lowercase())
    }

    /// Returns the warning.
    pub fn message(&self) -> String {
        let Deprecated {
            path,
            successor,
            difference,
        } = self;
        format!("{path} is deprecated and ignored; set {successor}, {difference}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn each_names_a_key_that_exists_and_none_that_does() {
        for key in DEPRECATED {
            assert!(schema::find(key.path).is_none(), "{}", key.path);
            assert!(schema::find(key.successor).is_some(), "{}", key.successor);
        }
    }
}
