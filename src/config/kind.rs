//! What the text of a value may be: from TOML, or from the plain text of a variable or flag, to a
//! checked [`Value`], and back to TOML.
//!
//! Owns: the wording of "KEY is FOUND; expected EXPECTED". Knows no key and no file.

use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::address::{Listen, Place};
use super::hosts::Hosts;
use super::problem::quote;
use super::proxies::TrustedProxies;
use super::tls::ClientKey;
use super::units;
use super::words::{Word, word};
use crate::limits::config as limits;

/// The form of a key's value. Ranges are inclusive.
pub enum Form {
    Switch,
    Number(RangeInclusive<u64>),
    /// In bytes.
    Size(RangeInclusive<u64>),
    /// In milliseconds.
    Time(RangeInclusive<u64>),
    /// One of a few words.
    Word(fn() -> Vec<&'static str>),
    /// A path; empty text means none.
    Path,
    Addresses,
    /// Names or paths of models: one text, or a list of them.
    Models,
    /// Paths of files.
    Paths,
    /// Pairs of a client's name and a key.
    ClientKeys,
    /// Networks of trusted proxies.
    Networks,
    /// Names of this machine.
    Hosts,
}

/// A value between its text and its field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Switch(bool),
    Number(u64),
    Time(Duration),
    Text(String),
    Addresses(Vec<Listen>),
    Texts(Vec<String>),
}

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// What is wrong below the key: `[2]` for the third element of a list, else nothing.
    pub element: String,
    pub found: String,
    pub expected: String,
}

