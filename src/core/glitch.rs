//! A budget for each peer's harmless anomalies ("glitches"), and a minimum speed.
//!
//! Some events are legal and harmless once, but an attack when they come by the thousand: streams
//! that are reset at once, empty frames, pings, bodies in chunks of one byte, bytes that drip. No
//! single one is a reason to refuse the peer; their rate is. Each connection has a bucket that
//! every glitch fills by its weight and that leaks with time. When it overflows, the connection is
//! closed with its protocol's code for that (HTTP/2: `ENHANCE_YOUR_CALM`).
//!
//! ```text
//!       weight of each glitch
//!            |  |   |
//!            v  v   v
//!        |            |   budget: a burst of 500 points passes
//!        |~~~~~~~~~~~~|
//!        '-----..-----'
//!              || leak: 25 points per second
//! ```
//!
//! The minimum speed is measured in windows of five seconds. A window with fewer bytes than the
//! minimum is one more glitch ([`Glitch::Drip`]). This forgives a phone in a tunnel but not a
//! client that lives on one byte per second. Windows are judged when bytes come, all that have
//! passed at once: a peer that sends nothing is left to the absolute header and body deadlines.
//!
//! The budget takes sixteen bytes, because every connection has one: times are milliseconds in 32
//! bits and wrap after 49 days. A connection that meets its own time stamp again after exactly that
//! long is forgiven slightly too little; nothing else happens.
//!
//! # Invariants
//!
//!  1. Only time, and work done for the peer, empty the bucket; only glitches fill it. It saturates
//!     and never wraps.
//!  2. Below the leak's rate, no number of glitches ever overflows the bucket.

use super::Moment;
use crate::limits::core as limits;

/// Something a peer may do, but not often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Glitch {
    /// A stream was opened and reset (HTTP/2 "rapid reset").
    StreamReset,
    /// A frame without content: DATA, CONTINUATION or HEADERS of no bytes.
    EmptyFrame,
    /// SETTINGS, PING, PRIORITY or WINDOW_UPDATE: each costs work or a reply.
    ControlFrame,
    /// A DATA frame or a chunk of a few bytes.
    TinyData,
    /// Header fields that change the compression table without use.
    HeaderChurn,
    /// An empty line before a request, or other bytes that servers should ignore by RFC 9112.
    IgnoredBytes,
    /// A window of time with fewer bytes than the minimum.
    Drip,
}

impl Glitch {
    pub const ALL: [Glitch; 7] = [
        Glitch::StreamReset,
        Glitch::EmptyFrame,
        Glitch::ControlFrame,
        Glitch::TinyData,
        Glitch::HeaderChurn,
        Glitch::IgnoredBytes,
        Glitch::Drip,
    ];

    /// Returns how many points it adds to the bucket.
    pub const fn points(self) -> u32 {
        match self {
            // Costs a whole admission and cancellation.
            Glitch::StreamReset => 5,
            // Has no known use.
            Glitch::EmptyFrame => 5,
            Glitch::ControlFrame | Glitch::TinyData | Glitch::HeaderChurn => 1,
            Glitch::IgnoredBytes => 1,
            // Four windows (20 seconds) use up the budget in spite of the leak.
            Glitch::Drip => 250,
        }
    }

    /// Returns the name for logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Glitch::StreamReset => "stream_reset",
            Glitch::EmptyFrame => "empty_frame",
            Glitch::ControlFrame => "control_frame",
            Glitch::TinyData => "tiny_data",
            Glitch::HeaderChurn => "header_churn",
            Glitch::IgnoredBytes => "ignored_bytes",
            Glitch::Drip => "drip",
        }
    }
}

/// The consequence of a glitch for its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum GlitchVerdict {
    Forgiven,
    /// The budget is spent: close.
    Excess,
}

/// One connection's account; see the file's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlitchBudget {
    /// The bucket's level in thousandths of a point, which makes the leak per millisecond whole.
    millipoints: u32,
    leaked_at_ms: u32,
    /// How many bytes came in the present window of a transfer.
    window_bytes: u32,
    window_began_ms: u32,
}

const _: () = assert!(size_of::<GlitchBudget>() <= 16);

/// The fewest bytes that a window must have.
const WINDOW_BYTES_LEAST: u32 = limits::TRANSFER_BYTES_PER_SECOND_MIN * WINDOW_MS / 1_000;

/// The length of a window, as the account counts it.
const WINDOW_MS: u32 = limits::TRANSFER_RATE_WINDOW.as_millis() as u32;

impl GlitchBudget {
    pub fn new(now: Moment) -> GlitchBudget {
        GlitchBudget {
            millipoints: 0,
            leaked_at_ms: wrapping_ms(now),
            window_bytes: 0,
            window_began_ms: wrapping_ms(now),
        }
    }

