//! The daemon with a real PostgreSQL server, which is killed, frozen and restarted under it.

mod common;

use common::postgres::{Postgres, Way};

/// The other tests rely on these properties of the harness.
///
/// Mutations that this test catches: a `kill` that spares the children (the new server refuses the
/// data), and a `freeze` that does (a connection that exists is served).
#[test]
fn a_server_is_killed_frozen_and_found_again_at_its_address() {
    let server = Postgres::start();
    let database = server.database();
    assert!(server.url(&database, Way::Tcp).starts_with("postgres://"));
    server.sql(&database, "CREATE TABLE kept AS SELECT 1 AS value");
    let address = server.address();

    server.freeze();
    // The kernel accepts the connection, and the server reads nothing from it.
    let mut stream = std::net::TcpStream::connect(address).expect("the kernel's backlog");
    // SSLRequest, to which a living server writes one byte.
    let request = [0, 0, 0, 8, 4, 210, 22, 47];
    std::io::Write::write_all(&mut stream, &request).expect("the kernel's buffer");
    stream.set_nonblocking(true).expect("a socket");
    let mut byte = [0];
    let read = std::io::Read::read(&mut stream, &mut byte);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    server.thaw();
    stream.set_nonblocking(false).expect("a socket");
    std::io::Read::read_exact(&mut stream, &mut byte).expect("the server continues");

    for restart in [Postgres::kill, Postgres::stop] {
        restart(&server);
        assert!(std::net::TcpStream::connect(address).is_err());
        server.restart();
        assert_eq!(server.sql(&database, "SELECT value FROM kept"), "1");
    }
}
