//! The kinds of values that keys have: one constant each, or one function if a range belongs to the
//! kind.
//!
//! To add a kind, start from [`TEXT`] and state the differences.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::address::{Listen, Place};
use super::database::StoreUrl;
use super::hosts::Hosts;
use super::kind::{List, ValueKind};
use super::networks::Networks;
use super::proxies::TrustedProxies;
use super::redis_url::RedisUrl;
use super::tls::ClientKey;
use super::units;
use super::value::{Value, toml_string};
use super::words::{Word, words};
use crate::http::origin::{BadUrl, Origin};
use crate::limits::config as limits;

/// Any text: the starting point of the other kinds.
const TEXT: ValueKind = ValueKind {
    name: "string",
    plural: "strings",
    example: "",
    expected: |_| format!("a text of at most {} bytes", limits::TEXT_BYTES_MAX),
    advice: |_| None,
    range: |_| format!("up to {} bytes", limits::TEXT_BYTES_MAX),
    words: Vec::new,
    bounds: 0..=limits::TEXT_BYTES_MAX as u64,
    measure: |value| match value {
        // Paths and names end at a NUL once they reach the kernel or the engine.
        Value::Text(text) if !text.contains('\0') => Some(text.len() as u64),
        _ => None,
    },
    from_toml: |_| None,
    from_text: |text| Some(Value::Text(text.to_owned())),
    print: |value| match value {
        Value::Text(text) => toml_string(text),
        _ => String::new(),
    },
    list: None,
};

pub const SWITCH: ValueKind = ValueKind {
    name: "boolean",
    expected: |_| "true or false".to_owned(),
    range: |kind| (kind.words)().join(", "),
    words: || vec!["true", "false"],
    bounds: 0..=1,
    measure: |value| match value {
        Value::Switch(on) => Some(u64::from(*on)),
        _ => None,
    },
    from_toml: |value| value.as_bool().map(Value::Switch),
    from_text: |text| text.parse().ok().map(Value::Switch),
    print: |value| match value {
        Value::Switch(on) => on.to_string(),
        _ => String::new(),
    },
    ..TEXT
};

/// A whole number.
pub const fn number(bounds: RangeInclusive<u64>) -> ValueKind {
    ValueKind {
        name: "integer",
        expected: |kind| format!("a whole number from {}", kind.range()),
        range: |kind| format!("{} to {}", kind.bounds.start(), kind.bounds.end()),
        bounds,
        measure: |value| match value {
            Value::Number(number) => Some(*number),
            _ => None,
        },
        from_toml: integer,
        from_text: |text| digits(text).map(Value::Number),
        print: |value| match value {
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        },
        ..TEXT
    }
}

/// A number of bytes, with or without a unit.
pub const fn size(bounds: RangeInclusive<u64>) -> ValueKind {
    ValueKind {
        name: "size",
        expected: |kind| format!("a size such as \"64KiB\", from {}", kind.range()),
        range: |kind| {
            let [start, end] = [kind.bounds.start(), kind.bounds.end()];
            let (start, end) = (
                units::print_size_bytes(*start),
                units::print_size_bytes(*end),
            );
            format!("{start} to {end}")
        },
        from_toml: |value| match value {
            DeValue::String(text) => units::parse_size_bytes(text).map(Value::Number),
            other => integer(other),
        },
        from_text: |text| units::parse_size_bytes(text).map(Value::Number),
        print: |value| match value {
            Value::Number(bytes) => match units::print_size_bytes(*bytes) {
                plain if plain.bytes().all(|byte| byte.is_ascii_digit()) => plain,
                with_unit => toml_string(&with_unit),
            },
            _ => String::new(),
        },
        ..number(bounds)
    }
}

/// A duration with its unit; the range is in milliseconds.
pub const fn time(bounds: RangeInclusive<u64>) -> ValueKind {
    ValueKind {
        name: "duration",
        expected: |kind| format!("a duration such as \"10s\", from {}", kind.range()),
        range: |kind| {
            let [start, end] = [kind.bounds.start(), kind.bounds.end()];
            let (start, end) = (
                units::print_duration_ms(*start),
                units::print_duration_ms(*end),
            );
            format!("{start} to {end}")
        },
        bounds,
        measure: |value| match value {
            Value::Time(time) => u64::try_from(time.as_millis()).ok(),
            _ => None,
        },
        from_toml: |value| duration(value.as_str()?),
        from_text: duration,
        print: |value| match value {
            Value::Time(time) => toml_string(&units::print_duration(*time)),
            _ => String::new(),
        },
        ..TEXT
    }
}

