//! The events of a job: what a client that follows it gets, from the beginning or from any event
//! on.
//!
//! An event has an id, `attempt.sequence`. Attempt 1 begins with the event 1.0, `started`; each
//! later one with n.0, `reset`: whatever earlier attempts wrote no longer counts. The last event of
//! a job shows how it ended, and what a client gets with it is read from the job itself.

use std::fmt;

/// The place of an event in the history of its job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId {
    pub attempt: u32,
    pub sequence: u32,
}

impl EventId {
    /// Before every event.
    pub const BEGINNING: EventId = EventId {
        attempt: 0,
        sequence: 0,
    };

    /// Reads `attempt.sequence`, as it is written.
    pub fn parse(text: &str) -> Option<EventId> {
        let (attempt, sequence) = text.split_once('.')?;
        Some(EventId {
            attempt: number(attempt)?,
            sequence: number(sequence)?,
        })
    }

    /// Returns the greatest id that is less than this one.
    pub const fn predecessor(self) -> EventId {
        match self.sequence.checked_sub(1) {
            Some(sequence) => EventId { sequence, ..self },
            None => EventId {
                attempt: self.attempt.saturating_sub(1),
                sequence: u32::MAX,
            },
        }
    }
}

/// Reads decimal digits without a sign and without leading zeros.
fn number(digits: &str) -> Option<u32> {
    let is_plain = digits.bytes().all(|digit| digit.is_ascii_digit());
    let is_short = digits == "0" || !digits.starts_with('0');
    (is_plain && is_short).then(|| digits.parse().ok())?
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.attempt, self.sequence)
    }
}

/// The kinds. Their words are the names of server-sent events, and what the store keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The first attempt begins.
    Started,
    /// Another attempt begins.
    Reset,
    /// The next piece of the program.
    Delta,
    Done,
    Error,
    Cancelled,
    Expired,
}

impl EventKind {
    pub const ALL: [EventKind; 7] = [
        EventKind::Started,
        EventKind::Reset,
        EventKind::Delta,
        EventKind::Done,
        EventKind::Error,
        EventKind::Cancelled,
        EventKind::Expired,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            EventKind::Started => "started",
            EventKind::Reset => "reset",
            EventKind::Delta => "delta",
            EventKind::Done => "done",
            EventKind::Error => "error",
            EventKind::Cancelled => "cancelled",
            EventKind::Expired => "expired",
        }
    }

    pub fn parse(word: &str) -> Option<EventKind> {
        EventKind::ALL
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }

    /// Returns whether no event follows.
    pub const fn is_last(self) -> bool {
        !matches!(
            self,
            EventKind::Started | EventKind::Reset | EventKind::Delta
        )
    }
}

/// One event, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEvent {
    pub id: EventId,
    pub kind: EventKind,
    /// The piece of the program; empty for every other kind.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: `parse` that takes a sign or leading zeros.
    #[test]
    fn an_id_has_one_text_and_sorts_by_attempt_first() {
        let id = EventId {
            attempt: 2,
            sequence: 17,
        };
        assert_eq!(id.to_string(), "2.17");
        assert_eq!(EventId::parse("2.17"), Some(id));
        assert_eq!(EventId::parse("0.0"), Some(EventId::BEGINNING));
        assert!(EventId::parse("1.18") < Some(id));
        assert_eq!(EventId::parse("2.16"), Some(id.predecessor()));
        let first = EventId { sequence: 0, ..id };
        assert_eq!(EventId::parse("1.4294967295"), Some(first.predecessor()));
        for other in [
            "",
            ".",
            "1",
            "1.",
            ".1",
            "+1.1",
            "1.01",
            "1.1.1",
            "1.4294967296",
            "a.b",
        ] {
            assert_eq!(EventId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn kinds_have_words() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(EventKind::parse("ping"), None);
    }
}
