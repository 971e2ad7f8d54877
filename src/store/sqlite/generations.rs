//! The records of generations, and the usage that is counted from them.
//!
//! Mutations that the tests catch: a query without its index, `created_at` alone compared with the
//! cursor, usage counted for a record that was there, a record of a key that was erased, hits of a
//! key that was erased, hits that replace those before.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use super::connection::{SqliteStore, database_error};
use crate::core::id::{GenerationId, IdText};
use crate::store::error::StoreError;
use crate::store::interface::generations::{
    Bounds, Content, GenerationRecord, Generations, Query, Status,
};
use crate::store::interface::usage::{DAY_MS, Hits, Usage, UsageRow};
use crate::store::stored::to_sql;
use crate::telemetry::request_id::RequestId;

const INSERT: &str = "
    INSERT INTO generations (id, key_id, created_at, status, model, language, finish_reason, error,
        cached, request_id, prompt_tokens, cached_tokens, completion_tokens, queue_ms, prefill_ms,
        decode_ms, latency_ms, digest, prompt, text)
    SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20
    WHERE ?2 = '' OR EXISTS (SELECT 1 FROM keys WHERE id = ?2)
    ON CONFLICT (id) DO NOTHING";

const COUNT: &str = "
    INSERT INTO usage VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6)
    ON CONFLICT (key_id, day) DO UPDATE SET generations = generations + 1,
        unfinished = unfinished + excluded.unfinished,
        prompt_tokens = prompt_tokens + excluded.prompt_tokens,
        cached_tokens = cached_tokens + excluded.cached_tokens,
        completion_tokens = completion_tokens + excluded.completion_tokens";

const COUNT_HITS: &str = "
    INSERT INTO usage_hits (key_id, day, hits)
    SELECT ?1, ?2, ?3 WHERE ?1 = '' OR EXISTS (SELECT 1 FROM keys WHERE id = ?1)
    ON CONFLICT (key_id, day) DO UPDATE SET hits = hits + excluded.hits";

const USAGE: &str = "
    SELECT key_id, day, sum(generations), sum(unfinished), sum(prompt_tokens), sum(cached_tokens),
        sum(completion_tokens), sum(hits)
    FROM (
        SELECT key_id, day, generations, unfinished, prompt_tokens, cached_tokens,
            completion_tokens, 0 AS hits FROM usage
        UNION ALL
        SELECT key_id, day, 0, 0, 0, 0, 0, hits FROM usage_hits
    ) WHERE (?1 IS NULL OR key_id = ?1) AND day BETWEEN ?2 AND ?3
    GROUP BY day, key_id ORDER BY day DESC, key_id";

const SELECT: &str = "
    SELECT id, key_id, status, model, language, finish_reason, error, cached, request_id,
        prompt_tokens, cached_tokens, completion_tokens, queue_ms, prefill_ms, decode_ms,
        latency_ms, digest, prompt, text
    FROM generations WHERE key_id = ?1 AND created_at >= ?2 AND created_at <= ?3
        AND (created_at < ?3 OR id < ?4)";

const ORDER: &str = "ORDER BY created_at DESC, id DESC LIMIT ?5";

/// Numbers grow with each row, so the oldest rows have the lowest ones.
const TRIM: &str = "
    DELETE FROM generations WHERE number IN (
        SELECT number FROM generations ORDER BY number LIMIT ?1
    ) AND (created_at < ?2 OR number <= (SELECT max(number) FROM generations) - ?3)";

const ERASE: &str = "
    DELETE FROM generations WHERE number IN (
        SELECT number FROM generations WHERE key_id = ?1 LIMIT ?2)";

/// The text of the query for a page.
pub(super) fn page_sql(has_status: bool) -> String {
    let status = if has_status { "AND status = ?6" } else { "" };
    format!("{SELECT} {status} {ORDER}")
}

impl Generations for SqliteStore {
    fn add_generations(&mut self, records: &[Box<GenerationRecord>]) -> Result<(), StoreError> {
        let path = self.path.clone();
        self.write(|connection| {
            insert(connection, records).map_err(|error| database_error(&path, error))
        })
    }

    fn find_generations(&self, query: &Query<'_>) -> Result<Vec<GenerationRecord>, StoreError> {
        let find = || -> rusqlite::Result<Vec<GenerationRecord>> {
            let mut statement = self
                .connection
                .prepare_cached(&page_sql(query.status.is_some()))?;
            let before = query.before.as_ref();
            let newest = before.map_or(i64::MAX, |id| to_sql(id.unix_millis().as_u64()));
            let text = before.map(GenerationId::text);
            let id = text.as_ref().map_or("", IdText::as_str);
            let (since, limit) = (to_sql(query.since), query.limit);
            let mut rows = match query.status {
                None => statement.query(params![query.key_id, since, newest, id, limit]),
                Some(status) => {
                    let word = status.as_str();
                    statement.query(params![query.key_id, since, newest, id, limit, word])
                }
            }?;
            let (mut records, mut bytes) = (Vec::new(), 0);
            while bytes < query.bytes_max
                && let Some(row) = rows.next()?
            {
                let record = read(row)?;
                bytes += record.bytes();
                records.push(record);
            }
            Ok(records)
        };
        find().map_err(|error| database_error(&self.path, error))
    }

    fn trim_generations(&mut self, bounds: &Bounds, limit: u32) -> Result<u32, StoreError> {
        let values = (limit, to_sql(bounds.oldest), to_sql(bounds.records));
        self.change(TRIM, values)
    }

