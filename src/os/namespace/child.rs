//! The code that runs after the clone: init, then the program's process until execve.
//!
//! Makes only system calls, see invariant 1 of the module. Identities are changed with raw system
//! calls: the C library's functions would also signal the caller's other threads, which are not
//! here.

use std::io;
use std::time::Duration;

use libc::{c_char, c_int, c_long, c_ulong};

use super::calls::{Done, check, errno};
use super::measure::Meter;
use super::mounts::{new_root, take_step};
use super::tally::Tally;
use super::{Notice, Plan, Step, ids};

/// The data that the child takes along from its parent.
pub(super) struct Inside<'a> {
    pub plan: &'a Plan,
    /// The plan's arguments, with a null at the end.
    pub arguments: &'a [*const c_char],
    pub environment: &'a [*const c_char],
    pub filter: &'a [libc::sock_filter],
    pub cpu: &'a Tally,
    /// stdin, stdout, stderr, report, ready: they become 0 to 4.
    pub descriptors: [c_int; DESCRIPTORS],
}

const DESCRIPTORS: usize = 5;
const REPORT: c_int = 3;
const READY: c_int = 4;
/// Where descriptors are kept while 0 to 4 are assigned.
const ASIDE: c_int = 16;

/// How often init measures. Use that begins and ends within one interval goes unnoticed.
const MEASURE_EVERY: Duration = Duration::from_millis(10);

/// A part of the setup that the kernel may refuse.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Stage {
    Descriptors,
    Maps,
    Root,
    Step,
    Capabilities,
    Process,
    Limits,
    User,
    Privileges,
    Filter,
}

const STAGES: [&str; 10] = [
    "keeping the sandbox's descriptors",
    "waiting for the user map",
    "making a new root",
    "building the file system",
    "dropping capabilities",
    "making the program's process",
    "setting resource limits",
    "changing the user",
    "setting no_new_privs",
    "loading the system call filter",
];

const REFUSED: u32 = 1;
const NOT_STARTED: u32 = 2;
const ENDED: u32 = 3;
const OUT_OF_TIME: u32 = 4;
const OUT_OF_MEMORY: u32 = 5;

pub(super) const MESSAGE_BYTES: usize = 16;

/// A message through the report pipe: small enough to be written whole or not at all.
#[derive(Clone, Copy, Default)]
pub(super) struct Message {
    kind: u32,
    /// A status, or an error number.
    value: u32,
    stage: u32,
    step: u32,
}

impl Message {
    fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        let mut bytes = [0; MESSAGE_BYTES];
        let words = [self.kind, self.value, self.stage, self.step];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; MESSAGE_BYTES]) -> Message {
        let word = |at: usize| {
            let word = bytes[at..at + 4].try_into().expect("four bytes");
            u32::from_ne_bytes(word)
        };
        Message {
            kind: word(0),
            value: word(4),
            stage: word(8),
            step: word(12),
        }
    }

    pub(super) fn into_notice(self, plan: &Plan) -> Notice {
        match self.kind {
            REFUSED => {
                let stage = STAGES.get(self.stage as usize).copied().unwrap_or("a step");
                let step = (self.stage == Stage::Step as u32)
                    .then(|| plan.steps.get(self.step as usize))
                    .flatten();
                Notice::Refused {
                    stage: step.map_or_else(|| stage.to_owned(), describe),
                    error: io::Error::from_raw_os_error(self.value as i32),
                }
            }
            NOT_STARTED => Notice::NotStarted(io::Error::from_raw_os_error(self.value as i32)),
            ENDED => Notice::Ended(self.value as i32),
            OUT_OF_TIME => Notice::OutOfTime,
            OUT_OF_MEMORY => Notice::OutOfMemory,
            _ => Notice::Vanished,
        }
    }
}

fn describe(step: &Step) -> String {
    let (what, path) = match step {
        Step::Folder(path) => ("making the folder", path),
        Step::Link { path, .. } => ("making the link", path),
        Step::Show { to, .. } | Step::Device { to, .. } => ("showing", to),
        Step::Tmpfs { path, .. } => ("mounting a tmpfs on", path),
        Step::Proc(path) => ("mounting proc on", path),
        Step::File { path, .. } => ("writing", path),
        Step::Become => return "changing the user".to_owned(),
        Step::Seal => return "making the root read-only".to_owned(),
    };
    format!("{what} {}", path.to_string_lossy())
}

/// Calls clone(2) as fork(2) does: returns 0 in the child, its number in the caller, -1 on failure.
///
/// # Safety
/// The child has one thread and a copy of everything, locked locks included: it must make only
/// system calls, and must not return to code that does more.
#[inline(always)]
pub(super) unsafe fn clone_process(flags: c_int) -> c_long {
    // SAFETY: a null stack means a copy of the caller's, at the same address. The order of the
    // last two arguments differs between architectures; both are null.
    unsafe { libc::syscall(libc::SYS_clone, flags as c_long, 0, 0, 0, 0) }
}

