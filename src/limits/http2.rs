//! Bounds of HTTP/2: what one connection may hold, and how odd it may be.

use std::time::Duration;

/// Streams of one connection at once: what RFC 9113 (section 6.5.2) recommends at least, and what a
/// gRPC client opens without asking. A stream whose job was given up counts until the job has
/// ended.
pub const HTTP2_STREAMS_MAX: u32 = 128;

/// Bytes of a request's fields, uncompressed and with 32 more for each (RFC 9113, section 10.5.1).
pub const HTTP2_HEADER_LIST_BYTES: u32 = 16 * 1024;

/// The table with which a peer compresses its fields: the protocol's default, which holds the usual
/// fields of one client many times.
pub const HTTP2_HEADER_TABLE_BYTES: u32 = 4 * 1024;

/// The payload of a frame that is accepted: the least that the protocol allows. Larger ones save
/// nothing here and hold up the streams behind them.
pub const HTTP2_FRAME_BYTES: u32 = 16 * 1024;

/// What a peer may send on one stream without being asked for more: the usual body at once.
pub const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;

/// The same for all streams of a connection together.
pub const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Bytes of one stream that h2 holds for the socket; what is more waits in the stream.
pub const HTTP2_SEND_BUFFER_BYTES: usize = 64 * 1024;

/// What a connection's output is made in: some dozen short answers.
pub const HTTP2_OUTBOUND_BYTES: usize = 16 * 1024;

/// Streams that we have reset and still know, so that frames which were under way are not taken
/// for errors.
pub const HTTP2_RESETS_REMEMBERED: usize = 64;

/// How long they are known: several round trips round the world.
pub const HTTP2_RESET_REMEMBERED_FOR: Duration = Duration::from_secs(2);

/// Streams that the peer has reset before they were looked at: more end the connection
/// (CVE-2023-44487). All that come in one read are looked at together, so this is a burst's bound.
pub const HTTP2_RESETS_MAX: usize = 64;

/// Streams that we had to reset for the peer's errors: more end the connection (CVE-2025-8671).
pub const HTTP2_LOCAL_RESETS_MAX: usize = 128;

/// Streams that the peer has ended and that are remembered for a frame that follows all the same.
/// More than there may be at once, for some are over on our side first.
pub const HTTP2_ENDED_STREAMS: usize = 4 * HTTP2_STREAMS_MAX as usize;

/// Fields that a request may put into the compression table for nothing: more than a browser's
/// first one does. Each further one is a [`crate::core::glitch::Glitch::HeaderChurn`].
pub const HTTP2_INSERTIONS_FREE: u32 = 32;

/// Bytes of an unfinished field block that are kept, to be read once more should h2 refuse it.
pub const HTTP2_EXPLAINED_BYTES: usize = 64 * 1024;

/// Bytes of all bodies that are on their way in on one connection. Each has the configuration's
/// bound besides.
pub const HTTP2_BODIES_BYTES: usize = 32 * 1024 * 1024;

/// Bytes sent that make up for one control frame of the peer: who gets much has to grant window,
/// and most do it for some thousand bytes at a time. For those who do it for each piece there are
/// [`HTTP2_POINTS_FOR_EVENT`].
pub const HTTP2_BYTES_FOR_CONTROL_FRAME: u32 = 512;

/// How long a peer may take to answer the first GOAWAY's PING when the daemon goes.
pub const HTTP2_GOAWAY_TIMEOUT: Duration = Duration::from_secs(5);

const _: () = {
    assert!(HTTP2_FRAME_BYTES >= 16 * 1024);
    assert!(HTTP2_CONNECTION_WINDOW_BYTES >= HTTP2_STREAM_WINDOW_BYTES);
};

/// Points that a piece of a stream makes up for: some clients grant window for each, on the stream
/// and on the connection, and a model writes a hundred small ones a second.
pub const HTTP2_POINTS_FOR_EVENT: u32 = 2;

/// Points that an answered request makes up for: its client grants window for the answer, on the
/// stream and on the connection.
pub const HTTP2_POINTS_FOR_REQUEST: u32 = 3;
