//! The records of generations, and the usage that is counted from them, in PostgreSQL.
//!
//! All records of a group are written by one statement, because each statement is a round trip. It
//! changes the rows of usage in the order of their keys, so that daemons that write at once wait
//! for each other in one direction.
//!
//! Mutations that tests catch: a query without its index (in a plan of the test server), usage
//! counted for a record that was there, a record of a key that was erased, hits of a key that was
//! erased, hits that replace those before.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::connection::PostgresStore;
use super::session::Unread;
use crate::core::id::{GenerationId, IdText};
use crate::store::error::StoreError;
use crate::store::interface::generations::{
    Bounds, Content, GenerationRecord, Generations, Query, Status,
};
use crate::store::interface::usage::{Hits, Usage, UsageRow};
use crate::store::stored::{from_sql, to_sql};
use crate::telemetry::request_id::RequestId;

const ADD: &str = "
    WITH added AS (
        INSERT INTO generations (id, key_id, created_at, status, model, language, finish_reason,
            error, cached, request_id, prompt_tokens, cached_tokens, completion_tokens, queue_ms,
            prefill_ms, decode_ms, latency_ms, digest, prompt, text)
        SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[],
            $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::bigint[],
            $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[],
            $17::bigint[], $18::bytea[], $19::bytea[], $20::bytea[]) AS record (id, key_id)
        WHERE key_id = '' OR EXISTS (SELECT 1 FROM keys WHERE keys.id = record.key_id)
        ON CONFLICT (id) DO NOTHING
        RETURNING key_id, created_at / 86400000 AS day, status, prompt_tokens, cached_tokens,
            completion_tokens
    )
    INSERT INTO usage AS u
    SELECT key_id, day, count(*), count(*) FILTER (WHERE status <> 'done'),
        sum(prompt_tokens)::bigint, sum(cached_tokens)::bigint, sum(completion_tokens)::bigint
    FROM added GROUP BY key_id, day ORDER BY key_id, day
    ON CONFLICT (key_id, day) DO UPDATE SET generations = u.generations + excluded.generations,
        unfinished = u.unfinished + excluded.unfinished,
        prompt_tokens = u.prompt_tokens + excluded.prompt_tokens,
        cached_tokens = u.cached_tokens + excluded.cached_tokens,
        completion_tokens = u.completion_tokens + excluded.completion_tokens";

/// In the order of the keys, as above. Each group writes this table behind `usage`.
const ADD_HITS: &str = "
    INSERT INTO usage_hits AS u (key_id, day, hits)
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS hit (key_id, day)
    WHERE key_id = '' OR EXISTS (SELECT 1 FROM keys WHERE keys.id = hit.key_id)
    ORDER BY key_id, day
    ON CONFLICT (key_id, day) DO UPDATE SET hits = u.hits + excluded.hits";

const USAGE: &str = "
    SELECT key_id, day, sum(generations)::bigint, sum(unfinished)::bigint,
        sum(prompt_tokens)::bigint, sum(cached_tokens)::bigint, sum(completion_tokens)::bigint,
        sum(hits)::bigint
    FROM (
        SELECT key_id, day, generations, unfinished, prompt_tokens, cached_tokens,
            completion_tokens, 0 AS hits FROM usage
        UNION ALL
        SELECT key_id, day, 0, 0, 0, 0, 0, hits FROM usage_hits
    ) AS counted WHERE ($1::text IS NULL OR key_id = $1) AND day BETWEEN $2 AND $3
    GROUP BY day, key_id ORDER BY day DESC, key_id COLLATE \"C\"";

/// The query for a page. The server adds up the sizes, so that no more text than wanted is sent.
pub(super) const PAGE: &str = "
    SELECT id, key_id, status, model, language, finish_reason, error, cached, request_id,
        prompt_tokens, cached_tokens, completion_tokens, queue_ms, prefill_ms, decode_ms,
        latency_ms, digest, prompt, text
    FROM (SELECT *, sum(bytes) OVER (ORDER BY created_at DESC, id DESC) - bytes AS bytes_before
        FROM (SELECT *, coalesce(octet_length(prompt) + octet_length(text), 0) AS bytes
            FROM generations WHERE key_id = $1 AND created_at >= $2 AND (created_at, id) < ($3, $4)
            ORDER BY created_at DESC, id DESC LIMIT $5) AS latest
        ) AS page
    WHERE bytes_before < $6::bigint ORDER BY created_at DESC, id DESC";

