//! One connection: sends frames, keeps the server's state from its frames, and checks them.
//!
//! States: open; *over* once the server has closed or reset the connection.
//!
//! Invariants:
//!  1. No read waits longer than the target's patience; a wait that times out is an error that
//!     shows the frames that did come.
//!  2. Everything that comes is seen, in order, by [`Peer::step`] and nothing else.
//!  3. SETTINGS and PING of the server are acknowledged at once.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::frame::{self, FRAME_SIZE_DEFAULT, Frame, PREFACE, WINDOW_DEFAULT, code, flag, kind};
use super::frame::{setting, settings, settings_ack, window_update};
use super::hpack::{Decoder, Field, TABLE_BYTES_DEFAULT};
use super::{Outcome, Target, ensure};

/// Frames that a failure shows.
const SHOWN: usize = 12;

pub struct Peer {
    stream: TcpStream,
    target: Target,
    received: Vec<u8>,
    decoder: Decoder,
    pub(super) answers: BTreeMap<u32, Answer>,
    /// The last frames, for a failure's message.
    seen: VecDeque<Frame>,
    /// The server's settings.
    settings: BTreeMap<u16, u32>,
    settings_count: usize,
    /// Our settings that have not been acknowledged yet.
    sent: VecDeque<Vec<(u16, u32)>>,
    acknowledged: usize,
    initial_window: i64,
    frame_size: usize,
    /// How much the server may send in all: on the connection, and beyond the initial window on
    /// streams.
    granted: BTreeMap<u32, i64>,
    /// The credit granted by the server.
    credit: BTreeMap<u32, i64>,
    /// Flow-controlled bytes that were sent.
    sent_data: i64,
    /// The opaque bytes of the PINGs that came back.
    pub(super) pongs: Vec<Vec<u8>>,
    pub(super) pings: u64,
    pub(super) goaways: Vec<(u32, u32)>,
    /// Whether DATA is followed by WINDOW_UPDATE.
    is_reading: bool,
    /// Whether PING and SETTINGS are acknowledged.
    is_acknowledging: bool,
    pub(super) is_over: bool,
    /// A header block that continues in CONTINUATION.
    block: Option<(Frame, Vec<u8>)>,
}

