//! Creates version 1 indexes: artifacts that refer to an image.
//!
//! The image is unchanged. Each platform gets one index, whose subject is the platform's manifest.
//! If one platform has nothing to index, the indexes of earlier platforms remain valid, so the
//! result contains both the indexes and the failure.

use soci_oci::{Descriptor, Digest, Manifest, Platform};
use soci_store::{Labels, StoreError};

use crate::artifacts::ArtifactsError;
use crate::blobs::put_index;
use crate::builder::{self, BuildContext, BuildError, BuildOptions, Parts};
use crate::image::{Image, ImageError, Part, Platforms};
use crate::model::Version;
use crate::records::{self, IndexOf};

/// The label of containerd's image records that names the latest index. Earlier indexes have the
/// same label with a number appended.
const IMAGE_LABEL: &str = "containerd.io/gc.ref.content.soci-index";

/// Options for creating indexes.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The platforms that get an index.
    pub platforms: Platforms,
    /// Options for building the indexes.
    pub build: BuildOptions,
}

/// Why an index is missing for some or all platforms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The source is not a valid image for these platforms.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A store operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An index could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The results could not be recorded.
    #[error(transparent)]
    Records(#[from] ArtifactsError),
}

/// The created indexes, and the failure if there is one.
#[derive(Debug)]
pub struct Creation {
    /// The indexes in the order of the platforms, up to the first failure.
    pub indexes: Vec<CreatedIndex>,
    /// The results for the layers of the platform that has no index.
    pub without: Option<Parts>,
    /// Why later platforms have no index.
    pub failure: Option<CreateError>,
}

/// The index of one platform.
#[derive(Debug, Clone)]
pub struct CreatedIndex {
    /// The requested platform.
    pub platform: Platform,
    /// The manifest that the index refers to.
    pub subject: Descriptor,
    /// The index, with its artifact type set.
    pub index: Descriptor,
    /// The results for the layers.
    pub parts: Parts,
}

/// Creates and stores indexes for the image that `target` describes.
pub async fn create(
    context: &BuildContext,
    target: &Descriptor,
    options: &CreateOptions,
) -> Creation {
    let mut creation = Creation {
        indexes: Vec::new(),
        without: None,
        failure: None,
    };
    if let Err(error) = creation.run(context, target, options).await {
        creation.failure = Some(error);
    }
    creation
}

impl Creation {
    async fn run(
        &mut self,
        context: &BuildContext,
        target: &Descriptor,
        options: &CreateOptions,
    ) -> Result<(), CreateError> {
        let image = Image::open(&context.source, target).await?;
        let platforms = match (&options.platforms, &image.only) {
            // Records contain the host's full platform if the image is for the host.
            (Platforms::Default, Some(only)) if Platform::host().matches(only) => {
                vec![Platform::host()]
            }
            (platforms, _) => image.wanted(platforms).await?,
        };
        let sources = image.parts(platforms).await?;
        image
            .check_configs(&sources, context.observer.as_ref())
            .await?;
        let manifests: Vec<Manifest> = sources.iter().map(|part| part.manifest.clone()).collect();
        let built = builder::build(context, &manifests, &options.build).await?;
        let all: Vec<(Part, Parts)> = sources.into_iter().zip(built).collect();
        let indexed = all.iter().filter(|(_, parts)| parts.has_ztocs());
        let indexed: Vec<Platform> = indexed.map(|(part, _)| part.platform.clone()).collect();
        for (source, parts) in all {
            // One manifest of a platform with an index is enough.
            if parts.has_ztocs() || !indexed.contains(&source.platform) {
                self.write(context, &target.digest, source, parts).await?;
            }
        }
        Ok(())
    }