/// One of the words of a type.
pub const fn word_of<T: Word>() -> ValueKind {
    ValueKind {
        name: "word",
        expected: |kind| {
            let words = (kind.words)();
            let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
            match &quoted[..] {
                [first, second] => format!("{first} or {second}"),
                several => format!("one of {}", several.join(", ")),
            }
        },
        range: |kind| (kind.words)().join(", "),
        words: words::<T>,
        from_toml: |value| word::<T>(value.as_str()?),
        from_text: word::<T>,
        ..TEXT
    }
}

/// A path; empty text means none.
pub const PATH: ValueKind = ValueKind {
    name: "path",
    expected: |_| {
        format!(
            "a path of at most {} bytes, or \"\"",
            limits::TEXT_BYTES_MAX
        )
    },
    from_toml: |value| value.as_str().map(|text| Value::Text(text.to_owned())),
    ..TEXT
};

/// The address of Redis; empty text means none.
pub const REDIS_URL: ValueKind = ValueKind {
    name: "URL",
    expected: |_| RedisUrl::EXPECTED.to_owned(),
    advice: RedisUrl::advice,
    from_toml: |value| redis_url(value.as_str()?),
    from_text: redis_url,
    ..TEXT
};

/// The URL of an HTTP server; empty text means none.
pub const HTTP_URL: ValueKind = ValueKind {
    name: "URL",
    expected: |_| "\"http://HOST:PORT/PATH\", the same with https, or \"\"".to_owned(),
    advice: |text| match Origin::parse(text).err()? {
        BadUrl::Scheme => None,
        BadUrl::TooLong => Some("a URL of at most 2048 bytes"),
        BadUrl::UserInformation => Some(
            "a URL without a user and a password, because the configuration is shown and logged; \
             name a file in metrics.push.token_file, or a field in metrics.push.headers",
        ),
        BadUrl::Host => Some(
            "the name or the address of a host behind \"://\", as in \
             \"http://collector.example:4318/v1/metrics\" or \"http://[::1]:4318/v1/metrics\"",
        ),
        BadUrl::Port => Some("a port from 1 to 65535 behind the host, or none"),
        BadUrl::Target => Some("a path of visible ASCII, with other bytes as %XX"),
    },
    from_toml: |value| http_url(value.as_str()?),
    from_text: http_url,
    ..TEXT
};

/// The address of a UDP socket that others reach; empty text means none.
pub const SOCKET: ValueKind = ValueKind {
    name: "socket address",
    expected: |_| "an address and a port such as \"10.0.0.1:7946\", or \"\"".to_owned(),
    advice: socket_advice,
    from_toml: |value| own_socket(value.as_str()?),
    from_text: own_socket,
    ..TEXT
};

const PEER: ValueKind = ValueKind {
    plural: "socket addresses",
    example: "10.0.0.2:7946",
    expected: |_| "an address and a port such as \"10.0.0.2:7946\"".to_owned(),
    advice: socket_advice,
    from_toml: |value| socket(value.as_str()?),
    from_text: socket,
    ..TEXT
};

/// Addresses of other members.
pub const PEERS: ValueKind = list_of(&PEER, limits::PEERS);

const BROKER: ValueKind = ValueKind {
    plural: "brokers",
    example: "kafka-1.example:9092",
    expected: |_| "a host and a port such as \"kafka-1.example:9092\"".to_owned(),
    advice: broker_advice,
    from_toml: |value| broker(value.as_str()?),
    from_text: broker,
    ..TEXT
};

/// Servers of Kafka.
pub const BROKERS: ValueKind = list_of(&BROKER, limits::BROKER_ITEMS);

/// Its own reader comes later: a message about a value of this kind would show it.
const HEADER: ValueKind = ValueKind {
    plural: "fields",
    example: "x-scope-orgid=team",
    measure: |value| match value {
        Value::Text(text) => Some(text.len() as u64),
        _ => None,
    },
    from_toml: |value| value.as_str().map(|text| Value::Text(text.to_owned())),
    ..ELEMENT
};

