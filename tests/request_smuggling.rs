//! Request smuggling and framing attacks, as one table.
//!
//! A request can be smuggled if two readers cut the same bytes at different places. So each case
//! here has exactly one correct verdict: the requests that every strict reader sees, or one
//! refusal, after which nothing more is read on the connection. Each case is run whole, cut in two
//! at every place, and byte by byte.
//!
//! The names are those of the attacks in the literature: CL.TE, TE.CL and TE.TE from Watchfire
//! (2005) and PortSwigger's "HTTP Desync Attacks" (2019), TERM.EXT and EXT.TERM from "Funky chunks"
//! (2025), CVE numbers if a server was known for the mistake. The file is longer than others here
//! may be, because a table is read by its rows.

mod common;

use autoglmd::error::ErrorCode::{
    self, BodyTooLarge, ExpectationFailed, HeadersTooLarge, MalformedHttp, NotImplemented,
    UriTooLong,
};
use autoglmd::http::http1::{Accepted, Bounds, Malformed, Message, Progress, Reception, Storage};

use Verdict::{Requests, Waits};
use common::{Answer, Daemon, Options};

const BODY_LIMIT: usize = 1024;

/// The expected result of a case.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    /// Exactly these requests, `METHOD path body` each, and nothing left over.
    Requests(&'static [&'static str]),
    /// These requests, then a refusal with this code.
    Refused(&'static [&'static str], ErrorCode),
    /// No complete request and no refusal yet.
    Waits,
}

/// A refusal of the first request on the connection.
const fn refused(code: ErrorCode) -> Verdict {
    Verdict::Refused(&[], code)
}

/// 400: the usual verdict.
const BAD: Verdict = refused(MalformedHttp);

struct Case {
    name: &'static str,
    why: &'static str,
    wire: &'static [u8],
    verdict: Verdict,
}

/// A case: its name, the section or the attack behind it, its bytes, its verdict.
const fn case(
    name: &'static str,
    why: &'static str,
    wire: &'static [u8],
    verdict: Verdict,
) -> Case {
    Case {
        name,
        why,
        wire,
        verdict,
    }
}

