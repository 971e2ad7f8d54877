//! The process's use of resources, as the kernel counts it in `/proc/self`.
//!
//! Owns nothing: each call reads again, in three small reads that do not grow with the number of
//! connections, and before Linux 6.2 in a fourth that does. So a reactor must not call it. A value
//! that cannot be read (no `/proc` in a strict sandbox) is `None`, never an error.

use std::fs;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use crate::limits::os as limits;

/// One reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub resident_bytes: Option<u64>,
    /// The part of it that is not backed by a file: heap and stacks.
    pub anonymous_bytes: Option<u64>,
    pub virtual_bytes: Option<u64>,
    pub open_descriptors: Option<u64>,
    pub threads: Option<u64>,
    /// User and system time since the start.
    pub cpu_seconds: Option<f64>,
    /// Seconds since 1970.
    pub start_time_seconds: Option<f64>,
}

impl Usage {
    /// Reads the present usage. `may_list_descriptors`: whether counting open descriptors may take
    /// milliseconds. If not, and the kernel has no short way, their number is `None`.
    pub fn now(may_list_descriptors: bool) -> Usage {
        let memory = fs::read_to_string("/proc/self/statm").ok();
        let memory = memory.as_deref().and_then(parse_statm);
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let stat = stat.as_deref().and_then(Stat::parse);
        let page_bytes = sysconf(libc::_SC_PAGESIZE).unwrap_or(4096);
        let ticks_per_second = sysconf(libc::_SC_CLK_TCK).unwrap_or(100) as f64;
        Usage {
            resident_bytes: memory.map(|memory| memory.resident * page_bytes),
            anonymous_bytes: memory
                .map(|memory| memory.resident.saturating_sub(memory.shared) * page_bytes),
            virtual_bytes: memory.map(|memory| memory.size * page_bytes),
            open_descriptors: open_descriptors(may_list_descriptors),
            threads: stat.map(|stat| stat.threads),
            cpu_seconds: stat.map(|stat| stat.cpu_ticks as f64 / ticks_per_second),
            start_time_seconds: stat.and_then(|stat| {
                Some(boot_time_seconds()? as f64 + stat.start_ticks as f64 / ticks_per_second)
            }),
        }
    }
}

/// Returns how many bytes of its stack the calling thread has left; 0 if the system does not know.
/// Takes about a microsecond, but on the main thread it reads a file.
pub fn stack_left() -> usize {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut lowest, mut bytes) = (ptr::null_mut(), 0);
    // SAFETY: `attributes` is read and destroyed only if the first call has filled it, and the
    // second call writes into two variables of this stack.
    let is_known = unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return 0;
        }
        let status = libc::pthread_attr_getstack(attributes.as_ptr(), &mut lowest, &mut bytes);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        status == 0
    };
    // A stack grows downwards, and this variable is near its present end.
    let here = (&raw const lowest).addr();
    match is_known {
        true => here.saturating_sub(lowest.addr()),
        false => 0,
    }
}

/// Sets options of the C library's resolver, unless the environment has some: see `RES_OPTIONS` in
/// resolv.conf(5). Must be called before the process has a second thread.
pub fn set_resolver_options(options: &str) {
    const NAME: &str = "RES_OPTIONS";
    if std::env::var_os(NAME).is_some() {
        return;
    }
    // SAFETY: `set_var` asks that no other thread reads or writes the environment meanwhile. There
    // is no other thread yet: the supervisor calls this before it starts the first one.
    unsafe { std::env::set_var(NAME, options) };
}

/// Returns how many descriptors are open. Since Linux 6.2 this is the folder's size. Before, that
/// size is 0 and the entries are counted, which takes milliseconds with many connections.
fn open_descriptors(may_list: bool) -> Option<u64> {
    let size = fs::metadata("/proc/self/fd").ok()?.len();
    if size > 0 {
        return Some(size);
    }
    if !may_list {
        return None;
    }
    // One of the entries is the folder that is being read.
    let entries = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(entries.saturating_sub(1))
}

/// The first three numbers of `statm` (proc_pid_statm(5)), in pages.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pages {
    size: u64,
    resident: u64,
    shared: u64,
}

fn parse_statm(text: &str) -> Option<Pages> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(Pages {
        size: next()?,
        resident: next()?,
        shared: next()?,
    })
}