    fn erase_generations(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError> {
        self.change(ERASE, (key_id, limit))
    }

    fn used_bytes(&self) -> Result<u64, StoreError> {
        let pragma = |name| {
            let value = self
                .connection
                .pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            value.map_err(|error| database_error(&self.path, error))
        };
        let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
        let bytes = pages.saturating_mul(pragma("page_size")?);
        Ok(u64::try_from(bytes).unwrap_or(0))
    }
}

impl Usage for SqliteStore {
    fn usage(
        &self,
        key_id: Option<&str>,
        days: &RangeInclusive<u32>,
    ) -> Result<Vec<UsageRow>, StoreError> {
        let find = || -> rusqlite::Result<Vec<UsageRow>> {
            let mut statement = self.connection.prepare_cached(USAGE)?;
            let rows = statement.query_map((key_id, days.start(), days.end()), |row| {
                Ok(UsageRow {
                    key_id: row.get(0)?,
                    day: row.get(1)?,
                    generations: number(row, 2)?,
                    unfinished: number(row, 3)?,
                    prompt_tokens: number(row, 4)?,
                    cached_tokens: number(row, 5)?,
                    completion_tokens: number(row, 6)?,
                    hits: number(row, 7)?,
                })
            });
            rows?.collect()
        };
        find().map_err(|error| database_error(&self.path, error))
    }

    fn add_hits(&mut self, hits: &Hits) -> Result<(), StoreError> {
        let path = self.path.clone();
        self.write(|connection| {
            let add = || -> rusqlite::Result<()> {
                let mut count = connection.prepare_cached(COUNT_HITS)?;
                for ((key_id, day), requests) in hits {
                    count.execute((key_id, day, to_sql(*requests)))?;
                }
                Ok(())
            };
            add().map_err(|error| database_error(&path, error))
        })
    }

    fn erase_usage(&mut self, key_id: &str) -> Result<u32, StoreError> {
        let days = self.usage(Some(key_id), &(0..=u32::MAX))?.len();
        for sql in [
            "DELETE FROM usage WHERE key_id = ?1",
            "DELETE FROM usage_hits WHERE key_id = ?1",
        ] {
            self.change(sql, [key_id])?;
        }
        Ok(u32::try_from(days).unwrap_or(u32::MAX))
    }
}

impl SqliteStore {
    /// Runs one statement that changes rows. Returns how many.
    pub(super) fn change(
        &mut self,
        sql: &str,
        values: impl rusqlite::Params,
    ) -> Result<u32, StoreError> {
        let path = self.path.clone();
        self.write(|connection| {
            let changed = connection.execute(sql, values);
            let changed = changed.map_err(|error| database_error(&path, error))?;
            Ok(u32::try_from(changed).unwrap_or(u32::MAX))
        })
    }
}

fn insert(connection: &Connection, records: &[Box<GenerationRecord>]) -> rusqlite::Result<()> {
    let mut insertion = connection.prepare_cached(INSERT)?;
    let mut count = connection.prepare_cached(COUNT)?;
    for record in records {
        let created_at = record.id.unix_millis().as_u64();
        let content = record.content.as_ref();
        let added = insertion.execute(params![
            record.id.to_string(),
            record.key_id,
            to_sql(created_at),
            record.status.as_str(),
            record.model,
            record.language,
            record.finish_reason,
            record.error,
            record.cached,
            record.request_id.as_str(),
            record.prompt_tokens,
            record.cached_tokens,
            record.completion_tokens,
            milliseconds(record.queue),
            milliseconds(record.prefill),
            milliseconds(record.decode),
            milliseconds(record.latency),
            record.digest,
            content.map(|content| &content.prompt),
            content.map(|content| &content.text),
        ])?;
        if added > 0 {
            count.execute(params![
                record.key_id,
                to_sql(created_at / DAY_MS),
                u32::from(record.status != Status::Done),
                record.prompt_tokens,
                record.cached_tokens,
                record.completion_tokens,
            ])?;
        }
    }
    Ok(())
}

fn read(row: &Row<'_>) -> rusqlite::Result<GenerationRecord> {
    let word = |index| {
        row.get::<_, Option<String>>(index)
            .map(|value| value.map(Cow::Owned))
    };
    let duration = |index| number(row, index).map(Duration::from_millis);
    let prompt: Option<String> = row.get(17)?;
    Ok(GenerationRecord {
        id: parsed(row, 0, GenerationId::parse)?,
        key_id: row.get(1)?,
        status: parsed(row, 2, Status::parse)?,
        model: row.get(3)?,
        language: word(4)?,
        finish_reason: word(5)?,
        error: word(6)?,
        cached: Cow::Owned(row.get(7)?),
        request_id: parsed(row, 8, |text| RequestId::from_client(text.as_bytes()))?,
        prompt_tokens: row.get(9)?,
        cached_tokens: row.get(10)?,
        completion_tokens: row.get(11)?,
        queue: duration(12)?,
        prefill: duration(13)?,
        decode: duration(14)?,
        latency: duration(15)?,
        digest: row.get(16)?,
        content: match prompt {
            None => None,
            Some(prompt) => Some(Content {
                prompt,
                text: row.get::<_, Option<String>>(18)?.unwrap_or_default(),
            }),
        },
    })
}

fn parsed<T>(
    row: &Row<'_>,
    index: usize,
    parse: impl FnOnce(&str) -> Option<T>,
) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    parse(&text).ok_or_else(|| {
        let message = format!("`{text}` is not a value of this column").into();
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, message)
    })
}

fn number(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(index)
        .map(|value| u64::try_from(value).unwrap_or(0))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