/// Two framings in one message, and framings that one reader sees and another overlooks.
const FRAMING: &[Case] = &[
    case(
        "CL.TE",
        "RFC 9112 6.1, 11.2; PortSwigger CL.TE",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n\
          0\r\n\r\nG",
        BAD,
    ),
    case(
        "TE.CL",
        "RFC 9112 6.1, 11.2; PortSwigger TE.CL",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n\
          8\r\nSMUGGLED\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "CL.0: a body on GET is a body",
        "RFC 9110 9.3.1; PortSwigger CL.0",
        b"GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 31\r\n\r\n\
          GET /smuggled HTTP/1.1\r\nX: yy\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
        Requests(&["GET /a GET /smuggled HTTP/1.1\r\nX: yy\r\n", "GET /b "]),
    ),
    case(
        "0.CL: no length means no body",
        "RFC 9112 6.3 rule 7",
        b"POST /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
        Requests(&["POST /a ", "GET /b "]),
    ),
    case(
        "TE.TE: x prefix",
        "PortSwigger TE.TE `xchunked`",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: space before the colon",
        "RFC 9112 5.1; CVE-2019-16869 (Netty)",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: tab before the colon",
        "RFC 9112 5.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: two fields, the second unknown",
        "PortSwigger TE.TE `Transfer-Encoding: x`",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\
          Transfer-Encoding: x\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: the same field twice",
        "RFC 9112 7.1: chunked is applied once",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\
          transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: a list of chunked and chunked",
        "RFC 9112 7.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: chunked is not the last coding",
        "RFC 9112 6.3 rule 4",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: a coding before chunked",
        "RFC 9112 6.1; nothing here undoes gzip as a transfer coding",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: identity",
        "RFC 9112 7: removed from the protocol",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\nContent-Length: 1\r\n\r\nx",
        BAD,
    ),
    case(
        "TE.TE: empty",
        "RFC 9112 6.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: quoted",
        "PortSwigger TE.TE `\"chunked\"`",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: a parameter",
        "RFC 9112 7: chunked has none",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: vertical tab before the value",
        "PortSwigger TE.TE `\\x0bchunked`; CVE-2019-18277 (HAProxy)",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: form feed after the value",
        "RFC 9110 5.5",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\x0c\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: no-break space after the value",
        "RFC 9110 5.6.3: only SP and HTAB are white space",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\xa0\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: NUL inside the value",
        "RFC 9110 5.5",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunk\0ed\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: folded",
        "RFC 9112 5.2; PortSwigger TE.TE `\\r\\n chunked`",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: hidden behind a bare LF",
        "RFC 9112 2.2; PortSwigger TE.TE `X: X\\nTransfer-Encoding`",
        b"POST / HTTP/1.1\r\nHost: h\r\nX: X\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE.TE: hidden behind a bare CR",
        "RFC 9112 2.2",
        b"POST / HTTP/1.1\r\nHost: h\r\nX: X\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "an underscore makes another field, not a framing",
        "CGI reads `_` as `-`: `Transfer_Encoding` must not frame",
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n\
          0\r\n\r\n",
        Requests(&["POST /a 0\r\n\r\n"]),
    ),
    case(
        "TE on HTTP/1.0",
        "RFC 9112 6.1",
        b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TE in other letters and with white space around it is TE",
        "RFC 9110 5.1, 5.5; RFC 9112 7",
        b"POST /a HTTP/1.1\r\nHost: h\r\ntRANSFER-eNCODING: \t CHUNKED \t\r\n\r\n\
          1\r\nx\r\n0\r\n\r\n",
        Requests(&["POST /a x"]),
    ),
    case(
        "Connection cannot hide a length",
        "RFC 9110 7.6.1: some proxies drop every field that it names",
        b"POST /a HTTP/1.1\r\nHost: h\r\nConnection: Content-Length\r\nContent-Length: 3\r\n\r\n\
          abc",
        Requests(&["POST /a abc"]),
    ),
];

/// Numbers that parsers read differently.
const LENGTHS: &[Case] = &[
    case(
        "CL with a plus sign",
        "RFC 9110 8.6; CVE-2021-32715 (hyper)",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL negative",
        "RFC 9110 8.6",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        BAD,
    ),
    case(
        "CL as a list of equal values",
        "RFC 9112 6.3 rule 5: may be refused",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5,5\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL as a list of different values",
        "RFC 9112 6.3 rule 5",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 6\r\n\r\nhello!",
        BAD,
    ),
    case(
        "CL twice, equal",
        "RFC 9112 6.3 rule 5: may be refused",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL.CL: twice, different",
        "RFC 9112 6.3 rule 5; PortSwigger CL.CL",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\ncontent-length: 0\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL hexadecimal",
        "RFC 9110 8.6",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL with a space inside",
        "RFC 9110 8.6; CVE-2018-7159 (Node.js)",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1 0\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL beyond 64 bits",
        "RFC 9110 8.6: anticipate large numerals",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551621\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL at the end of 64 bits",
        "RFC 9110 8.6: no sum with it may wrap",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551615\r\n\r\nhello",
        refused(BodyTooLarge),
    ),
    case(
        "CL above the route's limit",
        "RFC 9110 15.5.14",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1025\r\n\r\n",
        refused(BodyTooLarge),
    ),
    case(
        "CL empty",
        "RFC 9110 8.6",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \r\n\r\n",
        BAD,
    ),
    case(
        "CL with a fraction",
        "RFC 9110 8.6",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5.0\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL with an exponent",
        "RFC 9110 8.6",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1e1\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL with an underscore between digits",
        "RFC 9110 8.6; Python's int() takes it",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1_0\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL in other digits",
        "RFC 9110 8.6; Unicode-aware parsers take them",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: \u{665}\r\n\r\nhello".as_bytes(),
        BAD,
    ),
    case(
        "CL with NUL behind it",
        "RFC 9110 5.5; C string functions stop there",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\x000\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL with a space before the colon",
        "RFC 9112 5.1; CVE-2019-16869 (Netty)",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 5\r\n\r\nhello",
        BAD,
    ),
    case(
        "CL with leading zeros is decimal, not octal",
        "RFC 9110 8.6: 1*DIGIT",
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 010\r\n\r\n0123456789",
        Requests(&["POST /a 0123456789"]),
    ),
    case(
        "CL with white space around it",
        "RFC 9110 5.5",
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: \t5 \t\r\n\r\nhello",
        Requests(&["POST /a hello"]),
    ),
    case(
        "CL counts bytes, and what follows is the next request",
        "RFC 9112 6.2, 9.3.2",
        "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n\u{e9}GET /b HTTP/1.1\r\n\
         Host: h\r\n\r\n"
            .as_bytes(),
        Requests(&["POST /a \u{e9}", "GET /b "]),
    ),
    case(
        "CL longer than the body waits",
        "RFC 9112 8",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\r\nhello",
        Waits,
    ),
];

