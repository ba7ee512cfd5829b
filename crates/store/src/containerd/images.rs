//! containerd's image records: name, target and labels.

use tonic::transport::Channel;
use tonic::{Code, Status};

use super::api::containerd::services::images::v1 as api;
use super::api::containerd::types;
use super::{Containerd, MAX_MESSAGE, failure};
use crate::{Labels, StoreError};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;

/// An image's name and its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// The name, verbatim.
    pub name: String,
    /// The manifest or index that the name refers to.
    pub target: Descriptor,
    /// Labels of the record.
    pub labels: Labels,
}

impl Containerd {
    /// Returns the image with exactly this name.
    pub async fn image(&self, name: &str) -> Result<ImageRecord, StoreError> {
        let request = self.request(api::GetImageRequest {
            name: name.to_owned(),
        });
        let answer = match self.images().get(request).await {
            Err(status) if status.code() == Code::NotFound => {
                return Err(StoreError::NoImage(name.to_owned()));
            }
            other => other.map_err(failure("get image"))?,
        };
        record(answer.into_inner().image.unwrap_or_default())
    }

    /// Returns every image that refers to this manifest or index.
    pub async fn images_of(&self, target: &Digest) -> Result<Vec<ImageRecord>, StoreError> {
        self.list_images(vec![format!("target.digest=={target}")])
            .await
    }

    /// Returns every image, sorted by name.
    pub async fn all_images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        let mut images = self.list_images(Vec::new()).await?;
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    async fn list_images(&self, filters: Vec<String>) -> Result<Vec<ImageRecord>, StoreError> {
        let request = self.request(api::ListImagesRequest { filters });
        let answer = self.images().list(request).await;
        let images = answer.map_err(failure("list images"))?.into_inner().images;
        images.into_iter().map(record).collect()
    }

    /// Adds labels to an image record. Other labels are preserved, including labels that other
    /// clients add concurrently.
    pub async fn label_image(&self, name: &str, labels: &Labels) -> Result<(), StoreError> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let image = api::Image {
            name: name.to_owned(),
            labels: labels.clone(),
            // The field mask excludes the target, so it is not written, but containerd crashes
            // without one.
            target: Some(types::Descriptor::default()),
            ..api::Image::default()
        };
        let update = api::UpdateImageRequest {
            image: Some(image),
            update_mask: Some(prost_types::FieldMask { paths }),
            source_date_epoch: None,
        };
        match self.images().update(self.request(update)).await {
            Err(status) if status.code() == Code::NotFound => {
                Err(StoreError::NoImage(name.to_owned()))
            }
            other => other.map(drop).map_err(failure("label image")),
        }
    }

    /// Points a name at a manifest or index. An existing record keeps its labels. `epoch` replaces
    /// the current time in the record, in seconds of Unix time.
    pub async fn put_image(
        &self,
        name: &str,
        target: &Descriptor,
        epoch: Option<i64>,
    ) -> Result<(), StoreError> {
        let image = api::Image {
            name: name.to_owned(),
            labels: Labels::new(),
            target: Some(types::Descriptor {
                media_type: target.media_type.clone(),
                digest: target.digest.to_string(),
                size: i64::try_from(target.size).unwrap_or(i64::MAX),
                annotations: target.annotations.clone(),
            }),
            created_at: None,
            updated_at: None,
        };
        let source_date_epoch = epoch.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
        let create = api::CreateImageRequest {
            image: Some(image.clone()),
            source_date_epoch,
        };
        match self.images().create(self.request(create)).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            other => return other.map(drop).map_err(failure("create image")),
        }
        // Update only the target, because other clients may be changing the labels.
        let update = api::UpdateImageRequest {
            image: Some(image),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["target".to_owned()],
            }),
            source_date_epoch,
        };
        self.images()
            .update(self.request(update))
            .await
            .map_err(failure("update image"))?;
        Ok(())
    }

    fn images(&self) -> api::images_client::ImagesClient<Channel> {
        api::images_client::ImagesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}

fn record(image: api::Image) -> Result<ImageRecord, StoreError> {
    let api::Image {
        name,
        labels,
        target,
        created_at: _,
        updated_at: _,
    } = image;
    let types::Descriptor {
        media_type,
        digest,
        size,
        annotations,
    } = target.unwrap_or_default();
    let invalid =
        |cause: String| failure("get image")(Status::internal(format!("{name}: {cause}")));
    let digest = digest
        .parse()
        .map_err(|error| invalid(format!("{digest}: {error}")))?;
    let size = u64::try_from(size).map_err(|error| invalid(error.to_string()))?;
    let target = Descriptor {
        annotations,
        ..Descriptor::new(media_type, digest, size)
    };
    Ok(ImageRecord {
        name,
        target,
        labels,
    })
}
