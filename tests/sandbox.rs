//! The sandbox against malicious programs: each does its worst, and the machine stays as before.
//!
//! The programs are shell and Python scripts, because a shell is everywhere and Python reaches
//! every system call. A missing program fails a test with the name of its package.
//!
//! Mutations, each caught by the test named:
//! * `NPROC` left out of `Limits::resources`: `program_that_forks_is_bounded`
//! * `CLONE_NEWNET` left out: `network_is_out_of_reach`
//! * `size=` left out of the tmpfs: `program_that_fills_the_disk_is_bounded`
//! * no `PR_SET_DUMPABLE` in init: `init_cannot_be_read`
//! * no `close_range` in `become_program`: `descriptors_are_not_inherited`
//! * no `close_range` in `keep_descriptors`: `programs_do_not_wait_for_each_other`
//! * `measure` counts no memory: `processes_together_are_bounded_in_memory`
//! * the mmap rule left out of the filter: `memory_that_no_limit_counts_is_refused`
//! * `is_reader_gone` always false: `sandbox_ends_with_its_caller`

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use autoglmd::sandbox::{Ended, Limits, Report, SandboxError, Task, run};

/// A bound for anything that must end soon. How soon is not asserted.
const PATIENCE: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits {
        wall: PATIENCE,
        ..Limits::default()
    }
}