/// The chunked coding.
const CHUNKS: &[Case] = &[
    case(
        "chunk size of more than 64 bits",
        "RFC 9112 7.1: no overflow; CVE-2015-3183 (Apache)",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
          10000000000000005\r\nhello\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "chunk size at the end of 64 bits",
        "RFC 9112 7.1; CVE-2013-2028 (nginx): it was read as negative",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        refused(BodyTooLarge),
    ),
    case(
        "chunk sizes whose sum wraps",
        "RFC 9112 7.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
          1\r\na\r\nffffffffffffffff\r\n",
        refused(BodyTooLarge),
    ),
    case(
        "chunk size with 0x",
        "RFC 9112 7.1: C's strtol takes it",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n\
          0\r\n\r\n",
        BAD,
    ),
    case(
        "chunk size with a sign",
        "RFC 9112 7.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "chunk size negative",
        "RFC 9112 7.1; CVE-2002-0392 (Apache)",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "chunk size with a space before it",
        "RFC 9112 7.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "chunk size with a space behind it",
        "RFC 9112 7.1: no white space before CRLF",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "chunk size with an underscore",
        "RFC 9112 7.1; Python's int() takes it",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0_5\r\nhello\r\n\
          0\r\n\r\n",
        BAD,
    ),
    case(
        "chunk size missing",
        "RFC 9112 7.1; read as zero by some",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello",
        BAD,
    ),
    case(
        "chunk size cut by a letter",
        "RFC 9112 7.1: `5g` is not 5",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5g\r\nhello\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "LF ends a size line",
        "RFC 9112 2.2, 7.1; CVE-2025-22871 (Go)",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "TERM.EXT, EXT.TERM: LF inside an extension",
        "RFC 9112 7.1.1; Funky chunks, CVE-2025-55315 (Kestrel)",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n4c\r\n\
          0\r\n\r\n",
        BAD,
    ),
    case(
        "CR inside an extension",
        "RFC 9112 2.2, 7.1.1; Funky chunks",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n\
          0\r\n\r\n",
        BAD,
    ),
    case(
        "NUL inside an extension",
        "RFC 9112 7.1.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;\0\r\nhello\r\n\
          0\r\n\r\n",
        BAD,
    ),
    case(
        "TERM.SPILL: other bytes instead of CRLF behind the data",
        "RFC 9112 7.1; Funky chunks",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX\
          0\r\n\r\n",
        BAD,
    ),
    case(
        "LF behind the data",
        "RFC 9112 2.2, 7.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
        BAD,
    ),
    case(
        "data longer than its size",
        "RFC 9112 7.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "data shorter than its size",
        "RFC 9112 7.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello\r\n0\r\n\r\n",
        BAD,
    ),
    case(
        "LF ends the last chunk",
        "RFC 9112 2.2, 7.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\n\n",
        BAD,
    ),
    case(
        "the body goes on without its last CRLF",
        "RFC 9112 7.1: what follows is a trailer, not a request",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\
          GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "trailer with a space before the colon",
        "RFC 9112 5.1, 7.1.2",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA : b\r\n\r\n",
        BAD,
    ),
    case(
        "trailer folded",
        "RFC 9112 5.2, 7.1.2",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n",
        BAD,
    ),
    case(
        "trailer ended by LF",
        "RFC 9112 2.2, 7.1.2",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\n\r\n",
        BAD,
    ),
    case(
        "framing in a trailer changes nothing",
        "RFC 9110 6.5.1",
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
          0\r\nContent-Length: 20\r\nTransfer-Encoding: x\r\n\r\n\
          GET /b HTTP/1.1\r\nHost: h\r\n\r\n",
        Requests(&["POST /a ", "GET /b "]),
    ),
    case(
        "extensions, many zeros and trailers of a valid body",
        "RFC 9112 7.1.1, 7.1.2",
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
          0005;a=\"b;c\"\r\nhello\r\n000\r\nX: y\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
        Requests(&["POST /a hello", "GET /b "]),
    ),
    case(
        "a chunk may hold what looks like the end",
        "RFC 9112 7.1",
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
          7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n",
        Requests(&["POST /a \r\n0\r\n\r\n"]),
    ),
    case(
        "chunks above the route's limit",
        "RFC 9110 15.5.14",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n401\r\n",
        refused(BodyTooLarge),
    ),
];