/// Runs as init: builds the file system, starts the program, waits for it and reports.
///
/// # Safety
/// Must be called only in a process that [`clone_process`] has just made with all the namespaces.
pub(super) unsafe fn run(inside: &Inside<'_>) -> ! {
    // SAFETY: this function's contract is the same as theirs.
    unsafe {
        let mut at = Place::default();
        let started = prepare(inside, &mut at).and_then(|()| start(inside, &mut at));
        let message = match started {
            Ok(program) => watch(inside, program),
            Err(errno) => Message {
                kind: REFUSED,
                value: errno as u32,
                stage: at.stage,
                step: at.step,
            },
        };
        send(message);
        libc::_exit(0)
    }
}

/// The present step, for the report.
#[derive(Default)]
struct Place {
    stage: u32,
    step: u32,
}

impl Place {
    fn enter(&mut self, stage: Stage) {
        self.stage = stage as u32;
    }
}

unsafe fn prepare(inside: &Inside<'_>, at: &mut Place) -> Done {
    // SAFETY: system calls on memory of the plan, which outlives this process's copy of it.
    unsafe {
        at.enter(Stage::Descriptors);
        keep_descriptors(&inside.descriptors)?;
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        at.enter(Stage::Maps);
        let mut byte = 0_u8;
        if libc::read(READY, (&raw mut byte).cast(), 1) != 1 {
            return Err(libc::ESRCH);
        }
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0))?;
        libc::umask(0o022);
        at.enter(Stage::Root);
        new_root()?;
        let name = b"sandbox";
        check(libc::sethostname(name.as_ptr().cast(), name.len()))?;
        at.enter(Stage::Step);
        for step in &inside.plan.steps {
            take_step(step)?;
            at.step += 1;
        }
        Ok(())
    }
}

/// Moves the five descriptors to 0 to 4 and closes all others: they are the caller's sockets and
/// files, and pipes of other sandboxes, which would not end as long as they are open here.
unsafe fn keep_descriptors(descriptors: &[c_int; DESCRIPTORS]) -> Done {
    // SAFETY: system calls that take numbers only.
    unsafe {
        let mut aside = [0; DESCRIPTORS];
        for (place, descriptor) in aside.iter_mut().zip(descriptors) {
            *place = libc::fcntl(*descriptor, libc::F_DUPFD, ASIDE);
            check(*place)?;
        }
        for (number, descriptor) in (0..).zip(aside) {
            check(libc::dup2(descriptor, number))?;
        }
        check(close_range(DESCRIPTORS as c_int, 0))
    }
}

/// Closes all descriptors from `first` on. A raw close_range(2), because musl has no function for
/// it.
unsafe fn close_range(first: c_int, flags: u32) -> c_long {
    // SAFETY: it takes numbers only.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as c_long,
            c_long::from(u32::MAX),
            flags,
        )
    }
}

/// Drops init's capabilities and starts the program's process. Returns its number.
unsafe fn start(inside: &Inside<'_>, at: &mut Place) -> Result<libc::pid_t, c_int> {
    // SAFETY: system calls; the new process runs `execute`, which does not return.
    unsafe {
        at.enter(Stage::Process);
        // Blocked before the clone, so that the end of a short program is not missed.
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &all,
            std::ptr::null_mut(),
        ))?;
        match clone_process(libc::SIGCHLD) {
            0 => execute(inside),
            program if program < 0 => Err(errno()),
            program => {
                at.enter(Stage::Capabilities);
                drop_capabilities()?;
                Ok(program as libc::pid_t)
            }
        }
    }
}

/// Runs in the program's process, up to execve.
unsafe fn execute(inside: &Inside<'_>) -> ! {
    // SAFETY: system calls on memory of the plan.
    unsafe {
        let mut at = Place::default();
        let message = match become_program(inside, &mut at) {
            Ok(()) => Message {
                kind: NOT_STARTED,
                value: errno() as u32,
                ..Message::default()
            },
            Err(errno) => Message {
                kind: REFUSED,
                value: errno as u32,
                stage: at.stage,
                step: 0,
            },
        };
        send(message);
        libc::_exit(127)
    }
}