/// The fields of proc_pid_stat(5) that are used here.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Stat> {
        // The second field is the command in parentheses and may hold spaces and parentheses.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // `rest` begins with field 3.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
        })
    }
}

/// Returns when the machine booted, in seconds since 1970. Read once: `/proc/stat` is long.
fn boot_time_seconds() -> Option<u64> {
    static BOOT_TIME: OnceLock<Option<u64>> = OnceLock::new();
    *BOOT_TIME.get_or_init(|| {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        line.trim().parse().ok()
    })
}

/// Returns the CPU time that the calling thread has used so far.
pub fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the kernel to write to. This clock always exists; if the
    // call failed all the same, `time` would stay 0.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let whole = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(whole, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Lets threads of the usual priority go first on a core that they share with the calling thread,
/// which must be one whose owner can wait: it keeps a tenth of a core that is busy, and all of one
/// that is not. Its turns may still be long: see [`slices`](super::slices). Without privileges this
/// cannot be taken back.
///
/// A reactor may wait for a lock that this thread holds. It sleeps then, so on a core that only the
/// two of them want, the thread runs at once.
pub fn give_way() {
    // SAFETY: nice(2) takes a number. On Linux it concerns the calling thread alone. It fails only
    // for a lower niceness, and even then the thread would do its work all the same.
    unsafe { libc::nice(limits::YIELDING_NICENESS_LEVEL) };
}

/// Ends the process at once: runs no destructor and waits for no thread, because one may never end.
pub fn exit_at_once(code: u8) -> ! {
    // SAFETY: _exit(2) does not return and touches no memory of ours.
    unsafe { libc::_exit(i32::from(code)) }
}

fn sysconf(name: libc::c_int) -> Option<u64> {
    // SAFETY: sysconf(3) takes any number and reads no memory of ours.
    let value = unsafe { libc::sysconf(name) };
    u64::try_from(value).ok().filter(|value| *value > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn a_command_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0 5 0 777 1000 20";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.cpu_ticks, 42);
        assert_eq!(stat.threads, 5);
        assert_eq!(stat.start_ticks, 777);
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_thread_that_works_spends_its_own_time() {
        let start = thread_cpu_time();
        while thread_cpu_time() - start < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        let other = std::thread::spawn(thread_cpu_time).join().unwrap();
        assert!(other < thread_cpu_time(), "{other:?}");
    }

    /// Mutation: the niceness of the whole process is changed (`PRIO_PGRP`), or none.
    #[test]
    fn a_thread_that_gives_way_is_nicer_than_the_others() {
        // SAFETY: getpriority(2) takes numbers and touches no memory of ours.
        let niceness = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = niceness();
        let nicer = std::thread::spawn(move || {
            give_way();
            niceness()
        });
        let lowest = 19;
        let expected = (before + limits::YIELDING_NICENESS_LEVEL).min(lowest);
        assert_eq!(nicer.join().unwrap(), expected);
        assert_eq!(niceness(), before);
    }

    /// Mutation: the stack's size in place of what is left of it.
    #[test]
    fn a_thread_knows_what_is_left_of_its_stack() {
        #[inline(never)]
        fn deeper() -> usize {
            let taken = std::hint::black_box([0_u8; 64 * 1024]);
            std::hint::black_box(stack_left()) + usize::from(taken[1])
        }
        let thread = std::thread::Builder::new().stack_size(1024 * 1024);
        let both = thread.spawn(|| (stack_left(), deeper())).unwrap();
        let (left, deeper) = both.join().unwrap();
        // The C library may take a larger stack that another thread has left.
        assert!(left >= 900 * 1024, "{left}");
        assert!(deeper <= left - 64 * 1024, "{deeper} of {left}");
    }

    #[test]
    fn this_process_is_measured() {
        let usage = Usage::now(true);
        let resident = usage.resident_bytes.unwrap();
        assert!((1 << 20..1 << 40).contains(&resident), "{resident}");
        assert!(usage.virtual_bytes.unwrap() >= resident);
        assert!((1..=resident).contains(&usage.anonymous_bytes.unwrap()));
        assert!(usage.threads.unwrap() >= 1);
        assert!(usage.open_descriptors.unwrap() >= 3);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - usage.start_time_seconds.unwrap();
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
