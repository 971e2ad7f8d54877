//! Records of generations, and requests that wait for the store.

use super::*;
use crate::core::buffered::Claim;
use crate::engine::{FailReason, Failed, GenerationId, Origin, Verdict};
use crate::limits::store as store_limits;
use crate::store::interface::generations::{GenerationRecord, Generations as _, Status};
use crate::store::interface::usage;
use crate::store::{SqliteStore, StoreTask};

const FENCED: &str = "```python\nprint(1)\n```";
const BODY: &str = r#"{"prompt": "sort", "language": "python"}"#;

#[expect(clippy::vec_box, reason = "the queue holds pointers")]
fn records(bench: &Bench) -> Vec<Box<GenerationRecord>> {
    let mut records = Vec::new();
    bench
        .store
        .records()
        .take(&mut records, usize::MAX, usize::MAX);
    records
}

/// The hits that wait for the store, by key.
fn hits(bench: &Bench) -> Vec<(String, u64)> {
    let mut hits = usage::Hits::new();
    assert!(bench.store.hits().take(&mut hits, 1, usize::MAX));
    let by_key = hits.into_iter().map(|((key_id, _), count)| (key_id, count));
    by_key.collect()
}

/// The task of the request that waits for the store.
fn task(bench: &Bench) -> Box<dyn StoreTask> {
    let mut tasks = Vec::new();
    assert!(bench.store.take(&mut tasks, Duration::ZERO));
    assert_eq!(tasks.len(), 1);
    tasks.remove(0)
}

fn get(target: &str) -> Sent<'_> {
    Sent::get(target).key(FULL)
}

fn failed() -> Event {
    Event::Failed(Box::new(Failed {
        reason: FailReason::Error(ErrorCode::EngineFailed),
        message: "it broke".into(),
        text: String::new(),
        usage: USAGE,
        timings: TIMINGS,
    }))
}

/// Mutations: `recording.done` left out in `begin_writing` or in `handle_done`; a second record for
/// one generation.
#[test]
fn a_finished_generation_leaves_one_record() {
    for text in [
        FENCED.to_owned(),
        "x".repeat(limits::WRITE_AT_ONCE_BYTES_MAX + 1),
    ] {
        let mut bench = Bench::new();
        let (mut reply, mut exchange) = bench.start(&Sent::generate(BODY));
        assert_eq!(records(&bench), [], "not before its end");
        bench.advance(30);
        let _ = bench.event(&mut exchange, done(&text), &mut reply);
        let records = records(&bench);
        assert_eq!(records.len(), 1);
        let record = &records[0];
        assert_eq!(record.status, Status::Done);
        assert_eq!(record.model.as_deref(), Some("tiny"));
        assert_eq!(record.language.as_deref(), Some("python"));
        assert_eq!(record.finish_reason.as_deref(), Some("stop"));
        assert_eq!(record.latency, Duration::from_millis(30));
        assert!(record.completion_tokens > 0 && record.key_id.starts_with("key_"));
        assert_eq!(
            (record.error.as_ref(), record.content.as_ref()),
            (None, None)
        );
        if reply.is_finished {
            assert_eq!(reply.json()["id"], record.id.to_string());
        }
    }
}

fn event_of(verdict: Verdict) -> Event {
    let mut event = done(FENCED);
    if let Event::Done(done) = &mut event {
        done.served = Served {
            verdict,
            age: Duration::ZERO,
            is_reproducible: true,
            origin: Some(Origin {
                id: GenerationId::FIRST,
                latency: Duration::from_millis(777),
            }),
        };
    }
    event
}

