//! Server names that are not host names: ignored, as RFC 6066 allows, where rustls would end the
//! handshake.
//!
//! Some clients send `[localhost]`, `localhost:443` or `*.example` as the server name. RFC 6066,
//! section 3, lets a server "ignore unrecognized names", and nginx, HAProxy and OpenSSL do. rustls
//! 0.23 sends a fatal `illegal_parameter` before it calls any code of ours.
//!
//! So the extension is hidden before rustls sees the hello: its type is overwritten with one that
//! is unknown to rustls ([`hide`]). But both sides hash the hello as it was sent, so the other half
//! is a hash function ([`cipher_suites`]) that restores the type before it hashes. Nothing else of
//! the cryptography is touched, and a hello with a proper name passes unchanged.
//!
//! ```text
//!   ClientHello  -- hide --> type 0xff5e --> rustls: no server name, the first certificate
//!                                              |
//!                                              +--> transcript --> restored --> type 0, hashed
//! ```
//!
//! Limits: a hello that is cut into several records is left as it is, and so is one that already
//! has the private type. In TLS 1.2 a client's certificate signs the messages themselves and not
//! their hash, so such a client still needs a proper name.
//!
//! rustls' next version has `ServerConfig::invalid_sni_policy`; this file goes when we use it.

use std::sync::LazyLock;

use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{DnsName, IpAddr};
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite};

/// `server_name` (RFC 6066, section 3).
const SERVER_NAME: [u8; 2] = [0, 0];

/// One of the types for private use (RFC 8446, section 11).
const HIDDEN: [u8; 2] = [0xff, 0x5e];

/// Handshake messages (RFC 8446, section 4): a hello, and the message that replaces the first hello
/// after a HelloRetryRequest.
const CLIENT_HELLO: u8 = 1;
const MESSAGE_HASH: u8 = 254;

/// The content type of a record with plaintext messages of a handshake.
const HANDSHAKE_RECORD: u8 = 22;

const RECORD_HEADER_BYTES: usize = 5;
const MESSAGE_HEADER_BYTES: usize = 4;

/// Hides server names that rustls would refuse from the whole records at the beginning of `input`.
pub fn hide(input: &mut [u8]) {
    let mut start = 0;
    while let Some(&[content, _, _, high, low]) = input.get(start..start + RECORD_HEADER_BYTES) {
        let body = start + RECORD_HEADER_BYTES;
        let end = body + usize::from(u16::from_be_bytes([high, low]));
        let Some(message) = input.get_mut(body..end) else {
            return;
        };
        if content == HANDSHAKE_RECORD && message.first() == Some(&CLIENT_HELLO) {
            rename(message, SERVER_NAME, HIDDEN);
        }
        start = end;
    }
}

/// Changes the type of an extension of this hello, if it holds a name that is not a host name.
/// Returns the position of the type.
fn rename(hello: &mut [u8], from: [u8; 2], to: [u8; 2]) -> Option<usize> {
    let at = find_odd_name(hello, from, to)?;
    hello[at..at + 2].copy_from_slice(&to);
    Some(at)
}

/// Finds the extension of type `sought` that holds a name that is not a host name, and returns the
/// position of its type. `None` also if an extension has the type `taken`. The hello may be cut off
/// at its end, as rustls cuts it to check a ticket's binder.
fn find_odd_name(hello: &[u8], sought: [u8; 2], taken: [u8; 2]) -> Option<usize> {
    let mut reader = Reader {
        bytes: hello,
        at: MESSAGE_HEADER_BYTES,
    };
    // Version and random, session, cipher suites, compression methods.
    reader.skip(2 + 32)?;
    reader.skip_vector(1)?;
    reader.skip_vector(2)?;
    reader.skip_vector(1)?;
    reader.skip(2)?;
    let mut found = None;
    while let Some(at) = reader.peek(2) {
        let kind = &hello[at..at + 2];
        reader.skip(2)?;
        if kind == taken {
            return None;
        }
        if kind == sought {
            let (start, end) = reader.vector(2)?;
            found = is_odd(&hello[start..end]).then_some(at);
        } else if reader.skip_vector(2).is_none() {
            break;
        }
    }
    found
}

