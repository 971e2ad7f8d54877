//! The kinds of values: from TOML, or from the plain text of a variable or flag, to a checked
//! [`Value`], and back to TOML.
//!
//! Owns the way from text to value, which is the same for every kind, and the wording of "KEY is
//! FOUND; expected EXPECTED". The kinds themselves are rows in [`kinds`]. Knows no key and no file.
//!
//! [`kinds`]: super::kinds

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::DeValue;

use super::problem::quote;
use super::value::{Refused, Value, describe};

/// A kind of value: the accepted text, and how it is read and printed.
pub struct ValueKind {
    /// The name of one value in the documentation: `duration`. See [`ValueKind::name`].
    pub name: &'static str,
    /// The name of several values, and an example of one: for lists.
    pub plural: &'static str,
    pub example: &'static str,
    /// Describes the accepted text for a message.
    pub expected: fn(&ValueKind) -> String,
    /// Returns better advice than `expected` for some texts.
    pub advice: fn(&str) -> Option<&'static str>,
    /// Describes the allowed values for the documentation.
    pub range: fn(&ValueKind) -> String,
    /// Returns every value, if there are only a few.
    pub words: fn() -> Vec<&'static str>,
    /// The allowed results of `measure`: the value of a number, the bytes of a text, the elements
    /// of a list.
    pub bounds: RangeInclusive<u64>,
    /// Returns `None` if the value is of another kind.
    pub measure: fn(&Value) -> Option<u64>,
    pub from_toml: fn(&DeValue<'_>) -> Option<Value>,
    pub from_text: fn(&str) -> Option<Value>,
    /// Returns the value as it is written in a file. See [`ValueKind::print`].
    pub print: fn(&Value) -> String,
    /// For a list, which is read and printed element by element.
    pub list: Option<List>,
}

/// The special properties of a list.
pub struct List {
    pub element: &'static ValueKind,
    /// `model = "a"` means `model = ["a"]`, and is printed so.
    pub may_stand_alone: bool,
    /// Returns whether the second element repeats the first, which is an error.
    pub repeats: fn(&Value, &Value) -> bool,
}

impl List {
    pub const fn of(element: &'static ValueKind) -> List {
        List {
            element,
            may_stand_alone: false,
            repeats: |_, _| false,
        }
    }
}

impl ValueKind {
    /// Reads a value of the file. The error's range is the place of the value, or of the element.
    pub fn read_toml(
        &self,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Value, (Range<usize>, Refused)> {
        let at_value = |refused| (value.span(), refused);
        let unread = || at_value(self.refuse(describe(value.get_ref()), value.get_ref().as_str()));
        let read = match (&self.list, value.get_ref()) {
            (Some(list), DeValue::Array(items)) => list.read_items(items)?,
            (Some(list), _) if list.may_stand_alone => {
                let one = list.element.read_toml(value).map_err(|_| unread())?;
                Value::List(vec![one])
            }
            (Some(_), _) => return Err(unread()),
            (None, scalar) => (self.from_toml)(scalar).ok_or_else(unread)?,
        };
        self.check(read).map_err(at_value)
    }

    /// Reads the plain text of an environment variable or a flag. A list is written as its elements
    /// with commas between them.
    pub fn read_text(&self, text: &str) -> Result<Value, Refused> {
        let value = match &self.list {
            Some(list) => list.read_text(text)?,
            None => (self.from_text)(text)
                .ok_or_else(|| self.refuse(quote(&format!("{text:?}")), Some(text)))?,
        };
        self.check(value)
    }

    /// Checks that a value is one of this kind, within its range.
    pub fn check(&self, value: Value) -> Result<Value, Refused> {
        let is_within =
            (self.measure)(&value).is_some_and(|measure| self.bounds.contains(&measure));
        let is_readable = match &value {
            Value::Text(text) => (self.from_text)(text).is_some(),
            _ => true,
        };
        if !is_within || !is_readable {
            return Err(self.refuse(quote(&self.print(&value)), None));
        }
        if let (Some(list), Value::List(items)) = (&self.list, &value) {
            list.check_items(items)?;
        }
        Ok(value)
    }

    /// Returns the value as it is written in a file.
    pub fn print(&self, value: &Value) -> String {
        match (&self.list, value) {
            (Some(list), Value::List(items)) => match &items[..] {
                [one] if list.may_stand_alone => list.element.print(one),
                items => {
                    let items: Vec<_> = items.iter().map(|item| list.element.print(item)).collect();
                    format!("[{}]", items.join(", "))
                }
            },
            _ => (self.print)(value),
        }
    }

    /// Describes the accepted text for a message.
    pub fn expected(&self) -> String {
        (self.expected)(self)
    }

    /// Describes the allowed values for the documentation.
    pub fn range(&self) -> String {
        (self.range)(self)
    }

    /// Returns the type's name for the documentation.
    pub fn name(&self) -> String {
        match &self.list {
            None => self.name.to_owned(),
            Some(list) if list.may_stand_alone => {
                format!("{} or list of {}", list.element.name, list.element.plural)
            }
            Some(list) => format!("list of {}", list.element.plural),
        }
    }

    /// Returns [`ValueKind::expected`] of a list.
    pub fn expected_list(&self) -> String {
        let (start, end) = (self.bounds.start(), self.bounds.end());
        match &self.list {
            Some(list) if list.may_stand_alone => format!(
                "{}, or a list of at most {end} of them",
                list.element.expected()
            ),
            Some(List { element, .. }) => {
                let count = match start {
                    0 => format!("at most {end}"),
                    start => format!("{start} to {end}"),
                };
                let (plural, example) = (element.plural, element.example);
                format!("a list of {count} {plural} such as [\"{example}\"]")
            }
            None => String::new(),
        }
    }

    /// Refuses a value; `text` is the found text, if it was one.
    fn refuse(&self, found: String, text: Option<&str>) -> Refused {
        let advice = text.and_then(|text| (self.advice)(text));
        Refused {
            element: String::new(),
            found,
            expected: advice.map_or_else(|| self.expected(), str::to_owned),
        }
    }
}

impl List {
    fn read_items(&self, items: &[Spanned<DeValue<'_>>]) -> Result<Value, (Range<usize>, Refused)> {
        let read = |(index, item)| {
            let read = self.element.read_toml(item);
            read.map_err(|(span, refused)| (span, refused.at(index)))
        };
        let list = items.iter().enumerate().map(read);
        list.collect::<Result<_, _>>().map(Value::List)
    }

    fn read_text(&self, text: &str) -> Result<Value, Refused> {
        let items = text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty());
        let read = |(index, item)| {
            let read = self.element.read_text(item);
            read.map_err(|refused| refused.at(index))
        };
        let list = items.enumerate().map(read);
        list.collect::<Result<_, _>>().map(Value::List)
    }

