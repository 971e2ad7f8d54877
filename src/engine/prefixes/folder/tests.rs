//! Tests the folder over files that are damaged, foreign, unfinished or too many.
//!
//! Mutations that these tests catch: `open` without `handle_fault`, or without removing unfinished
//! files (`files_that_cannot_be_used_...`); `try_load` without comparing tenant and tokens
//! (`file_under_the_name_of_another_...`); `make_room` without its bound (`files_stay_below_...`);
//! `write_file` without its look at the mark, or `erase` without the mark
//! (`nothing_of_an_erased_tenant_...`); `write` without its look at the epoch
//! (`forgotten_files_...`); `wish` without `may_write`, `keep` without `note_write`, or
//! `end_within` that keeps the reader's orders open (`stranger_with_many_...`); a write to the
//! final name (`process_that_is_killed_...`); `suspended_until` that is not set
//! (`failed_write_...`).

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::archive::{Archive, Disk};
use super::super::files::{bytes, clear, erase, folder};
use super::super::origin::tests::origin;
use super::*;

const TENANT: u64 = 7;
const STATE_BYTES: usize = 10_000;

struct Host {
    state_dir: tempfile::TempDir,
    folder: Folder,
}

impl Host {
    fn new(bytes_max: u64) -> Host {
        let state_dir = tempfile::tempdir().unwrap();
        let folder = opened(state_dir.path(), bytes_max, &origin());
        Host { state_dir, folder }
    }

    /// Another process over the same files.
    fn reopen(&mut self, origin: &Origin) {
        self.folder = opened(self.state_dir.path(), self.folder.bytes_max, origin);
    }

    fn path(&self) -> PathBuf {
        folder(self.state_dir.path())
    }

    fn write(&self, copied: &Copied) {
        self.folder.write(copied, &mut |_| true);
    }

    fn found(&self, tenant: u64, prompt: &[Token]) -> Option<usize> {
        let found = self.folder.find(tenant, prompt, usize::MAX);
        found.map(|(_, tokens)| tokens).filter(|tokens| *tokens > 0)
    }

    fn load(&self, tenant: u64, prompt: &[Token]) -> Option<Vec<u8>> {
        let (entry, _) = self.folder.find(tenant, prompt, usize::MAX)?;
        let loaded = self.folder.load(&entry, &mut |_| Some(()), &|| true);
        loaded.map(|(state, ())| state)
    }

    fn wants(&self, tokens: &[Token], now: Moment) -> bool {
        self.folder.wish(TENANT, tokens, now) == Wish::Copy
    }

    fn files(&self) -> Vec<PathBuf> {
        let items = fs::read_dir(self.path()).unwrap().map(|item| item.unwrap());
        let prefixes = items.filter(|item| {
            let name = item.file_name().to_string_lossy().into_owned();
            !matches!(names::kind(&name), Kind::Other)
        });
        prefixes.map(|item| item.path()).collect()
    }
}

fn opened(state_dir: &Path, bytes_max: u64, origin: &Origin) -> Folder {
    let opened = Folder::new(folder(state_dir), bytes_max);
    opened.open(origin).unwrap();
    opened
}

/// Returns tokens that begin differently for each number.
fn text(number: Token, length: usize) -> Vec<Token> {
    (0..length as Token)
        .map(|token| number << 16 | token)
        .collect()
}

fn copied(tenant: u64, tokens: Vec<Token>) -> Copied {
    let byte = tokens.len() as u8 ^ tenant as u8;
    Copied {
        tenant,
        tokens,
        state: vec![byte; STATE_BYTES],
        epoch: 0,
    }
}

