//! Mutations that these tests catch: `catch_unwind` left out, `is_wanted` not asked, a refused task
//! that is dropped inside `submit`, `close` that leaves the queue as it is.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::offload::fair_queue::Bounds;
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

fn small() -> Workers {
    Workers::new(Bounds {
        items: 4,
        bytes: 4_000,
        visit_bytes: 1_000,
        item_bytes_min: 1,
    })
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
