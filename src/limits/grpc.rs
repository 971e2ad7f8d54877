//! Bounds of gRPC and of Protobuf messages.

/// Fields of a Protobuf message. The largest form has 16, and two lists of at most 64; each field
/// may cost some fifty bytes of memory for its two on the wire.
pub const PROTOBUF_FIELDS_MAX: usize = 1_024;

const _: () = assert!(
    super::service::CONTEXT_FILES_MAX + super::service::STOP_STRINGS_MAX + 16 < PROTOBUF_FIELDS_MAX
);

/// A gRPC message is compressed from this size on, where the client takes gzip: a smaller one fits
/// into a packet as it is.
pub const GZIP_BYTES_MIN: usize = 1_024;

/// Bytes of a `grpc-message`, which the trailers hold twice. Percent-encoding may triple one.
pub const STATUS_MESSAGE_BYTES_MAX: usize = 512;

/// Bytes of `grpc-status-details-bin` before they become base64. Clients take 8 KiB of fields by
/// default, all together.
pub const STATUS_DETAILS_BYTES_MAX: usize = 3 * 1_024;
