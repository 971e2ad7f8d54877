//! `autoglmd key usage`: requests and tokens by key and day.
//!
//! Must never count anything itself: the rows are those of the store, which a running daemon keeps.

use std::collections::HashMap;

use clap::Args;
use serde_json::{Value, json};

use super::lookup::find;
use crate::cli::database::explain;
use crate::cli::times::{parse_day, show_day};
use crate::console::exit::{self, Code};
use crate::console::{fail, note, printable, put, table};
use crate::store::{Store, UsageRow};

#[derive(Args, Debug)]
pub struct Usage {
    /// The name or the id of a key [default: all keys].
    #[arg(value_name = "NAME|ID")]
    key: Option<String>,
    /// The first day (UTC), such as 2027-01-31 [default: the first one that was counted].
    #[arg(long, value_name = "DATE", value_parser = parse_day)]
    since: Option<u32>,
    /// The last day (UTC) [default: today].
    #[arg(long, value_name = "DATE", value_parser = parse_day)]
    until: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Usage {
    pub fn run(self, store: &dyn Store) -> Result<(), Code> {
        let days = self.since.unwrap_or(0)..=self.until.unwrap_or(u32::MAX);
        if days.is_empty() {
            return Err(fail(exit::USAGE, "--since is later than --until"));
        }
        let key = self.key.map(|key| find(store, &key)).transpose()?;
        let id = key.as_ref().map(|key| key.record.id.as_str());
        let rows = store.usage(id, &days).map_err(|error| explain(&error))?;
        let keys = store.list().map_err(|error| explain(&error))?;
        let names: HashMap<&str, &str> = keys
            .iter()
            .map(|key| (key.record.id.as_str(), key.record.name.as_str()))
            .collect();
        let named = |row: &UsageRow| names.get(row.key_id.as_str()).copied().unwrap_or_default();
        if self.json {
            let rows: Vec<_> = rows.iter().map(|row| to_json(row, named(row))).collect();
            return put(&format!("{:#}\n", Value::from(rows)));
        }
        if rows.is_empty() {
            note("no request was counted; a daemon with `store.records = false` counts none");
            return Ok(());
        }
        let titles = [
            "DAY",
            "ID",
            "NAME",
            "REQUESTS",
            "HITS",
            "UNFINISHED",
            "PROMPT",
            "CACHED",
            "COMPLETION",
        ];
        let mut lines = vec![titles.map(str::to_owned).to_vec()];
        lines.extend(rows.iter().map(|row| to_line(row, named(row))));
        put(&table(&lines))
    }
}

fn to_line(row: &UsageRow, name: &str) -> Vec<String> {
    let id = match row.key_id.as_str() {
        "" => "-",
        id => id,
    };
    vec![
        show_day(row.day),
        id.to_owned(),
        printable(name).replace(['\n', '\t'], " "),
        requests(row).to_string(),
        row.hits.to_string(),
        row.unfinished.to_string(),
        row.prompt_tokens.to_string(),
        row.cached_tokens.to_string(),
        row.completion_tokens.to_string(),
    ]
}

fn requests(row: &UsageRow) -> u64 {
    row.generations.saturating_add(row.hits)
}

/// `key` is null for requests without a key.
fn to_json(row: &UsageRow, name: &str) -> Value {
    json!({
        "day": show_day(row.day),
        "key": (!row.key_id.is_empty()).then_some(&row.key_id),
        "name": name,
        "requests": requests(row),
        "hits": row.hits,
        "unfinished": row.unfinished,
        "prompt_tokens": row.prompt_tokens,
        "cached_tokens": row.cached_tokens,
        "completion_tokens": row.completion_tokens,
    })
}
