//! One request in every form: equal ones become equal jobs, which meet in the cache, and unequal
//! ones do not. `src/cache/key/tests.rs` has the other half: equal jobs have one digest.
//!
//! Mutations that these tests catch: a field that one form reads and another one forgets; a default
//! that differs between JSON and Protobuf; `read_request` without `stop`.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::grpc::Rpc;
use super::*;
use crate::grpc::messages::Message as _;
use crate::grpc::messages::autoglm::{self, GenerateRequest};

/// Everything that decides a result, as a client may write it.
#[derive(Clone, Debug)]
struct Wish {
    prompt: String,
    /// The canonical name, and another one.
    language: Option<(&'static str, &'static str)>,
    temperature: f32,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    max_tokens: Option<u32>,
    seed: Option<i64>,
    stop: Vec<String>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    repeat_penalty: Option<f32>,
    context: Vec<(String, String)>,
}

impl Wish {
    /// The same with every default filled in.
    fn effective(&self) -> Wish {
        Wish {
            top_p: Some(self.top_p.unwrap_or(1.0)),
            top_k: Some(self.top_k.unwrap_or(0)),
            min_p: Some(self.min_p.unwrap_or(0.0)),
            max_tokens: Some(self.max_tokens.unwrap_or(DEFAULTS.max_tokens)),
            seed: Some(self.seed.unwrap_or(-1)),
            frequency_penalty: Some(self.frequency_penalty.unwrap_or(0.0)),
            presence_penalty: Some(self.presence_penalty.unwrap_or(0.0)),
            repeat_penalty: Some(self.repeat_penalty.unwrap_or(DEFAULTS.repeat_penalty)),
            ..self.clone()
        }
    }

    /// Its members in JSON; what it leaves open is `null`.
    fn members(&self) -> Vec<(&'static str, Value)> {
        let Wish {
            prompt,
            language,
            temperature,
            top_p,
            top_k,
            min_p,
            max_tokens,
            seed,
            stop,
            frequency_penalty,
            presence_penalty,
            repeat_penalty,
            context,
        } = self;
        let files = context.iter();
        let files: Vec<_> = files
            .map(|(path, text)| json!({"path": path, "text": text}))
            .collect();
        vec![
            ("prompt", json!(prompt)),
            ("language", json!(language.map(|(_, other)| other))),
            ("temperature", json!(temperature)),
            ("top_p", json!(top_p)),
            ("top_k", json!(top_k)),
            ("min_p", json!(min_p)),
            ("max_tokens", json!(max_tokens)),
            ("seed", json!(seed)),
            ("stop", json!(stop)),
            ("frequency_penalty", json!(frequency_penalty)),
            ("presence_penalty", json!(presence_penalty)),
            ("repeat_penalty", json!(repeat_penalty)),
            ("context", Value::from(files)),
        ]
    }

    /// Short: without the members that it leaves open.
    fn json(&self) -> String {
        let given = self.members().into_iter();
        let given = given.filter(|(_, value)| !value.is_null());
        let object: Map<_, _> = given
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Value::Object(object).to_string()
    }

    /// Everything in another order, with white space, and with escapes for all letters.
    fn long_json(&self) -> String {
        let members = self.members().into_iter().rev();
        let members: Vec<_> = members
            .map(|(name, value)| format!("{} :\t{}", escaped(name), escaped_texts(&value)))
            .collect();
        format!(" {{\n{}\n}} ", members.join(" ,\r\n"))
    }

    fn message(&self) -> GenerateRequest {
        let files = self.context.iter().cloned();
        // Without `..`: a field that is added to the schema must be added to the wish.
        GenerateRequest {
            prompt: self.prompt.clone(),
            temperature: self.temperature,
            language: self.language.map_or("", |(name, _)| name).to_owned(),
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            max_tokens: self.max_tokens,
            seed: self.seed,
            stop: self.stop.clone(),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repeat_penalty: self.repeat_penalty,
            // These decide nothing, or choose the model, of which there is one.
            timeout_ms: 0,
            model: String::new(),
            callback_url: String::new(),
            context: files
                .map(|(path, text)| autoglm::ContextFile { path, text })
                .collect(),
            cache: autoglm::CacheMode::Use.into(),
        }
    }
}

fn escaped(text: &str) -> String {
    let units = text.encode_utf16();
    let units: String = units.map(|unit| format!("\\u{unit:04X}")).collect();
    format!("\"{units}\"")
}

fn escaped_texts(value: &Value) -> String {
    match value {
        Value::String(text) => escaped(text),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(escaped_texts).collect();
            format!("[ {} ]", items.join(" , "))
        }
        Value::Object(members) => {
            let members = members.iter();
            let members: Vec<_> = members
                .map(|(name, value)| format!("{}: {}", escaped(name), escaped_texts(value)))
                .collect();
            format!("{{ {} }}", members.join(", "))
        }
        other => other.to_string(),
    }
}

/// The parts of a job that decide its result.
fn decisive(bench: &Bench) -> String {
    let Job {
        tenant,
        class,
        prompt,
        sampling,
        max_tokens,
        stop,
        cache,
        key: _,
        id: _,
        weight: _,
        deadline: _,
        submitted: _,
        ticket: _,
    } = bench.job();
    // Their tickets have the permits of the key.
    bench.engine.jobs.lock().unwrap().clear();
    format!(
        "{:?}",
        (tenant, class, prompt, sampling, max_tokens, stop, cache)
    )
}

