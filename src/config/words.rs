//! Types whose values are words of the configuration, such as `engine.kind = "echo"`.
//!
//! Owns the words of each type, and the types that belong to no other file.

use crate::engine::family::KvType;
pub use crate::telemetry::LogFormat;

/// A type whose values are words.
pub trait Word: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

/// Returns the value of a word.
pub fn parse_word<T: Word>(text: &str) -> Option<T> {
    let found = T::WORDS.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value)
}

pub fn words<T: Word>() -> Vec<&'static str> {
    T::WORDS.iter().map(|(word, _)| *word).collect()
}

/// Returns the word of a value. A value missing in its type's table would show as `?`; a test
/// checks all.
pub fn word<T: Word>(value: T) -> &'static str {
    T::WORDS
        .iter()
        .find(|(_, known)| *known == value)
        .map_or("?", |(word, _)| word)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusKind {
    Redis,
    Gossip,
    Kafka,
}

impl Word for BusKind {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("redis", BusKind::Redis),
        ("gossip", BusKind::Gossip),
        ("kafka", BusKind::Kafka),
    ];
}

/// The way in which the cache uses the store behind its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachePolicy {
    CacheAside,
    ReadThrough,
    WriteThrough,
    WriteBehind,
}

impl Word for CachePolicy {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("cache-aside", CachePolicy::CacheAside),
        ("read-through", CachePolicy::ReadThrough),
        ("write-through", CachePolicy::WriteThrough),
        ("write-behind", CachePolicy::WriteBehind),
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    Llama,
    Echo,
}

impl EngineKind {
    pub fn as_str(self) -> &'static str {
        word(self)
    }
}

impl LogFormat {
    pub fn as_str(self) -> &'static str {
        word(self)
    }
}

impl Word for EngineKind {
    const WORDS: &'static [(&'static str, Self)] =
        &[("llama", EngineKind::Llama), ("echo", EngineKind::Echo)];
}

/// `auto` leaves it to the model's family.
impl Word for Option<KvType> {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", None),
        ("f16", Some(KvType::F16)),
        ("q8_0", Some(KvType::Q8_0)),
    ];
}

impl Word for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("text", LogFormat::Text),
        ("json", LogFormat::Json),
        ("journald", LogFormat::Journald),
    ];
}

impl Word for log::LevelFilter {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", log::LevelFilter::Off),
        ("error", log::LevelFilter::Error),
        ("warn", log::LevelFilter::Warn),
        ("info", log::LevelFilter::Info),
        ("debug", log::LevelFilter::Debug),
        ("trace", log::LevelFilter::Trace),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_a_type_is_in_its_table() {
        assert_eq!(
            [EngineKind::Llama, EngineKind::Echo].map(word),
            ["llama", "echo"]
        );
        assert_eq!(
            [None, Some(KvType::F16), Some(KvType::Q8_0)].map(word),
            ["auto", "f16", "q8_0"]
        );
        assert_eq!(
            [LogFormat::Text, LogFormat::Json, LogFormat::Journald].map(word),
            ["text", "json", "journald"]
        );
        for level in log::LevelFilter::iter() {
            assert_eq!(word(level), level.as_str().to_lowercase());
        }
    }
}
