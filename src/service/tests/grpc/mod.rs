//! gRPC over the service: requests as an HTTP/2 connection would pass them on.

mod generation;
mod health;
mod reflection;

use super::*;
use crate::grpc::frame::{self, Bounds, Decoder, Encoding};
use crate::grpc::messages::Message;
use crate::grpc::messages::rpc::{ErrorInfo, Status};

/// A call of a method with the full key.
#[derive(Clone)]
pub struct Rpc<'a> {
    path: &'a str,
    version: Version,
    headers: Vec<(&'a str, String)>,
    body: Vec<u8>,
}

impl<'a> Rpc<'a> {
    pub fn new(path: &'a str, message: &impl Message) -> Rpc<'a> {
        Rpc::of_bytes(path, framed(message, Encoding::Identity))
    }

    pub fn of_bytes(path: &'a str, body: Vec<u8>) -> Rpc<'a> {
        let authorization = format!("Bearer {}", key(FULL));
        Rpc {
            path,
            version: Version::Http2,
            headers: vec![
                ("content-type", "application/grpc".into()),
                ("authorization", authorization),
            ],
            body,
        }
    }

    pub fn header(mut self, name: &'a str, value: &str) -> Rpc<'a> {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn without_key(mut self) -> Rpc<'a> {
        self.headers.retain(|(name, _)| *name != "authorization");
        self
    }

    /// Admits or refuses it.
    fn admit<T>(
        &self,
        bench: &mut Bench,
        reply: &mut Recording,
        then: impl FnOnce(&mut Bench, Admitted, &Request<'_>, &mut Recording) -> Option<T>,
    ) -> Option<T> {
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| httparse::Header {
                name,
                value: value.as_bytes(),
            })
            .collect();
        let request = Request {
            method: Method::Post,
            authority: None,
            path: self.path,
            query: None,
            version: self.version,
            headers: &headers,
        };
        match bench.service.admit(&request, &bench.peer, bench.now) {
            Ok(admitted) => then(bench, admitted, &request, reply),
            Err(refusal) => {
                bench.service.refuse(refusal, bench.now, reply);
                None
            }
        }
    }

    pub fn send(&self, bench: &mut Bench) -> (Recording, Option<Box<Exchange>>) {
        let mut reply = Recording::new();
        let exchange = self.admit(bench, &mut reply, |bench, admitted, request, reply| {
            let now = bench.now;
            if self.body.len() > admitted.body_limit {
                let error = ApiError::new(ErrorCode::BodyTooLarge, "the body is too large");
                bench.service.refuse(admitted.refuse(error), now, reply);
                return None;
            }
            let job_key = JobKey {
                reactor: 0,
                connection: Key::new(0, 0),
                request: bench.requests.fetch_add(1, Ordering::Relaxed),
            };
            let service = &mut bench.service;
            let body = self.body.as_slice().into();
            let exchange = service.handle(admitted, request, body, job_key, now, reply);
            bench.run_workers(exchange, reply)
        });
        assert_eq!(reply.is_finished, exchange.is_none());
        (reply, exchange)
    }

    fn ask(&self, bench: &mut Bench) -> Recording {
        let (reply, exchange) = self.send(bench);
        assert!(exchange.is_none());
        reply
    }

    /// Opens a stream of pieces.
    fn open(&self, bench: &mut Bench) -> (Recording, Box<Exchange>) {
        let mut reply = Recording::new();
        let exchange = self.admit(bench, &mut reply, |bench, admitted, _, _| {
            assert_eq!(admitted.intake, Intake::Pieces);
            Some(bench.service.open(admitted, bench.now))
        });
        (reply, exchange.expect("it is admitted"))
    }
}

const BOUNDS: Bounds = Bounds {
    bytes: 1 << 20,
    inflate_ratio: Some(1_000),
};

fn framed(message: &impl Message, encoding: Encoding) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, message, encoding);
    bytes
}

impl Recording {
    pub fn messages<M: Message + Default>(&self) -> Vec<M> {
        assert_eq!(self.status, 200);
        assert_eq!(self.content_type, Some("application/grpc"));
        let encoding = match self.field("grpc-encoding") {
            Some("gzip") => Encoding::Gzip,
            _ => Encoding::Identity,
        };
        let mut decoder = Decoder::new(encoding, BOUNDS);
        decoder.handle_data(&self.body);
        let mut messages = Vec::new();
        while let Some(message) = decoder.poll_message().unwrap() {
            messages.push(M::decode(&*message).unwrap());
        }
        decoder.finish().unwrap();
        messages
    }

    fn message<M: Message + Default>(&self) -> M {
        let mut messages = self.messages();
        assert_eq!(messages.len(), 1);
        messages.remove(0)
    }

    /// Returns `grpc-status`, which comes after the messages or, without any, in the head.
    #[track_caller]
    pub fn grpc_status(&self) -> u8 {
        assert!(self.is_finished);
        assert_eq!(self.status, 200);
        assert_eq!(self.content_type, Some("application/grpc"));
        self.ending("grpc-status").unwrap().parse().unwrap()
    }

    fn ending(&self, name: &str) -> Option<&str> {
        if self.body.is_empty() {
            assert!(self.trailers.is_empty());
            return self.field(name);
        }
        assert!(self.field(name).is_none());
        let found = self.trailers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the error's reason, after checking that all its parts agree.
    #[track_caller]
    pub fn reason(&self) -> String {
        let status = self.details();
        assert_eq!(status.code, i32::from(self.grpc_status()));
        assert!(!self.ending("grpc-message").unwrap().is_empty());
        let info = ErrorInfo::decode(&*status.details[0].value).unwrap();
        assert_eq!(info.domain, "autoglmd");
        assert_eq!(
            Some(info.metadata["request_id"].as_str()),
            self.field("x-request-id")
        );
        let known = ErrorCode::ALL
            .iter()
            .find(|code| code.as_str() == info.reason);
        assert_eq!(known.unwrap().grpc_status(), self.grpc_status());
        info.reason
    }

    fn details(&self) -> Status {
        let text = self.ending("grpc-status-details-bin").unwrap();
        Status::decode(&*from_base64(text)).unwrap()
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = 0u32;
    let mut count = 0;
    let mut bytes = Vec::new();
    for digit in text.chars() {
        bits = bits << 6 | DIGITS.find(digit).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}
