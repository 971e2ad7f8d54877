//! Bounds of content codings: what an encoder may cost, and what a coded body may become.
//!
//! Measured on one core of the build machine, release, with JSON responses that hold code (2.3 KB
//! and 68 KB) and a stream of 400 events (15 KB):
//!
//! ```text
//!               2.3 KB: bytes, us    68 KB: bytes, us    stream: bytes, us per event, KiB held
//!   zstd 3            662    17         7,950    290      6,881    2 to 4    165
//!   gzip 6            656    45        13,295  1,900      5,211    5         260
//!   br 4 (3)          631   130         7,571  1,400      8,476   10         305
//! ```

// ---- encoders ----

/// zstd's own default: for typical responses twice as fast as gzip and as small.
pub const ZSTD_LEVEL: i32 = 3;

/// The level for bodies that are compressed once and kept: it may take longer.
pub const ZSTD_STATIC_LEVEL: i32 = 12;

/// Window of a whole response, as a power of two: most are smaller. The context, which a reactor
/// holds once, grows with its largest response up to 1.3 MiB.
pub const ZSTD_WINDOW_BITS: u32 = 17;

/// Window of a stream: 16 KiB reach back over a few hundred events. With tables as small (4,096
/// entries) a stream's encoder holds 165 KiB; zstd's own choice would hold 3.6 MiB.
pub const ZSTD_STREAM_WINDOW_BITS: u32 = 14;

/// The tables for it: 4,096 entries.
pub const ZSTD_STREAM_TABLE_BITS: u32 = 12;

/// The level for bodies that are only put into zstd's form: it looks for next to nothing.
pub const ZSTD_WRAP_LEVEL: i32 = -100;

/// zlib's own default: level 9 takes twice the time and saves 1 % of the bytes.
pub const GZIP_LEVEL: u32 = 6;

/// The level for bodies that are compressed once and kept.
pub const GZIP_STATIC_LEVEL: u32 = 9;

/// zlib's window for a whole response.
pub const GZIP_WINDOW_BITS: u8 = 15;

/// zlib's window for a stream: 4 KiB make it 1 % larger and save 110 of 370 KiB of memory.
pub const GZIP_STREAM_WINDOW_BITS: u8 = 12;

/// Quality 5 is 10 % smaller and costs 1.1 MiB of fresh tables for each response.
pub const BROTLI_QUALITY: u32 = 4;

/// The quality for bodies that are compressed once and kept.
pub const BROTLI_STATIC_QUALITY: u32 = 6;

/// Below a window of 17 bits, quality 5 would make tables of 33 MiB in this implementation.
pub const BROTLI_WINDOW_BITS: u32 = 18;

/// A stream of quality 4 would hold 700 KiB for 2 % fewer bytes.
pub const BROTLI_STREAM_QUALITY: u32 = 3;

/// Brotli's window for a stream: 16 KiB, as zstd's.
pub const BROTLI_STREAM_WINDOW_BITS: u32 = 14;

/// Memory that the encoder of a stream holds, in any coding: the table above has the figures.
pub const STREAM_ENCODER_BYTES_MAX: usize = 305 * 1024;

/// The room that an encoder finds for its output at a time: most events need less.
pub const ENCODER_ROOM_BYTES: usize = 1024;

// ---- decoders ----

/// Bytes that a decoder may produce at a time: how far beyond its bound a bomb can get.
pub const DECODER_ROOM_BYTES: usize = 16 * 1024;

/// Members of a gzip body, or frames of a zstd body. Each needs a decoder of its own, and an empty
/// one has 20 bytes; ordinary tools make one, parallel ones a few.
pub const CODED_MEMBERS_MAX: u32 = 64;

/// zstd's window as a power of two: the 8 MiB of RFC 9659, section 3. A frame that asks for more is
/// refused before anything is allocated.
pub const ZSTD_DECODER_WINDOW_BITS_MAX: u32 = 23;

/// A body may grow to this size whatever its ratio: a run of spaces or zeros shrinks a
/// thousandfold without any bad intent.
pub const INFLATE_FREE_BYTES: usize = 64 * 1024;
