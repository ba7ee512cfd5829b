//! Version 1 indexes: artifacts beside an image that refer to it.
//!
//! The image stays as it is. For each platform there is one index, whose subject is the platform's
//! manifest. What was made for some platforms is good though another one has nothing to index, so the
//! result has both: the indexes and why there are no more.

use soci_oci::store::{Labels, StoreError};
use soci_oci::{Descriptor, Digest, Manifest, Platform};

use crate::artifacts::ArtifactsError;
use crate::blobs::put_index;
use crate::builder::{self, BuildError, BuildOptions, Means, Parts};
use crate::image::{Image, ImageError, Part, Platforms};
use crate::model::Version;
use crate::records::{self, IndexOf};

/// The label of containerd's image records that names the latest index. Those before it have the same
/// name with a number behind it.
const IMAGE_LABEL: &str = "containerd.io/gc.ref.content.soci-index";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Platforms that get an index.
    pub platforms: Platforms,
    /// How the indexes are built.
    pub build: BuildOptions,
}

/// Why there is no index, or not for every platform.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// Not an image for these platforms.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The store does not take something.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An index could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// What was made could not be recorded.
    #[error(transparent)]
    Records(#[from] ArtifactsError),
}

/// What was created.
#[derive(Debug)]
pub struct Creation {
    /// In the order of the platforms, up to the first failure.
    pub indexes: Vec<CreatedIndex>,
    /// What became of the layers of a platform that has no index.
    pub without: Option<Parts>,
    /// Why there are no more.
    pub failure: Option<CreateError>,
}

/// An index of one platform.
#[derive(Debug, Clone)]
pub struct CreatedIndex {
    /// The platform as it was asked for.
    pub platform: Platform,
    /// The manifest that the index refers to.
    pub subject: Descriptor,
    /// The index; its artifact type is stated.
    pub index: Descriptor,
    /// What became of the layers.
    pub parts: Parts,
}

/// Makes indexes of the image that `target` describes, and stores them.
pub async fn create(means: &Means, target: &Descriptor, options: &CreateOptions) -> Creation {
    let mut creation = Creation {
        indexes: Vec::new(),
        without: None,
        failure: None,
    };
    if let Err(error) = creation.run(means, target, options).await {
        creation.failure = Some(error);
    }
    creation
}

impl Creation {
    async fn run(
        &mut self,
        means: &Means,
        target: &Descriptor,
        options: &CreateOptions,
    ) -> Result<(), CreateError> {
        let image = Image::open(&means.source, target).await?;
        let platforms = match (&options.platforms, &image.only) {
            // As it is recorded: the host's platform in full where that is meant.
            (Platforms::Default, Some(only)) if Platform::host().matches(only) => {
                vec![Platform::host()]
            }
            (platforms, _) => image.wanted(platforms).await?,
        };
        let sources = image.parts(platforms).await?;
        let manifests: Vec<Manifest> = sources.iter().map(|part| part.manifest.clone()).collect();
        let built = builder::build(means, &manifests, &options.build).await?;
        for (source, parts) in sources.into_iter().zip(built) {
            self.write(means, &target.digest, source, parts).await?;
        }
        Ok(())
    }

    async fn write(
        &mut self,
        means: &Means,
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
        let index = put_index(&means.store, &index).await?;
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
        records::write(means.records.as_ref(), vec![entry]).await?;
        Ok(())
    }
}

/// The labels that an image's record needs so that these indexes, the latest last, stay as long as the
/// image, and those that it names already. The latest has the reference's label; an index that stood
/// there moves to one with a number.
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
        // One of so many numbers is free.
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
        // An index that was first and is latest again moves up; its numbered label may stay.
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
            // The latest may have a number besides, from when it was not the latest.
            named.sort();
            named.dedup();
            prop_assert!(labels.len() <= named.len() + 1);
        }
    }
}
