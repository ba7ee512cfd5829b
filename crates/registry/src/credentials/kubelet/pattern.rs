//! Which images a pattern means, by the rules of the kubelet.
//!
//! A pattern is `host[:port][/path]`. Each label of the host is a glob for exactly one label, the
//! port must be equal, and the path must be a prefix of the repository's.

/// Size limit in bytes. Longer than any name of a host with a repository.
const MAX_LENGTH: usize = 1024;

/// A pattern for images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    labels: Vec<String>,
    port: String,
    path: String,
}

/// A pattern that matches nothing.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no pattern for images: expected HOST[:PORT][/PATH] without a scheme")]
pub(super) struct BadPattern(String);

impl Pattern {
    /// Parses a pattern of the kubelet's configuration.
    pub(super) fn parse(text: &str) -> Result<Pattern, BadPattern> {
        let bad = || BadPattern(text.chars().take(MAX_LENGTH).collect());
        let is_odd = |c: char| c.is_whitespace() || c.is_control();
        if text.len() > MAX_LENGTH || text.contains("://") || text.contains(is_odd) {
            return Err(bad());
        }
        let (authority, path) = match text.find('/') {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let (host, port) = split_port(authority);
        if host.is_empty() || port.contains(['*', '?', '[']) {
            return Err(bad());
        }
        Ok(Pattern {
            labels: host.split('.').map(str::to_owned).collect(),
            port: port.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Parses a key of a plugin's answer. As in Docker's configuration, it may be a URL, and the
    /// path of an API version means the whole host.
    pub(super) fn parse_key(text: &str) -> Result<Pattern, BadPattern> {
        let bare = text.strip_prefix("https://");
        let bare = bare.or_else(|| text.strip_prefix("http://"));
        let mut pattern = Pattern::parse(bare.unwrap_or(text))?;
        for version in ["/v1/", "/v2/"] {
            if let Some(rest) = pattern.path.strip_prefix(version) {
                pattern.path = format!("/{rest}");
            }
        }
        if matches!(pattern.path.as_str(), "/" | "/v1" | "/v2") {
            pattern.path.clear();
        }
        Ok(pattern)
    }

    /// The pattern as the kubelet orders the keys of an answer: without a scheme or API version.
    pub(super) fn text(&self) -> String {
        let colon = if self.port.is_empty() { "" } else { ":" };
        let host = self.labels.join(".");
        format!("{host}{colon}{}{}", self.port, self.path)
    }

    /// Whether the pattern means this image, given as `host[:port]/repository`.
    pub(super) fn matches(&self, image: &str) -> bool {
        let (authority, path) = match image.find('/') {
            Some(at) => image.split_at(at),
            None => (image, ""),
        };
        let (host, port) = split_port(authority);
        let labels = host.split('.');
        self.port == port
            && path.starts_with(&self.path)
            && labels.clone().count() == self.labels.len()
            && (self.labels.iter())
                .zip(labels)
                .all(|(glob, label)| matches_glob(glob.as_bytes(), label.as_bytes()))
    }
}

/// Splits a host from its port, which may be absent.
fn split_port(authority: &str) -> (&str, &str) {
    if let Some((address, rest)) = authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        return (address, rest.strip_prefix(':').unwrap_or(rest));
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, port),
        _ => (authority, ""),
    }
}

/// Matches `*`, `?`, `[a-z]`, `[^a-z]` and `\` before a character.
fn matches_glob(glob: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    // Where to go on if the last star must take one more byte.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if glob.get(at) == Some(&b'*') {
            star = Some((at + 1, seen));
            at += 1;
            continue;
        }
        let step = match text.get(seen) {
            Some(&byte) => one(&glob[at..], byte),
            None => return glob[at..].iter().all(|&byte| byte == b'*'),
        };
        match (step, star) {
            (Some(length), _) => (at, seen) = (at + length, seen + 1),
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                (at, seen) = (after, from + 1);
            }
            (None, None) => return false,
        }
    }
}

