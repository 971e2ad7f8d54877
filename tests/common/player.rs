//! A server that the test plays: one response, every byte of which is the test's choice.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

/// Responds to one request, then waits until the client has left. Returns the request.
pub fn answer_once(mut stream: impl Read + Write, answer: &[u8]) -> String {
    let request = receive(&mut stream);
    stream.write_all(answer).unwrap();
    stream.flush().unwrap();
    // Closing while the client may still send would turn the response into a reset.
    let _ = io::copy(&mut stream, &mut io::sink());
    request
}

/// Returns a whole request: its head in lower case, then its body.
pub fn receive(stream: &mut impl Read) -> String {
    let mut reader = BufReader::with_capacity(1, stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(
            reader.read_line(&mut head).unwrap(),
            0,
            "half a request: {head}"
        );
    }
    let head = head.to_lowercase();
    let length = head
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    let mut body = vec![0; length.map_or(0, |digits| digits.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    head + str::from_utf8(&body).unwrap()
}

pub fn start_server(answer: impl Into<Vec<u8>>) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = answer.into();
    let server = thread::spawn(move || answer_once(listener.accept().unwrap().0, &answer));
    (url, server)
}

pub fn whole(status: &str, media_type: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Returns server-sent events, one per chunk.
pub fn events(events: &[(&str, &str)]) -> String {
    let mut text = String::from(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
         transfer-encoding: chunked\r\n\r\n7\r\n: ping\n\r\n1\r\n\n\r\n",
    );
    for (name, data) in events {
        let event = format!("event: {name}\ndata: {data}\n\n");
        text.push_str(&format!("{:x}\r\n{event}\r\n", event.len()));
    }
    text + "0\r\n\r\n"
}
