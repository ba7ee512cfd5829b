//! Snapshots for containers in user namespaces, whose files must appear with other owners.
//!
//! containerd requests this by two labels, if its configuration gives this plugin the capability
//! `remap-ids`. Each lower snapshot then gets an ID-mapped copy of its mount or directory
//! (`mount::mapped`), and the overlay lies on the copies. Without the capability, containerd changes
//! the owners in a snapshot of its own (its key ends in `-remap`), and the container's snapshot on
//! that must not be mapped again.

use super::metadata::{Info, Labels, Owner};
use crate::mount::userns::{MAX_RANGES, Owners, Range};

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
        "the label {label} is {value:?}, expected up to {MAX_RANGES} ranges container:host:count that do not overlap and map the container's ID 0"
    )]
    Bad {
        /// The label.
        label: &'static str,
        /// Its value.
        value: String,
    },
    /// The kernel cannot show the lower snapshots with other owners.
    #[error(
        "{why}: remove \"remap-ids\" from the capabilities of this plugin in containerd's configuration, so that containerd makes a copy with the right owners"
    )]
    Unsupported {
        /// The reason.
        why: String,
    },
}

/// A map from owners inside a container to owners outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdMap {
    uids: Map,
    gids: Map,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Map {
    ranges: Vec<Range>,
}

impl Map {
    fn parse(label: &'static str, value: &str) -> Result<Self, OwnersError> {
        let bad = || OwnersError::Bad {
            label,
            value: value.to_owned(),
        };
        let range = |text: &str| -> Option<Range> {
            let mut numbers = text.split(':').map(|number| number.parse().ok());
            let range = Range {
                inside: numbers.next()??,
                outside: numbers.next()??,
                count: numbers.next()??,
            };
            (numbers.next().is_none() && range.count > 0).then_some(range)
        };
        let ranges: Option<Vec<_>> = value.split(',').map(range).collect();
        let map = Self {
            ranges: ranges.ok_or_else(bad)?,
        };
        let is_good = map.ranges.len() <= MAX_RANGES
            && map.outside(0).is_some()
            && are_apart(&map.ranges, |range| range.inside)
            && are_apart(&map.ranges, |range| range.outside);
        is_good.then_some(map).ok_or_else(bad)
    }

    fn outside(&self, inside: u32) -> Option<u32> {
        self.ranges.iter().find_map(|range| {
            let offset = inside.checked_sub(range.inside)?;
            (offset < range.count).then(|| range.outside.checked_add(offset))?
        })
    }
}

/// Whether ranges that begin at `first` end within the IDs and do not overlap. The last number is
/// no ID.
fn are_apart(ranges: &[Range], first: impl Fn(&Range) -> u32) -> bool {
    let mut spans: Vec<_> = ranges
        .iter()
        .map(|range| (u64::from(first(range)), u64::from(range.count)))
        .collect();
    spans.sort_unstable();
    let mut end = 0;
    spans.into_iter().all(|(first, count)| {
        let is_apart = first >= end;
        end = first + count;
        is_apart && end <= u64::from(u32::MAX)
    })
}

impl IdMap {
    /// The map through which a snapshot on `below`, nearest first, must be seen.
    ///
    /// # Errors
    ///
    /// When the labels are invalid or cannot be followed.
    pub(crate) fn wanted(labels: &Labels, below: &[Info]) -> Result<Option<Self>, OwnersError> {
        // Like containerd, ignore one label without the other.
        let (Some(uids), Some(gids)) = (labels.get(UIDS), labels.get(GIDS)) else {
            return Ok(None);
        };
        // containerd has already changed the owners in the lower snapshot.
        if below.first().is_some_and(|parent| parent.record.remapped) {
            return Ok(None);
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

    /// The map for the kernel.
    pub(crate) fn owners(&self) -> Owners {
        Owners {
            uids: self.uids.ranges.clone(),
            gids: self.gids.ranges.clone(),
        }
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
    fn both_labels_map_a_snapshot_with_or_without_a_parent() {
        let labels = |keys: &[&str]| -> Labels {
            let map = |key: &&str| ((*key).to_owned(), "0:100000:10".to_owned());
            keys.iter().map(map).collect()
        };
        let map = IdMap::wanted(&labels(&[UIDS, GIDS]), &[]).unwrap().unwrap();
        let (uid, gid) = (100_000, 100_000);
        assert_eq!(map.outside(Owner::default()), Owner { uid, gid });
        for one in [UIDS, GIDS] {
            assert_eq!(IdMap::wanted(&labels(&[one]), &[]), Ok(None));
        }
    }

    #[test]
    fn maps_are_parsed_as_containerd_writes_them() {
        let map = Map::parse(UIDS, "0:100000:1000,5000:7:2").unwrap();
        assert_eq!(map.outside(0), Some(100_000));
        assert_eq!(map.outside(999), Some(100_999));
        assert_eq!(map.outside(1000), None);
        assert_eq!(map.outside(5001), Some(8));
        let many = vec!["0:1:1"; MAX_RANGES + 1].join(",");
        for bad in [
            "",
            "0",
            "0:1",
            "0:1:0",
            "0:1:2:3",
            "a:1:2",
            "1:1:5",
            "0:-1:2",
            "0:1:10,9:100:1",
            "0:1:10,10:5:1",
            "0:4294967290:10",
            &many,
        ] {
            let error = Map::parse(GIDS, bad).unwrap_err();
            assert!(error.to_string().contains("gidmapping"), "{error}");
        }
    }
}
