//! Frames that carry no part of a message: resets, windows, settings and pings.

use super::{Connection, Event, LEAVING, Phase};
use crate::http::http2::frame::{self, Frame, Reason, STREAM_MAX, flag, setting};
use crate::limits::http2 as limits;

impl Connection {
    pub(super) fn handle_reset<'a>(&mut self, frame: &Frame<'a>) -> Result<Event<'a>, Reason> {
        let id = frame.stream;
        self.check_not_idle(id)?;
        let was_open = self.remove(id);
        // The peer cannot have seen a response to a request that it sent together with the reset.
        match was_open || id >= self.batch_begins {
            true => self.tally.resets += 1,
            false => self.tally.control_frames += 1,
        }
        Ok(match was_open {
            true => Event::Reset { stream: id },
            false => Event::Nothing,
        })
    }

    pub(super) fn handle_window_update<'a>(
        &mut self,
        frame: &Frame<'a>,
    ) -> Result<Event<'a>, Reason> {
        self.tally.control_frames += 1;
        let (id, increment) = (frame.stream, frame.number());
        if id == 0 {
            return match increment {
                0 => Err(Reason::PROTOCOL_ERROR),
                _ => self
                    .send_window
                    .grow(increment.into())
                    .map(|()| Event::Nothing),
            };
        }
        self.check_not_idle(id)?;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(Event::Nothing);
        };
        let result = match increment {
            0 => Err(Reason::PROTOCOL_ERROR),
            _ => stream.send_window.grow(increment.into()),
        };
        if let Err(reason) = result {
            return Ok(self.fail_stream(id, reason));
        }
        self.enqueue(id);
        Ok(Event::Nothing)
    }

    pub(super) fn handle_settings(&mut self, frame: &Frame<'_>) -> Result<(), Reason> {
        self.tally.control_frames += 1;
        if frame.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if frame.has(flag::ACK) {
            return Ok(());
        }
        let mut initial_window = None;
        for (name, value) in frame.settings() {
            match name {
                setting::HEADER_TABLE_SIZE => {
                    self.owes_table_size |= value < limits::HEADER_TABLE_BYTES;
                }
                setting::ENABLE_PUSH if value > 1 => return Err(Reason::PROTOCOL_ERROR),
                setting::INITIAL_WINDOW_SIZE if value > STREAM_MAX => {
                    return Err(Reason::FLOW_CONTROL_ERROR);
                }
                // A frame may name it 2,700 times, and each change walks over all streams. So only
                // the last one is applied.
                setting::INITIAL_WINDOW_SIZE => initial_window = Some(value),
                setting::MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                    return Err(Reason::PROTOCOL_ERROR);
                }
                // The frames that we send are never longer than the smallest size that the peer may
                // set.
                _ => {}
            }
        }
        if let Some(bytes) = initial_window {
            self.handle_initial_window(bytes)?;
        }
        frame::put_settings_ack(&mut self.output);
        Ok(())
    }

    /// RFC 9113, section 6.9.2: the windows of all streams change with it.
    fn handle_initial_window(&mut self, bytes: u32) -> Result<(), Reason> {
        let change = i64::from(bytes) - i64::from(self.initial_send_window);
        self.initial_send_window = bytes;
        for (&id, stream) in &mut self.streams {
            stream.send_window.grow(change)?;
            if stream.is_sendable() && !stream.is_queued {
                stream.is_queued = true;
                self.sendable.push_back(id);
            }
        }
        Ok(())
    }

    pub(super) fn handle_ping(&mut self, frame: &Frame<'_>) -> Result<(), Reason> {
        self.tally.control_frames += 1;
        if frame.stream != 0 {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if !frame.has(flag::ACK) {
            frame::put_ping(&mut self.output, flag::ACK, frame.payload);
        } else if self.phase == Phase::Leaving && frame.payload == LEAVING {
            let last = self.highest_stream;
            frame::put_goaway(&mut self.output, last, Reason::NO_ERROR);
            self.phase = Phase::Left { last };
        }
        Ok(())
    }
}