impl Form {
    /// Reads a value of the file. The error's range is the place of the value, or of the element.
    pub fn read_toml(
        &self,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Value, (Range<usize>, Refused)> {
        if let (Form::Addresses, DeValue::Array(items)) = (self, value.get_ref()) {
            return self.read_addresses(value.span(), items);
        }
        if let (Form::Models, DeValue::String(text)) = (self, value.get_ref()) {
            let one = self.check(Value::Texts(vec![text.clone().into_owned()]));
            return one.map_err(|refused| (value.span(), refused));
        }
        if let (
            Form::Models | Form::Paths | Form::ClientKeys | Form::Networks | Form::Hosts,
            DeValue::Array(items),
        ) = (self, value.get_ref())
        {
            return self.read_texts(value.span(), items);
        }
        let read = match (self, value.get_ref()) {
            (Form::Switch, DeValue::Boolean(on)) => Ok(Value::Switch(*on)),
            (Form::Number(_) | Form::Size(_), DeValue::Integer(integer)) => {
                let number = u64::from_str_radix(integer.as_str(), integer.radix());
                number
                    .map(Value::Number)
                    .map_err(|_| self.refuse(quote(&integer.to_string())))
            }
            (Form::Size(_) | Form::Time(_) | Form::Word(_) | Form::Path, DeValue::String(text)) => {
                self.read_text(text)
            }
            (_, other) => Err(self.refuse(describe(other))),
        };
        read.and_then(|value| self.check(value))
            .map_err(|refused| (value.span(), refused))
    }

    /// Reads the plain text of an environment variable or a flag.
    pub fn read_text(&self, text: &str) -> Result<Value, Refused> {
        let value = match self {
            Form::Switch => text.parse().ok().map(Value::Switch),
            Form::Number(_) => digits(text).map(Value::Number),
            Form::Size(_) => units::parse_size_bytes(text).map(Value::Number),
            Form::Time(_) => {
                units::parse_duration_ms(text).map(|ms| Value::Time(Duration::from_millis(ms)))
            }
            Form::Word(words) => words()
                .contains(&text)
                .then(|| Value::Text(text.to_owned())),
            Form::Path => Some(Value::Text(text.to_owned())),
            Form::Addresses => return self.read_address_list(text),
            Form::Models | Form::Paths | Form::ClientKeys | Form::Networks | Form::Hosts => {
                let items = text.split(',').map(|item| item.trim().to_owned());
                let items = items.filter(|item| !item.is_empty());
                return self.check_texts(items.collect());
            }
        };
        value
            .ok_or_else(|| self.refuse(quote(&format!("{text:?}"))))
            .and_then(|v| self.check(v))
    }

    /// Whether a value lies in its range.
    pub fn check(&self, value: Value) -> Result<Value, Refused> {
        let fits = match (self, &value) {
            (Form::Number(range) | Form::Size(range), Value::Number(number)) => {
                range.contains(number)
            }
            (Form::Time(range), Value::Time(time)) => {
                u64::try_from(time.as_millis()).is_ok_and(|ms| range.contains(&ms))
            }
            (Form::Path, Value::Text(text)) => is_plain(text),
            (Form::Addresses, Value::Addresses(list)) => limits::ADDRESSES.contains(&list.len()),
            (Form::Models, Value::Texts(list)) => {
                limits::MODELS.contains(&list.len())
                    && list.iter().all(|text| self.takes_element(text))
            }
            (Form::Paths, Value::Texts(list)) => {
                limits::CERTIFICATE_FILES.contains(&list.len())
                    && list.iter().all(|text| !text.is_empty() && is_plain(text))
            }
            (Form::ClientKeys, Value::Texts(list)) => {
                limits::CLIENT_KEYS.contains(&list.len())
                    && list.iter().all(|text| ClientKey::parse(text).is_some())
            }
            (Form::Networks, Value::Texts(list)) => {
                limits::TRUSTED_PROXIES.contains(&list.len())
                    && list.iter().all(|text| TrustedProxies::takes(text))
            }
            (Form::Hosts, Value::Texts(list)) => {
                limits::HOSTS.contains(&list.len()) && list.iter().all(|text| Hosts::takes(text))
            }
            (Form::Switch, Value::Switch(_)) | (Form::Word(_), Value::Text(_)) => true,
            _ => false,
        };
        match fits {
            true => Ok(value),
            false => Err(self.refuse(quote(&self.print(&value)))),
        }
    }

    /// The value as it stands in a file.
    pub fn print(&self, value: &Value) -> String {
        match (self, value) {
            (_, Value::Switch(on)) => on.to_string(),
            (Form::Size(_), Value::Number(bytes)) => match units::print_size_bytes(*bytes) {
                plain if plain.bytes().all(|byte| byte.is_ascii_digit()) => plain,
                with_unit => toml_string(&with_unit),
            },
            (_, Value::Number(number)) => number.to_string(),
            (_, Value::Time(time)) => toml_string(&units::print_duration(*time)),
            (_, Value::Text(text)) => toml_string(text),
            (_, Value::Addresses(list)) => {
                let items: Vec<_> = list
                    .iter()
                    .map(|item| toml_string(&item.to_string()))
                    .collect();
                format!("[{}]", items.join(", "))
            }
            (Form::Models, Value::Texts(list)) if list.len() == 1 => toml_string(&list[0]),
            (_, Value::Texts(list)) => {
                let items: Vec<_> = list.iter().map(|item| toml_string(item)).collect();
                format!("[{}]", items.join(", "))
            }
        }
    }

    /// What is accepted, in the words of a message.
    pub fn expected(&self) -> String {
        match self {
            Form::Switch => "true or false".to_owned(),
            Form::Number(range) => {
                format!("a whole number from {} to {}", range.start(), range.end())
            }
            Form::Size(_) => format!("a size such as \"64KiB\", from {}", self.range()),
            Form::Time(_) => format!("a duration such as \"10s\", from {}", self.range()),
            Form::Word(words) => {
                let quoted: Vec<_> = words().iter().map(|word| format!("{word:?}")).collect();
                match &quoted[..] {
                    [first, second] => format!("{first} or {second}"),
                    several => format!("one of {}", several.join(", ")),
                }
            }
            Form::Path => format!(
                "a path of at most {} bytes, or \"\"",
                limits::TEXT_BYTES_MAX
            ),
            Form::Addresses => format!(
                "a list of {} to {} addresses such as [\"127.0.0.1:8080\"]",
                limits::ADDRESSES.start(),
                limits::ADDRESSES.end()
            ),
            Form::Models => format!(
                "a model's name or path of 1 to {} bytes, or a list of at most {} of them",
                limits::TEXT_BYTES_MAX,
                limits::MODELS.end()
            ),
            Form::Paths => format!(
                "a list of at most {} paths such as [\"/etc/autoglmd/site.pem\"]",
                limits::CERTIFICATE_FILES.end()
            ),
            Form::ClientKeys => format!(
                "a list of at most {} pairs such as [\"{}\"]",
                limits::CLIENT_KEYS.end(),
                ClientKey::EXAMPLE
            ),
            Form::Networks => format!(
                "a list of at most {} networks such as [\"{}\"]",
                limits::TRUSTED_PROXIES.end(),
                TrustedProxies::EXAMPLE
            ),
            Form::Hosts => format!(
                "a list of at most {} host names such as [\"{}\"]",
                limits::HOSTS.end(),
                Hosts::EXAMPLE
            ),
        }
    }

    /// The type's name in the documentation.
    pub fn type_name(&self) -> &'static str {
        match self {
            Form::Switch => "boolean",
            Form::Number(_) => "integer",
            Form::Size(_) => "size",
            Form::Time(_) => "duration",
            Form::Word(_) => "word",
            Form::Path => "path",
            Form::Addresses => "list of addresses",
            Form::Models => "string or list of strings",
            Form::Paths => "list of paths",
            Form::ClientKeys => "list of pairs",
            Form::Networks => "list of networks",
            Form::Hosts => "list of host names",
        }
    }

