//! The configuration in force: text is turned into a checked [`Config`] once; everything else reads
//! fields. A reload loads, compares and swaps.
//!
//! Owns the schema, the search for the file, precedence, and the places of mistakes. Must never
//! open a socket, start a thread, or read a global without its caller's knowledge: all input is in
//! [`Sources`].
//!
//! One table, [`schema`], describes every key. Parsing, checking, `autoglmd check --show`,
//! `docs/configuration.md`, the annotated example and the log line of a reload all follow from it:
//!
//! ```text
//!   defaults < file < environment < flags        each value remembers its Origin
//!        \      \         \           \
//!         `------`---------`-----------`--> ValueKind::read_* --> Value --> field of Config
//!                                                                          |
//!                 all mistakes at once, with their places <-- rules <------'
//! ```
//!
//! Invariants:
//!  1. A `Config` that `load` returns satisfies every range of the schema and every rule.
//!  2. The output of `show` can be loaded again, with the same values.
//!  3. No text, however hostile, makes `load` panic.

mod address;
mod change;
mod database;
mod deprecated;
mod disk;
mod hosts;
mod kind;
mod kinds;
mod load;
mod named;
mod networks;
mod problem;
mod proxies;
mod push_header;
mod redis_url;
mod reference;
mod rules;
mod schema;
mod show;
mod sources;
mod tls;
pub mod units;
mod value;
mod words;

pub use address::{Listen, Opening, Place, Security};
pub use change::{Change, contradictions, diff, reloaded, summary};
pub use database::{PostgresUrl, StoreUrl};
pub use hosts::Hosts;
pub use load::{Loaded, load};
pub use named::Model;
pub use problem::{ConfigErrors, Problem};
pub use proxies::{ForwardedField, TrustedProxies};
pub use push_header::{HeaderValue, PushHeader};
pub use redis_url::{RedisHost, RedisServers, RedisUrl};
pub use reference::{example, reference};
pub use schema::{
    Auth, Bus, Cache, CacheShared, Config, Effect, Engine, Jobs, Limits, Log, Metrics, MetricsPush,
    RateLimit, Server, Store, Tls,
};
pub use show::show;
pub use sources::{Origin, Overrides, Sources};
pub use tls::{
    ClientCertificates, ClientIdentity, ClientKey, ClientName, CredentialPath, TlsVersion,
};
pub use words::{BusKind, CachePolicy, EngineKind, LogFormat, parse_word, word};