/// The same, with a status.
pub(super) const PAGE_OF_STATUS: &str = "
    SELECT id, key_id, status, model, language, finish_reason, error, cached, request_id,
        prompt_tokens, cached_tokens, completion_tokens, queue_ms, prefill_ms, decode_ms,
        latency_ms, digest, prompt, text
    FROM (SELECT *, sum(bytes) OVER (ORDER BY created_at DESC, id DESC) - bytes AS bytes_before
        FROM (SELECT *, coalesce(octet_length(prompt) + octet_length(text), 0) AS bytes
            FROM generations WHERE key_id = $1 AND status = $7 AND created_at >= $2
                AND (created_at, id) < ($3, $4)
            ORDER BY created_at DESC, id DESC LIMIT $5) AS latest
        ) AS page
    WHERE bytes_before < $6::bigint ORDER BY created_at DESC, id DESC";

/// Numbers grow with each row, so the oldest rows have the lowest ones.
pub(super) const TRIM: &str = "
    DELETE FROM generations WHERE number IN (
        SELECT number FROM generations ORDER BY number LIMIT $1 FOR UPDATE SKIP LOCKED
    ) AND (created_at < $2 OR number <= (SELECT max(number) FROM generations) - $3)";

/// Without the order the server may read the table from its beginning, in the hope of a row soon.
pub(super) const ERASE: &str = "
    DELETE FROM generations WHERE number IN (
        SELECT number FROM generations WHERE key_id = $1
        ORDER BY created_at, id LIMIT $2 FOR UPDATE SKIP LOCKED)";

impl Generations for PostgresStore {
    fn add_generations(&mut self, records: &[Box<GenerationRecord>]) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let texts = |read: fn(&GenerationRecord) -> &str| -> Vec<&str> {
            records.iter().map(|record| read(record)).collect()
        };
        let words = |read: fn(&GenerationRecord) -> Option<&str>| -> Vec<Option<&str>> {
            records.iter().map(|record| read(record)).collect()
        };
        let numbers = |read: fn(&GenerationRecord) -> i64| -> Vec<i64> {
            records.iter().map(|record| read(record)).collect()
        };
        let contents = |read: fn(&Content) -> &str| -> Vec<Option<&[u8]>> {
            let contents = records.iter().map(|record| record.content.as_ref());
            contents
                .map(|content| content.map(|content| read(content).as_bytes()))
                .collect()
        };
        let ids: Vec<IdText> = records.iter().map(|record| record.id.text()).collect();
        let ids: Vec<&str> = ids.iter().map(IdText::as_str).collect();
        let digests: Vec<&[u8]> = records.iter().map(|record| &record.digest[..]).collect();
        self.session.execute(
            ADD,
            &[
                &ids,
                &texts(|record| &record.key_id),
                &numbers(|record| to_sql(record.id.unix_millis().as_u64())),
                &texts(|record| record.status.as_str()),
                &words(|record| record.model.as_deref()),
                &words(|record| record.language.as_deref()),
                &words(|record| record.finish_reason.as_deref()),
                &words(|record| record.error.as_deref()),
                &texts(|record| &record.cached),
                &texts(|record| record.request_id.as_str()),
                &numbers(|record| record.prompt_tokens.into()),
                &numbers(|record| record.cached_tokens.into()),
                &numbers(|record| record.completion_tokens.into()),
                &numbers(|record| milliseconds(record.queue)),
                &numbers(|record| milliseconds(record.prefill)),
                &numbers(|record| milliseconds(record.decode)),
                &numbers(|record| milliseconds(record.latency)),
                &digests,
                &contents(|content| &content.prompt),
                &contents(|content| &content.text),
            ],
        )?;
        Ok(())
    }

    fn find_generations(&self, query: &Query<'_>) -> Result<Vec<GenerationRecord>, StoreError> {
        let before = query.before.as_ref();
        let newest = before.map_or(i64::MAX, |id| to_sql(id.unix_millis().as_u64()));
        let text = before.map(GenerationId::text);
        let id = text.as_ref().map_or("", IdText::as_str);
        let (since, limit) = (to_sql(query.since), i64::from(query.limit));
        let (key_id, bytes_max) = (&query.key_id, to_sql(query.bytes_max as u64));
        let values: [&(dyn ToSql + Sync); 6] = [key_id, &since, &newest, &id, &limit, &bytes_max];
        match query.status.map(Status::as_str) {
            None => self.session.query(PAGE, &values, read),
            Some(status) => {
                let values = [&values[..], &[&status]].concat();
                self.session.query(PAGE_OF_STATUS, &values, read)
            }
        }
    }

    fn trim_generations(&mut self, bounds: &Bounds, limit: u32) -> Result<u32, StoreError> {
        let (limit, oldest) = (i64::from(limit), to_sql(bounds.oldest));
        self.execute(TRIM, &[&limit, &oldest, &to_sql(bounds.records)])
    }

    fn erase_generations(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError> {
        self.execute(ERASE, &[&key_id, &i64::from(limit)])
    }

    fn used_bytes(&self) -> Result<u64, StoreError> {
        // The server's disk is not part of the state folder, and its files do not become smaller
        // when rows go: `store.max_size` is for SQLite.
        Ok(0)
    }
}