    async fn write(
        &mut self,
        context: &BuildContext,
        image: &Digest,
        source: Part,
        parts: Parts,
    ) -> Result<(), CreateError> {
        let Part {
            platform,
            descriptor,
            ..
        } = source;
        let subject = Descriptor::new(descriptor.media_type, descriptor.digest, descriptor.size);
        let Some(index) = parts.index(Version::V1, Some(subject.clone())) else {
            let nothing = Parts::nothing([&parts]);
            self.without = Some(parts);
            return Err(nothing.into());
        };
        let index = put_index(&context.store, &index).await?;
        let of = IndexOf {
            version: Version::V1,
            built_for: &subject.digest,
            manifest: &subject.digest,
            image,
            platform: platform.to_string(),
        };
        let entry = records::index(index.digest, index.size, of);
        self.indexes.push(CreatedIndex {
            platform,
            subject,
            index,
            parts,
        });
        records::write(context.records.as_ref(), vec![entry]).await?;
        Ok(())
    }
}

/// The labels to set on an image's record so that these indexes, latest last, and those that it
/// already names are protected as long as the image exists. The latest index gets the reference's
/// label; the index in that label before moves to a numbered label.
#[must_use]
pub fn image_labels(existing: &Labels, indexes: &[Digest]) -> Labels {
    let Some(latest) = indexes.last().map(ToString::to_string) else {
        return Labels::new();
    };
    let numbered = |number: usize| format!("{IMAGE_LABEL}.{number}");
    let mut all = existing.clone();
    let mut changed = Labels::new();
    let before = all.insert(IMAGE_LABEL.to_owned(), latest.clone());
    changed.insert(IMAGE_LABEL.to_owned(), latest);
    let earlier = indexes.iter().map(ToString::to_string);
    for digest in before.into_iter().chain(earlier) {
        let is_named =
            |(key, value): (&String, &String)| key.starts_with(IMAGE_LABEL) && *value == digest;
        if all.iter().any(is_named) {
            continue;
        }
        // There are more numbers than labels, so one is free.
        let free = (0..=all.len())
            .map(numbered)
            .find(|key| !all.contains_key(key));
        if let Some(key) = free {
            all.insert(key.clone(), digest.clone());
            changed.insert(key, digest);
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn label(rest: &str, name: &str) -> (String, String) {
        (format!("{IMAGE_LABEL}{rest}"), digest(name).to_string())
    }

    #[test]
    fn every_index_keeps_a_label_and_the_latest_has_the_references() {
        let none = Labels::new();
        assert_eq!(image_labels(&none, &[]), none);
        let one = image_labels(&none, &[digest("a")]);
        assert_eq!(one, [label("", "a")].into());
        let three = image_labels(&none, &[digest("a"), digest("b"), digest("c")]);
        let expected = [label("", "c"), label(".0", "a"), label(".1", "b")];
        assert_eq!(three, expected.into());
    }

    #[test]
    fn what_was_named_before_stays_named_once() {
        let existing: Labels = [
            label("", "a"),
            label(".0", "b"),
            ("other".to_owned(), "x".to_owned()),
        ]
        .into();
        let changed = image_labels(&existing, &[digest("b"), digest("c")]);
        assert_eq!(changed, [label("", "c"), label(".1", "a")].into());
        let same = image_labels(&existing, &[digest("a")]);
        assert_eq!(same, [label("", "a")].into());
        // The first index is the latest again and gets the main label. Its numbered label may stay.
        let swapped = image_labels(&existing, &[digest("b")]);
        assert_eq!(swapped, [label("", "b"), label(".1", "a")].into());
    }

    proptest! {
        #[test]
        fn prop_whatever_was_named_stays_named_and_the_latest_comes_first(
            rounds in prop::collection::vec(prop::collection::vec(0_u8..12, 1..4), 1..8)
        ) {
            let (mut labels, mut named) = (Labels::new(), Vec::new());
            for round in rounds {
                let indexes: Vec<Digest> = round.iter().map(|it| Digest::sha256(&[*it])).collect();
                labels.extend(image_labels(&labels, &indexes));
                named.extend(indexes.iter().map(ToString::to_string));
                prop_assert_eq!(labels.get(IMAGE_LABEL), named.last());
                for digest in &named {
                    prop_assert!(labels.values().any(|value| value == digest));
                }
            }
            // The latest index may also have a numbered label from before it was the latest.
            named.sort();
            named.dedup();
            prop_assert!(labels.len() <= named.len() + 1);
        }
    }
}
