//! Checks the image: its index, its manifests, and the SOCI index of each manifest.

use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::{Descriptor, Digest, ImageConfig, ImageIndex, Manifest, Platform, media_type};
use soci_store::StoreError;

use super::{Part, Problem, Walk};
use crate::discover::{Discovery, annotated};
use crate::model::{ARTIFACT_TYPE_V1, ARTIFACT_TYPE_V2, INDEX_DIGEST, MANIFEST_DIGEST, Version};

/// The members of an image index by kind.
struct Members<'a> {
    images: Vec<&'a Descriptor>,
    indexes: Vec<&'a Descriptor>,
}

impl<'a> Members<'a> {
    fn of(index: &'a ImageIndex) -> Self {
        // Some old tools drop the artifact type when they copy an index.
        let is_index = |member: &&Descriptor| {
            member.annotation(MANIFEST_DIGEST).is_some()
                || matches!(
                    member.artifact_type.as_str(),
                    ARTIFACT_TYPE_V1 | ARTIFACT_TYPE_V2
                )
        };
        let is_image = |member: &&Descriptor| {
            let unknown = member.platform.as_ref().is_some_and(Platform::is_unknown);
            media_type::is_manifest(&member.media_type) && !unknown
        };
        let (indexes, others): (Vec<_>, Vec<_>) = index.manifests().iter().partition(is_index);
        Self {
            images: others.into_iter().filter(is_image).collect(),
            indexes,
        }
    }

    /// The SOCI indexes for a manifest.
    fn for_manifest(&self, manifest: &Digest) -> impl Iterator<Item = &'a Descriptor> {
        let manifest = manifest.to_string();
        let indexes = self.indexes.iter().copied();
        indexes.filter(move |entry| entry.annotation(MANIFEST_DIGEST) == Some(&manifest))
    }
}

