//! Decoders for the bodies that clients send: bytes in, plain bytes out, within a bound.
//!
//! A small body can decode to a huge one. So a decoder is asked for a little at a time and stops as
//! soon as its bound is passed; only the output until then has cost anything. The bound is the
//! lower of two: a number of bytes, and a multiple of the coded body's own size.
//!
//! Invariants:
//!  1. At most `output_most + 1` bytes are ever produced.
//!  2. The same bytes have the same result, however they are cut.
//!  3. A decoder's memory is bounded by its format's window and by the bound on output.
//!  4. No input makes a decoder panic, or loop without progress.

use brotli::enc::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, is_error_kind};

use super::Coding;
use crate::limits::compression as limits;

/// How large a decoded body may become, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    pub output_most: usize,
    /// Whether the ratio is the lower bound of the two.
    by_ratio: bool,
}

impl Bound {
    /// Returns the bound of a body that came in `coded_bytes`.
    pub fn of(coded_bytes: usize, bytes_most: usize, ratio_most: u32) -> Bound {
        let by_ratio = coded_bytes.saturating_mul(ratio_most as usize);
        let by_ratio = by_ratio.max(limits::INFLATE_FREE_BYTES);
        Bound {
            output_most: bytes_most.min(by_ratio),
            by_ratio: by_ratio < bytes_most,
        }
    }
}

/// Why a body was not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DecodeError {
    /// It decodes to more than a body may have.
    TooLarge,
    /// It decodes to more than its own size allows.
    TooDense,
    /// It needs a window larger than [`limits::ZSTD_DECODER_WINDOW_BITS_MAX`].
    WindowTooLarge,
    /// It does not follow its format, or has bytes after its end.
    Malformed,
    /// It ends too early.
    Truncated,
}

impl DecodeError {
    /// `error as usize` is the index.
    pub const ALL: [DecodeError; 5] = [
        DecodeError::TooLarge,
        DecodeError::TooDense,
        DecodeError::WindowTooLarge,
        DecodeError::Malformed,
        DecodeError::Truncated,
    ];

    /// Returns the label of the metrics.
    pub const fn label(self) -> &'static str {
        match self {
            DecodeError::TooLarge => "size",
            DecodeError::TooDense => "ratio",
            DecodeError::WindowTooLarge => "window",
            DecodeError::Malformed => "malformed",
            DecodeError::Truncated => "truncated",
        }
    }
}

/// Decodes a whole body into `out`, replacing its contents.
///
/// It takes 2 (zstd) to 10 ms (gzip, br) per MiB of text or noise that comes out, on one core in a
/// release build; a bomb is refused within that time. The worst are bodies that consist of code
/// tables alone, which a decoder cannot recognise in advance: 280 ms per MiB that comes in (see the
/// test `tables_without_text_are_the_worst`).
pub fn decode_body(
    coding: Coding,
    body: &[u8],
    bound: Bound,
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    out.clear();
    let mut decoder = Decoder::new(coding, bound)?;
    decoder.decode(body, out)?;
    decoder.finish()
}

/// A decoder of one coding, fed piece by piece.
///
/// ```text
///   Within ── end of a member ──> Between ── more input ──> Within   (gzip, zstd)
///                                    └────── more input ──> Malformed (br, deflate)
/// ```
pub struct Decoder {
    coding: Coding,
    state: State,
    bound: Bound,
    made: usize,
    members: u32,
    is_between: bool,
}

enum State {
    Zstd(DCtx<'static>),
    Inflate(Decompress),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
}

/// The result of one call of a format's own decoder.
struct Progress {
    taken: usize,
    made: usize,
    is_end: bool,
}

impl Decoder {
    pub fn new(coding: Coding, bound: Bound) -> Result<Decoder, DecodeError> {
        Ok(Decoder {
            coding,
            state: State::new(coding)?,
            bound,
            made: 0,
            members: 1,
            is_between: false,
        })
    }

