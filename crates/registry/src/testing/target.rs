//! Determines the target of a request to the test registry from its path.

use soci_oci::digest::Digest;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Ping,
    Token,
    Signed(Digest),
    Manifest(String, String),
    Referrers(String, Digest),
    Blob(String, Digest),
    Upload(String, String),
    Tags(String),
    Unknown,
}

impl Target {
    pub(super) fn of(path: &str) -> Target {
        if matches!(path, "/token" | "/moved/token" | "/closed/token") {
            return Target::Token;
        }
        if let Some(digest) = path.strip_prefix("/signed/") {
            return digest.parse().map_or(Target::Unknown, Target::Signed);
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return if path == "/v2" {
                Target::Ping
            } else {
                Target::Unknown
            };
        };
        if rest.is_empty() {
            return Target::Ping;
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Target::Tags(name.to_owned());
        }
        if let Some((name, id)) = rest.rsplit_once("/blobs/uploads/") {
            return Target::Upload(name.to_owned(), id.to_owned());
        }
        if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
            let blob = |digest| Target::Blob(name.to_owned(), digest);
            return digest.parse().map_or(Target::Unknown, blob);
        }
        if let Some((name, digest)) = rest.rsplit_once("/referrers/") {
            let subject = |digest| Target::Referrers(name.to_owned(), digest);
            return digest.parse().map_or(Target::Unknown, subject);
        }
        match rest.rsplit_once("/manifests/") {
            Some((name, object)) => Target::Manifest(name.to_owned(), object.to_owned()),
            None => Target::Unknown,
        }
    }

    pub(super) fn repository(&self) -> Option<&str> {
        match self {
            Target::Manifest(name, _)
            | Target::Referrers(name, _)
            | Target::Blob(name, _)
            | Target::Upload(name, _)
            | Target::Tags(name) => Some(name),
            Target::Ping | Target::Token | Target::Signed(_) | Target::Unknown => None,
        }
    }
}
