//! The log lines about pushes: one per minute at most, with all that went wrong since the last one.
//!
//! Owns the counts since then. Pure: the caller writes the lines.
//!
//! Mutations that the test below catches: `poll_line` that does not remember when it had one, or
//! that keeps the counts; points that are lost without a failed push and have no line.

use crate::core::Moment;
use crate::limits::telemetry as limits;

#[derive(Debug, Default)]
pub struct Troubles {
    times: u64,
    points: u64,
    latest: String,
    told_at: Option<Moment>,
}

impl Troubles {
    /// A push has failed, or has lost some of its points.
    pub fn note(&mut self, problem: String) {
        self.times += 1;
        self.latest = problem;
    }

    /// Points will not be sent again.
    pub fn lose(&mut self, points: u64) {
        self.points += points;
    }

    /// Returns a line, if there was trouble and it is time for one.
    pub fn poll_line(&mut self, url: &str, now: Moment) -> Option<String> {
        let is_early = |at: Moment| now.since(at) < limits::PUSH_LOG_INTERVAL;
        if self.told_at.is_some_and(is_early) {
            return None;
        }
        let line = self.take_line(url)?;
        self.told_at = Some(now);
        Some(line)
    }

    /// Returns a line about the trouble since the last one, if there was any.
    pub fn take_line(&mut self, url: &str) -> Option<String> {
        let Troubles { times, points, .. } = *self;
        let latest = std::mem::take(&mut self.latest);
        (self.times, self.points) = (0, 0);
        match (times, points) {
            (0, 0) => None,
            (0, _) => Some(format!(
                "metrics.push: {points} points for {url} were lost, because the spool is full"
            )),
            _ => Some(format!(
                "metrics.push: {times} pushes to {url} failed, the last one: {latest}; \
                 {points} points were lost"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const URL: &str = "http://localhost/";

    #[test]
    fn trouble_is_told_once_a_minute_with_all_that_happened_since() {
        let mut troubles = Troubles::default();
        let start = Moment::from_micros(1_000_000);
        assert_eq!(troubles.poll_line(URL, start), None, "there is none");
        let mut lines = Vec::new();
        for second in 0..180 {
            troubles.note(format!("status {second}"));
            troubles.lose(2);
            let now = start + Duration::from_secs(second);
            lines.extend(troubles.poll_line(URL, now));
        }
        let line = |times, latest| {
            let points = 2 * times;
            format!(
                "metrics.push: {times} pushes to {URL} failed, the last one: status {latest}; \
                 {points} points were lost"
            )
        };
        assert_eq!(lines, [line(1, 0), line(60, 60), line(60, 120)]);
        assert_eq!(troubles.take_line(URL), Some(line(59, 179)), "at the end");
        assert_eq!(troubles.take_line(URL), None);
    }

    #[test]
    fn points_that_the_spool_has_no_room_for_are_told_without_a_push() {
        let mut troubles = Troubles::default();
        troubles.lose(3);
        let line = troubles.poll_line(URL, Moment::from_micros(1));
        let expected = "metrics.push: 3 points for http://localhost/ were lost, because the spool \
                        is full";
        assert_eq!(line.as_deref(), Some(expected));
    }
}
