//! Where a redirect leads, and whether it may be followed. Pure.
//!
//! A server's `Location` is untrusted text. Only `http` and `https` name a place for models, and an
//! encrypted connection must stay encrypted. Anything else, such as `file:` or `data:`, is refused
//! and not taken for a path.

use ureq::http::Uri;

/// The direction that a response gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// It is not a redirect.
    Arrived,
    To(String),
    Refused(&'static str),
}

/// Reads a response to a request for `url` (RFC 9110, section 15.4; RFC 3986, section 5).
pub(super) fn follow(url: &str, status: u16, location: Option<&str>) -> Hop {
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Hop::Arrived;
    }
    let Some(location) = location else {
        return Hop::Refused("a redirect has no Location");
    };
    let target = location.split('#').next().unwrap_or(location);
    let Some(next) = resolve(url, target) else {
        return Hop::Refused("a redirect's Location is not a URL");
    };
    match (scheme(url), scheme(&next)) {
        (_, Some("https")) | (Some("http"), Some("http")) => Hop::To(next),
        (_, Some("http")) => Hop::Refused("a redirect leads from https to http"),
        _ => Hop::Refused("a redirect leads to a scheme other than http and https"),
    }
}

/// Returns the absolute form of a reference.
fn resolve(base: &str, reference: &str) -> Option<String> {
    if has_scheme(reference) {
        // A scheme of ours without an authority names nothing.
        let is_web = matches!(scheme(reference), Some("http" | "https"));
        let is_whole = reference.parse::<Uri>().is_ok_and(|uri| {
            uri.scheme().is_some() && uri.host().is_some_and(|host| !host.is_empty())
        });
        return (!is_web || is_whole).then(|| reference.to_owned());
    }
    let uri: Uri = base.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let next = match reference {
        "" => base.to_owned(),
        _ if reference.starts_with("//") => format!("{scheme}:{reference}"),
        _ if reference.starts_with('/') => format!("{scheme}://{authority}{reference}"),
        _ if reference.starts_with('?') => {
            format!("{scheme}://{authority}{}{reference}", uri.path())
        }
        _ => {
            let folder = &uri.path()[..uri.path().rfind('/').map_or(0, |slash| slash + 1)];
            format!("{scheme}://{authority}{folder}{reference}")
        }
    };
    next.parse::<Uri>().ok()?;
    Some(next)
}

/// `scheme:` before anything else (RFC 3986, section 3.1).
fn has_scheme(reference: &str) -> bool {
    let Some((scheme, _)) = reference.split_once(':') else {
        return false;
    };
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Returns the scheme in lower case, if it is a known one.
fn scheme(url: &str) -> Option<&'static str> {
    let (scheme, _) = url.split_once(':')?;
    ["http", "https"]
        .into_iter()
        .find(|known| scheme.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations that this test catches: a scheme that is taken for a path (what `file:` did),
    /// `http` that may follow `https`, and a relative path that loses its folder.
    #[test]
    fn redirects_lead_to_web_servers_only() {
        let to = |text: &str| Hop::To(text.to_owned());
        let refused = |hop: Hop| matches!(hop, Hop::Refused(_));
        let from = |location| follow("https://h:1/a/b?q", 302, Some(location));
        assert_eq!(from("https://x/y"), to("https://x/y"));
        assert_eq!(from("HTTPS://x/y#z"), to("HTTPS://x/y"));
        assert_eq!(from("//x/y"), to("https://x/y"));
        assert_eq!(from("/c?d"), to("https://h:1/c?d"));
        assert_eq!(from("c"), to("https://h:1/a/c"));
        assert_eq!(from("?d"), to("https://h:1/a/b?d"));
        assert_eq!(
            from("c:d/e:f/../g"),
            Hop::Refused("a redirect leads to a scheme other than http and https")
        );
        for wrong in [
            "file:///etc/passwd",
            "file:/etc/passwd",
            "FILE:///etc/passwd",
            "data:application/octet-stream;base64,R0dVRg==",
            "ftp://x/y",
            "unix:/run/x.sock",
            "http://x/y",
            "https:",
            "https:///y",
            "a b",
        ] {
            assert!(refused(from(wrong)), "{wrong}: {:?}", from(wrong));
        }
        assert_eq!(follow("http://h/", 301, Some("http://x/")), to("http://x/"));
        assert_eq!(
            follow("http://h/", 308, Some("https://x/")),
            to("https://x/")
        );
        assert!(refused(follow("http://h/", 307, None)));
        assert_eq!(follow("http://h/", 200, Some("file:///x")), Hop::Arrived);
        assert_eq!(follow("http://h/", 304, None), Hop::Arrived);
    }
}
