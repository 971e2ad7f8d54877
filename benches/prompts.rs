//! Which wording makes the default model write programs: candidates, judged by counting.
//!
//!     cargo bench --bench prompts
//!
//! Puts a fixed list of tasks, English and Chinese, through each candidate in the real engine,
//! greedily, and counts the answers that are right in form: the program parses, defines something,
//! and ended by itself. Greedy answers do not depend on who else is in the batch, so the counts
//! come out the same each time; the processor's vector width may move them by an answer or two.
//!
//! `PROMPTS_CANDIDATES` (names, between semicolons) takes some of the candidates,
//! `PROMPTS_KV_TYPE=f16` stores keys and values in 16 bits, `PROMPTS_MAX_TOKENS` bounds an answer,
//! `PROMPTS_SHOW=1` prints the programs that failed. A language whose checker is not installed is
//! left out, and the report says so.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use autoglmd::core::{Key, Moment};
use autoglmd::engine::family::SMOLLM;
use autoglmd::engine::llama::{self, KvType, Settings};
use autoglmd::engine::{
    Deliver, Done, Engine, Event, FinishReason, Job, Prompt, Sampling, State, code, prompt,
};
use autoglmd::offload::{JobKey, Ticket};

/// A way to ask for a program.
struct Candidate {
    name: &'static str,
    wording: Wording,
    sampling: fn() -> Sampling,
}

enum Wording {
    /// What the daemon does by itself.
    Shipped,
    /// Written out in the model's own format. `{}` stands for the language's title.
    Written {
        /// `None` leaves the system message out altogether.
        system: Option<&'static str>,
        before: &'static str,
        after: &'static str,
        /// Whether the answer begins with the language's first words, besides the fence.
        is_primed: bool,
    },
}

fn repeat(repeat_penalty: f32) -> Sampling {
    Sampling {
        repeat_penalty,
        ..Sampling::default()
    }
}

/// What the model's template says where a conversation brings no system message.
const OWN_SYSTEM: &str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

const fn written(
    system: Option<&'static str>,
    before: &'static str,
    after: &'static str,
) -> Wording {
    Wording::Written {
        system,
        before,
        after,
        is_primed: false,
    }
}

const PROGRAM: Wording = written(Some(OWN_SYSTEM), "Write a {} program.\n", "");
const FUNCTION: Wording = written(Some(OWN_SYSTEM), "Write a {} function.\n", "");
const PRIMED: Wording = Wording::Written {
    system: Some(OWN_SYSTEM),
    before: "Write a {} function.\n",
    after: "",
    is_primed: true,
};

const CANDIDATES: &[Candidate] = &[
    Candidate {
        name: "shipped",
        wording: Wording::Shipped,
        sampling: || SMOLLM.sampling(),
    },
    Candidate {
        name: "bare",
        wording: written(Some(OWN_SYSTEM), "", ""),
        sampling: Sampling::default,
    },
    Candidate {
        name: "program",
        wording: PROGRAM,
        sampling: Sampling::default,
    },
    Candidate {
        name: "function",
        wording: FUNCTION,
        sampling: Sampling::default,
    },
    Candidate {
        name: "short-function",
        wording: written(Some(OWN_SYSTEM), "Write a short {} function.\n", ""),
        sampling: Sampling::default,
    },
    Candidate {
        name: "function-after",
        wording: written(Some(OWN_SYSTEM), "", "\nWrite it as a {} function."),
        sampling: Sampling::default,
    },
    Candidate {
        name: "no-system",
        wording: written(None, "Write a {} function.\n", ""),
        sampling: Sampling::default,
    },
    Candidate {
        name: "programmer",
        wording: written(
            Some("You are an expert {} programmer. You answer with one short, complete program."),
            "",
            "",
        ),
        sampling: Sampling::default,
    },
    Candidate {
        name: "primed",
        wording: PRIMED,
        sampling: Sampling::default,
    },
    Candidate {
        name: "function, repeat 1.05",
        wording: FUNCTION,
        sampling: || repeat(1.05),
    },
    Candidate {
        name: "function, repeat 1.1",
        wording: FUNCTION,
        sampling: || repeat(1.1),
    },
    Candidate {
        name: "function, frequency 0.1",
        wording: FUNCTION,
        sampling: || Sampling {
            frequency_penalty: 0.1,
            ..Sampling::default()
        },
    },
    Candidate {
        name: "primed, repeat 1.05",
        wording: PRIMED,
        sampling: || repeat(1.05),
    },
    Candidate {
        name: "program, repeat 1.05",
        wording: PROGRAM,
        sampling: || repeat(1.05),
    },
];