fn run_with(limits: Limits, files: &[(&str, &[u8])], command: &[&str], stdin: &[u8]) -> Report {
    let task = Task {
        files,
        command,
        stdin,
        limits,
    };
    run(&task).unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn shell_with(limits: Limits, script: &str) -> Report {
    run_with(limits, &[], &["sh", "-c", script], b"")
}

fn shell(script: &str) -> Report {
    shell_with(limits(), script)
}

fn python_with(limits: Limits, script: &str) -> Report {
    require("python3");
    run_with(
        limits,
        &[("main.py", script.as_bytes())],
        &["python3", "main.py"],
        b"",
    )
}

fn python(script: &str) -> Report {
    python_with(limits(), script)
}

fn require(program: &str) {
    let package = match program {
        "go" => "golang-go",
        "node" => "nodejs",
        "rustc" => "rustc, or Rust by rustup",
        "unshare" => "util-linux",
        other => other,
    };
    let path = std::env::var_os("PATH").expect("a PATH");
    let is_there = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    assert!(is_there, "{program} is missing: apt-get install {package}");
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8").trim_end()
}

/// Returns a word that no other process has in its command line.
fn marker(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// Returns the machine's processes with this word in their command line.
fn pids_with(word: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let has_word = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    };
    let found = entries.filter(has_word);
    found
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn processes_with(word: &str) -> usize {
    pids_with(word).len()
}

// ---- what a program may use ------------------------------------------------------------------

#[test]
fn program_gets_its_files_input_and_arguments_and_its_end_is_reported() {
    let files: &[(&str, &[u8])] = &[("a.txt", b"one"), ("deep/er/b.txt", b"two")];
    let script = "cat a.txt deep/er/b.txt; cat; echo $1 >&2; exit 3";
    let report = run_with(
        limits(),
        files,
        &["sh", "-c", script, "sh", "word"],
        b" three",
    );
    assert_eq!(report.ended, Ended::Exited(3));
    assert_eq!(text(&report.stdout), "onetwo three");
    assert_eq!(text(&report.stderr), "word");
    assert_eq!(shell("kill -TERM $$").ended, Ended::Signalled(15));
    assert_eq!(
        shell("yes | head -1").stdout,
        b"y\n",
        "SIGPIPE has its default action"
    );
}

#[test]
fn input_larger_than_a_pipe_arrives_whole() {
    let stdin = vec![b'x'; 1 << 20];
    let report = run_with(limits(), &[], &["wc", "-c"], &stdin);
    assert_eq!(text(&report.stdout), "1048576");
    let report = run_with(limits(), &[], &["true"], &stdin);
    assert_eq!(report.ended, Ended::Exited(0), "input may be left unread");
}

#[test]
fn environment_is_clean() {
    let report = shell("env");
    let names: Vec<&str> = text(&report.stdout)
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert!(names.contains(&"PATH") && names.contains(&"HOME"));
    for name in names {
        assert!(!name.starts_with("CARGO"), "{name} came from the caller");
    }
}

#[test]
fn tasks_that_cannot_be_run_are_errors() {
    let with = |files: &[(&str, &[u8])], command: &[&str]| {
        run(&Task {
            files,
            command,
            stdin: b"",
            limits: limits(),
        })
        .map(|report| report.ended)
    };
    for name in ["../x", "/etc/x", "", "a/../../x"] {
        let error = with(&[(name, b"")], &["true"]).expect_err(name);
        assert!(matches!(error, SandboxError::BadTask { .. }), "{error}");
    }
    let error = with(&[], &[]).expect_err("nothing to run");
    assert!(matches!(error, SandboxError::BadTask { .. }), "{error}");
    let error = with(&[], &["no-such-program"]).expect_err("no program");
    assert!(matches!(error, SandboxError::NoProgram { .. }), "{error}");
    let error = with(&[("p", b"neither text nor ELF")], &["./p"]).expect_err("no format");
    assert!(matches!(error, SandboxError::NotStarted { .. }), "{error}");
}

#[test]
fn several_threads_run_programs_at_the_same_time() {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|number| {
                scope.spawn(move || {
                    let script = format!("echo {number}; exit {number}");
                    for _ in 0..5 {
                        let report = shell(&script);
                        assert_eq!(report.ended, Ended::Exited(number));
                        assert_eq!(text(&report.stdout), number.to_string());
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("a thread");
        }
    });
}

/// The second sandbox is a copy of the caller's process while the first one's pipes are open in it.
#[test]
fn programs_do_not_wait_for_each_other() {
    let (first, second) = (marker("first"), marker("second"));
    let start = |word: &str| {
        let script = format!("sleep 1000; : {word}");
        let thread = std::thread::spawn(move || shell(&script));
        eventually("the program runs", || processes_with(word) > 0);
        thread
    };
    let end = |word: &str| {
        for process in pids_with(word) {
            // SAFETY: kill(2) takes numbers only; the word is in programs of this test alone.
            unsafe { libc::kill(process, libc::SIGKILL) };
        }
    };
    let waiting = start(&first);
    let other = start(&second);
    end(&first);
    eventually("the first is reported", || waiting.is_finished());
    assert!(!other.is_finished());
    end(&second);
    for thread in [waiting, other] {
        assert_eq!(thread.join().expect("a report").ended, Ended::Signalled(9));
    }
}

// ---- languages -------------------------------------------------------------------------------

/// Runs a program of a language that prints 42.
fn assert_prints_42(program: &str, name: &str, source: &str, command: &[&str]) {
    require(program);
    let report = run_with(limits(), &[(name, source.as_bytes())], command, b"");
    assert_eq!(
        (report.ended, text(&report.stdout)),
        (Ended::Exited(0), "42"),
        "{}",
        text(&report.stderr)
    );
}

#[test]
fn interpreters_run_wherever_they_are_installed() {
    let command = ["python3", "-c", "import json, math; print(json.dumps(42))"];
    assert_prints_42("python3", "unused", "", &command);
    assert_prints_42("node", "a.js", "console.log(6 * 7)", &["node", "a.js"]);
    assert_prints_42("bash", "a.sh", "echo $((6 * 7))", &["bash", "a.sh"]);
    assert_prints_42("perl", "a.pl", "use POSIX; print 6 * 7", &["perl", "a.pl"]);
    let command = ["sqlite3", ":memory:", "select 6 * 7"];
    assert_prints_42("sqlite3", "unused", "", &command);
}

#[test]
fn compilers_build_programs_that_run() {
    let build = |line| ["sh", "-c", line];
    let c = "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 6 * 7); }";
    assert_prints_42("gcc", "a.c", c, &build("gcc -O1 -o a a.c -lm && ./a"));
    let cpp = "#include <iostream>\nint main() { std::cout << 6 * 7 << \"\\n\"; }";
    assert_prints_42("g++", "a.cpp", cpp, &build("g++ -o a a.cpp && ./a"));
    let rust = "fn main() { println!(\"{}\", 6 * 7); }";
    assert_prints_42("rustc", "a.rs", rust, &build("rustc a.rs && ./a"));
    let go = "package main\nimport \"fmt\"\nfunc main() { fmt.Println(6 * 7) }";
    assert_prints_42("go", "a.go", go, &["go", "run", "a.go"]);
}

// ---- programs that mean harm -----------------------------------------------------------------

#[test]
fn program_that_loops_is_ended_by_its_cpu_time() {
    let limits = Limits {
        cpu: Duration::from_millis(300),
        ..limits()
    };
    let report = shell_with(limits, "while :; do :; done");
    assert_eq!(report.ended, Ended::OutOfTime);
    assert!(report.cpu >= Duration::from_millis(300), "{:?}", report.cpu);
    // Several looping processes share the same time.
    let report = shell_with(
        limits,
        "for i in 1 2 3 4; do (while :; do :; done) & done; wait",
    );
    assert_eq!(report.ended, Ended::OutOfTime);
    assert!(report.cpu < Duration::from_secs(2), "{:?}", report.cpu);
}

#[test]
fn program_that_sleeps_is_ended_by_the_clock() {
    let limits = Limits {
        wall: Duration::from_millis(500),
        ..limits()
    };
    let report = shell_with(limits, "echo before; sleep 1000");
    assert_eq!(report.ended, Ended::OutOfTime);
    assert_eq!(text(&report.stdout), "before");
}

#[test]
fn time_of_killed_processes_counts() {
    // Busy for a tenth of a second, then stopped for its output.
    let script = "
import time
while time.process_time() < 0.1:
    pass
time.sleep(1)
while True:
    print('x' * 1000)
";
    let report = python(script);
    assert_eq!(report.ended, Ended::OutOfOutput);
    // The kernel counts in ticks of 10 ms, user and system time separately.
    assert!(report.cpu >= Duration::from_millis(50), "{:?}", report.cpu);
}

#[test]
fn program_that_forks_is_bounded() {
    let script = "
import os, time
children = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(1000)
        children += 1
except OSError as error:
    print(children, error.errno)
";
    let limits = Limits {
        processes: 20,
        ..limits()
    };
    let report = python_with(limits, script);
    assert_eq!(report.ended, Ended::Exited(0));
    let printed = text(&report.stdout);
    let (children, errno) = printed.split_once(' ').expect("two numbers");
    let children: u32 = children.parse().expect("a number");
    assert!((15..=20).contains(&children), "{children}");
    assert_eq!(errno, libc::EAGAIN.to_string());
}

#[test]
fn bomb_of_forks_harms_nothing() {
    let word = marker("bomb");
    let limits = Limits {
        wall: Duration::from_secs(2),
        ..limits()
    };
    let script = format!("bomb() {{ bomb | bomb & }}; bomb; sleep 1000 # {word}");
    shell_with(limits, &script);
    assert_eq!(processes_with(&word), 0);
}

#[test]
fn program_that_fills_the_disk_is_bounded() {
    let limits = Limits {
        disk_bytes: 4 << 20,
        ..limits()
    };
    let script = "
for i in 1 2 3 4; do head -c 3000000 /dev/zero > f$i; done
head -c 3000000 /dev/zero > /tmp/g; head -c 3000000 /dev/zero > /dev/shm/h
cat f* /tmp/g /dev/shm/h | wc -c
for name in /usr/x /x /etc/x /dev/x; do true > $name; done; ls / /usr /etc /dev";
    let report = shell_with(limits, script);
    let stdout = text(&report.stdout);
    let (bytes, listing) = stdout.split_once('\n').expect("a number first");
    let bytes: u64 = bytes.trim().parse().expect("a number");
    assert!((3 << 20..=4 << 20).contains(&bytes), "{bytes}");
    assert!(!listing.lines().any(|line| line == "x"), "{listing}");
    // Empty files cost memory too.
    let report = python(
        "
try:
    for i in range(100_000):
        open(str(i), 'w').close()
except OSError as error:
    print(i)
",
    );
    let made: u32 = text(&report.stdout).parse().expect("a number");
    assert!(made < 20_000, "{made}");
}

#[test]
fn home_folder_and_secrets_of_the_machine_are_out_of_reach() {
    let home = PathBuf::from(std::env::var_os("HOME").expect("a home folder"));
    let secret = tempfile::Builder::new()
        .prefix("sandbox-test-")
        .tempfile_in(&home)
        .expect("a file in the home folder");
    fs::write(secret.path(), "confidential").expect("written");
    let name = secret
        .path()
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    let script = format!(
        "cat {path} {home}/.bashrc /etc/shadow /proc/1/root{path}; ls -A {home}; ls -A /root /home;
         find / -name '{name}' 2>/dev/null; ls -A /tmp; ls /",
        path = secret.path().display(),
        home = home.display(),
    );
    let report = shell(&script);
    let stdout = text(&report.stdout);
    assert!(
        !stdout.contains("confidential") && !stdout.contains(&name),
        "{stdout}"
    );
    let this = Path::new(env!("CARGO_MANIFEST_DIR"));
    let report = shell(&format!("ls {}", this.display()));
    assert_ne!(report.ended, Ended::Exited(0), "{}", text(&report.stdout));
}

#[test]
fn network_is_out_of_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let port = listener.local_addr().expect("its address").port();
    let script = format!(
        "
import socket
for address in [('127.0.0.1', {port}), ('192.0.2.1', 80)]:
    try:
        socket.create_connection(address, 5)
        print('connected')
    except OSError as error:
        print(error.errno)
"
    );
    let report = python(&script);
    let unreachable = libc::ENETUNREACH.to_string();
    assert_eq!(
        text(&report.stdout),
        format!("{unreachable}\n{unreachable}")
    );
    let accepted = listener.accept().expect_err("no connection");
    assert_eq!(accepted.kind(), ErrorKind::WouldBlock);
}

#[test]
fn program_that_floods_its_output_is_ended() {
    let limits = Limits {
        output_bytes: 100_000,
        ..limits()
    };
    let report = shell_with(limits, "yes & yes >&2");
    assert_eq!(report.ended, Ended::OutOfOutput);
    assert_eq!(report.stdout.len() + report.stderr.len(), 100_000);
}

#[test]
fn every_descendant_ends_with_the_program() {
    let word = marker("descendant");
    // Each shell detaches from its parent and its session, then outlives it.
    let script = format!(
        "for i in 1 2 3; do setsid sh -c 'setsid sh -c \"sleep 1000; : {word}\" & exit' & done;
         sleep 0.1; exit 7"
    );
    let report = shell(&script);
    assert_eq!(report.ended, Ended::Exited(7));
    assert_eq!(processes_with(&word), 0);
}

#[test]
fn process_that_takes_too_much_memory_is_refused_it() {
    let limits = Limits {
        memory_bytes: 128 << 20,
        ..limits()
    };
    let script = "
try:
    bytearray(200 << 20)
except MemoryError:
    print('refused')
";
    let report = python_with(limits, script);
    assert_eq!(text(&report.stdout), "refused");
    let report = python_with(limits, "print(len(bytearray(64 << 20)))");
    assert_eq!(text(&report.stdout), (64 << 20).to_string());
}

#[test]
fn processes_together_are_bounded_in_memory() {
    let limits = Limits {
        memory_bytes: 128 << 20,
        ..limits()
    };
    let script = "
import os, time
for i in range(4):
    if os.fork() == 0:
        taken = bytearray(b'x') * (64 << 20)
        time.sleep(1000)
time.sleep(1000)
";
    let report = python_with(limits, script);
    assert_eq!(report.ended, Ended::OutOfMemory);
}

#[test]
fn memory_that_no_limit_counts_is_refused() {
    let script = "
import ctypes, mmap, os
def report(name, call):
    try:
        call()
        print(name, 'allowed')
    except (OSError, ValueError):
        print(name, 'refused')
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno())
report('shared', lambda: mmap.mmap(-1, 1 << 20))
report('private', lambda: mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE))
report('memfd', lambda: checked(libc.memfd_create(b'x', 0)))
report('shmget', lambda: checked(libc.shmget(0, 1 << 20, 0o1600)))
";
    let report = python(script);
    let expected = "shared refused\nprivate allowed\nmemfd refused\nshmget refused";
    assert_eq!(text(&report.stdout), expected, "{}", text(&report.stderr));
}

