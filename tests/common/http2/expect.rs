//! The waits of a case: for a response, a reset, the end. Each returns an [`Outcome`] that
//! describes what came instead.

use std::time::{Duration, Instant};

use super::frame::{Frame, code, kind};
use super::{Answer, Outcome, Peer, ensure};

impl Peer {
    /// Handles frames until the condition holds.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&Peer) -> bool) -> Outcome {
        while !holds(self) {
            if self.is_over {
                return Err(format!("closed before {what}; got {}", self.seen()));
            }
            let step = self.step();
            step.map_err(|error| format!("{error} while waiting for {what}; got {}", self.seen()))?;
        }
        Ok(())
    }

    /// Handles all frames up to the server's reply to a PING: a reaction to earlier frames has then
    /// come, or never comes.
    pub fn alive(&mut self) -> Outcome {
        self.pings += 1;
        let opaque = [b"alive".as_slice(), &self.pings.to_be_bytes()[5..]].concat();
        self.send(Frame::new(kind::PING, 0, 0, opaque.clone()));
        self.until("the answer to a PING", |peer| peer.pongs.contains(&opaque))?;
        let errors: Vec<_> = self.goaways.iter().filter(|(_, code)| *code != 0).collect();
        ensure(errors.is_empty(), || {
            format!("alive in spite of {}", self.seen())
        })
    }

    /// Returns the whole response on this stream.
    pub fn answer(&mut self, stream: u32) -> Outcome<Answer> {
        let what = format!("the answer on stream {stream}");
        self.until(&what, |peer| {
            let answer = peer.answers.get(&stream);
            answer.is_some_and(|answer| answer.is_ended || answer.reset.is_some())
        })?;
        let answer = self.so_far(stream);
        match answer.reset {
            Some(reset) if !answer.is_ended => {
                let reset = code::name(reset);
                Err(format!(
                    "stream {stream} was reset with {reset} before its end"
                ))
            }
            _ => Ok(answer),
        }
    }

    /// Returns the whole response, which must have this status.
    pub fn answer_of(&mut self, stream: u32, status: u16) -> Outcome<Answer> {
        let answer = self.answer(stream)?;
        ensure(answer.status == status, || {
            format!("answer {} for {status}: {}", answer.status, answer.text())
        })?;
        Ok(answer)
    }

    /// A good request on this stream gets a good response: connection and compression state are
    /// sound.
    pub fn works(&mut self, stream: u32) -> Outcome {
        let block = self.target().get();
        self.headers(stream, &block);
        self.answer_of(stream, 200)?;
        self.alive()
    }

    /// The stream ends with RST_STREAM and one of these codes, and the connection goes on.
    pub fn reset(&mut self, stream: u32, codes: &[u32]) -> Outcome {
        self.reset_only(stream, codes)?;
        self.alive()
    }

    /// Like `reset`, without checking that the connection goes on.
    pub fn reset_only(&mut self, stream: u32, codes: &[u32]) -> Outcome {
        let what = format!("RST_STREAM[{stream}] {}", names(codes));
        self.until(&what, |peer| {
            let answer = peer.answers.get(&stream);
            answer.is_some_and(|answer| answer.reset.is_some() || answer.is_ended)
        })?;
        let answer = self.so_far(stream);
        let reset = answer.reset;
        ensure(reset.is_some_and(|reset| codes.contains(&reset)), || {
            let status = answer.status;
            format!("wanted {what}; got status {status}, {}", self.seen())
        })
    }

    /// A malformed request (RFC 9113, section 8.1.1): PROTOCOL_ERROR on its stream, or a 4xx
    /// response, and the connection goes on.
    pub fn malformed(&mut self, stream: u32) -> Outcome {
        let what = format!("PROTOCOL_ERROR or 4xx on stream {stream}");
        self.until(&what, |peer| {
            let answer = peer.answers.get(&stream);
            answer.is_some_and(|answer| answer.reset.is_some() || answer.is_ended)
        })?;
        let answer = self.so_far(stream);
        let is_refused = (400..500).contains(&answer.status);
        let is_reset = answer.status == 0 && answer.reset == Some(code::PROTOCOL_ERROR);
        ensure(is_refused || is_reset, || {
            let status = answer.status;
            format!("wanted {what}; got status {status}, {}", self.seen())
        })?;
        self.alive()
    }

    /// Like `malformed`, but the server may also end the connection. Returns `true` if it did.
    pub fn malformed_or_goaway(&mut self, stream: u32) -> Outcome<bool> {
        let what = format!("PROTOCOL_ERROR or 4xx on stream {stream}, or GOAWAY");
        let has_error = |peer: &Peer| peer.goaways.iter().any(|(_, code)| *code != 0);
        self.until(&what, |peer| {
            let answer = peer.answers.get(&stream);
            let is_over = answer.is_some_and(|it| it.reset.is_some() || it.is_ended);
            is_over || has_error(peer)
        })?;
        match has_error(self) {
            true => self.goaway(&[code::PROTOCOL_ERROR]).map(|()| true),
            false => self.malformed(stream).map(|()| false),
        }
    }

    /// A connection error (section 5.4.1): GOAWAY with one of these codes, then the end.
    pub fn goaway(&mut self, codes: &[u32]) -> Outcome {
        let what = format!("GOAWAY {}", names(codes));
        let is_error = |peer: &Peer| peer.goaways.iter().any(|(_, code)| *code != 0);
        self.until(&what, |peer| is_error(peer) || peer.is_over)?;
        let last = self.goaways.last().map(|(_, code)| *code);
        ensure(last.is_some_and(|last| codes.contains(&last)), || {
            format!("wanted {what}; got {}", self.seen())
        })?;
        self.closed()
    }

    /// A stream error or a connection error with one of these codes: the RFC allows both.
    pub fn reset_or_goaway(&mut self, stream: u32, codes: &[u32]) -> Outcome {
        let what = format!("RST_STREAM[{stream}] or GOAWAY {}", names(codes));
        self.until(&what, |peer| {
            let reset = peer.answers.get(&stream).is_some_and(|a| a.reset.is_some());
            reset || peer.goaways.iter().any(|(_, code)| *code != 0) || peer.is_over
        })?;
        match self.so_far(stream).reset {
            Some(reset) if codes.contains(&reset) => self.alive(),
            Some(_) => Err(format!("wanted {what}; got {}", self.seen())),
            None => self.goaway(codes),
        }
    }

    /// The server closes the connection.
    pub fn closed(&mut self) -> Outcome {
        while !self.is_over {
            self.step()
                .map_err(|error| format!("not closed: {error}; got {}", self.seen()))?;
        }
        Ok(())
    }

    /// The end of the connection, whatever comes before it, within this time.
    pub fn closed_within(&mut self, time: Duration) -> Outcome {
        let start = Instant::now();
        self.closed()?;
        let elapsed = start.elapsed();
        ensure(elapsed <= time, || format!("closed only after {elapsed:?}"))
    }
}

fn names(codes: &[u32]) -> String {
    let names: Vec<_> = codes.iter().map(|code| code::name(*code)).collect();
    names.join(" or ")
}
