//! Rules between several values: each is a few lines over a finished `Config`.
//!
//! A rule names its keys. The loader puts the message where the first of them was set, and skips
//! rules about a key whose own value was already refused.

use std::path::Path;

use super::address::{Listen, Place, Security};
use super::database::StoreUrl;
use super::named::MODELS;
use super::problem::quote;
use super::schema::Config;
use super::tls::ClientCertificates;
use super::units::{print_duration, print_size_bytes};
use super::words::{BusKind, CachePolicy, EngineKind, LogFormat, word};
use crate::core::disk_shares::{budget_for_prefixes, prefixes_max};

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub keys: &'static [&'static str],
    pub message: String,
}

/// Returns the broken rules that make the configuration unusable.
pub fn errors(config: &Config) -> Vec<Finding> {
    let found = [
        unguarded(config),
        long_uri(config),
        long_default(config),
        narrow_buffers(config),
        journald_file(config),
        unpaired_keys(config),
        tls_without_certificate(config),
        clients_without_authority(config),
        clients_not_asked(config),
        clear_text_beside_required(config),
        proxied_without_proxies(config),
        database_without_authority(config),
        password_without_server(config),
        password_without_redis(config),
        gossip_without_address(config),
        gossip_without_secret(config),
        kafka_not_compiled(config),
        kafka_without_brokers(config),
        prefixes_beyond_the_folder(config),
    ];
    found.into_iter().flatten().collect()
}

/// Returns settings that are allowed but seldom meant.
pub fn warnings(config: &Config) -> Vec<Finding> {
    let found = [
        open_door(config),
        certificates_unused(config),
        everybody_trusted(config),
        echo(config),
        unused_model_section(config),
        jobs_beyond_the_folder(config),
        policy_without_entries(config),
        members_without_gossip(config),
        keys_of_idempotency_beyond_their_jobs(config),
    ];
    found.into_iter().flatten().collect()
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
            "auth.enabled is false, but server.listen has \"{exposed}\"; without keys every \
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

fn database_without_authority(config: &Config) -> Option<Finding> {
    let store = &config.store;
    (store.url.needs_tls() && store.ca.is_none()).then(|| Finding {
        keys: &["store.url", "store.ca"],
        message:
            "store.url leads to another machine or requires TLS, but store.ca is not set; set \
                  it to the file with the authorities, such as \
                  /etc/ssl/certs/ca-certificates.crt, or add ?sslmode=disable to the URL"
                .to_owned(),
    })
}

fn password_without_server(config: &Config) -> Option<Finding> {
    let store = &config.store;
    let is_unused = store.url == StoreUrl::Sqlite && store.password_file.is_some();
    is_unused.then(|| Finding {
        keys: &["store.password_file", "store.url"],
        message: "store.password_file is set, but store.url is \"sqlite\", which needs no \
                  password; set store.url or remove it"
            .to_owned(),
    })
}

fn password_without_redis(config: &Config) -> Option<Finding> {
    let shared = &config.cache_shared;
    let is_unused = shared.url.is_none() && shared.password_file.is_some();
    is_unused.then(|| Finding {
        keys: &["cache.shared.password_file", "cache.shared.url"],
        message: "cache.shared.password_file is set, but cache.shared.url is empty; set \
                  cache.shared.url or remove it"
            .to_owned(),
    })
}

/// A growing body takes up to twice its length.
fn narrow_buffers(config: &Config) -> Option<Finding> {
    let (buffered, body) = (config.limits.max_buffered, config.limits.max_body);
    (buffered != 0 && buffered / 2 < body).then(|| Finding {
        keys: &["limits.max_buffered", "limits.max_body"],
        message: format!(
            "limits.max_buffered is {}; expected at least twice limits.max_body, which is {}",
            print_size_bytes(buffered as u64),
            print_size_bytes(body as u64)
        ),
    })
}

fn journald_file(config: &Config) -> Option<Finding> {
    let both = config.log.format == LogFormat::Journald && config.log.file.is_some();
    both.then(|| Finding {
        keys: &["log.file", "log.format"],
        message: "log.file is set, but log.format = \"journald\" writes to the journal; set \
                  log.format to \"text\" or \"json\", or remove log.file"
            .to_owned(),
    })
}

fn unpaired_keys(config: &Config) -> Option<Finding> {
    let (certificates, keys) = (config.tls.certificates.len(), config.tls.keys.len());
    (keys != 0 && keys != certificates).then(|| Finding {
        keys: &["server.tls.keys", "server.tls.certificates"],
        message: format!(
            "server.tls.keys has {keys} files, but server.tls.certificates has {certificates}; \
             expected the same number in the same order, or no keys if each certificate's file \
             holds its key"
        ),
    })
}

fn tls_without_certificate(config: &Config) -> Option<Finding> {
    let mut listeners = config.server.listen.iter();
    let listener = listeners.find(|listen| listen.security == Security::Tls)?;
    config.tls.certificates.is_empty().then(|| Finding {
        keys: &["server.listen", "server.tls.certificates"],
        message: format!(
            "server.listen has \"{listener}\", but server.tls.certificates is empty; TLS needs a \
             certificate"
        ),
    })
}

fn clients_without_authority(config: &Config) -> Option<Finding> {
    let asked = config.tls.client_certificates != ClientCertificates::Off;
    (asked && config.tls.client_ca.is_none()).then(|| Finding {
        keys: &["server.tls.client_certificates", "server.tls.client_ca"],
        message: format!(
            "server.tls.client_certificates is {:?}, but server.tls.client_ca is empty; set it to \
             the PEM file of the authorities that sign clients' certificates",
            word(config.tls.client_certificates)
        ),
    })
}

fn clients_not_asked(config: &Config) -> Option<Finding> {
    let off = config.tls.client_certificates == ClientCertificates::Off;
    let keys: &'static [&'static str] =
        match (&config.tls.client_ca, config.tls.client_keys.is_empty()) {
            (_, false) => &["server.tls.client_keys", "server.tls.client_certificates"],
            (Some(_), true) => &["server.tls.client_ca", "server.tls.client_certificates"],
            (None, true) => return None,
        };
    off.then(|| Finding {
        keys,
        message: format!(
            "{} is set, but server.tls.client_certificates is \"off\", so no client sends a \
             certificate; set it to \"optional\" or \"required\"",
            keys[0]
        ),
    })
}

