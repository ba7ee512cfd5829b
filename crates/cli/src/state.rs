//! What commands work on: containerd, connected to when first needed, the content store
//! for new blobs, and the records.

use std::sync::Arc;

use anyhow::{Result, bail};
use soci_index::Artifacts;
use soci_oci::store::ContentStore;
use soci_oci::store::containerd::Containerd;
use soci_oci::store::local::LocalStore;
use tokio::sync::OnceCell;

use crate::args::Global;

/// One command's view of the machine.
#[derive(Debug)]
pub(crate) struct State<'a> {
    pub(crate) global: &'a Global,
    containerd: OnceCell<Containerd>,
}

impl<'a> State<'a> {
    /// Nothing is opened yet.
    pub(crate) fn new(global: &'a Global) -> Self {
        Self {
            global,
            containerd: OnceCell::new(),
        }
    }

    /// containerd; connected at the first call.
    pub(crate) async fn containerd(&self) -> Result<&Containerd> {
        let global = self.global;
        let connect = || Containerd::connect(&global.address, &global.namespace, global.timeout);
        Ok(self.containerd.get_or_try_init(connect).await?)
    }

    /// The store that `--content-store` names.
    pub(crate) async fn content(&self) -> Result<Arc<dyn ContentStore>> {
        match self.global.content_store.as_str() {
            "containerd" => Ok(Arc::new(self.containerd().await?.clone())),
            "soci" => Ok(Arc::new(LocalStore::at(&self.global.root))),
            other => bail!("unknown content store type: {other}; must be one of [soci containerd]"),
        }
    }

    /// The records of what was built. Its operations wait for other processes: not for long, but blocking.
    pub(crate) fn artifacts(&self) -> Artifacts {
        Artifacts::at(&self.global.root)
    }
}