const TASKS: &[(Tongue, &str)] = &[
    (Tongue::English, "quicksort"),
    (Tongue::English, "reverse a string"),
    (Tongue::English, "write a function which checks primes"),
    (Tongue::English, "the sum of a list of numbers"),
    (Tongue::English, "binary search in a sorted list"),
    (Tongue::English, "count the words of a text"),
    (Tongue::English, "compute the nth Fibonacci number"),
    (Tongue::English, "merge two sorted lists"),
    (Tongue::English, "check whether a word is a palindrome"),
    (Tongue::English, "find the largest number of a list"),
    (Tongue::English, "convert Celsius to Fahrenheit"),
    (Tongue::English, "print the numbers from 1 to 10"),
    (Tongue::English, "greatest common divisor of two numbers"),
    (Tongue::English, "remove duplicates from a list"),
    (Tongue::Chinese, "实现快速排序算法"),
    (Tongue::Chinese, "反转字符串"),
    (Tongue::Chinese, "判断一个数是否为质数"),
    (Tongue::Chinese, "计算斐波那契数列"),
    (Tongue::Chinese, "二分查找"),
    (Tongue::Chinese, "计算列表中所有数字的和"),
    (Tongue::Chinese, "冒泡排序"),
    (Tongue::Chinese, "统计文本中的单词数量"),
    (Tongue::Chinese, "求两个数的最大公约数"),
    (Tongue::Chinese, "判断字符串是否为回文"),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tongue {
    English,
    Chinese,
}

/// A language that answers are checked in.
struct Checked {
    name: &'static str,
    /// Reads the program from its standard input and runs nothing of it.
    checker: &'static [&'static str],
    /// A program holds one of these.
    defining: &'static [&'static str],
    /// What a primed answer begins with.
    primer: &'static str,
}

/// Asked for with every task.
const ALWAYS: &[Checked] = &[
    Checked {
        name: "python",
        checker: &[
            "python3",
            "-c",
            "import ast, sys; ast.parse(sys.stdin.read())",
        ],
        defining: &["def ", "class ", "print("],
        primer: "def ",
    },
    Checked {
        name: "javascript",
        checker: &["node", "--check", "-"],
        defining: &["function", "=>", "class ", "const ", "console.log("],
        primer: "function ",
    },
];

/// Taking turns: each task is asked for in one of them.
const TURNS: &[Checked] = &[
    Checked {
        name: "bash",
        checker: &["bash", "-n"],
        defining: &["echo", "()", "printf", "function ", "="],
        primer: "#!/bin/bash\n\n",
    },
    Checked {
        name: "c",
        checker: &["gcc", "-fsyntax-only", "-w", "-x", "c", "-"],
        defining: &[") {", ")\n{"],
        primer: "#include <stdio.h>\n",
    },
    Checked {
        name: "cpp",
        checker: &["g++", "-fsyntax-only", "-w", "-x", "c++", "-"],
        defining: &[") {", ")\n{"],
        primer: "#include <iostream>\n",
    },
    Checked {
        name: "php",
        checker: &["php", "-l"],
        defining: &["function", "echo"],
        primer: "<?php\n",
    },
    Checked {
        name: "ruby",
        checker: &["ruby", "-c"],
        defining: &["def ", "puts "],
        primer: "def ",
    },
    Checked {
        name: "lua",
        checker: &["luac", "-p", "-"],
        defining: &["function", "print("],
        primer: "function ",
    },
];

fn main() {
    let wanted = std::env::var("PROMPTS_CANDIDATES").ok();
    let is_wanted = |candidate: &&Candidate| {
        wanted
            .as_ref()
            .is_none_or(|names| names.split(';').any(|name| name == candidate.name))
    };
    let max_tokens = std::env::var("PROMPTS_MAX_TOKENS")
        .map_or(320, |text| text.parse().expect("a number of tokens"));
    let shows = std::env::var_os("PROMPTS_SHOW").is_some();
    let questions = questions();
    println!(
        "{} questions, answers of {max_tokens} tokens at most\n",
        questions.len()
    );
    let desk = Desk::open();
    println!(
        "| candidate | in form | python | javascript | others | English | Chinese | \
         no parse | empty | no end | tokens |"
    );
    println!("| --- |{}", " --- |".repeat(10));
    for candidate in CANDIDATES.iter().filter(is_wanted) {
        let answers = desk.ask(candidate, &questions, max_tokens);
        println!("{}", row(candidate, &questions, &answers));
        if shows {
            show_failures(&questions, &answers);
        }
    }
}

