//! Exact messages and places, precedence, and hostile text.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::{Overrides, show};

fn sources(environment: &[(&str, &str)], flags: Overrides) -> Sources {
    let mut environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    environment.push(("HOME".into(), "/home/a".into()));
    Sources {
        file: None,
        environment,
        flags,
    }
}

fn write(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("a.toml");
    std::fs::write(&path, bytes).expect("the file is written");
    path
}

/// Loads a file's text with the other sources as given.
fn load_with(bytes: &[u8], mut sources: Sources) -> Result<Loaded, ConfigErrors> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    sources.file = Some(write(folder.path(), bytes));
    load(&sources)
}

fn load_text(text: &str) -> Result<Loaded, ConfigErrors> {
    load_with(text.as_bytes(), sources(&[], Overrides::default()))
}

/// Returns the mistakes without their excerpts, with the file's path reduced to its name.
fn mistakes(result: Result<Loaded, ConfigErrors>) -> Vec<String> {
    let errors = result.expect_err("the text is wrong");
    let line = |problem: &Problem| {
        let place = problem.place.rsplit('/').next().unwrap_or_default();
        format!("{place}: {}", problem.message)
    };
    errors.problems.iter().map(line).collect()
}

#[test]
fn every_mistake_has_its_place_and_what_is_expected() {
    let table: &[(&str, &str)] = &[
        (
            "[serverr]\n",
            "a.toml:1:2: unknown section [serverr]; did you mean [server]?",
        ),
        (
            "[upstairs]",
            "a.toml:1:2: unknown section [upstairs]; expected one of [server], \
             [server.tls], [auth], [rate_limit], [limits], [engine], [cache], \
             [cache.shared], [store], [jobs], [outbound], [bus], [log], [metrics], \
             [metrics.push], [models.\"NAME\"]",
        ),
        (
            "[server.lisen]",
            "a.toml:1:9: unknown key lisen in [server]; did you mean listen?",
        ),
        (
            "auth.enabled.deep = true",
            "a.toml:1:6: auth.enabled is a table; expected true or false",
        ),
        (
            "[auth.enabled]\ndeep = true",
            "a.toml:1:1: auth.enabled is a table; expected true or false",
        ),
        (
            "\nauth.enabled.deep.er = true",
            "a.toml:2:6: auth.enabled is a table; expected true or false",
        ),
        (
            "\n[auth.enabled.deep]",
            "a.toml:2:7: auth.enabled is a table; expected true or false",
        ),
        (
            "[[serve]]",
            "a.toml:1:3: unknown section [serve]; did you mean [server]?",
        ),
        (
            "server = 1",
            "a.toml:1:10: server is 1; expected a section: [server]",
        ),
        (
            "[[server]]",
            "a.toml:1:1: server is an array; expected a section: [server]",
        ),
        (
            "lisen = []",
            "a.toml:1:1: key lisen is outside any section; did you mean listen in [server]?",
        ),
        (
            "zzzzzz = 1",
            "a.toml:1:1: unknown key zzzzzz outside any section",
        ),
        (
            "[server.tls]\nkeyz = []",
            "a.toml:2:1: unknown key keyz in [server.tls]; did you mean keys?",
        ),
        (
            "[server]\ntls = 1",
            "a.toml:2:7: server.tls is 1; expected a section: [server.tls]",
        ),
        (
            "[server.tls]\ncertificates = [\"/a\", \"\"]",
            "a.toml:2:23: server.tls.certificates[1] is \"\"; expected a path of 1 to 4096 bytes",
        ),
        (
            "[server.tls]\nclient_keys = [\"cn:a\"]",
            "a.toml:2:16: server.tls.client_keys[0] is \"cn:a\"; expected a name and a key such as \
             \"dns:agent.example = key_5f0c92ab61d7\"; the name begins with dns:, uri:, email: or \
             cn:, or is sha256: and 64 hexadecimal digits",
        ),
        (
            "\n[server]\n  lisen = []",
            "a.toml:3:3: unknown key lisen in [server]; did you mean listen?",
        ),
        (
            "[server]\nmax_body = 1",
            "a.toml:2:1: unknown key max_body in [server]; did you mean limits.max_body?",
        ),
        (
            "[auth]\npasswords = 1",
            "a.toml:2:1: unknown key passwords in [auth]; expected one of enabled",
        ),
        (
            "[cache.shared]\nurl = \"redis+sentinel://a:26379,b:26379\"",
            "a.toml:2:7: cache.shared.url is \"redis+sentinel://a:26379,b:26379\"; expected the \
             name under which the sentinels know the master, behind the hosts: \
             \"redis+sentinel://HOST:PORT,HOST:PORT/MASTER\", often \"/mymaster\"",
        ),
        (
            "[engine]\nparallel = 257",
            "a.toml:2:12: engine.parallel is 257; expected a whole number from 1 to 256",
        ),
        (
            "[engine]\nparallel = -1",
            "a.toml:2:12: engine.parallel is -1; expected a whole number from 1 to 256",
        ),
        (
            "[engine]\nparallel = \"4\"",
            "a.toml:2:12: engine.parallel is \"4\"; expected a whole number from 1 to 256",
        ),
        (
            "[engine]\nparallel = 99999999999999999999999999",
            "a.toml:2:12: engine.parallel is 99999999999999999999999999; \
             expected a whole number from 1 to 256",
        ),
        (
            "[engine]\nparallel = 1.5",
            "a.toml:2:12: engine.parallel is 1.5; expected a whole number from 1 to 256",
        ),
        (
            "[engine]\nkind = \"lama\"",
            "a.toml:2:8: engine.kind is \"lama\"; expected \"llama\" or \"echo\"",
        ),
        (
            "[engine]\nmodel = \" \"",
            "a.toml:2:9: engine.model is \" \"; expected a model's name or path of 1 to 4096 \
             bytes, or a list of at most 16 of them",
        ),
        (
            "[engine]\nmodel = []",
            "a.toml:2:9: engine.model is []; expected a model's name or path of 1 to 4096 bytes, \
             or a list of at most 16 of them",
        ),
        (
            "[engine]\nmodel = [\"a\", 1]",
            "a.toml:2:15: engine.model[1] is 1; expected a model's name or path of 1 to 4096 bytes",
        ),
        (
            "[auth]\nenabled = 1",
            "a.toml:2:11: auth.enabled is 1; expected true or false",
        ),
        (
            "[limits]\nidle_timeout = 75",
            "a.toml:2:16: limits.idle_timeout is 75; \
             expected a duration such as \"10s\", from 100ms to 24h",
        ),
        (
            "[limits]\nidle_timeout = \"25h\"",
            "a.toml:2:16: limits.idle_timeout is \"25h\"; \
             expected a duration such as \"10s\", from 100ms to 24h",
        ),
        (
            "[limits]\nmax_body = \"2GiB\"",
            "a.toml:2:12: limits.max_body is \"2GiB\"; \
             expected a size such as \"64KiB\", from 1KiB to 1GiB",
        ),
        (
            "[limits]\nmax_body = {}",
            "a.toml:2:12: limits.max_body is a table; \
             expected a size such as \"64KiB\", from 1KiB to 1GiB",
        ),
        (
            "[log]\nfile = \"a\\u0000b\"",
            "a.toml:2:8: log.file is \"a\\u0000b\"; expected a path of at most 4096 bytes, or \"\"",
        ),
        (
            "[server]\nlisten = []",
            "a.toml:2:10: server.listen is []; \
             expected a list of 1 to 64 addresses such as [\"127.0.0.1:8080\"]",
        ),
        (
            "[server]\nlisten = \"127.0.0.1:80\"",
            "a.toml:2:10: server.listen is \"127.0.0.1:80\"; \
             expected a list of 1 to 64 addresses such as [\"127.0.0.1:8080\"]",
        ),
        (
            "[server]\nlisten = [\n  \"127.0.0.1:80\",\n  \"localhost\",\n]",
            "a.toml:4:3: server.listen[1] is \"localhost\"; expected an address such as \
             \"127.0.0.1:8080\", \"[::1]:8080\", \"unix:/run/autoglmd.sock\" or \"fd:NAME\", \
             optionally with \"tls:\", \"clear:\" or \"proxy:\" before it",
        ),
        (
            "[server]\nlisten = [\"[::1]:1\", \"[::1]:1\"]",
            "a.toml:2:10: server.listen[1] is \"[::1]:1\" once more; expected each address once",
        ),
        (
            "[auth]\nenabled = false\n[server]\nlisten = [\"0.0.0.0:80\"]",
            "a.toml:2:11: auth.enabled is false, but server.listen has \"0.0.0.0:80\"; \
             without keys every address must be a loopback address or a Unix socket",
        ),
        (
            "[limits]\nmax_head = \"4KiB\"",
            "a.toml:2:12: limits.max_uri is 8KiB; expected at most limits.max_head, which is 4KiB",
        ),
        (
            "[limits]\ndefault_request_timeout = \"1h\"",
            "a.toml:2:27: limits.default_request_timeout is 1h; \
             expected at most limits.max_request_timeout, which is 10m",
        ),
        (
            "[log]\nformat = \"journald\"\nfile = \"/a\"",
            "a.toml:3:8: log.file is set, but log.format = \"journald\" writes to the journal; set \
             log.format to \"text\" or \"json\", or remove log.file",
        ),
    ];
    for (text, message) in table {
        assert_eq!(mistakes(load_text(text)), [*message], "{text}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_files_order() {
    let text = "[log]\nlevel = \"loud\"\n[engine]\nparallel = 0\nthreds = 2\n\
                [limits]\nmax_head = 1\nmax_uri = \"1MiB\"\n";
    let result = load_with(
        text.as_bytes(),
        sources(
            &[
                ("AUTOGLMD_SERVER__REACTORS", "many"),
                ("AUTOGLMD_LIMIT__MAX_BODY", "1"),
            ],
            Overrides {
                threads: Some("-1".into()),
                ..Overrides::default()
            },
        ),
    );
    assert_eq!(
        mistakes(result),
        [
            "a.toml:2:9: log.level is \"loud\"; expected one of \"off\", \"error\", \
             \"warn\", \"info\", \"debug\", \"trace\"",
            "a.toml:4:12: engine.parallel is 0; expected a whole number from 1 to 256",
            "a.toml:5:1: unknown key threds in [engine]; did you mean threads?",
            // max_uri is not compared with max_head while max_head itself is wrong.
            "a.toml:7:12: limits.max_head is 1; \
             expected a size such as \"64KiB\", from 1KiB to 1MiB",
            "AUTOGLMD_SERVER__REACTORS: server.reactors is \"many\"; \
             expected a whole number from 1 to 64",
            "AUTOGLMD_LIMIT__MAX_BODY: unknown variable; did you mean AUTOGLMD_LIMITS__MAX_BODY?",
            "--threads: engine.threads is \"-1\"; expected a whole number from 0 to 512",
        ]
    );
}

#[test]
fn broken_toml_is_reported_beside_the_other_mistakes() {
    let table: &[(&str, &[&str])] = &[
        (
            "[engine]\nparallel = \nkind = \"lama\"\nthreads = x\n",
            &["a.toml:2:", "a.toml:3:8: engine.kind", "a.toml:4:11: this"],
        ),
        (
            "[log]\naccess = true\naccess = false\n",
            &["a.toml:3:1: this is not TOML: duplicate key"],
        ),
        // Below a broken header it is unknown which section a key belongs to.
        (
            "[log]\nlevel = 1\n[server\nreactors = 0\nlisen = 1\n",
            &[
                "a.toml:2:9: log.level",
                "a.toml:3:8: this is not TOML: unclosed",
            ],
        ),
        // An open string or list swallows the rest of the file.
        (
            "[server]\nlisten = [\"x\"\nreactors = 0\n[engine]\nkind = 1\n",
            &[
                "a.toml:2:11: server.listen[0]",
                "a.toml:3:1: this is not TOML: missing comma",
            ],
        ),
    ];
    for (text, starts) in table {
        let found = mistakes(load_text(text));
        assert_eq!(found.len(), starts.len(), "{text}{found:#?}");
        for (message, start) in found.iter().zip(*starts) {
            assert!(message.starts_with(start), "{start}: {found:#?}");
        }
    }
}

#[test]
fn many_mistakes_are_counted_and_not_all_printed() {
    let text: String = (0..200).map(|n| format!("key{n} = 1\n")).collect();
    let errors = load_text(&text).expect_err("no such keys");
    assert_eq!(
        (errors.problems.len(), errors.more),
        (limits::SHOWN_PROBLEMS_MAX, 150)
    );
    assert!(errors.to_string().ends_with("\nand 150 more"));
}

#[test]
fn later_sources_win_and_each_value_knows_its_own() {
    let text = "[engine]\nparallel = 2\nthreads = 2\nqueue = 2\n";
    let flags = Overrides {
        parallel: Some("4".into()),
        ..Overrides::default()
    };
    let environment = [
        ("AUTOGLMD_ENGINE__PARALLEL", "3"),
        ("AUTOGLMD_ENGINE__THREADS", "3"),
    ];
    let loaded = load_with(text.as_bytes(), sources(&environment, flags)).expect("a good file");
    let engine = &loaded.config.engine;
    assert_eq!(
        (
            engine.parallel,
            engine.threads,
            engine.queue,
            engine.context
        ),
        (4, 3, 2, 0)
    );
    assert_eq!(
        loaded.origin("engine.parallel"),
        &Origin::Flag("--parallel")
    );
    let variable = Origin::Environment("AUTOGLMD_ENGINE__THREADS".into());
    assert_eq!(loaded.origin("engine.threads"), &variable);
    assert!(matches!(
        loaded.origin("engine.queue"),
        Origin::File { line: 4, .. }
    ));
    assert_eq!(loaded.origin("engine.context"), &Origin::Default);
    assert_eq!(
        loaded.config.state_dir,
        Path::new("/home/a/.local/state/autoglmd")
    );
    assert_eq!(loaded.warnings, []);
}

#[test]
fn a_wrong_value_is_reported_even_if_a_flag_overrides_it() {
    let flags = Overrides {
        parallel: Some("4".into()),
        ..Overrides::default()
    };
    let result = load_with(b"[engine]\nparallel = 0", sources(&[], flags));
    assert_eq!(mistakes(result).len(), 1);
}

#[test]
fn flags_and_variables_take_lists_words_and_units() {
    let flags = Overrides {
        listen: vec!["127.0.0.1:0".into(), "unix:/run/a.sock".into()],
        engine: Some("echo".into()),
        log_level: Some("trace".into()),
        ..Overrides::default()
    };
    let environment = [
        ("AUTOGLMD_LIMITS__MAX_BODY", "2MiB"),
        ("AUTOGLMD_LIMITS__IDLE_TIMEOUT", "250ms"),
        ("AUTOGLMD_AUTH__ENABLED", "false"),
        ("AUTOGLMD_LOG__FILE", ""),
        ("AUTOGLMD_CONFIG", ""),
        ("AUTOGLMD_OTHER", "not ours: no section"),
    ];
    let config = load_with(b"", sources(&environment, flags))
        .expect("all is well")
        .config;
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.engine.kind.as_str(), "echo");
    assert_eq!(config.log.level, log::LevelFilter::Trace);
    assert_eq!(config.limits.max_body, 2 << 20);
    assert_eq!(config.limits.idle_timeout.as_millis(), 250);
    assert_eq!((config.auth.enabled, config.log.file), (false, None));
}

#[test]
fn a_named_file_must_exist_and_an_unnamed_one_need_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let missing = folder.path().join("a.toml");
    let mut named = sources(&[], Overrides::default());
    named.file = Some(missing.clone());
    let found = mistakes(load(&named));
    assert!(
        found[0].starts_with("a.toml: cannot be read: No such file"),
        "{found:?}"
    );
    assert!(
        found[0].ends_with("; --config names this file"),
        "{found:?}"
    );

    let path = folder.path().to_str().expect("UTF-8");
    let unnamed = sources(&[("CONFIGURATION_DIRECTORY", path)], Overrides::default());
    if !Path::new("/etc/autoglmd/autoglmd.toml").exists() {
        assert_eq!(load(&unnamed).expect("the defaults").file, None);
    }
    std::fs::rename(
        write(folder.path(), b""),
        folder.path().join("autoglmd.toml"),
    )
    .expect("moved");
    let expected = folder.path().join("autoglmd.toml");
    assert_eq!(load(&unnamed).expect("an empty file").file, Some(expected));
}

