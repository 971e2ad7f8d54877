//! Clients of many kinds: those that wait patiently, that half-close, that vanish, that send
//! nonsense, in clear text or over TLS.
//!
//! A client knows its requests and checks its responses: each whole, in order, once, and each
//! program as it was generated.

use std::collections::VecDeque;

use super::Dice;
use super::response::{self, Expected, Received};
use super::secure::Line;
use super::system::Network;
use crate::http::compress::Coding;
use crate::http::compress::encode::encode_whole;

/// The next action of a client.
enum Move {
    Send(Vec<u8>),
    /// Bytes that are not a TLS record, to a daemon that expects one.
    Nonsense,
    /// It holds its body back until it gets 100 Continue, or a response without it.
    AwaitContinue,
    HalfClose,
    Reset,
}

pub struct Client {
    name: u64,
    wire: usize,
    /// The TLS layer of clients that use it.
    line: Option<Line>,
    moves: VecDeque<Move>,
    expected: VecDeque<Expected>,
    received: Vec<u8>,
    /// The response before those that are due, for a failure's message.
    last: Vec<u8>,
    /// Interim responses that were not waited for yet.
    continues: u32,
    /// It leaves in the middle: its responses do not matter.
    vanishes: bool,
    has_said_goodbye: bool,
    /// It reads in one of this many steps.
    reads_one_in: u64,
    done: bool,
}

pub(super) const OK: &[u16] = &[200];
/// The dice let some jobs fail, a draining daemon accepts no new ones, and deadlines may pass.
pub(super) const GENERATED: &[u16] = &[200, 500, 503, 504];
pub(super) const NOT_FOUND: &[u16] = &[404];
const MALFORMED: &[u16] = &[400];

/// Requests that are sent without waiting for a response: more than a connection handles at a time.
const BURST_MOST: u64 = 80;

impl Client {
    pub fn new(name: u64, wire: usize, is_narrow: bool, dice: &mut Dice) -> Client {
        let mut client = Client {
            name,
            wire,
            // A handshake through a pipe of a few bytes would take all the turns there are.
            line: (!is_narrow && dice.one_in(3)).then(|| Line::random(dice)),
            moves: VecDeque::new(),
            expected: VecDeque::new(),
            received: Vec::new(),
            last: Vec::new(),
            continues: 0,
            vanishes: dice.one_in(4),
            has_said_goodbye: false,
            reads_one_in: if is_narrow { 1 } else { 1 << dice.below(6) },
            done: false,
        };
        let is_old = dice.one_in(6);
        let is_burst = !is_old && !is_narrow && dice.one_in(10);
        let requests = dice.below(if is_burst { BURST_MOST } else { 6 });
        let mut unsent = Vec::new();
        for number in 0..requests {
            match is_old {
                true => client.ask_as_in_1996(number, number + 1 == requests, dice, &mut unsent),
                // Responses that come at once, as those to a burst mostly do.
                false if is_burst && !dice.one_in(BURST_MOST / 4) => {
                    client.ask(number, 4 + dice.below(3), dice, &mut unsent);
                }
                false => client.ask(number, dice.below(7), dice, &mut unsent),
            }
        }
        if !is_old && dice.one_in(8) {
            unsent.extend_from_slice(b"GET /livez HTTP/1.1\r\nhost : x\r\n\r\n");
            client.expect(String::new(), MALFORMED, false);
        }
        client.send(&mut unsent, dice);
        client.choose_end(dice);
        client
    }

    fn choose_end(&mut self, dice: &mut Dice) {
        if self.vanishes {
            let moment = dice.below(self.moves.len() as u64 + 1) as usize;
            self.moves.truncate(moment);
            self.moves.push_back(match dice.below(4) {
                0 | 1 => Move::Reset,
                2 if self.line.is_some() => Move::Nonsense,
                _ => Move::HalfClose,
            });
        } else if dice.one_in(3) {
            self.moves.push_back(Move::HalfClose);
        }
    }

    fn expect(&mut self, request_id: String, statuses: &'static [u16], head_only: bool) {
        self.expected.push_back(Expected {
            request_id,
            statuses,
            head_only,
        });
    }

