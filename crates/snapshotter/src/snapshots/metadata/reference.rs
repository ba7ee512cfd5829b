//! The snapshot records of the reference implementation, which are those of containerd's
//! overlayfs snapshotter: the bucket `v1/snapshots` of a bbolt file has a bucket per name.
//!
//! The file is the content of another program. A record that makes no sense is left out with the
//! records on it, and everything else is kept.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use soci_bolt::{Bolt, BoltError, Bucket, Value, value};

use super::{Info, Kind, Labels, LayerUse, Owner, Record, SnapshotId, Usage};
use crate::image::labels;
use crate::store::LayerKey;

/// IDs beyond this are no IDs of a sequence that counts snapshots.
const MAX_ID: u64 = 1 << 48;

/// The records of one file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reference {
    /// The usable records. A parent comes before its children.
    pub(super) records: Vec<Info>,
    /// The highest ID that was ever assigned.
    pub(super) last: u64,
    /// Names of the other records, each with the reason.
    pub(super) skipped: Vec<(String, &'static str)>,
}

/// The fields of one record.
struct Fields<'a>(Vec<(&'a [u8], Value<'a>)>);

impl<'a> Fields<'a> {
    fn bytes(&self, name: &str) -> Option<&'a [u8]> {
        self.0.iter().find_map(|(key, value)| match value {
            Value::Bytes(bytes) if *key == name.as_bytes() => Some(*bytes),
            _ => None,
        })
    }

    fn bucket(&self, name: &str) -> Option<Bucket<'a>> {
        self.0.iter().find_map(|(key, value)| match value {
            Value::Bucket(bucket) if *key == name.as_bytes() => Some(*bucket),
            _ => None,
        })
    }

    fn time(&self, name: &str) -> SystemTime {
        let found = self.bytes(name).and_then(value::time).flatten();
        let since = found.and_then(|(secs, nanos)| {
            let secs = u64::try_from(secs).ok()?;
            UNIX_EPOCH.checked_add(Duration::new(secs, nanos))
        });
        since.unwrap_or(UNIX_EPOCH)
    }

    fn number(&self, name: &str) -> u64 {
        self.bytes(name).and_then(value::varint).unwrap_or(0)
    }
}

/// Reads the content of a file.
pub(super) fn parse(file: &[u8]) -> Result<Reference, BoltError> {
    let mut bolt = Bolt::open(file)?;
    let root = bolt.root();
    let version = Fields(bolt.entries(root)?).bucket("v1");
    let Some(version) = version else {
        return Ok(Reference::default());
    };
    let Some(snapshots) = Fields(bolt.entries(version)?).bucket("snapshots") else {
        return Ok(Reference::default());
    };
    let mut reference = Reference {
        last: snapshots.sequence().min(MAX_ID),
        ..Reference::default()
    };
    let mut found = BTreeMap::new();
    let mut ids = HashSet::new();
    for (name, value) in bolt.entries(snapshots)? {
        match record(&mut bolt, name, value) {
            Ok((name, record)) if ids.insert(record.id) => {
                reference.last = reference.last.max(record.id.0);
                found.insert(name, record);
            }
            Ok((name, _)) => reference.skipped.push((name, "another has its ID")),
            Err(why) => {
                let name = String::from_utf8_lossy(name).into_owned();
                reference.skipped.push((name, why));
            }
        }
    }
    reference.settle(found);
    Ok(reference)
}

impl Reference {
    /// Keeps the records whose parents exist, all the way down.
    fn settle(&mut self, mut found: BTreeMap<String, Record>) {
        let mut children: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut next = Vec::new();
        for (name, record) in &found {
            match &record.parent {
                None => next.push(name.clone()),
                Some(parent) => children
                    .entry(parent.clone())
                    .or_default()
                    .push(name.clone()),
            }
        }
        while let Some(name) = next.pop() {
            let Some(mut record) = found.remove(&name) else {
                continue;
            };
            if record.kind == Kind::Committed {
                next.extend(children.remove(&name).unwrap_or_default());
            }
            record.remapped = is_remapped(&name, record.parent.as_deref());
            self.records.push(Info { name, record });
        }
        let lost = found
            .into_keys()
            .map(|name| (name, "its parent is missing"));
        self.skipped.extend(lost);
    }
}

/// Whether containerd changed the owners in this snapshot: it then has the name of its parent with
/// a suffix, each below the prefix of its namespace.
fn is_remapped(name: &str, parent: Option<&str>) -> bool {
    let client = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    parent.is_some_and(|parent| client(name).starts_with(&format!("{}-", client(parent))))
}

fn record<'a>(
    bolt: &mut Bolt<'a>,
    name: &[u8],
    value: Value<'a>,
) -> Result<(String, Record), &'static str> {
    let text = |bytes: &[u8]| str::from_utf8(bytes).ok().map(str::to_owned);
    let name = text(name).filter(|name| !name.is_empty());
    let name = name.ok_or("its name is no text")?;
    let Value::Bucket(bucket) = value else {
        return Err("it is no record");
    };
    let fields = Fields(bolt.entries(bucket).map_err(|_| "its page is damaged")?);
    let id = fields.bytes("id").and_then(value::uvarint);
    let id = id.filter(|id| (1..=MAX_ID).contains(id));
    let id = SnapshotId(id.ok_or("it has no ID")?);
    let kind = match fields.bytes("kind") {
        Some([1]) => Kind::View,
        Some([2]) => Kind::Active,
        Some([3]) => Kind::Committed,
        _ => return Err("its kind is unknown"),
    };
    let parent = match fields.bytes("parent") {
        None | Some([]) => None,
        Some(bytes) => Some(text(bytes).ok_or("the name of its parent is no text")?),
    };
    let labels = match fields.bucket("labels") {
        None => Labels::new(),
        Some(bucket) => label_map(&bolt.entries(bucket).map_err(|_| "its labels are damaged")?),
    };
    let record = Record {
        id,
        kind,
        parent,
        created: fields.time("createdat"),
        updated: fields.time("updatedat"),
        usage: Usage {
            size: fields.number("size"),
            inodes: fields.number("inodes"),
        },
        owner: Owner::default(),
        layer: layer(kind, &labels)?,
        labels,
        remapped: false,
    };
    Ok((name, record))
}

fn label_map(entries: &[(&[u8], Value<'_>)]) -> Labels {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let label = |(key, value): &(&[u8], Value<'_>)| match value {
        Value::Bytes(value) if !value.is_empty() => Some((text(key), text(value))),
        _ => None,
    };
    entries.iter().filter_map(label).collect()
}

/// The layer of a snapshot that the reference loaded lazily. Its zTOC is found when the layer is
/// mounted again.
fn layer(kind: Kind, labels: &Labels) -> Result<Option<LayerUse>, &'static str> {
    if kind != Kind::Committed || labels::value(labels, labels::REMOTE).is_none() {
        return Ok(None);
    }
    let digest = labels::value(labels, labels::LAYER_DIGEST);
    let layer = digest.and_then(|digest| digest.parse().ok());
    let layer = layer.ok_or("it was loaded lazily, and its labels name no layer")?;
    Ok(Some(LayerUse {
        layer: LayerKey { layer, ztoc: None },
        patch: String::new(),
    }))
}

#[cfg(test)]
pub(super) mod tests;
