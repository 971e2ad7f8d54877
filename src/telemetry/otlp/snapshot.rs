//! Turns the registry's text of one moment into batches: compressed messages of bounded size.
//!
//! Owns the shape of the messages, and the [`Source`] that all batches of a process come from.
//!
//! Invariants:
//!  1. A batch has at most `PUSH_BATCH_POINTS_MAX` points, and every point is in exactly one.
//!  2. Times never go back, whatever the wall clock does, and none is before the start.
//!  3. The buckets of a histogram's point add up to its count.
//!
//! Mutations that the tests below catch: buckets that stay cumulative, a batch without its bound, a
//! time taken from the clock alone.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message as _;

use super::message::{
    Data, ExportRequest, Gauge, Histogram, HistogramPoint, Metric, NumberPoint, Resource,
    ResourceMetrics, Scope, ScopeMetrics, Sum, Temporality, Value,
};
use super::names::{self, Name, Template};
use super::text::{self, Family, Kind, Number, Series};
use crate::limits::telemetry as limits;
use crate::telemetry::metrics::Row;

/// One request to the collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Compressed with gzip.
    pub bytes: Bytes,
    pub points: u64,
}

/// The process whose numbers are pushed.
#[derive(Clone, Debug)]
pub struct Source {
    resource: Resource,
    routes: Vec<Template>,
    start_nanos: u64,
    last_nanos: u64,
}

impl Source {
    /// `instance` names this process among all of the same service. `routes`: those that have a
    /// path. `start_nanos`: when the process's counters began, since 1970.
    pub fn new(instance: &str, engine: &str, routes: Vec<Template>, start_nanos: u64) -> Source {
        let attributes = vec![
            names::text("service.name", "autoglmd"),
            names::text("service.version", env!("CARGO_PKG_VERSION")),
            names::text("service.instance.id", instance),
            names::text("autoglmd.engine", engine),
        ];
        Source {
            resource: Resource { attributes },
            routes,
            start_nanos,
            last_nanos: start_nanos,
        }
    }