#[test]
fn copy_survives_a_restart_for_its_tenant_and_its_engine_only() {
    let mut host = Host::new(1 << 20);
    let tokens = text(1, 300);
    assert!(host.wants(&tokens, Moment::now()));
    host.write(&copied(TENANT, tokens.clone()));
    assert!(!host.wants(&tokens, Moment::now()), "it is there");
    host.reopen(&origin());
    let longer = [&tokens[..], &[1, 2, 3]].concat();
    assert_eq!(host.found(TENANT, &longer), Some(300));
    assert_eq!(
        host.load(TENANT, &longer),
        Some(copied(TENANT, tokens.clone()).state)
    );
    // A prompt that only begins like it goes on from where they differ.
    let mut other = longer.clone();
    other[280] = -1;
    assert_eq!(host.found(TENANT, &other), Some(280));
    assert_eq!(host.found(TENANT + 1, &longer), None, "another tenant");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&host.path()), 0o700);
    assert!(host.files().iter().all(|path| mode(path) == 0o600));
    let kv_type = "q8_0";
    host.reopen(&Origin {
        kv_type,
        ..origin()
    });
    assert_eq!(host.found(TENANT, &longer), None, "another engine");
    assert_eq!(host.folder.figures().foreign, 1);
    assert!(host.files().is_empty(), "it is of no use");
}

#[test]
fn files_that_cannot_be_used_are_misses_counted_and_removed() {
    for (name, damage) in [
        ("a head", damaged_at(40)),
        ("a state that is read later", damaged_at(-1)),
        ("a missing end", |path: &Path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        }),
        ("an empty file", |path: &Path| fs::write(path, "").unwrap()),
    ] {
        let mut host = Host::new(1 << 20);
        host.write(&copied(TENANT, text(1, 300)));
        damage(&host.files()[0]);
        host.reopen(&origin());
        assert_eq!(host.load(TENANT, &text(1, 300)), None, "{name}");
        let figures = host.folder.figures();
        assert_eq!((figures.damaged, figures.entries), (1, 0), "{name}");
        assert!(host.files().is_empty(), "{name}");
    }
    // A process that was killed, and files that are not from here.
    let mut host = Host::new(1 << 20);
    host.write(&copied(TENANT, text(1, 300)));
    let whole = host.files().remove(0);
    let unfinished = format!("{}{UNFINISHED}", whole.display());
    fs::copy(&whole, &unfinished).unwrap();
    fs::write(host.path().join("notes.txt"), "an operator's").unwrap();
    std::os::unix::fs::symlink("/dev/zero", host.path().join(other_name(&whole))).unwrap();
    host.reopen(&origin());
    assert_eq!(
        host.files().len(),
        2,
        "the whole one, and a link that cannot be opened"
    );
    assert!(host.path().join("notes.txt").exists());
    assert!(host.load(TENANT, &text(1, 300)).is_some());
}

