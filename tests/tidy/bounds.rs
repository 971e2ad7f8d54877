//! The names of the constants of `src/limits`.
//!
//! The last words are the unit and, for a bound, `MAX` or `MIN`. A time is a `Duration`. No two
//! constants consist of the same words: there was such a pair once, and its two constants bounded
//! the same text with different values.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::source::{Source, sources};

/// Words that mean the same as `MAX`, `MIN` and `Duration`.
const OTHER_SPELLINGS: &[&str] = &[
    "MOST", "LEAST", "CEILING", "FLOOR", "LIMIT", "BOUND", "UPPER", "LOWER", "MAXIMUM", "MINIMUM",
];

/// Words that may follow the unit.
const BOUNDS: &[&str] = &["MAX", "MIN", "DEFAULT", "TYPICAL"];

/// Units of time. A constant in such a unit must be a `Duration`, unless it is a list or a range of
/// the configuration.
const TIMES: &[&str] = &["MS", "MICROS", "US", "NANOS", "SECONDS", "MINUTES", "HOURS"];

/// Units of everything else: the word before `PER`, before the bound, or the last one.
const UNITS: &[&str] = &[
    "ACCEPTS",
    "ACTS",
    "ADDRESSES",
    "ATTEMPTS",
    "BITS",
    "BUCKETS",
    "BYTES",
    "CHARACTERS",
    "COMMANDS",
    "CONNECTIONS",
    "DATAGRAMS",
    "DESCRIPTORS",
    "DIGITS",
    "DIVISOR",
    "ENTRIES",
    "EVENTS",
    "FACTOR",
    "FETCHES",
    "FIELDS",
    "FILES",
    "FRAMES",
    "HOPS",
    "HOSTS",
    "INODES",
    "INSERTIONS",
    "INSTRUCTIONS",
    "ITEMS",
    "JOBS",
    "KEYS",
    "LAYERS",
    "LANGUAGES",
    "LEVEL",
    "LINES",
    "LINKS",
    "LISTENERS",
    "MEMBERS",
    "MODE",
    "MODELS",
    "NAMES",
    "NODES",
    "PARTS",
    "PEERS",
    "PERCENT",
    "POINTS",
    "PROBES",
    "PROBLEMS",
    "PROCESSES",
    "PROXIES",
    "QUALITY",
    "QUESTIONS",
    "RANGES",
    "RATIO",
    "REACTORS",
    "READS",
    "RECORDS",
    "REDIRECTS",
    "REQUESTS",
    "RESETS",
    "RESPONSES",
    "RESTARTS",
    "RETRIES",
    "SEQUENCES",
    "SESSIONS",
    "SHARDS",
    "SLICES",
    "SLOTS",
    "SOCKETS",
    "STALLS",
    "STEPS",
    "STREAMS",
    "STRINGS",
    "TASKS",
    "THREADS",
    "TICKETS",
    "TIMEOUTS",
    "TIMERS",
    "TOKENS",
    "WEIGHT",
];

struct Constant {
    file: String,
    name: String,
    kind: String,
}

/// Mutation: `FRAME_BYTES_MOST`, `FRAME_MAX_BYTES`, or `TICK_MS: u64` fails here.
#[test]
fn limits_end_in_their_unit() {
    let mut wrong = String::new();
    let mut units: BTreeMap<&str, bool> = UNITS.iter().map(|unit| (*unit, false)).collect();
    let constants = constants();
    for constant in &constants {
        let words: Vec<&str> = constant.name.split('_').collect();
        let at = format!("{}: {}", constant.file, constant.name);
        for word in words.iter().filter(|word| OTHER_SPELLINGS.contains(word)) {
            writeln!(wrong, "{at}: {word} is MAX or MIN here").unwrap();
        }
        let bound = words.last().filter(|word| BOUNDS.contains(word));
        let per = words.iter().position(|word| *word == "PER");
        let end = per.unwrap_or(words.len() - bound.iter().count());
        let unit = words[..end].last();
        let early = &words[..words.len() - 1];
        if early.iter().any(|word| ["MAX", "MIN"].contains(word)) && !is_range(constant) {
            writeln!(wrong, "{at}: MAX or MIN comes last").unwrap();
        }
        if constant.kind == "Duration" {
            if words.iter().any(|word| TIMES.contains(word)) {
                writeln!(wrong, "{at}: a Duration needs no unit").unwrap();
            }
            continue;
        }
        let is_list = constant.kind.contains('[') || is_range(constant);
        let is_times = is_list && words.last().is_some_and(|last| TIMES.contains(last));
        match unit {
            _ if is_times => {}
            Some(unit) if units.contains_key(unit) => {
                units.insert(unit, true);
            }
            _ => writeln!(wrong, "{at}: {unit:?} is not in UNITS").unwrap(),
        }
    }
    for (unit, _) in units.iter().filter(|(_, is_used)| !**is_used) {
        writeln!(wrong, "no limit has the unit {unit}: take it out of UNITS").unwrap();
    }
    assert!(wrong.is_empty(), "limits:\n{wrong}");
}

/// Mutation: `BYTES_MAX_FRAME` beside `FRAME_BYTES_MAX`, in whichever file, fails here.
#[test]
fn no_two_limits_consist_of_the_same_words() {
    let mut seen: BTreeMap<Vec<String>, String> = BTreeMap::new();
    let mut wrong = String::new();
    for constant in constants() {
        let mut words: Vec<String> = constant.name.split('_').map(str::to_owned).collect();
        words.sort();
        let at = format!("{} in {}", constant.name, constant.file);
        if let Some(first) = seen.insert(words, at.clone()) {
            writeln!(wrong, "{first} and {at}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "limits of the same words:\n{wrong}");
}

/// Mutation: a constant without the lines above it fails here.
#[test]
fn each_limit_has_its_reason() {
    let mut wrong = String::new();
    for file in sources().iter().filter(|file| file.module == "limits") {
        let lines: Vec<&str> = file.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let has_reason = number > 0 && lines[number - 1].starts_with("///");
            if line.starts_with("pub const") && !has_reason {
                writeln!(wrong, "{}:{}", file.name, number + 1).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "limits without a reason:\n{wrong}");
}

fn is_range(constant: &Constant) -> bool {
    constant.kind.starts_with("RangeInclusive")
}

fn constants() -> Vec<Constant> {
    let files = sources();
    let files = files.iter().filter(|file| file.module == "limits");
    let found: Vec<Constant> = files.flat_map(constants_of).collect();
    assert!(found.len() > 200, "only {} limits were found", found.len());
    found
}

fn constants_of(file: &Source) -> Vec<Constant> {
    let declared = file
        .code
        .lines()
        .filter_map(|line| line.strip_prefix("pub const "));
    let parts = declared.filter_map(|rest| rest.split_once(':'));
    let constants = parts.map(|(name, rest)| Constant {
        file: file.name.clone(),
        name: name.to_owned(),
        kind: rest.split('=').next().unwrap_or_default().trim().to_owned(),
    });
    constants.collect()
}