/// Lines, field names and values.
const HEADS: &[Case] = &[
    case(
        "LF ends the request line",
        "RFC 9112 2.2",
        b"GET / HTTP/1.1\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "LF ends a field",
        "RFC 9112 2.2",
        b"GET / HTTP/1.1\r\nHost: h\n\r\n",
        BAD,
    ),
    case(
        "LF ends the head",
        "RFC 9112 2.2",
        b"GET / HTTP/1.1\r\nHost: h\r\n\n",
        BAD,
    ),
    case(
        "two CR before LF",
        "RFC 9112 2.2",
        b"GET / HTTP/1.1\r\nHost: h\r\r\n\r\n",
        BAD,
    ),
    case(
        "CR inside a field",
        "RFC 9110 5.5",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
        BAD,
    ),
    case(
        "CR inside a field name",
        "RFC 9112 5.1; CVE-2023-30589 (Node.js): CR alone ended a line",
        b"GET / HTTP/1.1\r\nHost: h\r\n\rTransfer-Encoding: chunked\r\n\r\n",
        BAD,
    ),
    case(
        "folded field",
        "RFC 9112 5.2",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n",
        BAD,
    ),
    case(
        "folded first line",
        "RFC 9112 2.2: white space behind the request line",
        b"GET / HTTP/1.1\r\n Host: x\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "field folded with a tab",
        "RFC 9112 5.2",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n\tContent-Length: 5\r\n\r\nhello",
        BAD,
    ),
    case(
        "NUL in a value",
        "RFC 9110 5.5",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
        BAD,
    ),
    case(
        "NUL in a name",
        "RFC 9110 5.1",
        b"GET / HTTP/1.1\r\nHost: h\r\nX\0: a\r\n\r\n",
        BAD,
    ),
    case(
        "a control byte in a value",
        "RFC 9110 5.5",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x1bb\r\n\r\n",
        BAD,
    ),
    case(
        "DEL in a value",
        "RFC 9110 5.5",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x7f\r\n\r\n",
        BAD,
    ),
    case(
        "field without a colon",
        "RFC 9112 5",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length\r\n\r\n",
        BAD,
    ),
    case(
        "field without a name",
        "RFC 9112 5; CVE-2023-25725 (HAProxy)",
        b"GET / HTTP/1.1\r\nHost: h\r\n: x\r\nContent-Length: 5\r\n\r\nhello",
        BAD,
    ),
    case(
        "space inside a name",
        "RFC 9110 5.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent Length: 5\r\n\r\nhello",
        BAD,
    ),
    case(
        "a name beyond ASCII",
        "RFC 9110 5.1: the Kelvin sign lowers to `k`",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\u{212a}: chunked\r\n\r\n".as_bytes(),
        BAD,
    ),
    case(
        "text beyond ASCII in a value is only text",
        "RFC 9110 5.5: obs-text",
        b"GET /a HTTP/1.1\r\nHost: h\r\nX: \xc3\xa9\xff\r\n\r\n",
        Requests(&["GET /a "]),
    ),
    case(
        "Expect for something unknown",
        "RFC 9110 10.1.1",
        b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\nx",
        refused(ExpectationFailed),
    ),
    case(
        "Expect does not swallow the body",
        "RFC 9110 10.1.1; PortSwigger's Expect-based desync (2025)",
        b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n\
          helloGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
        Requests(&["POST /a hello", "GET /b "]),
    ),
];