    fn ask(&mut self, number: u64, kind: u64, dice: &mut Dice, unsent: &mut Vec<u8>) {
        let id = format!("client-{}-{number}", self.name);
        let fields = format!("host: localhost\r\nx-request-id: {id}\r\n");
        let body = program_wanted(dice);
        let length = body.len();
        let post =
            format!("POST /api/v1/generate HTTP/1.1\r\n{fields}content-type: application/json\r\n");
        let text = match kind {
            0 => {
                self.expect(id, GENERATED, false);
                format!("{post}content-length: {length}\r\n\r\n{body}")
            }
            1 => {
                self.expect(id, GENERATED, false);
                let body = compressed(&body);
                let length = body.len();
                let head =
                    format!("{post}content-encoding: gzip\r\ncontent-length: {length}\r\n\r\n");
                unsent.extend_from_slice(head.as_bytes());
                return unsent.extend_from_slice(&body);
            }
            2 => {
                self.expect(id, GENERATED, false);
                let (front, back) = body.split_at(dice.below(length as u64 - 1) as usize + 1);
                let (first, second) = (front.len(), back.len());
                format!(
                    "{post}transfer-encoding: chunked\r\n\r\n\
                     {first:x}\r\n{front}\r\n{second:x};x=y\r\n{back}\r\n0\r\nt: r\r\n\r\n"
                )
            }
            3 => {
                self.expect(id, GENERATED, false);
                let head = format!("{post}content-length: {length}\r\nexpect: 100-continue\r\n");
                unsent.extend_from_slice(head.as_bytes());
                unsent.extend_from_slice(b"\r\n");
                self.send(unsent, dice);
                self.moves.push_back(Move::AwaitContinue);
                body
            }
            4 => {
                self.expect(id, OK, true);
                format!("HEAD /livez HTTP/1.1\r\n{fields}\r\n")
            }
            5 => {
                self.expect(id, NOT_FOUND, false);
                format!("GET /nowhere HTTP/1.1\r\n{fields}\r\n")
            }
            _ => {
                self.expect(id, OK, false);
                format!("GET /livez HTTP/1.1\r\n{fields}\r\n")
            }
        };
        unsent.extend_from_slice(text.as_bytes());
    }

    /// Sends HTTP/1.0: a connection that goes on only by agreement, and streams that end with it.
    fn ask_as_in_1996(
        &mut self,
        number: u64,
        is_last: bool,
        dice: &mut Dice,
        unsent: &mut Vec<u8>,
    ) {
        let id = format!("client-{}-{number}", self.name);
        let agreement = match is_last {
            true => "",
            false => "connection: keep-alive\r\n",
        };
        let fields = format!("x-request-id: {id}\r\n{agreement}");
        let text = if is_last && dice.one_in(2) {
            self.expect(id, GENERATED, false);
            let body = program_wanted(dice);
            let length = body.len();
            format!(
                "POST /api/v1/generate HTTP/1.0\r\n{fields}content-length: {length}\r\n\r\n{body}"
            )
        } else {
            self.expect(id, OK, false);
            format!("GET /livez HTTP/1.0\r\n{fields}\r\n")
        };
        unsent.extend_from_slice(text.as_bytes());
    }

