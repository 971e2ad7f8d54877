//! HPACK (RFC 7541): how HTTP/2 writes fields.
//!
//! ```text
//!   block ──> Decoder ──> FieldList        one table for each connection, at most 4 KiB
//!   status, fields ──> encode ──> block    no table: literals, static names
//! ```
//!
//! The encoder has no state. It refers to the static table and puts nothing into the peer's dynamic
//! one, as nginx does: a response's few fields differ from one to the next (date, length, request's
//! number), and a table would have to be searched for each of them. A response takes some hundred
//! bytes more for it, and no peer's choice of a table size concerns us: see
//! [`encode::empty_table`].
//!
//! In reading order: [`huffman`], [`table`], [`decode`], [`encode`].

pub mod decode;
pub mod encode;
pub mod huffman;
pub mod table;

pub use decode::{Decoder, FieldList};