    /// The allowed values in the documentation.
    pub fn range(&self) -> String {
        let (start, end) = match self {
            Form::Number(range) => (range.start().to_string(), range.end().to_string()),
            Form::Size(range) => (
                units::print_size_bytes(*range.start()),
                units::print_size_bytes(*range.end()),
            ),
            Form::Time(range) => (
                units::print_duration_ms(*range.start()),
                units::print_duration_ms(*range.end()),
            ),
            Form::Word(words) => return words().join(", "),
            Form::Switch => return "true, false".to_owned(),
            Form::Path => return format!("up to {} bytes", limits::TEXT_BYTES_MAX),
            Form::Addresses => (
                limits::ADDRESSES.start().to_string(),
                limits::ADDRESSES.end().to_string(),
            ),
            Form::Models => (
                limits::MODELS.start().to_string(),
                limits::MODELS.end().to_string(),
            ),
            Form::Paths => (
                limits::CERTIFICATE_FILES.start().to_string(),
                limits::CERTIFICATE_FILES.end().to_string(),
            ),
            Form::ClientKeys => (
                limits::CLIENT_KEYS.start().to_string(),
                limits::CLIENT_KEYS.end().to_string(),
            ),
            Form::Networks => (
                limits::TRUSTED_PROXIES.start().to_string(),
                limits::TRUSTED_PROXIES.end().to_string(),
            ),
            Form::Hosts => (
                limits::HOSTS.start().to_string(),
                limits::HOSTS.end().to_string(),
            ),
        };
        format!("{start} to {end}")
    }

    fn read_addresses(
        &self,
        whole: Range<usize>,
        items: &[Spanned<DeValue<'_>>],
    ) -> Result<Value, (Range<usize>, Refused)> {
        let mut list = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match item.get_ref().as_str().and_then(Listen::parse) {
                Some(listen) => list.push(listen),
                None => {
                    let (found, text) = (describe(item.get_ref()), item.get_ref().as_str());
                    let refused = not_an_address(index, found, text.unwrap_or_default());
                    return Err((item.span(), refused));
                }
            }
        }
        self.check_addresses(list)
            .map_err(|refused| (whole, refused))
    }

    /// The plain form of a list is its elements with commas between them.
    fn read_address_list(&self, text: &str) -> Result<Value, Refused> {
        let mut list = Vec::new();
        for (index, item) in text.split(',').enumerate() {
            match Listen::parse(item.trim()) {
                Some(listen) => list.push(listen),
                None => {
                    let found = quote(&format!("{item:?}"));
                    return Err(not_an_address(index, found, item.trim()));
                }
            }
        }
        self.check_addresses(list)
    }

