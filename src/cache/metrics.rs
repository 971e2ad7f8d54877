//! The cache's series in `/metrics`.

use crate::engine::{Kept, Verdict, prefixes};
use crate::telemetry::metrics::Counter;

crate::families! {
    /// Requests and memory of each level of the cache.
    pub struct CacheSeries {
        /// Generations, by the verdict of a level of the cache.
        verdicts: Counter = "cache" { level: Level, verdict: Verdict }, "autoglmd.cache.request";
        /// Entries of a level.
        entries: Gauge = "cache_entries" [ level: Level ], "autoglmd.cache.entry";
        /// Memory of a level's entries and tables.
        bytes: Gauge = "cache_bytes" [ level: Level ], "autoglmd.cache.usage";
        /// The bound on it.
        limit: Gauge = "cache_limit_bytes" [ level: Level ], "autoglmd.cache.limit";
        /// Entries that made room for others.
        evicted: Counter = "cache_evicted" [ level: Level ], "autoglmd.cache.eviction";
    }
}

/// A level of the cache: the first one that knows a request responds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Finished responses, found before a request's body is read.
    Response,
    /// Results of generations, found by the canonical form of a request.
    Generation,
    /// Computed prefixes on disk, found by the tokens of a prompt.
    Prefix,
}

impl Level {
    pub const ALL: [Level; 3] = [Level::Response, Level::Generation, Level::Prefix];

    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Response => "response",
            Level::Generation => "generation",
            Level::Prefix => "prefix",
        }
    }
}

crate::label!(Level, as_str, Level::ALL, 0);
crate::label!(Verdict, as_str, Verdict::ALL, 0);

/// The counters of one level, found once and kept.
#[derive(Clone, Debug)]
pub struct Verdicts([Counter; Verdict::ALL.len()]);

impl Verdicts {
    pub fn of(series: &CacheSeries, level: Level) -> Verdicts {
        Verdicts(Verdict::ALL.map(|verdict| series.verdicts.get((level, verdict))))
    }

    pub fn count(&self, verdict: Verdict) {
        self.0[verdict as usize].inc();
    }

    /// Returns how many generations had this verdict.
    pub fn total(&self, verdict: Verdict) -> u64 {
        self.0[verdict as usize].get()
    }
}

/// The numbers of one level, copied at a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub entries: usize,
    pub bytes: usize,
    pub max_bytes: usize,
    /// Entries that made room for others, since the start.
    pub evicted: u64,
}

impl From<prefixes::Figures> for Figures {
    fn from(files: prefixes::Figures) -> Figures {
        Figures {
            entries: files.entries,
            bytes: files.bytes as usize,
            max_bytes: files.max_bytes as usize,
            evicted: files.evicted,
        }
    }
}

impl From<Kept> for Figures {
    fn from(kept: Kept) -> Figures {
        Figures {
            entries: kept.results,
            bytes: kept.bytes,
            max_bytes: kept.max_bytes,
            evicted: kept.evicted,
        }
    }
}

impl CacheSeries {
    /// Copies the numbers of the prefixes on disk. A long prompt that cannot go on from one is a
    /// miss.
    pub fn update_prefixes(&self, files: &prefixes::Figures) {
        self.update(Level::Prefix, &(*files).into());
        for (verdict, total) in [(Verdict::Hit, files.hits), (Verdict::Miss, files.misses)] {
            let counter = self.verdicts.get((Level::Prefix, verdict));
            let counter = counter.inner();
            counter.fetch_max(total, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Copies a level's numbers, before the registry is encoded.
    pub fn update(&self, level: Level, figures: &Figures) {
        self.entries.get(level).set(figures.entries as i64);
        self.bytes.get(level).set(figures.bytes as i64);
        self.limit.get(level).set(figures.max_bytes as i64);
        // Of two scrapes at the same time the later value stays: a counter never goes back.
        let evicted = self.evicted.get(level).inner();
        evicted.fetch_max(figures.evicted, std::sync::atomic::Ordering::Relaxed);
    }
}
