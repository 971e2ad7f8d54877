//! The schema: every section and key of the configuration, in one table.
//!
//! A row has the meaning of the key, its name, the type of its field, its default, its
//! [`ValueKind`] (the accepted text), and whether a reload applies it. The structs that the rest of
//! the daemon reads are generated from the rows, so there cannot be a field without a row, or a row
//! without a field.
//!
//! To add a key, add a row. Then `AUTOGLMD_BLESS=1 cargo test --test generated_docs` rewrites the
//! pages that are generated from this table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::address::Listen;
use super::database::StoreUrl;
use super::hosts::Hosts;
use super::kind::ValueKind;
use super::kinds::{
    ADDRESSES, ALLOWED_NETWORKS, BROKERS, CLIENT_KEYS, FILES, HEADERS, HOSTS, HTTP_URL, MODELS,
    NETWORKS, PATH, PEERS, REDIS_URL, SOCKET, STORE_URL, SWITCH, TOPIC, number, size, time,
    word_of,
};
use super::named::Model;
use super::networks::Networks;
use super::proxies::{ForwardedField, TrustedProxies};
use super::redis_url::RedisUrl;
use super::tls::{ClientCertificates, ClientKey, TlsVersion};
use super::value::{Field, Value};
use super::words::{BusKind, CachePolicy, EngineKind, LogFormat};
use crate::engine::family::KvType;
use crate::limits::config as limits;
use crate::limits::http1 as http1_limits;

/// A group of keys: a `[section]` of the file. A name with a dot names a section within another.
pub struct Section {
    pub name: &'static str,
    help: &'static str,
    pub keys: &'static [Key],
}

/// One row of the table.
pub struct Key {
    /// Such as `max_head`.
    pub name: &'static str,
    /// Such as `limits.max_head`.
    pub path: &'static str,
    help: &'static str,
    pub kind: ValueKind,
    pub effect: Effect,
    pub read: fn(&Config) -> Value,
    /// Returns false if the value is of another kind than the field: a bug in the table.
    pub write: fn(&mut Config, Value) -> bool,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// At once, on a reload.
    Reload,
    /// At the next start of the process.
    Restart,
}

impl Section {
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }

    pub fn find(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

impl Key {
    /// Returns the meaning of the key, in sentences.
    pub fn help(&self) -> &'static str {
        self.help.trim()
    }

    /// Returns the environment variable that overrides the key: `AUTOGLMD_LIMITS__MAX_HEAD`.
    pub fn variable(&self) -> String {
        format!("AUTOGLMD_{}", self.path.replace('.', "__").to_uppercase())
    }

    /// Returns the key's value in `config`, as it is written in a file.
    pub fn print(&self, config: &Config) -> String {
        self.kind.print(&(self.read)(config))
    }
}

impl Effect {
    pub fn as_str(self) -> &'static str {
        match self {
            Effect::Reload => "reload",
            Effect::Restart => "restart",
        }
    }
}

/// Yields every key, in the table's order.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|section| section.keys)
}

pub fn find(path: &str) -> Option<&'static Key> {
    keys().find(|key| key.path == path)
}

