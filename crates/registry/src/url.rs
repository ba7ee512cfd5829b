//! URLs that are safe to print.
//!
//! Registries redirect to signed addresses whose query *is* the credential, and users put passwords
//! into addresses. This crate therefore never formats a `Url` directly. It converts it to a
//! [`RedactedUrl`], which keeps only the scheme, host, path and the names of query parameters.

use std::fmt;

/// The printable part of a URL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RedactedUrl(String);

impl RedactedUrl {
    /// Returns the printable parts of `url`. Values of query parameters become `redacted`, user and
    /// password become `xxxxx`, and the fragment is removed. Text that is not a URL is not shown at
    /// all.
    pub fn new(url: &str) -> RedactedUrl {
        match reqwest::Url::parse(url) {
            Ok(url) => RedactedUrl::from(&url),
            Err(_) => RedactedUrl("(not a url)".to_owned()),
        }
    }
}

impl From<&reqwest::Url> for RedactedUrl {
    fn from(url: &reqwest::Url) -> RedactedUrl {
        let mut text = format!("{}:", url.scheme());
        if url.has_host() {
            text.push_str("//");
            if !url.username().is_empty() || url.password().is_some() {
                text.push_str("xxxxx@");
            }
            text.push_str(url.host_str().unwrap_or_default());
            if let Some(port) = url.port() {
                text.push_str(&format!(":{port}"));
            }
            text.push_str(url.path());
        } else {
            // Other schemes such as `mailto:` are unexpected, and their content may be sensitive.
            text.push_str("redacted");
        }
        if let Some(query) = url.query().filter(|query| !query.is_empty()) {
            for (i, pair) in query.split('&').enumerate() {
                text.push(if i == 0 { '?' } else { '&' });
                match pair.split_once('=') {
                    Some((name, _)) => text.push_str(&format!("{name}=redacted")),
                    None => text.push_str("redacted"),
                }
            }
        }
        RedactedUrl(text)
    }
}

impl fmt::Display for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn query_values_and_userinfo_are_not_shown() {
        let cases = [
            (
                "https://r.example/v2/a/blobs/x",
                "https://r.example/v2/a/blobs/x",
            ),
            (
                "https://user:hunter2@r.example:5000/p?X-Sig=hunter2&hunter2&a=#hunter2",
                "https://xxxxx@r.example:5000/p?X-Sig=redacted&redacted&a=redacted",
            ),
            ("http://token@[::1]:80/p", "http://xxxxx@[::1]/p"),
            ("data:hunter2", "data:redacted"),
            ("not a url hunter2", "(not a url)"),
        ];
        for (url, shown) in cases {
            assert_eq!(RedactedUrl::new(url).to_string(), shown);
            assert_eq!(format!("{:?}", RedactedUrl::new(url)), shown);
        }
    }

    proptest! {
        #[test]
        fn prop_a_secret_in_a_query_or_password_never_shows(name in "[a-z]{1,8}", secret in "[A-Z0-9]{12,20}") {
            for url in [
                format!("https://h.example/p?{name}={secret}"),
                format!("https://h.example/p?{secret}"),
                format!("https://{name}:{secret}@h.example/p"),
                format!("https://{secret}@h.example/p#{secret}"),
            ] {
                prop_assert!(!RedactedUrl::new(&url).to_string().contains(&secret));
            }
        }

        #[test]
        fn prop_any_text_can_be_given(text in ".{0,80}") {
            let shown = RedactedUrl::new(&text).to_string();
            prop_assert!(!shown.is_empty());
        }
    }
}
