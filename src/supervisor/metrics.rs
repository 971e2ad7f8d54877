//! The supervisor's series in `/metrics`, and the kernel's numbers about the process.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::os::process::Usage;
use crate::telemetry::metrics::sample;

crate::families! {
    /// Reloads, certificates and the watchdog.
    pub struct SupervisorSeries {
        /// Watchdog messages sent to the service manager.
        watchdog_fed: Counter = "watchdog_fed", "autoglmd.watchdog.fed";
        /// Reloads tried.
        reloads: Counter = "config_reloads" { result: ReloadResult }, "autoglmd.config.reload";
        /// When a certificate expires, in seconds since 1970.
        certificate_ends: Gauge = "tls_certificate_expiry_seconds" { certificate: usize },
            "autoglmd.tls.certificate.not_after";
        /// When a certificate becomes valid, in seconds since 1970.
        certificate_begins: Gauge = "tls_certificate_not_before_seconds" { certificate: usize },
            "autoglmd.tls.certificate.not_before";
    }
}

/// How a reload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadResult {
    Succeeded,
    Refused,
}

impl ReloadResult {
    const fn as_str(self) -> &'static str {
        match self {
            ReloadResult::Succeeded => "succeeded",
            ReloadResult::Refused => "refused",
        }
    }
}

crate::label!(ReloadResult, as_str);

impl SupervisorSeries {
    /// Publishes when each certificate begins and ends, by its place in the configuration, of which
    /// there are few.
    ///
    /// Two fixed times, not a verdict: an alert compares them with a correct clock, which this
    /// machine may not have.
    pub fn set_certificates(&self, validities: impl Iterator<Item = (i64, i64)>) {
        self.certificate_begins.clear();
        self.certificate_ends.clear();
        for (certificate, (begins_at, expires_at)) in validities.enumerate() {
            self.certificate_begins.get(certificate).set(begins_at);
            self.certificate_ends.get(certificate).set(expires_at);
        }
    }
}

/// Copies the kernel's numbers about the process at each scrape. The `process_*` names are those
/// that Prometheus' client libraries share. The supervisor samples the numbers, because reading
/// them here would delay a reactor.
#[derive(Clone, Debug, Default)]
pub struct UsageCollector(Arc<Mutex<Usage>>);

impl UsageCollector {
    pub fn set(&self, usage: Usage) {
        // Numbers that are copied whole: a holder that panicked has left none half written.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = usage;
    }
}

