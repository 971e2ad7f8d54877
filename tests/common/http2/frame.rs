//! One HTTP/2 frame (RFC 9113, section 4.1), with every bit the test's choice.
//!
//! Nothing here checks its arguments: a length may be wrong, a reserved bit may be set, a flag may
//! mean nothing.

/// Frame types: RFC 9113, section 6.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags. `ACK` and `END_STREAM` are the same bit of different frames.
pub mod flag {
    pub const END_STREAM: u8 = 0x1;
    pub const ACK: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Error codes: RFC 9113, section 7.
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const ENHANCE_YOUR_CALM: u32 = 11;

    pub fn name(code: u32) -> String {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        let known = NAMES.get(code as usize);
        known.map_or_else(|| format!("code {code}"), |name| (*name).to_owned())
    }
}

/// Settings: RFC 9113, section 6.5.2.
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const HEAD_BYTES: usize = 9;
/// What both sides may send unless SETTINGS change it: sections 6.5.2 and 6.9.2.
pub const FRAME_SIZE_DEFAULT: usize = 16_384;
pub const WINDOW_DEFAULT: usize = 65_535;

#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    /// With the reserved bit, if a test sets it.
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Frame {
        let payload = payload.into();
        Frame {
            kind,
            flags,
            stream,
            payload,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        self.encode_with_length(self.payload.len())
    }

    /// Encodes with a length that need not be the payload's.
    pub fn encode_with_length(&self, length: usize) -> Vec<u8> {
        let length = u32::try_from(length).expect("a small number").to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend_from_slice(&[self.kind, self.flags]);
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Returns the frame at the beginning of `bytes` and its length, if it is complete.
    pub fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
        let head = bytes.get(..HEAD_BYTES)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = bytes.get(HEAD_BYTES..HEAD_BYTES + length)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame::new(head[3], head[4], stream, payload);
        Some((frame, HEAD_BYTES + length))
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub fn number(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..at + 4);
        bytes.map_or(u32::MAX, |bytes| {
            u32::from_be_bytes(bytes.try_into().expect("four bytes"))
        })
    }
}

/// The form that a failure shows.
impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 10] = [
            "DATA",
            "HEADERS",
            "PRIORITY",
            "RST_STREAM",
            "SETTINGS",
            "PUSH_PROMISE",
            "PING",
            "GOAWAY",
            "WINDOW_UPDATE",
            "CONTINUATION",
        ];
        match NAMES.get(self.kind as usize) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "type {}", self.kind)?,
        }
        write!(f, "[{}]", self.stream)?;
        match self.kind {
            kind::RST_STREAM => write!(f, " {}", code::name(self.number(0))),
            kind::GOAWAY => write!(f, " last {} {}", self.number(0), code::name(self.number(4))),
            kind::WINDOW_UPDATE => write!(f, " +{}", self.number(0)),
            _ => write!(f, " flags {:#x}, {} bytes", self.flags, self.payload.len()),
        }
    }
}

// ---- well-formed ones --------------------------------------------------------------------------

pub fn headers(stream: u32, block: &[u8], flags: u8) -> Frame {
    Frame::new(kind::HEADERS, flag::END_HEADERS | flags, stream, block)
}

pub fn data(stream: u32, body: &[u8], flags: u8) -> Frame {
    Frame::new(kind::DATA, flags, stream, body)
}

pub fn settings(pairs: &[(u16, u32)]) -> Frame {
    let mut payload = Vec::new();
    for (name, value) in pairs {
        payload.extend_from_slice(&name.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    Frame::new(kind::SETTINGS, 0, 0, payload)
}

pub fn settings_ack() -> Frame {
    Frame::new(kind::SETTINGS, flag::ACK, 0, [])
}

pub fn ping(opaque: [u8; 8]) -> Frame {
    Frame::new(kind::PING, 0, 0, opaque)
}

pub fn reset(stream: u32, code: u32) -> Frame {
    Frame::new(kind::RST_STREAM, 0, stream, code.to_be_bytes())
}

pub fn goaway(last: u32, code: u32, debug: &[u8]) -> Frame {
    let payload = [&last.to_be_bytes()[..], &code.to_be_bytes()[..], debug].concat();
    Frame::new(kind::GOAWAY, 0, 0, payload)
}

pub fn window_update(stream: u32, increment: u32) -> Frame {
    Frame::new(kind::WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
}

pub fn continuation(stream: u32, block: &[u8], flags: u8) -> Frame {
    Frame::new(kind::CONTINUATION, flags, stream, block)
}

/// `dependency` with its highest bit set is an exclusive one.
pub fn priority_fields(dependency: u32, weight: u8) -> Vec<u8> {
    [&dependency.to_be_bytes()[..], &[weight]].concat()
}

pub fn priority(stream: u32, dependency: u32) -> Frame {
    Frame::new(kind::PRIORITY, 0, stream, priority_fields(dependency, 15))
}

/// Returns the payload of a padded frame: the length of the padding, the content, the padding.
pub fn padded(content: &[u8], padding: u8) -> Vec<u8> {
    [&[padding][..], content, &vec![0; padding as usize]].concat()
}
