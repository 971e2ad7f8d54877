//! Several real reactors that accept from one listener: a reactor that is held up holds up no new
//! connection.

#[allow(dead_code, reason = "the bench and the test use a part each")]
#[path = "common/reactors.rs"]
mod reactors;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::Socket;

use reactors::Reactors;

/// A client that hears nothing for this long fails its test.
const PATIENCE: Duration = Duration::from_secs(60);

const GET: &str = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn generate() -> String {
    let body = r#"{"prompt":"sort a list","language":"python"}"#;
    let length = body.len();
    format!(
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("the reactors listen");
    client.set_read_timeout(Some(PATIENCE)).expect("a socket");
    client
}

fn is_answered(client: &mut TcpStream) -> bool {
    let mut buffer = [0; 4_096];
    let count = client.read(&mut buffer).expect("a response in time");
    buffer[..count].starts_with(b"HTTP/1.1 200")
}

fn ask(client: &mut TcpStream) {
    client.write_all(GET.as_bytes()).expect("it is taken");
    assert!(is_answered(client));
}

/// Two reactors whose engine holds up the reactor that submits a job, until it is released.
struct Stage {
    reactors: Reactors,
    address: SocketAddr,
    /// Brings the index of each reactor that begins to stand still.
    held: Receiver<usize>,
    release: Sender<()>,
}

impl Stage {
    fn start() -> Stage {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let listener = Arc::new(Socket::from(listener));
        let (tell, held) = channel();
        let (release, released) = channel();
        let released = Mutex::new(released);
        let first = move |reactor| {
            let released = released.lock().expect("one reactor at a time");
            if tell.send(reactor).is_ok() {
                let _ = released.recv();
            }
        };
        let listeners = vec![vec![listener.clone()], vec![listener]];
        Stage {
            reactors: Reactors::start(listeners, true, first),
            address,
            held,
            release,
        }
    }
}

/// The bound of "soon" is that a new connection is served while the other reactor stands still
/// altogether, however long that lasts.
///
/// Mutations: only the first reactor registers the listener (`Spawner` and `Epoll::new`);
/// `less_loaded` without `is_held_up`, so that the reactor that stands still gets every second
/// connection.
#[test]
fn new_connections_are_served_while_a_reactor_stands_still() {
    let stage = Stage::start();
    // At least one connection in each reactor. On a busy machine a reactor may count as held up
    // when its turn comes, and get the next one.
    let mut clients = Vec::new();
    while stage.reactors.connections().contains(&0) {
        clients.push(connect(stage.address));
        clients.iter_mut().for_each(ask);
    }
    let (mut stood_still, mut kept) = (Vec::new(), Vec::new());
    for client in &mut clients {
        client
            .write_all(generate().as_bytes())
            .expect("it is taken");
        let held = stage.held.recv_timeout(PATIENCE);
        let held = held.expect("a reactor submits the job");
        // It counts as held up when its turn has lasted for a while.
        while !stage.reactors.held_up().contains(&held) {
            std::thread::yield_now();
        }
        stood_still.push(held);
        let before = stage.reactors.connections();
        for _ in 0..16 {
            let mut newcomer = connect(stage.address);
            ask(&mut newcomer);
            kept.push(newcomer);
        }
        let mut expected = before;
        expected[1 - held] += 16;
        assert_eq!(stage.reactors.connections(), expected, "all in the other");
        stage.release.send(()).expect("the reactor waits for it");
        assert!(is_answered(client));
    }
    assert!(stood_still.contains(&0) && stood_still.contains(&1));
}
