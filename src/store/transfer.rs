//! Writes all of a store to a stream of lines, and reads it into another one, whatever the
//! databases are.
//!
//! Owns the format. Must never hold more than a few rows.
//!
//! | line | content |
//! | --- | --- |
//! | first | `{"format":"autoglmd-store","version":1,"secrets":true}` |
//! | each row | `["TABLE",VALUE,...]`, in the order of [`TABLES`] and of their columns |
//! | last | `{"rows":{"TABLE":N,...},"blake3":"HEX"}`: counts, and the digest of all before |
//!
//! Bytes are in hex. `secrets` is true because the rows have hashes of keys and secrets of
//! webhooks, so the file is for its owner alone. The digest finds damage, not malice.
//!
//! An import is one transaction. Nothing is kept of a file that is truncated, altered or of
//! another version: the last line is read before the commit.
//!
//! Mutations that the tests in `store/tests/transfer.rs` catch: a commit before the last line, a
//! column that is left out, no comparison of the counts or of the digest, an import into a store
//! that has rows, a prompt that is not encoded, a table that an earlier version did not name.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, Read as _, Write};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::error::StoreError;
use super::interface::Store;
use super::interface::transfer::{Kind, TABLES, Table, Value};
use crate::limits::store as limits;

const FORMAT: &str = "autoglmd-store";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    secrets: bool,
}

#[derive(Serialize, Deserialize)]
struct Trailer {
    rows: Counts,
    blake3: String,
}

/// Rows of each table.
pub type Counts = BTreeMap<String, u64>;

#[derive(Debug)]
pub enum TransferError {
    Store(StoreError),
    /// The stream cannot be read or written.
    Stream(io::Error),
    /// The fault of the file, and the line that has it.
    Content(u64, String),
    /// The store has rows of this table.
    NotEmpty(&'static str),
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TransferError::Store(error) => error.fmt(f),
            TransferError::Stream(error) => error.fmt(f),
            TransferError::Content(line, reason) => write!(f, "line {line}: {reason}"),
            TransferError::NotEmpty(table) => write!(
                f,
                "the store already has rows of `{table}`; import into an empty one, or pass \
                 --merge to add the rows that it lacks"
            ),
        }
    }
}

impl From<StoreError> for TransferError {
    fn from(error: StoreError) -> TransferError {
        TransferError::Store(error)
    }
}

// ---- export ------------------------------------------------------------------------------------

/// Writes all rows. Returns how many.
pub fn export(store: &dyn Store, out: &mut dyn Write) -> Result<Counts, TransferError> {
    let mut writer = Writer {
        out,
        hasher: blake3::Hasher::new(),
        failed: None,
    };
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        secrets: true,
    };
    let mut rows = no_counts();
    writer.line(&header)?;
    let exported = store.export(&mut |table, row| {
        let values: Vec<Json> = serde_json::from_str(row).map_err(|_| StoreError::Panicked)?;
        let mut line = vec![Json::from(table.name)];
        line.extend(values);
        *rows.entry(table.name.to_owned()).or_default() += 1;
        // The error of the stream is returned below.
        writer.line(&line).map_err(|error| {
            writer.failed = Some(error);
            StoreError::Panicked
        })
    });
    if let Some(error) = writer.failed.take() {
        return Err(error);
    }
    exported?;
    let blake3 = writer.hasher.finalize().to_hex().to_string();
    let trailer = Trailer { rows, blake3 };
    writer.line(&trailer)?;
    writer.out.flush().map_err(TransferError::Stream)?;
    Ok(trailer.rows)
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    hasher: blake3::Hasher,
    failed: Option<TransferError>,
}

impl Writer<'_> {
    fn line(&mut self, value: &impl Serialize) -> Result<(), TransferError> {
        let stream = |error: serde_json::Error| TransferError::Stream(error.into());
        let mut line = serde_json::to_vec(value).map_err(stream)?;
        line.push(b'\n');
        self.hasher.update(&line);
        self.out.write_all(&line).map_err(TransferError::Stream)
    }
}

fn no_counts() -> Counts {
    TABLES
        .iter()
        .map(|table| (table.name.to_owned(), 0))
        .collect()
}

// ---- import ------------------------------------------------------------------------------------

/// The rows of an import.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Imported {
    pub added: u64,
    /// Those that were there already. Only a merge has any.
    pub skipped: u64,
}

/// Reads all rows into a store that has none; with `merge`, into one that has. A row that is there
/// stays as it is.
pub fn import(
    store: &mut dyn Store,
    input: &mut dyn BufRead,
    merge: bool,
) -> Result<Imported, TransferError> {
    store.begin()?;
    let imported = read_all(store, input, merge);
    match imported {
        Ok(imported) => {
            store.commit()?;
            Ok(imported)
        }
        Err(error) => {
            store.roll_back();
            Err(error)
        }
    }
}

