//! A queue that is fair between tenants: deficit round robin over the bytes of their items.
//!
//! Owns the waiting items and the order in which they leave. Pure: no thread, no clock.
//!
//! # The order
//!
//! Each tenant has a line of its own, and the lines stand in a ring. The line in front is visited:
//! its items leave as long as its credit pays for them, an item's price being its bytes. Then its
//! credit grows by one visit's bytes and it goes to the end of the ring (Shreedhar and Varghese,
//! 1996). So a tenant with a thousand items delays another one by a visit, and one with large items
//! gets no more bytes than one with small items. A line that empties loses its credit.
//!
//! # The bounds
//!
//! An item is admitted if its tenant's line holds less than what is still free, in items and in
//! bytes (dynamic thresholds; Choudhury and Hahne, 1998). One tenant alone gets half of the queue,
//! two get a third each, `n` get `n + 1`-th parts: the last part stays free for a newcomer, which
//! a fixed share of the queue would not leave without leaving most of it unused. An empty queue
//! admits any item, because a body may be larger than the bound and must still be served.
//!
//! # Cost
//!
//! `push` is O(1). `pop` turns the ring once for each visit's worth of bytes that leave, and once
//! for each tenant that comes: O(1) for 64 KiB of work. `pop_of` also passes over the tenants whose
//! items must stay: O(tenants) if all of them must.
//!
//! # Invariants
//!
//!  1. The items of one tenant leave in the order in which they came.
//!  2. While two tenants both have items waiting that may leave, the bytes that leave for them
//!     differ by at most one visit and two items.
//!  3. A line has items, and is in the ring once: a tenant without items takes no memory.

use std::collections::{HashMap, VecDeque};

/// The most that may wait, and the share of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub items: usize,
    pub bytes: u64,
    pub visit_bytes: u64,
    /// The least that an item counts.
    pub item_bytes_min: u32,
}

/// See the file's head.
#[derive(Debug)]
pub struct FairQueue<T> {
    bounds: Bounds,
    lines: HashMap<u64, Line<T>>,
    /// The tenants with a line; the one in front is being visited.
    ring: VecDeque<u64>,
    items: usize,
    bytes: u64,
}

#[derive(Debug)]
struct Line<T> {
    items: VecDeque<(u64, T)>,
    /// Of all its items.
    bytes: u64,
    /// The bytes that may still leave in this visit.
    credit: u64,
}

impl<T> FairQueue<T> {
    pub fn new(bounds: Bounds) -> FairQueue<T> {
        debug_assert!(bounds.visit_bytes > 0, "a visit must pay for something");
        FairQueue {
            bounds,
            lines: HashMap::new(),
            ring: VecDeque::new(),
            items: 0,
            bytes: 0,
        }
    }

    // ---- getters ----

    /// Returns how many items wait.
    pub fn waiting(&self) -> usize {
        self.items
    }

    /// Returns the bytes of all waiting items.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether an item of this tenant may come in.
    pub fn admits(&self, tenant: u64, bytes: u32) -> bool {
        let line = self.lines.get(&tenant);
        let (own_items, own_bytes) = line.map_or((0, 0), |line| (line.items.len(), line.bytes));
        let free_items = self.bounds.items.saturating_sub(self.items);
        let free_bytes = self.bounds.bytes.saturating_sub(self.bytes);
        let fits = own_bytes + self.price(bytes) <= free_bytes;
        own_items < free_items && (fits || self.items == 0)
    }

    // ---- commands ----

    /// Puts an item at the end of its tenant's line. The caller has asked `admits`.
    pub fn push(&mut self, tenant: u64, bytes: u32, item: T) {
        let price = self.price(bytes);
        let line = self.lines.entry(tenant).or_insert_with(|| {
            self.ring.push_back(tenant);
            Line {
                items: VecDeque::new(),
                bytes: 0,
                credit: self.bounds.visit_bytes,
            }
        });
        line.items.push_back((price, item));
        line.bytes += price;
        self.items += 1;
        self.bytes += price;
        self.debug_check();
    }

    /// Removes the item whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        self.pop_of(|_| true).map(|(_, item)| item)
    }

    /// Removes the item whose turn it is among those of the tenants that `may_leave` admits. The
    /// others keep their places in the ring, and their credit.
    pub fn pop_of(&mut self, may_leave: impl Fn(u64) -> bool) -> Option<(u64, T)> {
        // Lines in front that were passed over since one could leave.
        let mut passed = 0;
        while passed < self.ring.len() {
            let tenant = *self.ring.front()?;
            if !may_leave(tenant) {
                self.ring.rotate_left(1);
                passed += 1;
                continue;
            }
            passed = 0;
            let line = self.lines.get_mut(&tenant)?;
            let &(price, _) = line.items.front()?;
            let Some(credit) = line.credit.checked_sub(price) else {
                line.credit += self.bounds.visit_bytes;
                self.ring.rotate_left(1);
                continue;
            };
            line.credit = credit;
            line.bytes -= price;
            let item = line.items.pop_front();
            if line.items.is_empty() {
                self.lines.remove(&tenant);
                self.ring.pop_front();
            }
            self.items -= 1;
            self.bytes -= price;
            self.debug_check();
            return item.map(|(_, item)| (tenant, item));
        }
        None
    }

    /// Removes all items, in no particular order.
    pub fn take_all(&mut self) -> Vec<T> {
        let lines = self.lines.drain().map(|(_, line)| line.items);
        let items = lines.flatten().map(|(_, item)| item).collect();
        self.ring.clear();
        (self.items, self.bytes) = (0, 0);
        items
    }

    fn price(&self, bytes: u32) -> u64 {
        bytes.max(self.bounds.item_bytes_min).into()
    }

    /// Checks invariant 3 and the sums. O(1): the queue may be long.
    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            assert_eq!(self.ring.len(), self.lines.len());
            assert_eq!(self.items == 0, self.ring.is_empty());
            assert!(self.bytes >= self.items as u64 * u64::from(self.bounds.item_bytes_min));
        }
    }
}
