//! Reads the registry's own text (OpenMetrics) back into families of samples.
//!
//! The registry offers no other way to its numbers. Owns the parts of the format that the registry
//! writes, and no more: this is not a parser for the text of strangers. A line that it does not
//! understand is skipped, and a family without a known type is left out.

use std::collections::BTreeMap;

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// One sample, whose labels are the information.
    Info,
}

/// All samples of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Without the type's suffix.
    pub name: String,
    pub help: String,
    pub kind: Kind,
    pub series: Vec<Series>,
}

/// The numbers of one set of labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    pub labels: Labels,
    pub value: Number,
    /// Of a histogram: the upper bounds, ascending, without the last one, which is infinite.
    pub bounds: Vec<f64>,
    /// Of a histogram: the observations up to each bound, and all of them at the end.
    pub cumulative: Vec<u64>,
}

pub type Labels = BTreeMap<String, String>;

/// A sample's value; the sum of a histogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Int(i64),
    Float(f64),
}

impl Default for Number {
    fn default() -> Number {
        Number::Int(0)
    }
}

impl Number {
    pub fn as_f64(self) -> f64 {
        match self {
            Number::Int(value) => value as f64,
            Number::Float(value) => value,
        }
    }

    fn parse(text: &str) -> Option<Number> {
        let int = text.parse().map(Number::Int);
        int.or_else(|_| text.parse().map(Number::Float)).ok()
    }
}

/// Reads the whole text.
pub fn families(text: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    let mut help = ("", "");
    for line in text.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            if let Some(family) = families.last_mut() {
                add_sample(family, line);
            }
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next().unwrap_or("")) {
            (Some("HELP"), Some(name), text) => help = (name, text),
            (Some("TYPE"), Some(name), kind) => {
                let Some(kind) = parse_kind(kind) else {
                    continue;
                };
                let help = if help.0 == name { help.1 } else { "" };
                families.push(Family {
                    name: name.to_owned(),
                    help: help.to_owned(),
                    kind,
                    series: Vec::new(),
                });
            }
            _ => {}
        }
    }
    families
}

fn parse_kind(word: &str) -> Option<Kind> {
    match word {
        "counter" => Some(Kind::Counter),
        "gauge" => Some(Kind::Gauge),
        "histogram" => Some(Kind::Histogram),
        "info" => Some(Kind::Info),
        _ => None,
    }
}

fn add_sample(family: &mut Family, line: &str) {
    let Some(suffix) = line.strip_prefix(family.name.as_str()) else {
        return;
    };
    let Some((suffix, labels, value)) = split_sample(suffix) else {
        return;
    };
    match (family.kind, suffix) {
        (Kind::Counter, "_total") | (Kind::Gauge, "") | (Kind::Info, "_info") => {
            family.series.push(Series {
                labels,
                value,
                ..Series::default()
            });
        }
        (Kind::Histogram, "_sum") => series_of(family, labels).value = value,
        (Kind::Histogram, "_bucket") => add_bucket(family, labels, value),
        // `_count` is the last bucket.
        _ => {}
    }
}

fn add_bucket(family: &mut Family, mut labels: Labels, value: Number) {
    let (Some(bound), Number::Int(count)) = (labels.remove("le"), value) else {
        return;
    };
    let series = series_of(family, labels);
    if let Ok(bound) = bound.parse::<f64>()
        && bound.is_finite()
    {
        series.bounds.push(bound);
    }
    series.cumulative.push(u64::try_from(count).unwrap_or(0));
}

/// Returns the series of these labels: the last one, or a new one, since all samples of a histogram
/// come together.
fn series_of(family: &mut Family, labels: Labels) -> &mut Series {
    let is_same = family
        .series
        .last()
        .is_some_and(|last| last.labels == labels);
    if !is_same {
        family.series.push(Series {
            labels,
            ..Series::default()
        });
    }
    let last = family.series.len() - 1;
    &mut family.series[last]
}