    fn read_texts(
        &self,
        whole: Range<usize>,
        items: &[Spanned<DeValue<'_>>],
    ) -> Result<Value, (Range<usize>, Refused)> {
        let mut list = Vec::new();
        for (index, item) in items.iter().enumerate() {
            match item.get_ref().as_str() {
                Some(text) if self.takes_element(text) => list.push(text.to_owned()),
                _ => {
                    let found = describe(item.get_ref());
                    return Err((item.span(), self.refuse_element(index, found)));
                }
            }
        }
        self.check_texts(list).map_err(|refused| (whole, refused))
    }

    fn check_texts(&self, list: Vec<String>) -> Result<Value, Refused> {
        if let Some(index) = list.iter().position(|text| !self.takes_element(text)) {
            return Err(self.refuse_element(index, quote(&format!("{:?}", list[index]))));
        }
        self.check(Value::Texts(list))
    }

    fn takes_element(&self, text: &str) -> bool {
        match self {
            Form::ClientKeys => ClientKey::parse(text).is_some(),
            Form::Networks => TrustedProxies::takes(text),
            Form::Hosts => Hosts::takes(text),
            Form::Models => !text.trim().is_empty() && is_plain(text),
            _ => !text.is_empty() && is_plain(text),
        }
    }

    fn refuse_element(&self, index: usize, found: String) -> Refused {
        Refused {
            element: format!("[{index}]"),
            found,
            expected: match self {
                Form::ClientKeys => ClientKey::EXPECTED.to_owned(),
                Form::Networks => TrustedProxies::EXPECTED.to_owned(),
                Form::Hosts => Hosts::EXPECTED.to_owned(),
                Form::Models => format!("a name or path of 1 to {} bytes", limits::TEXT_BYTES_MAX),
                _ => format!("a path of 1 to {} bytes", limits::TEXT_BYTES_MAX),
            },
        }
    }

    /// The same address twice could only fail later, when it is bound.
    fn check_addresses(&self, list: Vec<Listen>) -> Result<Value, Refused> {
        for (index, item) in list.iter().enumerate() {
            let any_port = matches!(item.place, Place::Tcp(address) if address.port() == 0);
            let same = |earlier: &Listen| earlier.place == item.place;
            if !any_port && list[..index].iter().any(same) {
                return Err(Refused {
                    element: format!("[{index}]"),
                    found: quote(&format!("{:?} once more", item.to_string())),
                    expected: "each address once".to_owned(),
                });
            }
        }
        self.check(Value::Addresses(list))
    }

    fn refuse(&self, found: String) -> Refused {
        Refused {
            element: String::new(),
            found,
            expected: self.expected(),
        }
    }
}

/// A field of the configuration that a [`Value`] can be put into.
pub trait Field: Sized {
    fn to_value(&self) -> Value;
    /// `None` where the value is of another form or too large for the type.
    fn from_value(value: Value) -> Option<Self>;
}

impl Field for bool {
    fn to_value(&self) -> Value {
        Value::Switch(*self)
    }

    fn from_value(value: Value) -> Option<bool> {
        match value {
            Value::Switch(on) => Some(on),
            _ => None,
        }
    }
}

macro_rules! number_field {
    ($($type:ty),+) => {$(
        impl Field for $type {
            fn to_value(&self) -> Value {
                Value::Number(*self as u64)
            }

            fn from_value(value: Value) -> Option<$type> {
                match value {
                    Value::Number(number) => number.try_into().ok(),
                    _ => None,
                }
            }
        }
    )+};
}

number_field!(u16, u32, usize);

impl Field for Duration {
    fn to_value(&self) -> Value {
        Value::Time(*self)
    }

    fn from_value(value: Value) -> Option<Duration> {
        match value {
            Value::Time(time) => Some(time),
            _ => None,
        }
    }
}

impl Field for String {
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }

