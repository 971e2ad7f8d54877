//! The things in the repository that its pages can name: files, words of code, constants with their
//! values, metrics and configuration keys.

use std::collections::{BTreeMap, BTreeSet};

use super::source::root;

/// Names that belong to the kernel, to a protocol, to a crate or to another program.
const FOREIGN: [&str; 5] = [
    // system calls, errors and options
    "accept4 bpf close connect epoll_create1 epoll_ctl epoll_wait eventfd io_uring listen \
     memfd_create ptrace read recv recvfrom sendto sendmsg shutdown write writev getsockname \
     NPROC no_new_privs EAGAIN EWOULDBLOCK EMFILE EPIPE ECONNRESET EINTR ECONNABORTED ENOBUFS \
     EPOLLET EPOLLIN EPOLLOUT EPOLLHUP EPOLLRDHUP EPOLLERR EPOLLONESHOT EPOLLEXCLUSIVE \
     EPOLL_CTL_ADD EPOLL_CTL_MOD EPOLL_CTL_DEL O_NONBLOCK SOCK_NONBLOCK SO_REUSEPORT SO_ERROR \
     TCP_NODELAY RLIMIT_DATA RLIMIT_NOFILE RLIMIT_NPROC SIGTERM SIGHUP FIN RST SYN ACK \
     net.core.somaxconn",
    // HTTP, gRPC and TLS
    "CANCEL DATA ENHANCE_YOUR_CALM GOAWAY PING SETTINGS HEADERS CONTINUATION RST_STREAM \
     WINDOW_UPDATE UNIMPLEMENTED RESOURCE_EXHAUSTED NOT_SERVING NO_ERROR PROTOCOL_ERROR \
     INTERNAL close_notify Location Vary Via illegal_parameter cipher_suites",
    // systemd and other programs' settings
    "FDSTORE LISTEN_FDS LISTEN_PID LISTEN_FDNAMES NOTIFY_SOCKET LimitNOFILE NO_COLOR NO_PROXY \
     HTTPS_PROXY OTEL_EXPORTER_OTLP_HEADERS HF_ENDPOINT HF_TOKEN PIP_INDEX_URL SSL_CERT_FILE \
     GOMP_SPINCOUNT OMP_WAIT_POLICY GGML_AVX GGML_AVX2 GGML_BMI2 GGML_F16C GGML_FMA \
     process_cpu_seconds_total proxy_buffering proxy_http_version proxy_set_header \
     sd_listen_fds_with_names sd_notify upstream proxy_pass proxy_protocol pip.py",
    // std and crates
    "Ok Err Some ServerConnection ServerConfig invalid_sni_policy",
    // programs and packages
    "curl journalctl sysctl iproute2 nc nghttp openssl pip procps strace ss prlimit pgrep \
     python3 util-linux netcat-openbsd nghttp2-client docker wc",
];

pub fn is_foreign(name: &str) -> bool {
    let mut words = FOREIGN.iter().flat_map(|group| group.split(' '));
    words.any(|word| word == name)
}

/// The files of this test.
pub const OWN: [&str; 2] = ["tests/tidy/docs.rs", "tests/tidy/tree.rs"];

/// Files that the daemon or its tests use but this repository does not hold.
const FOREIGN_FILES: &[&str] = &["llama.h", "NAME.gguf", "autoglmd.toml"];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Page,
    Head,
}

/// Text in backticks, and the text around it.
pub struct Span<'a> {
    pub text: String,
    pub before: &'a str,
    pub after: &'a str,
}

/// A number without its unit: bytes, milliseconds, or things.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Plain(u128),
    Milliseconds(u128),
}

impl Value {
    pub fn is(self, stated: Value) -> bool {
        self == stated
    }
}

pub fn shown(values: &[Value]) -> String {
    let show = |value: &Value| match value {
        Value::Plain(number) => number.to_string(),
        Value::Milliseconds(number) => format!("{number} ms"),
    };
    values.iter().map(show).collect::<Vec<_>>().join(" or ")
}

