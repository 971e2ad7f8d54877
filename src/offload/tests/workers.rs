//! Mutations that these tests catch: `catch_unwind` left out, `is_wanted` not asked, a refused task
//! that is dropped inside `submit`, `close` that leaves the queue as it is, a pool that ignores its
//! shares, `execute` that gives no share back, or none after a panic.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::offload::fair_queue::Bounds;
use crate::offload::shares::Shares;
use crate::offload::workers::{Full, Task, Workers};

/// What became of the tasks, in order.
type Diary = Arc<Mutex<Vec<(u32, &'static str)>>>;

struct Probe {
    number: u32,
    diary: Diary,
    is_wanted: bool,
    panics: bool,
    /// Answered by its drop if not before.
    is_answered: bool,
}

impl Probe {
    fn new(number: u32, diary: &Diary) -> Probe {
        Probe {
            number,
            diary: diary.clone(),
            is_wanted: true,
            panics: false,
            is_answered: false,
        }
    }

    fn note(&mut self, what: &'static str) {
        self.is_answered = true;
        self.diary.lock().unwrap().push((self.number, what));
    }
}

impl Task for Probe {
    fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    fn run(mut self: Box<Probe>) {
        assert!(!self.panics, "as the test wants it");
        self.note("ran");
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if !self.is_answered {
            self.note("dropped");
        }
    }
}

const SMALL: Bounds = Bounds {
    items: 4,
    bytes: 4_000,
    visit_bytes: 1_000,
    item_bytes_min: 1,
};

fn small() -> Workers {
    Workers::new(SMALL)
}

#[test]
fn each_task_is_answered_once_whatever_becomes_of_it() {
    let (workers, diary) = (Workers::default(), Diary::default());
    let mut unwanted = Probe::new(2, &diary);
    unwanted.is_wanted = false;
    let mut broken = Probe::new(3, &diary);
    broken.panics = true;
    for probe in [
        Probe::new(1, &diary),
        unwanted,
        broken,
        Probe::new(4, &diary),
    ] {
        assert!(workers.submit(7, 10, probe).is_ok());
    }
    for _ in 0..3 {
        assert!(workers.run_one());
    }
    workers.close();
    assert!(!workers.run_one());
    assert_eq!(
        *diary.lock().unwrap(),
        [(1, "ran"), (2, "dropped"), (3, "dropped"), (4, "dropped")]
    );
    let figures = workers.figures();
    assert_eq!(
        (figures.done, figures.unwanted, figures.panicked),
        (1, 1, 1)
    );
    assert_eq!(figures.waiting, 0);
}

#[test]
fn a_task_that_finds_no_place_comes_back_unanswered() {
    let (workers, diary) = (small(), Diary::default());
    let submit = |tenant, number| workers.submit(tenant, 10, Probe::new(number, &diary));
    assert!(submit(1, 1).is_ok() && submit(1, 2).is_ok());
    let Err(Full(mut probe)) = submit(1, 3) else {
        panic!("one tenant has half of the places");
    };
    assert!(diary.lock().unwrap().is_empty(), "it was answered already");
    probe.note("refused");
    assert!(submit(2, 4).is_ok(), "another tenant finds a place");
    assert_eq!(workers.figures().refused, 1);
    workers.close();
    assert!(submit(2, 5).is_err(), "closed");
}

#[test]
fn threads_run_tasks_until_the_pool_closes() {
    let workers = Arc::new(Workers::default());
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let workers = workers.clone();
            thread::spawn(move || workers.work(Duration::default))
        })
        .collect();
    struct Send(mpsc::Sender<u32>, u32);
    impl Task for Send {
        fn is_wanted(&self) -> bool {
            true
        }

        fn run(self: Box<Send>) {
            self.0.send(self.1).unwrap();
        }
    }
    let (sender, receiver) = mpsc::channel();
    for round in 0..50 {
        for number in 0..3 {
            let task = Send(sender.clone(), 3 * round + number);
            assert!(workers.submit(number.into(), 0, task).is_ok());
        }
        let mut got: Vec<u32> = (0..3).map(|_| receiver.recv().unwrap()).collect();
        got.sort_unstable();
        assert_eq!(got, [3 * round, 3 * round + 1, 3 * round + 2]);
    }
    workers.close();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(workers.figures().done, 150);
}