    fn from_value(value: Value) -> Option<String> {
        match value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl Field for Option<PathBuf> {
    fn to_value(&self) -> Value {
        let text = self
            .as_ref()
            .map(|path| path.to_string_lossy().into_owned());
        Value::Text(text.unwrap_or_default())
    }

    fn from_value(value: Value) -> Option<Option<PathBuf>> {
        match value {
            Value::Text(text) => Some((!text.is_empty()).then(|| text.into())),
            _ => None,
        }
    }
}

impl Field for Vec<Listen> {
    fn to_value(&self) -> Value {
        Value::Addresses(self.clone())
    }

    fn from_value(value: Value) -> Option<Vec<Listen>> {
        match value {
            Value::Addresses(list) => Some(list),
            _ => None,
        }
    }
}

impl Field for Vec<String> {
    fn to_value(&self) -> Value {
        Value::Texts(self.clone())
    }

    fn from_value(value: Value) -> Option<Vec<String>> {
        match value {
            Value::Texts(list) => Some(list),
            _ => None,
        }
    }
}

impl Field for Vec<PathBuf> {
    fn to_value(&self) -> Value {
        let texts = self.iter().map(|path| path.to_string_lossy().into_owned());
        Value::Texts(texts.collect())
    }

    fn from_value(value: Value) -> Option<Vec<PathBuf>> {
        match value {
            Value::Texts(list) => Some(list.into_iter().map(PathBuf::from).collect()),
            _ => None,
        }
    }
}

impl Field for Vec<ClientKey> {
    fn to_value(&self) -> Value {
        Value::Texts(self.iter().map(ClientKey::to_string).collect())
    }

    fn from_value(value: Value) -> Option<Vec<ClientKey>> {
        match value {
            Value::Texts(list) => list.iter().map(|text| ClientKey::parse(text)).collect(),
            _ => None,
        }
    }
}

impl Field for TrustedProxies {
    fn to_value(&self) -> Value {
        Value::Texts(self.texts())
    }

    fn from_value(value: Value) -> Option<TrustedProxies> {
        match value {
            Value::Texts(list) => TrustedProxies::parse(&list),
            _ => None,
        }
    }
}

impl Field for Hosts {
    fn to_value(&self) -> Value {
        Value::Texts(self.texts())
    }

    fn from_value(value: Value) -> Option<Hosts> {
        match value {
            Value::Texts(list) => Hosts::parse(&list),
            _ => None,
        }
    }
}

impl<T: Word> Field for T {
    fn to_value(&self) -> Value {
        Value::Text(word(*self).to_owned())
    }

    fn from_value(value: Value) -> Option<T> {
        let Value::Text(text) = value else {
            return None;
        };
        T::WORDS
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value)
    }
}

/// A TOML string: JSON's escapes are among TOML's, which also wants DEL escaped.
pub fn toml_string(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\x7f', "\\u007f")
}

/// What a value of the file is, in the words of a message.
pub fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quote(&format!("{text:?}")),
        DeValue::Integer(integer) => quote(&integer.to_string()),
        DeValue::Float(float) => quote(&float.to_string()),
        DeValue::Boolean(on) => on.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

fn not_an_address(index: usize, found: String, text: &str) -> Refused {
    Refused {
        element: format!("[{index}]"),
        found,
        expected: Listen::expected(text).to_owned(),
    }
}

/// `str::parse` would take `+5` as well.
fn digits(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// Paths and names end at a NUL once they reach the kernel or the engine.
fn is_plain(text: &str) -> bool {
    text.len() <= limits::TEXT_BYTES_MAX && !text.contains('\0')
}

#[cfg(test)]
impl Form {
    /// The smallest and the largest value of a form that has such.
    pub fn ends(&self) -> Vec<Value> {
        match self {
            Form::Number(range) | Form::Size(range) => {
                vec![Value::Number(*range.start()), Value::Number(*range.end())]
            }
            Form::Time(range) => [range.start(), range.end()]
                .map(|ms| Value::Time(Duration::from_millis(*ms)))
                .to_vec(),
            Form::Word(words) => words()
                .into_iter()
                .map(|word| Value::Text(word.into()))
                .collect(),
            Form::Switch => vec![Value::Switch(false), Value::Switch(true)],
            Form::Path
            | Form::Addresses
            | Form::Models
            | Form::Paths
            | Form::ClientKeys
            | Form::Networks
            | Form::Hosts => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::words::{EngineKind, words};
    use proptest::prelude::*;

    /// Mutations that this test catches: a list that is printed as its first element, and one that
    /// may be empty.
    #[test]
    fn models_are_one_text_or_a_list() {
        let read = |text: &str| {
            let value = DeValue::parse(text).expect("the test writes TOML");
            Form::Models
                .read_toml(&value)
                .map_err(|(_, refused)| refused.expected)
        };
        let texts = |list: &[&str]| Value::Texts(list.iter().map(|&text| text.into()).collect());
        for (text, list) in [
            (r#""a""#, &["a"][..]),
            (r#"["a", "/b, c.gguf"]"#, &["a", "/b, c.gguf"]),
        ] {
            assert_eq!(read(text), Ok(texts(list)));
            assert_eq!(Form::Models.print(&texts(list)), text);
        }
        assert_eq!(read(r#"["a"]"#), Ok(texts(&["a"])));
        assert_eq!(Form::Models.read_text("a, b"), Ok(texts(&["a", "b"])));
        let many = format!("[{}]", r#""a","#.repeat(17));
        for wrong in ["[]", r#"[""]"#, r#""""#, "1", "[1]", &many] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(Form::Models.read_text(" , ").is_err());
    }

    proptest! {
        #[test]
        fn a_printed_text_is_read_back_by_toml(text: String) {
            let printed = Form::Path.print(&Value::Text(text.clone()));
            prop_assert!(!printed.contains('\n'));
            let read = DeValue::parse(&printed).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(read.get_ref().as_str(), Some(text.as_str()));
        }

        #[test]
        fn any_plain_text_is_read_or_refused(text: String) {
            let forms = [
                Form::Switch, Form::Number(0..=9), Form::Size(0..=9), Form::Time(0..=9),
                Form::Word(words::<EngineKind>), Form::Models, Form::Path, Form::Addresses,
                Form::Paths, Form::ClientKeys, Form::Networks, Form::Hosts,
            ];
            for form in forms {
                match form.read_text(&text) {
                    Ok(value) => prop_assert_eq!(form.check(value.clone()), Ok(value)),
                    Err(refused) => prop_assert!(!refused.expected.is_empty()),
                }
            }
        }
    }
}
