//! Which seeds a run tries, on all cores.
//!
//! `AUTOGLMD_SIM_SEED=17` is that one alone; `AUTOGLMD_SIM_SEEDS=5000` is the first 5,000, and
//! `AUTOGLMD_SIM_SEEDS=5000..10000` a range, whose end is left out: machines can share the work.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Seeds of a run that asks for none.
const SEEDS_USUAL: u64 = 256;

/// How often a long run reports how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Returns the seeds that the environment asks for.
pub fn asked_for() -> Range<u64> {
    let read = |name| std::env::var(name).ok().map(|text| (name, text));
    let (name, text) = match (read("AUTOGLMD_SIM_SEED"), read("AUTOGLMD_SIM_SEEDS")) {
        (Some((name, text)), _) => (name, format!("{text}..={text}")),
        (None, Some(asked)) => asked,
        (None, None) => return 0..SEEDS_USUAL,
    };
    parse(&text).unwrap_or_else(|| panic!("{name}: expected a whole number or FROM..TO"))
}

fn parse(text: &str) -> Option<Range<u64>> {
    let (from, to) = match text.split_once("..") {
        None => (0, text.parse().ok()?),
        Some((from, to)) => {
            let from = from.parse().ok()?;
            match to.strip_prefix('=') {
                Some(last) => (from, last.parse::<u64>().ok()?.checked_add(1)?),
                None => (from, to.parse().ok()?),
            }
        }
    };
    (from < to).then_some(from..to)
}

/// Tries each seed once. A seed that fails ends its thread with a panic, and the others stop.
pub fn try_all(seeds: Range<u64>, simulate: impl Fn(u64) + Sync) {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let next = AtomicU64::new(seeds.start);
    let (simulate, next, start) = (&simulate, &next, Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..(cores as u64).min(seeds.end - seeds.start) {
            let end = seeds.end;
            scope.spawn(move || {
                let stop = StopOthers(next);
                let mut reported = start;
                loop {
                    // Relaxed: a counter alone. Threads share nothing else.
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    simulate(seed);
                    if thread == 0 && reported.elapsed() > REPORT_INTERVAL {
                        reported = Instant::now();
                        eprintln!("at seed {seed} after {} s", start.elapsed().as_secs());
                    }
                }
                std::mem::forget(stop);
            });
        }
    });
}

/// Lets the other threads stop when its own has panicked.
struct StopOthers<'a>(&'a AtomicU64);

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        self.0.store(u64::MAX / 2, Ordering::Relaxed);
    }
}

#[test]
fn a_range_of_seeds_is_read_and_each_of_them_tried_once() {
    assert_eq!(parse("5"), Some(0..5));
    assert_eq!(parse("5..7"), Some(5..7));
    assert_eq!(parse("17..=17"), Some(17..18));
    for wrong in ["", "x", "7..5", "5..5", "0", "5..", "-1..2"] {
        assert_eq!(parse(wrong), None, "{wrong}");
    }
    let tried = [const { AtomicU64::new(0) }; 40];
    try_all(5..40, |seed| {
        tried[seed as usize].fetch_add(1, Ordering::Relaxed);
    });
    let tried = tried.map(AtomicU64::into_inner);
    assert!(tried[..5] == [0; 5] && tried[5..] == [1; 35], "{tried:?}");
}