#[test]
fn files_that_are_not_text_are_refused() {
    let plain = || sources(&[], Overrides::default());
    assert_eq!(
        mistakes(load_with(b"[log]\nfile = \"\xff\"", plain())),
        ["a.toml:2:9: the file is not UTF-8; expected TOML in UTF-8"]
    );
    let large = vec![b'#'; limits::FILE_BYTES_MAX as usize + 1];
    assert!(mistakes(load_with(&large, plain()))[0].contains("more than 1 MiB"));
    let folder = Sources {
        file: Some(std::env::temp_dir()),
        ..plain()
    };
    assert!(load(&folder).is_err_and(|errors| errors.to_string().contains("cannot be read")));
}

#[test]
fn without_a_home_both_folders_are_asked_for() {
    let found = mistakes(load(&Sources::default()));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found
            .iter()
            .all(|text| text.starts_with("environment: no folder for"))
    );
}

#[test]
fn what_is_shown_loads_again() {
    let flags = Overrides {
        listen: vec!["[::1]:9".into(), "unix:/run/名 \"a\".sock".into()],
        ..Overrides::default()
    };
    let text = "[log]\nfile = \"/var/log/a\\tb\\u007f.log\"\nlevel = \"warn\"\n\
                [limits]\nmax_body = 1500000\nidle_timeout = \"1500ms\"\nmax_uri = 0x2000\n";
    let first = load_with(text.as_bytes(), sources(&[], flags)).expect("a good file");
    let shown = show(&first);
    let second = load_text(&shown).expect(&shown);
    assert_eq!(second.config, first.config);
    assert!(
        shown.contains("# --listen\n") && shown.contains("# default\n"),
        "{shown}"
    );
}

