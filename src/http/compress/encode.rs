//! Encoders: bytes in, coded bytes out, whole or piece by piece.
//!
//! [`Compressor`] compresses whole bodies and keeps its contexts for the next one. [`Encoder`]
//! belongs to one stream and can flush, so that a reader sees each event when it was sent and not
//! when a block is full. Levels and windows are in [`crate::limits::compression`].
//!
//! Invariants:
//!  1. After [`Step::Flush`] a decoder that got all bytes so far can return all text so far.
//!  2. The output of [`Compressor::compress`] is shorter than its input.
//!  3. A stream's encoder holds bounded memory, however long its stream is.

use std::fmt;

use brotli::enc::encode::{
    BrotliEncoderDestroyInstance, BrotliEncoderOperation, BrotliEncoderParameter,
    BrotliEncoderStateStruct,
};
use brotli::enc::{InputReferenceMut, StandardAlloc, interface};
use flate2::{Compress, Compression, FlushCompress, Status};
use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

use super::Coding;
use crate::limits::compression as limits;

/// How the encoder goes on after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Flush: all input so far can be decoded from the output so far.
    Flush,
    /// End the body.
    Finish,
}

/// How much time to spend on a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// The body is sent once.
    Quick,
    /// The body is kept and sent often.
    Kept,
}

/// The encoder itself failed, which happens only for lack of memory or by a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeFailed;

/// Compresses whole bodies, one after the other.
#[derive(Default)]
pub struct Compressor {
    /// Created at first use: most clients ask for only one coding.
    zstd: Option<CCtx<'static>>,
    gzip: Option<Compress>,
}