    /// Appends the decoded form of `input`.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
        let mut rest = input;
        loop {
            if self.is_between {
                if rest.is_empty() {
                    return Ok(());
                }
                self.begin_member()?;
            }
            let start = out.len();
            // One byte more than allowed, so that exceeding the bound is noticed.
            let room = (self.bound.output_most + 1 - self.made).min(limits::DECODER_ROOM_BYTES);
            out.resize(start + room, 0);
            let progress = self.state.step(rest, &mut out[start..]);
            let made = progress.as_ref().map_or(0, |progress| progress.made);
            out.truncate(start + made);
            let progress = progress?;
            rest = &rest[progress.taken..];
            self.made += made;
            if self.made > self.bound.output_most {
                return Err(match self.bound.by_ratio {
                    true => DecodeError::TooDense,
                    false => DecodeError::TooLarge,
                });
            }
            self.is_between = progress.is_end;
            if !progress.is_end && made < room {
                if rest.is_empty() {
                    return Ok(());
                }
                if progress.taken == 0 && made == 0 {
                    return Err(DecodeError::Malformed);
                }
            }
        }
    }

    /// No more input will come: checks that the body is complete.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.is_between {
            true => Ok(()),
            false => Err(DecodeError::Truncated),
        }
    }

    /// Handles bytes after the end: another member (RFC 1952, section 2.2), another frame (RFC
    /// 8878, section 3), or bytes that do not belong there.
    fn begin_member(&mut self) -> Result<(), DecodeError> {
        self.members += 1;
        if self.members > limits::CODED_MEMBERS_MAX {
            return Err(DecodeError::Malformed);
        }
        match self.coding {
            Coding::Gzip => self.state = State::new(Coding::Gzip)?,
            // The zstd decoder begins the next frame by itself.
            Coding::Zstd => {}
            Coding::Brotli | Coding::Deflate => return Err(DecodeError::Malformed),
        }
        self.is_between = false;
        Ok(())
    }
}

impl State {
    fn new(coding: Coding) -> Result<State, DecodeError> {
        Ok(match coding {
            Coding::Zstd => {
                let mut context = DCtx::try_create().ok_or(DecodeError::Malformed)?;
                let window = DParameter::WindowLogMax(limits::ZSTD_DECODER_WINDOW_BITS_MAX);
                let set = context.set_parameter(window);
                set.map_err(|_| DecodeError::Malformed)?;
                State::Zstd(context)
            }
            Coding::Gzip => State::Inflate(Decompress::new_gzip(limits::GZIP_WINDOW_BITS)),
            Coding::Deflate => State::Inflate(Decompress::new(true)),
            // Strict: without the large windows that RFC 7932 does not define.
            Coding::Brotli => {
                let alloc = StandardAlloc::default;
                let state = BrotliState::new_strict(alloc(), alloc(), alloc());
                State::Brotli(Box::new(state))
            }
        })
    }

    fn step(&mut self, input: &[u8], room: &mut [u8]) -> Result<Progress, DecodeError> {
        match self {
            State::Zstd(context) => unzstd(context, input, room),
            State::Inflate(decompress) => inflate(decompress, input, room),
            State::Brotli(state) => {
                let (mut left, mut taken) = (input.len(), 0);
                let (mut room_left, mut made) = (room.len(), 0);
                let result = BrotliDecompressStream(
                    &mut left,
                    &mut taken,
                    input,
                    &mut room_left,
                    &mut made,
                    room,
                    &mut 0,
                    state,
                );
                let is_end = match result {
                    BrotliResult::ResultSuccess => true,
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => false,
                    BrotliResult::ResultFailure => return Err(DecodeError::Malformed),
                };
                Ok(Progress {
                    taken,
                    made,
                    is_end,
                })
            }
        }
    }
}

fn unzstd(
    context: &mut DCtx<'static>,
    input: &[u8],
    room: &mut [u8],
) -> Result<Progress, DecodeError> {
    let mut source = InBuffer::around(input);
    let mut target = OutBuffer::around(room);
    let left = context
        .decompress_stream(&mut target, &mut source)
        .map_err(|code| {
            let too_large = ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge;
            match is_error_kind(code, too_large) {
                true => DecodeError::WindowTooLarge,
                false => DecodeError::Malformed,
            }
        })?;
    Ok(Progress {
        taken: source.pos(),
        made: target.pos(),
        is_end: left == 0,
    })
}

fn inflate(
    decompress: &mut Decompress,
    input: &[u8],
    room: &mut [u8],
) -> Result<Progress, DecodeError> {
    let (before_in, before_out) = (decompress.total_in(), decompress.total_out());
    let status = decompress
        .decompress(input, room, FlushDecompress::None)
        .map_err(|_| DecodeError::Malformed)?;
    Ok(Progress {
        taken: (decompress.total_in() - before_in) as usize,
        made: (decompress.total_out() - before_out) as usize,
        is_end: status == Status::StreamEnd,
    })
}

#[cfg(test)]
mod tests;