/// Mutations that this test catches: an old key that is unknown; no warning about it.
#[test]
fn keys_of_earlier_versions_are_accepted_with_a_warning() {
    let variables = [("AUTOGLMD_ENGINE__PREFILL_CHUNK", "x")];
    let flags = Overrides::default();
    let text = b"[engine]\nqueue = 7\nprefill_chunk = 128\n";
    let loaded = load_with(text, sources(&variables, flags)).expect("a good file");
    assert_eq!(loaded.config.engine.queue, 7);
    let found: Vec<_> = loaded
        .warnings
        .iter()
        .map(|warning| &warning.message)
        .collect();
    let expected = "engine.prefill_chunk is deprecated and ignored; set engine.prompt_budget, a \
                    time instead of a number of tokens";
    assert_eq!(found, [expected, expected]);
}

/// Text that looks like a configuration, so that the test gets past the parser.
fn likely_text() -> impl Strategy<Value = String> {
    let names: Vec<_> = keys().map(|key| key.name).collect();
    let sections: Vec<_> = SECTIONS.iter().map(|section| section.name).collect();
    let values = [
        "1",
        "-1",
        "\"10s\"",
        "\"1KiB\"",
        "true",
        "[]",
        "[\"fd:a\"]",
        "{}",
        "nan",
        "",
        "\"\u{1b}",
    ];
    let line = prop_oneof![
        proptest::sample::select(sections).prop_map(|name| format!("[{name}]\n")),
        (
            proptest::sample::select(names),
            proptest::sample::select(values.to_vec())
        )
            .prop_map(|(name, value)| format!("{name} = {value}\n")),
        "\\PC{0,12}\n",
    ];
    proptest::collection::vec(line, 0..12).prop_map(|lines| lines.concat())
}