fn read_all(
    store: &mut dyn Store,
    input: &mut dyn BufRead,
    merge: bool,
) -> Result<Imported, TransferError> {
    for table in TABLES {
        if !merge && store.has_rows(table)? {
            return Err(TransferError::NotEmpty(table.name));
        }
    }
    let mut lines = Lines {
        input,
        line: Vec::new(),
        number: 0,
        hasher: blake3::Hasher::new(),
    };
    let header = lines.next()?;
    let header: Header = lines.parse(header, "the file is not an export of autoglmd")?;
    if (header.format.as_str(), header.version) != (FORMAT, VERSION) {
        let reason = format!(
            "version {} of `{}` is unknown",
            header.version, header.format
        );
        return Err(lines.wrong(reason));
    }
    let (mut rows, mut imported) = (no_counts(), Imported::default());
    loop {
        let before = lines.hasher.clone();
        let line = lines.next()?;
        if line.first() == Some(&b'{') {
            let trailer: Trailer = lines.parse(line, "the last line is damaged")?;
            let digest = before.finalize().to_hex();
            if !agree(&trailer.rows, &rows) || trailer.blake3 != digest.as_str() {
                return Err(lines.wrong("the file was altered: its digest is another one".into()));
            }
            return match lines.is_at_end()? {
                true => Ok(imported),
                false => Err(lines.wrong("there is more behind the last line".into())),
            };
        }
        let row: Vec<Json> = lines.parse(line, "this is not a row")?;
        let (table, values) = values(row).map_err(|reason| lines.wrong(reason))?;
        *rows.entry(table.name.to_owned()).or_default() += 1;
        match store.import(table, &values)? {
            true => imported.added += 1,
            false if merge => imported.skipped += 1,
            false => return Err(lines.wrong("the row contradicts one before it".into())),
        }
    }
}

/// Returns whether the counts of the last line are those of the rows. A file of an earlier version
/// does not name tables that came later.
fn agree(stated: &Counts, rows: &Counts) -> bool {
    let is_known = |table: &String| rows.contains_key(table);
    let is_stated = |(table, count)| stated.get(table).unwrap_or(&0) == count;
    stated.keys().all(is_known) && rows.iter().all(is_stated)
}

/// The lines of a file, with the digest of those that were read.
struct Lines<'a> {
    input: &'a mut dyn BufRead,
    line: Vec<u8>,
    number: u64,
    hasher: blake3::Hasher,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Vec<u8>, TransferError> {
        self.number += 1;
        let mut line = std::mem::take(&mut self.line);
        let mut limited = (&mut *self.input).take(limits::EXPORTED_LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line);
        read.map_err(TransferError::Stream)?;
        if line.last() != Some(&b'\n') {
            return Err(self.wrong("the file ends before its last line".into()));
        }
        self.hasher.update(&line);
        Ok(line)
    }

    fn is_at_end(&mut self) -> Result<bool, TransferError> {
        let rest = self.input.fill_buf().map_err(TransferError::Stream)?;
        Ok(rest.is_empty())
    }

    fn parse<T: for<'de> Deserialize<'de>>(
        &self,
        line: Vec<u8>,
        what: &str,
    ) -> Result<T, TransferError> {
        serde_json::from_slice(&line).map_err(|error| self.wrong(format!("{what}: {error}")))
    }

    fn wrong(&self, reason: String) -> TransferError {
        TransferError::Content(self.number, reason)
    }
}

/// Reads a row, whose first value names its table.
fn values(row: Vec<Json>) -> Result<(&'static Table, Vec<Value>), String> {
    let mut row = row.into_iter();
    let table = row.next().and_then(|name| Table::find(name.as_str()?));
    let table = table.ok_or("the table is unknown")?;
    if row.len() != table.columns.len() {
        return Err(format!(
            "`{}` has {} columns",
            table.name,
            table.columns.len()
        ));
    }
    let columns = table.columns.iter().zip(row);
    let values: Option<Vec<Value>> = columns
        .map(|((_, kind), json)| value(*kind, json))
        .collect();
    let values = values.ok_or_else(|| format!("a value of `{}` has the wrong kind", table.name))?;
    Ok((table, values))
}

fn value(kind: Kind, json: Json) -> Option<Value> {
    match (kind, json) {
        (_, Json::Null) => Some(Value::Null),
        (Kind::Number, Json::Number(number)) => number.as_i64().map(Value::Number),
        (Kind::Text, Json::String(text)) => Some(Value::Text(text)),
        (Kind::Bytes | Kind::LongText, Json::String(text)) => bytes(&text).map(Value::Bytes),
        _ => None,
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
        _ => None,
    };
    pairs.map(byte).collect()
}
