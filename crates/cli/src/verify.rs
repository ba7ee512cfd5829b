//! `soci verify`: checks an image against its indexes.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use indicatif::HumanBytes;
use soci_index::ARTIFACT_TYPE_V1;
use soci_index::artifacts::Kind;
use soci_index::standalone::LocalImage;
use soci_index::verify::{Finding, Report, Summary, Verification};
use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::reference::ImageRef;
use soci_oci::{Descriptor, Digest, ImageIndex, Platform, media_type};
use soci_registry::{Registry, RegistryError};
use soci_store::layout::Layout;
use soci_store::registry::RegistryStore;
use soci_store::{Content, ContentStore, Stacked};

use crate::access;
use crate::args::{Global, Verify};
use crate::output::{self, Progress};
use crate::source;
use crate::state::State;
use crate::transport::{Transport, hinted};

/// An image in any location.
struct Image {
    store: Arc<dyn ContentStore>,
    target: Descriptor,
    /// Version 1 indexes with the manifest that each is listed for.
    referrers: Vec<(Digest, Descriptor)>,
    /// True for containerd, which has only the layers that were unpacked.
    may_lack_layers: bool,
    /// Contains temporary blobs.
    _work: Option<tempfile::TempDir>,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: &Verify) -> Result<()> {
    if args.image.as_os_str().is_empty() {
        bail!("please provide an image to verify");
    }
    if args.has_more {
        bail!("verify checks one image at a time: run it once for each");
    }
    let platforms = args.platforms.iter().map(|text| {
        let platform = text.parse::<Platform>();
        platform.map_err(|error| anyhow!("could not parse platform {text}: {error}"))
    });
    let platforms: Vec<Platform> = platforms.collect::<Result<_>>()?;
    let progress = Progress::new(global.progress);
    let image = open(global, args, &progress).await?;
    if args.deep {
        progress.phase("reading", None);
    }
    let count = progress.counter();
    let verification = Verification {
        store: image.store,
        deep: args.deep,
        platforms,
        may_lack_layers: image.may_lack_layers,
        referrers: image.referrers,
        progress: Arc::new(count),
    };
    let mut problems = Vec::new();
    let mut found = |finding: Finding| {
        if args.json {
            problems.push(finding);
        } else {
            progress.aside(|| output::print(&format!("{finding}\n")));
        }
    };
    let work = async { Ok(verification.run(&image.target, &mut found).await?) };
    let summary = crate::signals::unless_interrupted(work).await;
    progress.finish();
    let summary = summary?;
    let name = args.image.to_string_lossy().into_owned();
    if args.json {
        let report = Report {
            image: name.clone(),
            digest: image.target.digest,
            ok: summary.problems == 0,
            problems,
            checked: summary,
        };
        output::json(&report)?;
    } else {
        output::print(&format!("{}\n", summary_line(&summary)));
    }
    match summary.problems {
        0 => Ok(()),
        1 => bail!("{name}: 1 problem found"),
        problems => bail!("{name}: {problems} problems found"),
    }
}

/// A one-line summary of what was checked.
fn summary_line(summary: &Summary) -> String {
    let of = |count: usize, what: &str, many: &str| {
        format!("{count} {}", if count == 1 { what } else { many })
    };
    let mut text = format!(
        "checked {}, {}, {} of {}",
        of(summary.manifests, "manifest", "manifests"),
        of(summary.indexes, "SOCI index", "SOCI indexes"),
        of(summary.ztocs, "zTOC", "zTOCs"),
        of(summary.layers, "layer", "layers"),
    );
    if summary.prefetches > 0 {
        text += &format!(
            ", {}",
            of(
                summary.prefetches,
                "prefetch artifact",
                "prefetch artifacts"
            )
        );
    }
    if summary.bytes > 0 {
        text += &format!(", read {}", HumanBytes(summary.bytes));
    }
    if summary.absent > 0 {
        text += &format!(
            "; {} not present",
            of(summary.absent, "manifest is", "manifests are")
        );
    }
    if summary.not_unpacked > 0 {
        text += &format!(
            "; {} not compared (zstd, encrypted, or unknown compression)",
            of(summary.not_unpacked, "diff-ID is", "diff-IDs are")
        );
    }
    let verdict = match summary.problems {
        0 => "no problems found".to_owned(),
        count => of(count, "problem", "problems"),
    };
    format!("{text}: {verdict}")
}

