//! Bounds of content codings: what an encoder may cost, and what a coded body may become.
//!
//! Measured on one core of the build machine, release, with JSON answers of code (2.3 KB and 68 KB)
//! and a stream of 400 events (15 KB):
//!
//! ```text
//!               2.3 KB: bytes, us    68 KB: bytes, us    stream: bytes, us an event, KiB held
//!   zstd 3            662    17         7,950    290      6,881    2 to 4    165
//!   gzip 6            656    45        13,295  1,900      5,211    5         260
//!   br 4 (3)          631   130         7,571  1,400      8,476   10         305
//! ```

/// zstd's own default: at answers' sizes twice as fast as gzip and as small.
pub const ZSTD_LEVEL: i32 = 3;

/// Window of a whole answer, as a power of two: most are smaller. The context, which a reactor
/// holds once, grows with its largest answer up to 1.3 MiB.
pub const ZSTD_WINDOW_LOG: u32 = 17;

/// Window of a stream: 16 KiB reach back over a few hundred events. With tables as small (4,096
/// entries) a stream's encoder holds 165 KiB; zstd's own choice would hold 3.6 MiB.
pub const ZSTD_STREAM_WINDOW_LOG: u32 = 14;
pub const ZSTD_STREAM_TABLE_LOG: u32 = 12;

/// What is made once and kept may take longer.
pub const ZSTD_KEPT_LEVEL: i32 = 12;

/// zlib's own default: level 9 takes twice the time for a hundredth of the bytes.
pub const GZIP_LEVEL: u32 = 6;
pub const GZIP_KEPT_LEVEL: u32 = 9;

/// zlib's window, and a stream's: 4 KiB cost 1 % of its bytes and spare 110 of 370 KiB.
pub const GZIP_WINDOW_BITS: u8 = 15;
pub const GZIP_STREAM_WINDOW_BITS: u8 = 12;

/// Quality 5 is a tenth smaller and costs 1.1 MiB of fresh tables for each answer; below a window
/// of 17 bits this implementation makes tables of 33 MiB for it.
pub const BROTLI_QUALITY: u32 = 4;
pub const BROTLI_KEPT_QUALITY: u32 = 6;
pub const BROTLI_WINDOW_BITS: u32 = 18;

/// A stream of quality 4 would hold 700 KiB for 2 % fewer bytes.
pub const BROTLI_STREAM_QUALITY: u32 = 3;
pub const BROTLI_STREAM_WINDOW_BITS: u32 = 14;

/// Streams of one reactor that may hold an encoder; later ones go out plain. As many as an engine
/// can decode together (llama.cpp's `LLAMA_MAX_SEQ`); 256 of 305 KiB are 76 MiB.
pub const COMPRESSED_STREAMS_MOST: u32 = 256;

/// The room that an encoder finds for its output at a time: most events need less.
pub const ENCODER_ROOM_BYTES: usize = 1024;

/// Bytes of a body that is kept in coded forms; a larger one is made anew for each request.
pub const KEPT_BODY_BYTES: usize = 64 * 1024;

/// What a decoder is asked for at a time: how far beyond its bound a bomb can get.
pub const DECODER_ROOM_BYTES: usize = 16 * 1024;

/// Members of a gzip body, or frames of a zstd body. Each is set up anew, and an empty one has 20
/// bytes; tools make one, parallel ones some.
pub const CODED_MEMBERS_MAX: u32 = 64;

/// zstd's window as a power of two: the 8 MiB of RFC 9659, section 3. A frame that asks for more is
/// refused before anything is allocated.
pub const ZSTD_DECODER_WINDOW_LOG: u32 = 23;

/// A body may grow to this whatever its ratio: a few spaces or zeros shrink by a thousand honestly.
pub const INFLATE_FREE_BYTES: usize = 64 * 1024;