/// Fields of the requests to a collector. See [`super::PushHeader`].
pub const HEADERS: ValueKind = list_of(&HEADER, limits::PUSH_HEADER_ITEMS);

/// The name of a topic of Kafka.
pub const TOPIC: ValueKind = ValueKind {
    name: "topic",
    expected: |kind| {
        let most = kind.bounds.end();
        format!("a topic of 1 to {most} letters, digits, \".\", \"_\" and \"-\"")
    },
    bounds: 1..=limits::TOPIC_BYTES_MAX,
    from_toml: |value| topic(value.as_str()?),
    from_text: topic,
    ..TEXT
};

/// An element of a list: any text that its own reader accepts.
const ELEMENT: ValueKind = ValueKind {
    bounds: 0..=u64::MAX,
    ..TEXT
};

const ADDRESS: ValueKind = ValueKind {
    name: "address",
    plural: "addresses",
    example: "127.0.0.1:8080",
    expected: |_| Listen::EXPECTED.to_owned(),
    advice: Listen::advice,
    from_toml: |value| address(value.as_str()?),
    from_text: address,
    ..ELEMENT
};

/// Addresses to listen on. The same one twice could only fail later, when it is bound.
pub const ADDRESSES: ValueKind = ValueKind {
    list: Some(List {
        element: &ADDRESS,
        may_stand_alone: false,
        repeats: |one, other| match (place(one), place(other)) {
            (Some(Place::Tcp(address)), _) if address.port() == 0 => false,
            (one, other) => one == other,
        },
    }),
    ..list_of(&ADDRESS, limits::ADDRESSES)
};

const MODEL: ValueKind = ValueKind {
    expected: |_| {
        let most = limits::TEXT_BYTES_MAX;
        format!("a model's name or path of 1 to {most} bytes")
    },
    from_toml: |value| model(value.as_str()?),
    from_text: model,
    ..TEXT
};

/// Names or paths of models: one text, or a list of them.
pub const MODELS: ValueKind = ValueKind {
    list: Some(List {
        may_stand_alone: true,
        ..List::of(&MODEL)
    }),
    ..list_of(&MODEL, limits::MODELS)
};

const FILE: ValueKind = ValueKind {
    plural: "paths",
    example: "/etc/autoglmd/site.pem",
    expected: |_| format!("a path of 1 to {} bytes", limits::TEXT_BYTES_MAX),
    from_toml: |value| file(value.as_str()?),
    from_text: file,
    ..PATH
};

/// Paths of files.
pub const FILES: ValueKind = list_of(&FILE, limits::CERTIFICATE_FILES);

const CLIENT_KEY: ValueKind = ValueKind {
    plural: "pairs",
    example: ClientKey::EXAMPLE,
    expected: |_| ClientKey::EXPECTED.to_owned(),
    from_toml: |value| client_key(value.as_str()?),
    from_text: client_key,
    ..ELEMENT
};

/// Pairs of a client's name and a key.
pub const CLIENT_KEYS: ValueKind = list_of(&CLIENT_KEY, limits::CLIENT_KEYS);

const NETWORK: ValueKind = ValueKind {
    plural: "networks",
    example: TrustedProxies::EXAMPLE,
    expected: |_| TrustedProxies::EXPECTED.to_owned(),
    from_toml: |value| network(value.as_str()?),
    from_text: network,
    ..ELEMENT
};

/// Networks of trusted proxies.
pub const NETWORKS: ValueKind = list_of(&NETWORK, limits::TRUSTED_PROXIES);

const ALLOWED_NETWORK: ValueKind = ValueKind {
    plural: "networks",
    example: Networks::EXAMPLE,
    expected: |_| Networks::EXPECTED.to_owned(),
    from_toml: |value| allowed_network(value.as_str()?),
    from_text: allowed_network,
    ..ELEMENT
};

/// Networks that are not public.
pub const ALLOWED_NETWORKS: ValueKind = list_of(&ALLOWED_NETWORK, limits::CALLBACK_NETWORK_ITEMS);

