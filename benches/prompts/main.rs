//! Measures how good the models are: their programs are run, and those that pass are counted.
//!
//!     cargo bench --bench prompts                     # the available models, on the held-out half
//!     cargo bench --bench prompts -- --docs           # and its tables into docs/prompts.md
//!     cargo bench --bench prompts -- --half tuning --models qwen2.5-coder-0.5b-instruct \
//!         --wordings shipped,bare,expert              # compare wordings
//!     cargo bench --bench prompts -- --kv f16,q8-0    # compare types of the KV cache
//!     cargo bench --bench prompts -- --help           # everything else
//!
//! Each task of [`tasks`] is sent in English and in Chinese to the real engine, greedily, 16 at a
//! time. The program is extracted as the daemon does it ([`autoglmd::engine::code`]) and run in the
//! daemon's sandbox against checks that no model has seen. The tables have Wilson's intervals at 95
//! %; differences are tested in pairs with McNemar's exact test.
//!
//! Outputs are kept in `target/tmp/prompts.jsonl`: a run continues where the previous one ended,
//! and prints again without computing. `--fresh` begins a new file.
//!
//! A model is a name of the catalogue, whose file is searched in the daemon's cache or in
//! `--models-in`, or the path of a GGUF file whose name begins with such a name.

mod desk;
mod judge;
mod languages;
mod report;
mod statistics;
#[allow(dead_code)]
mod tasks;
mod wordings;
#[path = "../../tests/common/workers.rs"]
mod workers;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use autoglmd::engine::code;
use autoglmd::engine::family::Family;
use autoglmd::engine::llama::KvType;
use autoglmd::models::{CATALOGUE, Entry};
use clap::{Parser, ValueEnum};

use desk::{Archive, Question, Variant, Written};
use judge::{Judgement, Verdict, judge};
use report::{Answer, Result};
use tasks::{Half, Task, Tongue};
use wordings::{SHIPPED, WORDINGS, Wording};

/// Puts the tasks to models, runs what they write, and counts what passes.
#[derive(Parser)]
#[command(name = "prompts")]
struct Options {
    /// Names of the catalogue, or paths of GGUF files. Default: the whole catalogue.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// The folder of the catalogue's files. Default: the daemon's cache.
    #[arg(long)]
    models_in: Option<PathBuf>,
    /// Which tasks.
    #[arg(long, value_enum, default_value = "held-out")]
    half: HalfOption,
    /// Only tasks in these languages.
    #[arg(long, value_delimiter = ',')]
    languages: Vec<String>,
    /// Ways to ask, by their names in wordings.rs.
    #[arg(long, value_delimiter = ',', default_value = SHIPPED)]
    wordings: Vec<String>,
    /// Types of the KV cache. Default: the model family's, as in the daemon.
    #[arg(long, value_enum, value_delimiter = ',')]
    kv: Vec<KvOption>,
    /// Bound of an output in tokens. Default: the daemon's.
    #[arg(long)]
    max_tokens: Option<u32>,
    /// Compute threads. 0: as the daemon chooses. Use fewer on a machine with other work.
    #[arg(long, default_value_t = 0)]
    threads: u32,
    /// Ends after this many minutes, and prints how to continue.
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Drops the outputs of earlier runs.
    #[arg(long)]
    fresh: bool,
    /// Prints the programs that failed.
    #[arg(long)]
    show: bool,
    /// Writes the tables into docs/prompts.md.
    #[arg(long)]
    docs: bool,
    /// Cargo passes this to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HalfOption {
    Tuning,
    HeldOut,
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum KvOption {
    F16,
    Q8_0,
}

fn main() {
    let options = Options::parse();
    let tasks: Vec<Task> = tasks::all()
        .into_iter()
        .filter(|task| options.wants(task))
        .collect();
    let questions: Vec<Question<'_>> = tasks
        .iter()
        .flat_map(|task| Tongue::ALL.map(|tongue| Question { task, tongue }))
        .collect();
    assert!(!questions.is_empty(), "no task is in these languages");
    let variants = options.variants();
    let deadline = Instant::now() + Duration::from_secs(60 * options.minutes);
    let archive_path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prompts.jsonl");
    let mut archive = Archive::open(&archive_path, options.fresh);
    let mut results = Vec::new();
    for variant in &variants {
        let Some(written) = desk::ask(variant, &questions, &mut archive, deadline) else {
            eprintln!(
                "\nended after {} minutes; the same command goes on from here",
                options.minutes
            );
            std::process::exit(1);
        };
        results.push(Result {
            variant,
            answers: judge_all(&questions, written),
        });
    }
    if options.show {
        for result in &results {
            report::show_failures(&questions, result);
        }
    }
    let tables = report::tables(&questions, &results);
    println!("{} tasks in two tongues\n\n{tables}", tasks.len());
    if options.docs {
        write_docs(&tables);
    }
}

impl Options {
    fn wants(&self, task: &Task) -> bool {
        let is_of_half = match self.half {
            HalfOption::Tuning => task.half == Half::Tuning,
            HalfOption::HeldOut => task.half == Half::HeldOut,
            HalfOption::All => true,
        };
        is_of_half
            && (self.languages.is_empty() || self.languages.iter().any(|it| it == task.language))
    }