impl Compressor {
    /// Replaces the contents of `out` by the coded body. Returns false if it would not be shorter;
    /// `out` is then meaningless.
    pub fn compress(
        &mut self,
        coding: Coding,
        effort: Effort,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> bool {
        out.clear();
        let done = match (coding, effort) {
            (Coding::Zstd, Effort::Quick) => self.zstd(body, out),
            (Coding::Gzip, Effort::Quick) => self.gzip(body, out),
            _ => Encoder::whole(coding, effort, body.len())
                .and_then(|mut encoder| encoder.encode(body, Step::Finish, out)),
        };
        done.is_ok() && out.len() < body.len()
    }

    /// With no more room than the body takes, zstd fails if it would not gain anything.
    fn zstd(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeFailed> {
        if self.zstd.is_none() {
            let level = limits::ZSTD_LEVEL;
            self.zstd = Some(zstd_context(level, limits::ZSTD_WINDOW_BITS, None)?);
        }
        let context = self.zstd.as_mut().ok_or(EncodeFailed)?;
        out.reserve(body.len());
        context.compress2(out, body).map_err(|_| EncodeFailed)?;
        Ok(())
    }

    fn gzip(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeFailed> {
        let compress = self.gzip.get_or_insert_with(|| {
            let level = Compression::new(limits::GZIP_LEVEL);
            Compress::new_gzip(level, limits::GZIP_WINDOW_BITS)
        });
        compress.reset();
        deflate(compress, body, FlushCompress::Finish, out)
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

/// Encodes one whole body even if it grows, for a client that accepts no other form.
pub fn encode_whole(coding: Coding, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeFailed> {
    out.clear();
    Encoder::whole(coding, Effort::Quick, body.len())?.encode(body, Step::Finish, out)
}

/// Puts one whole body into the form of a coding without compressing it. Costs little more than a
/// copy, for a reactor that has no time to compress a long body and whose client accepts no plain
/// one.
pub fn wrap_whole(coding: Coding, body: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeFailed> {
    out.clear();
    let (none, window_bits) = (Compression::none(), limits::GZIP_WINDOW_BITS);
    let state = match coding {
        Coding::Zstd => {
            let context = zstd_context(limits::ZSTD_WRAP_LEVEL, limits::ZSTD_WINDOW_BITS, None)?;
            State::Zstd(context)
        }
        Coding::Gzip => State::Deflate(Compress::new_gzip(none, window_bits)),
        Coding::Deflate => State::Deflate(Compress::new_with_window_bits(none, true, window_bits)),
        Coding::Brotli => {
            wrap_in_brotli(body, out);
            return Ok(());
        }
    };
    Encoder { coding, state }.encode(body, Step::Finish, out)
}

/// Writes a body as uncompressed meta-blocks (RFC 7932, section 9.2).
fn wrap_in_brotli(body: &[u8], out: &mut Vec<u8>) {
    out.reserve(body.len() + body.len() / BROTLI_BLOCK_BYTES * 3 + 4);
    // WBITS, one bit: a window of 16 bits. It precedes the first meta-block's header.
    let mut bits = 1;
    for block in body.chunks(BROTLI_BLOCK_BYTES) {
        // ISLAST 0, MNIBBLES 0 for four of them, MLEN - 1 in 16 bits, ISUNCOMPRESSED 1.
        let header = ((block.len() as u32 - 1) << 3 | 1 << 19) << bits;
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
        bits = 0;
    }
    // ISLAST and ISLASTEMPTY.
    out.push(0b11 << bits);
}

/// The most that a meta-block's length of four nibbles can express.
const BROTLI_BLOCK_BYTES: usize = 1 << 16;

/// Compresses one stream, piece by piece.
pub struct Encoder {
    coding: Coding,
    state: State,
}

enum State {
    Zstd(CCtx<'static>),
    Deflate(Compress),
    Brotli(Box<Brotli>),
}

impl Encoder {
    /// Creates an encoder for a stream of events.
    pub fn stream(coding: Coding) -> Result<Encoder, EncodeFailed> {
        let gzip_level = Compression::new(limits::GZIP_LEVEL);
        let window_bits = limits::GZIP_STREAM_WINDOW_BITS;
        let state = match coding {
            Coding::Zstd => State::Zstd(zstd_context(
                limits::ZSTD_LEVEL,
                limits::ZSTD_STREAM_WINDOW_BITS,
                Some(limits::ZSTD_STREAM_TABLE_BITS),
            )?),
            Coding::Gzip => State::Deflate(Compress::new_gzip(gzip_level, window_bits)),
            Coding::Deflate => {
                let compress = Compress::new_with_window_bits(gzip_level, true, window_bits);
                State::Deflate(compress)
            }
            Coding::Brotli => State::Brotli(Brotli::new(
                limits::BROTLI_STREAM_QUALITY,
                limits::BROTLI_STREAM_WINDOW_BITS,
                None,
            )),
        };
        Ok(Encoder { coding, state })
    }

    /// Creates an encoder for one body of this many bytes.
    fn whole(coding: Coding, effort: Effort, bytes: usize) -> Result<Encoder, EncodeFailed> {
        let (zstd, gzip, brotli) = match effort {
            Effort::Quick => (
                limits::ZSTD_LEVEL,
                limits::GZIP_LEVEL,
                limits::BROTLI_QUALITY,
            ),
            Effort::Kept => (
                limits::ZSTD_STATIC_LEVEL,
                limits::GZIP_STATIC_LEVEL,
                limits::BROTLI_STATIC_QUALITY,
            ),
        };
        let (gzip, window_bits) = (Compression::new(gzip), limits::GZIP_WINDOW_BITS);
        let state = match coding {
            Coding::Zstd => State::Zstd(zstd_context(zstd, limits::ZSTD_WINDOW_BITS, None)?),
            Coding::Gzip => State::Deflate(Compress::new_gzip(gzip, window_bits)),
            Coding::Deflate => {
                State::Deflate(Compress::new_with_window_bits(gzip, true, window_bits))
            }
            Coding::Brotli => {
                State::Brotli(Brotli::new(brotli, limits::BROTLI_WINDOW_BITS, Some(bytes)))
            }
        };
        Ok(Encoder { coding, state })
    }

    pub const fn coding(&self) -> Coding {
        self.coding
    }

    /// Appends the complete coded form of `piece`. No piece may follow [`Step::Finish`].
    pub fn encode(
        &mut self,
        piece: &[u8],
        step: Step,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeFailed> {
        match (&mut self.state, step) {
            (State::Zstd(context), Step::Flush) => {
                zstd(context, piece, ZSTD_EndDirective::ZSTD_e_flush, out)
            }
            (State::Zstd(context), Step::Finish) => {
                zstd(context, piece, ZSTD_EndDirective::ZSTD_e_end, out)
            }
            (State::Deflate(compress), Step::Flush) => {
                deflate(compress, piece, FlushCompress::Sync, out)
            }
            (State::Deflate(compress), Step::Finish) => {
                deflate(compress, piece, FlushCompress::Finish, out)
            }
            (State::Brotli(brotli), step) => brotli.encode(piece, step, out),
        }
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("coding", &self.coding)
            .finish_non_exhaustive()
    }
}

fn zstd_context(
    level: i32,
    window_log: u32,
    table_log: Option<u32>,
) -> Result<CCtx<'static>, EncodeFailed> {
    let mut context = CCtx::try_create().ok_or(EncodeFailed)?;
    let mut set = |parameter| context.set_parameter(parameter).map_err(|_| EncodeFailed);
    set(CParameter::CompressionLevel(level))?;
    set(CParameter::WindowLog(window_log))?;
    if let Some(table_log) = table_log {
        set(CParameter::HashLog(table_log))?;
        set(CParameter::ChainLog(table_log))?;
    }
    Ok(context)
}

fn zstd(
    context: &mut CCtx<'static>,
    piece: &[u8],
    end: ZSTD_EndDirective,
    out: &mut Vec<u8>,
) -> Result<(), EncodeFailed> {
    let mut input = InBuffer::around(piece);
    loop {
        out.reserve(limits::ENCODER_ROOM_BYTES);
        let start = out.len();
        let mut output = OutBuffer::around_pos(out, start);
        // Each call takes input or produces output, because the room is never empty.
        let left = context.compress_stream2(&mut output, &mut input, end);
        if left.map_err(|_| EncodeFailed)? == 0 && input.pos() == piece.len() {
            return Ok(());
        }
    }
}

fn deflate(
    compress: &mut Compress,
    piece: &[u8],
    flush: FlushCompress,
    out: &mut Vec<u8>,
) -> Result<(), EncodeFailed> {
    let mut rest = piece;
    loop {
        out.reserve(limits::ENCODER_ROOM_BYTES);
        let (taken, made) = (compress.total_in(), out.len());
        let status = compress
            .compress_vec(rest, out, flush)
            .map_err(|_| EncodeFailed)?;
        rest = &rest[(compress.total_in() - taken) as usize..];
        // zlib has no more output for now once it leaves room unused.
        let left_room = out.len() < out.capacity();
        match (status, flush) {
            (Status::StreamEnd, _) => return Ok(()),
            (_, FlushCompress::Sync) if rest.is_empty() && left_room => return Ok(()),
            (Status::BufError, _) if left_room && out.len() == made => return Err(EncodeFailed),
            _ => {}
        }
    }
}

/// Brotli's state, which must be freed explicitly.
struct Brotli(BrotliEncoderStateStruct<StandardAlloc>);

impl Brotli {
    fn new(quality: u32, window_bits: u32, bytes: Option<usize>) -> Box<Brotli> {
        let mut state = BrotliEncoderStateStruct::new(StandardAlloc::default());
        state.set_parameter(BrotliEncoderParameter::BROTLI_PARAM_QUALITY, quality);
        state.set_parameter(BrotliEncoderParameter::BROTLI_PARAM_LGWIN, window_bits);
        if let Some(bytes) = bytes {
            let hint = u32::try_from(bytes).unwrap_or(u32::MAX);
            state.set_parameter(BrotliEncoderParameter::BROTLI_PARAM_SIZE_HINT, hint);
        }
        Box::new(Brotli(state))
    }

    fn encode(&mut self, piece: &[u8], step: Step, out: &mut Vec<u8>) -> Result<(), EncodeFailed> {
        let operation = match step {
            Step::Flush => BrotliEncoderOperation::BROTLI_OPERATION_FLUSH,
            Step::Finish => BrotliEncoderOperation::BROTLI_OPERATION_FINISH,
        };
        let mut no_callback = |_: &mut interface::PredictionModeContextMap<InputReferenceMut>,
                               _: &mut [interface::StaticCommand],
                               _: interface::InputPair,
                               _: &mut StandardAlloc| ();
        let (mut left, mut taken) = (piece.len(), 0);
        loop {
            // Without output room it keeps its output, which is then taken without an extra copy.
            let done = self.0.compress_stream(
                operation,
                &mut left,
                piece,
                &mut taken,
                &mut 0,
                &mut [],
                &mut 0,
                &mut None,
                &mut no_callback,
            );
            let mut made = 0;
            let output = self.0.take_output(&mut made);
            out.extend_from_slice(&output[..made]);
            if !done {
                return Err(EncodeFailed);
            }
            // It takes all input and delays its work while older output waits: only a call without
            // output shows that nothing is left.
            let is_over = match step {
                Step::Flush => left == 0 && made == 0,
                Step::Finish => self.0.is_finished(),
            };
            if is_over {
                return Ok(());
            }
            if made == 0 && left == 0 {
                return Err(EncodeFailed);
            }
        }
    }
}

impl Drop for Brotli {
    fn drop(&mut self) {
        BrotliEncoderDestroyInstance(&mut self.0);
    }
}
