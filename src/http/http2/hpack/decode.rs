//! Decodes a field block into a list of fields.
//!
//! Owns the table that the peer fills. Decodes every block to its end, however long the list
//! becomes: a skipped field would be missing in the table, and every later block would be decoded
//! wrongly. Once the list exceeds its bound, fields are decoded but not kept.
//!
//! The work for a block is linear in its bytes. The only exception is the work for fields that it
//! inserts into the table and removes from it again, which is counted as churn. A list that is many
//! times too long is an attack ("HPACK bomb") and ends the connection.
//!
//! Invariant: the same blocks give the same lists, whatever the fields mean.

use super::huffman;
use super::table::{ENTRY_OVERHEAD_BYTES, Table};
use crate::http::http2::frame::Reason;
use crate::limits::http2 as limits;

/// Decoded fields, in one buffer.
#[derive(Debug, Default)]
pub struct FieldList {
    text: Vec<u8>,
    spans: Vec<Span>,
    /// Counted as for SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113, section 6.5.2), including the fields
    /// that were not kept.
    bytes: usize,
}

/// The place of a field's value in the text. Its name ends where its value begins, and begins where
/// the field before it ends.
#[derive(Clone, Copy, Debug)]
struct Span {
    value: u32,
    end: u32,
}

impl FieldList {
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Returns the memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        self.text.capacity() + self.spans.capacity() * size_of::<Span>()
    }

    /// Returns whether fields are missing because the list is too long.
    pub fn is_oversized(&self) -> bool {
        self.bytes > limits::HEADER_LIST_BYTES_MAX as usize
    }

    /// Returns name and value of the field at this place.
    pub fn get(&self, at: usize) -> Option<(&[u8], &[u8])> {
        let span = self.spans.get(at)?;
        let before = at.checked_sub(1).map(|before| self.spans[before].end);
        let (value, end) = (span.value as usize, span.end as usize);
        let start = before.unwrap_or(0) as usize;
        Some((&self.text[start..value], &self.text[value..end]))
    }

    /// Returns names and values, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.spans.iter().map(move |span| {
            let (value, end) = (span.value as usize, span.end as usize);
            let field = (&self.text[start..value], &self.text[value..end]);
            start = end;
            field
        })
    }

    /// Returns an empty list with the same buffers, unless they are too large to be kept.
    pub fn emptied(mut self) -> FieldList {
        if self.text.capacity() > limits::SPARE_FIELDS_BYTES_MAX {
            return FieldList::default();
        }
        self.text.clear();
        self.spans.clear();
        FieldList { bytes: 0, ..self }
    }

    fn start(&self) -> usize {
        self.spans.last().map_or(0, |span| span.end as usize)
    }

    /// Completes the field that was appended to the text. Keeps it if the list is not too long.
    fn close(&mut self, value: usize) -> Result<(), Reason> {
        let start = self.start();
        self.bytes += self.text.len() - start + ENTRY_OVERHEAD_BYTES;
        if self.bytes > limits::EXCESSIVE_HEADER_LIST_BYTES_MIN {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        if self.is_oversized() {
            self.text.truncate(start);
            return Ok(());
        }
        // Both are bounded by the list's bytes.
        self.spans.push(Span {
            value: value as u32,
            end: self.text.len() as u32,
        });
        Ok(())
    }
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct Decoder {
    table: Table,
}

const UNDECODABLE: Reason = Reason::COMPRESSION_ERROR;

impl Decoder {
    /// Appends the fields of a complete block to an empty list. Returns its churn: the number of
    /// changes of the table's size, which a client needs once or twice in a connection, and of
    /// fields that it put into the table after the first [`limits::FREE_INSERTIONS_MAX`].
    pub fn decode(&mut self, block: &[u8], list: &mut FieldList) -> Result<u32, Reason> {
        let mut reader = Reader(block);
        let (mut churn, mut insertions, mut has_field) = (0, 0, false);
        while let Some(&first) = reader.0.first() {
            if first & 0xe0 == 0x20 {
                // RFC 7541, section 4.2: sizes come before all fields.
                let size = reader.integer(5)?;
                if has_field || !self.table.resize(size) {
                    return Err(UNDECODABLE);
                }
                churn += 1;
                continue;
            }
            has_field = true;
            if first & 0x80 != 0 {
                let index = reader.integer(7)?;
                let (name, value) = self.table.get(index).ok_or(UNDECODABLE)?;
                list.text.extend_from_slice(name);
                let at = list.text.len();
                list.text.extend_from_slice(value);
                list.close(at)?;
                continue;
            }
            let is_insertion = first & 0x40 != 0;
            let index = reader.integer(if is_insertion { 6 } else { 4 })?;
            let start = list.text.len();
            match index {
                0 => reader.string(&mut list.text)?,
                _ => {
                    let (name, _) = self.table.get(index).ok_or(UNDECODABLE)?;
                    list.text.extend_from_slice(name);
                }
            }
            let at = list.text.len();
            reader.string(&mut list.text)?;
            if is_insertion {
                self.table.insert(&list.text[start..at], &list.text[at..]);
                insertions += 1;
                churn += u32::from(insertions > limits::FREE_INSERTIONS_MAX);
            }
            list.close(at)?;
        }
        Ok(churn)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// RFC 7541, section 5.1. Four bytes behind the prefix are more than anything here needs.
    fn integer(&mut self, prefix_bits: u32) -> Result<u32, Reason> {
        let most = (1 << prefix_bits) - 1;
        let prefix = u32::from(self.byte()?) & most;
        if prefix < most {
            return Ok(prefix);
        }
        let mut value = most;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(UNDECODABLE)
    }

    /// RFC 7541, section 5.2.
    fn string(&mut self, text: &mut Vec<u8>) -> Result<(), Reason> {
        let is_huffman = self.0.first().ok_or(UNDECODABLE)? & 0x80 != 0;
        let length = self.integer(7)? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(UNDECODABLE)?;
        self.0 = rest;
        if !is_huffman {
            text.extend_from_slice(bytes);
        } else if !huffman::decode(bytes, text) {
            return Err(UNDECODABLE);
        }
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, Reason> {
        let (&first, rest) = self.0.split_first().ok_or(UNDECODABLE)?;
        self.0 = rest;
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Pairs = Vec<(String, String)>;

    fn pairs(list: &FieldList) -> Pairs {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        list.iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Pairs, Reason> {
        let mut list = FieldList::default();
        decoder.decode(block, &mut list).map(|_| pairs(&list))
    }

    fn expected(fields: &[(&str, &str)]) -> Result<Pairs, Reason> {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        Ok(fields.iter().map(owned).collect())
    }

    /// RFC 7541, appendix C.3 and C.4: three requests, in plain text and in Huffman's code.
    #[test]
    fn the_requests_of_the_rfc() {
        let plain: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x0fwww.example.com",
            b"\x82\x86\x84\xbe\x58\x08no-cache",
            b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
        ];
        let huffman: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
            b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
            b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\
              \xe8\xb4\xbf",
        ];
        for blocks in [plain, huffman] {
            let mut decoder = Decoder::default();
            let authority = (":authority", "www.example.com");
            let get = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
            let first = [&get[..], &[authority]].concat();
            let second = [&first[..], &[("cache-control", "no-cache")]].concat();
            let third = [
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/index.html"),
                authority,
                ("custom-key", "custom-value"),
            ];
            assert_eq!(decode(&mut decoder, blocks[0]), expected(&first));
            assert_eq!(decode(&mut decoder, blocks[1]), expected(&second));
            assert_eq!(decode(&mut decoder, blocks[2]), expected(&third));
        }
    }

    /// RFC 7541, appendix C.6: responses with a table of 256 bytes, so that entries are evicted.
    #[test]
    fn the_responses_of_the_rfc() {
        let mut decoder = Decoder::default();
        assert!(decoder.table.resize(256));
        let first = b"\x48\x82\x64\x02\x58\x85\xae\xc3\x77\x1a\x4b\x61\x96\xd0\x7a\xbe\x94\x10\x54\
            \xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff\x6e\x91\x9d\x29\xad\
            \x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3";
        let date = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
        let location = ("location", "https://www.example.com");
        let (private, status) = (("cache-control", "private"), (":status", "302"));
        let fields = [status, private, date, location];
        assert_eq!(decode(&mut decoder, first), expected(&fields));
        let second = b"\x48\x83\x64\x0e\xff\xc1\xc0\xbf";
        let fields = [(":status", "307"), private, date, location];
        assert_eq!(decode(&mut decoder, second), expected(&fields));
        let third = b"\x88\xc1\x61\x96\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\
            \x66\xe0\x84\xa6\x2d\x1b\xff\xc0\x5a\x83\x9b\xd9\xab\x77\xad\x94\xe7\x82\x1d\xd7\xf2\
            \xe6\xc7\xb3\x35\xdf\xdf\xcd\x5b\x39\x60\xd5\xaf\x27\x08\x7f\x36\x72\xc1\xab\x27\x0f\
            \xb5\x29\x1f\x95\x87\x31\x60\x65\xc0\x03\xed\x4e\xe5\xb1\x06\x3d\x50\x07";
        let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
        let fields = [
            (":status", "200"),
            private,
            ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
            location,
            ("content-encoding", "gzip"),
            ("set-cookie", cookie),
        ];
        assert_eq!(decode(&mut decoder, third), expected(&fields));
    }

    /// Mutations: `checked_sub` of `Table::get`, sizes anywhere, an integer of any length.
    #[test]
    fn what_cannot_be_decoded_is_refused() {
        for block in [
            &b"\x80"[..],
            b"\xbe",
            b"\x7e\x01y",
            b"\x00\x01x\x05y",
            b"\x00\x01x",
            b"\x40",
            b"\xff",
            b"\xff\x80\x80\x80\x80\x00",
            b"\x3f\xe2\x1f",
            b"\x82\x20",
            b"\x00\x01x\x81\x18",
        ] {
            let refused = decode(&mut Decoder::default(), block);
            assert_eq!(refused, Err(UNDECODABLE), "{block:x?}");
        }
        let zeros = b"\x00\x01x\x7f\x80\x00";
        let block = [&zeros[..], &[b'v'; 127]].concat();
        assert!(decode(&mut Decoder::default(), &block).is_ok());
    }

    /// Mutations: `close` without `truncate`; `close` without the excess; a list that is never too
    /// long.
    #[test]
    fn a_list_that_is_too_long_is_decoded_and_not_kept() {
        let mut decoder = Decoder::default();
        let value = "b".repeat(4_000);
        let entry = [&b"\x40\x01x\x7f\xa1\x1e"[..], value.as_bytes()].concat();
        assert_eq!(decode(&mut decoder, &entry), expected(&[("x", &value)]));
        let mut list = FieldList::default();
        let block = [&[0xbe][..].repeat(5), &b"\x40\x01y\x01z"[..]].concat();
        assert_eq!(decoder.decode(&block, &mut list), Ok(0));
        assert!(list.is_oversized());
        assert_eq!(list.len(), 4);
        assert!(list.text.len() <= limits::HEADER_LIST_BYTES_MAX as usize);
        // The field behind it is in the table all the same.
        assert_eq!(decode(&mut decoder, b"\xbe"), expected(&[("y", "z")]));
        let bomb = [&entry[..], &[0xbe].repeat(1_000)].concat();
        assert_eq!(decode(&mut decoder, &bomb), Err(Reason::ENHANCE_YOUR_CALM));
    }

    /// Mutations: `emptied` without its bound; buffers that are never kept.
    #[test]
    fn small_buffers_are_kept_for_the_next_list() {
        let mut list = FieldList::default();
        let field = [&b"\x00\x01x\x7f\x80\x1f"[..], &[b'v'; 0x7f + 0xf80]].concat();
        Decoder::default()
            .decode(&field.repeat(3), &mut list)
            .unwrap();
        assert_eq!(list.emptied().text.capacity(), 0);
        let mut list = FieldList::default();
        Decoder::default().decode(b"\x82", &mut list).unwrap();
        let list = list.emptied();
        assert!(list.is_empty() && list.text.capacity() > 0);
    }

    /// Mutations: no churn for sizes; every insertion is churn; none is.
    #[test]
    fn churn_is_more_than_a_request_has_use_for() {
        let churn = |block: &[u8]| Decoder::default().decode(block, &mut FieldList::default());
        assert_eq!(churn(b"\x20\x3f\xe1\x1f\x82"), Ok(2));
        let insertions = b"\x40\x01x\x01y".repeat(limits::FREE_INSERTIONS_MAX as usize);
        assert_eq!(churn(&insertions), Ok(0));
        assert_eq!(churn(&[&insertions[..], b"\x40\x01x\x01y"].concat()), Ok(1));
        assert_eq!(limits::HEADER_TABLE_BYTES, 4_096, "the size update above");
    }

    /// Returns fields whose names h2's table has, and others.
    fn field() -> impl Strategy<Value = (String, String)> {
        let name = prop_oneof![
            "x-[a-z]{0,8}",
            Just("accept".to_owned()),
            Just("user-agent".to_owned()),
            Just("cookie".to_owned()),
        ];
        (name, "[ -~]{0,40}")
    }

    proptest! {
        /// Two implementations that share nothing agree on a connection's requests.
        #[test]
        fn what_h2_encodes_is_decoded(
            requests in prop::collection::vec(prop::collection::vec(field(), 0..12), 1..6),
        ) {
            let (mut client, mut decoder) = (client::Client::new(), Decoder::default());
            for fields in requests {
                let block = client.block(&fields);
                let mut decoded = decode(&mut decoder, &block).unwrap();
                decoded.retain(|(name, _)| !name.starts_with(':'));
                // h2 groups fields of one name, and trims nothing.
                let mut sent: Pairs = fields
                    .into_iter()
                    .map(|(name, value)| (name, value.trim().to_owned()))
                    .collect();
                sent.sort();
                decoded.sort();
                prop_assert_eq!(decoded, sent);
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(
            blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..4),
        ) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let mut list = FieldList::default();
                // Nothing panics, and the table's own checks hold.
                if decoder.decode(&block, &mut list).is_ok() {
                    prop_assert_eq!(list.iter().count(), list.len());
                }
            }
        }
    }

    /// h2's client as a coder.
    mod client {
        use std::pin::Pin;
        use std::task::{Context, Poll, Waker};

        use bytes::Bytes;
        use h2::client::{Builder, Connection, SendRequest};

        use super::Pairs;
        use crate::http::http2::frame::{FrameReader, Kind};
        use crate::http::http2::testing::pipe::{Pipe, PipeEnd};

        pub struct Client {
            pipe: Pipe,
            requests: SendRequest<Bytes>,
            connection: Connection<PipeEnd, Bytes>,
            reader: FrameReader,
        }

        impl Client {
            pub fn new() -> Client {
                let (pipe, end) = Pipe::new();
                let mut handshake = std::pin::pin!(Builder::new().handshake(end));
                let mut context = Context::from_waker(Waker::noop());
                let Poll::Ready(Ok((requests, connection))) = handshake.as_mut().poll(&mut context)
                else {
                    panic!("the pipe has room for the preface");
                };
                Client {
                    pipe,
                    requests,
                    connection,
                    reader: FrameReader::default(),
                }
            }

            /// Returns the field block of a GET with these fields.
            pub fn block(&mut self, fields: &Pairs) -> Vec<u8> {
                let mut request = http::Request::get("http://h/");
                for (name, value) in fields {
                    request = request.header(name, value.trim());
                }
                let request = request.body(()).unwrap();
                let _response = self.requests.send_request(request, true).unwrap();
                let mut context = Context::from_waker(Waker::noop());
                assert!(
                    Pin::new(&mut self.connection)
                        .poll(&mut context)
                        .is_pending()
                );
                let bytes = self.pipe.take_output();
                let (mut rest, mut block) = (&bytes[..], Vec::new());
                while let (used, Some(frame)) = self.reader.next(rest).unwrap() {
                    if matches!(frame.kind, Kind::Headers | Kind::Continuation) {
                        block.extend_from_slice(frame.fragment().unwrap());
                    }
                    rest = &rest[used..];
                }
                block
            }
        }
    }
}
