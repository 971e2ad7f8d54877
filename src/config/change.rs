//! Compares two configurations key by key, to find what a reload changes.

use std::collections::BTreeSet;
use std::fmt;

use super::named::MODELS;
use super::rules::{self, Finding};
use super::schema::{Config, Effect, find, keys};
use super::value::Value;

/// One key whose value differs.
pub struct Change {
    pub path: String,
    pub effect: Effect,
    /// Both as they are written in a file.
    pub before: String,
    pub after: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.path, self.before, self.after)
    }
}

/// Returns the keys that differ, in the schema's order. The folders are not keys: they cannot
/// change while the process runs.
pub fn diff(before: &Config, after: &Config) -> Vec<Change> {
    let changed = keys().filter(|key| (key.read)(before) != (key.read)(after));
    let changes = changed.map(|key| Change {
        path: key.path.to_owned(),
        effect: key.effect,
        before: key.print(before),
        after: key.print(after),
    });
    changes.chain(diff_models(before, after)).collect()
}

/// Returns the changed keys of `[models."NAME"]`, all of which need a restart.
fn diff_models(before: &Config, after: &Config) -> Vec<Change> {
    let names: BTreeSet<&String> = before.models.keys().chain(after.models.keys()).collect();
    let mut changes = Vec::new();
    for name in names {
        for key in MODELS.keys {
            let read = |config: &Config| config.models.get(name).and_then(key.read);
            let (old, new) = (read(before), read(after));
            if old == new {
                continue;
            }
            let print = |value: Option<Value>| {
                value.map_or_else(|| "unset".to_owned(), |value| key.kind.print(&value))
            };
            changes.push(Change {
                path: format!("{}.{}", MODELS.path(name), key.name),
                effect: Effect::Restart,
                before: print(old),
                after: print(new),
            });
        }
    }
    changes
}

/// Returns the configuration in force after a reload: the reloadable keys of `fresh`, and all other
/// keys of `running`.
pub fn reloaded(running: &Config, fresh: &Config) -> Config {
    let mut config = running.clone();
    for key in keys().filter(|key| key.effect == Effect::Reload) {
        let fits = (key.write)(&mut config, (key.read)(fresh));
        debug_assert!(fits, "a field holds its own value: {}", key.path);
    }
    config
}

/// Returns the rules that the result of [`reloaded`] breaks, although `fresh` breaks none: a value
/// that only a restart changes still has its old value.
///
/// Without this check, a file that moves the daemon to a loopback address and switches keys off
/// would switch them off at once, but move it later.
pub fn contradictions(running: &Config, fresh: &Config) -> Vec<String> {
    let findings = rules::errors(&reloaded(running, fresh));
    let waits = |path: &&&str| {
        find(path).is_some_and(|key| {
            key.effect == Effect::Restart && (key.read)(running) != (key.read)(fresh)
        })
    };
    let describe = |finding: Finding| {
        let keys: Vec<_> = finding.keys.iter().filter(waits).copied().collect();
        format!(
            "{}; a reload does not change {}, so restart the daemon",
            finding.message,
            keys.join(" and ")
        )
    };
    findings.into_iter().map(describe).collect()
}

/// Returns one line for the log.
pub fn summary(changes: &[Change]) -> String {
    let part = |effect: Effect| {
        let listed = changes.iter().filter(|change| change.effect == effect);
        listed.map(Change::to_string).collect::<Vec<_>>().join(", ")
    };
    match (
        part(Effect::Reload).as_str(),
        part(Effect::Restart).as_str(),
    ) {
        ("", "") => "nothing changed".to_owned(),
        (now, "") => format!("in force: {now}"),
        ("", later) => format!("needs a restart: {later}"),
        (now, later) => format!("in force: {now}; needs a restart: {later}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClientCertificates, Listen};
    use std::time::Duration;

    fn changed() -> Config {
        let mut config = Config::default();
        config.limits.max_body = 2 << 20;
        config.limits.idle_timeout = Duration::from_secs(5);
        config.engine.parallel = 4;
        config
    }

    #[test]
    fn changes_are_sorted_by_what_they_need() {
        let before = Config::default();
        assert_eq!(summary(&diff(&before, &before)), "nothing changed");
        assert_eq!(
            summary(&diff(&before, &changed())),
            "in force: limits.max_body \"1MiB\" -> \"2MiB\", \
             limits.idle_timeout \"75s\" -> \"5s\"; needs a restart: engine.parallel 16 -> 4"
        );
    }

    #[test]
    fn a_reload_takes_what_it_may_and_leaves_the_rest() {
        let after = reloaded(&Config::default(), &changed());
        assert_eq!(after.limits, changed().limits);
        assert_eq!(after.engine, Config::default().engine);
        let left = diff(&after, &changed());
        assert!(left.iter().all(|change| change.effect == Effect::Restart));
    }

    /// A mutation that this test catches: the rules applied to `fresh`.
    #[test]
    fn a_reload_that_waits_for_a_restart_does_not_open_a_door_before_it() {
        let listening = |address: &str| {
            let mut config = Config::default();
            config.server.listen = vec![Listen::parse(address).expect("an address")];
            config
        };
        let running = listening("0.0.0.0:80");
        let mut fresh = listening("127.0.0.1:80");
        assert_eq!(contradictions(&running, &fresh), [""; 0]);
        fresh.auth.enabled = false;
        let found = contradictions(&running, &fresh);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].contains("auth.enabled is false, but server.listen has \"0.0.0.0:80\"")
                && found[0]
                    .ends_with("a reload does not change server.listen, so restart the daemon"),
            "{found:?}"
        );
        let mut fresh = listening("tls:0.0.0.0:80");
        fresh.tls.certificates = vec!["/a.pem".into()];
        fresh.tls.client_ca = Some("/b.pem".into());
        fresh.tls.client_certificates = ClientCertificates::Required;
        assert_eq!(contradictions(&running, &fresh).len(), 1);
    }

    #[test]
    fn addresses_reactors_and_engine_need_a_restart_and_policies_do_not() {
        let effect = |path: &str| super::super::schema::find(path).map(|key| key.effect);
        for key in keys() {
            let section = key.path.split('.').next().unwrap_or_default();
            match section {
                "engine" => assert_eq!(key.effect, Effect::Restart, "{}", key.path),
                // Slots are sized once.
                _ if key.path == "limits.max_connections" => {}
                // Its thread starts with the daemon.
                _ if key.path.starts_with("metrics.push.") => {
                    assert_eq!(key.effect, Effect::Restart, "{}", key.path);
                }
                "auth" | "rate_limit" | "limits" | "metrics" => {
                    assert_eq!(key.effect, Effect::Reload, "{}", key.path);
                }
                _ => {}
            }
        }
        assert_eq!(effect("server.listen"), Some(Effect::Restart));
        assert_eq!(effect("server.reactors"), Some(Effect::Restart));
        assert_eq!(effect("limits.max_connections"), Some(Effect::Restart));
        assert_eq!(effect("log.level"), Some(Effect::Reload));
    }
}