/// Returns the error of a step, or `Ok` with execve's error in `errno`.
unsafe fn become_program(inside: &Inside<'_>, at: &mut Place) -> Done {
    let plan = inside.plan;
    // SAFETY: system calls on memory of the plan; the arrays of pointers end in a null.
    unsafe {
        at.enter(Stage::Descriptors);
        // The report pipe stays open until execve, so that its failure can be reported.
        check(close_range(REPORT, libc::CLOSE_RANGE_CLOEXEC))?;
        libc::setsid();
        check(libc::chdir(plan.folder.as_ptr()))?;
        at.enter(Stage::Capabilities);
        drop_bounding_set()?;
        at.enter(Stage::User);
        if plan.ids.can_drop_groups() {
            check(libc::syscall(
                libc::SYS_setgroups,
                0,
                std::ptr::null::<u32>(),
            ))?;
        }
        let id = c_long::from(ids::INSIDE);
        check(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        check(libc::syscall(libc::SYS_setresuid, id, id, id))?;
        at.enter(Stage::Capabilities);
        drop_capabilities()?;
        at.enter(Stage::Limits);
        for (resource, value) in &plan.limits {
            let limit = libc::rlimit64 {
                rlim_cur: *value,
                rlim_max: *value,
            };
            let none = std::ptr::null::<libc::rlimit64>();
            check(libc::syscall(
                libc::SYS_prlimit64,
                0,
                *resource,
                &raw const limit,
                none,
            ))?;
        }
        // Resets signals to a shell's defaults: Rust programs ignore SIGPIPE, and daemons block
        // many.
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        at.enter(Stage::Privileges);
        check(libc::prctl(
            libc::PR_SET_NO_NEW_PRIVS,
            1 as c_ulong,
            0,
            0,
            0,
        ))?;
        at.enter(Stage::Filter);
        let filter = libc::sock_fprog {
            len: inside.filter.len() as u16,
            filter: inside.filter.as_ptr().cast_mut(),
        };
        let mode = libc::SECCOMP_MODE_FILTER as c_ulong;
        check(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter))?;
        libc::execve(
            plan.program.as_ptr(),
            inside.arguments.as_ptr(),
            inside.environment.as_ptr(),
        );
        Ok(())
    }
}

/// Empties the bounding set, so that no file's capabilities can come back with execve.
unsafe fn drop_bounding_set() -> Done {
    // SAFETY: prctl(2) with numbers only.
    unsafe {
        for capability in 0..64 as c_ulong {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 {
                // The first number that this kernel does not know.
                return match errno() {
                    libc::EINVAL if capability > 0 => Ok(()),
                    errno => Err(errno),
                };
            }
        }
        Ok(())
    }
}

unsafe fn drop_capabilities() -> Done {
    // _LINUX_CAPABILITY_VERSION_3 of this process; then effective, permitted, inheritable, twice.
    let header: [u32; 2] = [0x2008_0522, 0];
    let none = [0_u32; 6];
    // SAFETY: both arrays have the layout that capset(2) reads.
    unsafe {
        check(libc::syscall(
            libc::SYS_capset,
            header.as_ptr(),
            none.as_ptr(),
        ))
    }
}

/// Reaps all processes that end, until the program has ended or all together used too much.
unsafe fn watch(inside: &Inside<'_>, program: libc::pid_t) -> Message {
    let plan = inside.plan;
    let Some(meter) = Meter::open() else {
        return Message {
            kind: REFUSED,
            value: errno() as u32,
            stage: Stage::Step as u32,
            step: u32::MAX,
        };
    };
    // SAFETY: system calls with local variables.
    unsafe {
        let mut ended: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut ended);
        libc::sigaddset(&mut ended, libc::SIGCHLD);
        let pause = libc::timespec {
            tv_sec: 0,
            tv_nsec: MEASURE_EVERY.subsec_nanos().into(),
        };
        let mut measured = Duration::ZERO;
        loop {
            // A dead caller reads no more. PR_SET_PDEATHSIG would instead kill init when the
            // caller's thread ends, and the kernel clears it whenever the user changes.
            if is_reader_gone() {
                libc::_exit(0);
            }
            if let Some(status) = reap(program) {
                inside.cpu.write(meter.read().cpu);
                return Message {
                    kind: ENDED,
                    value: status as u32,
                    ..Message::default()
                };
            }
            let now = monotonic();
            if now.saturating_sub(measured) >= MEASURE_EVERY {
                measured = now;
                let usage = meter.read();
                inside.cpu.write(usage.cpu);
                let kind = match () {
                    () if usage.cpu > plan.cpu => OUT_OF_TIME,
                    () if usage.memory_bytes > plan.memory_bytes => OUT_OF_MEMORY,
                    () => 0,
                };
                if kind != 0 {
                    return Message {
                        kind,
                        ..Message::default()
                    };
                }
            }
            libc::sigtimedwait(&ended, std::ptr::null_mut(), &pause);
        }
    }
}

/// Reaps all children that have ended. Returns the program's status if it is among them.
unsafe fn reap(program: libc::pid_t) -> Option<c_int> {
    loop {
        let mut status = 0;
        // SAFETY: waitpid(2) writes the status.
        let reaped = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if reaped == program {
            return Some(status);
        }
        if reaped <= 0 {
            return None;
        }
    }
}

fn is_reader_gone() -> bool {
    let mut report = libc::pollfd {
        fd: REPORT,
        events: 0,
        revents: 0,
    };
    // SAFETY: one structure, written by the kernel. The call does not wait.
    unsafe { libc::poll(&mut report, 1, 0) > 0 && report.revents & libc::POLLERR != 0 }
}

fn monotonic() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is written by the kernel; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::from_secs(time.tv_sec.unsigned_abs())
        + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

fn send(message: Message) {
    let bytes = message.to_bytes();
    // SAFETY: the pointer and the length are those of the array. If the caller no longer reads, the
    // failure does not matter.
    unsafe { libc::write(REPORT, bytes.as_ptr().cast(), bytes.len()) };
}
