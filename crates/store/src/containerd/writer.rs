//! Writes one blob to containerd: a stream of messages that ends with a commit.

use bytes::Bytes;
use soci_oci::descriptor::Descriptor;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{Containerd, content, failure};
use crate::{Labels, StoreError};

/// A blob that is being written. It is named after its digest, and containerd allows one writer for
/// a name. What an earlier writer left is continued at its end.
///
/// Dropping the value ends the writing. containerd keeps what it has, for the next writer.
#[derive(Debug)]
pub struct BlobWriter {
    store: Containerd,
    name: String,
    total: i64,
    messages: mpsc::Sender<content::WriteContentRequest>,
    answers: Streaming<content::WriteContentResponse>,
    /// Where the next byte goes in the blob.
    offset: u64,
}

/// Why a blob cannot be written now.
#[derive(Debug)]
pub(crate) enum Refused {
    /// containerd has the blob.
    Present,
    /// Another client writes it.
    Busy,
    /// containerd's error.
    Failed(Box<Status>),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::AlreadyExists => Self::Present,
            // "ref ... locked": another client is writing this blob.
            Code::Unavailable if status.message().contains("locked") => Self::Busy,
            _ => Self::Failed(Box::new(status)),
        }
    }
}

impl From<Refused> for StoreError {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::Present => Status::already_exists("the blob is present"),
            Refused::Busy => Status::unavailable("another client writes the blob"),
            Refused::Failed(status) => *status,
        };
        failure("write content")(status)
    }
}

impl BlobWriter {
    /// Begins to write a blob. Returns `None` if containerd has it, or if another client writes it.
    ///
    /// # Errors
    /// containerd's.
    pub async fn begin(store: &Containerd, blob: &Descriptor) -> Result<Option<Self>, StoreError> {
        match Self::try_begin(store, blob).await {
            Ok(writer) => Ok(Some(writer)),
            Err(Refused::Present) => Ok(None),
            Err(Refused::Busy) => {
                tracing::info!(
                    blob = blob.digest.to_string(),
                    "another client writes the same blob to containerd; it is left to that client"
                );
                Ok(None)
            }
            Err(refused) => Err(refused.into()),
        }
    }

    pub(crate) async fn try_begin(store: &Containerd, blob: &Descriptor) -> Result<Self, Refused> {
        let (messages, receiver) = mpsc::channel(1);
        let name = blob.digest.to_string();
        let total = i64::try_from(blob.size).unwrap_or(i64::MAX);
        // The call returns with the first response, so the first message must be queued before it.
        let first = message(&name, total, content::WriteAction::Stat, 0, Bytes::new());
        messages.send(first).await.map_err(|_| closed())?;
        let request = store.request(ReceiverStream::new(receiver));
        let mut answers = store.content().write(request).await?.into_inner();
        let started = answers.message().await?.unwrap_or_default();
        Ok(Self {
            store: store.clone(),
            name,
            total,
            messages,
            answers,
            offset: u64::try_from(started.offset).unwrap_or(0),
        })
    }

    /// How many bytes of the blob containerd has.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Writes the next bytes. A few MiB at most, because containerd limits the size of a message.
    ///
    /// # Errors
    /// containerd's.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        Ok(self.try_write(bytes).await?)
    }

    pub(crate) async fn try_write(&mut self, bytes: Bytes) -> Result<(), Refused> {
        let length = bytes.len() as u64;
        let answer = self.say(content::WriteAction::Write, bytes).await?;
        self.offset += length;
        let (at, offset) = (answer.offset, self.offset);
        if u64::try_from(at) == Ok(offset) {
            Ok(())
        } else {
            Err(Status::data_loss(format!("write is at {at} instead of {offset}")).into())
        }
    }

    /// Commits the blob. containerd compares its digest. What cannot be committed is removed, so
    /// that no later writer continues it.
    ///
    /// # Errors
    /// containerd's.
    pub async fn commit(self) -> Result<(), StoreError> {
        let (store, name) = (self.store.clone(), self.name.clone());
        match self.try_commit().await {
            Ok(()) | Err(Refused::Present) => Ok(()),
            Err(refused) => {
                abort(&store, name).await;
                Err(refused.into())
            }
        }
    }

    pub(crate) async fn try_commit(mut self) -> Result<(), Refused> {
        let commit = self.say(content::WriteAction::Commit, Bytes::new());
        commit.await.map(drop)
    }

    /// Removes what was written, so that no later writer continues it.
    pub async fn abort(self) {
        let (store, name) = (self.store.clone(), self.name.clone());
        // The stream ends first.
        drop(self);
        abort(&store, name).await;
    }

    async fn say(
        &mut self,
        action: content::WriteAction,
        data: Bytes,
    ) -> Result<content::WriteContentResponse, Refused> {
        let next = message(&self.name, self.total, action, self.offset, data);
        self.messages.send(next).await.map_err(|_| closed())?;
        let answer = self.answers.message().await?;
        answer.ok_or_else(|| Status::unavailable("the write stream ended early").into())
    }
}

/// Removes what was written of a blob.
pub(crate) async fn abort(store: &Containerd, name: String) {
    let abort = content::AbortRequest {
        r#ref: name.clone(),
    };
    if let Err(status) = store.content().abort(store.request(abort)).await {
        tracing::debug!(name, %status, "no ingest to abort");
    }
}

fn closed() -> Refused {
    Status::unavailable("the write stream is closed").into()
}

fn message(
    name: &str,
    total: i64,
    action: content::WriteAction,
    offset: u64,
    data: Bytes,
) -> content::WriteContentRequest {
    content::WriteContentRequest {
        action: action.into(),
        r#ref: name.to_owned(),
        total,
        expected: name.to_owned(),
        offset: i64::try_from(offset).unwrap_or(i64::MAX),
        data,
        labels: Labels::new(),
    }
}