/// A listener that accepts clear text serves clients without any certificate.
fn clear_text_beside_required(config: &Config) -> Option<Finding> {
    let mut listeners = config.server.listen.iter();
    let listener = listeners.find(|listen| listen.security != Security::Tls)?;
    let required = config.tls.client_certificates == ClientCertificates::Required;
    required.then(|| Finding {
        keys: &["server.tls.client_certificates", "server.listen"],
        message: format!(
            "server.tls.client_certificates is \"required\", but server.listen has \"{listener}\", \
             which accepts clear text without a certificate; put \"tls:\" before every address, or \
             use \"optional\""
        ),
    })
}

fn proxied_without_proxies(config: &Config) -> Option<Finding> {
    let is_unix = |listen: &Listen| matches!(listen.place, Place::Unix(_));
    let mut listeners = config.server.listen.iter();
    let listener = listeners.find(|listen| listen.proxied && !is_unix(listen))?;
    let proxies = &config.server.trusted_proxies;
    proxies.is_empty().then(|| Finding {
        keys: &["server.listen", "server.trusted_proxies"],
        message: format!(
            "server.listen has \"{listener}\", but server.trusted_proxies is empty, so every \
             connection would be refused; add the proxies' addresses to server.trusted_proxies"
        ),
    })
}

fn gossip_without_address(config: &Config) -> Option<Finding> {
    let is_missing = config.bus.kind == BusKind::Gossip && config.bus.listen.is_none();
    is_missing.then(|| Finding {
        keys: &["bus.kind", "bus.listen"],
        message: "bus.kind is \"gossip\", but bus.listen is empty; set it to the address and UDP \
                  port at which the other daemons reach this machine"
            .to_owned(),
    })
}

fn gossip_without_secret(config: &Config) -> Option<Finding> {
    let is_missing = config.bus.kind == BusKind::Gossip && config.bus.secret_file.is_none();
    is_missing.then(|| Finding {
        keys: &["bus.kind", "bus.secret_file"],
        message: "bus.kind is \"gossip\", but bus.secret_file is empty; any host could make this \
                  daemon a member of another cluster; write the same secret into a file on each \
                  machine (`openssl rand -base64 32`)"
            .to_owned(),
    })
}

fn kafka_not_compiled(config: &Config) -> Option<Finding> {
    let is_missing = config.bus.kind == BusKind::Kafka && !cfg!(feature = "kafka");
    is_missing.then(|| Finding {
        keys: &["bus.kind"],
        message: "bus.kind is \"kafka\", but this binary was built without Kafka; build it with \
                  `cargo build --release --features kafka`, or set bus.kind to \"redis\" or \
                  \"gossip\""
            .to_owned(),
    })
}

