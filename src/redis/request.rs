//! One command and its reply.

use std::fmt;

use ::redis::Value;

use crate::core::Moment;

/// One command.
pub struct Request {
    /// The key that decides which node of a cluster gets the command.
    pub key: Vec<u8>,
    /// The command in Redis's protocol.
    pub command: Vec<u8>,
    /// A request that has not been sent by then fails.
    pub deadline: Moment,
    /// Receives the reply, on the link's thread: it must be quick.
    pub reply: Box<dyn FnOnce(Reply) + Send>,
}

impl Request {
    /// Makes a request of a command's words.
    pub fn new(
        key: &str,
        words: &[&[u8]],
        deadline: Moment,
        reply: impl FnOnce(Reply) + Send + 'static,
    ) -> Request {
        let mut command = ::redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        Request {
            key: key.as_bytes().to_owned(),
            command: command.get_packed_command(),
            deadline,
            reply: Box::new(reply),
        }
    }

    pub fn finish(self, reply: Reply) {
        (self.reply)(reply);
    }

    /// Returns the bytes that the request takes in a queue.
    pub fn bytes(&self) -> usize {
        self.command.len()
    }
}

/// A server's reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, or there is nothing.
    Nothing,
    Number(i64),
    Bytes(Vec<u8>),
    /// It was not sent, its server was lost, or the server refused it.
    Failed,
}

impl Reply {
    /// Takes over the replies that our commands have.
    pub fn of(value: Value) -> Reply {
        match value {
            Value::Nil | Value::Okay | Value::SimpleString(_) => Reply::Nothing,
            Value::Int(number) => Reply::Number(number),
            Value::BulkString(bytes) => Reply::Bytes(bytes),
            _ => Reply::Failed,
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = String::from_utf8_lossy(&self.key);
        write!(f, "Request({key}, {} bytes)", self.command.len())
    }
}