    /// Makes the batches of one moment. `now_nanos`: the wall clock.
    pub fn batches(&mut self, text: &str, rows: &[&'static Row], now_nanos: u64) -> Vec<Batch> {
        self.last_nanos = self.last_nanos.max(now_nanos);
        let metrics = self.metrics(text, rows);
        let packed = pack(metrics, limits::PUSH_BATCH_POINTS_MAX);
        packed.into_iter().map(|pack| self.batch(pack)).collect()
    }

    fn metrics(&self, text: &str, rows: &[&'static Row]) -> Vec<Metric> {
        let mut metrics = Vec::new();
        for family in text::families(text) {
            let name = names::name(&family, rows);
            if family.kind == Kind::Info {
                // The resource has it.
                continue;
            }
            if name.name == names::REQUEST_DURATION {
                metrics.push(self.generations(&family, &name));
            }
            metrics.push(self.metric(&family, &name));
        }
        metrics.retain(|metric| points_of(metric) > 0);
        metrics
    }

    /// Returns the part of the requests' durations that belongs to generations.
    fn generations(&self, family: &Family, name: &Name) -> Metric {
        let mut part = family.clone();
        part.series
            .retain(|series| names::is_generation(&series.labels));
        part.help =
            "From the first byte of a request for a generation to its response's last.".into();
        let name = Name {
            name: names::GENERATION_DURATION.into(),
            ..name.clone()
        };
        self.metric(&part, &name)
    }

    fn metric(&self, family: &Family, name: &Name) -> Metric {
        let numbers = || family.series.iter().map(|series| self.number(series, name));
        let data = match family.kind {
            Kind::Histogram => Data::Histogram(Histogram {
                data_points: family
                    .series
                    .iter()
                    .map(|series| self.histogram(series, name))
                    .collect(),
                aggregation_temporality: Temporality::Cumulative.into(),
            }),
            Kind::Gauge | Kind::Info if !name.is_sum => Data::Gauge(Gauge {
                data_points: numbers().collect(),
            }),
            kind => Data::Sum(Sum {
                data_points: numbers().collect(),
                aggregation_temporality: Temporality::Cumulative.into(),
                is_monotonic: kind == Kind::Counter,
            }),
        };
        Metric {
            name: name.name.clone().into_owned(),
            description: family.help.clone(),
            unit: name.unit.to_owned(),
            data: Some(data),
        }
    }

    fn number(&self, series: &Series, name: &Name) -> NumberPoint {
        NumberPoint {
            attributes: names::attributes(&name.name, &series.labels, &self.routes),
            start_time_unix_nano: self.start_nanos,
            time_unix_nano: self.last_nanos,
            value: Some(match series.value {
                Number::Int(value) => Value::Int(value),
                Number::Float(value) => Value::Double(value),
            }),
        }
    }

    fn histogram(&self, series: &Series, name: &Name) -> HistogramPoint {
        let mut below = 0;
        let own = |up_to: &u64| up_to.saturating_sub(std::mem::replace(&mut below, *up_to));
        let bucket_counts = series.cumulative.iter().map(own).collect();
        HistogramPoint {
            attributes: names::attributes(&name.name, &series.labels, &self.routes),
            start_time_unix_nano: self.start_nanos,
            time_unix_nano: self.last_nanos,
            count: series.cumulative.last().copied().unwrap_or(0),
            sum: Some(series.value.as_f64()),
            bucket_counts,
            explicit_bounds: series.bounds.clone(),
        }
    }

    fn batch(&self, metrics: Vec<Metric>) -> Batch {
        let points = metrics.iter().map(points_of).sum::<usize>() as u64;
        let request = ExportRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(Scope {
                        name: "autoglmd".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                    }),
                    metrics,
                }],
            }],
        };
        Batch {
            bytes: compress(&request.encode_to_vec()),
            points,
        }
    }
}

fn compress(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.expect("a vector takes all bytes").into()
}

fn points_of(metric: &Metric) -> usize {
    match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        None => 0,
    }
}

/// Divides metrics into packs of at most `most` points. A metric with more of them is divided too.
fn pack(metrics: Vec<Metric>, most: usize) -> Vec<Vec<Metric>> {
    let mut packs: Vec<Vec<Metric>> = Vec::new();
    let mut room = 0;
    for mut rest in metrics {
        while points_of(&rest) > 0 {
            if room == 0 {
                packs.push(Vec::new());
                room = most;
            }
            let tail = split_off(&mut rest, room);
            room -= points_of(&rest);
            if let Some(pack) = packs.last_mut() {
                pack.push(rest);
            }
            rest = tail;
        }
    }
    packs
}

/// Leaves at most `most` points in the metric, and returns the same metric with the others.
fn split_off(metric: &mut Metric, most: usize) -> Metric {
    let mut tail = metric.clone();
    match (&mut metric.data, &mut tail.data) {
        (Some(Data::Gauge(head)), Some(Data::Gauge(tail))) => {
            split(&mut head.data_points, &mut tail.data_points, most);
        }
        (Some(Data::Sum(head)), Some(Data::Sum(tail))) => {
            split(&mut head.data_points, &mut tail.data_points, most);
        }
        (Some(Data::Histogram(head)), Some(Data::Histogram(tail))) => {
            split(&mut head.data_points, &mut tail.data_points, most);
        }
        _ => tail.data = None,
    }
    tail
}

fn split<T>(head: &mut Vec<T>, tail: &mut Vec<T>, most: usize) {
    head.truncate(most);
    tail.drain(..head.len());
}

#[cfg(test)]
mod tests {
    use super::super::message::Any;
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read as _;
    use std::time::Duration;

    use crate::telemetry::metrics::{Histogram as Durations, Metrics, Series as _};
    use proptest::prelude::*;