/// Sends the wish in every form, and returns the job that each of them has become.
fn jobs(bench: &mut Bench, wish: &Wish) -> Vec<String> {
    const PROTOBUF: &str = "application/x-protobuf";
    let mut jobs = Vec::new();
    for body in [wish.json(), wish.long_json(), wish.effective().json()] {
        drop(bench.start(&Sent::generate(&body)));
        jobs.push(decisive(bench));
    }
    for message in [wish.message(), wish.effective().message()] {
        let sent = Sent::generate("").header("content-type", PROTOBUF);
        let exchange = bench.start_with_body(&sent, &message.encode_to_vec());
        assert!(exchange.is_some(), "{wish:?}");
        jobs.push(decisive(bench));
        for path in ["/AutoGLMService/Generate", "/AutoGLMService/GenerateStream"] {
            let (_, exchange) = Rpc::new(path, &message).send(bench);
            assert!(exchange.is_some(), "{wish:?}");
            jobs.push(decisive(bench));
        }
    }
    jobs
}

/// Multiples of a sixteenth, which JSON's decimals and Protobuf's bits write alike.
fn sixteenths(range: std::ops::RangeInclusive<i32>) -> impl Strategy<Value = f32> {
    range.prop_map(|count| count as f32 / 16.0)
}

fn wish() -> impl Strategy<Value = Wish> {
    let text = || "[a-z\u{e9}\u{1f600}\"\\\\/\n]{1,3}";
    let languages = vec![("python", "py"), ("cpp", "c++"), ("rust", "Rust")];
    let tokens = (
        sixteenths(0..=32),
        prop::option::of(sixteenths(1..=16)),
        prop::option::of(0..3_u32),
        prop::option::of(sixteenths(0..=16)),
        prop::option::of(prop::sample::select(vec![-1, 0, 1, i64::MIN, i64::MAX])),
        prop::option::of(1..3_u32),
    );
    let penalties = (
        prop::option::of(sixteenths(-32..=32)),
        prop::option::of(sixteenths(-32..=32)),
        prop::option::of(sixteenths(1..=32)),
    );
    let texts = (
        "[a-z][a-z\u{e9}\u{1f600}\"\\\\/\n]{0,3}",
        prop::option::of(prop::sample::select(languages)),
        prop::collection::vec(text(), 0..3),
        prop::collection::vec(("[a-z]{1,2}", text()), 0..3),
    );
    (tokens, penalties, texts).prop_map(|(tokens, penalties, texts)| {
        let (temperature, top_p, top_k, min_p, seed, max_tokens) = tokens;
        let (frequency_penalty, presence_penalty, repeat_penalty) = penalties;
        let (prompt, language, stop, context) = texts;
        Wish {
            prompt,
            language,
            temperature,
            top_p,
            top_k,
            min_p,
            max_tokens,
            seed,
            stop,
            frequency_penalty,
            presence_penalty,
            repeat_penalty,
            context,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_request_is_the_same_job_in_every_form(one in wish(), other in wish()) {
        let bench = &mut Bench::new();
        let ones = jobs(bench, &one);
        for job in &ones {
            prop_assert_eq!(job, &ones[0], "{:?}", one);
        }
        let bench = &mut Bench::new();
        let are_equal = format!("{:?}", one.effective()) == format!("{:?}", other.effective());
        drop(bench.start(&Sent::generate(&other.json())));
        prop_assert_eq!(decisive(bench) == ones[0], are_equal, "{:?}", other);
    }
}

/// Mutation: a member of JSON that is not in this list, which is every one that decides.
#[test]
fn each_member_that_decides_makes_another_job_in_every_form() {
    let plain = Wish {
        prompt: "x".into(),
        language: None,
        temperature: 0.5,
        top_p: None,
        top_k: None,
        min_p: None,
        max_tokens: None,
        seed: None,
        stop: Vec::new(),
        frequency_penalty: None,
        presence_penalty: None,
        repeat_penalty: None,
        context: Vec::new(),
    };
    let other = Wish {
        prompt: "y".into(),
        language: Some(("python", "py")),
        temperature: 1.0,
        top_p: Some(0.5),
        top_k: Some(1),
        min_p: Some(0.5),
        max_tokens: Some(1),
        seed: Some(7),
        stop: vec!["z".into()],
        frequency_penalty: Some(0.5),
        presence_penalty: Some(0.5),
        repeat_penalty: Some(0.5),
        context: vec![("a".into(), "b".into())],
    };
    type Change = fn(&mut Wish, &Wish);
    let changes: [Change; 13] = [
        |wish, other| wish.prompt.clone_from(&other.prompt),
        |wish, other| wish.language = other.language,
        |wish, other| wish.temperature = other.temperature,
        |wish, other| wish.top_p = other.top_p,
        |wish, other| wish.top_k = other.top_k,
        |wish, other| wish.min_p = other.min_p,
        |wish, other| wish.max_tokens = other.max_tokens,
        |wish, other| wish.seed = other.seed,
        |wish, other| wish.stop.clone_from(&other.stop),
        |wish, other| wish.frequency_penalty = other.frequency_penalty,
        |wish, other| wish.presence_penalty = other.presence_penalty,
        |wish, other| wish.repeat_penalty = other.repeat_penalty,
        |wish, other| wish.context.clone_from(&other.context),
    ];
    assert_eq!(changes.len(), plain.members().len());
    let mut seen = vec![jobs(&mut Bench::new(), &plain)];
    for (number, change) in changes.into_iter().enumerate() {
        let mut wish = plain.clone();
        change(&mut wish, &other);
        let jobs = jobs(&mut Bench::new(), &wish);
        for (form, job) in jobs.iter().enumerate() {
            let is_new = seen.iter().all(|before| before[form] != *job);
            assert!(is_new, "change {number} in form {form}: {job}");
        }
        seen.push(jobs);
    }
}
