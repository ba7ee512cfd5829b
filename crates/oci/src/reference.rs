//! Names of images, by the two grammars in use.
//!
//! [`ImageRef`] is what the registry client asks for: host, repository, tag or digest. It is made from
//! * what a person or Kubernetes writes ([`ImageRef::parse`], docker's rules: `ubuntu` means
//!   `docker.io/library/ubuntu:latest`), or
//! * what containerd stores as an image's name ([`ImageRef::from_containerd`] over [`ContainerdName`]): host and path
//!   are taken as they stand, nothing is added.
//!
//! The two differ where it hurts: `app:v1` is a repository of Docker Hub to docker and a host with a bad port to
//! containerd. Error texts of the second are part of the command line's interface and equal the reference's.

use std::{fmt, str::FromStr};

use crate::digest::Digest;

mod containerd;
mod docker;

pub use containerd::{ContainerdName, ContainerdNameError};
pub use docker::ParseRefError;

/// Where an image lies: a registry's host, a repository, and a tag or digest in it (or both).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Parses and completes a name as docker does: default host `docker.io`, default namespace `library`, and tag
    /// `latest` if there is neither tag nor digest.
    pub fn parse(name: &str) -> Result<ImageRef, ParseRefError> {
        docker::parse(name)
    }

    /// Takes a name that containerd keeps for an image; nothing is completed.
    pub fn from_containerd(name: &str) -> Result<ImageRef, ContainerdNameError> {
        ContainerdName::parse(name)?.to_image_ref()
    }

    /// The registry as the name has it, with its port: `docker.io`, `localhost:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository inside the registry: `library/ubuntu`.
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

    /// What to ask the registry's manifest endpoint for: the digest if there is one, else the tag.
    pub fn object(&self) -> Option<String> {
        self.digest
            .as_ref()
            .map(Digest::to_string)
            .or_else(|| self.tag.clone())
    }

    /// The same repository with another object: exactly this digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> ImageRef {
        ImageRef {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same repository with another object: exactly this tag. The tag is not checked.
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
