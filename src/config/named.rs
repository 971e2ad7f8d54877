//! Sections with names, such as `[models."NAME"]`. A configuration may have several of a kind.
//!
//! A row has the meaning of the key, its name, the type of its value and its [`ValueKind`], as in
//! the schema. It has no default: an absent key leaves the section without a name in force, such as
//! `[engine]`. Variables and flags cannot set these keys, and a reload does not change them.
//!
//! To add a key, add a row. To add a kind of section, add a table and a field of `Config`, and go
//! through it wherever `MODELS` is gone through: in `load`, `show`, `change`, `rules` and
//! `reference`.

use super::kind::ValueKind;
use super::kinds::{number, word_of};
use super::value::{Field, Value, toml_string};
use crate::engine::family::KvType;
use crate::limits::config as limits;

/// The table of one kind of section; `T` holds the values of one of them.
pub struct NamedSection<T: 'static> {
    /// Such as `models`.
    pub name: &'static str,
    help: &'static str,
    pub keys: &'static [NamedKey<T>],
}

/// One row of the table.
pub struct NamedKey<T> {
    pub name: &'static str,
    help: &'static str,
    pub kind: ValueKind,
    /// Returns `None` if the section does not have the key.
    pub read: fn(&T) -> Option<Value>,
    /// Returns false if the value is of another kind than the field: a bug in the table.
    pub write: fn(&mut T, Value) -> bool,
}

impl<T> NamedSection<T> {
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }

    pub fn find(&self, key: &str) -> Option<&'static NamedKey<T>> {
        self.keys.iter().find(|row| row.name == key)
    }

    /// Returns the path of a section: `models."NAME"`.
    pub fn path(&self, name: &str) -> String {
        format!("{}.{}", self.name, toml_string(name))
    }
}

impl<T> NamedKey<T> {
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }
}

macro_rules! named_section {
    (
        $(#[doc = $section_help:literal])+
        $table:ident $section_name:literal: $Section:ident {
            $(
                $(#[doc = $help:literal])+
                $name:ident: $type:ty, $kind:expr;
            )+
        }
    ) => {
        $(#[doc = $section_help])+
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $Section { $($(#[doc = $help])+ pub $name: Option<$type>,)+ }

        pub static $table: NamedSection<$Section> = NamedSection {
            name: $section_name,
            help: concat!($($section_help),+),
            keys: &[$(NamedKey {
                name: stringify!($name),
                help: concat!($($help),+),
                kind: $kind,
                read: |section| section.$name.as_ref().map(Field::to_value),
                write: |section, value| match Field::from_value(value) {
                    Some(field) => { section.$name = Some(field); true }
                    None => false,
                },
            }),+],
        };
    };
}

named_section! {
    /// A model of `engine.model`, by the name that `/api/v1/models` lists: the name of a file is
    /// that without `.gguf`. A key here wins over the same key of `[engine]`.
    MODELS "models": Model {
        /// Context of one sequence in tokens. 0: chosen by model and memory.
        context: u32, number(limits::CONTEXT_TOKENS);
        /// The type of the KV cache's values. `auto` uses that of the model's family.
        kv_type: Option<KvType>, word_of::<Option<KvType>>();
        /// Layers on the GPU, if a GPU back end is compiled in. 999: all.
        gpu_layers: u32, number(limits::GPU_LAYERS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_every_range_fit_the_field() {
        for key in MODELS.keys {
            assert_eq!((key.read)(&Model::default()), None, "{}", key.name);
            for value in key.kind.ends() {
                let mut model = Model::default();
                assert!((key.write)(&mut model, value.clone()), "{}", key.name);
                assert_eq!((key.read)(&model), Some(value), "{}", key.name);
            }
        }
    }

    #[test]
    fn a_path_is_one_of_toml() {
        assert_eq!(MODELS.path("a.b \"c\""), r#"models."a.b \"c\"""#);
    }
}
