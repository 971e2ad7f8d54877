//! A value between its text and its field.
//!
//! Owns the types of values, their conversion from and to each type of field, and the descriptions
//! of values found in a file. Knows no key and no range.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::address::Listen;
use super::database::StoreUrl;
use super::hosts::Hosts;
use super::networks::Networks;
use super::problem::quote;
use super::proxies::TrustedProxies;
use super::redis_url::RedisUrl;
use super::tls::ClientKey;
use super::words::{Word, parse_word, word};

/// A value that was read, or that is to be printed.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Switch(bool),
    Number(u64),
    Time(Duration),
    Text(String),
    List(Vec<Value>),
}

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// The place of the error below the key: `[2]` for the third element of a list, otherwise
    /// empty.
    pub element: String,
    pub found: String,
    pub expected: String,
}

/// A field of the configuration that a [`Value`] can be put into.
pub trait Field: Sized {
    fn to_value(&self) -> Value;
    /// Returns `None` if the value is of another kind or too large for the type.
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

number_field!(u16, u32, u64, usize);

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

/// Implements the conversion for types that are written as one text.
macro_rules! text_field {
    ($($type:ty: $print:expr, $parse:expr;)+) => {$(
        impl Field for $type {
            fn to_value(&self) -> Value {
                let print: fn(&$type) -> String = $print;
                Value::Text(print(self))
            }

            fn from_value(value: Value) -> Option<$type> {
                let parse: fn(String) -> Option<$type> = $parse;
                match value {
                    Value::Text(text) => parse(text),
                    _ => None,
                }
            }
        }
    )+};
}

text_field! {
    String: String::clone, Some;
    PathBuf: |path| path.to_string_lossy().into_owned(), |text| Some(text.into());
    // Empty text means none.
    Option<PathBuf>:
        |path| path.as_ref().map_or_else(String::new, |path| path.to_string_lossy().into_owned()),
        |text| Some((!text.is_empty()).then(|| text.into()));
    Listen: Listen::to_string, |text| Listen::parse(&text);
    ClientKey: ClientKey::to_string, |text| ClientKey::parse(&text);
    SocketAddr: SocketAddr::to_string, |text| text.parse().ok();
    // Empty text means none.
    Option<SocketAddr>:
        |address| address.as_ref().map_or_else(String::new, SocketAddr::to_string),
        |text| match text.is_empty() {
            true => Some(None),
            false => text.parse().ok().map(Some),
        };
    // Empty text means none.
    Option<RedisUrl>:
        |url| url.as_ref().map_or_else(String::new, RedisUrl::to_string),
        |text| match text.is_empty() {
            true => Some(None),
            false => RedisUrl::parse(&text).map(Some),
        };
    StoreUrl: |url| url.as_str().to_owned(), |text| StoreUrl::parse(&text);
}

impl<T: Word> Field for T {
    fn to_value(&self) -> Value {
        Value::Text(word(*self).to_owned())
    }

    fn from_value(value: Value) -> Option<T> {
        match value {
            Value::Text(text) => parse_word(&text),
            _ => None,
        }
    }
}

impl<T: Field> Field for Vec<T> {
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(T::to_value).collect())
    }

    fn from_value(value: Value) -> Option<Vec<T>> {
        match value {
            Value::List(list) => list.into_iter().map(T::from_value).collect(),
            _ => None,
        }
    }
}

impl Field for TrustedProxies {
    fn to_value(&self) -> Value {
        self.texts().to_value()
    }

    fn from_value(value: Value) -> Option<TrustedProxies> {
        TrustedProxies::parse(&Vec::<String>::from_value(value)?)
    }
}

impl Field for Networks {
    fn to_value(&self) -> Value {
        self.texts().to_value()
    }

    fn from_value(value: Value) -> Option<Networks> {
        Networks::parse(&Vec::<String>::from_value(value)?)
    }
}

impl Field for Hosts {
    fn to_value(&self) -> Value {
        self.texts().to_value()
    }

    fn from_value(value: Value) -> Option<Hosts> {
        Hosts::parse(&Vec::<String>::from_value(value)?)
    }
}

/// Returns a TOML string: JSON's escapes are among TOML's, which also requires DEL escaped.
pub fn toml_string(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\x7f', "\\u007f")
}

/// Describes a value of the file for a message.
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