pub struct Tree {
    /// By path: sources, tests, benches and pages.
    pub texts: BTreeMap<String, String>,
    folders: BTreeSet<String>,
    /// The words of code, strings included, comments not: by path, and of all.
    words: BTreeMap<String, BTreeSet<String>>,
    vocabulary: BTreeSet<String>,
    functions: BTreeSet<String>,
    /// By name: the text behind `=`, more than once where modules share a name.
    constants: BTreeMap<String, Vec<String>>,
    /// By key with its section: the default.
    keys: BTreeMap<String, String>,
    /// By path: the tests of a file.
    pub tests: BTreeMap<String, Vec<String>>,
}

impl Tree {
    pub fn read() -> Tree {
        let root = root();
        let mut tree = Tree {
            texts: BTreeMap::new(),
            folders: BTreeSet::new(),
            words: BTreeMap::new(),
            vocabulary: BTreeSet::new(),
            functions: BTreeSet::new(),
            constants: BTreeMap::new(),
            keys: BTreeMap::new(),
            tests: BTreeMap::new(),
        };
        for folder in ["src", "tests", "benches", "docs", ".ci"] {
            tree.collect(root, folder);
        }
        for file in ["README.md", "Cargo.toml", "build.rs"] {
            tree.add(root, file);
        }
        tree.keys = keys_of(&tree.texts["docs/configuration.md"]);
        assert!(tree.keys.len() > 30 && tree.constants.len() > 100);
        tree
    }