/// Length of the glob's first element if it matches this byte.
fn one(glob: &[u8], byte: u8) -> Option<usize> {
    match *glob.first()? {
        b'?' => Some(1),
        b'[' => {
            let end = glob.iter().skip(2).position(|&byte| byte == b']')? + 2;
            let class = &glob[1..end];
            let (class, is_negated) = match class.strip_prefix(b"^") {
                Some(rest) => (rest, true),
                None => (class, false),
            };
            (in_class(class, byte) != is_negated).then_some(end + 1)
        }
        b'\\' => (*glob.get(1)? == byte).then_some(2),
        literal => (literal == byte).then_some(1),
    }
}

fn in_class(class: &[u8], byte: u8) -> bool {
    match class {
        [low, b'-', high, rest @ ..] => (*low..=*high).contains(&byte) || in_class(rest, byte),
        [literal, rest @ ..] => *literal == byte || in_class(rest, byte),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, image: &str) -> bool {
        Pattern::parse(pattern)
            .unwrap_or_else(|error| panic!("{error}"))
            .matches(image)
    }

    #[test]
    fn a_glob_means_one_label_of_the_host() {
        for (pattern, image, expected) in [
            ("registry.io", "registry.io/app", true),
            ("registry.io", "other.io/app", false),
            ("*.registry.io", "eu.registry.io/app", true),
            ("*.registry.io", "registry.io/app", false),
            ("*.registry.io", "a.eu.registry.io/app", false),
            ("*.*.registry.io", "a.eu.registry.io/app", true),
            ("k8s.*", "k8s.io/app", true),
            ("app*.k8s.io", "app-1.k8s.io/x", true),
            ("app*.k8s.io", "ap.k8s.io/x", false),
            ("a*c*e.io", "abcde.io/x", true),
            ("a*c*e.io", "abcdef.io/x", false),
            ("r?.io", "r1.io/x", true),
            ("r[0-9].io", "r1.io/x", true),
            ("r[^0-9].io", "r1.io/x", false),
            ("r[0-9].io", "rx.io/x", false),
            (
                "*.dkr.ecr.*.amazonaws.com",
                "123.dkr.ecr.eu-central-1.amazonaws.com/team/app",
                true,
            ),
            (
                "*.dkr.ecr.*.amazonaws.com",
                "123.dkr.ecr.cn-north-1.amazonaws.com.cn/team/app",
                false,
            ),
        ] {
            assert_eq!(matches(pattern, image), expected, "{pattern} {image}");
        }
    }

    #[test]
    fn port_and_path_are_compared_as_they_are() {
        for (pattern, image, expected) in [
            ("registry.io:8080", "registry.io:8080/app", true),
            ("registry.io:8080", "registry.io/app", false),
            ("registry.io", "registry.io:8080/app", false),
            ("registry.io/team", "registry.io/team/app", true),
            ("registry.io/team", "registry.io/other/app", false),
            ("registry.io/te*m", "registry.io/team/app", false),
            ("*.io:8080/team", "registry.io:8080/team/app", true),
            ("[::1]:5000", "[::1]:5000/app", true),
            ("127.0.0.1:5000", "127.0.0.1:5000/app", true),
        ] {
            assert_eq!(matches(pattern, image), expected, "{pattern} {image}");
        }
    }

    #[test]
    fn text_that_is_no_pattern_is_refused() {
        let long = "a".repeat(MAX_LENGTH + 1);
        for text in ["", "/app", "https://r.io", "r io", "r.io:*", ":80", &long] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_may_be_a_url_with_the_version_of_an_api() {
        for key in [
            "https://r.io/v1/",
            "http://r.io/v2/",
            "r.io/v2",
            "r.io/",
            "r.io",
        ] {
            let key = Pattern::parse_key(key).expect("a key");
            assert!(key.matches("r.io/team/app"));
        }
        let key = Pattern::parse_key("https://r.io/v2/team").expect("a key");
        assert!(key.matches("r.io/team/app") && !key.matches("r.io/app"));
    }

    #[test]
    fn a_glob_takes_no_exponential_time() {
        let pattern = format!("{}b.io", "*a".repeat(200));
        assert!(!matches(&pattern, &format!("{}.io/x", "a".repeat(500))));
    }
}