/// A task that holds its thread until the test lets it go, or panics then.
struct Held {
    name: &'static str,
    begun: mpsc::Sender<&'static str>,
    go: mpsc::Receiver<bool>,
}

impl Task for Held {
    fn is_wanted(&self) -> bool {
        true
    }

    fn run(self: Box<Held>) {
        self.begun.send(self.name).unwrap();
        assert!(self.go.recv().unwrap(), "as the test wants it");
    }
}

/// A pool of four threads, of which one is the daemon's, and tasks that hold them.
struct Waiting {
    workers: Arc<Workers>,
    threads: Vec<thread::JoinHandle<()>>,
    begun: mpsc::Sender<&'static str>,
    begins: mpsc::Receiver<&'static str>,
}

const OWN: u64 = 0;

impl Waiting {
    fn new() -> Waiting {
        let bounds = Bounds {
            items: 64,
            visit_bytes: 1,
            ..SMALL
        };
        let workers = Arc::new(Workers::sharing(bounds, Some(Shares::new(4, OWN))));
        let work = || {
            let workers = workers.clone();
            thread::spawn(move || workers.work(Duration::default))
        };
        let threads = (0..4).map(|_| work()).collect();
        let (begun, begins) = mpsc::channel();
        Waiting {
            workers,
            threads,
            begun,
            begins,
        }
    }

    /// Returns what ends the task.
    fn submit(&self, tenant: u64, name: &'static str) -> mpsc::Sender<bool> {
        let (sender, go) = mpsc::channel();
        let begun = self.begun.clone();
        let task = Held { name, begun, go };
        assert!(self.workers.submit(tenant, 1, task).is_ok());
        sender
    }

    /// Returns the task that begins next.
    fn next(&self) -> &'static str {
        let begun = self.begins.recv_timeout(Duration::from_secs(60));
        begun.expect("a task begins")
    }

    fn next_two(&self) -> [&'static str; 2] {
        let mut two = [self.next(), self.next()];
        two.sort_unstable();
        two
    }

    fn end(self) -> Workers {
        self.workers.close();
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::into_inner(self.workers).expect("the threads have ended")
    }
}

#[test]
fn tasks_that_wait_hold_no_more_threads_than_their_tenants_share() {
    let pool = Waiting::new();
    let flood = ["a1", "a2", "a3", "a4"].map(|name| pool.submit(1, name));
    assert_eq!(pool.next_two(), ["a1", "a2"], "of three for all tenants");
    let b1 = pool.submit(2, "b1");
    assert_eq!(pool.next(), "b1", "the third one is for a newcomer");
    let [c1, c2] = ["c1", "c2"].map(|name| pool.submit(3, name));
    let own = pool.submit(OWN, "own");
    assert_eq!(pool.next(), "own", "and the last one for the daemon");
    own.send(true).unwrap();
    // A panic ends a task like any other end.
    b1.send(false).unwrap();
    assert_eq!(pool.next(), "c1", "a tenant without a thread goes first");
    // One end after the other: which tasks may begin depends on the order.
    c1.send(true).unwrap();
    assert_eq!(pool.next(), "c2", "the first tenant still has two");
    flood[0].send(true).unwrap();
    let own = pool.submit(OWN, "own");
    assert_eq!(pool.next(), "own", "two have one each, and one stays free");
    own.send(true).unwrap();
    flood[1].send(true).unwrap();
    assert_eq!(pool.next(), "a3");
    flood[2].send(true).unwrap();
    assert_eq!(pool.next(), "a4");
    flood[3].send(true).unwrap();
    c2.send(true).unwrap();
    let figures = pool.end().figures();
    assert_eq!((figures.done, figures.panicked), (8, 1));
}

/// Mutation: `must_wake_another` that is always false.
#[test]
fn the_end_of_one_task_may_leave_room_for_two() {
    let pool = Waiting::new();
    let [b1, a1] = [pool.submit(2, "b1"), pool.submit(1, "a1")];
    assert_eq!(pool.next_two(), ["a1", "b1"]);
    // Each has one thread, and the third is for a newcomer.
    let [b2, a2] = [pool.submit(2, "b2"), pool.submit(1, "a2")];
    a1.send(true).unwrap();
    assert_eq!(pool.next_two(), ["a2", "b2"]);
    for go in [b1, b2, a2] {
        go.send(true).unwrap();
    }
    assert_eq!(pool.end().figures().done, 4);
}
