use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::cache::tests::{job, model};
use crate::core::Moment;
use crate::engine::{ContextFile, Message};
use crate::offload::Ticket;

fn digest_of(job: &Job) -> Digest {
    digest(job, &model()).expect("a reproducible job")
}

/// Everything that decides a result, in a form that needs no care: Rust's own.
fn naive(job: &Job) -> String {
    let Job {
        tenant,
        prompt,
        sampling,
        max_tokens,
        stop,
        key: _,
        id: _,
        class: _,
        weight: _,
        deadline: _,
        submitted: _,
        cache: _,
        ticket: _,
    } = job;
    let mut sampling = sampling.clone();
    for zero in [
        &mut sampling.temperature,
        &mut sampling.frequency_penalty,
        &mut sampling.presence_penalty,
    ] {
        *zero += 0.0;
    }
    if sampling.temperature == 0.0 {
        (sampling.top_p, sampling.top_k, sampling.min_p) = (1.0, 0, 0.0);
        sampling.seed = None;
    }
    let stop: std::collections::BTreeSet<_> = stop.iter().collect();
    let parts = (tenant, prompt, sampling, max_tokens, stop);
    format!("{parts:?}")
}

/// Texts that look like each other's parts, and like a length.
fn text() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "b", "ab", "ba", "\0", "\u{1}\0\0\0\0\0\0\0a"])
        .prop_map(str::to_owned)
}

fn prompt() -> impl Strategy<Value = Prompt> {
    let file = (text(), text()).prop_map(|(path, text)| ContextFile { path, text });
    let message = (text(), text()).prop_map(|(role, content)| Message { role, content });
    let language = prop::option::of(prop::sample::select(vec!["c", "go"]));
    prop_oneof![
        (language, text(), prop::collection::vec(file, 0..3)).prop_map(
            |(language, prompt, context)| Prompt::Code {
                language,
                prompt,
                context,
            }
        ),
        prop::collection::vec(message, 0..3).prop_map(Prompt::Chat),
        text().prop_map(Prompt::Raw),
    ]
}

fn sampling() -> impl Strategy<Value = Sampling> {
    let zeros = || prop::sample::select(vec![0.0_f32, -0.0, 1.0]);
    let seed = prop::sample::select(vec![0_i64, 1, i64::MIN]);
    (zeros(), 0..2_u32, zeros(), seed, zeros(), zeros()).prop_map(
        |(temperature, top_k, min_p, seed, frequency_penalty, presence_penalty)| Sampling {
            temperature,
            top_k,
            min_p,
            seed: Some(seed),
            frequency_penalty,
            presence_penalty,
            ..Sampling::default()
        },
    )
}

fn any_job() -> impl Strategy<Value = Job> {
    let stop = prop::collection::vec(text(), 0..3);
    let parts = (0..2_u64, prompt(), sampling(), 1..3_u32, stop, any::<u16>());
    parts.prop_map(|(tenant, prompt, sampling, max_tokens, stop, weight)| Job {
        tenant,
        prompt,
        sampling,
        max_tokens,
        stop,
        // None of these decides.
        weight,
        deadline: Moment::from_micros(weight.into()),
        ticket: Arc::new(Ticket::new(weight.into())),
        ..job("", 0)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn equal_requests_meet(one in any_job(), other in any_job()) {
        let are_equal = naive(&one) == naive(&other);
        prop_assert_eq!(are_equal, digest_of(&one) == digest_of(&other), "{:?} {:?}", one, other);
        // The same job, written differently.
        let mut stop: Vec<_> = one.stop.iter().rev().cloned().collect();
        stop.extend(one.stop.first().cloned());
        let rewritten = Job { stop, ..one.clone() };
        prop_assert_eq!(digest_of(&one), digest_of(&rewritten));
    }
}

#[test]
fn fields_do_not_run_into_each_other() {
    let file = |path: &str, text: &str| ContextFile {
        path: path.into(),
        text: text.into(),
    };
    let of = |prompt: &str, context| {
        let prompt = Prompt::Code {
            language: None,
            prompt: prompt.into(),
            context,
        };
        digest_of(&Job {
            prompt,
            ..job("", 0)
        })
    };
    let digests = [
        of("ab", vec![]),
        of("a", vec![file("b", "")]),
        of("a", vec![file("", "b")]),
        of("", vec![file("a", "b")]),
        of("", vec![file("ab", "")]),
        of("", vec![file("a", ""), file("b", "")]),
    ];
    for (index, digest) in digests.iter().enumerate() {
        assert!(!digests[..index].contains(digest), "{index}");
    }
}

type Change = &'static dyn Fn(&mut Job);

#[test]
fn every_field_that_decides_is_in_the_digest() {
    let with = |change: &dyn Fn(&mut Job)| {
        let mut job = job("x", 0);
        (job.sampling.temperature, job.sampling.seed) = (1.0, Some(1));
        change(&mut job);
        digest_of(&job)
    };
    let plain = with(&|_| {});
    let changes: [(&str, Change); 12] = [
        ("tenant", &|job| job.tenant += 1),
        ("prompt", &|job| job.prompt = Prompt::Raw("y".into())),
        ("temperature", &|job| job.sampling.temperature = 0.5),
        ("top_p", &|job| job.sampling.top_p = 0.5),
        ("top_k", &|job| job.sampling.top_k = 1),
        ("min_p", &|job| job.sampling.min_p = 0.5),
        ("seed", &|job| job.sampling.seed = Some(2)),
        ("frequency_penalty", &|job| {
            job.sampling.frequency_penalty = 0.5
        }),
        ("presence_penalty", &|job| {
            job.sampling.presence_penalty = 0.5
        }),
        ("repeat_penalty", &|job| job.sampling.repeat_penalty = 1.5),
        ("max_tokens", &|job| job.max_tokens += 1),
        ("stop", &|job| job.stop.push("z".into())),
    ];
    for (name, change) in changes {
        assert_ne!(plain, with(change), "{name}");
    }
    let other = |change: &dyn Fn(&mut ModelInfo)| {
        let mut model = model();
        change(&mut model);
        digest(&job("x", 0), &model)
    };
    let plain = other(&|_| {});
    assert_ne!(plain, other(&|model| model.id = "other".into()));
    assert_ne!(plain, other(&|model| model.fingerprint[31] = 1));
    // It is only shown.
    assert_eq!(plain, other(&|model| model.description = "other".into()));
}

#[test]
fn what_has_no_effect_does_not_decide() {
    let with = |seed, temperature, top_p, top_k| {
        let sampling = Sampling {
            seed,
            temperature,
            top_p,
            top_k,
            ..Sampling::default()
        };
        let job = Job {
            sampling,
            ..job("x", 0)
        };
        digest(&job, &model())
    };
    let greedy = with(None, 0.0, 1.0, 0);
    assert!(greedy.is_some());
    assert_eq!(greedy, with(Some(7), -0.0, 0.5, 40));
    assert_ne!(greedy, with(Some(7), 0.5, 1.0, 0));
    // Chance has a part in it.
    assert_eq!(with(None, 0.5, 1.0, 0), None);
}
