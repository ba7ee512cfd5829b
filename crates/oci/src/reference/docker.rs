//! Docker's grammar of image names, including the completion of short names.

use super::ImageRef;
use crate::digest::Digest;

const DEFAULT_HOST: &str = "docker.io";
/// The name that `docker login` still uses for Docker Hub.
const LEGACY_DEFAULT_HOST: &str = "index.docker.io";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// Maximum length of a repository path (distribution specification).
const MAX_REPOSITORY: usize = 255;
/// Maximum length of a tag (distribution specification: one character plus 127).
const MAX_TAG: usize = 128;

/// Why a name is not a valid image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseRefError {
    /// The name does not follow the grammar.
    #[error("invalid reference format: {name:?}")]
    Format {
        /// The name as given.
        name: String,
    },
    /// The name would be valid in lower case.
    #[error("invalid reference format: repository name ({repository}) must be lowercase")]
    Uppercase {
        /// The repository as given.
        repository: String,
    },
    /// Docker treats 64 hexadecimal digits as an image ID, not as a name.
    #[error("invalid repository name ({name}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId {
        /// The name as given.
        name: String,
    },
    /// The repository is too long.
    #[error("repository name must not be more than {MAX_REPOSITORY} characters")]
    TooLong,
    /// The text after `@` is not a digest.
    #[error("invalid digest {digest:?} in reference")]
    Digest {
        /// The text after `@`.
        digest: String,
    },
}

pub(super) fn parse(name: &str) -> Result<ImageRef, ParseRefError> {
    let format = || ParseRefError::Format {
        name: name.to_owned(),
    };
    if name.len() == 64 && name.bytes().all(is_lower_hex) {
        return Err(ParseRefError::LooksLikeId {
            name: name.to_owned(),
        });
    }
    let (host, rest) = split_host(name);
    if !is_host(&host) {
        return Err(format());
    }
    // Split the digest off first, because the ":" in it does not start a tag.
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest
                .parse::<Digest>()
                .map_err(|_| ParseRefError::Digest {
                    digest: digest.to_owned(),
                })?;
            (rest.to_owned(), Some(digest))
        }
        None => (rest, None),
    };
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository.to_owned(), Some(tag.to_owned())),
        None => (rest, None),
    };
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ParseRefError::Uppercase { repository });
    }
    if !repository.split('/').all(is_component) || !tag.as_deref().is_none_or(is_tag) {
        return Err(format());
    }
    if repository.len() > MAX_REPOSITORY {
        return Err(ParseRefError::TooLong);
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag,
    };
    Ok(ImageRef {
        host,
        repository,
        tag,
        digest,
    })
}

/// Splits host and repository and completes both. The first component is only a host if it looks
/// like one.
fn split_host(name: &str) -> (String, String) {
    let looks_like_host = |first: &str| {
        first == "localhost"
            || first.contains(['.', ':'])
            || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (host, rest) = match name.split_once('/') {
        Some((LEGACY_DEFAULT_HOST, rest)) => (DEFAULT_HOST, rest),
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_HOST, name),
    };
    if host == DEFAULT_HOST && !rest.contains('/') && !rest.is_empty() {
        (host.to_owned(), format!("{DEFAULT_NAMESPACE}/{rest}"))
    } else {
        (host.to_owned(), rest.to_owned())
    }
}

fn is_lower_hex(b: u8) -> bool {
    matches!(b, b'0'..=b'9' | b'a'..=b'f')
}

/// `name(.name)*` with letters, digits and inner hyphens, or an IPv6 address in brackets, with an
/// optional port.
fn is_host(host: &str) -> bool {
    let (address, port) = match host.rfind(']') {
        Some(end) => host.split_at(end + 1),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port_ok = match port.strip_prefix(':') {
        Some(digits) => !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()),
        None => port.is_empty(),
    };
    let address_ok = match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
        Some(v6) => !v6.is_empty() && v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
        None => address.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    address_ok && port_ok
}