/// Loading succeeds or reports at least one mistake, and no mistake carries a control character.
fn stands(text: &str) -> Result<(), TestCaseError> {
    let mut draft = Draft {
        document: Some(Document::new("a.toml".into(), text.to_owned())),
        ..Draft::default()
    };
    draft.read_file();
    if draft.is_clean() {
        return Ok(());
    }
    let errors = draft.into_errors();
    prop_assert!(!errors.problems.is_empty());
    let printed = errors.to_string();
    prop_assert!(
        !printed.contains(|c: char| c.is_control() && c != '\n'),
        "{printed:?}"
    );
    Ok(())
}

proptest! {
    #[test]
    fn hostile_text_never_panics(text: String) {
        stands(&text)?;
    }

    #[test]
    fn likely_text_never_panics(text in likely_text()) {
        stands(&text)?;
    }

    #[test]
    fn hostile_variables_never_panic(name in "AUTOGLMD_[A-Z_]{0,20}", text: String) {
        let mut draft = Draft::default();
        draft.read_environment(&Sources { environment: vec![(name, text)], ..Sources::default() });
        let _ = draft.into_errors().to_string();
    }
}

/// Mutations: `read_named` without its look at the table's keys, and `show` without the names.
#[test]
fn sections_with_names_are_read_shown_and_compared() {
    let text = "[models.\"a.b\"]\ncontext = 4096\nkv_type = \"auto\"\n[models.small]\n";
    let loaded = load_text(text).expect("a good file");
    let model = &loaded.config.models["a.b"];
    assert_eq!((model.context, model.kv_type), (Some(4_096), Some(None)));
    assert_eq!(model.gpu_layers, None);
    assert_eq!(loaded.config.models.len(), 2);
    let message = &loaded.warnings[0].message;
    assert!(message.contains("[models.\"a.b\"], so that section has no effect"));
    let shown = show(&loaded);
    assert!(
        shown.contains("\n[models.\"a.b\"]\ncontext = 4096 "),
        "{shown}"
    );
    let again = load_text(&shown).expect("what is shown can be loaded");
    assert_eq!(again.config, loaded.config);
    let changes = crate::config::diff(&crate::config::Config::default(), &loaded.config);
    let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
    assert!(changes.contains(&"models.\"a.b\".context unset -> 4096".to_owned()));
}

#[test]
fn mistakes_in_sections_with_names_have_their_places() {
    let text = "[models.small]\ncontext = \"x\"\nsize = 1\n[models]\nlarge = 3\n";
    let found = mistakes(load_text(text));
    let expected = [
        "a.toml:2:11: models.\"small\".context is \"x\"; expected a whole number",
        "a.toml:3:1: unknown key size in [models.\"small\"]; expected one of context, kv_type,",
        "a.toml:5:9: models.\"large\" is 3; expected a section: [models.\"NAME\"]",
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
    assert_eq!(found.len(), expected.len());
    assert_eq!(
        mistakes(load_text("models = 3")),
        ["a.toml:1:10: models is 3; expected sections: [models.\"NAME\"]"]
    );
}
