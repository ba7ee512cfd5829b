//! The notations for images without containerd on the command line.
//!
//! | notation | meaning |
//! |--|--|
//! | `docker://registry/repository:tag[@digest]` | an image in a registry |
//! | `oci:PATH[:TAG]` | an OCI layout in a folder |
//! | `oci-archive:PATH[:TAG]` | an OCI layout in a tar |
//! | `docker-archive:PATH[:NAME]` | the output of `docker save`; input only |
//! | `-` | an archive on standard input or output |
//! | anything else | a path to a folder or a tar |

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use soci_oci::reference::ImageRef;

/// One side of a conversion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transport {
    Registry(ImageRef),
    Folder { path: PathBuf, tag: Option<String> },
    Archive { path: PathBuf, tag: Option<String> },
    DockerArchive { path: PathBuf, name: Option<String> },
    Pipe,
    Path(PathBuf),
}

impl Transport {
    /// Parses a command-line argument.
    pub(crate) fn parse(text: &Path) -> Result<Self> {
        let Some(written) = text.to_str() else {
            return Ok(Self::Path(text.to_owned()));
        };
        if written == "-" {
            return Ok(Self::Pipe);
        }
        let Some((transport, rest)) = written.split_once(':') else {
            return Ok(Self::Path(text.to_owned()));
        };
        match transport {
            "docker" => match rest.strip_prefix("//") {
                Some(name) => Ok(Self::Registry(image(name)?)),
                None => {
                    bail!("{written:?}: docker images are written docker://registry/repository:tag")
                }
            },
            "oci" => {
                let (path, tag) = place(written, rest)?;
                Ok(Self::Folder {
                    path,
                    tag: tag.map(checked).transpose()?,
                })
            }
            "oci-archive" => {
                let (path, tag) = place(written, rest)?;
                Ok(Self::Archive {
                    path,
                    tag: tag.map(checked).transpose()?,
                })
            }
            "docker-archive" => {
                let (path, name) = place(written, rest)?;
                Ok(Self::DockerArchive { path, name })
            }
            _ => Ok(Self::Path(text.to_owned())),
        }
    }

    /// The image, if it is in a registry.
    pub(crate) fn image(&self) -> Option<&ImageRef> {
        match self {
            Self::Registry(image) => Some(image),
            _ => None,
        }
    }
}

/// Parses the name of an image in a registry, with or without `docker://`.
pub(crate) fn image(name: &str) -> Result<ImageRef> {
    let name = name.strip_prefix("docker://").unwrap_or(name);
    // A user in the host part, as in a URL. The message must not quote it, because it may contain a
    // password.
    if name
        .split_once('/')
        .is_some_and(|(host, _)| host.contains('@'))
    {
        bail!("a user cannot stand in an image's name; use --user NAME --password-stdin");
    }
    ImageRef::parse(name).with_context(|| format!("image name {name:?}"))
}

/// A hint for a user who wrote an image name instead of a path.
pub(crate) fn hint(path: &Path) -> Option<String> {
    let written = path.to_str().filter(|_| !path.exists())?;
    if written.starts_with(['/', '.']) || written.ends_with(".tar") {
        return None;
    }
    let host = written.split_once('/').map_or("", |(host, _)| host);
    let has_host = host.contains('.') || host == "localhost";
    let is_image = (has_host || written.contains(':')) && image(written).is_ok();
    is_image.then(|| format!("did you mean docker://{written}?"))
}

/// Adds that hint to an error about a path.
pub(crate) fn hinted(error: anyhow::Error, path: &Path) -> anyhow::Error {
    match hint(path) {
        Some(hint) => anyhow!("{error:#}; {hint}"),
        None => error,
    }
}

/// Splits at the first colon into the path and the name of an image in it.
fn place(written: &str, rest: &str) -> Result<(PathBuf, Option<String>)> {
    let (path, choice) = match rest.split_once(':') {
        Some((path, choice)) => (path, Some(choice)),
        None => (rest, None),
    };
    if path.is_empty() {
        bail!("{written:?} names no path");
    }
    if choice == Some("") {
        bail!("{written:?}: nothing follows the last colon");
    }
    Ok((PathBuf::from(path), choice.map(str::to_owned)))
}

/// Checks that a name is one that the OCI layout specification allows.
fn checked(tag: String) -> Result<String> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:@/+".contains(byte);
    let starts_well = tag
        .as_bytes()
        .first()
        .is_some_and(u8::is_ascii_alphanumeric);
    if !starts_well || !tag.as_bytes().iter().all(is_part) {
        bail!("{tag:?} cannot be the name of an image in a layout");
    }
    Ok(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Transport {
        Transport::parse(Path::new(text)).expect(text)
    }

    #[test]
    fn transports_are_told_by_their_prefix() {
        let path = PathBuf::from;
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parsed("-"), Transport::Pipe);
        let registry = parsed("docker://r.example:5000/a/b:1");
        assert_eq!(
            registry.image().expect("an image").to_string(),
            "r.example:5000/a/b:1"
        );
        let hub = parsed("docker://ubuntu");
        assert_eq!(
            hub.image().expect("an image").to_string(),
            "docker.io/library/ubuntu:latest"
        );
        assert_eq!(
            parsed("oci:a/b"),
            Transport::Folder {
                path: path("a/b"),
                tag: None
            }
        );
        assert_eq!(
            parsed("oci:a/b:v1"),
            Transport::Folder {
                path: path("a/b"),
                tag: some("v1")
            }
        );
        assert_eq!(
            parsed("oci-archive:/x.tar:r.example/a:1"),
            Transport::Archive {
                path: path("/x.tar"),
                tag: some("r.example/a:1")
            }
        );
        assert_eq!(
            parsed("docker-archive:x.tar:busybox:latest"),
            Transport::DockerArchive {
                path: path("x.tar"),
                name: some("busybox:latest")
            }
        );
        for bare in ["image.tar", "./oci:a", "a:b", "", "/docker:x", "ocix:y"] {
            assert_eq!(parsed(bare), Transport::Path(path(bare)), "{bare}");
        }
    }

    #[test]
    fn the_name_of_an_image_is_asked_about() {
        for name in [
            "r.example/app",
            "localhost/app",
            "app:1",
            "r.example:5000/a/b:1",
        ] {
            let asked = hint(Path::new(name)).expect(name);
            assert_eq!(asked, format!("did you mean docker://{name}?"));
        }
        for path in [
            "app",
            "a/b",
            "/r.example/app:1",
            "./app:1",
            "app:1.tar",
            "A:1",
            "src",
        ] {
            assert_eq!(hint(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn what_is_no_transport_is_refused_with_its_name() {
        for text in [
            "docker:x",
            "docker://",
            "docker://A/B",
            "oci:",
            "oci::x",
            "oci:x:",
            "oci-archive:x:a b",
            "oci:x:-a",
            "docker-archive::x",
        ] {
            let error = Transport::parse(Path::new(text)).expect_err(text);
            assert!(!error.to_string().is_empty(), "{text}");
        }
        let error = image("docker://me:hunter2@r.example/app:1").expect_err("a password");
        let said = format!("{error:#}");
        assert!(
            said.contains("--password-stdin") && !said.contains("hunter2"),
            "{said}"
        );
    }
}
