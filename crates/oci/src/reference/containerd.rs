//! containerd's grammar of image names: a locator (`host/path`) and an object (a tag, a digest, or
//! any text).
//!
//! containerd parses `dummy://` + name as a URL and splits the path at the first `:` or `@`. This
//! module reproduces the side effects: percent escapes are decoded, a user before `@` in the host
//! is removed, and query and fragment are dropped. Its error texts match containerd's because the
//! programs print them.

use std::fmt;

use super::ImageRef;
use crate::digest::Digest;

/// A name as containerd parses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerdName {
    locator: String,
    object: String,
}

/// Why containerd rejects a name. The texts match containerd's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerdNameError {
    /// The name has a scheme.
    #[error("invalid reference")]
    Invalid,
    /// The name has no host.
    #[error("hostname required")]
    HostnameRequired,
    /// The name has neither tag nor digest, but one is required.
    #[error("object required")]
    ObjectRequired,
    /// The name does not parse as a URL.
    #[error("parse {}: {reason}", quoted(url))]
    Url {
        /// The name after containerd's dummy scheme.
        url: String,
        /// Why it is invalid.
        reason: String,
    },
    /// The name has a host but no repository, so there is nothing to request.
    #[error("reference {name:?} has no repository")]
    NoRepository {
        /// The name as given.
        name: String,
    },
    /// The text after `@` is not a supported digest.
    #[error("invalid digest {digest:?} in reference")]
    Digest {
        /// The text after `@`.
        digest: String,
    },
}

impl ContainerdName {
    /// Parses a name. The object is optional.
    pub fn parse(name: &str) -> Result<ContainerdName, ContainerdNameError> {
        if name.contains("://") {
            return Err(ContainerdNameError::Invalid);
        }
        let (host, path) = split_url(name).map_err(|reason| ContainerdNameError::Url {
            url: format!("dummy://{name}"),
            reason,
        })?;
        if host.is_empty() {
            return Err(ContainerdNameError::HostnameRequired);
        }
        let (path, object) = match path.find([':', '@']) {
            // Keep "@" in the object because it distinguishes a digest from a tag.
            Some(at) if path[at..].starts_with(':') => (&path[..at], &path[at + 1..]),
            Some(at) => path.split_at(at),
            None => (path.as_str(), ""),
        };
        Ok(ContainerdName {
            locator: clean(&format!("{host}/{path}")),
            object: object.to_owned(),
        })
    }

    /// Host and path.
    pub fn locator(&self) -> &str {
        &self.locator
    }

    /// Everything after the locator, without a leading `:`. A digest keeps its `@`.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// The tag: the part of the object before `@`. Empty if there is none.
    pub fn tag(&self) -> &str {
        self.object
            .split_once('@')
            .map_or(self.object.as_str(), |(tag, _)| tag)
    }

    /// The digest: the part of the object after `@`. Empty if there is none. As in containerd, it
    /// is not validated here.
    pub fn digest(&self) -> &str {
        self.object.split_once('@').map_or("", |(_, digest)| digest)
    }

    /// The registry host with its port.
    pub fn host(&self) -> &str {
        self.locator
            .split_once('/')
            .map_or(self.locator.as_str(), |(host, _)| host)
    }

    /// Converts the name to a reference for a registry. Requires a repository and a tag or digest.
    pub fn to_image_ref(&self) -> Result<ImageRef, ContainerdNameError> {
        let Some((host, repository)) = self.locator.split_once('/').filter(|(_, r)| !r.is_empty())
        else {
            return Err(ContainerdNameError::NoRepository {
                name: self.to_string(),
            });
        };
        if self.object.is_empty() {
            return Err(ContainerdNameError::ObjectRequired);
        }
        let digest = match self.digest() {
            "" => None,
            text => Some(
                text.parse::<Digest>()
                    .map_err(|_| ContainerdNameError::Digest {
                        digest: text.to_owned(),
                    })?,
            ),
        };
        let tag = Some(self.tag())
            .filter(|tag| !tag.is_empty())
            .map(str::to_owned);
        if tag.is_none() && digest.is_none() {
            return Err(ContainerdNameError::ObjectRequired);
        }
        Ok(ImageRef {
            host: host.to_owned(),
            repository: repository.to_owned(),
            tag,
            digest,
        })
    }
}

