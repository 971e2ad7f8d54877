//! What holds between several values: each rule is a few lines over a finished `Config`.
//!
//! A rule names the keys it is about. The loader puts the message where the first of them was set,
//! and leaves out rules about a key whose own value was refused already.

use super::form::word;
use super::units::{print_duration, print_size_bytes};
use super::{Config, EngineKind, LogFormat};

/// A rule that does not hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub keys: &'static [&'static str],
    pub message: String,
}

/// What makes the configuration wrong.
pub fn errors(config: &Config) -> Vec<Finding> {
    let found = [
        unguarded(config),
        long_uri(config),
        long_default(config),
        journald_file(config),
    ];
    found.into_iter().flatten().collect()
}

/// What is allowed and seldom meant.
pub fn warnings(config: &Config) -> Vec<Finding> {
    [open_door(config), echo(config), wide_chunk(config)]
        .into_iter()
        .flatten()
        .collect()
}

fn unguarded(config: &Config) -> Option<Finding> {
    let exposed = config
        .server
        .listen
        .iter()
        .find(|listen| !listen.is_local())?;
    (!config.auth.enabled).then(|| Finding {
        keys: &["auth.enabled", "server.listen"],
        message: format!(
            "auth.enabled is false and server.listen has \"{exposed}\"; without keys every \
             address must be a loopback address or a Unix socket"
        ),
    })
}

fn long_uri(config: &Config) -> Option<Finding> {
    let (uri, head) = (config.limits.max_uri, config.limits.max_head);
    (uri > head).then(|| Finding {
        keys: &["limits.max_uri", "limits.max_head"],
        message: format!(
            "limits.max_uri is {}; expected at most limits.max_head, which is {}",
            print_size_bytes(uri as u64),
            print_size_bytes(head as u64)
        ),
    })
}

fn long_default(config: &Config) -> Option<Finding> {
    let (default, most) = (
        config.limits.default_request_timeout,
        config.limits.max_request_timeout,
    );
    (default > most).then(|| Finding {
        keys: &[
            "limits.default_request_timeout",
            "limits.max_request_timeout",
        ],
        message: format!(
            "limits.default_request_timeout is {}; expected at most \
             limits.max_request_timeout, which is {}",
            print_duration(default),
            print_duration(most)
        ),
    })
}

fn journald_file(config: &Config) -> Option<Finding> {
    let both = config.log.format == LogFormat::Journald && config.log.file.is_some();
    both.then(|| Finding {
        keys: &["log.file", "log.format"],
        message: "log.file is set and log.format is \"journald\", which writes to no file; \
                  expected \"text\" or \"json\", or no file"
            .to_owned(),
    })
}

fn open_door(config: &Config) -> Option<Finding> {
    (!config.auth.enabled).then(|| Finding {
        keys: &["auth.enabled"],
        message: "auth.enabled is false: everybody on this machine may generate without a key"
            .to_owned(),
    })
}

fn echo(config: &Config) -> Option<Finding> {
    (config.engine.kind == EngineKind::Echo).then(|| Finding {
        keys: &["engine.kind"],
        message: format!(
            "engine.kind is {:?}: every answer is the same fixed program, made by no model",
            word(config.engine.kind)
        ),
    })
}

fn wide_chunk(config: &Config) -> Option<Finding> {
    let (chunk, context) = (config.engine.prefill_chunk, config.engine.context);
    (context != 0 && chunk > context).then(|| Finding {
        keys: &["engine.prefill_chunk", "engine.context"],
        message: format!(
            "engine.prefill_chunk is {chunk} and engine.context {context}: no prompt fills a chunk"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Listen, schema};

    #[test]
    fn the_defaults_break_no_rule() {
        assert_eq!(errors(&Config::default()), []);
        assert_eq!(warnings(&Config::default()), []);
    }

    #[test]
    fn keys_are_asked_for_wherever_others_may_reach() {
        let mut config = Config::default();
        config.auth.enabled = false;
        for (address, expected) in [
            ("127.0.0.1:1", 0),
            ("[::1]:1", 0),
            ("unix:/run/a", 0),
            ("0.0.0.0:1", 1),
            ("10.0.0.1:1", 1),
            ("fd:web", 1),
        ] {
            config.server.listen = vec![
                Listen::LOOPBACK,
                Listen::parse(address).expect("an address"),
            ];
            assert_eq!(errors(&config).len(), expected, "{address}");
        }
    }

    #[test]
    fn every_rule_speaks_of_keys_that_exist() {
        let mut config = Config::default();
        config.auth.enabled = false;
        config.server.listen = vec![Listen::Inherited("web".into())];
        config.limits.max_uri = config.limits.max_head + 1;
        config.limits.default_request_timeout = config.limits.max_request_timeout * 2;
        config.log.format = LogFormat::Journald;
        config.log.file = Some("/tmp/a".into());
        config.engine.kind = EngineKind::Echo;
        config.engine.context = 16;
        let (errors, warnings) = (errors(&config), warnings(&config));
        assert_eq!((errors.len(), warnings.len()), (4, 3));
        for finding in errors.iter().chain(&warnings) {
            assert!(
                finding.keys.iter().all(|path| schema::find(path).is_some()),
                "{finding:?}"
            );
        }
    }
}
