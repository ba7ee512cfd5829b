//! `soci index`: lists, prints and removes recorded indexes.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use soci_index::artifacts::{Entry, Kind, now};
use soci_index::image::{self, ImageError};
use soci_index::{ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2};
use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::{Digest, Platform};
use soci_store::ContentStore;

use crate::args::{Global, IndexInfo, IndexList, IndexRemove};
use crate::output::stream::show;
use crate::output::table::{Table, age};
use crate::output::{Versioned, document};
use crate::state::State;

/// Runs `index list`.
pub(crate) async fn list(global: &Global, args: &IndexList) -> Result<()> {
    let state = State::new(global);
    let platforms = args.platforms.iter().map(|text| text.parse());
    let platforms: Vec<Platform> = platforms.collect::<Result<_, _>>()?;
    let wanted = Wanted::of(&state, args, platforms).await?;
    let mut entries = state.artifacts().all()?;
    entries.retain(|entry| entry.kind == Kind::Index && wanted.matches(entry));
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.created_at));
    if args.quiet {
        let digests = entries.iter().map(|entry| format!("{}\n", entry.digest));
        return show(&digests.collect::<String>());
    }
    let names = names(&state, &entries).await;
    if args.json {
        let indexes = entries.iter().map(|entry| listed(entry, &names)).collect();
        return show(&document::pretty(&Versioned::new(List { indexes })));
    }
    show(&table(&entries, &names))
}

/// Which indexes to list.
enum Wanted {
    All,
    /// The indexes of these manifests.
    Manifests(Vec<String>),
    /// The indexes for these platforms.
    Platforms(Vec<Platform>),
}

impl Wanted {
    async fn of(state: &State<'_>, args: &IndexList, platforms: Vec<Platform>) -> Result<Self> {
        if args.reference.is_empty() {
            return Ok(match &platforms[..] {
                [] => Self::All,
                _ => Self::Platforms(platforms),
            });
        }
        let containerd = state.containerd().await?;
        let target = containerd.image(&args.reference).await?.target;
        let store: Arc<dyn ContentStore> = Arc::new(containerd.clone());
        let manifests = image::manifests(&store, &target, &platforms).await;
        let manifests = manifests.map_err(|error| match error {
            ImageError::NoManifest { platform, .. } => {
                anyhow!("image manifest for platform {platform}: not found")
            }
            other => other.into(),
        })?;
        let digests = manifests.iter().map(|manifest| manifest.digest.to_string());
        Ok(Self::Manifests(digests.collect()))
    }

    fn matches(&self, entry: &Entry) -> bool {
        match self {
            Self::All => true,
            Self::Manifests(digests) => digests.contains(&entry.oci_digest),
            Self::Platforms(platforms) => match entry.platform.parse::<Platform>() {
                Ok(built_for) => platforms.iter().any(|wanted| wanted.matches(&built_for)),
                Err(_) => false,
            },
        }
    }
}

/// Image names by the digest they refer to. Empty without containerd.
async fn names(state: &State<'_>, entries: &[Entry]) -> BTreeMap<String, Vec<String>> {
    let mut names = BTreeMap::new();
    let Some(containerd) = state.containerd_if_there(!entries.is_empty()).await else {
        return names;
    };
    for entry in entries {
        let Ok(image) = entry.image_digest.parse::<Digest>() else {
            continue;
        };
        if names.contains_key(&entry.image_digest) {
            continue;
        }
        match containerd.images_of(&image).await {
            Ok(images) => {
                let found = images.into_iter().map(|image| image.name).collect();
                names.insert(entry.image_digest.clone(), found);
            }
            Err(error) => {
                tracing::debug!(%error, "names of images cannot be shown");
                break;
            }
        }
    }
    names
}

fn version(entry: &Entry) -> &'static str {
    match entry.artifact_type.as_str() {
        ARTIFACT_TYPE_V1 => "v1",
        ARTIFACT_TYPE_V2 => "v2",
        _ => "",
    }
}

fn table(entries: &[Entry], names: &BTreeMap<String, Vec<String>>) -> String {
    let mut table = Table::new([
        "DIGEST",
        "SIZE",
        "IMAGE REF",
        "PLATFORM",
        "MEDIA TYPE",
        "MANIFEST VERSION",
        "CREATED",
    ]);
    let now = now();
    for entry in entries {
        let mut row = |name: &str| {
            table.row([
                entry.digest.to_string(),
                entry.size.to_string(),
                name.to_owned(),
                entry.platform.clone(),
                entry.media_type.clone(),
                version(entry).to_owned(),
                age(entry.created_at, now),
            ]);
        };
        match names.get(&entry.image_digest).map(Vec::as_slice) {
            None | Some([]) => row(""),
            Some(names) => names.iter().for_each(|name| row(name)),
        }
    }
    table.to_string()
}

/// All listed indexes in JSON.
#[derive(Serialize)]
struct List<'a> {
    indexes: Vec<Listed<'a>>,
}

/// An index in JSON.
#[derive(Serialize)]
struct Listed<'a> {
    digest: String,
    size: u64,
    image_refs: &'a [String],
    platform: &'a str,
    media_type: &'a str,
    manifest_version: &'static str,
    manifest_digest: &'a str,
    image_digest: &'a str,
    created_at: Option<String>,
}

fn listed<'a>(entry: &'a Entry, names: &'a BTreeMap<String, Vec<String>>) -> Listed<'a> {
    Listed {
        digest: entry.digest.to_string(),
        size: entry.size,
        image_refs: names.get(&entry.image_digest).map_or(&[], Vec::as_slice),
        platform: &entry.platform,
        media_type: &entry.media_type,
        manifest_version: version(entry),
        manifest_digest: &entry.oci_digest,
        image_digest: &entry.image_digest,
        created_at: entry.created_at.map(|time| time.to_rfc3339()),
    }
}

/// Runs `index info`.
pub(crate) async fn info(global: &Global, args: &IndexInfo) -> Result<()> {
    let state = State::new(global);
    let digest: Digest = args.digest.parse()?;
    let entry = state.artifacts().get(&digest)?;
    if entry.kind == Kind::Layer {
        bail!(
            "the provided digest is of ztoc not SOCI index. Use \"soci ztoc info\" command to get detailed info of ztoc"
        );
    }
    let content = state.content().await?;
    let document = content.read(&digest, MAX_DOCUMENT_BYTES).await?;
    let text = if args.json {
        document::compact(&document)?
    } else {
        document::indent(&document)?
    };
    show(&(text + "\n"))
}

/// Runs `index remove`.
pub(crate) async fn remove(global: &Global, args: &IndexRemove) -> Result<()> {
    let state = State::new(global);
    if !args.digests.is_empty() && !args.reference.is_empty() {
        bail!("please provide either index digests or image ref, but not both");
    }
    state.check_content_store()?;
    let artifacts = state.artifacts();
    if !args.reference.is_empty() {
        let target = state
            .containerd()
            .await?
            .image(&args.reference)
            .await?
            .target;
        for entry in artifacts.indexes_of(&target.digest)? {
            forget(&state, &entry).await?;
        }
    }
    for digest in &args.digests {
        forget(&state, &artifacts.index(digest)?).await?;
    }
    Ok(())
}

/// Deletes the content before the record: if deleting fails, the record still exists and the
/// command can be repeated.
async fn forget(state: &State<'_>, entry: &Entry) -> Result<()> {
    state.content().await?.delete(&entry.digest).await?;
    Ok(state.artifacts().remove(&[entry.digest])?)
}
