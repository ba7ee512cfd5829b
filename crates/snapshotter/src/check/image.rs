//! An image in its registry: whether this node may read it, and whether it has an index.

use soci_index::discover::annotated;
use soci_index::{Discovery, SociIndex, Version};
use soci_oci::manifest::{ImageIndex, Manifest, parse};
use soci_oci::platform::Platform;
use soci_oci::reference::ImageRef;
use soci_oci::{Descriptor, Digest, media_type};
use soci_registry::{RawManifest, Registry, RegistryError};

use super::row::Row;
use crate::args::Part;
use crate::config::Config;
use crate::daemon;

/// Bytes of the ranged request, from the middle of a layer.
const SAMPLE: u64 = 1024;

const IMAGE: &str = "image";
const INDEX: &str = "image index";
const RANGES: &str = "image ranges";

/// Looks an image up with the registry settings and credentials of the daemon.
pub(super) async fn rows(name: &str, config: &Config) -> Vec<Row> {
    let image = match ImageRef::parse(name) {
        Ok(image) => image,
        Err(error) => {
            return vec![Row::problem(
                Part::Image,
                IMAGE,
                format!("{name:?} is not a reference: {error}"),
                "write it as registry/repository:tag",
            )];
        }
    };
    let registry = match daemon::registry(config) {
        Ok(registry) => registry,
        Err(error) => {
            return vec![Row::problem(
                Part::Image,
                IMAGE,
                format!("{error:#}"),
                "correct the registry settings in the daemon's configuration",
            )];
        }
    };
    let look = Look { image, registry };
    let (digest, manifest) = match look.manifest().await {
        Ok(found) => found,
        Err(row) => return vec![*row],
    };
    let layers = manifest.layers();
    let bytes: u64 = layers.iter().map(|layer| layer.size).sum();
    let shown = format!(
        "{}: manifest {digest}, {} layers, {} MiB",
        look.image,
        layers.len(),
        bytes >> 20
    );
    vec![
        Row::ok(Part::Image, IMAGE, shown),
        look.index(&digest, &manifest, config).await,
        look.ranges(&manifest).await,
    ]
}

struct Look {
    image: ImageRef,
    registry: Registry,
}

impl Look {
    /// The manifest for this machine.
    async fn manifest(&self) -> Result<(Digest, Manifest), Box<Row>> {
        let refused = |error: &dyn std::error::Error| Box::new(self.refused(error));
        let root = self.registry.root(&self.image).await;
        let mut raw = root.map_err(|error| refused(&error))?;
        if let Some(chosen) = chosen(&raw).map_err(|why| self.unusable(why))? {
            let found = self.registry.manifest(&self.image, &chosen.digest).await;
            raw = found.map_err(|error| refused(&error))?;
        }
        let manifest = parse(&raw.bytes, &raw.media_type);
        let manifest = manifest.map_err(|error| self.unusable(error.to_string()))?;
        Ok((raw.digest, manifest))
    }

    fn refused(&self, error: &dyn std::error::Error) -> Row {
        let (found, host) = (crate::image::explain(error), self.image.host());
        Row::problem(
            Part::Image,
            IMAGE,
            found,
            format!(
                "check the name, the network and the credentials for {host}: docs/credentials.md lists where the daemon looks; what pulls brought to [cri_keychain] is known to the daemon only"
            ),
        )
    }

    fn unusable(&self, why: String) -> Box<Row> {
        let found = format!("{}: {why}", self.image);
        let remedy = "use an image for this platform, in the OCI or Docker format";
        Box::new(Row::problem(Part::Image, IMAGE, found, remedy))
    }

    async fn index(&self, digest: &Digest, manifest: &Manifest, config: &Config) -> Row {
        let (v1, v2) = (
            config.pull_modes.soci_v1.enable,
            config.pull_modes.soci_v2.enable,
        );
        let named = match annotated(manifest) {
            Ok(Discovery::Found(index, _)) => Some(index),
            Ok(Discovery::NoIndex) => None,
            Err(error) => {
                let found = crate::image::explain(&error);
                return Row::problem(Part::Image, INDEX, found, "convert the image again");
            }
        };
        if let Some(index) = named {
            let row = self.read(index, manifest, "version 2").await;
            return enabled(row, v2, "soci_v2");
        }
        let wanted = Version::V1.artifact_type();
        let referrers = self.registry.referrers(&self.image, digest, wanted).await;
        match referrers {
            Ok(found) => match found.first() {
                Some(index) => {
                    let row = self.read(index.digest, manifest, "version 1").await;
                    enabled(row, v1, "soci_v1")
                }
                None => without_index("the image has no SOCI index"),
            },
            Err(RegistryError::NotFound { .. }) => without_index("the image has no SOCI index"),
            Err(error) => without_index(&format!(
                "the manifest names no index, and its referrers cannot be listed: {}",
                crate::image::explain(&error)
            )),
        }
    }

