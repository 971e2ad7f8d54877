//! What one client can make the loop's thread spend, in its CPU time: never in wall time, which
//! says more about the machine. The bounds hold for an unoptimised build on a slow core; what they
//! guard against costs a hundred times as much.

use std::time::Duration;

use super::Stage;
use crate::os::process::thread_cpu_time;

/// What the stage spends on this wire's client until the loop would sleep; and what was answered.
fn cost(stage: &mut Stage, wire: usize, bytes: impl AsRef<[u8]>) -> (Duration, String) {
    stage.settle();
    stage.send(wire, bytes);
    let before = thread_cpu_time();
    let answer = stage.receive(wire);
    (thread_cpu_time() - before, answer)
}

fn post(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// A client chooses names, and comparing one with a known name takes the product of both lengths:
/// 190 ms for a mebibyte in an optimised build. Mutation: without the bound in `nearest`.
#[test]
fn long_names_are_refused_without_comparing_them() {
    let long = "prompt".repeat(160_000);
    let many = (10..60).map(|number| format!(r#""{number}{}": 1"#, &long[..16_000]));
    for members in [
        format!(r#""{long}": 1"#),
        format!(r#""context": [{{"path": "x", "{long}": 1}}]"#),
        format!(r#""{0}": 1, "{0}": 1"#, &long[..400_000]),
        format!(r#""language": "{long}""#),
        format!(r#""cache": "{long}""#),
        format!(r#""model": "{long}""#),
        format!(r#""stop": "{long}""#),
        format!(r#""seed": {}"#, "1".repeat(900_000)),
        many.collect::<Vec<_>>().join(","),
    ] {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        let (spent, answer) = cost(&mut stage, wire, post(&format!("{{{members}}}")));
        let start = &members[..40];
        assert!(answer.starts_with("HTTP/1.1 400"), "{start}: {answer}");
        assert!(answer.len() < 2_000, "{start}");
        assert!(spent < Duration::from_millis(150), "{start}: {spent:?}");
    }
}
