//! The contents of `/metrics` at one moment: Prometheus' text format, parsed as far as tests need.

use std::collections::BTreeMap;

pub struct Metrics {
    samples: Vec<Sample>,
}

struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    pub fn parse(text: &str) -> Metrics {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        Metrics {
            samples: lines.map(parse_sample).collect(),
        }
    }

    /// Returns the sum of all samples of this name with these labels; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |sample: &&Sample| {
            let has = |(key, value): &(&str, &str)| {
                sample.labels.get(*key).is_some_and(|found| found == value)
            };
            sample.name == name && labels.iter().all(has)
        };
        self.samples
            .iter()
            .filter(carries)
            .map(|sample| sample.value)
            .sum()
    }

    /// Returns the one sample of this name without labels.
    #[track_caller]
    pub fn value(&self, name: &str) -> f64 {
        let found = self.samples.iter().find(|sample| sample.name == name);
        found
            .unwrap_or_else(|| panic!("/metrics lacks {name}"))
            .value
    }

    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }
}

fn parse_sample(line: &str) -> Sample {
    let (series, value) = line
        .rsplit_once(' ')
        .unwrap_or_else(|| panic!("no value in {line:?}"));
    let value = value
        .parse()
        .unwrap_or_else(|_| panic!("no number in {line:?}"));
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, parse_labels(labels.trim_end_matches('}'))),
        None => (series, BTreeMap::new()),
    };
    Sample {
        name: name.to_owned(),
        labels,
        value,
    }
}

/// Label values of the daemon come from closed sets, so none contains a comma or a quote.
fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .unwrap_or_else(|| panic!("label {pair:?}"));
            (key.to_owned(), value.trim_matches('"').to_owned())
        })
        .collect()
}