/// Returns whether this list of names is well formed, but rustls would refuse it. Malformed lists
/// are left for rustls to refuse.
fn is_odd(list: &[u8]) -> bool {
    let Some((&[high, low], names)) = list.split_first_chunk::<2>() else {
        return false;
    };
    if usize::from(u16::from_be_bytes([high, low])) != names.len() {
        return false;
    }
    let Some((&[kind, high, low], name)) = names.split_first_chunk::<3>() else {
        return false;
    };
    if kind != 0 {
        return true;
    }
    // More than one name of a kind is forbidden, not unrecognized.
    if name.is_empty() || usize::from(u16::from_be_bytes([high, low])) != name.len() {
        return false;
    }
    let is_address = || std::str::from_utf8(name).is_ok_and(|name| IpAddr::try_from(name).is_ok());
    DnsName::try_from(name).is_err() && !is_address()
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// Returns where the next `count` bytes begin, if there are as many.
    fn peek(&self, count: usize) -> Option<usize> {
        (self.bytes.len().checked_sub(self.at)? >= count).then_some(self.at)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at = self.peek(count)? + count;
        Some(())
    }

    /// Skips a vector whose length has `width` bytes; returns its bounds.
    fn vector(&mut self, width: usize) -> Option<(usize, usize)> {
        let at = self.peek(width)?;
        let length = self.bytes[at..at + width].iter();
        let length = length.fold(0, |length, byte| length << 8 | usize::from(*byte));
        self.at = at + width;
        let start = self.peek(length)?;
        self.at = start + length;
        Some((start, self.at))
    }

    fn skip_vector(&mut self, width: usize) -> Option<()> {
        self.vector(width).map(|_| ())
    }
}

// ---- the transcript --------------------------------------------------------------------------

/// Returns aws-lc's provider, with suites that hash hellos as they were sent.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: cipher_suites(),
        ..aws_lc_rs::default_provider()
    }
}

fn cipher_suites() -> Vec<SupportedCipherSuite> {
    // rustls needs them for ever; they are created once.
    static SUITES: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
        let suites = aws_lc_rs::default_provider().cipher_suites;
        suites.into_iter().map(restoring).collect()
    });
    SUITES.clone()
}

fn restoring(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    match suite {
        SupportedCipherSuite::Tls13(suite) => {
            SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                common: common(&suite.common),
                hkdf_provider: suite.hkdf_provider,
                aead_alg: suite.aead_alg,
                quic: suite.quic,
            })))
        }
        SupportedCipherSuite::Tls12(suite) => {
            SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                common: common(&suite.common),
                prf_provider: suite.prf_provider,
                kx: suite.kx,
                sign: suite.sign,
                aead_alg: suite.aead_alg,
            })))
        }
    }
}

fn common(suite: &CipherSuiteCommon) -> CipherSuiteCommon {
    CipherSuiteCommon {
        suite: suite.suite,
        hash_provider: Box::leak(Box::new(Restoring(suite.hash_provider))),
        confidentiality_limit: suite.confidentiality_limit,
    }
}

