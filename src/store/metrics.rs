//! The store's series in `/metrics`: its own numbers, copied at each scrape.

use std::sync::atomic::Ordering;

use super::folder::Part;
use super::requests::Requests;

crate::families! {
    /// The load of the store's thread and its work so far.
    pub struct StoreSeries {
        /// Tasks that wait for the store.
        tasks_waiting: Gauge = "store_tasks_waiting", "autoglmd.store.task.waiting";
        /// Generation records that wait for the store.
        records_waiting: Gauge = "store_records_waiting", "autoglmd.store.record.waiting";
        /// Entries of the cache that wait for the store, with `cache.policy = "write-behind"`.
        entries_waiting: Gauge = "store_entries_waiting", "autoglmd.store.entry.waiting";
        /// Generation records that were stored.
        records: Counter = "store_records", "autoglmd.store.record";
        /// Generation records that were dropped because the queue was full.
        dropped: Counter = "store_dropped", "autoglmd.store.record.dropped";
        /// Generation records that were removed because of their age, number or size.
        removed: Counter = "store_removed", "autoglmd.store.record.removed";
        /// Transactions that were committed.
        groups: Counter = "store_commits", "autoglmd.store.commit";
        /// Transactions that were lost.
        failed_groups: Counter = "store_failed_commits", "autoglmd.store.commit.failed";
        /// 1 while the store does not work.
        failing: Gauge = "store_failing", "autoglmd.store.failing";
        /// Bytes that all data of the store takes.
        used_bytes: Gauge = "store_used_bytes", "autoglmd.store.usage";
        /// Bytes of the files in the state folder, measured each 10 s.
        state_bytes: Gauge = "state_bytes" [ part: Part ], "autoglmd.state.usage";
        /// The bound on them: their shares of `store.max_size`.
        state_limit: Gauge = "state_limit_bytes" [ part: Part ], "autoglmd.state.limit";
    }
}

impl StoreSeries {
    /// Copies the store's numbers, before the registry is encoded.
    pub fn update(&self, requests: &Requests) {
        let (records, totals) = (requests.records(), requests.health().totals());
        self.tasks_waiting.set(requests.waiting() as i64);
        self.records_waiting.set(records.waiting() as i64);
        self.entries_waiting
            .set(requests.entries().waiting() as i64);
        self.failing.set(totals.is_failing.into());
        self.used_bytes.set(totals.used_bytes as i64);
        let (sizes, shares) = (requests.folder().sizes(), requests.upkeep().shares);
        for part in Part::ALL {
            self.state_bytes.get(part).set(sizes.of(part) as i64);
            self.state_limit.get(part).set(part.share(&shares) as i64);
        }
        for (counter, total) in [
            (&self.records, totals.records),
            (&self.dropped, records.dropped()),
            (&self.removed, totals.removed),
            (&self.groups, totals.groups),
            (&self.failed_groups, totals.failed_groups),
        ] {
            // Of two scrapes at the same time the later value stays: a counter never goes back.
            counter.inner().fetch_max(total, Ordering::Relaxed);
        }
    }
}