const HOST: ValueKind = ValueKind {
    plural: "host names",
    example: Hosts::EXAMPLE,
    expected: |_| Hosts::EXPECTED.to_owned(),
    from_toml: |value| host(value.as_str()?),
    from_text: host,
    ..ELEMENT
};

/// Names of this machine.
pub const HOSTS: ValueKind = list_of(&HOST, limits::HOSTS);

/// `sqlite`, or the URL of a PostgreSQL database.
pub const STORE_URL: ValueKind = ValueKind {
    name: "url",
    expected: |_| StoreUrl::EXPECTED.to_owned(),
    advice: StoreUrl::advice,
    range: |_| "`sqlite`, `postgres://...`".to_owned(),
    from_toml: |value| store_url(value.as_str()?),
    from_text: store_url,
    ..TEXT
};

/// A list of one kind's values.
pub const fn list_of(element: &'static ValueKind, bounds: RangeInclusive<usize>) -> ValueKind {
    ValueKind {
        expected: ValueKind::expected_list,
        range: |kind| format!("{} to {}", kind.bounds.start(), kind.bounds.end()),
        bounds: *bounds.start() as u64..=*bounds.end() as u64,
        measure: |value| match value {
            Value::List(list) => Some(list.len() as u64),
            _ => None,
        },
        list: Some(List::of(element)),
        ..TEXT
    }
}

fn integer(value: &DeValue<'_>) -> Option<Value> {
    let DeValue::Integer(integer) = value else {
        return None;
    };
    let number = u64::from_str_radix(integer.as_str(), integer.radix());
    number.ok().map(Value::Number)
}

fn duration(text: &str) -> Option<Value> {
    let milliseconds = units::parse_duration_ms(text)?;
    Some(Value::Time(Duration::from_millis(milliseconds)))
}

fn word<T: Word>(text: &str) -> Option<Value> {
    text_if(words::<T>().contains(&text), text)
}

/// Parses an address in the form in which addresses are printed.
fn address(text: &str) -> Option<Value> {
    Listen::parse(text).map(|listen| Value::Text(listen.to_string()))
}

fn model(text: &str) -> Option<Value> {
    text_if(!text.trim().is_empty(), text)
}

fn file(text: &str) -> Option<Value> {
    text_if(!text.is_empty(), text)
}

fn client_key(text: &str) -> Option<Value> {
    text_if(ClientKey::parse(text).is_some(), text)
}

fn network(text: &str) -> Option<Value> {
    text_if(TrustedProxies::takes(text), text)
}

fn allowed_network(text: &str) -> Option<Value> {
    text_if(Networks::takes(text), text)
}

fn own_socket(text: &str) -> Option<Value> {
    match text.is_empty() {
        true => Some(Value::Text(String::new())),
        false => socket(text),
    }
}

/// A member must be reachable, so "any address" is not one, and neither is "any port".
fn socket(text: &str) -> Option<Value> {
    let address: SocketAddr = text.parse().ok()?;
    text_if(!address.ip().is_unspecified() && address.port() != 0, text)
}

/// Names what keeps other members from reaching an address, or from finding it.
fn socket_advice(text: &str) -> Option<&'static str> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address.port() {
            0 => Some("a port from 1 to 65535: the other members must know it"),
            _ => Some("the one address at which the other members reach this machine"),
        };
    }
    if text.contains("://") {
        return Some("an address and a port without a scheme, such as \"10.0.0.1:7946\"");
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some("an IPv6 address in brackets and a port, such as \"[fd00::1]:7946\"");
    }
    let (host, _) = text.rsplit_once(':')?;
    let is_name = Hosts::takes(host) && host.parse::<IpAddr>().is_err();
    is_name.then_some("an address in place of the name, and a port, such as \"10.0.0.1:7946\"")
}

fn broker_advice(text: &str) -> Option<&'static str> {
    if text.contains("://") {
        return Some("a host and a port without a scheme, such as \"kafka-1.example:9092\"");
    }
    let is_bare = text.parse::<Ipv6Addr>().is_ok();
    is_bare.then_some("an IPv6 address in brackets and a port, such as \"[fd00::1]:9092\"")
}

