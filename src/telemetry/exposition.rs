//! The two text formats of `/metrics`: OpenMetrics 1.0.0, and Prometheus' text format 0.0.4.
//!
//! The registry writes only OpenMetrics. [`classic`] turns it into 0.0.4, line by line, for
//! scrapers that know nothing else: Go's parser of 0.0.4 refuses a whole page for one metric of
//! type `info`. Owns the differences between the two formats; knows no metric.
//!
//! | OpenMetrics | 0.0.4 |
//! | --- | --- |
//! | a counter's `HELP` and `TYPE` name it without `_total` | with it, as its samples do |
//! | the same for `info` and `_info`, whose type is `info` | with it, the type is `gauge` |
//! | types `unknown`, `stateset`, `gaugehistogram` | `untyped`, `gauge`, `untyped` |
//! | `# UNIT`, `# EOF`, an exemplar after a sample | nothing |

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' text format 0.0.4, which every scraper reads.
    Classic,
    OpenMetrics,
}

impl Exposition {
    pub const fn content_type(self) -> &'static str {
        match self {
            Exposition::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Converts `text` from OpenMetrics to format 0.0.4.
pub fn classic(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // In OpenMetrics `HELP` comes before `TYPE`, and the type decides the name.
    let mut help = None;
    for line in text.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            push_line(&mut out, &[without_exemplar(line)]);
            continue;
        };
        match split_word(comment) {
            ("HELP", rest) => help = Some(split_word(rest)),
            ("TYPE", rest) => {
                let (name, kind) = split_word(rest);
                let (suffix, kind) = classic_type(kind);
                if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                    push_line(&mut out, &["# HELP ", name, suffix, " ", text]);
                }
                push_line(&mut out, &["# TYPE ", name, suffix, " ", kind]);
            }
            // `UNIT` and `EOF`.
            _ => {}
        }
    }
    out
}

/// Returns the suffix of a metric's name, and its type.
fn classic_type(kind: &str) -> (&'static str, &str) {
    match kind {
        "counter" => ("_total", "counter"),
        "info" => ("_info", "gauge"),
        "stateset" => ("", "gauge"),
        "unknown" | "gaugehistogram" => ("", "untyped"),
        "gauge" | "histogram" | "summary" => ("", kind),
        _ => ("", "untyped"),
    }
}

/// Returns a sample without its exemplar. A label's value may look like one, so quotes count.
fn without_exemplar(sample: &str) -> &str {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (index, byte) in sample.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'#' if !is_quoted => return sample[..index].trim_end(),
            _ => {}
        }
    }
    sample
}

fn split_word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

fn push_line(out: &mut String, parts: &[&str]) {
    for part in parts {
        out.push_str(part);
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations that this test catches: a suffix left out of `classic_type`, an exemplar searched
    /// without regard to quotes, and `UNIT` or `EOF` passed on.
    #[test]
    fn every_type_is_one_that_the_older_format_knows() {
        let open = "\
# HELP jobs Jobs that were stopped.
# TYPE jobs counter
jobs_total{why=\"a # {b\\\" # c\"} 3 # {trace=\"x\"} 1.0 5.5
jobs_total{why=\"d\"} 4
# HELP wait_seconds Time.
# TYPE wait_seconds histogram
# UNIT wait_seconds seconds
wait_seconds_sum 0.5
wait_seconds_count 2
wait_seconds_bucket{le=\"0.1\"} 1 # {trace=\"y\"} 0.05
wait_seconds_bucket{le=\"+Inf\"} 2
# HELP build The build.
# TYPE build info
build_info{version=\"1\"} 1
# TYPE odd unknown
odd 1.5
# HELP open Open now.
# TYPE open gauge
open -1
# TYPE state stateset
state{state=\"a\"} 1
# EOF
";
        let expected = "\
# HELP jobs_total Jobs that were stopped.
# TYPE jobs_total counter
jobs_total{why=\"a # {b\\\" # c\"} 3
jobs_total{why=\"d\"} 4
# HELP wait_seconds Time.
# TYPE wait_seconds histogram
wait_seconds_sum 0.5
wait_seconds_count 2
wait_seconds_bucket{le=\"0.1\"} 1
wait_seconds_bucket{le=\"+Inf\"} 2
# HELP build_info The build.
# TYPE build_info gauge
build_info{version=\"1\"} 1
# TYPE odd untyped
odd 1.5
# HELP open Open now.
# TYPE open gauge
open -1
# TYPE state gauge
state{state=\"a\"} 1
";
        assert_eq!(classic(open), expected);
    }

    #[test]
    fn empty_text_and_odd_lines_pass() {
        assert_eq!(classic(""), "");
        assert_eq!(classic("# EOF\n"), "");
        assert_eq!(classic("# TYPE a\n# HELP\n#\n"), "# TYPE a untyped\n\n");
    }
}
