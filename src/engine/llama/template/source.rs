//! Rewrites Jinja that minijinja does not support, before it is parsed.
//!
//! * `{% generation %}` and `{% endgeneration %}` show a trainer which text the assistant wrote.
//!   They have no effect when a model is used: each becomes an `if true`, which keeps the tag's
//!   control of white space.
//! * In Python lists and maps change in place (`{% do found.append(x) %}`); minijinja's do not. A
//!   list or map literal that is assigned to a name on which the template calls such a method
//!   becomes a [`growing`] one.
//!
//! The source is read as text, not as Jinja: a name counts wherever it occurs. A literal that is
//! rewritten unnecessarily behaves the same. Fuel bounds how far a list grows, as it bounds
//! everything that a template does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use minijinja::{Error, ErrorKind, State};

/// The name of the function that wraps a literal.
pub const GROWING: &str = "autoglmd_growing";

/// The methods that change a list or a map in place.
const METHODS: &[&str] = &[
    "append",
    "extend",
    "insert",
    "pop",
    "clear",
    "remove",
    "reverse",
    "update",
    "setdefault",
];

/// Returns the template in minijinja's syntax.
pub fn adapted(source: &str) -> String {
    with_growing_literals(&without_training_tags(source))
}

fn without_training_tags(source: &str) -> String {
    let mut adapted = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let inside = &rest[start + 2..start + length];
        let word = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let instead = match word {
            "generation" => Some(inside.replace("generation", " if true ")),
            "endgeneration" => Some(inside.replace("endgeneration", " endif ")),
            _ => None,
        };
        adapted.push_str(&rest[..start + 2]);
        adapted.push_str(instead.as_deref().unwrap_or(inside));
        adapted.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    adapted.push_str(rest);
    adapted
}

fn with_growing_literals(source: &str) -> String {
    let names = changed_names(source);
    let mut adapted = String::with_capacity(source.len());
    let mut done = 0;
    let mut from = 0;
    while let Some(found) = source[from..].find('=') {
        let sign = from + found;
        from = sign + 1;
        let name = last_word(source[..sign].trim_end());
        let blanks = source[from..].len() - source[from..].trim_start().len();
        let start = from + blanks;
        if !names.contains(name) || start < done {
            continue;
        }
        let Some(length) = literal_length(&source[start..]) else {
            continue;
        };
        adapted.push_str(&source[done..start]);
        adapted.push_str(GROWING);
        adapted.push('(');
        adapted.push_str(&source[start..start + length]);
        adapted.push(')');
        done = start + length;
    }
    adapted.push_str(&source[done..]);
    adapted
}

/// Returns the names on which one of the methods is called; of a path the last name.
fn changed_names(source: &str) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for method in METHODS {
        let call = format!(".{method}(");
        for (at, _) in source.match_indices(&call) {
            names.insert(last_word(&source[..at]));
        }
    }
    names.remove("");
    names
}

/// Returns the identifier at the end of a text, or nothing.
fn last_word(text: &str) -> &str {
    let is_inner = |c: char| c.is_alphanumeric() || c == '_';
    let start = text.trim_end_matches(is_inner).len();
    &text[start..]
}

/// Returns the length in bytes of the list or map literal with which a text begins.
fn literal_length(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut quote = None;
    let mut is_escaped = false;
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (Some(_), _) if is_escaped => is_escaped = false,
            (Some(_), '\\') => is_escaped = true,
            (Some(open), _) if open == character => quote = None,
            (Some(_), _) => {}
            (None, '[' | '{') if depth > 0 || at == 0 => depth += 1,
            // Not a literal.
            (None, _) if depth == 0 => return None,
            (None, '"' | '\'') => quote = Some(character),
            (None, ']' | '}') => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            (None, _) => {}
        }
    }
    None
}

/// Turns a literal into a value that changes in place.
pub fn growing(value: Value) -> Result<Value, Error> {
    if value.kind() == minijinja::value::ValueKind::Map {
        let mut map = BTreeMap::new();
        for key in value.try_iter()? {
            let inner = value.get_item(&key)?;
            map.insert(key, inner);
        }
        return Ok(Value::from_object(GrowingMap(Mutex::new(map))));
    }
    let values = value.try_iter()?.collect();
    Ok(Value::from_object(GrowingList(Mutex::new(values))))
}

#[derive(Debug)]
struct GrowingList(Mutex<Vec<Value>>);

#[derive(Debug)]
struct GrowingMap(Mutex<BTreeMap<Value, Value>>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call of the standard library: none is half done after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wrong_arguments(method: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("wrong arguments for {method}()"),
    )
}

impl Object for GrowingList {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let values = locked(&self.0);
        let index = i64::try_from(key.clone()).ok()?;
        let index = match index < 0 {
            true => values.len().checked_sub(usize::try_from(-index).ok()?)?,
            false => usize::try_from(index).ok()?,
        };
        values.get(index).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(locked(&self.0).len())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        arguments: &[Value],
    ) -> Result<Value, Error> {
        // Outside the lock: the argument may be this very list.
        let more: Vec<Value> = match (method, arguments) {
            ("extend", [values]) => values.try_iter()?.collect(),
            _ => Vec::new(),
        };
        let mut values = locked(&self.0);
        match (method, arguments) {
            ("append", [value]) => values.push(value.clone()),
            ("extend", [_]) => values.extend(more),
            ("insert", [index, value]) => {
                let index = usize::try_from(index.clone()).map_err(|_| wrong_arguments(method))?;
                let index = index.min(values.len());
                values.insert(index, value.clone());
            }
            ("pop", []) => return Ok(values.pop().unwrap_or_default()),
            ("pop", [index]) => {
                let index = usize::try_from(index.clone()).map_err(|_| wrong_arguments(method))?;
                return match index < values.len() {
                    true => Ok(values.remove(index)),
                    false => Err(wrong_arguments(method)),
                };
            }
            ("remove", [value]) => {
                if let Some(index) = values.iter().position(|other| other == value) {
                    values.remove(index);
                }
            }
            ("clear", []) => values.clear(),
            ("reverse", []) => values.reverse(),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        }
        Ok(Value::from(()))
    }
}

impl Object for GrowingMap {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        locked(&self.0).get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(locked(&self.0).keys().cloned().collect())
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        arguments: &[Value],
    ) -> Result<Value, Error> {
        let mut more = Vec::new();
        if let ("update", [other]) = (method, arguments) {
            for key in other.try_iter()? {
                let value = other.get_item(&key)?;
                more.push((key, value));
            }
        }
        let mut map = locked(&self.0);
        match (method, arguments) {
            ("update", [_]) => map.extend(more),
            ("setdefault", [key, value]) => {
                return Ok(map.entry(key.clone()).or_insert(value.clone()).clone());
            }
            ("pop", [key]) => return Ok(map.remove(key).unwrap_or_default()),
            ("pop", [key, value]) => return Ok(map.remove(key).unwrap_or_else(|| value.clone())),
            ("clear", []) => map.clear(),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        }
        Ok(Value::from(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_literals_of_changed_names_are_wrapped() {
        let source = "{% set a = [1, ['=']] %}{% set b = [] %}{% set a = c %}{% do a.append(1) %}";
        let adapted = adapted(source);
        assert_eq!(
            adapted,
            "{% set a = autoglmd_growing([1, ['=']]) %}{% set b = [] %}{% set a = c %}\
             {% do a.append(1) %}"
        );
    }

    #[test]
    fn ordinary_template_is_left_alone() {
        let source = "{% if a == b %}{{ x['k'] = [} }}{% endif %} {% x {%- generations %}";
        assert_eq!(adapted(source), source);
    }
}