fn broker(text: &str) -> Option<Value> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = digits(port)?.try_into().ok()?;
    // Without its brackets an IPv6 address swallows the port.
    let is_host = Hosts::takes(host) && (!host.contains(':') || host.starts_with('['));
    text_if(is_host && port != 0, text)
}

/// The names "." and ".." are refused by Kafka, too.
fn topic(text: &str) -> Option<Value> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = text.bytes().all(is_plain) && !matches!(text, "." | "..");
    text_if(is_name, text)
}

fn redis_url(text: &str) -> Option<Value> {
    text_if(text.is_empty() || RedisUrl::parse(text).is_some(), text)
}

fn http_url(text: &str) -> Option<Value> {
    text_if(text.is_empty() || Origin::parse(text).is_ok(), text)
}

fn host(text: &str) -> Option<Value> {
    text_if(Hosts::takes(text), text)
}

fn store_url(text: &str) -> Option<Value> {
    text_if(StoreUrl::parse(text).is_some(), text)
}

fn text_if(is_taken: bool, text: &str) -> Option<Value> {
    is_taken.then(|| Value::Text(text.to_owned()))
}

fn place(address: &Value) -> Option<Place> {
    match address {
        Value::Text(text) => Listen::parse(text).map(|listen| listen.place),
        _ => None,
    }
}

