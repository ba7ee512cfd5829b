//! What the tar of a layer must be, as far as the caller knows.

use soci_oci::Digest;

/// What is known about the tar of a layer before its bytes are present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Its SHA-256, as listed in the image configuration.
    DiffId(Digest),
    /// The chain IDs of the layers up to this one and of those below it (OCI image specification,
    /// "Layer ChainID").
    Chain {
        /// Including this layer.
        name: Digest,
        /// Excluding this layer. `None` for the lowest one.
        below: Option<Digest>,
    },
    /// Nothing, because the snapshots have other names.
    Unknown,
}

impl Expected {
    /// Derives the expectation from the names of a snapshot and its parent. containerd names
    /// snapshots by chain IDs, with a prefix where it unpacked them itself. We append `@` and a
    /// number to a name that is taken.
    pub fn by_names(name: &str, parent: Option<&str>) -> Expected {
        match (chain_id(name), parent.map(chain_id)) {
            (Some(name), None) => Expected::Chain { name, below: None },
            (Some(name), Some(Some(below))) => Expected::Chain {
                name,
                below: Some(below),
            },
            (None, _) | (Some(_), Some(None)) => Expected::Unknown,
        }
    }

    /// Whether a tar with this digest is the right one. `None` if unknown.
    pub fn is(&self, diff_id: &Digest) -> Option<bool> {
        match self {
            Expected::DiffId(expected) => Some(expected == diff_id),
            // The lowest chain ID equals the diff-ID, with the same hash algorithm.
            Expected::Chain { name, below: None } => {
                (name.algorithm() == diff_id.algorithm()).then(|| name == diff_id)
            }
            Expected::Chain {
                name,
                below: Some(below),
            } => Some(*name == Digest::sha256(format!("{below} {diff_id}").as_bytes())),
            Expected::Unknown => None,
        }
    }
}

fn chain_id(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split('@').next().and_then(|id| id.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_tar_reproduces_the_chain_id() {
        let [lower, upper, other] = [b"lower", b"upper", b"other"].map(|tar| Digest::sha256(tar));
        let lowest = Expected::by_names(&lower.to_string(), None);
        assert_eq!(
            (lowest.is(&lower), lowest.is(&upper)),
            (Some(true), Some(false))
        );
        let name = Digest::sha256(format!("{lower} {upper}").as_bytes());
        for (name, parent) in [
            (name.to_string(), lower.to_string()),
            (format!("{name}@17"), format!("default/4/{lower}")),
        ] {
            let chain = Expected::by_names(&name, Some(&parent));
            assert_eq!(
                (chain.is(&upper), chain.is(&other)),
                (Some(true), Some(false))
            );
        }
        assert_eq!(Expected::DiffId(upper).is(&upper), Some(true));
    }

    #[test]
    fn other_names_are_unknown() {
        let digest = Digest::sha256(b"tar");
        for (name, parent) in [
            ("layer-1", None),
            ("", None),
            (&*digest.to_string(), Some("base")),
        ] {
            assert_eq!(Expected::by_names(name, parent), Expected::Unknown);
        }
        assert_eq!(Expected::Unknown.is(&digest), None);
        let longer = format!("sha512:{}", "0".repeat(128));
        assert_eq!(Expected::by_names(&longer, None).is(&digest), None);
    }
}