struct Question {
    tongue: Tongue,
    task: &'static str,
    language: &'static Checked,
}

/// Each task in each language that is its turn, as far as they can be checked.
fn questions() -> Vec<Question> {
    let is_there = |language: &&Checked| {
        let is_there = is_installed(language.checker[0]);
        if !is_there {
            println!(
                "{} is left out: `{}` is not installed",
                language.name, language.checker[0]
            );
        }
        is_there
    };
    let always: Vec<&Checked> = ALWAYS.iter().filter(is_there).collect();
    let turns: Vec<&Checked> = TURNS.iter().filter(is_there).collect();
    let mut questions = Vec::new();
    for (index, (tongue, task)) in TASKS.iter().enumerate() {
        let turn = turns.get(index % turns.len().max(1));
        for language in always.iter().chain(turn) {
            questions.push(Question {
                tongue: *tongue,
                task,
                language,
            });
        }
    }
    questions
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}

/// What became of a question.
struct Answer {
    program: String,
    verdict: Verdict,
    tokens: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    InForm,
    NoEnd,
    Empty,
    NoParse,
}

impl Answer {
    fn judge(language: &Checked, program: String, done: &Done) -> Answer {
        let defines = language.defining.iter().any(|word| program.contains(word));
        let verdict = if done.finish_reason != FinishReason::Stop {
            Verdict::NoEnd
        } else if !defines {
            Verdict::Empty
        } else if parses(language.checker, &program) {
            Verdict::InForm
        } else {
            Verdict::NoParse
        };
        Answer {
            program,
            verdict,
            tokens: done.usage.completion_tokens,
        }
    }
}

fn parses(checker: &[&str], program: &str) -> bool {
    let mut child = Command::new(checker[0])
        .args(&checker[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the checker was found");
    let mut input = child.stdin.take().expect("it is piped");
    // A checker that has seen enough hangs up early; its status tells.
    let _ = input.write_all(program.as_bytes());
    drop(input);
    child.wait().expect("the child is ours").success()
}

fn row(candidate: &Candidate, questions: &[Question], answers: &[Answer]) -> String {
    let share = |belongs: &dyn Fn(&Question) -> bool| {
        let pairs = questions.iter().zip(answers);
        let of: Vec<&Answer> = pairs
            .filter(|(question, _)| belongs(question))
            .map(|(_, answer)| answer)
            .collect();
        let good = of.iter().filter(|answer| answer.verdict == Verdict::InForm);
        format!("{}/{}", good.count(), of.len())
    };
    let failed = |verdict| {
        answers
            .iter()
            .filter(|answer| answer.verdict == verdict)
            .count()
    };
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        candidate.name,
        share(&|_| true),
        share(&|question| question.language.name == "python"),
        share(&|question| question.language.name == "javascript"),
        share(&|question| !ALWAYS
            .iter()
            .any(|always| always.name == question.language.name)),
        share(&|question| question.tongue == Tongue::English),
        share(&|question| question.tongue == Tongue::Chinese),
        failed(Verdict::NoParse),
        failed(Verdict::Empty),
        failed(Verdict::NoEnd),
        answers.iter().map(|answer| answer.tokens).sum::<u32>(),
    )
}

fn show_failures(questions: &[Question], answers: &[Answer]) {
    for (question, answer) in questions.iter().zip(answers) {
        if answer.verdict != Verdict::InForm {
            let (language, task) = (question.language.name, question.task);
            println!(
                "\n---- {:?}: {language}: {task}\n{}",
                answer.verdict, answer.program
            );
        }
    }
}

/// The engine, and the one channel that all its events come back by.
struct Desk {
    engine: Arc<dyn Engine>,
    events: Receiver<(JobKey, Event)>,
}

struct Mailbox(Sender<(JobKey, Event)>);

impl Deliver for Mailbox {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        for event in events.drain(..) {
            // The receiver is gone only when the bench is over.
            let _ = self.0.send(event);
        }
    }
}