/// containerd's canonical form.
impl fmt::Display for ContainerdName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.object.as_str() {
            "" => f.write_str(&self.locator),
            digest if digest.starts_with('@') => write!(f, "{}{digest}", self.locator),
            object => write!(f, "{}:{object}", self.locator),
        }
    }
}

/// Returns host and decoded path of `dummy://{name}`. The error is the reason in Go's wording.
fn split_url(name: &str) -> Result<(String, String), String> {
    if name.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Err("net/url: invalid control character in URL".to_owned());
    }
    let (before_fragment, fragment) = name.split_once('#').unwrap_or((name, ""));
    let before_query = before_fragment
        .split_once('?')
        .map_or(before_fragment, |(b, _)| b);
    let (authority, path) = match before_query.find('/') {
        Some(slash) => before_query.split_at(slash),
        None => (before_query, ""),
    };
    let host = match authority.rsplit_once('@') {
        Some((user, host)) => {
            check_host(host)?;
            check_userinfo(user)?;
            host
        }
        None => {
            check_host(authority)?;
            authority
        }
    };
    let path = unescape(path)?;
    unescape(fragment)?;
    Ok((host.to_owned(), path))
}

fn check_userinfo(user: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b);
    if !user.bytes().all(allowed) {
        return Err("net/url: invalid userinfo".to_owned());
    }
    unescape(user).map(|_| ())
}

fn check_host(host: &str) -> Result<(), String> {
    let port = if host.starts_with('[') {
        let Some(end) = host.rfind(']') else {
            return Err("missing ']' in host".to_owned());
        };
        &host[end + 1..]
    } else {
        host.rfind(':').map_or("", |colon| &host[colon..])
    };
    let port_ok = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()),
        None => port.is_empty(),
    };
    if !port_ok {
        return Err(format!("invalid port {} after host", quoted(port)));
    }
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || b >= 0x80 || b"-_.~!$&'()*+,;=:[]<>\"".contains(&b);
    let mut rest = host;
    while let Some(c) = rest.chars().next() {
        if c == '%' {
            // Only bytes above ASCII may be escaped in a host.
            let escape: String = rest.chars().take(3).collect();
            match decode_escape(&escape) {
                Some(byte) if byte >= 0x80 => rest = &rest[3..],
                _ => return Err(format!("invalid URL escape {}", quoted(&escape))),
            }
            continue;
        }
        if c.is_ascii() && !allowed(c as u8) {
            return Err(format!(
                "invalid character {} in host name",
                quoted(&c.to_string())
            ));
        }
        rest = &rest[c.len_utf8()..];
    }
    Ok(())
}

/// Decodes percent escapes. Invalid UTF-8 is replaced by U+FFFD; registries have no such names.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let escape: String = text[at..].chars().take(3).collect();
            let Some(byte) = decode_escape(&escape) else {
                return Err(format!("invalid URL escape {}", quoted(&escape)));
            };
            out.push(byte);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Decodes `%xx` to a byte.
fn decode_escape(escape: &str) -> Option<u8> {
    let hex = escape.strip_prefix('%')?;
    let both_hex = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if both_hex {
        u8::from_str_radix(hex, 16).ok()
    } else {
        None
    }
}

/// Normalizes a path: removes empty and `.` components and resolves `..`.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            // A locator is relative, so `..` is kept if there is no component to remove.
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        ".".to_owned()
    } else {
        parts.join("/")
    }
}

/// Quotes a text and escapes characters that would break a one-line message.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests;