fn damaged_at(at: i64) -> fn(&Path) {
    fn flip(path: &Path, index: impl FnOnce(usize) -> usize) {
        let mut bytes = fs::read(path).unwrap();
        let index = index(bytes.len());
        bytes[index] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    match at < 0 {
        true => |path| flip(path, |length| length - 1),
        false => |path| flip(path, |_| 40),
    }
}

fn other_name(path: &Path) -> String {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let flip = |digit: char| if digit == '0' { '1' } else { '0' };
    format!("{}{}", flip(name.chars().next().unwrap()), &name[1..])
}

#[test]
fn file_under_the_name_of_another_is_foreign() {
    let mut host = Host::new(1 << 20);
    host.write(&copied(TENANT, text(1, 300)));
    let of_one = host.files().remove(0);
    host.write(&copied(TENANT + 1, text(1, 300)));
    let of_other = host
        .files()
        .into_iter()
        .find(|path| *path != of_one)
        .unwrap();
    // One tenant's file in another's place, before and after the folder was read.
    fs::copy(&of_other, &of_one).unwrap();
    assert_eq!(host.load(TENANT, &text(1, 300)), None);
    assert_eq!(host.folder.figures().foreign, 1);
    fs::copy(&of_other, &of_one).unwrap();
    host.reopen(&origin());
    assert_eq!(host.found(TENANT, &text(1, 300)), None);
    assert_eq!(host.folder.figures().foreign, 1);
    assert!(
        host.load(TENANT + 1, &text(1, 300)).is_some(),
        "its own is there"
    );
}

#[test]
fn files_stay_below_the_bound_and_the_least_recently_used_one_goes() {
    let room = 3 * (STATE_BYTES as u64 + 2_000);
    let mut host = Host::new(room);
    for number in 1..=3 {
        host.write(&copied(TENANT, text(number, 300)));
    }
    assert!(host.load(TENANT, &text(1, 300)).is_some(), "a use");
    // The order survives a restart. Two writes may have the same time.
    let times = [(2, 1), (3, 2), (1, 3)];
    for (number, second) in times {
        let (entry, _) = host
            .folder
            .find(TENANT, &text(number, 300), usize::MAX)
            .unwrap();
        let file = File::options()
            .write(true)
            .open(host.path().join(&entry.name))
            .unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        file.set_modified(time).unwrap();
    }
    host.reopen(&origin());
    host.write(&copied(TENANT, text(4, 300)));
    assert_eq!(
        host.found(TENANT, &text(2, 300)),
        None,
        "the least recently used one"
    );
    assert!(
        [1, 3, 4]
            .iter()
            .all(|number| host.found(TENANT, &text(*number, 300)).is_some())
    );
    let bytes = bytes(host.state_dir.path()).unwrap().prefixes;
    assert!(host.folder.figures().bytes <= room && bytes <= room + 32);
    assert_eq!(host.folder.figures().evicted, 1);
    // A lowered bound, and a copy that is larger than all of it.
    host.folder.bytes_max = room / 2;
    host.reopen(&origin());
    assert_eq!(host.folder.figures().entries, 1);
    host.write(&Copied {
        state: vec![0; room as usize],
        ..copied(TENANT, text(9, 300))
    });
    assert_eq!(
        (host.folder.figures().skipped, host.folder.figures().entries),
        (1, 1)
    );
    // A daemon that keeps none.
    assert_eq!(
        (clear(host.state_dir.path()).unwrap(), host.files().len()),
        (1, 0)
    );
}

#[test]
fn longer_copy_replaces_the_one_that_it_contains() {
    let host = Host::new(1 << 20);
    host.write(&copied(TENANT, text(1, 300)));
    host.write(&copied(TENANT, text(1, 400)));
    assert_eq!(
        host.found(TENANT, &text(1, 400)),
        Some(300),
        "it adds too little"
    );
    host.write(&copied(TENANT, text(1, 600)));
    assert_eq!(host.found(TENANT, &text(1, 600)), Some(600));
    assert_eq!(host.files().len(), 1);
}

#[test]
fn nothing_of_an_erased_tenant_is_there_or_written_later() {
    let mut host = Host::new(1 << 20);
    host.write(&copied(TENANT, text(1, 300)));
    host.write(&copied(TENANT + 1, text(1, 300)));
    assert_eq!(erase(host.state_dir.path(), TENANT).unwrap(), 1);
    assert_eq!(
        host.load(TENANT, &text(1, 300)),
        None,
        "a file that is gone is a miss"
    );
    assert_eq!(host.folder.figures().failed, 0);
    // The daemon still has it in memory.
    host.write(&copied(TENANT, text(1, 300)));
    assert_eq!(host.found(TENANT, &text(1, 300)), None);
    let count = |host: &Host| host.files().len();
    assert_eq!(count(&host), 2, "the other tenant's, and the mark");
    host.reopen(&origin());
    assert_eq!(count(&host), 1);
    assert!(host.load(TENANT + 1, &text(1, 300)).is_some());
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(
        erase(empty.path(), TENANT).unwrap(),
        0,
        "there never was a folder"
    );
}

/// Mutation that this test catches: `open` without `finish_erasures`.
#[test]
fn a_file_that_was_renamed_just_before_the_end_goes_at_the_next_start() {
    let mut host = Host::new(1 << 20);
    host.write(&copied(TENANT, text(1, 300)));
    host.write(&copied(TENANT + 1, text(1, 300)));
    let before = host.files();
    let bytes: Vec<_> = before
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    assert_eq!(erase(host.state_dir.path(), TENANT).unwrap(), 1);
    for (path, bytes) in before.iter().zip(bytes) {
        std::fs::write(path, bytes).unwrap();
    }
    host.reopen(&origin());
    assert_eq!(host.files().len(), 1, "neither the file nor the mark");
    assert_eq!(host.found(TENANT, &text(1, 300)), None);
    assert!(host.load(TENANT + 1, &text(1, 300)).is_some());
}

#[test]
fn forgotten_files_are_not_found_and_copies_on_their_way_are_dropped() {
    let host = Host::new(1 << 20);
    host.write(&copied(TENANT, text(1, 300)));
    host.write(&copied(TENANT + 1, text(1, 300)));
    host.folder.forget(Some(TENANT));
    assert_eq!(host.found(TENANT, &text(1, 300)), None);
    assert!(host.found(TENANT + 1, &text(1, 300)).is_some());
    host.write(&copied(TENANT, text(2, 300)));
    assert_eq!(
        host.found(TENANT, &text(2, 300)),
        None,
        "it was copied before"
    );
    host.folder.free_forgotten();
    assert_eq!(host.files().len(), 1);
    host.folder.forget(None);
    host.folder.free_forgotten();
    assert!(host.files().is_empty());
    let epoch = host.folder.epoch();
    host.write(&Copied {
        epoch,
        ..copied(TENANT, text(2, 300))
    });
    assert!(
        host.found(TENANT, &text(2, 300)).is_some(),
        "it was computed later"
    );
}

/// A folder with a file of each of two tenants.
fn of_two_tenants() -> Host {
    let host = Host::new(1 << 20);
    host.write(&copied(TENANT, text(1, 300)));
    host.write(&copied(TENANT + 1, text(1, 300)));
    host
}

fn assert_left(host: &Host, one: bool, other: bool) {
    assert_eq!(host.found(TENANT, &text(1, 300)).is_some(), one);
    assert_eq!(host.found(TENANT + 1, &text(1, 300)).is_some(), other);
    assert_eq!(host.files().len(), usize::from(one) + usize::from(other));
    assert_eq!(host.folder.figures().failed, 0);
}

/// Mutations that this test catches: `forget` that keeps no purge, `end_open` that does not apply
/// one, or leaves the files.
#[test]
fn purge_before_the_folder_is_read_holds() {
    for (purged, others_left) in [(Some(TENANT), true), (None, false)] {
        let mut host = of_two_tenants();
        host.folder = Folder::new(host.path(), 1 << 20);
        let epoch = host.folder.epoch();
        host.folder.forget(purged);
        assert_ne!(host.folder.epoch(), epoch);
        host.folder.open(&origin()).unwrap();
        assert_left(&host, false, others_left);
        // It applies once.
        let epoch = host.folder.epoch();
        let copied = copied(TENANT, text(1, 300));
        host.write(&Copied { epoch, ..copied });
        host.folder.open(&origin()).unwrap();
        assert_left(&host, true, others_left);
    }
}

/// The daemon may end before its model is there. Mutations that this test catches: `free_forgotten`
/// that leaves unread files, `free_unread` after the folder was read.
#[test]
fn purge_before_the_folder_is_read_removes_files() {
    for (purged, others_left) in [(Some(TENANT), true), (None, false)] {
        let mut host = of_two_tenants();
        host.folder = Folder::new(host.path(), 1 << 20);
        host.folder.free_forgotten();
        assert_eq!(host.files().len(), 2);
        host.folder.forget(purged);
        host.folder.free_forgotten();
        host.reopen(&origin());
        assert_left(&host, false, others_left);
    }
    let host = of_two_tenants();
    let mut purges = Purges::default();
    purges.add(None);
    host.folder.free_unread(&purges).unwrap();
    assert_left(&host, true, true);
}

/// As after a panic of the engine. Mutations that this test catches: `begin_open` that leaves the
/// folder in use, `end_open` that reads forgotten files again.
#[test]
fn purge_before_or_while_the_folder_is_read_again_holds() {
    let host = of_two_tenants();
    host.folder.forget(Some(TENANT));
    // No worker comes.
    host.folder.open(&origin()).unwrap();
    assert_left(&host, false, true);
    let host = of_two_tenants();
    let opened = host.folder.begin_open(&origin()).unwrap();
    let found = host.folder.read_entries(&opened).unwrap();
    // It would not be among those that were found.
    host.write(&copied(TENANT + 1, text(2, 300)));
    host.folder.forget(Some(TENANT));
    host.folder.end_open(opened, found);
    assert_left(&host, false, true);
}

/// The writer of an engine that has failed may hang in the disk. Mutation that this test catches:
/// `write_file` without `has_opened`.
#[test]
fn writer_from_before_the_folder_was_read_again_writes_nothing() {
    let host = of_two_tenants();
    host.folder.write(&copied(TENANT, text(2, 300)), &mut |_| {
        host.folder.open(&origin()).unwrap();
        true
    });
    assert_left(&host, true, true);
    assert_eq!(host.found(TENANT, &text(2, 300)), None);
}

/// Mutations that this test catches: `write_file` that leaves its name among the forgotten ones; no
/// `naming` in `free_forgotten`, in one of some hundred rounds.
#[test]
fn file_that_comes_back_after_a_purge_stays() {
    let host = Host::new(1 << 20);
    let write = || {
        let epoch = host.folder.epoch();
        let copied = copied(TENANT, text(1, 300));
        host.write(&Copied { epoch, ..copied });
    };
    write();
    host.folder.forget(Some(TENANT));
    // Before a worker has removed the purged file of the same name.
    write();
    host.folder.free_forgotten();
    assert!(host.load(TENANT, &text(1, 300)).is_some());
    for _ in 0..1_000 {
        host.folder.forget(Some(TENANT));
        std::thread::scope(|scope| {
            scope.spawn(|| host.folder.free_forgotten());
            write();
        });
        assert!(host.load(TENANT, &text(1, 300)).is_some());
        assert_eq!(host.files().len(), 1);
    }
}

/// Mutations that this test catches: `make_room` that does not count forgotten files, or does not
/// remove them first.
#[test]
fn forgotten_files_count_until_they_are_removed() {
    let room = 3 * (STATE_BYTES as u64 + 2_000);
    let host = Host::new(room);
    let write = |tenant: u64, number: Token| {
        let epoch = host.folder.epoch();
        let copied = copied(tenant, text(number, 300));
        host.write(&Copied { epoch, ..copied });
    };
    for (tenant, number) in [(TENANT, 1), (TENANT + 1, 2), (TENANT, 3)] {
        write(tenant, number);
    }
    host.folder.forget(Some(TENANT));
    // No worker comes.
    write(TENANT + 1, 4);
    assert!(bytes(host.state_dir.path()).unwrap().prefixes <= room + 32);
    let figures = host.folder.figures();
    assert_eq!((figures.entries, figures.evicted), (2, 0));
    // Their number counts as well.
    let mut state = State::default();
    let (entry, _) = host.folder.find(TENANT + 1, &text(4, 300), 300).unwrap();
    let mut has_room = |forgotten: usize| {
        state.forgotten = vec![entry.clone(); forgotten].into();
        state.has_room(1, u64::MAX)
    };
    assert!(has_room(limits::FILES_MAX - 1));
    assert!(!has_room(limits::FILES_MAX));
}

/// Mutations that this test catches: `free_forgotten` that gives a file up, `write` that goes on
/// without room.
#[test]
fn forgotten_file_that_cannot_be_removed_is_removed_later() {
    let mut host = Host::new(1 << 20);
    host.write(&copied(TENANT, text(1, 300)));
    let path = host.files().remove(0);
    // No call removes a folder like a file.
    fs::rename(&path, host.path().join("aside")).unwrap();
    fs::create_dir(&path).unwrap();
    host.folder.forget(Some(TENANT));
    host.folder.free_forgotten();
    assert_eq!(host.folder.figures().failed, 1);
    // It still takes its room.
    host.folder.bytes_max = STATE_BYTES as u64 * 3 / 2;
    let epoch = host.folder.epoch();
    let other = copied(TENANT, text(2, 300));
    host.write(&Copied { epoch, ..other });
    let figures = host.folder.figures();
    assert_eq!((figures.skipped, figures.entries), (1, 0));
    fs::remove_dir(&path).unwrap();
    fs::rename(host.path().join("aside"), &path).unwrap();
    host.folder.free_forgotten();
    assert!(host.files().is_empty());
}

#[test]
fn failed_write_is_counted_and_no_copy_is_taken_for_a_while() {
    let host = Host::new(1 << 20);
    host.write(&copied(TENANT, text(1, 300)));
    // As if the disk were full, for any user.
    fs::rename(host.path(), host.state_dir.path().join("elsewhere")).unwrap();
    let before = Moment::now();
    host.write(&copied(TENANT, text(2, 300)));
    let after = Moment::now();
    let figures = host.folder.figures();
    assert_eq!(
        (figures.failed, figures.written, figures.bytes > 0),
        (1, 1, true)
    );
    let just = limits::WRITE_RETRY_PAUSE - Duration::from_micros(1);
    assert!(!host.wants(&text(2, 300), before + just));
    assert!(host.wants(&text(2, 300), after + limits::WRITE_RETRY_PAUSE));
    fs::rename(host.state_dir.path().join("elsewhere"), host.path()).unwrap();
    host.write(&copied(TENANT, text(2, 300)));
    assert!(host.load(TENANT, &text(2, 300)).is_some(), "it heals");
}

#[test]
fn stranger_with_many_prompts_writes_half_of_the_rate() {
    const COPIES: u64 = 20;
    let host = Host::new(1 << 30);
    let folder = Arc::new(Folder::new(host.path(), 1 << 30));
    let copy_bytes = (STATE_BYTES as u64).next_multiple_of(1024);
    folder.lock().wear = Wear::new(2 * COPIES * copy_bytes, 1024);
    let mut disk = Disk::start(folder.clone(), origin(), Box::new(|| {})).unwrap();
    while folder.opened().is_none() {
        std::thread::yield_now();
    }
    let mut taken = |tenant: u64, numbers: std::ops::Range<Token>| {
        let mut taken = 0;
        for number in numbers {
            let tokens = text(number, 300);
            if disk.wish(tenant, &tokens) == Wish::Copy {
                disk.keep(copied(tenant, tokens));
                taken += 1;
            }
        }
        taken
    };
    assert_eq!(taken(TENANT, 0..100), COPIES);
    assert_eq!(taken(TENANT + 1, 0..100), COPIES, "the other half");
    assert_eq!(taken(TENANT + 2, 0..100), 0);
    disk.finish(&|| false);
    let figures = folder.figures();
    assert_eq!(
        (figures.written, figures.entries as u64),
        (2 * COPIES, 2 * COPIES)
    );
    // The end writes the rest.
    assert_eq!(disk.wish(TENANT, &text(200, 300)), Wish::Copy);
    // Long, because its threads give way to all others.
    let patience = Duration::from_secs(60);
    assert!(disk.end_within(patience), "its threads wait for nothing");
}

/// Names the state folder in the process that the test below kills.
const WRITES: &str = "AUTOGLMD_TEST_WRITES_PREFIXES";

/// Kills a process that writes one prefix after the other, at another moment each time.
#[test]
fn process_that_is_killed_leaves_a_folder_that_can_be_read() {
    if let Some(state_dir) = std::env::var_os(WRITES) {
        let writer = opened(Path::new(&state_dir), 1 << 20, &origin());
        // Until it is killed.
        for number in (1..2_000).cycle() {
            writer.write(&copied(TENANT, text(number, 300)), &mut |_| true);
            if number == 2 {
                println!("it writes");
            }
        }
    }
    let mut host = Host::new(1 << 20);
    let name = "folder::tests::process_that_is_killed_leaves_a_folder_that_can_be_read";
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", name])
            .env(WRITES, host.state_dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("it writes") {
            line.clear();
            assert!(io::BufRead::read_line(&mut said, &mut line).unwrap() > 0);
        }
        // Turns of the scheduler, not a time, spread the moments.
        (0..round * 50).for_each(|_| std::thread::yield_now());
        child.kill().unwrap();
        child.wait().unwrap();
        host.reopen(&origin());
        let figures = host.folder.figures();
        assert_eq!(
            (figures.damaged, figures.foreign, figures.failed),
            (0, 0, 0)
        );
        assert!(figures.entries > 0);
        let unfinished = |path: &PathBuf| path.to_string_lossy().ends_with(UNFINISHED);
        assert!(!host.files().iter().any(unfinished));
        let (_, all) = host.folder.entries_of(TENANT).unwrap();
        for entry in all {
            let loaded = host.folder.load(&entry, &mut |_| Some(()), &|| true);
            assert!(loaded.is_some(), "every file is whole");
        }
    }
}