/// Request lines and hosts.
const LINES: &[Case] = &[
    case(
        "no Host",
        "RFC 9112 3.2",
        b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
        BAD,
    ),
    case(
        "two Hosts",
        "RFC 9112 3.2",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        BAD,
    ),
    case(
        "two equal Hosts",
        "RFC 9112 3.2",
        b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
        BAD,
    ),
    case(
        "two Hosts on HTTP/1.0",
        "RFC 9112 3.2",
        b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
        BAD,
    ),
    case(
        "Host with a path",
        "RFC 9112 3.2; PortSwigger's host header attacks",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        BAD,
    ),
    case(
        "Host with a user",
        "RFC 9112 3.2",
        b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        BAD,
    ),
    case(
        "Host with a space",
        "RFC 9112 3.2",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        BAD,
    ),
    case(
        "Host with a port that is none",
        "RFC 9112 3.2",
        b"GET / HTTP/1.1\r\nHost: a:80evil\r\n\r\n",
        BAD,
    ),
    case(
        "Host empty",
        "RFC 9110 4.2.1: an http URI names a host",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        BAD,
    ),
    case(
        "absolute form: the target's host wins",
        "RFC 9112 3.2.2",
        b"GET http://a/x?y HTTP/1.1\r\nHost: b\r\n\r\n",
        Requests(&["GET /x "]),
    ),
    case(
        "absolute form without Host",
        "RFC 9112 3.2: a client must send it all the same",
        b"GET http://a/ HTTP/1.1\r\n\r\n",
        BAD,
    ),
    case(
        "absolute form with a user",
        "RFC 9110 4.2.4",
        b"GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n",
        BAD,
    ),
    case(
        "absolute form of another scheme",
        "RFC 9112 3.2.2",
        b"GET gopher://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        BAD,
    ),
    case(
        "a target that is no path",
        "RFC 9112 3.2; PortSwigger `GET @evil/`",
        b"GET @evil/ HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "a fragment in the target",
        "RFC 9112 3.2.1",
        b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "a raw byte beyond ASCII in the target",
        "RFC 9112 3.2",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "a control byte in the target",
        "RFC 9112 3.2",
        b"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "a space in the target",
        "RFC 9112 3.2: no autocorrection",
        b"GET /a HTTP/1.1 HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "two spaces in the request line",
        "RFC 9112 3",
        b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "a tab in the request line",
        "RFC 9112 3",
        b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "a space behind the version",
        "RFC 9112 3",
        b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "a space before the method",
        "RFC 9112 3",
        b" GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "a method that is no token",
        "RFC 9110 9.1",
        b"G(T / HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "HTTP/0.9",
        "RFC 9112 2.3: a request line has a version",
        b"GET /\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "a version of two digits",
        "RFC 9112 2.3",
        b"GET / HTTP/1.10\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "the preface of HTTP/2",
        "RFC 9113 3.4",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        refused(NotImplemented),
    ),
    case(
        "CONNECT",
        "RFC 9112 3.2.3",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        refused(NotImplemented),
    ),
    case(
        "a TLS handshake",
        "RFC 8446 5.1",
        b"\x16\x03\x01\x02\x00\x01\x00",
        BAD,
    ),
    case(
        "one empty line before a request",
        "RFC 9112 2.2",
        b"\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n",
        Requests(&["GET /a "]),
    ),
    case(
        "two empty lines before a request",
        "RFC 9112 2.2: at least one must be ignored; more is a flood",
        b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "HTTP/1.0 without Host",
        "RFC 9112 3.2",
        b"GET /a HTTP/1.0\r\n\r\n",
        Requests(&["GET /a "]),
    ),
    case(
        "OPTIONS for the server",
        "RFC 9112 3.2.4",
        b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        Requests(&["OPTIONS * "]),
    ),
    case(
        "the star with another method",
        "RFC 9112 3.2.4",
        b"GET * HTTP/1.1\r\nHost: h\r\n\r\n",
        BAD,
    ),
    case(
        "nothing behind a refusal is read",
        "RFC 9112 11.2: close",
        b"GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\n\r\n\
          GET /c HTTP/1.1\r\nHost: h\r\n\r\n",
        Verdict::Refused(&["GET /a "], MalformedHttp),
    ),
];

