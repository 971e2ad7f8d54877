//! Measures what all processes of a PID namespace use together, from its `/proc`.
//!
//! Runs in init, so it makes system calls and computes on the stack: no allocation, no panic.

use std::time::Duration;

/// The use of all processes inside together, except init.
#[derive(Clone, Copy, Default)]
pub(super) struct Usage {
    /// User and system time, including that of children that have been waited for.
    pub cpu: Duration,
    /// Anonymous memory. Files are not counted: the program's files lie in a bounded tmpfs.
    pub memory_bytes: u64,
}

/// Reads usage from an open `/proc` again and again.
pub(super) struct Meter {
    proc: libc::c_int,
    page_bytes: u64,
    ticks_per_second: u64,
}

impl Meter {
    /// `None` if `/proc` cannot be opened.
    pub(super) fn open() -> Option<Meter> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the path is a string with its terminator; sysconf(3) reads no memory of ours.
        let (proc, page, ticks) = unsafe {
            (
                libc::open(c"/proc".as_ptr(), flags),
                libc::sysconf(libc::_SC_PAGESIZE),
                libc::sysconf(libc::_SC_CLK_TCK),
            )
        };
        (proc >= 0).then_some(Meter {
            proc,
            page_bytes: u64::try_from(page).unwrap_or(4096),
            ticks_per_second: u64::try_from(ticks).unwrap_or(100).max(1),
        })
    }

    pub(super) fn read(&self) -> Usage {
        let mut usage = Usage {
            cpu: cpu_of_reaped(),
            memory_bytes: 0,
        };
        // SAFETY: lseek(2) takes numbers only.
        unsafe { libc::lseek(self.proc, 0, libc::SEEK_SET) };
        let mut buffer = [0_u64; 512];
        loop {
            let bytes = std::mem::size_of_val(&buffer);
            // SAFETY: the pointer and the length are those of the buffer, which is aligned for the
            // records that getdents64(2) writes.
            let length = unsafe {
                libc::syscall(libc::SYS_getdents64, self.proc, buffer.as_mut_ptr(), bytes)
            };
            let Some(length) = usize::try_from(length).ok().filter(|length| *length > 0) else {
                return usage;
            };
            self.add_entries(as_bytes(&buffer).get(..length).unwrap_or(&[]), &mut usage);
        }
    }

    /// Adds the usage of the processes among the entries of a folder.
    fn add_entries(&self, mut records: &[u8], usage: &mut Usage) {
        // struct linux_dirent64: inode 8 bytes, offset 8, record length 2, type 1, name.
        while let (Some(length), Some(name)) = (records.get(16..18), records.get(19..)) {
            let length = length
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            if name.first().is_some_and(u8::is_ascii_digit) && !name.starts_with(b"1\0") {
                self.add_process(name, usage);
            }
            match records.get(length..) {
                Some(rest) if length > 0 => records = rest,
                _ => return,
            }
        }
    }

    /// Adds one process. A process that has ended meanwhile adds nothing.
    fn add_process(&self, name: &[u8], usage: &mut Usage) {
        let mut text = [0; 1024];
        let stat = self.read_file(name, b"/stat\0", &mut text);
        // The command may hold anything, parentheses too; field 3 follows the last one.
        let after_command = stat.iter().rposition(|byte| *byte == b')').unwrap_or(0);
        let fields = numbers(stat.get(after_command..).unwrap_or(&[]));
        // utime, stime, cutime and cstime: fields 14 to 17.
        let ticks: u64 = fields.skip(12).take(4).sum();
        usage.cpu += Duration::from_millis(ticks.saturating_mul(1_000) / self.ticks_per_second);
        let mut fields = numbers(self.read_file(name, b"/statm\0", &mut text));
        let (_, resident, shared) = (fields.next(), fields.next(), fields.next());
        let pages = resident.unwrap_or(0).saturating_sub(shared.unwrap_or(0));
        usage.memory_bytes = usage
            .memory_bytes
            .saturating_add(pages.saturating_mul(self.page_bytes));
    }

    /// Reads the beginning of `/proc/NAME/FILE`; empty if it cannot be read.
    fn read_file<'b>(&self, name: &[u8], file: &[u8], into: &'b mut [u8]) -> &'b [u8] {
        let mut path = [0_u8; 32];
        let name = name.iter().take_while(|byte| **byte != 0).take(16);
        for (place, byte) in path.iter_mut().zip(name.chain(file)) {
            *place = *byte;
        }
        // SAFETY: the path ends in a zero: at most 16 bytes of name and 7 of file fit into 32. The
        // pointer and the length are those of `into`.
        let length = unsafe {
            let flags = libc::O_RDONLY | libc::O_CLOEXEC;
            let descriptor = libc::openat(self.proc, path.as_ptr().cast(), flags);
            if descriptor < 0 {
                return &[];
            }
            let length = libc::read(descriptor, into.as_mut_ptr().cast(), into.len());
            libc::close(descriptor);
            length
        };
        into.get(..usize::try_from(length).unwrap_or(0))
            .unwrap_or(&[])
    }
}

/// Returns the CPU time of children that were waited for, and of those that they had waited for.
fn cpu_of_reaped() -> Duration {
    // SAFETY: all zeros is a valid `rusage`, and getrusage(2) writes into it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

pub(super) fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(time.tv_usec.unsigned_abs())
}

/// Yields the words of a text as whole numbers; other words count as 0, so that positions hold.
fn numbers(text: &[u8]) -> impl Iterator<Item = u64> {
    let words = text.split(u8::is_ascii_whitespace);
    words.filter(|word| !word.is_empty()).map(|word| {
        word.iter().fold(0_u64, |sum, byte| match byte {
            b'0'..=b'9' => sum.wrapping_mul(10).wrapping_add(u64::from(byte - b'0')),
            _ => 0,
        })
    })
}

fn as_bytes(words: &[u64; 512]) -> &[u8] {
    // SAFETY: the pointer and the length are those of the array, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), std::mem::size_of_val(words)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_not_numbers_keep_their_place() {
        let found: Vec<u64> = numbers(b") S 12 -1 7\n").collect();
        assert_eq!(found, [0, 0, 12, 1, 7]);
    }
}
