//! Clients of HTTP/2: the client of the h2 crate over the simulated wire, polled by hand.
//!
//! An independent implementation reads what the daemon sends: a response in the wrong state, a
//! window that is overdrawn or a field block that cannot be decoded is an error here. The dice
//! decide who resets streams, who grants no window for a while, and how bytes are cut.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};

use super::Dice;
use super::client::{GENERATED, NOT_FOUND, OK, compressed, program_wanted};
use super::response::check_stream;
use super::system::Network;
use crate::http::http2::testing::pipe::{Pipe, PipeEnd};

/// Requests of one client at most: a few more than it has under way at once.
const REQUESTS_MOST: u64 = 12;

pub struct Http2Client {
    name: u64,
    wire: usize,
    pipe: Pipe,
    state: State,
    /// Requests that are still to be made.
    left: u64,
    asked: u64,
    under_way: Vec<Asked>,
    /// Bytes that h2 has written and the wire has not got.
    unsent: Vec<u8>,
    vanishes: bool,
    reads_one_in: u64,
    done: bool,
}

enum State {
    Open(SendRequest<Bytes>, Box<Connection<PipeEnd, Bytes>>),
    Over,
}

/// One request, and its response as far as it has come.
struct Asked {
    id: String,
    statuses: &'static [u16],
    /// The rest of its body is still to be sent.
    rest: Option<(SendStream<Bytes>, Bytes)>,
    answer: Answer,
}

enum Answer {
    Awaited(ResponseFuture),
    Body {
        stream: RecvStream,
        is_events: bool,
        body: Vec<u8>,
        /// Bytes that have come and for which no new window is granted yet.
        withheld: usize,
    },
}

impl Http2Client {
    pub fn new(name: u64, wire: usize, dice: &mut Dice) -> Http2Client {
        let (pipe, end) = Pipe::new();
        let mut builder = Builder::new();
        // From a window for one small response to one for all of them.
        builder
            .initial_window_size(1 << (8 + dice.below(12)))
            .initial_connection_window_size(1 << (16 + dice.below(6)));
        // It writes and does not wait for the peer, so one poll is enough.
        let handshake = pin!(builder.handshake(end));
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok((requests, connection))) = handshake.poll(&mut context) else {
            panic!("the pipe has room for the preface");
        };
        Http2Client {
            name,
            wire,
            pipe,
            state: State::Open(requests, Box::new(connection)),
            left: dice.below(REQUESTS_MOST),
            asked: 0,
            under_way: Vec::new(),
            unsent: Vec::new(),
            vanishes: dice.one_in(4),
            reads_one_in: 1 << dice.below(6),
            done: false,
        }
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Does a little of everything, as the dice decide.
    pub fn step(&mut self, network: &mut Network, must_be_served: bool) {
        if self.done || network.dice.one_in(3) {
            return;
        }
        if network.dice.one_in(self.reads_one_in) {
            let at_most = network.dice.below(4096 * self.reads_one_in) as usize;
            self.pipe
                .feed(&network.wires[self.wire].client_reads(at_most));
        }
        if self.vanishes && network.dice.one_in(60) {
            network.wires[self.wire].client_resets();
            self.done = true;
            return;
        }
        self.poll(&mut network.dice);
        self.send(network);
        let has_finished = self.left == 0 && self.under_way.is_empty();
        let wire = &mut network.wires[self.wire];
        if has_finished && self.unsent.is_empty() && !wire.client_fin {
            wire.client_half_closes();
        }
        if wire.is_over() {
            assert!(
                self.vanishes || has_finished || !must_be_served,
                "client {} was left with {} requests under way and {} to make",
                self.name,
                self.under_way.len(),
                self.left,
            );
            if !wire.client_fin {
                wire.client_half_closes();
            }
            self.done = true;
        }
    }

    /// Cuts the sent bytes anywhere.
    fn send(&mut self, network: &mut Network) {
        self.unsent.extend_from_slice(&self.pipe.take_output());
        let longest = 1 << network.dice.below(15);
        let count = (network.dice.below(longest) as usize + 1).min(self.unsent.len());
        if count > 0 && !network.wires[self.wire].client_fin {
            let piece: Vec<u8> = self.unsent.drain(..count).collect();
            network.wires[self.wire].client_sends(&piece);
        }
    }

    fn poll(&mut self, dice: &mut Dice) {
        let mut context = Context::from_waker(Waker::noop());
        // Twice: the second writes the commands that were given to the handles.
        for _ in 0..2 {
            let State::Open(_, connection) = &mut self.state else {
                return;
            };
            if let Poll::Ready(ended) = Pin::new(connection).poll(&mut context) {
                if let Err(error) = ended {
                    assert!(!error.is_library(), "the daemon broke a rule: {error}");
                }
                self.state = State::Over;
                return;
            }
            self.ask(dice, &mut context);
            self.under_way
                .retain_mut(|asked| !asked.advance(dice, &mut context));
        }
    }

