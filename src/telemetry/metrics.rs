//! Every number that the daemon publishes on `/metrics`.
//!
//! Owns the registry and one handle per time series. Never takes a label value from a client:
//! routes, statuses, reasons and codes come from the program's own words, so the number of series
//! is bounded whatever is sent. Handles are resolved once and kept; using one is one or two relaxed
//! atomic additions, which is some ten nanoseconds for each and below 200 ns for a whole request.
//!
//! Invariants:
//!  1. A name, once published, keeps its meaning.
//!  2. Numbers that others own (the engine's, the kernel's, the log's) are copied at a scrape and
//!     never on the hot path.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::engine::Gauges;
use crate::error::ErrorCode;
use crate::limits::telemetry as limits;
use crate::offload::CancelReason;
use crate::os::process::Usage;
use crate::telemetry::compression::Compression;
use crate::telemetry::exposition::{Exposition, classic};
use crate::telemetry::log::{dropped, write_errors};

pub use super::histogram::Histogram;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::gauge::Gauge;

/// All metrics. A clone shares them.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    handles: Handles,
    families: Families,
    usage: Arc<Mutex<Usage>>,
    registry: Registry,
}

/// Declares the series without labels: its doc comment is the `HELP` text.
macro_rules! handles {
    ($(#[doc = $help:literal] $field:ident: $type:ty = $name:literal, $value:expr;)+) => {
        /// The series without labels; [`Metrics`] dereferences to it.
        #[derive(Debug)]
        pub struct Handles { $(#[doc = $help] pub $field: $type),+ }

        impl Handles {
            fn register(registry: &mut Registry) -> Handles {
                let handles = Handles { $($field: $value),+ };
                $(registry.register($name, help($help), handles.$field.clone());)+
                handles
            }
        }
    };
}

handles! {
    /// Connections that are open now.
    connections: Gauge = "connections", Gauge::default();
    /// Connections that were accepted.
    connections_accepted: Counter = "connections_accepted", Counter::default();
    /// Time from the first byte of a request to its first token.
    time_to_first_token: Histogram = "time_to_first_token_seconds",
        Histogram::new(limits::TIME_TO_FIRST_TOKEN_BUCKETS_MICROS);
    /// Time from one generated token to the next, averaged over each response.
    time_per_output_token: Histogram = "time_per_output_token_seconds",
        Histogram::new(limits::TIME_PER_OUTPUT_TOKEN_BUCKETS_MICROS);
    /// Sequences that are being decoded.
    engine_sequences_running: Gauge = "engine_sequences_running", Gauge::default();
    /// Jobs that wait for a sequence.
    engine_queue_depth: Gauge = "engine_queue_depth", Gauge::default();
    /// Cells of the KV cache that hold a token.
    engine_kv_cells_used: Gauge = "engine_kv_cells_used", Gauge::default();
    /// Cells of the KV cache.
    engine_kv_cells_size: Gauge = "engine_kv_cells_size", Gauge::default();
    /// Steps of the engine: each decodes one token for every running sequence.
    engine_decode_steps: Counter = "engine_decode_steps", Counter::default();
    /// Starts of the engine after a panic.
    engine_restarts: Counter = "engine_restarts", Counter::default();
    /// Time since the engine's last sign of life while it has work; 0 at rest.
    engine_silence: Gauge = "engine_silence_seconds", Gauge::default();
    /// Work of one turn of the loop, without its wait for events.
    loop_turn: Histogram = "loop_turn_seconds", Histogram::new(limits::LOOP_TURN_BUCKETS_MICROS);
    /// Turns that began with a ring of the mailbox's bell.
    wakeups: Counter = "wakeups", Counter::default();
    /// Readiness events for a connection that was gone.
    stale_events: Counter = "stale_events", Counter::default();
    /// Engine events for a request that was gone.
    stale_completions: Counter = "stale_completions", Counter::default();
    /// Times that accepting paused because descriptors or slots ran out.
    accept_paused: Counter = "accept_paused", Counter::default();
    /// Handshake steps that were deferred because the turn's steps were used up.
    tls_handshakes_deferred: Counter = "tls_handshakes_deferred", Counter::default();
    /// TLS sessions that the daemon ended with an alert after their handshake.
    tls_broken: Counter = "tls_broken", Counter::default();
    /// TLS connections that ended without close_notify.
    tls_truncated: Counter = "tls_truncated", Counter::default();
    /// Watchdog messages sent to the service manager.
    watchdog_fed: Counter = "watchdog_fed", Counter::default();
}

/// The series with labels. Callers resolve what they need once and keep the handle.
#[derive(Debug)]
struct Families {
    requests: Family<RouteStatus, Counter>,
    durations: Family<Route, Histogram, fn() -> Histogram>,
    closed: Family<Reason, Counter>,
    glitches: Family<Kind, Counter>,
    reloads: Family<ReloadResult, Counter>,
    handshakes: Family<Handshake, Counter>,
    tls_refused: Family<Reason, Counter>,
    proxy_refused: Family<Reason, Counter>,
    certificate_begins: Family<Certificate, Gauge>,
    certificate_ends: Family<Certificate, Gauge>,
    /// In the order of `ErrorCode::ALL`.
    errors: Vec<Counter>,
    /// In the order of `CancelReason::ALL`.
    cancelled: Vec<Counter>,
    tokens_prompt: Counter,
    tokens_prompt_cached: Counter,
    tokens_generated: Counter,
    compression: Compression,
}

impl Metrics {
    /// `engine`: the engine's name, `llama` or `echo`.
    pub fn new(engine: &'static str) -> Metrics {
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("autoglmd");
        let handles = Handles::register(own);
        let families = Families::register(own);
        let version = env!("CARGO_PKG_VERSION");
        own.register("build", "The program", Info::new(Build { version, engine }));
        let usage: Arc<Mutex<Usage>> = Arc::default();
        registry.register_collector(Box::new(ScrapeCollector(usage.clone())));
        let inner = Inner {
            handles,
            families,
            usage,
            registry,
        };
        Metrics {
            inner: Arc::new(inner),
        }
    }

    /// `autoglmd_requests_total{route,status}`. Callers should keep it, because finding it takes a
    /// lock.
    pub fn requests(&self, route: &'static str, status: u16) -> Counter {
        let requests = &self.inner.families.requests;
        requests.get_or_create_owned(&RouteStatus { route, status })
    }

    /// `autoglmd_request_duration_seconds{route}`. Callers should keep it.
    pub fn request_duration(&self, route: &'static str) -> Histogram {
        let durations = &self.inner.families.durations;
        durations.get_or_create_owned(&Route { route })
    }

    /// `autoglmd_connections_closed_total{reason}`. Callers should keep it.
    pub fn connections_closed(&self, reason: &'static str) -> Counter {
        self.inner
            .families
            .closed
            .get_or_create_owned(&Reason { reason })
    }

    /// `autoglmd_glitches_total{kind}`. They are rare, so looking the handle up is cheap enough.
    pub fn glitches(&self, kind: &'static str) -> Counter {
        self.inner
            .families
            .glitches
            .get_or_create_owned(&Kind { kind })
    }

    /// `autoglmd_config_reloads_total{result}`.
    pub fn config_reloads(&self, succeeded: bool) -> Counter {
        let result = if succeeded { "succeeded" } else { "refused" };
        self.inner
            .families
            .reloads
            .get_or_create_owned(&ReloadResult { result })
    }

    /// `autoglmd_tls_handshakes_total{outcome,version}`. The outcome is `full`, `resumed`,
    /// `failed`, `timeout` or `abandoned`.
    pub fn tls_handshakes(&self, outcome: &'static str, version: &'static str) -> Counter {
        let handshakes = &self.inner.families.handshakes;
        handshakes.get_or_create_owned(&Handshake { outcome, version })
    }

    /// `autoglmd_tls_refused_total{reason}`: `clear_on_tls` or `tls_on_clear`.
    pub fn tls_refused(&self, reason: &'static str) -> Counter {
        self.inner
            .families
            .tls_refused
            .get_or_create_owned(&Reason { reason })
    }

    /// `autoglmd_proxy_refused_total{reason}`: `untrusted`, or a word of
    /// [`crate::core::proxy_header::Refused`].
    pub fn proxy_refused(&self, reason: &'static str) -> Counter {
        self.inner
            .families
            .proxy_refused
            .get_or_create_owned(&Reason { reason })
    }

    /// `autoglmd_tls_certificate_not_before_seconds{certificate}` and
    /// `autoglmd_tls_certificate_expiry_seconds{certificate}`: by place in the configuration, of
    /// which there are few.
    ///
    /// Two fixed times, not a verdict: an alert compares them with a correct clock, which this
    /// machine may not have.
    pub fn set_certificates(&self, validities: impl Iterator<Item = (i64, i64)>) {
        let families = &self.inner.families;
        families.certificate_begins.clear();
        families.certificate_ends.clear();
        for (certificate, (begins_at, expires_at)) in validities.enumerate() {
            let label = Certificate { certificate };
            let begins = families.certificate_begins.get_or_create_owned(&label);
            begins.set(begins_at);
            let ends = families.certificate_ends.get_or_create_owned(&label);
            ends.set(expires_at);
        }
    }

    /// `autoglmd_errors_total{code}`.
    pub fn errors(&self, code: ErrorCode) -> &Counter {
        &self.inner.families.errors[code as usize]
    }

    /// `autoglmd_cancelled_total{reason}`.
    pub fn cancelled(&self, reason: CancelReason) -> &Counter {
        // Discriminants count from 1, in the order of `ALL`.
        &self.inner.families.cancelled[reason as usize - 1]
    }

    /// Returns the counters of the content codings.
    pub fn compression(&self) -> &Compression {
        &self.inner.families.compression
    }

    /// Copies the engine's numbers, before [`Metrics::encode`].
    pub fn update_engine(&self, gauges: &Gauges) {
        let families = &self.inner.families;
        self.engine_sequences_running
            .set(gauges.sequences_running.into());
        self.engine_queue_depth.set(gauges.queue_depth.into());
        self.engine_kv_cells_used.set(gauges.kv_used as i64);
        self.engine_kv_cells_size.set(gauges.kv_size as i64);
        self.engine_silence.set(gauges.silence.as_secs() as i64);
        for (counter, total) in [
            (&self.engine_restarts, gauges.restarts),
            (&self.engine_decode_steps, gauges.decode_steps),
            (&families.tokens_prompt, gauges.prompt_tokens),
            (&families.tokens_prompt_cached, gauges.prompt_cached_tokens),
            (&families.tokens_generated, gauges.generated_tokens),
        ] {
            // Of two scrapes at once the later value stays: a counter never goes back.
            counter.inner().fetch_max(total, Ordering::Relaxed);
        }
    }

    /// Takes the process's use of resources, as its supervisor has sampled it.
    pub fn set_usage(&self, usage: Usage) {
        *lock(&self.inner.usage) = usage;
    }

    /// Appends the whole exposition to `out`.
    pub fn encode(&self, out: &mut String) {
        let length = out.len();
        if text::encode(out, &self.inner.registry).is_err() {
            // Writing to a string does not fail, so only an encoder's own refusal comes here.
            out.truncate(length);
            log::error!("cannot encode the metrics");
        }
    }

    /// Returns the exposition in the format that the scraper asks for.
    pub fn expose(&self, exposition: Exposition) -> String {
        let mut text = String::new();
        self.encode(&mut text);
        match exposition {
            Exposition::OpenMetrics => text,
            Exposition::Classic => classic(&text),
        }
    }
}

impl Deref for Metrics {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.inner.handles
    }
}

impl Families {
    fn register(registry: &mut Registry) -> Families {
        let codes: Family<Code, Counter> = Family::default();
        let reasons: Family<Reason, Counter> = Family::default();
        let kinds: Family<Kind, Counter> = Family::default();
        let durations: fn() -> Histogram =
            || Histogram::new(limits::REQUEST_DURATION_BUCKETS_MICROS);
        let token_kind = |kind| kinds.get_or_create_owned(&Kind { kind });
        let families = Families {
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            closed: Family::default(),
            glitches: Family::default(),
            reloads: Family::default(),
            handshakes: Family::default(),
            tls_refused: Family::default(),
            proxy_refused: Family::default(),
            certificate_begins: Family::default(),
            certificate_ends: Family::default(),
            errors: ErrorCode::ALL
                .iter()
                .map(|code| {
                    codes.get_or_create_owned(&Code {
                        code: code.as_str(),
                    })
                })
                .collect(),
            cancelled: CancelReason::ALL
                .iter()
                .map(|reason| {
                    reasons.get_or_create_owned(&Reason {
                        reason: reason.as_str(),
                    })
                })
                .collect(),
            tokens_prompt: token_kind("prompt"),
            tokens_prompt_cached: token_kind("prompt_cached"),
            tokens_generated: token_kind("generated"),
            compression: Compression::register(registry),
        };
        registry.register("requests", "Responses sent", families.requests.clone());
        registry.register(
            "request_duration_seconds",
            "From a request's first byte to its response's last",
            families.durations.clone(),
        );
        registry.register(
            "connections_closed",
            "Ended connections",
            families.closed.clone(),
        );
        registry.register(
            "glitches",
            "Anomalies of peers: legal, but too many of them end a connection",
            families.glitches.clone(),
        );
        registry.register("config_reloads", "Reloads tried", families.reloads.clone());
        registry.register(
            "tls_handshakes",
            "TLS handshakes, by outcome",
            families.handshakes.clone(),
        );
        registry.register(
            "tls_refused",
            "Connections that sent TLS to a clear-text address, or clear text to a TLS address",
            families.tls_refused.clone(),
        );
        registry.register(
            "proxy_refused",
            "Connections closed for a PROXY header that was missing, malformed or not trusted",
            families.proxy_refused.clone(),
        );
        registry.register(
            "tls_certificate_expiry_seconds",
            "When a certificate expires, in seconds since 1970",
            families.certificate_ends.clone(),
        );
        registry.register(
            "tls_certificate_not_before_seconds",
            "When a certificate becomes valid, in seconds since 1970",
            families.certificate_begins.clone(),
        );
        registry.register("errors", "Error responses, by the catalogue's code", codes);
        registry.register("cancelled", "Jobs that were stopped", reasons);
        registry.register(
            "tokens",
            "Prompt tokens computed, prompt tokens found in the cache, and tokens generated",
            kinds,
        );
        families
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteStatus {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadResult {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handshake {
    outcome: &'static str,
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificate {
    certificate: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
    engine: &'static str,
}

/// Copies the kernel's and the log's numbers at each scrape. The `process_*` names are those that
/// Prometheus' client libraries share. The supervisor samples the kernel's numbers: reading them
/// here would hold up a reactor.
#[derive(Debug)]
struct ScrapeCollector(Arc<Mutex<Usage>>);

impl Collector for ScrapeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for (name, help, total) in [
            (
                "autoglmd_log_dropped",
                "Log lines dropped because the queue was full.",
                dropped(),
            ),
            (
                "autoglmd_log_write_errors",
                "Failed writes of the log.",
                write_errors(),
            ),
        ] {
            sample(&mut encoder, name, help, ConstCounter::new(total))?;
        }
        let usage = *lock(&self.0);
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Memory in RAM.",
                usage.resident_bytes,
            ),
            (
                "process_virtual_memory_bytes",
                "Address space.",
                usage.virtual_bytes,
            ),
            (
                "process_open_fds",
                "Open descriptors.",
                usage.open_descriptors,
            ),
            ("process_threads", "Threads.", usage.threads),
        ] {
            if let Some(value) = value {
                sample(&mut encoder, name, help, ConstGauge::new(value as i64))?;
            }
        }
        if let Some(seconds) = usage.start_time_seconds {
            let help = "Start time of the process, in seconds since 1970.";
            sample(
                &mut encoder,
                "process_start_time_seconds",
                help,
                ConstGauge::new(seconds),
            )?;
        }
        if let Some(seconds) = usage.cpu_seconds {
            let help = "User and system time.";
            sample(
                &mut encoder,
                "process_cpu_seconds",
                help,
                ConstCounter::new(seconds),
            )?;
        }
        Ok(())
    }
}

fn sample(
    encoder: &mut DescriptorEncoder<'_>,
    name: &'static str,
    help: &str,
    value: impl EncodeMetric,
) -> fmt::Result {
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

fn lock(usage: &Mutex<Usage>) -> MutexGuard<'_, Usage> {
    // Numbers that are copied whole: a holder that panicked has left none half written.
    usage.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A doc comment as a `HELP` text: the registry ends it with a full stop by itself.
fn help(doc_comment: &str) -> String {
    doc_comment.trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agreed_names_are_published() {
        let metrics = Metrics::new("echo");
        metrics.set_usage(Usage::now(true));
        metrics.connections.inc();
        metrics.requests("generate", 200).inc();
        metrics
            .request_duration("generate")
            .observe(std::time::Duration::from_millis(3));
        metrics.connections_closed("idle").inc();
        metrics.config_reloads(true).inc();
        metrics.tls_handshakes("full", "1.3").inc();
        metrics.tls_refused("clear_on_tls").inc();
        metrics.set_certificates([(1, 10), (2, 20)].into_iter());
        metrics.errors(ErrorCode::QueueFull).inc();
        metrics.cancelled(CancelReason::SlowReader).inc();
        let mut text = String::new();
        metrics.encode(&mut text);
        for line in [
            "autoglmd_connections 1",
            "autoglmd_connections_accepted_total 0",
            "autoglmd_requests_total{route=\"generate\",status=\"200\"} 1",
            "autoglmd_request_duration_seconds_count{route=\"generate\"} 1",
            "autoglmd_connections_closed_total{reason=\"idle\"} 1",
            "autoglmd_config_reloads_total{result=\"succeeded\"} 1",
            "autoglmd_errors_total{code=\"queue_full\"} 1",
            "autoglmd_errors_total{code=\"internal\"} 0",
            "autoglmd_cancelled_total{reason=\"slow_reader\"} 1",
            "autoglmd_cancelled_total{reason=\"disconnect\"} 0",
            "autoglmd_tokens_total{kind=\"prompt_cached\"} 0",
            "autoglmd_compressed_input_bytes_total{coding=\"zstd\"} 0",
            "autoglmd_compressed_output_bytes_total{coding=\"br\"} 0",
            "autoglmd_compression_cpu_seconds_total{coding=\"gzip\"} 0.0",
            "autoglmd_compression_skipped_total{reason=\"grew\"} 0",
            "autoglmd_compressed_streams 0",
            "autoglmd_inflated_output_bytes_total{coding=\"deflate\"} 0",
            "autoglmd_inflation_refused_total{reason=\"ratio\"} 0",
            "autoglmd_time_to_first_token_seconds_count 0",
            "autoglmd_time_per_output_token_seconds_count 0",
            "autoglmd_engine_sequences_running 0",
            "autoglmd_engine_queue_depth 0",
            "autoglmd_engine_kv_cells_used 0",
            "autoglmd_engine_kv_cells_size 0",
            "autoglmd_engine_decode_steps_total 0",
            "autoglmd_engine_restarts_total 0",
            "autoglmd_engine_silence_seconds 0",
            "autoglmd_loop_turn_seconds_count 0",
            "autoglmd_wakeups_total 0",
            "autoglmd_stale_events_total 0",
            "autoglmd_stale_completions_total 0",
            "autoglmd_accept_paused_total 0",
            "autoglmd_watchdog_fed_total 0",
            "autoglmd_tls_handshakes_total{outcome=\"full\",version=\"1.3\"} 1",
            "autoglmd_tls_handshakes_deferred_total 0",
            "autoglmd_tls_broken_total 0",
            "autoglmd_tls_truncated_total 0",
            "autoglmd_tls_refused_total{reason=\"clear_on_tls\"} 1",
            "autoglmd_tls_certificate_expiry_seconds{certificate=\"1\"} 20",
            "autoglmd_tls_certificate_not_before_seconds{certificate=\"1\"} 2",
            "autoglmd_log_dropped_total 0",
            "autoglmd_log_write_errors_total 0",
            concat!(
                "autoglmd_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\",engine=\"echo\"} 1"
            ),
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in:\n{text}"
            );
        }
        assert!(text.contains("\nprocess_resident_memory_bytes "));
        assert!(text.contains("\nprocess_cpu_seconds_total "));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn each_code_and_reason_has_its_own_counter() {
        let metrics = Metrics::new("echo");
        for code in ErrorCode::ALL {
            metrics.errors(*code).inc();
        }
        for reason in CancelReason::ALL {
            metrics.cancelled(reason).inc();
        }
        assert!(
            ErrorCode::ALL
                .iter()
                .all(|code| metrics.errors(*code).get() == 1)
        );
        assert!(
            CancelReason::ALL
                .iter()
                .all(|reason| metrics.cancelled(*reason).get() == 1)
        );
    }

    #[test]
    fn a_family_returns_the_same_counter_again_and_totals_never_decrease() {
        let metrics = Metrics::new("echo");
        metrics.requests("livez", 200).inc();
        metrics.clone().requests("livez", 200).inc();
        assert_eq!(metrics.requests("livez", 200).get(), 2);

        let mut gauges = Gauges {
            sequences_running: 3,
            decode_steps: 70,
            generated_tokens: 900,
            ..Gauges::default()
        };
        metrics.update_engine(&gauges);
        gauges.decode_steps = 60;
        gauges.sequences_running = 1;
        metrics.update_engine(&gauges);
        assert_eq!(metrics.engine_decode_steps.get(), 70);
        assert_eq!(metrics.engine_sequences_running.get(), 1);
        let mut text = String::new();
        metrics.encode(&mut text);
        assert!(text.contains("autoglmd_tokens_total{kind=\"generated\"} 900\n"));
    }
}