impl Collector for UsageCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let usage = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
            let (name, help) = (
                "process_start_time_seconds",
                "Start of the process, in seconds since 1970.",
            );
            sample(&mut encoder, name, help, ConstGauge::new(seconds))?;
        }
        if let Some(seconds) = usage.cpu_seconds {
            let (name, help) = ("process_cpu_seconds", "User and system time.");
            sample(&mut encoder, name, help, ConstCounter::new(seconds))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bus::metrics::BusSeries;
    use crate::cache::metrics::{CacheSeries, Level};
    use crate::cache::shared::SharedSeries;
    use crate::core::buffered::Claim;
    use crate::core::glitch::Glitch;
    use crate::engine::Verdict;
    use crate::engine::metrics::EngineSeries;
    use crate::offload::metrics::{ResolverSeries, WorkerSeries};
    use crate::reactor::close_reason::CloseReason;
    use crate::reactor::metrics::{HandshakeOutcome, Part, ReactorSeries, TlsRefusal};
    use crate::reactor::outbound::metrics::OutboundSeries;
    use crate::redis::metrics::RedisSeries;
    use crate::service::metrics::ServiceSeries;
    use crate::service::{CompressionSeries, Route};
    use crate::telemetry::exposition::Exposition;
    use crate::telemetry::metrics::{Metrics, Series};
    use crate::telemetry::otlp::metrics::PushSeries;

    /// The daemon's registry after a few events.
    fn busy(usage: Usage) -> Metrics {
        let metrics = Metrics::new("echo");
        let collector = UsageCollector::default();
        collector.set(usage);
        metrics.register_collector(Box::new(collector));
        metrics.series::<EngineSeries>();
        metrics.series::<WorkerSeries>();
        metrics.series::<ResolverSeries>();
        metrics.series::<OutboundSeries>();
        metrics.series::<RedisSeries>();
        metrics.series::<BusSeries>();
        metrics.series::<SharedSeries>();
        let cache = metrics.series::<CacheSeries>();
        cache.verdicts.get((Level::Response, Verdict::Hit)).inc();
        metrics.series::<CompressionSeries>();
        metrics.series::<PushSeries>();
        let service = metrics.series::<ServiceSeries>();
        service.requests.get((Route::Generate, 200)).inc();
        let duration = service.durations.get(Route::Generate);
        duration.observe(Duration::from_millis(3));
        let reactor = metrics.series::<ReactorSeries>();
        reactor.closed.get(CloseReason::Idle).inc();
        reactor.glitches.get(Glitch::Drip).inc();
        let refused = (Claim::Anonymous, Part::Head);
        reactor.buffers_refused.get(refused).inc();
        reactor.held_back.get(Claim::Anonymous).inc();
        let handshake = (HandshakeOutcome::Full, "1.3");
        reactor.tls_handshakes.get(handshake).inc();
        reactor.tls_refused.get(TlsRefusal::ClearOnTls).inc();
        reactor.proxy_refused.get("untrusted").inc();
        let supervisor = metrics.series::<SupervisorSeries>();
        supervisor.reloads.get(ReloadResult::Succeeded).inc();
        supervisor.set_certificates([(1, 10), (2, 20)].into_iter());
        metrics
    }

    /// Every series that the daemon has, with its help and type, as scrapers know them. Sorted: the
    /// order of the families means nothing.
    ///
    /// Mutations that this test catches: a row renamed, its type or help changed, and a family in
    /// place of a table (its series are then absent until their first use).
    #[test]
    fn the_exposition_is_the_one_that_scrapers_know() {
        let metrics = busy(Usage::default());
        let mut text = String::new();
        metrics.encode(&mut text);
        // The log is one for all tests of this process, which may count lines at any time.
        let is_fixed = |line: &&str| !line.starts_with("autoglmd_log_");
        let mut lines: Vec<&str> = text.lines().filter(is_fixed).collect();
        lines.sort_unstable();
        let expected = include_str!("metrics.txt");
        let expected = expected.replace("VERSION", env!("CARGO_PKG_VERSION"));
        let mut expected: Vec<&str> = expected.lines().filter(is_fixed).collect();
        expected.sort_unstable();
        let missing = expected.iter().filter(|line| !lines.contains(line));
        let missing: Vec<&&str> = missing.collect();
        let new = lines.iter().filter(|line| !expected.contains(line));
        let new: Vec<&&str> = new.collect();
        assert!(
            missing.is_empty() && new.is_empty(),
            "{missing:#?} {new:#?}"
        );
        assert_eq!(lines.len(), expected.len(), "a line twice");
    }

    /// Mutation: the `HELP` line keeps the name that it has in OpenMetrics.
    #[test]
    fn each_sample_of_the_daemon_belongs_to_the_type_above_it() {
        let metrics = busy(Usage::now(true));
        let open = metrics.expose(Exposition::OpenMetrics);
        let text = metrics.expose(Exposition::Classic);
        let samples = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(samples(&text), samples(&open));
        let (mut helped, mut of, mut kind) = ("", "", "");
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["#", "HELP", name, ..] => helped = name,
                ["#", "TYPE", name, its_kind] => (of, kind) = (name, its_kind),
                ["#", ..] => panic!("a comment: {line}"),
                [series, ..] => {
                    let name = series.split('{').next().unwrap();
                    let is_its = match kind {
                        "histogram" => ["_sum", "_count", "_bucket"]
                            .iter()
                            .any(|suffix| name.strip_suffix(suffix) == Some(of)),
                        "counter" => name == of && name.ends_with("_total"),
                        "gauge" => name == of,
                        _ => false,
                    };
                    assert!(is_its && helped == of, "{line} under {of} {kind}, {helped}");
                }
                [] => panic!("an empty line"),
            }
        }
        assert!(text.contains("\nprocess_resident_memory_bytes "));
        assert!(text.contains("\nprocess_cpu_seconds_total "));
        assert!(text.contains("\n# TYPE autoglmd_build_info gauge\nautoglmd_build_info{"));
    }

    /// Names for OpenTelemetry are unique, and in its style.
    #[test]
    fn each_row_has_its_own_name_for_opentelemetry() {
        let tables = [
            EngineSeries::ROWS,
            WorkerSeries::ROWS,
            ResolverSeries::ROWS,
            OutboundSeries::ROWS,
            RedisSeries::ROWS,
            BusSeries::ROWS,
            SharedSeries::ROWS,
            PushSeries::ROWS,
            CompressionSeries::ROWS,
            ServiceSeries::ROWS,
            ReactorSeries::ROWS,
            SupervisorSeries::ROWS,
        ];
        let mut seen = std::collections::HashSet::new();
        for row in tables.into_iter().flatten() {
            assert!(seen.insert(row.otel), "{}", row.otel);
            let is_plain = |c: char| c.is_ascii_lowercase() || "._".contains(c);
            assert!(row.otel.chars().all(is_plain), "{}", row.otel);
            assert!(row.otel.contains('.'), "{}", row.otel);
        }
    }
}