    fn ask(&mut self, dice: &mut Dice, context: &mut Context<'_>) {
        let State::Open(requests, _) = &mut self.state else {
            return;
        };
        let is_ready = matches!(requests.poll_ready(context), Poll::Ready(Ok(())));
        if self.left == 0 || !is_ready || !dice.one_in(3) {
            return;
        }
        let id = format!("client-{}-{}", self.name, self.asked);
        let (method, path, body, statuses) = match dice.below(5) {
            0 => ("GET", "/livez", String::new(), OK),
            1 => ("GET", "/nowhere", String::new(), NOT_FOUND),
            _ => ("POST", "/api/v1/generate", program_wanted(dice), GENERATED),
        };
        let request = http::Request::builder()
            .method(method)
            .uri(format!("http://localhost{path}"))
            .header("x-request-id", &id);
        let (request, body) = match !body.is_empty() && dice.one_in(3) {
            true => (
                request.header("content-encoding", "gzip"),
                compressed(&body),
            ),
            false => (request, body.into_bytes()),
        };
        let request = request.body(()).expect("it is well formed");
        let Ok((response, stream)) = requests.send_request(request, body.is_empty()) else {
            return;
        };
        self.left -= 1;
        self.asked += 1;
        let rest = (!body.is_empty()).then(|| (stream, Bytes::from(body)));
        self.under_way.push(Asked {
            id,
            statuses,
            rest,
            answer: Answer::Awaited(response),
        });
    }
}

impl Asked {
    /// `true`: nothing more is expected of this request.
    fn advance(&mut self, dice: &mut Dice, context: &mut Context<'_>) -> bool {
        if dice.one_in(200) {
            // Dropping the handles resets the stream.
            if let Some((mut stream, _)) = self.rest.take() {
                stream.send_reset(Reason::CANCEL);
            }
            return true;
        }
        self.send_body(dice);
        match &mut self.answer {
            Answer::Awaited(response) => match Pin::new(response).poll(context) {
                Poll::Pending => false,
                // The connection has ended, or the stream was refused: a daemon that drains may
                // refuse it.
                Poll::Ready(Err(error)) => {
                    assert!(!error.is_library(), "the daemon broke a rule: {error}");
                    true
                }
                Poll::Ready(Ok(response)) => {
                    self.check_head(&response);
                    let media = response.headers().get("content-type");
                    let is_events = media.is_some_and(|it| it == "text/event-stream");
                    self.answer = Answer::Body {
                        stream: response.into_body(),
                        is_events,
                        body: Vec::new(),
                        withheld: 0,
                    };
                    false
                }
            },
            Answer::Body { .. } => self.read_body(dice, context),
        }
    }

    /// Sends the rest of the body in one frame or in two.
    fn send_body(&mut self, dice: &mut Dice) {
        let Some((stream, body)) = &mut self.rest else {
            return;
        };
        let count = match dice.one_in(2) {
            true => body.len(),
            false => dice.below(body.len() as u64) as usize,
        };
        let piece = body.split_to(count);
        let is_last = body.is_empty();
        // A response that came before the end of the body has ended the stream.
        let _ = stream.send_data(piece, is_last);
        if is_last {
            self.rest = None;
        }
    }

    fn check_head(&self, response: &http::Response<RecvStream>) {
        let code = response.status().as_u16();
        assert!(
            self.statuses.contains(&code) || code == 408,
            "{code} instead of {:?}",
            self.statuses
        );
        let id = response.headers().get("x-request-id");
        let id = id.map(|id| id.to_str().expect("ASCII"));
        assert_eq!(id, Some(self.id.as_str()));
        assert!(response.headers().contains_key("date"));
    }

    fn read_body(&mut self, dice: &mut Dice, context: &mut Context<'_>) -> bool {
        let Answer::Body {
            stream,
            is_events,
            body,
            withheld,
        } = &mut self.answer
        else {
            return false;
        };
        loop {
            match stream.poll_data(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(piece))) => {
                    *withheld += piece.len();
                    body.extend_from_slice(&piece);
                }
                Poll::Ready(Some(Err(error))) => {
                    assert!(!error.is_library(), "the daemon broke a rule: {error}");
                    return true;
                }
                Poll::Ready(None) => {
                    if *is_events {
                        check_stream(body);
                    }
                    return true;
                }
            }
        }
        if *withheld > 0 && dice.one_in(3) {
            let granted = stream.flow_control().release_capacity(*withheld);
            granted.expect("it is what has come");
            *withheld = 0;
        }
        false
    }
}