#[test]
fn every_case_has_one_verdict_however_it_is_cut() {
    let tables = [FRAMING, LENGTHS, CHUNKS, HEADS, LINES];
    let cases = || tables.iter().copied().flatten();
    let names: std::collections::HashSet<_> = cases().map(|case| case.name).collect();
    assert_eq!(names.len(), cases().count(), "a name stands twice");
    assert!(names.len() >= 60, "the table has shrunk to {}", names.len());
    for case in cases() {
        assert!(!case.why.is_empty(), "{} gives no reason", case.name);
        check(case);
    }
}

/// The same table against the real daemon. A refused request gets exactly one response, a 4xx (or
/// 501 for a feature that is not served at all), and the close: neither the rest of the bytes nor a
/// later request gets a response.
#[test]
fn the_daemon_refuses_ambiguous_requests_once_and_closes() {
    // The daemon serves these without asking the HTTP/1.1 codec.
    const OTHER_PROTOCOLS: [&str; 2] = ["the preface of HTTP/2", "a TLS handshake"];
    let daemon = Daemon::shared(Options::echo);
    let cases = [FRAMING, LENGTHS, CHUNKS, HEADS, LINES]
        .into_iter()
        .flatten();
    let mut refused = 0;
    for case in cases.filter(|case| !OTHER_PROTOCOLS.contains(&case.name)) {
        let Verdict::Refused(good, _) = case.verdict else {
            continue;
        };
        let answers = answers_until_closed(daemon, case.wire);
        let statuses: Vec<_> = answers.iter().map(Answer::status).collect();
        let label = format!("{} ({}): {statuses:?}", case.name, case.why);
        assert_eq!(statuses.len(), good.len() + 1, "{label}");
        let last = statuses[good.len()];
        assert!((400..500).contains(&last) || last == 501, "{label}");
        let connection = answers[good.len()].field("connection");
        assert_eq!(connection, Some("close"), "{label}");
        refused += 1;
    }
    assert!(refused >= 60, "only {refused} cases were refused");
}