/// Splits `SUFFIX{LABELS} VALUE`.
fn split_sample(sample: &str) -> Option<(&str, Labels, Number)> {
    let end = sample.find(['{', ' '])?;
    let (suffix, mut rest) = sample.split_at(end);
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (name, text) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = unquote(text)?;
            labels.insert(name.to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    // A timestamp or an exemplar may follow.
    let value = rest.trim_start().split(' ').next()?;
    Some((suffix, labels, Number::parse(value)?))
}

/// Returns a label's value and the text after its closing quote.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut is_escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            'n' if is_escaped => value.push('\n'),
            _ if is_escaped => value.push(character),
            '\\' => {
                is_escaped = true;
                continue;
            }
            '"' => return Some((value, &text[at + 1..])),
            _ => value.push(character),
        }
        is_escaped = false;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Metrics, Series as _};
    use std::time::Duration;

    crate::families! {
        /// The series of a shop.
        pub struct ShopSeries {
            /// Visitors now.
            visitors: Gauge = "visitors", "shop.visitor";
            /// Sales.
            sales: Counter = "sales" { kind: &'static str }, "shop.sale";
            /// Work.
            work: Seconds = "work_seconds", "shop.work";
            /// Time in the shop.
            stay: Histogram(&[1_000, 1_000_000]) = "stay_seconds" { kind: &'static str },
                "shop.stay";
        }
    }

    /// Mutations that this test catches: labels without their escapes, a bucket that goes to the
    /// series before it, the infinite bound kept.
    #[test]
    fn the_registrys_numbers_come_back() {
        let metrics = Metrics::new("echo");
        let shop = metrics.series::<ShopSeries>();
        shop.visitors.set(-2);
        shop.sales.get("a \"b\\c\"\n,}").inc_by(3);
        shop.work.inc_by(1.5);
        shop.stay.get("one").observe(Duration::from_millis(1));
        shop.stay.get("one").observe(Duration::from_secs(3));
        shop.stay.get("two").observe(Duration::from_millis(10));
        let mut text = String::new();
        metrics.encode(&mut text);

        let families = families(&text);
        let find = |name: &str| {
            let found = families.iter().find(|family| family.name == name);
            found.unwrap_or_else(|| panic!("{name} in {text}"))
        };
        let visitors = find("autoglmd_visitors");
        assert_eq!(
            (visitors.kind, visitors.help.as_str()),
            (Kind::Gauge, "Visitors now.")
        );
        assert_eq!(visitors.series[0].value, Number::Int(-2));
        let sales = find("autoglmd_sales");
        assert_eq!(sales.series[0].labels["kind"], "a \"b\\c\"\n,}");
        assert_eq!(sales.series[0].value, Number::Int(3));
        assert_eq!(
            find("autoglmd_work_seconds").series[0].value,
            Number::Float(1.5)
        );
        let stay = find("autoglmd_stay_seconds");
        assert_eq!(stay.kind, Kind::Histogram);
        for (kind, cumulative, sum) in [("one", [1, 1, 2], 3.001), ("two", [0, 1, 1], 0.01)] {
            let is_its = |series: &&Series| series.labels["kind"] == kind;
            let series = stay.series.iter().find(is_its).unwrap();
            assert_eq!(series.labels.len(), 1, "{series:?}");
            assert_eq!(series.bounds, [0.001, 1.0]);
            assert_eq!(series.cumulative, cumulative);
            assert_eq!(series.value, Number::Float(sum));
        }
        assert_eq!(find("autoglmd_build").kind, Kind::Info);
        assert_eq!(ShopSeries::ROWS.len(), 4);
    }

    #[test]
    fn odd_lines_are_skipped() {
        let text =
            "x 1\n# TYPE a counter\na_total{b=\"c} 1\na_total 2 3.5\na_total\n# TYPE s odd\n";
        let families = families(text);
        assert_eq!(families.len(), 1);
        assert_eq!(families[0].series.len(), 1);
        assert_eq!(families[0].series[0].value, Number::Int(2));
    }
}
