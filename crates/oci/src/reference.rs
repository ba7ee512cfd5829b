//! Image references, in the two grammars in use.
//!
//! [`ImageRef`] is the form that the registry client uses. Create it from
//! * user or Kubernetes input with [`ImageRef::parse`], which follows docker's rules: `ubuntu`
//!   means `docker.io/library/ubuntu:latest`
//! * the name of an image in containerd with [`ImageRef::from_containerd`], which adds nothing
//!
//! The grammars conflict: `app:v1` is a repository on Docker Hub for docker, but a host with an
//! invalid port for containerd. The error texts of the containerd grammar are part of the
//! command-line interface and match the reference.

use std::{fmt, str::FromStr};

use crate::digest::Digest;

mod containerd;
mod docker;

pub use containerd::{ContainerdName, ContainerdNameError};
pub use docker::ParseRefError;

/// The location of an image: registry host, repository, and a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Parses a name and completes it as docker does: the default host is `docker.io`, the default
    /// namespace is `library`, and the tag is `latest` if there is neither a tag nor a digest.
    pub fn parse(name: &str) -> Result<ImageRef, ParseRefError> {
        docker::parse(name)
    }

    /// Parses the name of an image in containerd. Nothing is completed.
    pub fn from_containerd(name: &str) -> Result<ImageRef, ContainerdNameError> {
        ContainerdName::parse(name)?.to_image_ref()
    }

    /// The registry host in the name, with its port: `docker.io`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository in the registry: `library/ubuntu`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if the name has one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The object to request from the registry's manifest endpoint: the digest if there is one,
    /// otherwise the tag.
    pub fn object(&self) -> Option<String> {
        self.digest
            .as_ref()
            .map(Digest::to_string)
            .or_else(|| self.tag.clone())
    }

    /// Returns the same repository with only this digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> ImageRef {
        ImageRef {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Returns the same repository with only this tag. The tag is not validated.
    #[must_use]
    pub fn with_tag(&self, tag: &str) -> ImageRef {
        ImageRef {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        }
    }
}

impl FromStr for ImageRef {
    type Err = ParseRefError;

    fn from_str(name: &str) -> Result<ImageRef, ParseRefError> {
        ImageRef::parse(name)
    }
}

/// The complete form: `docker.io/library/ubuntu:latest`.
impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}
