//! Snapshots for containers in user namespaces, whose files must appear with other owners.
//!
//! containerd requests this by two labels. If its configuration gives this plugin the capability
//! `remap-ids`, containerd expects mounts with the ID map and applies it to the directory of all
//! lower directories, without the mounts in it. Mounted layers cannot be shown that way and are
//! rejected. Without the capability, containerd changes the owners in a snapshot of its own (its
//! key ends in `-remap`), and the container's snapshot on that must not be mapped again.

use super::metadata::{Info, Labels, Owner};

/// The labels.
const UIDS: &str = "containerd.io/snapshot/uidmapping";
const GIDS: &str = "containerd.io/snapshot/gidmapping";
/// Key suffix of a snapshot in which containerd changes the owners itself.
const REMAPS: &str = "-remap";

/// Why the requested owners are not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnersError {
    /// The map is invalid.
    #[error(
        "the label {label} is {value:?}, expected container:host:count with a count above 0 that maps the container's ID 0"
    )]
    Bad {
        /// The label.
        label: &'static str,
        /// Its value.
        value: String,
    },
    /// One of the lower snapshots is a mounted layer.
    #[error(
        "mounted layers do not support user namespaces: remove \"remap-ids\" from the capabilities of this plugin in containerd's configuration, so that containerd makes a copy with the right owners"
    )]
    Mounted,
}

/// A map from owners inside a container to owners outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    uids: Map,
    gids: Map,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Map {
    written: String,
    /// First ID inside, first ID outside, count.
    ranges: Vec<(u32, u32, u32)>,
}

impl Map {
    fn parse(label: &'static str, value: &str) -> Result<Self, OwnersError> {
        let bad = || OwnersError::Bad {
            label,
            value: value.to_owned(),
        };
        let range = |text: &str| -> Option<(u32, u32, u32)> {
            let mut numbers = text.split(':').map(|number| number.parse().ok());
            let range = (numbers.next()??, numbers.next()??, numbers.next()??);
            (numbers.next().is_none() && range.2 > 0).then_some(range)
        };
        let ranges: Option<Vec<_>> = value.split(',').map(range).collect();
        let map = Self {
            written: value.to_owned(),
            ranges: ranges.ok_or_else(bad)?,
        };
        map.outside(0).ok_or_else(bad)?;
        Ok(map)
    }

    fn outside(&self, inside: u32) -> Option<u32> {
        self.ranges.iter().find_map(|&(first, host, count)| {
            let offset = inside.checked_sub(first)?;
            (offset < count).then(|| host.checked_add(offset))?
        })
    }
}

impl IdMap {
    /// The map through which a snapshot on `below`, nearest first, must be seen.
    ///
    /// # Errors
    ///
    /// When the labels are invalid or cannot be followed.
    pub(crate) fn wanted(labels: &Labels, below: &[Info]) -> Result<Option<Self>, OwnersError> {
        let of = |label| labels.get(label).map(String::as_str);
        let (uids, gids) = match (of(UIDS), of(GIDS)) {
            (None, None) => return Ok(None),
            (uids, gids) => (uids.unwrap_or_default(), gids.unwrap_or_default()),
        };
        // There is no lower snapshot, or containerd has already changed the owners in it.
        if below.first().is_none_or(|parent| parent.record.remapped) {
            return Ok(None);
        }
        if below.iter().any(|info| info.record.layer.is_some()) {
            return Err(OwnersError::Mounted);
        }
        Ok(Some(Self {
            uids: Map::parse(UIDS, uids)?,
            gids: Map::parse(GIDS, gids)?,
        }))
    }

    /// The owner outside. An owner without a mapping becomes the container's root.
    pub(crate) fn outside(&self, owner: Owner) -> Owner {
        let of = |map: &Map, id| map.outside(id).or_else(|| map.outside(0)).unwrap_or(id);
        Owner {
            uid: of(&self.uids, owner.uid),
            gid: of(&self.gids, owner.gid),
        }
    }

    /// The map as mount options for containerd.
    pub(crate) fn options(&self) -> [String; 2] {
        [
            format!("uidmap={}", self.uids.written),
            format!("gidmap={}", self.gids.written),
        ]
    }
}

/// Whether containerd itself changes the owners in a snapshot with this key.
pub(crate) fn is_remapping(key: &str) -> bool {
    key.ends_with(REMAPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_parsed_as_containerd_writes_them() {
        let map = Map::parse(UIDS, "0:100000:1000,5000:7:2").unwrap();
        assert_eq!(map.outside(0), Some(100_000));
        assert_eq!(map.outside(999), Some(100_999));
        assert_eq!(map.outside(1000), None);
        assert_eq!(map.outside(5001), Some(8));
        for bad in [
            "", "0", "0:1", "0:1:0", "0:1:2:3", "a:1:2", "1:1:5", "0:-1:2",
        ] {
            let error = Map::parse(GIDS, bad).unwrap_err();
            assert!(error.to_string().contains("gidmapping"), "{error}");
        }
    }
}