/// Mutations: `done` without its look at the verdict, whose hits are generations with tokens;
/// `respond` without `count_hit`; a hit that counts although records are off.
#[test]
fn a_result_of_the_cache_is_a_hit_and_no_record_at_every_level() {
    let config = |config: &mut Config| config.cache.enabled = true;
    let mut bench = Bench::with(config);
    let id = record(FULL).id;
    let sent = Sent::generate(BODY);
    for (count, verdict) in (1..).zip([Verdict::Hit, Verdict::Shared, Verdict::Joined]) {
        let bypass = Sent::generate(r#"{"prompt": "sort", "cache": "bypass"}"#);
        let (mut reply, mut exchange) = bench.start(&bypass);
        let _ = bench.event(&mut exchange, event_of(verdict), &mut reply);
        assert_eq!(reply.status, 200, "{count}");
        assert_eq!(hits(&bench), [(id.clone(), 1)], "{verdict:?}");
        assert_eq!(records(&bench), [], "{verdict:?}");
    }
    let (mut reply, mut exchange) = bench.start(&sent);
    let _ = bench.event(&mut exchange, done(FENCED), &mut reply);
    assert_eq!((records(&bench).len(), hits(&bench)), (1, Vec::new()));
    for _ in 0..3 {
        assert_eq!(bench.ask(&sent).field("x-cache"), Some("hit"));
    }
    assert_eq!(hits(&bench), [(id, 3)], "of the level of responses");
    assert_eq!(records(&bench), []);

    let mut bench = Bench::with(|config| {
        config.cache.enabled = true;
        config.store.records = false;
    });
    let (mut reply, mut exchange) = bench.start(&sent);
    let _ = bench.event(&mut exchange, done(FENCED), &mut reply);
    assert_eq!(bench.ask(&sent).field("x-cache"), Some("hit"));
    let (mut reply, mut exchange) = bench.start(&Sent::generate(r#"{"prompt": "other"}"#));
    let _ = bench.event(&mut exchange, event_of(Verdict::Hit), &mut reply);
    assert_eq!(hits(&bench), [], "records are off");
}

/// Mutation: `abandoned` that sends a record whatever the source is.
#[test]
fn a_hit_whose_client_leaves_is_a_hit() {
    let mut bench = Bench::new();
    let sent = Sent::generate(r#"{"prompt": "sort", "stream": true}"#);
    let (mut reply, mut exchange) = bench.start(&sent);
    let Event::Done(done) = event_of(Verdict::Joined) else {
        panic!("a result");
    };
    let served = Event::Served(Box::new(done.served));
    let _ = bench.event(&mut exchange, served, &mut reply);
    let _ = bench.event(&mut exchange, token("a"), &mut reply);
    bench
        .service
        .abandon(exchange, CancelReason::Disconnect, bench.now);
    assert_eq!(records(&bench), []);
    assert_eq!(hits(&bench), [(record(FULL).id, 1)]);
}

#[test]
fn failed_and_abandoned_generations_leave_one_record_each() {
    let mut bench = Bench::new();
    let (mut reply, mut exchange) = bench.start(&Sent::generate(BODY));
    let _ = bench.event(&mut exchange, failed(), &mut reply);
    let (_, exchange) = bench.start(&Sent::generate(BODY));
    bench
        .service
        .abandon(exchange, CancelReason::Disconnect, bench.now);
    let records = records(&bench);
    let ends: Vec<_> = records
        .iter()
        .map(|record| (record.status, record.error.as_deref()))
        .collect();
    let expected = [
        (Status::Failed, Some("engine_failed")),
        (Status::Abandoned, None),
    ];
    assert_eq!(ends, expected);
    assert_eq!(records[0].digest, records[1].digest, "the same prompt");
    assert_ne!(records[0].id, records[1].id);
}

#[test]
fn text_is_kept_only_if_the_configuration_asks_for_it_and_nothing_without_records() {
    let mut bench = Bench::with(|config| config.store.content = true);
    let (mut reply, mut exchange) = bench.start(&Sent::generate(BODY));
    let _ = bench.event(&mut exchange, done(FENCED), &mut reply);
    let content = records(&bench).remove(0).content.unwrap();
    assert_eq!(
        (content.prompt.as_str(), content.text.as_str()),
        ("sort\n", FENCED)
    );

    let mut bench = Bench::with(|config| config.store.records = false);
    let (mut reply, mut exchange) = bench.start(&Sent::generate(BODY));
    let _ = bench.event(&mut exchange, done(FENCED), &mut reply);
    assert_eq!(records(&bench), []);
}

#[test]
fn a_client_that_leaves_takes_its_question_back() {
    let mut bench = Bench::new();
    let (_, exchange) = bench.start(&get("/api/v1/generations"));
    assert!(exchange.has_job(), "a last message will come");
    let task = task(&bench);
    assert!(task.is_wanted());
    bench
        .service
        .abandon(exchange, CancelReason::Disconnect, bench.now);
    assert!(!task.is_wanted());
    drop(task);
    assert_eq!(bench.replies.take().len(), 1, "the last message");
}

/// Mutation: `AskTask` without its `Drop`.
#[test]
fn a_question_that_is_lost_or_late_or_cut_off_gets_an_error() {
    let mut bench = Bench::new();
    let (mut reply, mut exchange) = bench.start(&get("/api/v1/generations"));
    drop(task(&bench));
    let completion = bench.replies.take().remove(0);
    let flow = bench
        .service
        .handle_event(&mut exchange, completion, bench.now, &mut reply);
    assert_eq!((flow, reply.status), (Flow::Finished, 500));

    let (mut reply, mut exchange) = bench.start(&get("/api/v1/generations"));
    assert_eq!(exchange.next_deadline(), bench.now + limits::STORE_TIME_MAX);
    let early = bench
        .service
        .handle_deadline(&mut exchange, bench.now, &mut reply);
    assert_eq!((early, reply.status), (Flow::Open, 0));
    bench.now = exchange.next_deadline();
    let late = bench
        .service
        .handle_deadline(&mut exchange, bench.now, &mut reply);
    assert_eq!((late, reply.status), (Flow::Finished, 503));
    assert_eq!(reply.json()["error"]["code"], "store_unavailable");
    assert!(!task(&bench).is_wanted());
    bench.replies.take();

    let (mut reply, mut exchange) = bench.start(&get("/api/v1/generations"));
    bench.service.cut_off(&mut exchange, bench.now, &mut reply);
    assert_eq!(reply.json()["error"]["code"], "draining");
}

/// Mutations: a page whose texts have no bound; `has_more` that looks at the number alone; a record
/// that is left out because it is longer than a page.
#[test]
fn a_page_of_long_texts_ends_early_and_the_next_one_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open_in(folder.path()).unwrap();
    let mut bench = Bench::with(|config| config.store.content = true);
    let most = store_limits::PAGE_TEXT_BYTES_MAX;
    let mut expected = Vec::new();
    for length in [most / 4, 1, most / 2, 4 * most, most / 2, most / 2, 1] {
        let (mut reply, mut exchange) = bench.start(&Sent::generate(BODY));
        let _ = bench.event(&mut exchange, done(&"x".repeat(length)), &mut reply);
        let mut record = records(&bench).remove(0);
        // The key is not in this store.
        record.key_id = "".into();
        store.add_generations(&[record.clone()]).unwrap();
        expected.insert(0, record.id.to_string());
        bench.advance(1);
    }
    bench = Bench::with(|config| config.auth.enabled = false);
    let (mut listed, mut cursor, mut lengths) = (Vec::new(), String::new(), Vec::new());
    loop {
        let target = format!("/api/v1/generations?limit=100{cursor}");
        let (mut reply, exchange) = bench.send(&Sent::get(&target));
        let mut exchange = exchange.expect("it waits for the store");
        let mut task = task(&bench);
        let result = task.run(&mut store);
        task.finish(result.as_ref().copied());
        let completion = bench.replies.take().remove(0);
        let _ = bench.complete(&mut exchange, completion, &mut reply);
        assert!(reply.body.len() < 6 * most, "{}", reply.body.len());
        let page = reply.json();
        let data = page["data"].as_array().unwrap();
        lengths.push(data.len());
        listed.extend(
            data.iter()
                .map(|one| one["id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next_cursor"].as_str() else {
            break;
        };
        assert_eq!(next, listed.last().unwrap());
        cursor = format!("&cursor={next}");
    }
    assert_eq!(listed, expected);
    assert_eq!(lengths, [2, 1, 1, 3]);
}

/// A key may ask for long responses and read them slowly, on more and more connections.
///
/// Mutations: `has_room` that is true; one that is asked by one kind of request alone.
#[test]
fn no_response_is_fetched_once_all_memory_is_used_up() {
    let mut bench = Bench::with(|config| config.cache.enabled = true);
    let generation = Sent::generate(BODY);
    let (mut reply, mut exchange) = bench.start(&generation);
    let _ = bench.event(&mut exchange, done(FENCED), &mut reply);
    drop(exchange);
    assert_eq!(bench.ask(&generation).field("x-cache"), Some("hit"));
    let account = bench.service.buffered().clone();
    account.set_bound(1_000);
    let mut other = account.share(Claim::Keyed);
    other.resize(999).unwrap();
    let job = "/api/v1/jobs/job_00000000-0001-7000-8000-000000000000";
    let events = format!("{job}/events");
    let sent = ["/api/v1/generations", "/api/v1/jobs", job, &events].map(get);
    for sent in &sent {
        let (_, exchange) = bench.start(sent);
        drop((exchange, task(&bench)));
        bench.replies.take();
    }
    other.resize(1_000).unwrap();
    for sent in sent.iter().chain([&generation]) {
        let reply = bench.ask(sent);
        assert_eq!(
            (reply.status, reply.error().as_str()),
            (503, "buffers_full"),
            "{sent:?}"
        );
    }
    assert_eq!(bench.store.waiting(), 0);
    drop(other);
    assert_eq!(bench.ask(&generation).field("x-cache"), Some("hit"));
}

#[test]
fn a_full_or_closed_queue_refuses_at_once() {
    let mut bench = Bench::new();
    bench.store.close();
    let (reply, exchange) = bench.send(&get("/api/v1/generations"));
    assert!(exchange.is_none());
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["error"]["code"], "store_unavailable");
    assert_eq!(
        bench.replies.take().len(),
        0,
        "no message for a request that has ended"
    );
}

#[test]
fn a_query_is_checked_before_the_store_is_asked() {
    let mut bench = Bench::new();
    for (query, param) in [
        ("status=running", "status"),
        ("since=yesterday", "since"),
        ("cursor=gen_1", "cursor"),
        ("cursor=job_00000000-0000-7000-8000-000000000000", "cursor"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=+1", "limit"),
        ("statu=failed", "statu"),
        ("status=", "status"),
        ("status=done&status=failed", "status"),
    ] {
        let target = format!("/api/v1/generations?{query}");
        let (reply, exchange) = bench.send(&get(&target));
        assert!(exchange.is_none(), "{query}");
        assert_eq!(reply.status, 400);
        assert_eq!(reply.json()["error"]["param"], param);
    }
}