    fn check_items(&self, items: &[Value]) -> Result<(), Refused> {
        for (index, item) in items.iter().enumerate() {
            let checked = self.element.check(item.clone());
            checked.map_err(|refused| refused.at(index))?;
            if items[..index]
                .iter()
                .any(|earlier| (self.repeats)(earlier, item))
            {
                let repeated = Refused {
                    element: String::new(),
                    found: quote(&format!("{} once more", self.element.print(item))),
                    expected: format!("each {} once", self.element.name),
                };
                return Err(repeated.at(index));
            }
        }
        Ok(())
    }
}

impl Refused {
    /// Moves the refusal to an element of the list.
    fn at(self, index: usize) -> Refused {
        Refused {
            element: format!("[{index}]"),
            ..self
        }
    }
}

#[cfg(test)]
impl ValueKind {
    /// Returns the smallest and the largest value, or all of them, if the kind has any.
    pub fn ends(&self) -> Vec<Value> {
        let words = (self.words)();
        if !words.is_empty() {
            return words
                .iter()
                .filter_map(|word| (self.from_text)(word))
                .collect();
        }
        let ends = [*self.bounds.start(), *self.bounds.end()];
        let numbers = ends.map(Value::Number);
        let times = ends.map(|ms| Value::Time(std::time::Duration::from_millis(ms)));
        [numbers, times]
            .into_iter()
            .flatten()
            .filter(|value| self.check(value.clone()).is_ok())
            .collect()
    }
}