    fn collect(&mut self, root: &std::path::Path, folder: &str) {
        self.folders.insert(folder.to_owned());
        for entry in std::fs::read_dir(root.join(folder)).expect("a folder of the tree") {
            let entry = entry.expect("an entry");
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                self.collect(root, &name);
            } else {
                self.add(root, &name);
            }
        }
    }

    fn add(&mut self, root: &std::path::Path, name: &str) {
        // A file that is no text counts as well.
        let text = std::fs::read(root.join(name)).expect("it was listed");
        let text = String::from_utf8(text).unwrap_or_default();
        if name.ends_with(".rs")
            || name.ends_with(".py")
            || name.ends_with(".proto")
            || name.ends_with(".cpp")
        {
            self.add_code(name, &text);
        }
        self.texts.insert(name.to_owned(), text);
    }

    fn add_code(&mut self, name: &str, text: &str) {
        let is_code = |line: &&str| !line.trim_start().starts_with("//");
        let code: Vec<&str> = text.lines().filter(is_code).collect();
        // These two mention names that nothing has.
        let is_own = OWN.contains(&name);
        let words: BTreeSet<String> = code.iter().flat_map(|line| words_of(line)).collect();
        for (at, line) in code.iter().enumerate() {
            if let Some(function) = line.split("fn ").nth(1) {
                let function = words_of(function).next().unwrap_or_default();
                let above = at.checked_sub(1).map_or("", |at| code[at]).trim();
                if above.starts_with("#[test")
                    || above.starts_with("#[ignore")
                    || above.ends_with(")]")
                {
                    self.tests
                        .entry(name.to_owned())
                        .or_default()
                        .push(function.clone());
                }
                self.functions.insert(function);
            }
            let declared = line
                .split_once("const ")
                .filter(|(before, _)| !before.contains('"'));
            if let Some((_, constant)) = declared
                && let Some((constant, rest)) = constant.split_once(':')
                && is_constant(constant)
                && !is_own
            {
                let rest = [rest, &code[at + 1..code.len().min(at + 4)].join(" ")].concat();
                let value = rest.split_once('=').map_or("", |(_, value)| value);
                let value = value.split(';').next().unwrap_or_default();
                self.constants
                    .entry(constant.to_owned())
                    .or_default()
                    .push(value.trim().to_owned());
            }
        }
        if !is_own {
            self.vocabulary.extend(words.iter().cloned());
            self.words.insert(name.to_owned(), words);
        }
    }

    pub fn is_file(&self, path: &str) -> bool {
        self.texts.contains_key(path)
    }

    /// Returns the file or folder that a page names, from the root or from `src`.
    pub fn path_of(&self, name: &str) -> Option<String> {
        let name = name.trim_end_matches('/');
        let below = [
            format!("src/{name}"),
            format!("docs/{name}"),
            format!("docs/deploy/systemd/{name}"),
        ];
        let mut candidates = std::iter::once(name.to_owned()).chain(below);
        let is_path = name.contains('/') || name.contains('.');
        candidates.find(|path| is_path && (self.is_file(path) || self.folders.contains(path)))
    }

    pub fn file_has(&self, path: &str, name: &str) -> bool {
        let below = format!("{path}/");
        let mut files = self
            .words
            .iter()
            .filter(|(file, _)| *file == path || file.starts_with(&below));
        files.any(|(_, words)| words.contains(name))
    }

    fn has_metric(&self, name: &str) -> bool {
        let name = name.split('{').next().unwrap_or_default();
        let bare = name.strip_prefix("autoglmd_").unwrap_or(name);
        let counted = bare.strip_suffix("_total").unwrap_or(bare);
        let quoted = [name, bare, counted].map(|name| format!("\"{name}\""));
        let in_full = [format!("\"{name}"), format!("\"autoglmd_{counted}")];
        let mut sources = self
            .texts
            .iter()
            .filter(|(path, _)| path.starts_with("src/"));
        sources.any(|(_, text)| {
            quoted.iter().any(|name| text.contains(name.as_str()))
                || in_full.iter().any(|name| text.contains(name.as_str()))
        })
    }

    fn has_section(&self, name: &str) -> bool {
        self.keys
            .keys()
            .any(|key| key.starts_with(&format!("{name}.")))
    }

    fn is_key(&self, name: &str) -> bool {
        self.keys.contains_key(name)
    }

    /// Returns whether a reader can find the name: a file, a function, a constant, a metric, a key.
    pub fn can_be_looked_up(&self, name: &str) -> bool {
        let last = last_name(name);
        self.path_of(name).is_some()
            || self.is_key(name)
            || self.constants.contains_key(&last)
            || (name.starts_with("autoglmd_") && self.has_metric(name))
            || (self.functions.contains(&last) && !is_foreign(name))
    }

    pub fn fault_of_name(&self, name: &str, place: Place) -> Option<String> {
        // `key = value` and `NAME=value` name the key.
        let name = name.split([' ', '=']).next().unwrap_or_default();
        let is_call = name.ends_with(')');
        // A manual page: poll(2).
        let is_manual = is_call
            && name.contains(|digit: char| digit.is_ascii_digit())
            && !name.contains('_')
            && name.contains('(');
        let bare = name.split('(').next().unwrap_or_default();
        if bare.is_empty() || is_manual || is_foreign(bare) || FOREIGN_FILES.contains(&bare) {
            return None;
        }
        if bare.starts_with("autoglmd_") {
            return (!self.has_metric(bare)).then(|| format!("`{bare}`: no such metric"));
        }
        let is_path = bare.contains('/')
            || [".rs", ".md", ".toml", ".proto", ".patch"]
                .iter()
                .any(|end| bare.ends_with(end));
        if is_path {
            return self.fault_of_path(bare, place);
        }
        if let Some((section, _)) = bare.split_once('.')
            && self.has_section(section)
            && bare
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte))
            && !self.is_key(bare)
            && !self.has_section(bare)
        {
            let is_field = place == Place::Head && self.has_word(&last_name(bare));
            return (!is_field).then(|| format!("`{bare}`: no such key"));
        }
        let last = last_name(bare);
        if is_constant(&last) && last.contains('_') {
            let is_there = self.constants.contains_key(&last) || self.has_word(&last);
            return (!is_there).then(|| format!("`{bare}`: no such constant"));
        }
        self.fault_of_word(bare, is_call, place)
    }

    fn fault_of_path(&self, path: &str, place: Place) -> Option<String> {
        let is_elsewhere = path.starts_with(['/', '~', '$', '*', '<', '%']) || path.contains("//");
        let is_media_type =
            path.starts_with("application/") || path.starts_with("http/") && !path.ends_with(".rs");
        let is_version = path
            .rsplit('/')
            .next()
            .is_some_and(|last| last.starts_with(|it: char| it.is_ascii_digit()));
        if is_elsewhere || is_media_type || is_version || self.path_of(path).is_some() {
            return None;
        }
        // A head may name a sibling.
        let end = format!("/{path}");
        if place == Place::Head && self.texts.keys().any(|file| file.ends_with(&end)) {
            return None;
        }
        let looks_ours = path.ends_with(".rs")
            || path.ends_with(".md")
            || path.ends_with(".patch")
            || ["src/", "docs/", "tests/", "benches/"]
                .iter()
                .any(|root| path.starts_with(root))
            || path.ends_with(".toml");
        looks_ours.then(|| format!("`{path}`: no such file"))
    }

    fn fault_of_word(&self, name: &str, is_call: bool, place: Place) -> Option<String> {
        // A test's name that is cut short: `a_stored_socket_serves_...`
        let (stem, is_cut) = match name.strip_suffix("...") {
            Some(stem) => (stem, true),
            None => (name, false),
        };
        let parts: Vec<&str> = stem.split("::").flat_map(|part| part.split('.')).collect();
        if !parts.iter().all(|part| is_identifier(part)) {
            return None;
        }
        let is_foreign_path = ["std", "rustls", "h2", "google", "systemd"].contains(&parts[0]);
        let is_name = is_call
            || is_cut
            || parts.len() > 1
            || stem.contains('_')
            || stem.contains(|letter: char| letter.is_uppercase());
        if is_foreign_path || (place == Place::Head && !is_name) {
            return None;
        }
        let is_there = |part: &&str| {
            if is_cut {
                self.vocabulary.iter().any(|word| word.starts_with(part))
            } else if is_call {
                self.functions.contains(*part)
            } else {
                self.has_word(part)
            }
        };
        let is_known = |part: &&str| is_foreign(part) || is_there(part);
        (!parts.iter().all(is_known)).then(|| format!("`{name}`: not in the code"))
    }

    fn has_word(&self, word: &str) -> bool {
        self.vocabulary.contains(word) || self.folders.contains(&format!("src/{word}"))
    }

    /// Checks the value beside a name: `NAME` (16), `NAME`, 16 KiB), 16 reads (`NAME`).
    pub fn fault_of_value(&self, span: &Span<'_>) -> Option<String> {
        let values = self.value_of(&span.text)?;
        let after = span.after.strip_prefix(" (").or_else(|| {
            let rest = span.after.strip_prefix(", ")?;
            span.before.ends_with('(').then_some(rest)
        });
        let stated = after.and_then(quantity).or_else(|| {
            let before = span.before.strip_suffix(" (")?;
            let words: Vec<&str> = before.rsplitn(4, ' ').collect();
            // The nearest number: "16 reads (", "2 s (", "64 KiB of output (".
            (1..=words.len().min(3)).find_map(|count| {
                let tail: Vec<&str> = words[..count].iter().rev().copied().collect();
                quantity(&tail.join(" "))
            })
        })?;
        let is_it = values.iter().any(|value| value.is(stated));
        (!is_it).then(|| {
            format!(
                "`{}` is {}, not {}",
                span.text,
                shown(&values),
                shown(&[stated])
            )
        })
    }

    /// Returns the value of a constant or a key, if it is a number or a time.
    pub fn value_of(&self, name: &str) -> Option<Vec<Value>> {
        if let Some(default) = self.keys.get(name) {
            return quantity(default.trim_matches('"')).map(|value| vec![value]);
        }
        let last = last_name(name);
        let values: Vec<Value> = self
            .constants
            .get(&last)?
            .iter()
            .filter_map(|expression| self.evaluate(expression, 0))
            .map(|value| match (value, &last) {
                (Value::Plain(number), last) if last.ends_with("_MICROS") => {
                    Value::Milliseconds(number / 1_000)
                }
                (Value::Plain(number), last) if last.ends_with("_MS") => {
                    Value::Milliseconds(number)
                }
                (value, _) => value,
            })
            .collect();
        (!values.is_empty()).then_some(values)
    }

    /// Evaluates products and sums of numbers and constants, and durations of them.
    fn evaluate(&self, expression: &str, depth: u32) -> Option<Value> {
        if depth > 8 {
            return None;
        }
        let expression = expression.trim();
        for (call, milliseconds) in [
            ("from_secs", 1_000),
            ("from_millis", 1),
            ("from_mins", 60_000),
        ] {
            let call = format!("Duration::{call}(");
            if let Some(inner) = expression
                .strip_prefix(&call)
                .and_then(|it| it.strip_suffix(')'))
            {
                let Value::Plain(number) = self.evaluate(inner, depth + 1)? else {
                    return None;
                };
                return Some(Value::Milliseconds(number * milliseconds));
            }
        }
        let mut sum = 0;
        for term in expression.split(" + ") {
            let mut product = 1;
            for factor in term.split(" * ") {
                let factor = factor.split(" as ").next().unwrap_or_default().trim();
                let number = if let Some((base, shift)) = factor.split_once(" << ") {
                    base.parse::<u128>().ok()? << shift.parse::<u32>().ok()?
                } else if factor.starts_with(|first: char| first.is_ascii_digit()) {
                    let digits = factor.replace('_', "");
                    digits.parse().ok()?
                } else {
                    let values = self.constants.get(&last_name(factor))?;
                    match self.evaluate(values.first()?, depth + 1)? {
                        Value::Plain(number) => number,
                        Value::Milliseconds(_) => return None,
                    }
                };
                product *= number;
            }
            sum += product;
        }
        Some(Value::Plain(sum))
    }
}

