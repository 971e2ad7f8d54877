//! Decides which responses are compressed and how.
//!
//! Owns one reactor's compression contexts and the decisions; the codings themselves are in
//! [`crate::http::compress`]. Must never encode a response whose client did not ask for it.
//!
//! Invariants:
//!  1. A response has `Content-Encoding` exactly if its body has that coding, even if HEAD leaves
//!     the body out.
//!  2. Every response whose form depends on `Accept-Encoding` has `Vary`.
//!  3. Of a reactor's streams at most `limits::COMPRESSED_STREAMS_MAX` hold an encoder, and each
//!     encoder has a share of the account of buffered memory.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::config::Config;
use crate::core::buffered::{Account, Claim, Share};
use crate::error::{ApiError, ErrorCode};
use crate::grpc::messages::Message;
use crate::grpc::{Encoding, frame};
use crate::http::Fields;
use crate::http::compress::encode::{
    Compressor, Effort, EncodeFailed, Encoder, Step, encode_whole, wrap_whole,
};
use crate::http::compress::{Coding, is_compressible};
use crate::http::negotiate::AcceptEncoding;
use crate::limits::compression as compression_limits;
use crate::limits::service as limits;
use crate::offload::Permit;

use super::compression::{CompressionSeries, Skipped};
use super::static_body::StaticBody;
use super::stored_body::StoredBody;

/// Of the codings that a client likes equally, the cheapest first: at the sizes of responses zstd
/// takes half of gzip's time and gets as small, and brotli's tables alone take longer than both.
/// `limits::compression` has the figures.
const ORDER: &[Coding] = &[Coding::Zstd, Coding::Gzip, Coding::Brotli];

/// A body that is compressed once is sent in its smallest form.
const STATIC_ORDER: &[Coding] = &[Coding::Brotli, Coding::Zstd, Coding::Gzip];

/// Encodes one whole body, however long it becomes.
type EncodeWhole = fn(Coding, &[u8], &mut Vec<u8>) -> Result<(), EncodeFailed>;

/// One reactor's compression tools.
#[derive(Debug)]
pub struct Coder {
    is_on: bool,
    bytes_min: usize,
    compressor: Compressor,
    /// The last response that was compressed.
    coded: Vec<u8>,
    /// Streams that hold an encoder.
    streams: Arc<AtomicU32>,
    /// The account in which their memory counts.
    buffered: Account,
    counters: Arc<CompressionSeries>,
}

impl Coder {
    pub fn new(config: &Config, counters: Arc<CompressionSeries>, buffered: Account) -> Coder {
        Coder {
            is_on: config.server.compress,
            bytes_min: config.server.compress_min,
            compressor: Compressor::default(),
            coded: Vec::new(),
            streams: Arc::default(),
            buffered,
            counters,
        }
    }

    pub fn apply(&mut self, config: &Config) {
        self.is_on = config.server.compress;
        self.bytes_min = config.server.compress_min;
    }

    /// Returns whether there is a form that the client accepts.
    pub fn can_please(&self, accepted: AcceptEncoding) -> bool {
        !accepted.refuses_identity() || (self.is_on && accepted.choose(ORDER).is_some())
    }