/// Runs of lower-case letters and digits, separated by `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().copied().is_some_and(is_word) || !bytes.last().copied().is_some_and(is_word) {
        return false;
    }
    bytes
        .split(|b| is_word(*b))
        .all(|joint| matches!(joint, b"" | b"." | b"_" | b"__") || joint.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_completed() {
        let cases = [
            ("ubuntu", "docker.io/library/ubuntu:latest"),
            ("ubuntu:22.04", "docker.io/library/ubuntu:22.04"),
            ("some/app", "docker.io/some/app:latest"),
            ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
            ("index.docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
            ("localhost/app", "localhost/app:latest"),
            (
                "localhost:5000/a/b/c:x_1.2-3",
                "localhost:5000/a/b/c:x_1.2-3",
            ),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest"),
            ("[::1]:5000/app:t", "[::1]:5000/app:t"),
            ("Upper/app", "Upper/app:latest"),
            ("r.example/a__b/c--d/e.f", "r.example/a__b/c--d/e.f:latest"),
            ("myhost/app", "docker.io/myhost/app:latest"),
            ("app:5000", "docker.io/library/app:5000"),
        ];
        for (name, full) in cases {
            assert_eq!(parse(name).expect(name).to_string(), full, "{name}");
        }
    }

    #[test]
    fn a_digest_is_kept_with_or_without_a_tag() {
        let by_digest = parse(&format!("r.example/app@{SHA}")).expect("digest");
        assert_eq!(by_digest.tag(), None);
        assert_eq!(by_digest.object().as_deref(), Some(SHA));
        let both = parse(&format!("r.example/app:v1@{SHA}")).expect("both");
        assert_eq!(both.to_string(), format!("r.example/app:v1@{SHA}"));
        assert_eq!(both.object().as_deref(), Some(SHA));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let hex = "a".repeat(64);
        let long = format!("r.example/{}", "a/".repeat(128) + "a");
        let cases: Vec<(&str, &str)> = vec![
            ("", "invalid reference format: \"\""),
            ("a//b", "invalid reference format: \"a//b\""),
            ("r.example/", "invalid reference format: \"r.example/\""),
            ("-a", "invalid reference format: \"-a\""),
            ("a___b", "invalid reference format: \"a___b\""),
            ("a:", "invalid reference format: \"a:\""),
            ("a:-x", "invalid reference format: \"a:-x\""),
            (
                "https://r.example/app",
                "invalid reference format: \"https://r.example/app\"",
            ),
            (
                "r.example:x/app",
                "invalid reference format: \"r.example:x/app\"",
            ),
            (
                "-r.example/app",
                "invalid reference format: \"-r.example/app\"",
            ),
            (
                "r.example/App",
                "invalid reference format: repository name (App) must be lowercase",
            ),
            ("a@sha256:12", "invalid digest \"sha256:12\" in reference"),
            (
                &long,
                "repository name must not be more than 255 characters",
            ),
        ];
        for (name, message) in cases {
            assert_eq!(parse(name).expect_err(name).to_string(), message);
        }
        assert!(matches!(
            parse(&hex),
            Err(ParseRefError::LooksLikeId { .. })
        ));
        assert!(parse(&format!("a:{}", "t".repeat(128))).is_ok());
        assert!(parse(&format!("a:{}", "t".repeat(129))).is_err());
    }

    proptest! {
        #[test]
        fn prop_never_panics(name in ".{0,60}") {
            if let Ok(parsed) = parse(&name) {
                prop_assert_eq!(parse(&parsed.to_string()), Ok(parsed));
            }
        }

        #[test]
        fn prop_near_valid_names_round_trip(name in "[a-zA-Z0-9._:/@\\[\\]-]{0,40}") {
            if let Ok(parsed) = parse(&name) {
                prop_assert_eq!(parse(&parsed.to_string()), Ok(parsed));
            }
        }
    }
}