fn kafka_without_brokers(config: &Config) -> Option<Finding> {
    let is_missing = config.bus.kind == BusKind::Kafka && config.bus.brokers.is_empty();
    is_missing.then(|| Finding {
        keys: &["bus.kind", "bus.brokers"],
        message: "bus.kind is \"kafka\", but bus.brokers is empty; set it to some of the brokers, \
                  such as [\"kafka-1.example:9092\"]"
            .to_owned(),
    })
}

fn prefixes_beyond_the_folder(config: &Config) -> Option<Finding> {
    let (wanted, budget) = (config.cache.prefixes as u64, config.store.max_size);
    let has_database = config.has_database_file();
    let most = prefixes_max(budget, has_database);
    let needed = budget_for_prefixes(wanted, has_database).next_multiple_of(1 << 20);
    (wanted > most).then(|| Finding {
        keys: &["cache.prefixes", "store.max_size"],
        message: format!(
            "cache.prefixes is {}, but store.max_size, the budget of the whole state folder, is \
             {}; prefixes may have up to {} of it{}: set store.max_size to {} or more, or \
             cache.prefixes to {} or less",
            print_size_bytes(wanted),
            print_size_bytes(budget),
            print_size_bytes(most),
            if has_database {
                " beside the database"
            } else {
                ""
            },
            print_size_bytes(needed),
            print_size_bytes(most),
        ),
    })
}

fn jobs_beyond_the_folder(config: &Config) -> Option<Finding> {
    let (wanted, most) = (config.jobs.max_size as u64, config.jobs_bytes());
    (wanted > most).then(|| Finding {
        keys: &["jobs.max_size", "store.max_size"],
        message: format!(
            "jobs.max_size is {}, but of store.max_size, the budget of the whole state folder, \
             jobs may have {} bytes, which is their bound",
            print_size_bytes(wanted),
            most,
        ),
    })
}

/// Certificates that no listener can show.
fn certificates_unused(config: &Config) -> Option<Finding> {
    let mut listeners = config.server.listen.iter();
    let is_clear = listeners.all(|listen| listen.security == Security::Clear);
    (is_clear && !config.tls.certificates.is_empty()).then(|| Finding {
        keys: &["server.tls.certificates", "server.listen"],
        message: "server.tls.certificates is set, but every address in server.listen begins with \
                  \"clear:\", so TLS is never used"
            .to_owned(),
    })
}

fn everybody_trusted(config: &Config) -> Option<Finding> {
    let network = config.server.trusted_proxies.everything()?;
    Some(Finding {
        keys: &["server.trusted_proxies"],
        message: format!(
            "server.trusted_proxies has \"{network}\", so every client may choose the address \
             under which it is limited and logged"
        ),
    })
}

fn open_door(config: &Config) -> Option<Finding> {
    (!config.auth.enabled).then(|| Finding {
        keys: &["auth.enabled"],
        message: "auth.enabled is false: every user of this machine may generate without a key"
            .to_owned(),
    })
}

fn echo(config: &Config) -> Option<Finding> {
    (config.engine.kind == EngineKind::Echo).then(|| Finding {
        keys: &["engine.kind"],
        message: format!(
            "engine.kind is {:?}: every response is the same fixed program and no model runs",
            word(config.engine.kind)
        ),
    })
}

fn unused_model_section(config: &Config) -> Option<Finding> {
    let is_served = |name: &String| {
        let names = |model: &String| {
            let stem = Path::new(model).file_stem();
            model == name || stem.is_some_and(|stem| stem == name.as_str())
        };
        config.engine.model.iter().any(names)
    };
    let name = config.models.keys().find(|name| !is_served(name))?;
    Some(Finding {
        keys: &["engine.model"],
        message: format!(
            "engine.model does not have the model of [{}], so that section has no effect",
            quote(&MODELS.path(name))
        ),
    })
}

fn policy_without_entries(config: &Config) -> Option<Finding> {
    let cache = &config.cache;
    let has_effect = cache.persist || cache.policy == CachePolicy::ReadThrough;
    (!has_effect).then(|| Finding {
        keys: &["cache.policy", "cache.persist"],
        message: format!(
            "cache.policy is {:?}, but cache.persist is false, so the store has no results and \
             the policy has no effect",
            word(cache.policy)
        ),
    })
}

fn members_without_gossip(config: &Config) -> Option<Finding> {
    let bus = &config.bus;
    let is_set = bus.listen.is_some() || !bus.peers.is_empty() || bus.secret_file.is_some();
    (is_set && bus.kind != BusKind::Gossip).then(|| Finding {
        keys: &["bus.kind", "bus.listen", "bus.peers", "bus.secret_file"],
        message: format!(
            "bus.kind is {:?}, so bus.listen, bus.peers and bus.secret_file have no effect; they \
             are for bus.kind = \"gossip\"",
            word(bus.kind)
        ),
    })
}

