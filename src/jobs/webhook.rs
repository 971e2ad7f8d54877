//! Secrets and signatures of callbacks, in the form of the Standard Webhooks specification.
//!
//! A receiver that knows the secret learns from the signature that a callback is the daemon's, and
//! from its time that it is not an old one that was recorded. Signed are id, time and body, with a
//! point between them, by HMAC-SHA-256.
//!
//! Unlike an API key, of which a store keeps a hash, a secret is kept as it is: the daemon has to
//! sign with it.
//!
//! Mutations that the tests catch: a signature without the id or the time; a previous secret that
//! does not sign.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The start of every secret, by which secret scanners and people recognise one.
pub const SECRET_PREFIX: &str = "whsec_";

/// The random bytes of a new secret; the specification asks for 24 to 64.
pub const SECRET_BYTES: usize = 32;

/// A key's secret. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret {
    text: String,
    bytes: Vec<u8>,
}

impl WebhookSecret {
    /// The bytes must come from the kernel's generator.
    pub fn new(bytes: [u8; SECRET_BYTES]) -> WebhookSecret {
        WebhookSecret {
            text: format!("{SECRET_PREFIX}{}", STANDARD.encode(bytes)),
            bytes: bytes.to_vec(),
        }
    }

    /// Reads a stored secret. `None`: it is not one.
    pub fn parse(text: &str) -> Option<WebhookSecret> {
        let bytes = STANDARD.decode(text.strip_prefix(SECRET_PREFIX)?).ok()?;
        Some(WebhookSecret {
            text: text.to_owned(),
            bytes,
        })
    }

    pub fn reveal(&self) -> &str {
        &self.text
    }

    fn sign(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let mac = Hmac::<Sha256>::new_from_slice(&self.bytes);
        // HMAC takes keys of every length.
        let Ok(mut mac) = mac else {
            return String::new();
        };
        mac.update(format!("{id}.{seconds}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(hidden)")
    }
}

/// Returns the value of `webhook-signature`: one signature for each secret, so that a receiver that
/// knows either of two accepts it.
pub fn signatures(secrets: &[WebhookSecret], id: &str, seconds: u64, body: &[u8]) -> String {
    let signatures = secrets.iter().map(|secret| secret.sign(id, seconds, body));
    signatures.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";

    /// The vector of the specification's own libraries.
    #[test]
    fn a_signature_is_that_of_the_published_example() {
        let secret = WebhookSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let body = br#"{"test": 2432232314}"#;
        assert_eq!(
            signatures(&[secret], ID, 1_614_265_330, body),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn two_secrets_sign_in_their_order() {
        let [old, new] = [1, 2].map(|byte| WebhookSecret::new([byte; SECRET_BYTES]));
        let each = |secret: &WebhookSecret| signatures(std::slice::from_ref(secret), ID, 1, b"x");
        let both = signatures(&[new.clone(), old.clone()], ID, 1, b"x");
        assert_eq!(both, format!("{} {}", each(&new), each(&old)));
        assert_ne!(each(&new), each(&old));
    }

    #[test]
    fn a_secret_is_read_as_it_was_shown_and_hidden_in_messages() {
        let secret = WebhookSecret::new([7; SECRET_BYTES]);
        assert_eq!(WebhookSecret::parse(secret.reveal()), Some(secret.clone()));
        assert_eq!(secret.reveal().len(), SECRET_PREFIX.len() + 44);
        assert_eq!(format!("{secret:?}"), "WebhookSecret(hidden)");
        for wrong in ["", "whsec_%", "agk_AAAA"] {
            assert_eq!(WebhookSecret::parse(wrong), None, "{wrong}");
        }
    }
}