// ---- privileges ------------------------------------------------------------------------------

#[test]
fn program_has_no_privileges_and_cannot_get_any() {
    let report = shell("cat /proc/self/status; id -u; unshare -Ur true || echo no namespace");
    let stdout = text(&report.stdout);
    let field = |name: &str| {
        let line = stdout.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1))
            .unwrap_or_else(|| panic!("{name} in {stdout}"))
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    assert!(stdout.ends_with("1000\nno namespace"), "{stdout}");
}

#[test]
fn descriptors_are_not_inherited() {
    // An open file of the caller, without close-on-exec as a careless library leaves it.
    let file = fs::File::open("/etc/hostname").or_else(|_| fs::File::open("/etc/passwd"));
    let file = file.expect("a file");
    // SAFETY: fcntl(2) with numbers only, on a descriptor that is open.
    let flags = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_SETFD, 0) };
    assert_eq!(flags, 0);
    let report = python("import os; print(sorted(os.listdir('/proc/self/fd')))");
    // The fourth is the folder that is being read.
    assert_eq!(text(&report.stdout), "['0', '1', '2', '3']");
}

const READ_INIT: &str = "
import os
for name in ['mem', 'environ', 'maps', 'fd/3', 'root', 'cwd']:
    path = '/proc/1/' + name
    try:
        os.readlink(path) if name in ('fd/3', 'root', 'cwd') else open(path).read(1)
        print(name, 'can be read')
    except PermissionError:
        pass