/// A hash function that reverses what [`hide`] has done.
struct Restoring(&'static dyn Hash);

struct RestoringContext(Box<dyn Context>);

impl Hash for Restoring {
    fn start(&self) -> Box<dyn Context> {
        Box::new(RestoringContext(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        let mut context = self.start();
        context.update(data);
        context.finish()
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0.algorithm()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

impl Context for RestoringContext {
    fn fork_finish(&self) -> Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(RestoringContext(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> Output {
        self.0.finish()
    }

    fn update(&mut self, data: &[u8]) {
        let Some(at) = find_hidden(data) else {
            return self.0.update(data);
        };
        self.0.update(&data[..at]);
        self.0.update(&SERVER_NAME);
        self.0.update(&data[at + HIDDEN.len()..]);
    }
}

/// Returns the position of a hidden type in these handshake messages.
fn find_hidden(messages: &[u8]) -> Option<usize> {
    if !matches!(messages.first(), Some(&(CLIENT_HELLO | MESSAGE_HASH))) {
        return None;
    }
    let mut start = 0;
    while let Some(&[kind, high, middle, low]) = messages.get(start..start + MESSAGE_HEADER_BYTES) {
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let end = messages.len().min(start + MESSAGE_HEADER_BYTES + length);
        if kind == CLIENT_HELLO {
            let hello = &messages[start..end];
            return find_odd_name(hello, HIDDEN, SERVER_NAME).map(|at| start + at);
        }
        start = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Builds a hello in a record, with this list of names and an extension on each side of it.
    fn hello(names: &[u8]) -> Vec<u8> {
        let vector = |width: usize, bytes: &[u8]| {
            let length = (bytes.len() as u32).to_be_bytes();
            [&length[4 - width..], bytes].concat()
        };
        let extension = |kind: [u8; 2], bytes: &[u8]| [&kind[..], &vector(2, bytes)].concat();
        let extensions = [
            extension([0, 23], b""),
            extension(SERVER_NAME, names),
            extension([0, 43], &[2, 3, 4]),
        ]
        .concat();
        let body = [
            &[3, 3][..],
            &[7; 32],
            &vector(1, &[9; 32]),
            &vector(2, &[0x13, 1]),
            &vector(1, &[0]),
            &vector(2, &extensions),
        ]
        .concat();
        let message = [&[CLIENT_HELLO][..], &vector(3, &body)].concat();
        [&[HANDSHAKE_RECORD, 3, 1][..], &vector(2, &message)].concat()
    }

    fn names(name: &[u8]) -> Vec<u8> {
        let length = name.len() as u16;
        let entry = [&[0][..], &length.to_be_bytes(), name].concat();
        [&(entry.len() as u16).to_be_bytes()[..], &entry].concat()
    }

    fn hash(bytes: &[u8]) -> Vec<u8> {
        let SupportedCipherSuite::Tls13(suite) = cipher_suites()[0] else {
            panic!("TLS 1.3 comes first");
        };
        suite.common.hash_provider.hash(bytes).as_ref().to_vec()
    }

    /// Mutations that this test catches: the type restored at `at + 1`; `MESSAGE_HASH` left out.
    #[test]
    fn odd_names_are_hidden_and_hashed_as_they_were_sent() {
        for name in [
            "[localhost]",
            "localhost:443",
            "*.example",
            "a b",
            "exämple",
            "-a",
        ] {
            let sent = hello(&names(name.as_bytes()));
            let mut seen = sent.clone();
            hide(&mut seen);
            assert_ne!(seen, sent, "{name}");
            let once = seen.clone();
            hide(&mut seen);
            assert_eq!(seen, once, "a record is looked at whenever more has come");
            let plain = |bytes: &[u8]| {
                let SupportedCipherSuite::Tls13(suite) =
                    aws_lc_rs::default_provider().cipher_suites[0]
                else {
                    panic!("TLS 1.3 comes first");
                };
                suite.common.hash_provider.hash(bytes).as_ref().to_vec()
            };
            let (sent, seen) = (&sent[RECORD_HEADER_BYTES..], &seen[RECORD_HEADER_BYTES..]);
            assert_eq!(hash(seen), plain(sent), "{name}");
            // Cut off before a binder, and after a HelloRetryRequest.
            let cut = sent.len() - 3;
            assert_eq!(hash(&seen[..cut]), plain(&sent[..cut]));
            let first = [&[MESSAGE_HASH, 0, 0, 32][..], &[5; 32], &[2, 0, 0, 1, 8]].concat();
            let (seen, sent) = ([&first, seen].concat(), [&first, sent].concat());
            assert_eq!(hash(&seen), plain(&sent));
        }
    }

    #[test]
    fn proper_names_and_malformed_lists_pass_unchanged() {
        for list in [
            names(b"localhost"),
            names(b"a_b.example."),
            names(b"127.0.0.1"),
            names(b"::1"),
            names(b""),
            b"".to_vec(),
            b"\0\0".to_vec(),
            b"\0\xff\0\0\x01*".to_vec(),
            [names(b"*.a"), names(b"*.a")].concat(),
        ] {
            let sent = hello(&list);
            let mut seen = sent.clone();
            hide(&mut seen);
            assert_eq!(seen, sent, "{list:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_through(mut bytes: Vec<u8>, cut: u16, at: u16, value: u8) {
            hide(&mut bytes);
            find_hidden(&bytes);
            let mut hello = hello(&names(b"*.example"));
            let place = usize::from(at) % hello.len();
            hello[place] = value;
            let cut = usize::from(cut) % hello.len();
            hide(&mut hello[..cut]);
            hide(&mut hello);
            find_hidden(&hello[RECORD_HEADER_BYTES..]);
        }
    }
}