    // ---- handle ----

    /// Counts `count` glitches of one kind at once.
    pub fn handle_glitches(&mut self, glitch: Glitch, count: u32, now: Moment) -> GlitchVerdict {
        match glitch {
            Glitch::Drip => self.handle_drips(count),
            _ => self.charge(glitch, count, wrapping_ms(now)),
        }
    }

    /// The last `count` windows before the present one had too few bytes. Each is charged at the
    /// moment when it ended: a peer that was silent for three windows and then goes on owes no more
    /// than one that dripped through them.
    fn handle_drips(&mut self, count: u32) -> GlitchVerdict {
        for later in (0..count).rev() {
            let before_ms = later.wrapping_mul(WINDOW_MS);
            let ended_ms = self.window_began_ms.wrapping_sub(before_ms);
            if self.charge(Glitch::Drip, 1, ended_ms) == GlitchVerdict::Excess {
                return GlitchVerdict::Excess;
            }
        }
        GlitchVerdict::Forgiven
    }

    /// Counts `count` bytes of the transfer that is being measured.
    pub fn handle_bytes(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.window_bytes = self.window_bytes.saturating_add(count);
    }

    // ---- commands ----

    /// Takes points off: the peer's own requests explain as many glitches.
    pub fn forgive(&mut self, points: u32) {
        self.millipoints = self
            .millipoints
            .saturating_sub(points.saturating_mul(1_000));
    }

    /// Begins a window: a head or body begins, or goes on after *we* had stopped reading.
    pub fn begin_transfer(&mut self, now: Moment) {
        self.window_bytes = 0;
        self.window_began_ms = wrapping_ms(now);
    }

    // ---- poll ----

    /// During a transfer: returns how many windows have passed with too few bytes since the last
    /// call. The caller must report as many of [`Glitch::Drip`].
    pub fn poll_drips(&mut self, now: Moment) -> u32 {
        let elapsed_ms = wrapping_ms(now).wrapping_sub(self.window_began_ms);
        let windows = elapsed_ms / WINDOW_MS;
        if windows == 0 {
            return 0;
        }
        // The bytes belong to the first of these windows; the others had none.
        let is_first_rich = self.window_bytes >= WINDOW_BYTES_LEAST;
        let into_the_present_ms = elapsed_ms % WINDOW_MS;
        self.window_bytes = 0;
        self.window_began_ms = wrapping_ms(now).wrapping_sub(into_the_present_ms);
        windows - u32::from(is_first_rich)
    }

    // ---- helpers ----

    fn charge(&mut self, glitch: Glitch, count: u32, now_ms: u32) -> GlitchVerdict {
        self.leak(now_ms);
        let added = glitch.points().saturating_mul(1_000).saturating_mul(count);
        self.millipoints = self.millipoints.saturating_add(added);
        if self.millipoints > limits::GLITCH_POINTS_MAX * 1_000 {
            GlitchVerdict::Excess
        } else {
            GlitchVerdict::Forgiven
        }
    }

    fn leak(&mut self, now_ms: u32) {
        let elapsed_ms = now_ms.wrapping_sub(self.leaked_at_ms);
        // Points per second equal thousandths of a point per millisecond.
        let leaked = elapsed_ms.saturating_mul(limits::GLITCH_LEAK_POINTS_PER_SECOND);
        self.millipoints = self.millipoints.saturating_sub(leaked);
        self.leaked_at_ms = now_ms;
    }
}

