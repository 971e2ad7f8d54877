//! One command and its reply.

use std::fmt;

use ::redis::Value;

use crate::core::Moment;

/// One command.
pub struct Request {
    /// The key that decides which node of a cluster gets the command.
    pub key: Vec<u8>,
    /// The number of the server that gets the command instead. One that has no server is done, with
    /// nothing.
    pub node: Option<usize>,
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
            node: None,
            command: command.get_packed_command(),
            deadline,
            reply: Box::new(reply),
        }
    }

    /// Makes a request to the server with this number, for commands about all of its keys.
    pub fn to_node(
        node: usize,
        words: &[&[u8]],
        reply: impl FnOnce(Reply) + Send + 'static,
    ) -> Request {
        Request {
            node: Some(node),
            ..Request::new("", words, Moment::NEVER, reply)
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
    /// A step through the keys, and the cursor of the next one.
    Page {
        cursor: Vec<u8>,
        keys: Vec<Vec<u8>>,
    },
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
            Value::Array(parts) => Reply::of_page(parts),
            _ => Reply::Failed,
        }
    }

    /// Takes over the reply of SCAN.
    fn of_page(parts: Vec<Value>) -> Reply {
        let Ok([Value::BulkString(cursor), Value::Array(keys)]) = <[Value; 2]>::try_from(parts)
        else {
            return Reply::Failed;
        };
        let keys = keys.into_iter().filter_map(|key| match key {
            Value::BulkString(key) => Some(key),
            _ => None,
        });
        Reply::Page {
            cursor,
            keys: keys.collect(),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = String::from_utf8_lossy(&self.key);
        write!(f, "Request({key}, {} bytes)", self.command.len())
    }
}