impl Usage for PostgresStore {
    fn usage(
        &self,
        key_id: Option<&str>,
        days: &RangeInclusive<u32>,
    ) -> Result<Vec<UsageRow>, StoreError> {
        let (first, last) = (i64::from(*days.start()), i64::from(*days.end()));
        self.session.query(USAGE, &[&key_id, &first, &last], |row| {
            Ok(UsageRow {
                key_id: row.try_get(0)?,
                day: number(row, 1)? as u32,
                generations: number(row, 2)?,
                unfinished: number(row, 3)?,
                prompt_tokens: number(row, 4)?,
                cached_tokens: number(row, 5)?,
                completion_tokens: number(row, 6)?,
                hits: number(row, 7)?,
            })
        })
    }

    fn add_hits(&mut self, hits: &Hits) -> Result<(), StoreError> {
        let key_ids: Vec<&str> = hits.keys().map(|(key_id, _)| key_id.as_str()).collect();
        let days: Vec<i64> = hits.keys().map(|(_, day)| i64::from(*day)).collect();
        let requests: Vec<i64> = hits.values().copied().map(to_sql).collect();
        self.session
            .execute(ADD_HITS, &[&key_ids, &days, &requests])?;
        Ok(())
    }

    fn erase_usage(&mut self, key_id: &str) -> Result<u32, StoreError> {
        let days = self.usage(Some(key_id), &(0..=u32::MAX))?.len();
        for sql in [
            "DELETE FROM usage WHERE key_id = $1",
            "DELETE FROM usage_hits WHERE key_id = $1",
        ] {
            self.execute(sql, &[&key_id])?;
        }
        Ok(u32::try_from(days).unwrap_or(u32::MAX))
    }
}

fn read(row: &Row) -> Result<GenerationRecord, Unread> {
    let word = |index| {
        row.try_get::<_, Option<String>>(index)
            .map(|value| value.map(Cow::Owned))
    };
    let duration = |index| number(row, index).map(Duration::from_millis);
    let tokens = |index| number(row, index).map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    let digest: &[u8] = row.try_get(16)?;
    Ok(GenerationRecord {
        id: parsed(row, 0, GenerationId::parse)?,
        key_id: row.try_get::<_, &str>(1)?.into(),
        status: parsed(row, 2, Status::parse)?,
        model: row.try_get::<_, Option<&str>>(3)?.map(Arc::from),
        language: word(4)?,
        finish_reason: word(5)?,
        error: word(6)?,
        cached: Cow::Owned(row.try_get(7)?),
        request_id: parsed(row, 8, |text| RequestId::from_client(text.as_bytes()))?,
        prompt_tokens: tokens(9)?,
        cached_tokens: tokens(10)?,
        completion_tokens: tokens(11)?,
        queue: duration(12)?,
        prefill: duration(13)?,
        decode: duration(14)?,
        latency: duration(15)?,
        digest: digest.try_into().map_err(|_| unknown("digest"))?,
        content: match text(row, 17)? {
            None => None,
            Some(prompt) => Some(Content {
                prompt,
                text: text(row, 18)?.unwrap_or_default(),
            }),
        },
    })
}

fn parsed<T>(row: &Row, index: usize, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Unread> {
    let text: &str = row.try_get(index)?;
    parse(text).ok_or_else(|| unknown(text))
}

fn text(row: &Row, index: usize) -> Result<Option<String>, Unread> {
    let bytes: Option<Vec<u8>> = row.try_get(index)?;
    let text = bytes.map(String::from_utf8).transpose();
    text.map_err(|_| unknown("text"))
}

fn number(row: &Row, index: usize) -> Result<u64, Unread> {
    Ok(from_sql(row.try_get(index)?))
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A value that a later version has written.
fn unknown(word: &str) -> Unread {
    Unread::Content(format!("unknown value `{word}`"))
}