/// Everything that has come on one stream.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub fields: Vec<Field>,
    pub interim: Vec<u16>,
    pub body: Vec<u8>,
    /// The length of each DATA frame.
    pub pieces: Vec<usize>,
    pub trailers: Vec<Field>,
    pub is_ended: bool,
    pub reset: Option<u32>,
    /// Flow-controlled bytes, padding included.
    flow: i64,
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Peer {
    /// Opens a connection without sending anything.
    pub fn connect(target: &Target) -> Outcome<Peer> {
        let stream = TcpStream::connect_timeout(&target.address, target.patience)
            .map_err(|error| format!("cannot connect: {error}"))?;
        let _ = stream.set_nodelay(true);
        let _ = stream.set_read_timeout(Some(target.patience));
        let _ = stream.set_write_timeout(Some(target.patience));
        Ok(Peer {
            stream,
            target: target.clone(),
            received: Vec::new(),
            decoder: Decoder::default(),
            answers: BTreeMap::new(),
            seen: VecDeque::new(),
            settings: BTreeMap::new(),
            settings_count: 0,
            sent: VecDeque::new(),
            acknowledged: 0,
            initial_window: WINDOW_DEFAULT as i64,
            frame_size: FRAME_SIZE_DEFAULT,
            granted: BTreeMap::from([(0, WINDOW_DEFAULT as i64)]),
            credit: BTreeMap::new(),
            sent_data: 0,
            pongs: Vec::new(),
            pings: 0,
            goaways: Vec::new(),
            is_reading: true,
            is_acknowledging: true,
            is_over: false,
            block: None,
        })
    }

    /// Opens a connection and completes both prefaces (RFC 9113, section 3.4).
    pub fn open(target: &Target) -> Outcome<Peer> {
        Peer::open_with(target, &[])
    }

    /// Like `open`, with these settings.
    pub fn open_with(target: &Target, pairs: &[(u16, u32)]) -> Outcome<Peer> {
        let mut peer = Peer::connect(target)?;
        peer.send_raw(PREFACE);
        peer.settings(pairs);
        peer.until(
            "the server's SETTINGS and the acknowledgement of ours",
            |peer| peer.settings_count > 0 && peer.acknowledged > 0,
        )?;
        Ok(peer)
    }

    // ---- getters ----

    pub fn target(&self) -> Target {
        self.target.clone()
    }

    pub fn server_setting(&self, name: u16) -> Option<u32> {
        self.settings.get(&name).copied()
    }

    /// Returns how many of our SETTINGS were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    pub fn settings_count(&self) -> usize {
        self.settings_count
    }

    pub fn pongs(&self) -> &[Vec<u8>] {
        &self.pongs
    }

    /// Returns last stream and code of each GOAWAY.
    pub fn goaways(&self) -> &[(u32, u32)] {
        &self.goaways
    }

    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Returns the server's grants in WINDOW_UPDATE frames on this stream, 0 for the connection.
    pub fn credit(&self, stream: u32) -> i64 {
        self.credit.get(&stream).copied().unwrap_or(0)
    }

    /// Returns how many bytes were sent in DATA, on all streams.
    pub fn sent_data(&self) -> i64 {
        self.sent_data
    }

    /// Returns what has come on this stream so far.
    pub fn so_far(&self, stream: u32) -> Answer {
        self.answers.get(&stream).cloned().unwrap_or_default()
    }

    /// Returns the frames that came last.
    pub fn seen(&self) -> String {
        let frames: Vec<_> = self.seen.iter().map(|frame| format!("{frame:?}")).collect();
        let end = if self.is_over { "; closed" } else { "" };
        format!("[{}{end}]", frames.join("; "))
    }

    // ---- sending ----

    /// Sends bytes as they are. If the server has closed already, reading will notice.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Like `send_raw`, and returns whether they could be sent.
    pub fn try_send_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    pub fn send(&mut self, frame: Frame) {
        self.note_sent(&frame);
        self.send_raw(&frame.encode());
    }

    /// Sends all frames in one write.
    pub fn send_all(&mut self, frames: &[Frame]) {
        for frame in frames {
            self.note_sent(frame);
        }
        let bytes: Vec<_> = frames.iter().map(Frame::encode).collect();
        self.send_raw(&bytes.concat());
    }

    pub fn settings(&mut self, pairs: &[(u16, u32)]) {
        self.send(settings(pairs));
    }

    /// Sends a request without a body.
    pub fn headers(&mut self, stream: u32, block: &[u8]) {
        self.send(frame::headers(stream, block, flag::END_STREAM));
    }

    /// Sends a request whose body follows.
    pub fn headers_open(&mut self, stream: u32, block: &[u8]) {
        self.send(frame::headers(stream, block, 0));
    }

    /// Sends the last piece of a body.
    pub fn data_end(&mut self, stream: u32, body: &[u8]) {
        self.send(frame::data(stream, body, flag::END_STREAM));
    }

    /// Sends a piece of a body.
    pub fn data(&mut self, stream: u32, body: &[u8]) {
        self.send(frame::data(stream, body, 0));
    }

    pub fn finish_sending(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Takes DATA without returning the windows.
    pub fn stop_reading(&mut self) {
        self.is_reading = false;
    }

    /// Stops acknowledging PING and SETTINGS.
    pub fn stop_acknowledging(&mut self) {
        self.is_acknowledging = false;
    }

    /// Records SETTINGS that are sent as raw bytes.
    pub fn note_settings(&mut self, pairs: &[(u16, u32)]) {
        self.sent.push_back(pairs.to_vec());
    }

    fn note_sent(&mut self, frame: &Frame) {
        match frame.kind {
            kind::SETTINGS if !frame.has(flag::ACK) && frame.payload.len().is_multiple_of(6) => {
                let pair = |pair: &[u8]| {
                    let name = u16::from_be_bytes([pair[0], pair[1]]);
                    let value = u32::from_be_bytes(pair[2..].try_into().expect("four bytes"));
                    (name, value)
                };
                self.sent
                    .push_back(frame.payload.chunks(6).map(pair).collect());
            }
            kind::DATA => self.sent_data += frame.payload.len() as i64,
            kind::WINDOW_UPDATE => {
                let increment = i64::from(frame.number(0) & 0x7fff_ffff);
                *self.granted.entry(frame.stream & 0x7fff_ffff).or_default() += increment;
            }
            _ => {}
        }
    }

    // ---- receiving ----

    /// Returns everything up to the end as bytes, for cases without frames.
    pub fn raw_until_closed(&mut self) -> Outcome<Vec<u8>> {
        while !self.is_over {
            self.receive()?;
        }
        Ok(std::mem::take(&mut self.received))
    }

    /// Handles the frames that have already come, without waiting.
    pub fn drain(&mut self) -> Outcome {
        let _ = self.stream.set_nonblocking(true);
        let result = loop {
            match self.next() {
                Ok(Some(frame)) => {
                    let _ = self.stream.set_nonblocking(false);
                    let handled = self.handle(frame);
                    let _ = self.stream.set_nonblocking(true);
                    if handled.is_err() {
                        break handled;
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) if error == NOTHING => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let _ = self.stream.set_nonblocking(false);
        result
    }

    /// Handles one frame, or the end.
    pub fn step(&mut self) -> Outcome {
        match self.next()? {
            Some(frame) => self.handle(frame),
            None => Ok(()),
        }
    }

    fn next(&mut self) -> Outcome<Option<Frame>> {
        loop {
            if let Some((frame, length)) = Frame::decode(&self.received) {
                self.received.drain(..length);
                if self.seen.len() == SHOWN {
                    self.seen.pop_front();
                }
                self.seen.push_back(frame.clone());
                return Ok(Some(frame));
            }
            if self.is_over {
                return Ok(None);
            }
            self.receive()?;
        }
    }

    fn receive(&mut self) -> Outcome {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.is_over = true,
            Ok(count) => self.received.extend_from_slice(&buffer[..count]),
            Err(error) => match error.kind() {
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => self.is_over = true,
                ErrorKind::WouldBlock | ErrorKind::TimedOut => return Err(NOTHING.to_owned()),
                ErrorKind::Interrupted => {}
                _ => return Err(format!("cannot read: {error}")),
            },
        }
        Ok(())
    }

    fn handle(&mut self, frame: Frame) -> Outcome {
        let length = frame.payload.len();
        ensure(length <= self.frame_size, || {
            format!("{frame:?} is too large")
        })?;
        ensure(frame.stream >> 31 == 0, || {
            format!("{frame:?}: reserved bit")
        })?;
        if let Some((first, _)) = &self.block {
            let fits = frame.kind == kind::CONTINUATION && frame.stream == first.stream;
            ensure(fits, || format!("{frame:?} inside a header block"))?;
        }
        match frame.kind {
            kind::DATA => self.handle_data(&frame)?,
            kind::HEADERS | kind::CONTINUATION => self.handle_block(frame)?,
            kind::RST_STREAM => {
                let answer = self.answers.entry(frame.stream).or_default();
                ensure(answer.reset.is_none(), || format!("{frame:?} twice"))?;
                answer.reset = Some(frame.number(0));
            }
            kind::SETTINGS => self.handle_settings(&frame)?,
            kind::PING if frame.has(flag::ACK) => self.pongs.push(frame.payload),
            kind::PING if self.is_acknowledging => {
                self.send(Frame::new(kind::PING, flag::ACK, 0, frame.payload));
            }
            kind::GOAWAY => self.goaways.push((frame.number(0), frame.number(4))),
            kind::WINDOW_UPDATE => {
                let increment = i64::from(frame.number(0));
                ensure(increment > 0, || format!("{frame:?} of nothing"))?;
                *self.credit.entry(frame.stream).or_default() += increment;
            }
            kind::PUSH_PROMISE => return Err("a push".to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn handle_data(&mut self, frame: &Frame) -> Outcome {
        let stream = frame.stream;
        let answer = self
            .answers
            .get_mut(&stream)
            .filter(|answer| answer.status >= 200);
        let answer = answer.ok_or_else(|| format!("{frame:?} before its HEADERS"))?;
        ensure(!answer.is_ended && answer.reset.is_none(), || {
            format!("{frame:?} after the end")
        })?;
        let length = frame.payload.len() as i64;
        answer.flow += length;
        if length > 0 {
            let raised = self.sent.iter().flatten();
            let raised = raised.filter(|(name, _)| *name == setting::INITIAL_WINDOW_SIZE);
            let initial = raised.map(|(_, value)| i64::from(*value));
            let initial = initial.chain([self.initial_window]).max().unwrap_or(0);
            let window = initial + self.granted.get(&stream).copied().unwrap_or(0);
            let flow = answer.flow;
            ensure(flow <= window, || {
                format!("{flow} bytes in a window of {window}")
            })?;
            let left = self.granted.get_mut(&0).expect("the connection's");
            *left -= length;
            ensure(*left >= 0, || {
                format!("{frame:?} beyond the connection's window")
            })?;
        }
        let padding = match frame.has(flag::PADDED) {
            true => 1 + usize::from(*frame.payload.first().unwrap_or(&0)),
            false => 0,
        };
        let content = frame.payload.len().checked_sub(padding);
        let content = content.ok_or_else(|| format!("{frame:?} is all padding"))?;
        let start = usize::from(padding > 0);
        answer
            .body
            .extend_from_slice(&frame.payload[start..start + content]);
        answer.pieces.push(content);
        answer.is_ended = frame.has(flag::END_STREAM);
        let is_ended = answer.is_ended;
        if self.is_reading && length > 0 {
            let mut updates = vec![window_update(0, length as u32)];
            if !is_ended {
                updates.push(window_update(stream, length as u32));
            }
            self.send_all(&updates);
        }
        Ok(())
    }

    fn handle_block(&mut self, frame: Frame) -> Outcome {
        let (first, mut block) = match self.block.take() {
            Some(begun) => begun,
            None => {
                ensure(frame.kind == kind::HEADERS, || format!("{frame:?} alone"))?;
                ensure(!frame.has(flag::PADDED | flag::PRIORITY), || {
                    format!("{frame:?} has padding or priority, which this end does not read")
                })?;
                (frame.clone(), Vec::new())
            }
        };
        block.extend_from_slice(&frame.payload);
        if !frame.has(flag::END_HEADERS) {
            self.block = Some((first, block));
            return Ok(());
        }
        let list = self.decoder.decode(&block)?;
        let is_ended = first.has(flag::END_STREAM);
        let answer = self.answers.entry(first.stream).or_default();
        ensure(!answer.is_ended && answer.reset.is_none(), || {
            format!("{first:?} after the end")
        })?;
        if answer.status >= 200 {
            ensure(is_ended, || "trailers without END_STREAM".to_owned())?;
            let has_pseudo = list.iter().any(|(name, _)| name.starts_with(':'));
            ensure(!has_pseudo, || {
                format!("pseudo-header in trailers: {list:?}")
            })?;
            answer.trailers = list;
            answer.is_ended = true;
            return Ok(());
        }
        let status = status_of(&list)?;
        if status < 200 {
            ensure(!is_ended, || format!("{status} ends the stream"))?;
            answer.interim.push(status);
            return Ok(());
        }
        answer.status = status;
        answer.fields = list;
        answer.is_ended = is_ended;
        Ok(())
    }

    fn handle_settings(&mut self, frame: &Frame) -> Outcome {
        ensure(frame.stream == 0, || format!("{frame:?} on a stream"))?;
        if frame.has(flag::ACK) {
            ensure(frame.payload.is_empty(), || {
                "an ACK with content".to_owned()
            })?;
            self.acknowledged += 1;
            let pairs = self.sent.pop_front().ok_or("an ACK for nothing")?;
            for (name, value) in pairs {
                match name {
                    setting::HEADER_TABLE_SIZE => {
                        self.decoder
                            .allow((value as usize).min(TABLE_BYTES_DEFAULT * 16));
                    }
                    setting::INITIAL_WINDOW_SIZE => self.initial_window = i64::from(value),
                    setting::MAX_FRAME_SIZE => self.frame_size = value as usize,
                    _ => {}
                }
            }
            return Ok(());
        }
        ensure(frame.payload.len().is_multiple_of(6), || {
            format!("{frame:?}")
        })?;
        self.settings_count += 1;
        for pair in frame.payload.chunks(6) {
            let name = u16::from_be_bytes([pair[0], pair[1]]);
            let value = u32::from_be_bytes(pair[2..].try_into().expect("four bytes"));
            self.settings.insert(name, value);
        }
        if self.is_acknowledging {
            self.send(settings_ack());
        }
        Ok(())
    }
}

const NOTHING: &str = "nothing more came";

/// RFC 9113, section 8.3.2: `:status` comes first and is the only pseudo-header of a response.
fn status_of(list: &[Field]) -> Outcome<u16> {
    let first = list.first().filter(|(name, _)| name == ":status");
    let status = first.and_then(|(_, value)| value.parse().ok());
    let others = list.iter().skip(1);
    let is_regular = others.clone().all(|(name, _)| !name.starts_with(':'));
    let is_lower = others.clone().all(|(name, _)| *name == name.to_lowercase());
    let is_clean = others.clone().all(|(name, _)| {
        !["connection", "transfer-encoding", "keep-alive"].contains(&name.as_str())
    });
    ensure(is_regular && is_lower && is_clean, || {
        format!("an answer's fields: {list:?}")
    })?;
    status.ok_or(format!("no :status in {list:?}"))
}
