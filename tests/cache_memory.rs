//! The bytes that a cache accounts for, beside those that its entries take from the allocator.
//!
//! The allocator counts each block with the room that the C library adds to it. A test thread's
//! blocks alone are counted.
//!
//! Mutation that `accounted_bytes_are_those_of_the_allocator` catches: an `ENTRY_BYTES` without the
//! index.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use autoglmd::cache::lru::{Item, Lru};
use autoglmd::core::Moment;

struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

/// Returns the size of a block with its header (malloc_usable_size(3) excludes that word).
fn real_size(block: *mut u8) -> isize {
    // SAFETY: malloc_usable_size(3) accepts every live block of malloc(3), which is the system
    // allocator's.
    let usable = unsafe { libc::malloc_usable_size(block.cast()) };
    (usable + size_of::<usize>()) as isize
}

fn note(bytes: isize) {
    // A thread that ends frees its own storage last.
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
}

// SAFETY: every call is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller of this function promises.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            note(real_size(block));
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note(-real_size(block));
        // SAFETY: as the caller of this function promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn live() -> isize {
    LIVE.get()
}

#[track_caller]
fn assert_close(accounted: usize, real: isize, case: &str) {
    let (accounted, real) = (accounted as f64, real as f64);
    let ratio = real / accounted;
    assert!(
        (0.9..1.1).contains(&ratio),
        "{case}: {real} for {accounted}"
    );
}

/// What a block of malloc(3) costs beside its bytes, on average: a header, and rounding to 16.
const BLOCK_BYTES: usize = 16;

fn fill(entries: u32, tenants: u64, body: usize) {
    let case = format!("{entries} entries of {body} bytes, {tenants} tenants");
    let before = live();
    let mut lru: Lru<[u8; 32], Box<[u8]>> = Lru::new(usize::MAX / 2);
    for number in 0..entries {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        let item = Item {
            tenant: u64::from(number) % tenants,
            value: vec![7; body].into_boxed_slice(),
            bytes: if body == 0 { 0 } else { body + BLOCK_BYTES },
            expires: Moment::NEVER,
        };
        let stored = lru.insert(key, item, Moment::ZERO, &mut Vec::new());
        stored.expect("it fits");
    }
    assert_close(lru.bytes(), live() - before, &case);
    // Rows stay when entries go, and so does their part of the account: it never counts less than
    // there is.
    let mut removed = Vec::new();
    for tenant in 0..tenants {
        lru.remove_tenant(tenant, &mut removed);
    }
    drop(removed);
    assert_eq!(lru.len(), 0);
    let (accounted, real) = (lru.bytes(), live() - before);
    assert!(
        real * 10 <= accounted as isize * 11,
        "{case}, removed: {real} for {accounted}"
    );
    drop(lru);
    assert_eq!(live(), before, "{case}");
}

#[test]
fn accounted_bytes_are_those_of_the_allocator() {
    for (entries, tenants, body) in [
        (20_000, 1, 0),
        (20_000, 1, 400),
        (5_000, 1, 4_000),
        (20_000, 20_000, 400),
        (200_000, 1, 40),
    ] {
        fill(entries, tenants, body);
    }
}