/// Returns the keys and defaults of the generated page.
fn keys_of(page: &str) -> BTreeMap<String, String> {
    let (mut keys, mut section) = (BTreeMap::new(), String::new());
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## `[") {
            section = title.trim_end_matches("]`").to_owned();
        }
        let cells: Vec<&str> = line.split(" | ").collect();
        if let Some(key) = cells[0].strip_prefix("| `")
            && cells.len() > 3
        {
            let key = key.trim_end_matches('`');
            keys.insert(
                format!("{section}.{key}"),
                cells[2].trim_matches('`').to_owned(),
            );
        }
    }
    keys
}

/// Parses "64 KiB", "1,024", "30 s", `"30s"`: a number at the beginning, and its unit.
pub fn quantity(text: &str) -> Option<Value> {
    let text = text.trim_start();
    let end = text
        .find(|it: char| !it.is_ascii_digit() && it != ',' && it != '_')
        .unwrap_or(text.len());
    let number = text[..end].trim_end_matches([',', '_']);
    let digits = number.replace([',', '_'], "");
    let number: u128 = digits.parse().ok()?;
    let rest = text[end..].trim_start_matches([' ', '\u{a0}', '-']);
    let unit = rest
        .split(|it: char| !it.is_ascii_alphabetic())
        .next()
        .unwrap_or_default();
    Some(match unit {
        "KiB" => Value::Plain(number << 10),
        "MiB" => Value::Plain(number << 20),
        "GiB" => Value::Plain(number << 30),
        "ms" => Value::Milliseconds(number),
        "s" | "second" | "seconds" => Value::Milliseconds(number * 1_000),
        "m" | "minute" | "minutes" => Value::Milliseconds(number * 60_000),
        "h" | "hour" | "hours" => Value::Milliseconds(number * 3_600_000),
        _ => Value::Plain(number),
    })
}

fn words_of(line: &str) -> impl Iterator<Item = String> {
    line.split(|it: char| !it.is_alphanumeric() && it != '_')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
}

/// Returns `b` for `a::b`, `a.b` and `b()`.
pub fn last_name(name: &str) -> String {
    let name = name.split(['(', ' ', '=', '{']).next().unwrap_or_default();
    name.rsplit([':', '.'])
        .next()
        .unwrap_or_default()
        .to_owned()
}

pub fn is_identifier(name: &str) -> bool {
    name.starts_with(|first: char| first.is_alphabetic() || first == '_')
        && name.chars().all(|it| it.is_alphanumeric() || it == '_')
}

fn is_constant(name: &str) -> bool {
    name.len() > 1
        && name.starts_with(|first: char| first.is_ascii_uppercase())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}