/// Returns all responses of the daemon to these bytes and a good request after them, until it
/// closes.
fn answers_until_closed(daemon: &Daemon, wire: &[u8]) -> Vec<Answer> {
    let mut connection = daemon.connect();
    connection.send(&[wire, b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"].concat());
    let mut answers = Vec::new();
    loop {
        match connection.try_answer() {
            Ok(answer) => answers.push(answer),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return answers,
            Err(error) => panic!("after {answers:?}: {error}"),
        }
    }
}

/// Cases that are too long for a table.
#[test]
fn heads_beyond_their_bounds_are_refused_with_the_right_code() {
    let bounds = Bounds::default();
    let long = |bytes: usize| "x".repeat(bytes);
    let uri = format!(
        "GET /{} HTTP/1.1\r\nHost: h\r\n\r\n",
        long(bounds.uri_bytes_max)
    );
    let field = format!(
        "GET / HTTP/1.1\r\nHost: h\r\nX: {}",
        long(bounds.head_bytes_max)
    );
    let fields = format!(
        "GET / HTTP/1.1\r\nHost: h\r\n{}\r\n",
        "a: b\r\n".repeat(bounds.fields_max)
    );
    let method = format!("{} / HTTP/1.1\r\nHost: h\r\n\r\n", long(40));
    for (wire, code) in [
        (uri, UriTooLong),
        (field, HeadersTooLarge),
        (fields, HeadersTooLarge),
        (method, NotImplemented),
    ] {
        let (requests, refusal) = receive(&[wire.as_bytes()]);
        assert_eq!(requests, Vec::<Vec<u8>>::new());
        assert_eq!(refusal.map(|malformed| malformed.code), Some(code));
    }
}

fn check(case: &Case) {
    let wire = case.wire;
    let bytewise: Vec<&[u8]> = wire.chunks(1).collect();
    let halves = (0..=wire.len()).map(|cut| vec![&wire[..cut], &wire[cut..]]);
    for pieces in halves.chain([bytewise, vec![wire]]) {
        let (requests, refusal) = receive(&pieces);
        let (expected, code) = match case.verdict {
            Requests(expected) => (expected, None),
            Verdict::Refused(expected, code) => (expected, Some(code)),
            Waits => (&[][..], None),
        };
        let expected: Vec<&[u8]> = expected.iter().map(|request| request.as_bytes()).collect();
        let label = format!(
            "{} ({}), first piece {}",
            case.name,
            case.why,
            pieces[0].len()
        );
        assert_eq!(requests, expected, "{label}");
        assert_eq!(
            refusal.map(|malformed| malformed.code),
            code,
            "{label}: {refusal:?}"
        );
    }
}

/// Returns everything that one connection receives from these pieces: each request as `METHOD path
/// body`, and the refusal that ended it.
fn receive(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Option<Malformed>) {
    let mut reception = Reception::new();
    let mut input = Vec::new();
    let mut requests = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        // Each pass but the last gets past a head or a request, so there are at most two per byte.
        let passes_max = 2 * input.len() + 1;
        let mut passes = 0;
        loop {
            passes += 1;
            assert!(passes <= passes_max, "no progress in {input:?}");
            match advance(&mut reception, &mut input) {
                Ok(Step::Wait) => break,
                Ok(Step::HeadAccepted) => {}
                Ok(Step::Request(request)) => requests.push(request),
                Err(malformed) => return (requests, Some(malformed)),
            }
        }
    }
    (requests, None)
}

enum Step {
    Wait,
    HeadAccepted,
    Request(Vec<u8>),
}

/// Does one turn of the reactor's connection.
fn advance(reception: &mut Reception, input: &mut Vec<u8>) -> Result<Step, Malformed> {
    let bounds = Bounds::default();
    match reception.poll(input, &bounds)? {
        Progress::Partial { keep } => {
            input.truncate(keep);
            Ok(Step::Wait)
        }
        Progress::Head(span) => {
            let mut storage = Storage::new();
            let head = span.parse(input, &mut storage)?;
            match reception.accept(&head, BODY_LIMIT, input.len())? {
                Accepted::Complete(message) => take(reception, input, &message).map(Step::Request),
                Accepted::Waiting | Accepted::WaitingForContinue => Ok(Step::HeadAccepted),
            }
        }
        Progress::Complete(message) => take(reception, input, &message).map(Step::Request),
    }
}

fn take(
    reception: &mut Reception,
    input: &mut Vec<u8>,
    message: &Message,
) -> Result<Vec<u8>, Malformed> {
    let mut storage = Storage::new();
    let head = message.head.parse(input, &mut storage)?;
    let line = format!("{} {} ", head.request.method.as_str(), head.request.path);
    let request = [line.as_bytes(), &input[message.body.clone()]].concat();
    input.drain(..message.consumed);
    reception.restart();
    Ok(request)
}
