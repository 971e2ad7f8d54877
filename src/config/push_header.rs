//! Fields that an operator adds to the requests for a collector of metrics.
//!
//! Owns their form, which is that of `OTEL_EXPORTER_OTLP_HEADERS`: `NAME=VALUE`, and a value is
//! percent-encoded. A value may be in a file instead, because it is often a secret.
//!
//! Invariant: no message shows a value, nor text that could be one. What stands in front of the
//! first `=` is shown only if it is a name: in `Authorization: Basic dTpw=` it is a secret.
//!
//! Mutations that the tests below catch: a name that the client sets itself, a value with a line
//! feed, a message with the name before it was checked.

use std::path::PathBuf;

use crate::limits::config as limits;

/// A name in lower case and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushHeader {
    pub name: String,
    pub value: HeaderValue,
}

#[derive(Clone, PartialEq, Eq)]
pub enum HeaderValue {
    Text(String),
    /// A path, or `credential:NAME`. See [`super::CredentialPath`].
    File(PathBuf),
}

/// Without the text, which may be a secret all the same.
impl std::fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HeaderValue::Text(_) => f.write_str("Text(..)"),
            HeaderValue::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Names that the client or the protocol of the metrics sets.
const OWN: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

impl PushHeader {
    /// Reads all of `texts`. `has_token`: `authorization` is set from a file of its own. An error
    /// names the wrong element's key.
    pub fn parse_all(
        texts: &[String],
        has_token: bool,
    ) -> Result<Vec<PushHeader>, (String, String)> {
        let mut headers: Vec<PushHeader> = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let wrong = |why| (format!("metrics.push.headers[{at}]"), why);
            let header = PushHeader::parse(text).map_err(wrong)?;
            let name = &header.name;
            if has_token && name == "authorization" {
                let why = format!("{name} is set by metrics.push.token_file");
                return Err(wrong(why));
            }
            if headers.iter().any(|other| other.name == *name) {
                return Err(wrong(format!("{name} is set twice")));
            }
            headers.push(header);
        }
        Ok(headers)
    }

    fn parse(text: &str) -> Result<PushHeader, String> {
        const EXPECTED: &str = "expected NAME=VALUE, with a name of letters, digits and \"-\"";
        let (name, value) = text.split_once('=').ok_or(EXPECTED)?;
        let name = name.trim().to_ascii_lowercase();
        // A token of HTTP may have more; those that collectors ask for do not.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let is_short = name.len() <= limits::PUSH_HEADER_BYTES_MAX;
        if name.is_empty() || !is_short || !name.bytes().all(is_plain) {
            return Err(EXPECTED.to_owned());
        }
        if OWN.contains(&name.as_str()) {
            return Err(format!("{name} is set by the daemon itself"));
        }
        let value = value.trim();
        let file = value.strip_prefix("file:").or_else(|| {
            let is_credential = value.starts_with("credential:");
            is_credential.then_some(value)
        });
        let value = match file {
            Some("") => return Err(format!("{name}: expected a path behind \"file:\"")),
            Some(path) => HeaderValue::File(path.into()),
            None => {
                let text = decoded(value)
                    .ok_or_else(|| format!("{name}: a \"%\" in the value is written as \"%25\""))?;
                check(&text).map_err(|why| format!("{name}: {why}"))?;
                HeaderValue::Text(text)
            }
        };
        Ok(PushHeader { name, value })
    }

    /// Returns the value that the content of a file stands for.
    pub fn value_of(content: &[u8]) -> Result<String, String> {
        let text = String::from_utf8_lossy(content.trim_ascii());
        check(&text)?;
        Ok(text.into_owned())
    }
}

/// Checks that a value may stand in a field as it is.
fn check(value: &str) -> Result<(), String> {
    let is_visible = |byte: u8| matches!(byte, b' '..=b'~');
    if value.is_empty() || value != value.trim() || !value.bytes().all(is_visible) {
        return Err("expected a value of visible ASCII, on one line".to_owned());
    }
    match value.len() <= limits::PUSH_HEADER_BYTES_MAX {
        true => Ok(()),
        false => Err(format!(
            "expected at most {} bytes",
            limits::PUSH_HEADER_BYTES_MAX
        )),
    }
}

/// Returns `text` with each `%XX` as the byte that it stands for. `None`: another `%`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Vec<PushHeader>, (String, String)> {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        PushHeader::parse_all(&texts, false)
    }

    #[test]
    fn the_form_is_that_of_other_exporters() {
        let headers = parse(&[
            "X-Scope-OrgID=team%20a=b%25",
            "authorization = Basic%20dTpw",
            "x-key=credential:collector-key",
            "x-other=file:/run/key",
        ])
        .unwrap();
        let found: Vec<(&str, HeaderValue)> = headers
            .iter()
            .map(|header| (header.name.as_str(), header.value.clone()))
            .collect();
        let text = |text: &str| HeaderValue::Text(text.to_owned());
        let expected = [
            ("x-scope-orgid", text("team a=b%")),
            ("authorization", text("Basic dTpw")),
            (
                "x-key",
                HeaderValue::File("credential:collector-key".into()),
            ),
            ("x-other", HeaderValue::File("/run/key".into())),
        ];
        assert_eq!(found, expected);
        assert_eq!(parse(&[]), Ok(Vec::new()));
    }

    #[test]
    fn a_wrong_field_is_refused_and_no_message_shows_a_value() {
        for (wrong, expected) in [
            ("hunter2", "expected NAME=VALUE"),
            ("=hunter2", "expected NAME=VALUE"),
            ("Authorization: Basic hunter2=", "expected NAME=VALUE"),
            ("x y=hunter2", "expected NAME=VALUE"),
            ("Host=hunter2", "host is set by the daemon itself"),
            (
                "content-length=hunter2",
                "content-length is set by the daemon",
            ),
            ("transfer-encoding=hunter2", "is set by the daemon itself"),
            ("user-agent=hunter2", "is set by the daemon itself"),
            ("x-key=hunter2%", "x-key: a \"%\" in the value"),
            ("x-key=hunter2%zz", "x-key: a \"%\" in the value"),
            ("x-key=hunter2%ff", "x-key: a \"%\" in the value"),
            (
                "x-key=hunter2%0d%0ax: y",
                "x-key: expected a value of visible",
            ),
            ("x-key=hunter2\u{e4}", "x-key: expected a value of visible"),
            ("x-key=%20hunter2", "x-key: expected a value of visible"),
            ("x-key=", "x-key: expected a value of visible"),
            ("x-key=file:", "x-key: expected a path"),
        ] {
            let (key, message) = parse(&["a=b", wrong]).unwrap_err();
            assert_eq!(key, "metrics.push.headers[1]");
            assert!(message.contains(expected), "{wrong}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        let (_, twice) = parse(&["x-key=hunter2", "X-Key=hunter2"]).unwrap_err();
        assert_eq!(twice, "x-key is set twice");
        let token = ["authorization=hunter2".to_owned()];
        let (_, message) = PushHeader::parse_all(&token, true).unwrap_err();
        assert_eq!(message, "authorization is set by metrics.push.token_file");
        let shown = format!("{:?}", parse(&["x-key=hunter2"]));
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn a_file_has_one_line() {
        assert_eq!(PushHeader::value_of(b"a b\n"), Ok("a b".to_owned()));
        for wrong in [&b""[..], b" \n", b"a\nb", b"a\xff", b"a\0b"] {
            assert!(PushHeader::value_of(wrong).is_err(), "{wrong:?}");
        }
    }
}