    /// Cuts the sent bytes anywhere: the network knows no requests.
    fn send(&mut self, unsent: &mut Vec<u8>, dice: &mut Dice) {
        let longest = 1 << dice.below(15);
        let mut bytes = unsent.as_slice();
        while !bytes.is_empty() {
            let length = (dice.below(longest) as usize + 1).min(bytes.len());
            let (piece, rest) = bytes.split_at(length);
            self.moves.push_back(Move::Send(piece.to_vec()));
            bytes = rest;
        }
        unsent.clear();
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Does one thing, or nothing, as the dice decide.
    pub fn step(&mut self, network: &mut Network, must_be_served: bool) {
        if self.done || network.dice.one_in(3) {
            return;
        }
        self.read(network);
        let wire = &mut network.wires[self.wire];
        match self.moves.pop_front() {
            Some(Move::Send(bytes)) => match &mut self.line {
                None => wire.client_sends(&bytes),
                Some(line) => line.say(&bytes),
            },
            Some(Move::Nonsense) => {
                let line = self
                    .line
                    .as_mut()
                    .expect("only who speaks TLS talks such nonsense");
                line.say_nonsense(&[23, 3, 3, 0, 20, 1, 2, 3]);
                self.moves.push_back(Move::HalfClose);
            }
            Some(Move::HalfClose) if !self.may_half_close() => {
                self.moves.push_front(Move::HalfClose);
            }
            Some(Move::AwaitContinue) if self.continues == 0 && !wire.is_over() => {
                self.moves.push_front(Move::AwaitContinue);
            }
            Some(Move::AwaitContinue) => self.continues = 0,
            Some(Move::HalfClose) => wire.client_half_closes(),
            Some(Move::Reset) => {
                wire.client_resets();
                self.done = true;
            }
            // The half-closed client may be gone entirely: its kernel rejects later bytes with a
            // reset.
            None if self.vanishes && !wire.closed && !wire.to_client.is_empty() => {
                wire.client_resets();
                self.done = true;
            }
            None if self.expected.is_empty() && !wire.client_fin && self.may_half_close() => {
                let wire = &mut network.wires[self.wire];
                wire.client_half_closes();
            }
            None => {}
        }
        self.send_ciphertext(network);
        let wire = &mut network.wires[self.wire];
        if wire.is_over() {
            assert!(
                self.vanishes || self.expected.is_empty() || !must_be_served,
                "client {} was left with {:?} unanswered after {}",
                self.name,
                self.expected,
                String::from_utf8_lossy(&self.last),
            );
            if !wire.client_fin {
                wire.client_half_closes();
            }
            self.done = true;
        }
    }

    /// Returns whether the client may half-close. With TLS it mostly sends close_notify first, and
    /// waits until it is sent. A client that vanishes does not wait.
    fn may_half_close(&mut self) -> bool {
        let Some(line) = &mut self.line else {
            return true;
        };
        if self.vanishes || self.has_said_goodbye {
            return self.vanishes || line.is_flushed();
        }
        if line.is_flushed() {
            self.has_said_goodbye = true;
            line.say_goodbye();
        }
        false
    }

    fn send_ciphertext(&mut self, network: &mut Network) {
        if let Some(line) = &mut self.line {
            let at_most = 1 << network.dice.below(14);
            let wire = &mut network.wires[self.wire];
            if !wire.client_fin {
                line.send(wire, at_most);
            }
        }
    }

    fn read(&mut self, network: &mut Network) {
        if !network.dice.one_in(self.reads_one_in) {
            return;
        }
        let at_most = network.dice.below(4096 * self.reads_one_in) as usize;
        let wire = &mut network.wires[self.wire];
        let bytes = wire.client_reads(at_most);
        match &mut self.line {
            None => self.received.extend(bytes),
            Some(line) => {
                self.received.extend(line.hear(&bytes));
                let refused = line.refused.as_ref().filter(|_| !self.vanishes);
                assert_eq!(refused, None, "TLS of client {}", self.name);
            }
        }
        let has_ended = wire.daemon_fin && wire.to_client.is_empty() && !wire.reset;
        loop {
            let expected = self.expected.front();
            match response::read(&self.received, expected, has_ended) {
                Received::Incomplete => return,
                Received::Continue { bytes } => {
                    self.continues += 1;
                    self.received.drain(..bytes);
                }
                Received::Final { bytes } => {
                    self.continues = 0;
                    self.expected.pop_front();
                    self.last = self.received.drain(..bytes).collect();
                }
            }
        }
    }
}

/// A body that workers read.
pub(super) fn compressed(body: &str) -> Vec<u8> {
    let mut out = Vec::new();
    encode_whole(Coding::Gzip, body.as_bytes(), &mut out).expect("memory suffices");
    out
}

pub(super) fn program_wanted(dice: &mut Dice) -> String {
    let stream = dice.one_in(2);
    format!(r#"{{"prompt":"sort","language":"python","stream":{stream}}}"#)
}