macro_rules! schema {
    ($(
        $(#[doc = $section_help:literal])+
        $section:ident $section_name:literal: $Section:ident {
            $(
                $(#[doc = $help:literal])+
                $name:ident: $type:ty = $default:expr, $kind:expr, $effect:ident;
            )+
        }
    )+) => {
        /// The whole configuration in force.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Config {
            $($(#[doc = $section_help])+ pub $section: $Section,)+
            /// `--state-dir`, `$STATE_DIRECTORY`, or the XDG state folder: database and bootstrap
            /// key. Empty in `Config::default()`: the environment decides it.
            pub state_dir: PathBuf,
            /// `$CACHE_DIRECTORY`, or the XDG cache folder: models. Empty in `Config::default()`.
            pub cache_dir: PathBuf,
            /// The sections `[models."NAME"]`, by name.
            pub models: BTreeMap<String, Model>,
        }

        $(
            $(#[doc = $section_help])+
            #[derive(Clone, Debug, PartialEq)]
            pub struct $Section { $($(#[doc = $help])+ pub $name: $type,)+ }

            impl Default for $Section {
                fn default() -> $Section { $Section { $($name: $default,)+ } }
            }
        )+

        /// The table, for functions that walk it.
        pub static SECTIONS: &[Section] = &[$(Section {
            name: $section_name,
            help: concat!($($section_help),+),
            keys: &[$(Key {
                name: stringify!($name),
                path: concat!($section_name, ".", stringify!($name)),
                help: concat!($($help),+),
                kind: $kind,
                effect: Effect::$effect,
                read: |config| config.$section.$name.to_value(),
                write: |config, value| match Field::from_value(value) {
                    Some(field) => { config.$section.$name = field; true }
                    None => false,
                },
            }),+],
        }),+];
    };
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

schema! {
    /// Addresses, threads, and the end of the daemon.
    server "server": Server {
        /// Addresses to listen on: `127.0.0.1:8080`, `[::1]:8080`, `unix:/path`, or `fd:NAME` for a
        /// socket that the service manager passes in. With `tls:` before it an address accepts only
        /// TLS, with `clear:` only clear text; without either it accepts both if there are
        /// certificates. With `proxy:` before everything else each connection must begin with a
        /// header of the PROXY protocol, version 2; the header is accepted from
        /// `server.trusted_proxies` and, on a Unix socket, from every peer.
        listen: Vec<Listen> = vec![Listen::LOOPBACK], ADDRESSES, Restart;
        /// Proxies whose claim about a client's address is believed: networks such as `10.0.0.0/8`,
        /// addresses, or `unix` for the peers on Unix sockets. Empty: no peer is believed.
        trusted_proxies: TrustedProxies = TrustedProxies::default(), NETWORKS, Reload;
        /// The field in which the proxies name the client: `forwarded` (RFC 7239),
        /// `x-forwarded-for`, or `any`. With `any`, a request that has both fields and in which
        /// they disagree counts as the proxy's own.
        forwarded_header: ForwardedField = ForwardedField::Any,
            word_of::<ForwardedField>(), Reload;
        /// Names of this machine, besides `localhost`, its subdomains and loopback addresses, under
        /// which clients on a loopback address are served without a key: with `auth.enabled =
        /// false`, and `/metrics` with `metrics.public_on_loopback`. Requests under other names
        /// come from web pages and are refused. Names and addresses are written without a port.
        hosts: Hosts = Hosts::default(), HOSTS, Reload;
        /// Threads that own sockets. One serves tens of thousands of connections.
        reactors: u16 = 1, number(limits::REACTORS), Restart;
        /// Reload when the file, or a certificate that it names, is saved, as SIGHUP does.
        watch_config: bool = false, SWITCH, Restart;
        /// Time that running requests have to finish after SIGTERM.
        drain_timeout: Duration = Duration::from_secs(30),
            time(limits::DRAIN_TIMEOUT_MS), Reload;
        /// Compress responses for clients that request it with `Accept-Encoding`.
        compress: bool = true, SWITCH, Reload;
        /// Responses below this size are sent uncompressed. A response that fits into one packet
        /// with its head gains nothing from compression.
        compress_min: usize = KIB, size(limits::COMPRESS_MIN_BYTES), Reload;
    }

    /// Certificates. A file may be `credential:NAME`: a file that the service manager passes in
    /// (`LoadCredential=NAME:...`).
    tls "server.tls": Tls {
        /// PEM files, each with a certificate and those that lead to its authority. The client's
        /// server name selects one; the first serves clients that name none of them. Empty: no TLS.
        certificates: Vec<PathBuf> = Vec::new(), FILES, Reload;
        /// PEM files with the private keys, in the order of `certificates`. Empty: each
        /// certificate's file holds its key too.
        keys: Vec<PathBuf> = Vec::new(), FILES, Reload;
        /// The oldest version of TLS that is accepted.
        min_version: TlsVersion = TlsVersion::V12, word_of::<TlsVersion>(), Reload;
        /// Whether clients are asked for a certificate: `off`, `optional`, or `required`.
        client_certificates: ClientCertificates = ClientCertificates::Off,
            word_of::<ClientCertificates>(), Reload;
        /// PEM file with the authorities that sign clients' certificates.
        client_ca: Option<PathBuf> = None, PATH, Reload;
        /// The API key for a client's certificate, used if the request has no key of its own:
        /// `dns:NAME = KEY`, `uri:`, `email:`, `cn:` or `sha256:FINGERPRINT`. KEY is a key's id or
        /// name. The first pair that matches is used.
        client_keys: Vec<ClientKey> = Vec::new(), CLIENT_KEYS, Reload;
    }

    /// Authentication.
    auth "auth": Auth {
        /// Require a key. `false` is allowed only if every address in `server.listen` is a loopback
        /// address or a Unix socket.
        enabled: bool = true, SWITCH, Reload;
    }

    /// Limits per key, and per address without a key. A key's own limits take precedence.
    rate_limit "rate_limit": RateLimit {
        /// Apply the limits of this section.
        enabled: bool = true, SWITCH, Reload;
        /// Requests per minute of a key.
        requests_per_minute: u32 = 600, number(limits::REQUESTS_PER_MINUTE), Reload;
        /// Tokens (prompt and completion) per minute of a key. 0: no limit.
        tokens_per_minute: u32 = 0, number(limits::TOKENS_PER_MINUTE), Reload;
        /// Requests that may arrive at once before the rate applies.
        burst: u32 = 60, number(limits::REQUESTS_PER_MINUTE), Reload;
        /// Requests per minute of an address that has not shown a valid key.
        unauthenticated_per_minute: u32 = 120, number(limits::REQUESTS_PER_MINUTE), Reload;
        /// Concurrent requests of a key. 0: no limit.
        concurrency: u32 = 0, number(limits::CONCURRENT_REQUESTS), Reload;
        /// With `cache.shared.url`, the limits of a key hold for all daemons together. Each daemon
        /// may take this part of a burst, in percent, before the common count has confirmed it:
        /// the daemons together may exceed a limit by that much each, and one that gets more within
        /// a round trip refuses the rest.
        lease: u32 = 50, number(limits::LEASE_PERCENT), Reload;
    }

    /// Limits of one connection and one request, and of all connections together.
    limits "limits": Limits {
        /// Concurrent connections. 0: as many as the descriptor limit allows, less a reserve.
        max_connections: u32 = 0, number(limits::CONNECTIONS), Restart;
        /// Concurrent connections of one client network: an IPv4 address, or the first 64 bits of
        /// an IPv6 address. 0: half of the maximum. Loopback, Unix sockets and
        /// `server.trusted_proxies` are exempt; on a `proxy:` address the client in the header
        /// counts.
        max_connections_per_network: u32 = 0, number(limits::CONNECTIONS), Reload;
        /// Size of a request's head: request line and fields.
        max_head: usize = http1_limits::HEAD_BYTES_DEFAULT, size(limits::HEAD_BYTES), Reload;
        /// Size of a request target. At most `limits.max_head`.
        max_uri: usize = http1_limits::URI_BYTES_DEFAULT, size(limits::URI_BYTES), Reload;
        /// Field lines of a head.
        max_headers: usize = http1_limits::FIELDS_DEFAULT, number(limits::FIELDS), Reload;
        /// Size of a request's body, as received and after inflating.
        max_body: usize = MIB, size(limits::BODY_BYTES), Reload;
        /// Memory of all connections together for requests that are not complete and responses that
        /// are not read. Above it, requests whose rest is still to come are refused with 503
        /// `buffers_full`; those without a key from three quarters of it on, and those of one key
        /// beyond a quarter. At least twice `limits.max_body`. 0: a 64th of the memory that the
        /// machine and the process's control groups allow, but between 16 MiB and 48 MiB, and at
        /// least four times `limits.max_body`.
        max_buffered: usize = 0, size(limits::BUFFERED_BYTES), Reload;
        /// How many times its own size a compressed body may inflate to, beyond the first 64 KiB.
        /// `limits.max_body` bounds the result as well.
        max_inflate_ratio: u32 = 100, number(limits::INFLATE_RATIO), Reload;
        /// Time from the first byte of a request to the last byte of its head.
        header_timeout: Duration = Duration::from_secs(10),
            time(limits::HEADER_TIMEOUT_MS), Reload;
        /// Time from the end of a request's head to the last byte of its body.
        body_timeout: Duration = Duration::from_secs(30),
            time(limits::BODY_TIMEOUT_MS), Reload;
        /// Time between two requests of a connection.
        idle_timeout: Duration = Duration::from_secs(75),
            time(limits::IDLE_TIMEOUT_MS), Reload;
        /// Time in which the peer must read the first byte of its output. Each byte that it reads
        /// then adds its share of ten such times.
        write_timeout: Duration = Duration::from_secs(30),
            time(limits::WRITE_TIMEOUT_MS), Reload;
        /// The longest `timeout` that a request may set.
        max_request_timeout: Duration = Duration::from_secs(600),
            time(limits::REQUEST_TIMEOUT_MS), Reload;
        /// The `timeout` of a request that sets none. At most `limits.max_request_timeout`.
        default_request_timeout: Duration = Duration::from_secs(60),
            time(limits::REQUEST_TIMEOUT_MS), Reload;
        /// Requests on one connection before it is closed. 0: no limit.
        max_requests_per_connection: u32 = 0,
            number(limits::REQUESTS_PER_CONNECTION), Reload;
    }

    /// The model and its computation.
    engine "engine": Engine {
        /// `llama` computes with llama.cpp; `echo` returns a fixed program at once, for measuring
        /// the daemon without a model.
        kind: EngineKind = EngineKind::Llama, word_of::<EngineKind>(), Restart;
        /// A model's name, such as `qwen2.5-coder-0.5b-instruct`, or the path of a GGUF file; or a
        /// list of them, of which the first available one is served.
        model: Vec<String> = vec!["qwen2.5-coder-0.5b-instruct".to_owned()], MODELS, Restart;
        /// Sequences that are decoded together.
        parallel: u32 = 16, number(limits::SEQUENCES), Restart;
        /// Compute threads. 0: chosen by the machine's cores.
        threads: u32 = 0, number(limits::THREADS), Restart;
        /// Context of one sequence in tokens. 0: chosen by model and memory.
        context: u32 = 0, number(limits::CONTEXT_TOKENS), Restart;
        /// The type of the KV cache's values. `q8_0` (8 bits) takes half the memory of `f16` (16
        /// bits), and reads long prompts at 0.6 of its speed. `auto` uses the type that measured
        /// better for the model's family. A model whose heads do not fit blocks of 32 always uses
        /// `f16`.
        kv_type: Option<KvType> = None, word_of::<Option<KvType>>(), Restart;
        /// Jobs that may wait for a sequence. Beyond that the newest job of the key with the most
        /// waiting jobs is refused with 503 `queue_full`. Durable jobs do not count: as many of
        /// them may wait beside.
        queue: u32 = 256, number(limits::ENGINE_QUEUE_JOBS), Restart;
        /// Time for reading prompts between two steps of the running streams. A longer one reads
        /// long prompts with less work, a shorter one delays running streams and new requests less.
        prompt_budget: Duration = Duration::from_millis(250),
            time(limits::PROMPT_BUDGET_MS), Restart;
        /// Make greedy or seeded output independent of the other requests that are computed at the
        /// same time, by computing each sequence by itself. Costs half the speed or more at 16
        /// streams, and a conversation's earlier turns are read again.
        reproducible: bool = false, SWITCH, Restart;
        /// Layers on the GPU, if a GPU back end is compiled in. 999: all.
        gpu_layers: u32 = 999, number(limits::GPU_LAYERS), Restart;
        /// Time that the engine may spend on its work without a sign of life. After that `/readyz`
        /// reports `stalled`; after three times as long the process exits with a failure, so that
        /// its manager starts it again. A sign of life is a step, and on processors each part of
        /// one.
        stall_timeout: Duration = Duration::from_secs(30),
            time(limits::STALL_TIMEOUT_MS), Restart;
    }

    /// Results that were computed once. A response is used again for its key's later requests that
    /// are equal, if nothing in it was left to chance: the temperature is 0, or there is a seed.
    cache "cache": Cache {
        /// Use results again. `false` empties the cache.
        enabled: bool = true, SWITCH, Reload;
        /// Memory for results, half of it for finished responses. A key that fills it removes its
        /// own entries first: one with less than an equal share loses none to other keys.
        max_size: usize = 64 * MIB, size(limits::CACHE_BYTES), Reload;
        /// Time for which a result is used again. Each one takes up to a tenth off, by chance, so
        /// that results don't expire together.
        ttl: Duration = Duration::from_secs(3_600), time(limits::CACHE_TTL_MS), Reload;
        /// The same for a refusal that would recur: a prompt that is too long. 0: not at all.
        negative_ttl: Duration = Duration::from_secs(10),
            time(limits::CACHE_NEGATIVE_TTL_MS), Reload;
        /// Keep results in the store as well, so that they survive a restart. They hold content:
        /// what the model wrote. They may take a quarter of the database's part of
        /// `store.max_size`, and expire after `cache.ttl`.
        persist: bool = false, SWITCH, Restart;
        /// With `cache.persist`: what happens at a miss in memory, and with a new result.
        /// `cache-aside` never reads the store for a request, and writes a result to it once,
        /// beside the response. `read-through` also looks a miss up there. `write-through` ends a
        /// response once its result is written. `write-behind` collects results, and writes them
        /// four times per second.
        policy: CachePolicy = CachePolicy::ReadThrough, word_of::<CachePolicy>(), Restart;
        /// With `cache.persist`: time for which a request waits for a look-up in the store before
        /// it is computed. With `write-through`, the end of a response waits up to ten times as
        /// long for its result to be written.
        store_timeout: Duration = Duration::from_millis(100),
            time(limits::CACHE_STORE_TIMEOUT_MS), Restart;
        /// Disk space for computed prefixes of prompts, in the folder `prefixes` of the state
        /// folder: a part of `store.max_size`, at most half of it beside a database. A prefix of
        /// 256 tokens or more is written when it has rested for 10 s, when its memory is needed and
        /// when the daemon ends; a prompt of the same key that begins with it goes on from there,
        /// also after a restart. 2,000 tokens of the default model take 24 MiB. The files hold what
        /// the prompts said, in the model's own form. 0: none. No effect with
        /// `engine.reproducible`.
        prefixes: usize = 0, size(limits::CACHE_PREFIXES_BYTES), Restart;
        /// After the start, for up to 30 s and only while the engine is idle: bring the most used
        /// results of the store into memory, with `cache.persist`, and have the engine read the
        /// daemon's own words of the prompts, which it keeps for every client, in memory and on
        /// disk.
        preload: bool = true, SWITCH, Restart;
        /// Time after which a purge deletes once more, in memory, in the store and in Redis: longer
        /// than a copy takes from one of them to another.
        second_delete: Duration = Duration::from_millis(100),
            time(limits::CACHE_SECOND_DELETE_MS), Reload;
    }

    /// Redis, which several daemons share: for the responses that one of them has computed, for the
    /// limits of keys, and for notices of changed keys. Without it each daemon works by itself. A
    /// daemon that loses it goes on without it, and comes back to it by itself.
    cache_shared "cache.shared": CacheShared {
        /// One server, `redis://HOST:PORT/DATABASE` or `redis+unix:/PATH`; a set under Sentinel,
        /// `redis+sentinel://HOST:PORT,HOST:PORT/MASTER`; or a cluster,
        /// `redis+cluster://HOST:PORT,HOST:PORT`. `rediss` in place of `redis` means TLS. A user
        /// is named before the hosts, as in `redis://USER@HOST`; sentinels are asked without user
        /// and password. Empty: no Redis.
        url: Option<RedisUrl> = None, REDIS_URL, Restart;
        /// File with the password, or `credential:NAME`. It is read at each connect.
        password_file: Option<PathBuf> = None, PATH, Restart;
        /// PEM file with the authorities that sign the servers' certificates. Empty: those of the
        /// system.
        ca: Option<PathBuf> = None, PATH, Restart;
        /// Time for a connect, and for the round trip of a batch. Requests that wait behind a
        /// server that has just been lost wait up to three times as long.
        timeout: Duration = Duration::from_millis(100), time(limits::SHARED_TIMEOUT_MS), Restart;
    }

    /// The database: keys, jobs, and records of past generations.
    store "store": Store {
        /// `sqlite`: a file in the state folder. `postgres://USER@HOST:PORT/DATABASE`: a PostgreSQL
        /// database, which several daemons may share; a Unix socket is written as its folder with
        /// `%2F` for `/`. Connections to other machines are encrypted, unless the URL ends with
        /// `?sslmode=disable`.
        url: StoreUrl = StoreUrl::Sqlite, STORE_URL, Restart;
        /// A file with the password for `store.url`, on its first line; read for each connection. A
        /// file may be `credential:NAME`.
        password_file: Option<PathBuf> = None, PATH, Restart;
        /// PEM file with the authorities that sign the database server's certificate, such as
        /// `/etc/ssl/certs/ca-certificates.crt`. Needed for encrypted connections. A file may be
        /// `credential:NAME`.
        ca: Option<PathBuf> = None, PATH, Restart;
        /// Connections to the database server for requests and jobs, each with its thread. One more
        /// watches the keys.
        pool_size: u16 = 4, number(limits::STORE_CONNECTIONS), Restart;
        /// Time for a connection to the database server, up to the first statement.
        connect_timeout: Duration = Duration::from_secs(5),
            time(limits::STORE_TIMEOUT_MS), Restart;
        /// Time for one statement, after which the database server cancels it.
        statement_timeout: Duration = Duration::from_secs(5),
            time(limits::STORE_TIMEOUT_MS), Restart;
        /// Keep a record of each generation: its key, times, tokens and outcome, and a digest of
        /// its prompt. `GET /api/v1/generations` reads them.
        records: bool = true, SWITCH, Reload;
        /// Keep the text of prompts and outputs in the records as well.
        content: bool = false, SWITCH, Reload;
        /// Records are removed at this age. Usage by key and day stays.
        retention: Duration = Duration::from_secs(30 * 24 * 3_600),
            time(limits::RETENTION_MS), Reload;
        /// Records beyond this number are removed, the oldest first.
        max_records: u64 = 1_000_000, number(limits::KEPT_RECORDS), Reload;
        /// Disk space for the whole state folder. An eighth is for the log of SQLite, a sixteenth
        /// (at most 64 MiB) for the daemon's own words of the prompts, a mebibyte for small files,
        /// `cache.prefixes` for prefixes, and the rest for the database. Where that is used up, the
        /// oldest records are removed.
        max_size: u64 = 1 << 30, size(limits::STORE_BYTES), Reload;
    }

    /// Durable jobs: `POST /api/v1/jobs`.
    jobs "jobs": Jobs {
        /// Accept jobs, and run those that wait. If it is off, jobs in the store stay there.
        enabled: bool = true, SWITCH, Reload;
        /// Unfinished jobs of all keys together.
        max_queued: u32 = 10_000, number(limits::QUEUED_JOBS), Reload;
        /// Unfinished jobs of one key.
        max_queued_per_key: u32 = 1_000, number(limits::QUEUED_JOBS), Reload;
        /// Size of all jobs in the store: requests, results and events, with their
        /// `Idempotency-Key` and callback. One key's jobs may take a quarter of it. With SQLite at
        /// most half of the database's part of `store.max_size`.
        max_size: usize = 256 * MIB, size(limits::JOBS_BYTES), Reload;
        /// Jobs that this daemon runs at once. They share what other requests leave of the engine,
        /// and have a minimum share of it. Generations with an `Idempotency-Key` have places of
        /// their own.
        concurrency: u32 = 4, number(limits::RUNNING_JOBS), Reload;
        /// Time after which a job expires that has not begun to run.
        max_wait: Duration = Duration::from_secs(24 * 3600), time(limits::JOB_TIMES_MS), Reload;
        /// Time after which a finished job is deleted, with its `Idempotency-Key`.
        keep: Duration = Duration::from_secs(24 * 3600), time(limits::JOB_TIMES_MS), Reload;
        /// Time after which a job whose daemon was killed runs again. Longer than the store is
        /// ever away, and than the clocks of daemons that share it differ.
        lease: Duration = Duration::from_secs(30), time(limits::LEASE_MS), Reload;
        /// Time for which the `Idempotency-Key` of a request is remembered: at most until its job
        /// is deleted (`jobs.keep`).
        idempotency_ttl: Duration = Duration::from_secs(24 * 3600),
            time(limits::JOB_TIMES_MS), Reload;
        /// Networks to which callbacks may go besides public addresses: private ones, loopback and
        /// link-local addresses are refused otherwise, whatever name leads there.
        callback_networks: Networks = Networks::default(), ALLOWED_NETWORKS, Reload;
        /// Time for one attempt to deliver a callback. A daemon that is killed during an attempt
        /// delays the next one by up to twice this time.
        callback_timeout: Duration = Duration::from_secs(10),
            time(limits::CALLBACK_TIMEOUT_MS), Reload;
        /// Attempts to deliver a callback, which also ends when its job is deleted.
        callback_attempts: u32 = 12, number(limits::CALLBACK_ATTEMPTS), Reload;
        /// Pause after the first attempt that has failed. It doubles up to an hour.
        callback_pause: Duration = Duration::from_secs(5),
            time(limits::CALLBACK_PAUSE_MS), Reload;
    }

    /// The daemon's own requests to other servers.
    outbound "outbound": Outbound {
        /// PEM file with the authorities that sign those servers' certificates, such as
        /// `/etc/ssl/certs/ca-certificates.crt`, or `credential:NAME`. They are trusted instead of
        /// Mozilla's, which are built in. Empty: Mozilla's.
        ca: Option<PathBuf> = None, PATH, Restart;
    }

    /// Notices between daemons: a key revoked on one machine is refused by all at once. Each daemon
    /// reads the store each second, with a bus and without.
    bus "bus": Bus {
        /// `redis` uses the Redis of `cache.shared.url`, if there is one. `gossip` needs no server:
        /// the daemons find and watch each other over UDP. `kafka` needs a build with
        /// `--features kafka`.
        kind: BusKind = BusKind::Redis, word_of::<BusKind>(), Restart;
        /// With `gossip`: the address and UDP port of this machine at which the others reach it.
        listen: Option<SocketAddr> = None, SOCKET, Restart;
        /// With `gossip`: addresses of other members. One that lives is enough to find all.
        peers: Vec<SocketAddr> = Vec::new(), PEERS, Restart;
        /// With `gossip`: file with the secret that all members share, or `credential:NAME`. At
        /// least 16 bytes. The clocks of the machines may differ by 30 s.
        secret_file: Option<PathBuf> = None, PATH, Restart;
        /// With `kafka`: some of its brokers. They are spoken to without TLS and without a
        /// password.
        brokers: Vec<String> = Vec::new(), BROKERS, Restart;
        /// With `kafka`: the topic of the notices. Its first partition is used.
        topic: String = "autoglmd-notices".to_owned(), TOPIC, Restart;
    }

    /// Logging.
    log "log": Log {
        /// The least important level that is logged.
        level: log::LevelFilter = log::LevelFilter::Info,
            word_of::<log::LevelFilter>(), Reload;
        /// `text` for people, `json` for collectors, `journald` for its native protocol.
        format: LogFormat = LogFormat::Text, word_of::<LogFormat>(), Restart;
        /// A file instead of the standard error stream; SIGUSR1 reopens it after rotation. Empty:
        /// the standard error stream.
        file: Option<PathBuf> = None, PATH, Restart;
        /// Log one line for each request.
        access: bool = true, SWITCH, Reload;
    }

    /// Metrics for Prometheus.
    metrics "metrics": Metrics {
        /// Serve `/metrics` without a key to clients on a loopback address. Requests from a proxy
        /// on this machine do not count as local, unless `server.trusted_proxies` leads to an
        /// address of this machine.
        public_on_loopback: bool = false, SWITCH, Reload;
    }

    /// Metrics pushed to an OpenTelemetry collector, by OTLP over HTTP (Protobuf, gzip).
    metrics_push "metrics.push": MetricsPush {
        /// The collector's URL for metrics, such as `https://collector.example:4318/v1/metrics`.
        /// `outbound.ca` names the authorities for `https`. Empty: nothing is pushed.
        url: String = String::new(), HTTP_URL, Restart;
        /// Time between two pushes.
        interval: Duration = Duration::from_secs(10), time(limits::PUSH_INTERVAL_MS), Restart;
        /// Time for one request to the collector.
        timeout: Duration = Duration::from_secs(10), time(limits::PUSH_TIMEOUT_MS), Restart;
        /// File with a token, or `credential:NAME`; sent as `Authorization: Bearer TOKEN`, and read
        /// for each request. Empty: no token.
        token_file: Option<PathBuf> = None, PATH, Restart;
        /// Fields for each request to the collector, as `NAME=VALUE`; `%20` in a value stands for
        /// a space. `NAME=credential:NAME` and `NAME=file:PATH` read the value from a file, for
        /// each request: for secrets.
        headers: Vec<String> = Vec::new(), HEADERS, Restart;
        /// Memory for intervals that wait while the collector is away, compressed: some 5 KiB each.
        /// Above it, the oldest are dropped.
        spool: usize = 4 * MIB, size(limits::PUSH_SPOOL_BYTES), Restart;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_passes_through_its_own_kind() {
        let defaults = Config::default();
        for key in keys() {
            let mut copy = Config::default();
            let printed = (key.read)(&defaults);
            assert_eq!(
                key.kind.check(printed.clone()),
                Ok(printed.clone()),
                "{}",
                key.path
            );
            assert!((key.write)(&mut copy, printed), "{}", key.path);
            assert_eq!(copy, defaults, "{}", key.path);
        }
    }

    #[test]
    fn both_ends_of_every_range_fit_the_field() {
        for key in keys() {
            for value in key.kind.ends() {
                let mut config = Config::default();
                assert!(
                    (key.write)(&mut config, value.clone()),
                    "{} {value:?}",
                    key.path
                );
                assert_eq!((key.read)(&config), value, "{}", key.path);
            }
        }
    }

    #[test]
    fn paths_and_variables_are_unique() {
        let mut seen = std::collections::HashSet::new();
        for key in keys() {
            assert!(seen.insert(key.variable()), "{}", key.path);
            assert!(
                !key.help().is_empty() && key.help().ends_with('.'),
                "{}",
                key.path
            );
        }
        assert_eq!(
            find("limits.max_head").map(Key::variable),
            Some("AUTOGLMD_LIMITS__MAX_HEAD".into())
        );
    }
}
