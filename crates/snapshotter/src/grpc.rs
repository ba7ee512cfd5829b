//! containerd's snapshots service. The only module that knows gRPC status codes.

mod drain;
mod filter;

use std::time::SystemTime;

use tonic::{Request, Response, Status};

pub use self::drain::Drained;
use self::filter::{Fields, FilterError, Filters};
use self::proto::containerd::services::snapshots::v1 as api;
use self::proto::containerd::types;
use crate::image::explain;
use crate::snapshots::ids::OwnersError;
use crate::snapshots::metadata::{Info, Kind, LabelUpdate, MetadataError};
use crate::snapshots::{Mount, SnapshotError, Snapshotter};

/// containerd's API: messages, the server trait, and a client for tests.
#[allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::allow_attributes_without_reason,
    clippy::all,
    reason = "generated from the definitions in proto/"
)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/containerd.rs"));
}

/// Largest message in either direction in bytes, like containerd's own limit. A list of thousands
/// of snapshots exceeds gRPC's default of 4 MiB.
const MESSAGE_LIMIT: usize = 16 << 20;
/// Snapshots per message of a list, as in containerd.
const LIST_BLOCK: usize = 100;

/// The service that answers containerd.
pub type Server = api::snapshots_server::SnapshotsServer<Service>;

/// containerd's snapshots service.
#[derive(Debug)]
pub struct Service {
    snapshotter: Snapshotter,
}

/// Creates the service with its message limits.
pub fn server(snapshotter: Snapshotter) -> Server {
    Server::new(Service { snapshotter })
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT)
}