async fn open(global: &Global, args: &Verify, progress: &Progress) -> Result<Image> {
    match Transport::parse(&args.image)? {
        Transport::Registry(image) => {
            let trace = access::debugged(global, progress);
            let registry = access::registry(&args.registry, &[&image], trace)?;
            in_registry(registry, image).await
        }
        Transport::Folder { path, tag } | Transport::Archive { path, tag } => {
            on_disk(source::tagged(&path, tag.as_deref(), args.follow_links)?).await
        }
        Transport::DockerArchive { path, name } => {
            on_disk(LocalImage::open_docker(&path, name.as_deref()).await?).await
        }
        Transport::Pipe => on_disk(source::piped(&std::env::temp_dir()).await?).await,
        Transport::Path(path) if path.exists() => {
            on_disk(source::open(&path, args.follow_links)?).await
        }
        Transport::Path(path) => match path.to_str() {
            Some(name) => {
                let image = in_containerd(global, name).await;
                image.map_err(|error| hinted(error, &path))
            }
            None => bail!("image names are UTF-8"),
        },
    }
}

/// A layout: its only image, or everything that its `index.json` lists.
async fn on_disk(source: LocalImage) -> Result<Image> {
    let index = source.index()?;
    let lower = source.store();
    let (store, target, work) = match index.manifests() {
        [] => bail!("index.json contains no manifests"),
        [only] => (lower, only.clone(), None),
        _ => {
            // Treat the list itself as the image.
            let bytes = source.index_json()?;
            let work = tempfile::tempdir().context("failed to create temp directory")?;
            let upper: Arc<dyn ContentStore> = Arc::new(Layout::create(work.path())?.unsynced());
            let target = Descriptor::of(media_type::OCI_INDEX, &bytes);
            upper.put(&target, Content::Bytes(bytes)).await?;
            let store: Arc<dyn ContentStore> = Arc::new(Stacked { upper, lower });
            (store, target, Some(work))
        }
    };
    Ok(Image {
        store,
        target,
        referrers: Vec::new(),
        may_lack_layers: false,
        _work: work,
    })
}

/// An image in a registry, with the version 1 indexes that refer to its manifests.
async fn in_registry(registry: Registry, image: ImageRef) -> Result<Image> {
    let store = RegistryStore::new(registry.clone(), image.clone());
    let target = store.root().await?;
    let mut manifests = vec![target.clone()];
    if media_type::is_index(&target.media_type) {
        let bytes = store.read(&target.digest, MAX_DOCUMENT_BYTES).await?;
        let index: ImageIndex = soci_oci::manifest::parse(&bytes, &target.media_type)?;
        manifests = index.manifests.unwrap_or_default();
    }
    let mut referrers = Vec::new();
    for manifest in manifests {
        let listed = registry.referrers(&image, &manifest.digest, ARTIFACT_TYPE_V1);
        let listed = match listed.await {
            Err(RegistryError::NotFound { .. }) => Vec::new(),
            other => other.context("failed to fetch list of referrers")?,
        };
        store.learn(&listed);
        referrers.extend(listed.into_iter().map(|index| (manifest.digest, index)));
    }
    Ok(Image {
        store: Arc::new(store),
        target,
        referrers,
        may_lack_layers: false,
        _work: None,
    })
}

async fn in_containerd(global: &Global, name: &str) -> Result<Image> {
    let state = State::new(global);
    let containerd = state.containerd().await?;
    let target = containerd.image(name).await?.target;
    let store: Arc<dyn ContentStore> = Arc::new(Stacked {
        upper: state.content().await?,
        lower: Arc::new(containerd.clone()),
    });
    let referrers = recorded(&state, store.as_ref()).await?;
    Ok(Image {
        store,
        target,
        referrers,
        may_lack_layers: true,
        _work: None,
    })
}

/// The recorded version 1 indexes that still exist. For a manifest without any, the newest missing
/// one.
async fn recorded(
    state: &State<'_>,
    store: &dyn ContentStore,
) -> Result<Vec<(Digest, Descriptor)>> {
    let artifacts = state.artifacts();
    let mut entries = tokio::task::spawn_blocking(move || artifacts.all()).await??;
    entries.retain(|it| it.kind == Kind::Index && it.artifact_type == ARTIFACT_TYPE_V1);
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.created_at));
    let (mut present, mut gone) = (Vec::new(), Vec::new());
    for entry in &entries {
        let Ok(manifest) = entry.oci_digest.parse::<Digest>() else {
            continue;
        };
        let index = Descriptor::new(media_type::OCI_MANIFEST, entry.digest, entry.size);
        match store.size(&entry.digest).await? {
            Some(_) => present.push((manifest, index)),
            None => gone.push((manifest, index)),
        }
    }
    for (manifest, index) in gone {
        if !present.iter().any(|(known, _)| *known == manifest) {
            present.push((manifest, index));
        }
    }
    Ok(present)
}
