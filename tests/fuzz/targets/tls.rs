//! TLS's byte path: a session gets bytes that no client would send, before its handshake, in the
//! middle of it, and after it.
//!
//! Nothing may panic; plaintext must come out as it went in; both queues must stay within their
//! bounds; every buffer that was taken from the pool must be returned.

#![no_main]

use std::io::{IoSlice, Read, Write};
use std::sync::{Arc, OnceLock};

use autoglmd::config::Config;
use autoglmd::core::pool::BufferPool;
use autoglmd::limits;
use autoglmd::tls::{Acceptor, Session};
use libfuzzer_sys::fuzz_target;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// Within a second of 2001, when every certificate of rcgen is valid.
const NOW: i64 = 1_000_000_000;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

fuzz_target!(|input: &[u8]| {
    let [mode, cut, rest @ ..] = input else {
        return;
    };
    let mut house = House::new(mode & 1 == 0);
    match mode >> 1 & 3 {
        // The input comes first.
        0 => house.hear(rest),
        // A good hello, then the input.
        1 => {
            house.step(usize::from(*cut));
            house.hear(rest);
        }
        // A good handshake and a request, then the input.
        2 => {
            house.shake_hands(usize::from(*cut));
            house.hear(rest);
        }
        // Good records, some bytes of which are changed on the way.
        _ => {
            house.shake_hands(usize::from(*cut));
            let _ = house.client.writer().write_all(REQUEST);
            let mut sent = house.sent();
            for change in rest.chunks_exact(3) {
                let place = usize::from(u16::from_be_bytes([change[0], change[1]]));
                let place = place % sent.len();
                sent[place] ^= change[2];
            }
            house.hear(&sent);
        }
    }
    house.end();
});

/// A session, and a client that it trusts.
struct House {
    client: ClientConnection,
    session: Box<Session>,
    pool: BufferPool,
    scratch: Vec<u8>,
    failed: bool,
}

impl House {
    fn new(old: bool) -> House {
        let (acceptor, clients) = made();
        let name = "localhost".try_into().expect("a name");
        let client = ClientConnection::new(clients[usize::from(old)].clone(), name);
        House {
            client: client.expect("a configuration"),
            session: Session::new(acceptor).expect("a configuration"),
            pool: BufferPool::default(),
            scratch: vec![0; limits::reactor::SCRATCH_BYTES],
            failed: false,
        }
    }

    fn sent(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client
                .write_tls(&mut bytes)
                .expect("a vector takes all");
        }
        bytes
    }

    /// As the reactor does it: handles a piece and its result, until the session has failed.
    fn hear(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(limits::tls::READ_BYTES_MAX) {
            if self.failed || self.session.input_is_over() {
                return;
            }
            let (ciphertext, plaintext) = self.scratch.split_at_mut(limits::tls::READ_BYTES_MAX);
            ciphertext[..piece.len()].copy_from_slice(piece);
            let ciphertext = &mut ciphertext[..piece.len()];
            match self
                .session
                .handle_input(ciphertext, plaintext, &mut self.pool)
            {
                Ok(received) => {
                    let heard = &plaintext[..received.plaintext];
                    assert!(REQUEST.starts_with(heard), "plaintext that was not sent: {heard:?}");
                }
                Err(_) => self.failed = true,
            }
        }
    }

    /// Sends the client's bytes in pieces of `cut` bytes, and the server's back to it.
    fn step(&mut self, cut: usize) {
        let sent = self.sent();
        sent.chunks(cut.max(1)).for_each(|piece| self.hear(piece));
        assert!(!self.failed, "a good client was refused");
        let said = self.said();
        let mut rest = said.as_slice();
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).expect("there is room");
            self.client.process_new_packets().expect("good records");
        }
    }

    fn shake_hands(&mut self, cut: usize) {
        while self.client.wants_write() || self.client.is_handshaking() {
            self.step(cut);
        }
        assert!(self.session.is_open());
        let answer = [IoSlice::new(b"hello, "), IoSlice::new(b"client")];
        assert_eq!(self.session.handle_output(&answer, &mut self.pool), 13);
        self.step(cut);
        let mut heard = Vec::new();
        let _ = self.client.reader().read_to_end(&mut heard);
        assert_eq!(heard, b"hello, client");
    }

    /// Writes all pending bytes.
    fn said(&mut self) -> Vec<u8> {
        let queue = self.session.queue_mut();
        assert!(
            queue.len() <= 2 * limits::tls::CIPHERTEXT_BYTES_MAX,
            "{}",
            queue.len()
        );
        let mut said = Vec::new();
        while !queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); limits::core::OUTPUT_SLICES_MAX];
            let count = queue.io_slices(&mut slices);
            let start = said.len();
            slices[..count]
                .iter()
                .for_each(|slice| said.extend_from_slice(slice));
            queue.advance(said.len() - start, &mut self.pool);
        }
        said
    }

    /// Whatever its state, the session can be asked for more, closed, and dropped.
    fn end(mut self) {
        let much = vec![b'x'; 3 * limits::tls::CIPHERTEXT_BYTES_MAX];
        let taken = self
            .session
            .handle_output(&[IoSlice::new(&much)], &mut self.pool);
        assert!(
            taken <= limits::tls::CIPHERTEXT_BYTES_MAX + limits::tls::RECORD_PLAINTEXT_BYTES_MAX
        );
        self.session.close(&mut self.pool);
        self.said();
        self.session.release(&mut self.pool);
        assert_eq!(self.pool.outstanding(), 0);
    }
}

/// Returns the certificate, and clients of TLS 1.3 and of 1.2 that trust it.
fn made() -> &'static (Arc<Acceptor>, [Arc<ClientConfig>; 2]) {
    static MADE: OnceLock<(Arc<Acceptor>, [Arc<ClientConfig>; 2])> = OnceLock::new();
    MADE.get_or_init(|| {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]);
        let certificate = params.expect("a good name").self_signed(&key);
        let certificate = certificate.expect("a certificate");
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("site.pem");
        let text = format!("{}{}", certificate.pem(), key.serialize_pem());
        std::fs::write(&file, text).expect("a file");
        let mut config = Config::default();
        config.tls.certificates = vec![file];
        let acceptor = Acceptor::load(&config, None, None, NOW);
        let acceptor = acceptor.expect("good files").expect("a certificate");
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        (
            acceptor,
            versions.map(|version| client(version, certificate.der())),
        )
    })
}

fn client(
    version: &'static rustls::SupportedProtocolVersion,
    certificate: &CertificateDer<'static>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a known version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}
