//! The collector that metrics are pushed to: where it is, and the fields of each request.
//!
//! Owns the checked settings. The files of secrets are read for each push, so that a new token
//! needs no restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{CredentialPath, HeaderValue, MetricsPush, PushHeader};
use crate::http::Fields;
use crate::http::origin::Origin;
use crate::limits::telemetry as limits;
use crate::os::file::read_up_to;

/// See the file's head.
pub struct Target {
    pub url: String,
    pub origin: Origin,
    pub path: String,
    token_file: Option<PathBuf>,
    headers: Vec<(&'static str, HeaderValue)>,
    pub timeout: Duration,
}

impl Target {
    pub fn of(settings: &MetricsPush, credentials: Option<&Path>) -> Result<Target, String> {
        let url = settings.url.clone();
        let parsed = Origin::parse(&url);
        let (origin, path) = parsed.map_err(|why| format!("metrics.push.url: {why}"))?;
        let token_file = match &settings.token_file {
            Some(path) => Some(CredentialPath(path).resolve(credentials)?),
            None => None,
        };
        let headers = PushHeader::parse_all(&settings.headers, token_file.is_some());
        let headers = headers.map_err(|(key, why)| format!("{key}: {why}"))?;
        let target = Target {
            url,
            origin,
            path,
            token_file,
            headers: named(headers, credentials)?,
            timeout: settings.timeout,
        };
        // A mistake shows at the start.
        target.fields()?;
        Ok(target)
    }

    pub fn fields(&self) -> Result<Fields, String> {
        let mut fields = Fields::new();
        fields.push("content-type", "application/x-protobuf");
        fields.push("content-encoding", "gzip");
        let agent = concat!("autoglmd/", env!("CARGO_PKG_VERSION"));
        fields.push("user-agent", agent);
        if let Some(path) = &self.token_file {
            let shown = path.display();
            let bytes = secret(path)?;
            let token = bytes.trim_ascii();
            if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
                return Err(format!("{shown}: expected one word of visible ASCII"));
            }
            let token = String::from_utf8_lossy(token);
            fields.push("authorization", &format!("Bearer {token}"));
        }
        for &(name, ref value) in &self.headers {
            match value {
                HeaderValue::Text(text) => fields.push(name, text),
                HeaderValue::File(path) => {
                    let value = PushHeader::value_of(&secret(path)?);
                    let value = value.map_err(|why| format!("{}: {why}", path.display()))?;
                    fields.push(name, &value);
                }
            }
        }
        Ok(fields)
    }
}

/// Finds the files of the values. Names live as long as the process: a collector is configured once
/// for it.
fn named(
    headers: Vec<PushHeader>,
    credentials: Option<&Path>,
) -> Result<Vec<(&'static str, HeaderValue)>, String> {
    let one = |header: PushHeader| {
        let value = match header.value {
            HeaderValue::File(path) => {
                HeaderValue::File(CredentialPath(&path).resolve(credentials)?)
            }
            text @ HeaderValue::Text(_) => text,
        };
        Ok::<_, String>((&*header.name.leak(), value))
    };
    headers.into_iter().map(one).collect()
}

fn secret(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = read_up_to(path, limits::PUSH_SECRET_BYTES_MAX);
    bytes.map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn target(adjust: impl FnOnce(&mut MetricsPush)) -> Result<Target, String> {
        let mut settings = Config::default().metrics_push;
        settings.url = "https://collector.test:4318/v1/metrics".to_owned();
        adjust(&mut settings);
        Target::of(&settings, None)
    }

    /// Mutations: a field that is not sent; a token that is not trimmed.
    #[test]
    fn each_request_has_the_fields_of_the_protocol_and_of_the_settings() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let token = file("token", " first\n");
        let key = file("key", "a secret\n");
        let target = target(|settings| {
            settings.token_file = Some(token.clone());
            let key = format!("x-key=file:{}", key.display());
            settings.headers = vec!["X-Scope-OrgID=team%20a".to_owned(), key];
        });
        let target = target.expect("good settings");
        let lines = |token| {
            format!(
                "content-type: application/x-protobuf\r\ncontent-encoding: gzip\r\n\
                 user-agent: autoglmd/{}\r\nauthorization: Bearer {token}\r\n\
                 x-scope-orgid: team a\r\nx-key: a secret\r\n",
                env!("CARGO_PKG_VERSION")
            )
        };
        let sent = |target: &Target| {
            let fields = target.fields().expect("good files");
            String::from_utf8_lossy(fields.lines()).into_owned()
        };
        assert_eq!(sent(&target), lines("first"));
        file("token", "second");
        assert_eq!(sent(&target), lines("second"), "without a restart");
    }

    /// Mutations: `of` that reads no file; a token that is not checked; `parse_all` that does not
    /// know of the token.
    #[test]
    fn a_mistake_shows_at_the_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let token = folder.path().join("token");
        let refusal = |adjust: fn(&mut MetricsPush)| {
            let target = target(|settings| {
                settings.token_file = Some(token.clone());
                adjust(settings);
            });
            target.err().expect("a refusal")
        };
        assert!(refusal(|_| {}).contains("token: "), "there is no file");
        for text in ["", " \n", "two words", "a\rb", "\u{e4}"] {
            std::fs::write(&token, text).expect("a file");
            let refusal = refusal(|_| {});
            assert!(refusal.contains("one word of visible ASCII"), "{refusal}");
        }
        std::fs::write(&token, "word").expect("a file");
        let refusal = refusal(|settings| settings.headers = vec!["authorization=x".to_owned()]);
        assert!(refusal.contains("metrics.push.token_file"), "{refusal}");
        assert!(target(|_| {}).is_ok());
    }
}
