//! Requests as bytes (RFC 9112, section 3), for the parts of this program that are clients.
//!
//! Owns the fields that the protocol itself makes: `Host`, `Content-Length`. The caller has checked
//! the target, and [`Fields`] keeps line ends out of every value, so nothing here can be split into
//! two requests.

use crate::http::{Fields, Method};

/// The head of a request to a server.
pub struct RequestHead<'a> {
    pub method: Method,
    /// The path, with the query: visible ASCII, as from [`crate::http::origin::Origin::parse`].
    pub target: &'a str,
    /// The value of `Host`.
    pub authority: &'a str,
    pub fields: &'a Fields,
    /// `None` for a method that has no body.
    pub content_length: Option<usize>,
}

/// Appends a request's head. The body follows it as it is.
pub fn request_head(out: &mut Vec<u8>, head: &RequestHead<'_>) {
    debug_assert!(head.target.bytes().all(|byte| byte.is_ascii_graphic()));
    debug_assert!(head.authority.bytes().all(|byte| byte.is_ascii_graphic()));
    for part in [
        head.method.as_str(),
        " ",
        head.target,
        " HTTP/1.1\r\nhost: ",
        head.authority,
    ] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    if let Some(length) = head.content_length {
        out.extend_from_slice(b"content-length: ");
        out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(head.fields.lines());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutation: `Fields::push` that copies its value unchanged.
    #[test]
    fn a_request_cannot_be_split_by_its_fields() {
        let mut fields = Fields::new();
        fields.push("content-type", "application/json");
        fields.push("webhook-id", "a\r\nx-injected: yes");
        let mut out = Vec::new();
        let head = RequestHead {
            method: Method::Post,
            target: "/hook?a=b",
            authority: "example.org:8080",
            fields: &fields,
            content_length: Some(2),
        };
        request_head(&mut out, &head);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "POST /hook?a=b HTTP/1.1\r\nhost: example.org:8080\r\ncontent-length: 2\r\n\
             content-type: application/json\r\nwebhook-id: a  x-injected: yes\r\n\r\n"
        );
    }
}