    /// Like `code`, within the time of a reactor's step: a longer body is sent as it is, or in a
    /// coding's form without compression if its client refuses that. Long responses of generations
    /// do not come here: workers code them.
    pub fn code_quickly<'b>(
        &'b mut self,
        accepted: AcceptEncoding,
        content_type: Option<&str>,
        body: &'b [u8],
        fields: &mut Fields,
    ) -> &'b [u8] {
        if body.len() <= limits::CODE_AT_ONCE_BYTES_MAX {
            return self.code(accepted, content_type, body, fields);
        }
        if accepted.refuses_identity() {
            return self.code_with(accepted, content_type, body, fields, wrap_whole);
        }
        if self.may_code(accepted, content_type, body.len()) {
            fields.push("vary", "Accept-Encoding");
            self.counters.skipped.get(Skipped::Long).inc();
        }
        body
    }

    /// Returns the form in which a whole body is sent; the fields name it.
    pub fn code<'b>(
        &'b mut self,
        accepted: AcceptEncoding,
        content_type: Option<&str>,
        body: &'b [u8],
        fields: &mut Fields,
    ) -> &'b [u8] {
        self.code_with(accepted, content_type, body, fields, encode_whole)
    }

    /// Like `code`. `encode` is for clients that refuse plain bodies.
    fn code_with<'b>(
        &'b mut self,
        accepted: AcceptEncoding,
        content_type: Option<&str>,
        body: &'b [u8],
        fields: &mut Fields,
        encode: EncodeWhole,
    ) -> &'b [u8] {
        if !self.may_code(accepted, content_type, body.len()) {
            return body;
        }
        fields.push("vary", "Accept-Encoding");
        let Some(coding) = accepted.choose(ORDER) else {
            return body;
        };
        let Coder {
            compressor, coded, ..
        } = self;
        // One long response must not cost memory for ever.
        coded.clear();
        coded.shrink_to(limits::RESPONSE_BUFFER_KEPT_BYTES_MAX);
        let counters = &self.counters;
        let is_better = counters.compressing(coding, || {
            if accepted.refuses_identity() {
                // Better longer than refused.
                encode(coding, body, coded).is_ok()
            } else {
                compressor.compress(coding, Effort::Quick, body, coded)
            }
        });
        if !is_better {
            counters.skipped.get(Skipped::Grew).inc();
            return body;
        }
        counters.observe_compressed(coding, body.len(), coded.len());
        fields.push("content-encoding", coding.name());
        coded
    }

    /// Like `code`, for a body that is kept, and compressed at the first request.
    pub fn code_static<'b>(
        &mut self,
        accepted: AcceptEncoding,
        content_type: &str,
        body: &'b mut StaticBody,
        fields: &mut Fields,
    ) -> &'b [u8] {
        let before = body.plain().len();
        if !self.may_code(accepted, Some(content_type), before) {
            return body.plain();
        }
        fields.push("vary", "Accept-Encoding");
        let Some(coding) = accepted.choose(STATIC_ORDER) else {
            return body.plain();
        };
        let counters = &self.counters;
        if !body.has(coding) {
            counters.compressing(coding, || body.make(coding, &mut self.compressor));
        }
        let Some(coded) = body.coded(coding) else {
            counters.skipped.get(Skipped::Grew).inc();
            return body.plain();
        };
        counters.observe_compressed(coding, before, coded.len());
        fields.push("content-encoding", coding.name());
        coded
    }

    /// Like `code_quickly`, for a body that all reactors share. Returns also whether a coding of it
    /// was made.
    pub fn code_stored<'b>(
        &mut self,
        accepted: AcceptEncoding,
        content_type: &str,
        body: &'b StoredBody,
        fields: &mut Fields,
    ) -> (&'b [u8], bool) {
        let plain = body.plain();
        if !self.may_code(accepted, Some(content_type), plain.len()) {
            return (plain, false);
        }
        fields.push("vary", "Accept-Encoding");
        let Some(coding) = accepted.choose(ORDER) else {
            return (plain, false);
        };
        let is_new = body.variant(coding).is_none();
        if is_new && plain.len() > limits::CODE_AT_ONCE_BYTES_MAX {
            self.counters.skipped.get(Skipped::Long).inc();
            return (plain, false);
        }
        let counters = &self.counters;
        if is_new {
            let Coder {
                compressor, coded, ..
            } = self;
            coded.clear();
            let is_shorter = counters.compressing(coding, || {
                compressor.compress(coding, Effort::Quick, plain, coded)
            });
            body.keep(coding, is_shorter.then_some(coded.as_slice()));
        }
        let Some(coded) = body.variant(coding).flatten() else {
            counters.skipped.get(Skipped::Grew).inc();
            return (plain, is_new);
        };
        counters.observe_compressed(coding, plain.len(), coded.len());
        fields.push("content-encoding", coding.name());
        (coded, is_new)
    }

    /// Small responses are sent as they are, and so have no `Vary` either, as with nginx. A client
    /// that refuses plain ones gets all of them coded.
    fn may_code(&self, accepted: AcceptEncoding, content_type: Option<&str>, bytes: usize) -> bool {
        let is_small = bytes < self.bytes_min && !accepted.refuses_identity();
        self.is_on && bytes > 0 && !is_small && content_type.is_some_and(is_compressible)
    }

    /// Returns the encoder of a stream that begins, and adds the fields for it. `None`: it is sent
    /// plain.
    pub fn begin_stream(
        &self,
        accepted: AcceptEncoding,
        content_type: &str,
        fields: &mut Fields,
    ) -> Option<Box<StreamCoder>> {
        if !self.is_on || !is_compressible(content_type) {
            return None;
        }
        fields.push("vary", "Accept-Encoding");
        let coding = accepted.choose(ORDER)?;
        let permit = Permit::try_take(&self.streams, limits::COMPRESSED_STREAMS_MAX);
        // A public route compresses nothing, so its client has shown a key if there are any.
        let mut share = self.buffered.share(Claim::Keyed);
        let has_room = share
            .resize(compression_limits::STREAM_ENCODER_BYTES_MAX)
            .is_ok();
        let encoder = permit
            .filter(|_| has_room)
            .zip(Encoder::stream(coding).ok());
        let Some((permit, encoder)) = encoder else {
            self.counters.skipped.get(Skipped::Busy).inc();
            return None;
        };
        fields.push("content-encoding", coding.name());
        let counters = self.counters.clone();
        counters.streams.inc();
        Some(Box::new(StreamCoder {
            encoder,
            counters,
            _permit: permit,
            _share: share,
        }))
    }

    /// Encodes one piece of a stream, flushed, so that the client sees it at once.
    pub fn code_piece(&mut self, stream: &mut StreamCoder, piece: &[u8], step: Step) -> &[u8] {
        let StreamCoder { encoder, .. } = stream;
        self.coded.clear();
        let counters = &self.counters;
        let coded = &mut self.coded;
        let done = counters.compressing(encoder.coding(), || encoder.encode(piece, step, coded));
        if done.is_err() {
            // Only for lack of memory. The client's stream is cut off, and it will notice.
            log::error!("an encoder failed; the stream is cut off");
        }
        counters.observe_compressed(encoder.coding(), piece.len(), self.coded.len());
        &self.coded
    }

    /// Appends a gRPC message, which has its own coding.
    pub fn append_message(&self, body: &mut Vec<u8>, message: &impl Message, encoding: Encoding) {
        if encoding == Encoding::Identity {
            return frame::append(body, message, encoding);
        }
        let (coding, start) = (Coding::Gzip, body.len());
        let counters = &self.counters;
        counters.compressing(coding, || frame::append(body, message, encoding));
        let before = frame::PREFIX_BYTES + message.encoded_len();
        counters.observe_compressed(coding, before, body.len() - start);
    }
}

/// The encoder of one stream, for as long as the stream lasts.
#[derive(Debug)]
pub struct StreamCoder {
    encoder: Encoder,
    counters: Arc<CompressionSeries>,
    _permit: Permit,
    _share: Share,
}

impl Drop for StreamCoder {
    fn drop(&mut self) {
        self.counters.streams.dec();
    }
}

/// Returns 406.
pub fn no_coding() -> ApiError {
    let message = "`Accept-Encoding` excludes `identity` and allows none of zstd, gzip and br";
    ApiError::new(ErrorCode::NotAcceptable, message)
}