#[tonic::async_trait]
impl api::snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let namespace = namespace(&request);
        let api::PrepareSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let prepared = self
            .snapshotter
            .prepare(namespace, key, name(parent), labels)
            .await;
        let mounts = prepared.map_err(status)?.into_iter().map(mount).collect();
        Ok(Response::new(api::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let api::ViewSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = request.into_inner();
        let mounts = self
            .snapshotter
            .view(key, name(parent), labels)
            .await
            .map_err(status)?;
        let mounts = mounts.into_iter().map(mount).collect();
        Ok(Response::new(api::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<api::MountsRequest>,
    ) -> Result<Response<api::MountsResponse>, Status> {
        let mounts = self
            .snapshotter
            .mounts(request.into_inner().key)
            .await
            .map_err(status)?;
        let mounts = mounts.into_iter().map(mount).collect();
        Ok(Response::new(api::MountsResponse { mounts }))
    }

    async fn commit(
        &self,
        request: Request<api::CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let api::CommitSnapshotRequest {
            name: target,
            key,
            labels,
            parent,
            ..
        } = request.into_inner();
        self.snapshotter
            .commit(target, key, labels, name(parent))
            .await
            .map_err(status)?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<api::RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        self.snapshotter
            .remove(request.into_inner().key)
            .await
            .map_err(status)?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let found = self
            .snapshotter
            .stat(request.into_inner().key)
            .await
            .map_err(status)?;
        Ok(Response::new(api::StatSnapshotResponse {
            info: Some(info(found)),
        }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let api::UpdateSnapshotRequest {
            info: wanted,
            update_mask,
            ..
        } = request.into_inner();
        let api::Info { name, labels, .. } = wanted.unwrap_or_default();
        let which = label_update(update_mask.map(|mask| mask.paths).unwrap_or_default())?;
        let found = self
            .snapshotter
            .update(name, labels, which)
            .await
            .map_err(status)?;
        Ok(Response::new(api::UpdateSnapshotResponse {
            info: Some(info(found)),
        }))
    }

    type ListStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<api::ListSnapshotsResponse, Status>>>;

    async fn list(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters).map_err(refused_filter)?;
        let found = self
            .snapshotter
            .list(move |info| filters.matches(info))
            .await;
        let mut found: Vec<_> = found.map_err(status)?.into_iter().map(info).collect();
        let mut blocks = Vec::with_capacity(found.len().div_ceil(LIST_BLOCK));
        while !found.is_empty() {
            let rest = found.split_off(found.len().min(LIST_BLOCK));
            blocks.push(Ok(api::ListSnapshotsResponse { info: found }));
            found = rest;
        }
        Ok(Response::new(tokio_stream::iter(blocks)))
    }

    async fn usage(
        &self,
        request: Request<api::UsageRequest>,
    ) -> Result<Response<api::UsageResponse>, Status> {
        let usage = self
            .snapshotter
            .usage(request.into_inner().key)
            .await
            .map_err(status)?;
        let number = |found: u64| i64::try_from(found).unwrap_or(i64::MAX);
        let (size, inodes) = (number(usage.size), number(usage.inodes));
        Ok(Response::new(api::UsageResponse { size, inodes }))
    }

    async fn cleanup(
        &self,
        _request: Request<api::CleanupRequest>,
    ) -> Result<Response<()>, Status> {
        self.snapshotter.cleanup().await.map_err(status)?;
        Ok(Response::new(()))
    }
}

/// containerd's namespace, from the metadata of the request.
fn namespace<T>(request: &Request<T>) -> Option<String> {
    let found = request
        .metadata()
        .get("containerd-namespace")?
        .to_str()
        .ok()?;
    (!found.is_empty()).then(|| found.to_owned())
}

/// A name that may be empty.
fn name(field: String) -> Option<String> {
    (!field.is_empty()).then_some(field)
}

fn mount(mount: Mount) -> types::Mount {
    let Mount {
        kind,
        source,
        options,
    } = mount;
    types::Mount {
        r#type: kind.to_owned(),
        source,
        target: String::new(),
        options,
    }
}

fn info(info: Info) -> api::Info {
    let Info { name, record } = info;
    api::Info {
        name,
        parent: record.parent.unwrap_or_default(),
        kind: kind(record.kind).into(),
        created_at: Some(time(record.created)),
        updated_at: Some(time(record.updated)),
        labels: record.labels,
    }
}

fn kind(kind: Kind) -> api::Kind {
    match kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    }
}

fn time(at: SystemTime) -> prost_types::Timestamp {
    at.into()
}

/// Converts a field mask. Only labels can be changed; an empty mask selects all of them.
fn label_update(paths: Vec<String>) -> Result<LabelUpdate, Status> {
    let mut keys = Vec::with_capacity(paths.len());
    let mut replace = paths.is_empty();
    for path in paths {
        if path == "labels" {
            replace = true;
        } else if let Some(key) = path.strip_prefix("labels.") {
            keys.push(key.to_owned());
        } else {
            return Err(Status::invalid_argument(format!(
                "cannot update {path:?} field"
            )));
        }
    }
    Ok(if replace {
        LabelUpdate::Replace
    } else {
        LabelUpdate::Keys(keys)
    })
}

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<&str> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "kind" => Some(match self.record.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            "name" => Some(&self.name),
            "parent" => Some(self.record.parent.as_deref().unwrap_or_default()),
            "labels" => self.record.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

fn refused_filter(error: FilterError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Converts an error to a status whose text contains all causes.
fn status(error: SnapshotError) -> Status {
    use MetadataError as M;
    use SnapshotError as S;
    let text = explain(&error);
    match error {
        S::Metadata(M::NotFound { .. }) => Status::not_found(text),
        S::Metadata(M::AlreadyExists { .. }) | S::TargetExists { .. } => {
            Status::already_exists(text)
        }
        S::Metadata(M::NotActive { .. } | M::HasChildren { .. }) | S::NotMountable { .. } => {
            Status::failed_precondition(text)
        }
        S::Metadata(M::ParentNotCommitted { .. } | M::ParentChanged { .. }) | S::Empty { .. } => {
            Status::invalid_argument(text)
        }
        S::Unavailable { .. } => Status::unavailable(text),
        S::Metadata(M::Full { .. }) | S::Full { .. } => Status::resource_exhausted(text),
        S::Owners(OwnersError::Unsupported { .. }) => Status::failed_precondition(text),
        S::Owners(OwnersError::Bad { .. }) => Status::invalid_argument(text),
        S::CallerGone => Status::cancelled(text),
        S::Metadata(M::Storage { .. } | M::Damaged { .. } | M::Closed | M::Lost)
        | S::NoNamespace
        | S::Files { .. }
        | S::Folder { .. }
        | S::Mount(_)
        | S::Starts(_)
        | S::Lost(_) => Status::unknown(text),
        S::Untrusted { .. } | S::Strict { .. } => Status::failed_precondition(text),
        S::Unverified { .. } => Status::unavailable(text),
    }
}

#[cfg(test)]
mod tests;