impl Walk<'_> {
    pub(super) async fn image(&mut self, target: &Descriptor) -> Result<(), StoreError> {
        let part = if media_type::is_index(&target.media_type) {
            self.index(target).await?;
            Part::ImageIndex
        } else if media_type::is_manifest(&target.media_type) {
            self.manifest(target, None).await?;
            Part::Manifest
        } else {
            let problem = Problem::NoImage(target.media_type.clone());
            self.tell(Part::Manifest, target.digest, problem);
            return Ok(());
        };
        self.read_layers().await?;
        if self.summary.indexes == 0 && self.summary.problems == 0 {
            self.tell(part, target.digest, Problem::NoIndex);
        }
        Ok(())
    }

    async fn index(&mut self, target: &Descriptor) -> Result<(), StoreError> {
        let Some(index) = self
            .document::<ImageIndex>(Part::ImageIndex, target)
            .await?
        else {
            return Ok(());
        };
        let members = Members::of(&index);
        for wanted in self.options.platforms.clone() {
            let mut images = members.images.iter();
            if !images.any(|image| is_for(image, &wanted)) {
                self.tell(Part::ImageIndex, target.digest, Problem::NoPlatform(wanted));
            }
        }
        for image in &members.images {
            let wanted = &self.options.platforms;
            if wanted.is_empty() || wanted.iter().any(|wanted| is_for(image, wanted)) {
                self.member(image, &members).await?;
            }
        }
        self.entries(&members);
        self.referring(&members).await
    }

    /// Checks a manifest of an image index. It may be missing if its SOCI index is missing too.
    async fn member(
        &mut self,
        image: &Descriptor,
        members: &Members<'_>,
    ) -> Result<(), StoreError> {
        if self.options.store.size(&image.digest).await?.is_some() {
            return self.manifest(image, Some(members)).await;
        }
        for entry in members.for_manifest(&image.digest) {
            if self.options.store.size(&entry.digest).await?.is_some() {
                self.tell(Part::Manifest, image.digest, Problem::Missing);
                return Ok(());
            }
        }
        self.summary.absent += 1;
        Ok(())
    }

    /// Checks that the entries of SOCI indexes agree with the entries of manifests.
    fn entries(&mut self, members: &Members<'_>) {
        for entry in &members.indexes {
            if entry.artifact_type == ARTIFACT_TYPE_V1 {
                continue;
            }
            if entry.artifact_type != ARTIFACT_TYPE_V2 {
                let problem = Problem::ArtifactType(entry.artifact_type.clone());
                self.tell(Part::SociIndex, entry.digest, problem);
            }
            let named = entry.annotation(MANIFEST_DIGEST).unwrap_or_default();
            let mut images = members.images.iter();
            let Some(image) = images.find(|image| image.digest.to_string() == named) else {
                let problem = Problem::Stray(named.to_owned());
                self.tell(Part::SociIndex, entry.digest, problem);
                continue;
            };
            let (own, other) = (entry.platform.as_ref(), image.platform.as_ref());
            let agree = match (own, other) {
                (Some(own), Some(other)) => own.matches(other),
                (own, other) => own == other,
            };
            if !agree {
                let problem = Problem::Platform(shown(own), shown(other));
                self.tell(Part::SociIndex, entry.digest, problem);
            }
            if image.annotation(INDEX_DIGEST) != Some(&entry.digest.to_string()) {
                let problem = Problem::Unnamed(image.digest);
                self.tell(Part::SociIndex, entry.digest, problem);
            }
        }
    }

    /// Checks version 1 indexes that refer to the image.
    async fn referring(&mut self, members: &Members<'_>) -> Result<(), StoreError> {
        for entry in &members.indexes {
            if entry.artifact_type != ARTIFACT_TYPE_V1 {
                continue;
            }
            let index = self.document::<Manifest>(Part::SociIndex, entry).await?;
            let Some(subject) = index.and_then(|index| index.subject) else {
                continue;
            };
            let mut images = members.images.iter();
            if let Some(image) = images.find(|image| image.digest == subject.digest)
                && let Some(manifest) = self.document(Part::Manifest, image).await?
            {
                self.soci_index(entry, Version::V1, image, &manifest)
                    .await?;
            }
        }
        Ok(())
    }

    async fn manifest(
        &mut self,
        from: &Descriptor,
        members: Option<&Members<'_>>,
    ) -> Result<(), StoreError> {
        let Some(manifest) = self.document::<Manifest>(Part::Manifest, from).await? else {
            return Ok(());
        };
        self.summary.manifests += 1;
        self.config(from, &manifest).await?;
        for layer in manifest.layers() {
            let may_be_elsewhere =
                self.options.may_lack_layers || media_type::is_nondistributable(&layer.media_type);
            if self.layers.insert(layer.digest) && !may_be_elsewhere {
                self.presence(Part::Layer, layer).await?;
            }
        }
        match annotated(&manifest) {
            Ok(Discovery::Found(index, _)) => {
                self.named_index(index, from, &manifest, members).await?;
            }
            Ok(Discovery::NoIndex) => {
                let listed = members.and_then(|them| them.for_manifest(&from.digest).next());
                if let Some(entry) = listed {
                    let problem = Problem::NotNaming(entry.digest);
                    self.tell(Part::Manifest, from.digest, problem);
                }
            }
            Err(error) => {
                let problem = Problem::Annotation(INDEX_DIGEST, error.text, error.source);
                self.tell(Part::Manifest, from.digest, problem);
            }
        }
        for (_, index) in self.referrers_of(&from.digest) {
            self.soci_index(&index, Version::V1, from, &manifest)
                .await?;
        }
        self.queue_rest(&manifest);
        Ok(())
    }

    /// Checks the configuration, and records what it says about the layers.
    async fn config(&mut self, of: &Descriptor, manifest: &Manifest) -> Result<(), StoreError> {
        let from = &manifest.config;
        if !media_type::is_config(&from.media_type) {
            return self.presence(Part::Config, from).await;
        }
        let read = match self.read(from, MAX_DOCUMENT_BYTES).await? {
            Err(Problem::Missing) => Err(Problem::NoConfig(of.digest)),
            read => read,
        };
        let bytes = self.report(Part::Config, from, read);
        let config = bytes.and_then(|bytes| self.parse(Part::Config, from, &bytes));
        let Some(config): Option<ImageConfig> = config else {
            return Ok(());
        };
        let (layers, diff_ids) = (manifest.layers(), config.rootfs.diff_ids);
        let is_layer = |layer: &&Descriptor| media_type::is_layer(&layer.media_type);
        let layers: Vec<&Descriptor> = layers.iter().filter(is_layer).collect();
        if layers.len() != diff_ids.len() {
            let problem = Problem::DiffIds(diff_ids.len(), layers.len());
            self.tell(Part::Config, from.digest, problem);
            return Ok(());
        }
        for (layer, diff_id) in layers.into_iter().zip(diff_ids) {
            let stated = self.diff_ids.entry(layer.digest).or_default();
            stated.insert((from.digest, diff_id));
        }
        Ok(())
    }

    fn referrers_of(&self, manifest: &Digest) -> Vec<(Digest, Descriptor)> {
        let referrers = self.options.referrers.iter();
        let own = referrers.filter(|(subject, _)| subject == manifest);
        own.cloned().collect()
    }

    /// Checks the index that a manifest names.
    async fn named_index(
        &mut self,
        digest: Digest,
        from: &Descriptor,
        manifest: &Manifest,
        members: Option<&Members<'_>>,
    ) -> Result<(), StoreError> {
        if let Some(members) = members {
            let stated = from.annotation(INDEX_DIGEST).unwrap_or_default();
            if stated != digest.to_string() {
                let problem = Problem::Binding(digest, stated.to_owned());
                self.tell(Part::Manifest, from.digest, problem);
            }
            let mut entries = members.for_manifest(&from.digest);
            if let Some(entry) = entries.find(|entry| entry.digest == digest) {
                return self.soci_index(entry, Version::V2, from, manifest).await;
            }
            self.tell(Part::Manifest, from.digest, Problem::Unlisted(digest));
        }
        match self.options.store.size(&digest).await? {
            Some(size) => {
                let index = Descriptor::new(media_type::OCI_MANIFEST, digest, size);
                self.soci_index(&index, Version::V2, from, manifest).await
            }
            None => {
                self.tell(Part::SociIndex, digest, Problem::Missing);
                Ok(())
            }
        }
    }
}

fn is_for(image: &Descriptor, wanted: &Platform) -> bool {
    let offered = image.platform.as_ref();
    offered.is_some_and(|offered| wanted.matches(offered))
}

fn shown(platform: Option<&Platform>) -> String {
    platform.map_or_else(|| "none".to_owned(), ToString::to_string)
}