fn kv_type() -> KvType {
    match std::env::var("PROMPTS_KV_TYPE").as_deref() {
        Err(_) | Ok("q8_0") => KvType::Q8_0,
        Ok("f16") => KvType::F16,
        Ok(other) => panic!("PROMPTS_KV_TYPE={other}: expected \"q8_0\" or \"f16\""),
    }
}

impl Desk {
    fn open() -> Desk {
        let (sender, events) = channel();
        let settings = Settings {
            id: "smollm2-135m-instruct".to_owned(),
            family: None,
            parallel: 16,
            threads: 0,
            context: 1024,
            kv_type: kv_type(),
            queue: 1024,
            prefill_chunk: 128,
            gpu_layers: 0,
            stall_timeout: Duration::from_secs(30),
        };
        let obtain = Box::new(|_: &dyn Fn() -> bool| Ok(model_path()));
        let engine = llama::start(settings, obtain, Arc::new(Mailbox(sender))).expect("a thread");
        loop {
            match engine.state() {
                State::Ready => return Desk { engine, events },
                State::Loading { .. } | State::Stalled { .. } => {
                    std::thread::sleep(Duration::from_millis(10))
                }
                State::Failed(message) => panic!("{message}"),
            }
        }
    }

    fn ask(&self, candidate: &Candidate, questions: &[Question], max_tokens: u32) -> Vec<Answer> {
        for (index, question) in questions.iter().enumerate() {
            let job = job(candidate, question, index as u32, max_tokens);
            self.engine.submit(job).expect("the queue is long enough");
        }
        let mut answers: HashMap<u32, Answer> = HashMap::new();
        while answers.len() < questions.len() {
            let (key, event) = self.events.recv().expect("the engine lives");
            let question = &questions[key.request as usize];
            match event {
                Event::Token { .. } => unreachable!("no credit was given"),
                Event::Failed(failed) => panic!("{}", failed.message),
                Event::Done(done) => {
                    let text = candidate.answer_text(question, &done);
                    let program = code::extract(&text, Some(question.language.name));
                    let answer = Answer::judge(question.language, program.into_owned(), &done);
                    answers.insert(key.request, answer);
                }
            }
        }
        (0..questions.len() as u32)
            .filter_map(|index| answers.remove(&index))
            .collect()
    }
}

impl Candidate {
    fn prompt(&self, question: &Question) -> Prompt {
        let language = prompt::language(question.language.name).expect("it stands in the table");
        match self.wording {
            Wording::Shipped => Prompt::Code {
                language: Some(language.name),
                prompt: question.task.to_owned(),
                context: Vec::new(),
            },
            Wording::Written {
                system,
                before,
                after,
                ..
            } => {
                let system = system.map_or_else(String::new, |system| {
                    format!("<|im_start|>system\n{system}<|im_end|>\n")
                });
                let text = format!(
                    "{system}<|im_start|>user\n{before}TASK{after}<|im_end|>\n\
                     <|im_start|>assistant\n"
                );
                let text = text
                    .replace("{}", language.title)
                    .replace("TASK", question.task);
                Prompt::Raw(text + &self.opening(question))
            }
        }
    }

    /// What a written prompt begins the answer with.
    fn opening(&self, question: &Question) -> String {
        match self.wording {
            Wording::Shipped => String::new(),
            Wording::Written { is_primed, .. } => {
                let language = question.language;
                let primer = if is_primed { language.primer } else { "" };
                format!("```{}\n{primer}", language.name)
            }
        }
    }

    fn answer_text(&self, question: &Question, done: &Done) -> String {
        self.opening(question) + &done.text
    }
}

fn job(candidate: &Candidate, question: &Question, request: u32, max_tokens: u32) -> Job {
    Job {
        key: JobKey {
            reactor: 0,
            connection: Key::new(0, 0),
            request,
        },
        tenant: 1,
        prompt: candidate.prompt(question),
        sampling: (candidate.sampling)(),
        max_tokens,
        stop: vec!["\n```".to_owned()],
        deadline: Moment::NEVER,
        submitted: Moment::now(),
        ticket: Arc::new(Ticket::new(0)),
    }
}

/// `$AUTOGLMD_TEST_MODEL`, else the file in the daemon's own cache.
fn model_path() -> PathBuf {
    std::env::var_os("AUTOGLMD_TEST_MODEL").map_or_else(
        || {
            let home = PathBuf::from(std::env::var_os("HOME").expect("a HOME"));
            home.join(".cache/autoglmd/models/smollm2-135m-instruct.gguf")
        },
        PathBuf::from,
    )
}