/// `str::parse` would accept `+5` as well.
fn digits(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::words::EngineKind;
    use crate::limits::http as http_limits;
    use proptest::prelude::*;

    fn texts(list: &[&str]) -> Value {
        Value::List(list.iter().map(|&text| Value::Text(text.into())).collect())
    }

    fn read(kind: &ValueKind, text: &str) -> Result<Value, String> {
        let value = DeValue::parse(text).expect("the test writes TOML");
        let read = kind.read_toml(&value);
        read.map_err(|(_, refused)| format!("{}: {}", refused.element, refused.expected))
    }

    /// Mutations that this test catches: a list that is printed as its first element, and one that
    /// may be empty.
    #[test]
    fn models_are_one_text_or_a_list() {
        for (text, list) in [
            (r#""a""#, &["a"][..]),
            (r#"["a", "/b, c.gguf"]"#, &["a", "/b, c.gguf"]),
        ] {
            assert_eq!(read(&MODELS, text), Ok(texts(list)));
            assert_eq!(MODELS.print(&texts(list)), text);
        }
        assert_eq!(read(&MODELS, r#"["a"]"#), Ok(texts(&["a"])));
        assert_eq!(MODELS.read_text("a, b"), Ok(texts(&["a", "b"])));
        let many = format!("[{}]", r#""a","#.repeat(17));
        for wrong in ["[]", r#"[""]"#, r#""""#, "1", "[1]", &many] {
            assert!(read(&MODELS, wrong).is_err(), "{wrong}");
        }
        assert!(MODELS.read_text(" , ").is_err());
    }

    /// Mutation: `repeats` without comparing the port.
    #[test]
    fn an_address_is_listened_on_once_but_any_port_may_be_asked_for_again() {
        let any = r#"["127.0.0.1:0", "127.0.0.1:0"]"#;
        assert!(read(&ADDRESSES, any).is_ok());
        let twice = r#"["127.0.0.1:80", "tls:127.0.0.1:80"]"#;
        assert_eq!(
            read(&ADDRESSES, twice),
            Err("[1]: each address once".to_owned())
        );
        let socket = read(&ADDRESSES, r#"["unix:@name"]"#).unwrap_err();
        assert!(socket.contains("unix:./@NAME"), "{socket}");
    }

    #[test]
    fn lists_are_made_of_any_kind() {
        const PORT: ValueKind = ValueKind {
            plural: "ports",
            example: "80",
            ..number(1..=65_535)
        };
        const PORTS: ValueKind = list_of(&PORT, 1..=3);
        assert_eq!(PORTS.name(), "list of ports");
        let numbers = |list: &[u64]| Value::List(list.iter().copied().map(Value::Number).collect());
        assert_eq!(read(&PORTS, "[80, 443]"), Ok(numbers(&[80, 443])));
        assert_eq!(PORTS.print(&numbers(&[80, 443])), "[80, 443]");
        assert_eq!(
            read(&PORTS, "[80, 70000]"),
            Err("[1]: a whole number from 1 to 65535".to_owned())
        );
        assert!(read(&PORTS, "80").is_err() && read(&PORTS, "[1, 2, 3, 4]").is_err());
    }

    #[test]
    fn brokers_are_hosts_with_a_port_and_topics_have_plain_names() {
        for good in ["kafka-1.example:9092", "127.0.0.1:1", "[::1]:65535"] {
            assert!(BROKER.read_text(good).is_ok(), "{good}");
        }
        let wrong = [
            "",
            "kafka",
            "kafka:",
            "kafka:0",
            "kafka:65536",
            "::1:9092",
            "a,b:1",
            "a/b:1",
        ];
        for wrong in wrong {
            assert!(BROKER.read_text(wrong).is_err(), "{wrong}");
        }
        let longest = "a".repeat(249);
        for good in ["autoglmd-notices", "a.b_C-9", &longest] {
            assert!(TOPIC.read_text(good).is_ok(), "{good}");
        }
        for wrong in [
            "",
            ".",
            "..",
            "a b",
            "a,b",
            "\u{e4}",
            &format!("{longest}a"),
        ] {
            assert!(TOPIC.read_text(wrong).is_err(), "{wrong}");
        }
    }

    /// Mutations: an advice that is left out, a port 0 or "any address" that is taken.
    #[test]
    fn a_refused_place_names_the_part_that_is_wrong() {
        for (kind, text, expected) in [
            (REDIS_URL, "redis+sentinel://a", "sentinels know the master"),
            (STORE_URL, "postgres:///a", "server's name or address"),
            (STORE_URL, "postgres://db/a?colour=red", "whose parameters"),
            (HTTP_URL, "collector:4318", "\"http://HOST:PORT/PATH\""),
            (HTTP_URL, "http://me:secret@a/", "without a user"),
            (HTTP_URL, "http:///v1/metrics", "host behind"),
            (HTTP_URL, "http://a:0/", "a port from 1 to 65535"),
            (HTTP_URL, "http://a/v1 metrics", "visible ASCII"),
            (SOCKET, "0.0.0.0:7946", "the one address"),
            (SOCKET, "10.0.0.1:0", "the other members must know it"),
            (SOCKET, "node.example:7946", "in place of the name"),
            (SOCKET, "fd00::1", "in brackets"),
            (SOCKET, "udp://10.0.0.1:7946", "without a scheme"),
            (SOCKET, "10.0.0.1", "\"10.0.0.1:7946\""),
            (PEER, "[::]:7946", "the one address"),
            (BROKER, "kafka://a:9092", "without a scheme"),
            (BROKER, "fd00::1:9092", "in brackets"),
            (BROKER, "kafka", "\"kafka-1.example:9092\""),
        ] {
            let refused = kind.read_text(text).expect_err(text);
            assert!(
                refused.expected.contains(expected),
                "{text}: {}",
                refused.expected
            );
        }
        let long = format!("http://a/{}", "b".repeat(http_limits::URL_BYTES_MAX));
        let refused = HTTP_URL.read_text(&long).expect_err("it is long");
        let bound = format!("at most {} bytes", http_limits::URL_BYTES_MAX);
        assert!(refused.expected.contains(&bound), "{}", refused.expected);
    }

    proptest! {
        #[test]
        fn a_printed_text_is_read_back_by_toml(text: String) {
            let printed = PATH.print(&Value::Text(text.clone()));
            prop_assert!(!printed.contains('\n'));
            let read = DeValue::parse(&printed).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(read.get_ref().as_str(), Some(text.as_str()));
        }

        #[test]
        fn any_plain_text_is_read_or_refused(text: String) {
            let kinds = [
                SWITCH, number(0..=9), size(0..=9), time(0..=9), word_of::<EngineKind>(), PATH,
                MODELS, ADDRESSES, FILES, CLIENT_KEYS, NETWORKS, ALLOWED_NETWORKS, HOSTS,
                REDIS_URL, SOCKET, PEERS, BROKERS, TOPIC, HEADERS,
            ];
            for kind in kinds {
                match kind.read_text(&text) {
                    Ok(value) => prop_assert_eq!(kind.check(value.clone()), Ok(value)),
                    Err(refused) => prop_assert!(!refused.expected.is_empty()),
                }
            }
        }
    }
}
