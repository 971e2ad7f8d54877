//! Bounds of HTTP/2: what one connection may hold, and how many oddities it may send.

use std::time::Duration;

// ---- what the settings announce ----

/// Concurrent streams of one connection: the least that RFC 9113 (section 6.5.2) recommends, and
/// what a gRPC client opens without asking. A stream whose job was given up counts until the job
/// has ended.
pub const STREAMS_MAX: u32 = 128;

/// Bytes of a request's fields, uncompressed and with 32 more for each (RFC 9113, section 10.5.1).
pub const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;

/// The table with which a peer compresses its fields: the protocol's default, which holds the usual
/// fields of one client many times.
pub const HEADER_TABLE_BYTES: u32 = 4 * 1024;

/// The payload of a frame that is accepted: the least that the protocol allows. Larger ones save
/// nothing here and delay the streams behind them.
pub const FRAME_BYTES_MAX: u32 = 16 * 1024;

/// Bytes that a peer may send on one stream before more window is granted: the usual body at once.
pub const STREAM_WINDOW_BYTES: u32 = 64 * 1024;

/// The same for all streams of a connection together.
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

const _: () = {
    assert!(FRAME_BYTES_MAX >= 16 * 1024);
    assert!(CONNECTION_WINDOW_BYTES >= STREAM_WINDOW_BYTES);
};

// ---- what a connection holds ----

/// Bytes of one field block, in all its frames: enough for a list that is refused with a response,
/// even if none of its fields is compressed.
pub const FIELD_BLOCK_BYTES_MAX: usize = 64 * 1024;

/// Bytes of the buffer that a connection keeps for the fields of its next request: a browser's fit
/// into it. A larger one is freed after its request.
pub const SPARE_FIELDS_BYTES_MAX: usize = 4 * 1024;

/// Bytes of fields from which on a request is not refused with a response but ends the connection:
/// no client names one large field hundreds of times by mistake.
pub const EXCESSIVE_HEADER_LIST_BYTES_MIN: usize = 16 * HEADER_LIST_BYTES_MAX as usize;

/// Bytes of all bodies that one connection is receiving. Each body has the configuration's bound
/// as well.
pub const BODIES_BYTES_MAX: usize = 32 * 1024 * 1024;

// ---- one pump ----

/// Frames after which the pump's time is asked although no request was handled: 32 tiny frames on a
/// connection full of streams take some ten microseconds.
pub const FRAMES_PER_CLOCK_READING: u32 = 32;

/// Bytes of all responses that wait for the peer's window or for room, for a connection: above it,
/// a stream with more than [`STREAM_WAITING_FREE_BYTES`] has no room for more. Without it each of
/// [`STREAMS_MAX`] streams whose windows are closed could hold the output's high mark.
pub const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that may always wait in a stream, so that streams that are not read do not stop one that
/// is.
pub const STREAM_WAITING_FREE_BYTES: usize = 4 * 1024;

// ---- streams that have ended ----

/// Streams that we have reset and still remember, so that frames which were under way are not taken
/// for errors: all streams of a connection may be reset at the same moment.
pub const REMEMBERED_RESETS_MAX: usize = STREAMS_MAX as usize;

// ---- the account of glitches ----

/// Fields that a request may add to the compression table without a penalty: more than a browser's
/// first request does. Each further one is a [`crate::core::glitch::Glitch::HeaderChurn`].
pub const FREE_INSERTIONS_MAX: u32 = 32;

/// Bytes sent that make up for one control frame of the peer: a peer that receives much has to
/// grant window, and most grant it for some thousand bytes at a time. [`POINTS_PER_EVENT`] covers
/// peers that grant it for each piece.
pub const BYTES_PER_CONTROL_FRAME: u32 = 512;

/// Points forgiven per streamed event. Some clients send two WINDOW_UPDATEs for every event, and a
/// model produces about a hundred events per second.
pub const POINTS_PER_EVENT: u32 = 2;

/// Points forgiven per request that got a response: its client grants window for the response, on
/// the stream and on the connection.
pub const POINTS_PER_REQUEST: u32 = 3;

/// How long a peer may take to acknowledge the PING of the first GOAWAY during a drain.
pub const GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);