try:
    os.kill(1, 9)
except PermissionError:
    pass
print('alive')
";

/// Init's memory is a copy of the caller's.
#[test]
fn init_cannot_be_read() {
    let report = python(READ_INIT);
    assert_eq!(report.ended, Ended::Exited(0));
    assert_eq!(text(&report.stdout), "alive");
    // Without root, init and the program are the same user.
    let script = format!("python3 -c \"{READ_INIT}\"");
    let output = probe_output(&UNPRIVILEGED, &script);
    assert!(output.contains("[Exited(0) alive]"), "{output}");
}

// ---- callers of another kind -----------------------------------------------------------------

const PROBE: &str = "SANDBOX_TEST_PROBE";

/// Runs this test binary's `probe` under another program.
fn prepare(wrapper: &[&str], script: &str) -> Command {
    require(wrapper[0]);
    let this = std::env::current_exe().expect("this binary");
    let mut command = Command::new(wrapper[0]);
    command
        .args(&wrapper[1..])
        .arg(this)
        .args(["--exact", "probe", "--nocapture"])
        .env(PROBE, script)
        .stdin(Stdio::null());
    command
}

/// `prepare` runs this in its own process; by itself it is a test with an empty script.
#[test]
fn probe() {
    let script = std::env::var(PROBE).unwrap_or_default();
    match run(&Task {
        files: &[],
        command: &["sh", "-c", &script],
        stdin: b"",
        limits: limits(),
    }) {
        Ok(report) => println!("[{:?} {}]", report.ended, text(&report.stdout)),
        Err(error) => println!("[{error}]"),
    }
}