    /// Returns every combination of model, type of cache and wording.
    fn variants(&self) -> Vec<Variant> {
        let models = match self.models.is_empty() {
            true => CATALOGUE.iter().map(|row| row.name.to_owned()).collect(),
            false => self.models.clone(),
        };
        let mut variants = Vec::new();
        for model in models {
            let (row, path) = self.find(&model);
            let own = Family::find(row.family).expect("the catalogue names a known family");
            let digest = digest(&path);
            for kv_type in self.kv_types(own) {
                for name in &self.wordings {
                    let wording = Wording::find(name).unwrap_or_else(|| unknown_wording(name));
                    let family = wording.family(own);
                    variants.push(Variant {
                        model: model.clone(),
                        path: path.clone(),
                        digest,
                        wording: wording.name,
                        family,
                        kv_type,
                        max_tokens: self.max_tokens.unwrap_or(family.max_tokens),
                        threads: self.threads,
                    });
                }
            }
        }
        variants
    }

    fn kv_types(&self, own: &Family) -> Vec<KvType> {
        if self.kv.is_empty() {
            return vec![own.kv_type];
        }
        let kinds = self.kv.iter().map(|kv| match kv {
            KvOption::F16 => KvType::F16,
            KvOption::Q8_0 => KvType::Q8_0,
        });
        kinds.collect()
    }

    /// Returns the catalogue's entry for a model, and its file.
    fn find(&self, model: &str) -> (&'static Entry, PathBuf) {
        let path = match model.ends_with(".gguf") {
            true => PathBuf::from(model),
            false => self.folder().join(format!("{model}.gguf")),
        };
        assert!(
            path.is_file(),
            "{} is missing; `autoglmd model pull` fetches it, or --models-in names its folder",
            path.display()
        );
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        let row = CATALOGUE.iter().find(|row| name.starts_with(row.name));
        let row = row.unwrap_or_else(|| {
            panic!(
                "{model}: expected a name of the catalogue, or a file whose name begins with one"
            )
        });
        (row, path)
    }

    fn folder(&self) -> PathBuf {
        self.models_in.clone().unwrap_or_else(|| {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.unwrap_or_else(|| {
                let home = std::env::var_os("HOME").expect("HOME or --models-in");
                Path::new(&home).join(".cache")
            });
            cache.join("autoglmd/models")
        })
    }
}

fn unknown_wording(name: &str) -> ! {
    let known: Vec<&str> = WORDINGS.iter().map(|wording| wording.name).collect();
    panic!(
        "unknown wording {name:?}; expected one of {}",
        known.join(", ")
    );
}

fn digest(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let file = std::fs::File::open(path).expect("it was there");
    hasher.update_reader(file).expect("the model can be read");
    hasher.finalize()
}

/// Runs all programs, as many at a time as there are cores.
fn judge_all(questions: &[Question<'_>], written: Vec<Written>) -> Vec<Answer> {
    let programs: Vec<String> = questions
        .iter()
        .zip(&written)
        .map(|(question, written)| {
            code::extract(&written.text, Some(question.task.language)).into_owned()
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut judged = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(question) = questions.get(index) else {
                return judged;
            };
            let mut judgement = judge(question.task, &programs[index]);
            if judgement.verdict != Verdict::Passed && !written[index].is_complete {
                judgement.verdict = Verdict::TooLong;
            }
            judged.push((index, judgement));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut judged: Vec<(usize, Judgement)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        results.flatten().collect()
    });
    judged.sort_by_key(|(index, _)| *index);
    let judgements = judged.into_iter().map(|(_, judgement)| judgement);
    written
        .into_iter()
        .zip(programs)
        .zip(judgements)
        .map(|((written, program), judgement)| Answer {
            written,
            program,
            judgement,
        })
        .collect()
}

const BEGIN: &str = "<!-- tables: begin, by cargo bench --bench prompts -- --docs -->\n";
const END: &str = "<!-- tables: end -->";

fn write_docs(tables: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/prompts.md");
    let text = std::fs::read_to_string(&path).expect("the page is there");
    let (before, rest) = text
        .split_once(BEGIN)
        .expect("the page has a place for them");
    let (_, after) = rest.split_once(END).expect("the place has an end");
    let text = format!("{before}{BEGIN}\n{tables}\n{END}{after}");
    std::fs::write(&path, text).expect("the page can be written");
    println!("written into {}", path.display());
}