fn wrapping_ms(moment: Moment) -> u32 {
    moment.as_millis() as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: Moment = Moment::from_micros(77_000_000);

    fn points(budget: &GlitchBudget) -> u32 {
        budget.millipoints / 1_000
    }

    #[test]
    fn work_makes_up_for_oddities_and_never_for_future_ones() {
        let mut budget = GlitchBudget::new(START);
        let _ = budget.handle_glitches(Glitch::ControlFrame, 3, START);
        budget.forgive(2);
        assert_eq!(points(&budget), 1);
        budget.forgive(u32::MAX);
        assert_eq!(points(&budget), 0);
        let verdict =
            budget.handle_glitches(Glitch::ControlFrame, limits::GLITCH_POINTS_MAX + 1, START);
        assert_eq!(verdict, GlitchVerdict::Excess);
    }

    #[test]
    fn a_burst_within_the_budget_passes_and_one_more_does_not() {
        let mut budget = GlitchBudget::new(START);
        let burst = limits::GLITCH_POINTS_MAX / Glitch::StreamReset.points();
        for _ in 0..burst {
            let verdict = budget.handle_glitches(Glitch::StreamReset, 1, START);
            assert_eq!(verdict, GlitchVerdict::Forgiven);
        }
        let verdict = budget.handle_glitches(Glitch::StreamReset, 1, START);
        assert_eq!(verdict, GlitchVerdict::Excess);
    }

    #[test]
    fn a_rate_below_the_leak_is_forgiven_for_ever() {
        let mut budget = GlitchBudget::new(START);
        let mut now = START;
        let pause = Duration::from_micros(1_000_000 / limits::GLITCH_LEAK_POINTS_PER_SECOND as u64);
        for _ in 0..10 * limits::GLITCH_POINTS_MAX {
            now = now + pause;
            let verdict = budget.handle_glitches(Glitch::ControlFrame, 1, now);
            assert_eq!(verdict, GlitchVerdict::Forgiven);
        }
    }

    #[test]
    fn a_rate_above_the_leak_is_not() {
        let mut budget = GlitchBudget::new(START);
        let mut now = START;
        let pause = Duration::from_micros(500_000 / limits::GLITCH_LEAK_POINTS_PER_SECOND as u64);
        let verdicts = (0..10 * limits::GLITCH_POINTS_MAX).map(|_| {
            now = now + pause;
            budget.handle_glitches(Glitch::ControlFrame, 1, now)
        });
        assert!(verdicts.into_iter().any(|v| v == GlitchVerdict::Excess));
    }

    #[test]
    fn a_client_that_drips_is_closed_and_a_slow_one_is_not() {
        let window = limits::TRANSFER_RATE_WINDOW;
        let run = |bytes_per_window: usize| {
            let mut budget = GlitchBudget::new(START);
            budget.begin_transfer(START);
            let mut now = START;
            (0..20).position(|_| {
                now = now + window;
                budget.handle_bytes(bytes_per_window);
                let drips = budget.poll_drips(now);
                budget.handle_glitches(Glitch::Drip, drips, now) == GlitchVerdict::Excess
            })
        };
        assert_eq!(run(WINDOW_BYTES_LEAST as usize), None);
        assert_eq!(run(5), Some(3), "four windows");
    }

    #[test]
    fn a_window_is_judged_only_when_it_is_over() {
        let mut budget = GlitchBudget::new(START);
        budget.begin_transfer(START);
        let just_before = limits::TRANSFER_RATE_WINDOW - Duration::from_millis(1);
        assert_eq!(budget.poll_drips(START + just_before), 0);
        // We paused the peer ourselves: the time until then does not count against it.
        let resumed = START + 3 * just_before;
        budget.begin_transfer(resumed);
        assert_eq!(budget.poll_drips(resumed + just_before), 0);
    }

    #[test]
    fn windows_that_passed_in_silence_are_judged_all_at_once() {
        let mut budget = GlitchBudget::new(START);
        budget.begin_transfer(START);
        budget.handle_bytes(WINDOW_BYTES_LEAST as usize);
        assert_eq!(budget.poll_drips(START + Duration::from_secs(29)), 4);
        assert_eq!(budget.poll_drips(START + Duration::from_secs(29)), 0);
        assert_eq!(budget.poll_drips(START + Duration::from_secs(30)), 1);
    }

    #[test]
    fn silence_costs_what_dripping_through_it_costs() {
        let window = limits::TRANSFER_RATE_WINDOW;
        for windows in 1..10 {
            let mut dripping = GlitchBudget::new(START);
            let mut ended = None;
            for number in 1..=windows {
                let now = START + number * window;
                let drips = dripping.poll_drips(now);
                let verdict = dripping.handle_glitches(Glitch::Drip, drips, now);
                ended = ended.or((verdict == GlitchVerdict::Excess).then_some(number));
            }
            let mut silent = GlitchBudget::new(START);
            let now = START + windows * window;
            let drips = silent.poll_drips(now);
            assert_eq!(drips, windows);
            let verdict = silent.handle_glitches(Glitch::Drip, drips, now);
            assert_eq!(verdict == GlitchVerdict::Excess, ended.is_some());
            assert_eq!(ended, (windows >= 4).then_some(4));
            if ended.is_none() {
                assert_eq!(silent, dripping);
            }
        }
    }

    #[test]
    fn the_wrapping_clock_neither_panics_nor_fills_the_bucket() {
        let before = Moment::from_micros(u32::MAX as u64 * 1_000);
        let after = before + Duration::from_secs(1);
        assert!(wrapping_ms(after) < wrapping_ms(before));
        let mut budget = GlitchBudget::new(before);
        let _ = budget.handle_glitches(Glitch::StreamReset, 1, before);
        let _ = budget.handle_glitches(Glitch::ControlFrame, 1, after);
        assert_eq!(points(&budget), Glitch::ControlFrame.points());
        budget.handle_bytes(usize::MAX);
        budget.handle_bytes(usize::MAX);
        assert_eq!(budget.poll_drips(before + Duration::from_secs(5)), 0);
    }
}