/// Runs a program as a user that is not root, in a user namespace where that is the only user.
const UNPRIVILEGED: [&str; 4] = ["unshare", "--user", "--map-user=1234", "--map-group=1234"];

#[test]
fn caller_without_root_gets_the_same_sandbox() {
    let output = probe_output(
        &UNPRIVILEGED,
        "id -u; pwd; touch /usr/x 2>/dev/null || echo sealed",
    );
    assert!(output.contains("1000\n/scratch/work\nsealed"), "{output}");
}

#[test]
fn kernel_that_forbids_namespaces_is_an_error() {
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid];
    let output = probe_output(&wrapper, "echo it ran");
    assert!(
        output.contains("[the kernel refused to set up the sandbox: creating namespaces"),
        "{output}"
    );
    assert!(!output.contains("it ran"), "{output}");
}

fn probe_output(wrapper: &[&str], script: &str) -> String {
    let output = prepare(wrapper, script).output().expect("it starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn sandbox_ends_with_its_caller() {
    let word = marker("orphan");
    let mut caller = prepare(&["env"], &format!("sleep 1000; : {word}"))
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    // The caller's own environment is not in its command line, so the word is the shell's inside.
    eventually("the program runs", || processes_with(&word) > 0);
    caller.kill().expect("killed");
    caller.wait().expect("reaped");
    eventually("the program has ended", || processes_with(&word) == 0);
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}