    crate::families! {
        /// Series with the names of the service's.
        pub struct SomeSeries {
            /// Time of requests.
            durations: Histogram(&[1_000, 5_000]) = "request_duration_seconds" {
                route: &'static str
            }, "http.server.request.duration";
            /// Responses.
            requests: Counter = "requests" { route: &'static str, status: u16 },
                "autoglmd.http.server.request";
        }
    }

    fn decode(batch: &Batch) -> Vec<Metric> {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&batch.bytes[..])
            .read_to_end(&mut plain)
            .unwrap();
        let mut request = ExportRequest::decode(&plain[..]).unwrap();
        let mut resource = request.resource_metrics.remove(0);
        resource.scope_metrics.remove(0).metrics
    }

    fn rows() -> Vec<&'static Row> {
        SomeSeries::ROWS.iter().collect()
    }

    fn source() -> Source {
        let routes = vec![("jobs", "/jobs"), ("generate", "/api/v1/generate")];
        Source::new("one", "echo", routes, 1_000)
    }

    fn text(metrics: &Metrics) -> String {
        let mut text = String::new();
        metrics.encode(&mut text);
        text
    }

    fn route(point: &HistogramPoint) -> Option<String> {
        let mut attributes = point.attributes.iter();
        let found = attributes.find(|pair| pair.key == "http.route")?;
        match found.value.clone()?.value? {
            Any::Text(text) => Some(text),
            Any::Int(_) => panic!("a path is a text"),
        }
    }

    /// Mutations: a template for each route, also for those without one; the label as the template.
    #[test]
    fn a_request_appears_under_both_conventions_and_with_its_attributes() {
        let metrics = Metrics::new("echo");
        let some = metrics.series::<SomeSeries>();
        some.durations
            .get("generate")
            .observe(Duration::from_millis(3));
        some.durations
            .get("metrics")
            .observe(Duration::from_secs(1));
        some.requests.get(("generate", 200)).inc();
        let batches = source().batches(&text(&metrics), &rows(), 2_000);
        assert_eq!(batches.len(), 1);
        let metrics = decode(&batches[0]);
        let find = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap();
        let Some(Data::Histogram(http)) = &find("http.server.request.duration").data else {
            panic!("a histogram");
        };
        let mut routes: Vec<_> = http.data_points.iter().map(route).collect();
        routes.sort();
        assert_eq!(
            routes,
            [None, Some("/api/v1/generate".to_owned())],
            "a path, where there is one"
        );
        assert_eq!(http.aggregation_temporality, 2);
        let generation = find("gen_ai.server.request.duration");
        assert_eq!(generation.unit, "s");
        let Some(Data::Histogram(generation)) = &generation.data else {
            panic!("a histogram");
        };
        let [point] = &generation.data_points[..] else {
            panic!("one route generates");
        };
        assert_eq!(point.explicit_bounds, [0.001, 0.005]);
        assert_eq!((&point.bucket_counts[..], point.count), (&[0, 1, 0][..], 1));
        assert_eq!(
            (point.start_time_unix_nano, point.time_unix_nano),
            (1_000, 2_000)
        );
        let keys: Vec<&str> = point
            .attributes
            .iter()
            .map(|pair| pair.key.as_str())
            .collect();
        let expected = [
            "autoglmd.route",
            "gen_ai.operation.name",
            "gen_ai.provider.name",
        ];
        assert_eq!(keys, expected);
        let Some(Data::Sum(requests)) = &find("autoglmd.http.server.request").data else {
            panic!("a sum");
        };
        assert!(requests.is_monotonic);
        let attributes = &requests.data_points[0].attributes;
        let keys: Vec<&str> = attributes.iter().map(|pair| pair.key.as_str()).collect();
        let expected = ["autoglmd.route", "http.route", "http.response.status_code"];
        assert_eq!(keys, expected);
    }

    /// Mutations: a sum that is always monotonic; a family without series, or of the kind `info`,
    /// that is sent; a sum that is sent as a gauge.
    #[test]
    fn each_kind_has_its_own_form() {
        let text = "# TYPE a gauge\na 1\n\
                    # TYPE b counter\nb_total 2\n\
                    # TYPE c info\nc_info{d=\"e\"} 1\n\
                    # TYPE process_threads gauge\nprocess_threads 3\n\
                    # TYPE f gauge\n";
        let sent = source().metrics(text, &[]);
        let forms = sent.iter().map(|metric| match &metric.data {
            Some(Data::Sum(sum)) if sum.is_monotonic => "counter",
            Some(Data::Sum(_)) => "sum",
            Some(Data::Gauge(_)) => "gauge",
            _ => "another",
        });
        assert_eq!(forms.collect::<Vec<_>>(), ["gauge", "counter", "sum"]);
    }

    #[test]
    fn time_never_goes_back() {
        let mut source = source();
        for (clock, expected) in [(500, 1_000), (3_000, 3_000), (2_000, 3_000), (4_000, 4_000)] {
            let text = "# TYPE a gauge\na 1\n";
            let metrics = decode(&source.batches(text, &[], clock)[0]);
            let Some(Data::Gauge(gauge)) = &metrics[0].data else {
                panic!("a gauge");
            };
            assert_eq!(gauge.data_points[0].time_unix_nano, expected);
        }
    }

    proptest! {
        #[test]
        fn every_point_is_in_one_pack_and_no_pack_is_too_large(
            sizes in prop::collection::vec(0_usize..40, 0..20),
            most in 1_usize..50,
        ) {
            let metric = |(at, size): (usize, &usize)| Metric {
                name: at.to_string(),
                data: Some(Data::Gauge(Gauge {
                    data_points: (0..*size)
                        .map(|value| NumberPoint {
                            value: Some(Value::Int(value as i64)),
                            ..NumberPoint::default()
                        })
                        .collect(),
                })),
                ..Metric::default()
            };
            let packs = pack(sizes.iter().enumerate().map(metric).collect(), most);
            let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
            for pack in packs {
                let points: usize = pack.iter().map(points_of).sum();
                prop_assert!(points > 0 && points <= most);
                for metric in pack {
                    let Some(Data::Gauge(gauge)) = metric.data else { panic!("a gauge") };
                    let values = gauge.data_points.iter().map(|point| match point.value {
                        Some(Value::Int(value)) => value,
                        _ => panic!("an integer"),
                    });
                    found.entry(metric.name).or_default().extend(values);
                }
            }
            for (at, size) in sizes.iter().enumerate() {
                let values = found.remove(&at.to_string()).unwrap_or_default();
                prop_assert_eq!(values, (0..*size as i64).collect::<Vec<_>>());
            }
        }

        /// The totals of an interval are the sums of what was observed, and the buckets' too.
        #[test]
        fn buckets_add_up(millis in prop::collection::vec(0_u64..10, 0..50)) {
            let metrics = Metrics::new("echo");
            let some = metrics.series::<SomeSeries>();
            let durations: Durations = some.durations.get("generate");
            for value in &millis {
                durations.observe(Duration::from_millis(*value));
            }
            let source = source();
            let sent = source.metrics(&text(&metrics), &rows());
            let is_its = |metric: &&Metric| metric.name == "http.server.request.duration";
            let Some(Data::Histogram(sent)) = &sent.iter().find(is_its).unwrap().data else {
                panic!("a histogram");
            };
            let point = &sent.data_points[0];
            prop_assert_eq!(point.count, millis.len() as u64);
            prop_assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
            let upper = |bound| millis.iter().filter(|value| **value <= bound).count() as u64;
            let expected = [upper(1), upper(5) - upper(1), millis.len() as u64 - upper(5)];
            prop_assert_eq!(&point.bucket_counts[..], &expected[..]);
            let sum = millis.iter().sum::<u64>() as f64 / 1e3;
            prop_assert!((point.sum.unwrap() - sum).abs() < 1e-9);
        }
    }
}
