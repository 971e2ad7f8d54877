//! TLS without a socket: bytes in, bytes out.
//!
//! In reading order:
//!
//! * [`files`]: certificates and keys from PEM files, checked before they are used;
//! * [`acceptor`]: the state of all sessions: versions, protocols, tickets, trusted authorities;
//! * [`names`]: chooses the certificate for a server name;
//! * [`server_name`]: hides some server names from rustls;
//! * [`connector`]: the same for the daemon's own connections to servers;
//! * [`session`]: one connection's TLS; [`side`]: the server's and the client's.
//!
//! ```text
//!   config + files -- Acceptor::load --> Arc<Acceptor> --(one pointer a reactor)--> Session::new
//!                     (supervisor)                                                    |
//!        ciphertext in  --> handle_input --> plaintext, handshake done, or an alert <-+
//!        plaintext out  --> handle_output --> ciphertext queue --> write_to
//! ```
//!
//! rustls does the cryptography and the protocol; nothing here decides what is secure. Reading
//! files takes time, so only the supervisor does it. A reactor swaps a pointer, and a running
//! session keeps the acceptor that it began with.

pub mod acceptor;
pub mod connector;
pub mod files;
mod names;
mod server_name;
pub mod session;
mod side;
#[cfg(test)]
pub mod testing;

pub use acceptor::Acceptor;
pub use connector::Connector;
pub use files::Problem;
pub use session::{Failed, Handshake, Received, Session};