/// A job may run for long, so the key may be remembered for longer than this says.
fn keys_of_idempotency_beyond_their_jobs(config: &Config) -> Option<Finding> {
    let (wanted, kept) = (config.jobs.idempotency_ttl, config.jobs.keep);
    (wanted > kept).then(|| Finding {
        keys: &["jobs.idempotency_ttl", "jobs.keep"],
        message: format!(
            "jobs.idempotency_ttl is {}, but a job is deleted {} after its end (jobs.keep), and an \
             `Idempotency-Key` goes with its job: a retry after that runs again; set jobs.keep to \
             as much",
            print_duration(wanted),
            print_duration(kept),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClientKey, RedisUrl, TrustedProxies, schema};

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

    /// Mutations: either rule left out of `errors`.
    #[test]
    fn a_password_without_its_server_is_reported() {
        let mut config = Config::default();
        config.cache_shared.password_file = Some("/tmp/a".into());
        config.store.password_file = Some("/tmp/b".into());
        let found: Vec<_> = errors(&config).iter().map(|found| found.keys[0]).collect();
        assert_eq!(found, ["store.password_file", "cache.shared.password_file"]);
        config.cache_shared.url = Some(RedisUrl::parse("redis://a:1").expect("a URL"));
        assert_eq!(errors(&config).len(), 1);
    }

    /// Mutations: the rule left out of `errors`; a budget in the message that is not enough; the
    /// same rule for both databases.
    #[test]
    fn prefixes_larger_than_the_folder_are_refused_with_the_way_out() {
        let mut config = Config::default();
        config.cache.prefixes = 2 << 30;
        let found = errors(&config);
        assert_eq!(found[0].keys, ["cache.prefixes", "store.max_size"]);
        assert_eq!(
            found[0].message,
            "cache.prefixes is 2GiB, but store.max_size, the budget of the whole state folder, is \
             1GiB; prefixes may have up to 512MiB of it beside the database: set store.max_size to \
             4GiB or more, or cache.prefixes to 512MiB or less"
        );
        config.store.max_size = 4 << 30;
        assert_eq!((errors(&config), warnings(&config)), (vec![], vec![]));
        config.store.url = StoreUrl::parse("postgres://a@%2Frun/c").expect("a URL");
        config.cache.prefixes = (4 << 30) - (65 << 20);
        assert_eq!(errors(&config), []);
        config.cache.prefixes += 1;
        assert!(
            errors(&config)[0]
                .message
                .contains("or cache.prefixes to 4031MiB or less")
        );
    }

    /// Mutation: the bound on jobs without the folder's.
    #[test]
    fn a_small_folder_bounds_the_jobs() {
        let mut config = Config::default();
        assert_eq!(config.jobs_bytes(), config.jobs.max_size as u64);
        config.store.max_size = 64 << 20;
        assert_eq!(config.jobs_bytes(), config.disk_shares().database / 2);
        assert_eq!(
            warnings(&config)[0].keys,
            ["jobs.max_size", "store.max_size"]
        );
        config.store.url = StoreUrl::parse("postgres://a@%2Frun/c").expect("a URL");
        assert_eq!(warnings(&config), []);
        assert_eq!(config.entries_bytes(), 16 << 20);
    }

    /// Mutations: a rule left out of `warnings`; one that does not look at the other key.
    #[test]
    fn settings_without_effect_are_reported() {
        let mut config = Config::default();
        config.cache.policy = CachePolicy::WriteBehind;
        config.bus.peers = vec!["192.0.2.1:7946".parse().expect("an address")];
        config.jobs.keep -= std::time::Duration::from_millis(1);
        let keys: Vec<_> = warnings(&config).iter().map(|it| it.keys[0]).collect();
        assert_eq!(keys, ["cache.policy", "bus.kind", "jobs.idempotency_ttl"]);
        config.cache.persist = true;
        config.bus.kind = BusKind::Gossip;
        config.jobs.idempotency_ttl = config.jobs.keep;
        assert_eq!(warnings(&config), []);
    }

    #[test]
    fn settings_that_only_seem_to_require_certificates_or_tls_are_reported() {
        let mut config = Config::default();
        config.tls.certificates = vec!["/tmp/site.pem".into()];
        config.tls.client_ca = Some("/tmp/ca.pem".into());
        assert!(
            errors(&config)[0]
                .message
                .starts_with("server.tls.client_ca is set")
        );
        config.tls.client_certificates = ClientCertificates::Optional;
        assert_eq!((errors(&config), warnings(&config)), (vec![], vec![]));
        config.server.listen = vec![Listen::parse("clear:127.0.0.1:1").expect("an address")];
        assert!(warnings(&config)[0].message.ends_with("TLS is never used"));
    }

    #[test]
    fn an_address_for_proxies_needs_proxies() {
        let mut config = Config::default();
        for (address, proxies, expected) in [
            ("proxy:127.0.0.1:1", &[][..], 1),
            ("proxy:fd:web", &[], 1),
            ("proxy:unix:/run/a", &[], 0),
            ("127.0.0.1:1", &[], 0),
            ("proxy:127.0.0.1:1", &["127.0.0.1"], 0),
        ] {
            config.server.listen = vec![Listen::parse(address).expect("an address")];
            config.server.trusted_proxies = TrustedProxies::parse(proxies).expect("networks");
            assert_eq!(errors(&config).len(), expected, "{address} {proxies:?}");
            assert_eq!(warnings(&config), []);
        }
        for everything in ["0.0.0.0/0", "::/0"] {
            config.server.trusted_proxies = TrustedProxies::parse(&[everything]).expect("one");
            assert_eq!(warnings(&config).len(), 1);
        }
    }

    /// A mutation that this test catches: `!= Security::Tls` made `== Security::Clear`.
    #[test]
    fn a_required_certificate_leaves_no_address_for_clear_text() {
        let mut config = Config::default();
        config.tls.certificates = vec!["/tmp/site.pem".into()];
        config.tls.client_ca = Some("/tmp/ca.pem".into());
        config.tls.client_certificates = ClientCertificates::Required;
        for (address, expected) in [
            ("tls:127.0.0.1:1", 0),
            ("tls:unix:/run/a", 0),
            ("tls:fd:web", 0),
            ("127.0.0.1:1", 1),
            ("unix:/run/a", 1),
            ("fd:web", 1),
            ("clear:127.0.0.1:1", 1),
        ] {
            config.server.listen = vec![
                Listen::parse("tls:127.0.0.1:2").expect("an address"),
                Listen::parse(address).expect("an address"),
            ];
            assert_eq!(errors(&config).len(), expected, "{address}");
        }
        config.tls.client_certificates = ClientCertificates::Optional;
        assert_eq!(errors(&config), [], "optional says that there may be none");
    }

    #[test]
    fn kafka_needs_its_feature_and_brokers() {
        let mut config = Config::default();
        config.bus.kind = BusKind::Kafka;
        let found = |config: &Config| -> Vec<&'static [&'static str]> {
            errors(config).iter().map(|finding| finding.keys).collect()
        };
        let brokers: &[&str] = &["bus.kind", "bus.brokers"];
        let feature: &[&str] = &["bus.kind"];
        assert!(found(&config).contains(&brokers));
        config.bus.brokers = vec!["kafka-1.example:9092".to_owned()];
        assert!(!found(&config).contains(&brokers));
        assert_eq!(found(&config).contains(&feature), !cfg!(feature = "kafka"));
    }

    #[test]
    fn every_rule_speaks_of_keys_that_exist() {
        let mut config = Config::default();
        config.auth.enabled = false;
        config.server.listen = vec![
            Listen::parse("proxy:fd:web").expect("an address"),
            Listen::parse("tls:127.0.0.1:1").expect("an address"),
        ];
        config.tls.keys = vec!["/tmp/a".into()];
        config.tls.client_keys = vec![ClientKey::parse("cn:a = b").expect("a pair")];
        config.limits.max_uri = config.limits.max_head + 1;
        config.limits.max_buffered = config.limits.max_body;
        config.limits.default_request_timeout = config.limits.max_request_timeout * 2;
        config.log.format = LogFormat::Journald;
        config.log.file = Some("/tmp/a".into());
        config.engine.kind = EngineKind::Echo;
        config.bus.kind = BusKind::Gossip;
        let (errors, warnings) = (errors(&config), warnings(&config));
        assert_eq!((errors.len(), warnings.len()), (11, 2));
        config.tls.client_certificates = ClientCertificates::Required;
        let unsigned = super::errors(&config);
        // An authority is missing now, not the request for certificates, and `fd:web` accepts clear
        // text.
        assert_eq!(unsigned.len(), 12);
        for finding in errors.iter().chain(&warnings).chain(&unsigned) {
            assert!(
                finding.keys.iter().all(|path| schema::find(path).is_some()),
                "{finding:?}"
            );
        }
    }
}