    /// Reads the index and counts the layers that it covers.
    async fn read(&self, digest: Digest, manifest: &Manifest, version: &str) -> Row {
        let bytes = match self.registry.manifest(&self.image, &digest).await {
            Ok(raw) => raw.bytes,
            Err(error) => {
                return Row::problem(
                    Part::Image,
                    INDEX,
                    format!("{version}: {}", crate::image::explain(&error)),
                    "copy the index together with the image, for example with `soci convert`",
                );
            }
        };
        match SociIndex::parse(&bytes) {
            Ok(index) => {
                let layers = manifest.layers();
                let covered = layers
                    .iter()
                    .filter(|layer| index.ztoc_of(&layer.digest).is_some());
                let (covered, all) = (covered.count(), layers.len());
                let found = format!("{version}, {digest}: {covered} of {all} layers have a zTOC");
                match covered {
                    0 => Row::problem(Part::Image, INDEX, found, "convert the image again"),
                    _ => Row::ok(Part::Image, INDEX, found),
                }
            }
            Err(error) => Row::problem(
                Part::Image,
                INDEX,
                format!("{version}, {digest}: {}", crate::image::explain(&error)),
                "convert the image again",
            ),
        }
    }

    /// Reads a range from the middle of the largest layer.
    async fn ranges(&self, manifest: &Manifest) -> Row {
        let Some(layer) = manifest.layers().iter().max_by_key(|layer| layer.size) else {
            return Row::ok(Part::Image, RANGES, "the image has no layers");
        };
        match self.sample(layer).await {
            Ok(bytes) => Row::ok(
                Part::Image,
                RANGES,
                format!(
                    "the registry answers requests for ranges ({bytes} bytes of {})",
                    layer.digest
                ),
            ),
            Err(why) => Row::problem(
                Part::Image,
                RANGES,
                format!("{}: {why}", layer.digest),
                "use a registry or mirror that supports range requests for blobs",
            ),
        }
    }

    async fn sample(&self, layer: &Descriptor) -> Result<usize, String> {
        let blob = self.registry.blob(&self.image, layer);
        let blob = blob.map_err(|error| crate::image::explain(&error))?;
        let start = layer.size / 2;
        let end = start.saturating_add(SAMPLE).min(layer.size);
        let body = blob.fetch(start..end).await;
        let body = body.map_err(|error| crate::image::explain(&error))?;
        let bytes = body.collect().await;
        Ok(bytes.map_err(|error| crate::image::explain(&error))?.len())
    }
}

/// The member for this machine, if the document is an index of platforms.
fn chosen(raw: &RawManifest) -> Result<Option<Descriptor>, String> {
    if !media_type::is_index(&raw.media_type) {
        return Ok(None);
    }
    let index: ImageIndex =
        parse(&raw.bytes, &raw.media_type).map_err(|error| error.to_string())?;
    let host = Platform::host();
    let found = index.manifests().iter().find(|member| {
        let platform = member.platform.as_ref();
        platform.is_some_and(|platform| host.matches(platform))
    });
    match found {
        Some(member) => Ok(Some(member.clone())),
        None => Err(format!("no manifest for {host}")),
    }
}

fn without_index(found: &str) -> Row {
    Row::warning(
        Part::Image,
        INDEX,
        found,
        "this image is pulled as a whole before it starts; `soci convert` makes a copy with an index",
    )
}

/// Warns if the index is good but the daemon does not look for it.
fn enabled(row: Row, enabled: bool, mode: &str) -> Row {
    if enabled || row.remedy.is_some() {
        return row;
    }
    Row::warning(
        row.part,
        row.name,
        format!("{}, but [pull_modes.{mode}] is disabled", row.found),
        format!("set [pull_modes.{mode}] enable = true in the daemon's configuration"),
    )
}
