//! HPACK (RFC 7541): the coding of fields in HTTP/2.
//!
//! ```text
//!   block ──> Decoder ──> FieldList        one table for each connection, at most 4 KiB
//!   status, fields ──> encode ──> block    no table: literals, static names
//! ```
//!
//! The encoder has no state. It refers to the static table and puts nothing into the peer's dynamic
//! one, as nginx does: the few fields of a response (date, length, request's number) differ from
//! one response to the next, and a table would have to be searched for each of them. This costs
//! some hundred bytes per response, and the peer's choice of a table size does not matter to us:
//! see [`encode::empty_table`].
//!
//! In reading order: [`huffman`], [`table`], [`decode`], [`encode`].

pub mod decode;
pub mod encode;
pub mod huffman;
pub mod table;

pub use decode::{Decoder, FieldList};
